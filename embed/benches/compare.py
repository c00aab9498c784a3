"""The engine against onnxruntime and torch: same weights, same texts, one run, one thread each.

    make bench-embed PYTHON=path/to/venv/bin/python

needs: torch transformers tokenizers safetensors numpy onnx onnxruntime

Makes an XLM-RoBERTa of BGE-M3's size with random weights (1.2 GB; the word table is small, for it is only
looked up), an ONNX graph of the same weights with onnxruntime's fused operators (Attention,
SkipLayerNormalization, BiasGelu), in float32 and quantized dynamically per channel, and measures CPU time:
wall time says little on a machine that does other work. Everybody gets the same token ids. `--layers 2 --hidden
128` makes a small one, to see that it works.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import XLMRobertaConfig, XLMRobertaModel

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/data/embedding-golden/tiny-bge-m3"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dir", type=Path, default=ROOT / "target/bench-embed")
parser.add_argument("--layers", type=int, default=24)
parser.add_argument("--hidden", type=int, default=1024)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--skip-torch", action="store_true", help="leave out the padded torch runs, which take longest")
arguments = parser.parse_args()
hidden, layers, heads = arguments.hidden, arguments.layers, max(arguments.hidden // 64, 1)
name = f"xlmr-{layers}x{hidden}"
folder = arguments.dir / name
torch.set_num_threads(1)


def make():
    """The model folder in BGE-M3's layout, and its torch model."""
    config = dict(
        vocab_size=4014,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=8194,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(3)
    model = XLMRobertaModel(XLMRobertaConfig(**config), add_pooling_layer=False).eval()
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        json.dump(
            {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", **config},
            open(folder / "config.json", "w"),
        )
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items() if "position_ids" not in k},
            folder / "model.safetensors",
        )
        (folder / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
        for head, outputs in (("sparse_linear", 1), ("colbert_linear", hidden)):
            torch.save(torch.nn.Linear(hidden, outputs).state_dict(), folder / f"{head}.pt")
        (folder / "ready").touch()
    return model


def to_onnx(model, path):
    """Input: ids and right-padded lengths. Output: hidden states."""
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind, inputs, output, domain="", **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def norm(x, skip, prefix, output):
        parts = [constant(prefix + part, weights[prefix + part]) for part in (".weight", ".bias")]
        return node("SkipLayerNormalization", [x, skip, *parts], output, "com.microsoft", epsilon=1e-5)

    words = node(
        "Gather",
        [
            constant(
                "words",
                weights["embeddings.word_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0],
            ),
            "ids",
        ],
        "word_rows",
    )
    places = node(
        "Gather", [constant("places", weights["embeddings.position_embeddings.weight"]), "positions"], "place_rows"
    )
    x = norm(words, places, "embeddings.LayerNorm", "embedded")
    for i in range(layers):
        p = f"encoder.layer.{i}."
        qkv = [p + f"attention.self.{part}" for part in ("query", "key", "value")]
        w = constant(p + "qkv", np.concatenate([weights[q + ".weight"].T for q in qkv], 1))
        b = constant(p + "qkv.bias", np.concatenate([weights[q + ".bias"] for q in qkv]))
        context = node("Attention", [x, w, b, "lengths"], p + "context", "com.microsoft", num_heads=heads)

        def linear(source, prefix, output):
            return node("MatMul", [source, constant(prefix + ".weight", weights[prefix + ".weight"].T)], output)

        attended = node(
            "Add",
            [
                linear(context, p + "attention.output.dense", p + "a"),
                constant(p + "ab", weights[p + "attention.output.dense.bias"]),
            ],
            p + "a.bias",
        )
        attended = norm(attended, x, p + "attention.output.LayerNorm", p + "attended")
        inner = node(
            "BiasGelu",
            [
                linear(attended, p + "intermediate.dense", p + "i"),
                constant(p + "ib", weights[p + "intermediate.dense.bias"]),
            ],
            p + "inner",
            "com.microsoft",
        )
        out = node(
            "Add",
            [linear(inner, p + "output.dense", p + "o"), constant(p + "ob", weights[p + "output.dense.bias"])],
            p + "o.bias",
        )
        x = norm(out, attended, p + "output.LayerNorm", p + "out")
    nodes.append(helper.make_node("Identity", [x], ["hidden"]))
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("positions", TensorProto.INT64, shape),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*shape, hidden])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9
    )
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data")


tokenizer = Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.no_truncation()
# Words that are one token each, so that a text has as many tokens as it shall have.
pieces = sorted(
    w[1:]
    for w, i in tokenizer.get_vocab().items()
    if w.startswith("▁") and w[1:].isascii() and w[1:].isalpha() and len(w) > 3
)
single = [w for w in pieces if len(tokenizer.encode(f"{w} {w}").ids) == 4][:500]


def text(tokens, seed):
    chosen = np.random.default_rng(seed).integers(0, len(single), tokens - 2)
    return " ".join(single[i] for i in chosen)


lengths = np.clip(np.random.default_rng(5).lognormal(4.3, 0.9, 64), 8, 512).astype(int)
mixed = [text(int(n), 1000 + i) for i, n in enumerate(lengths)]
CASES = {
    "1 x 16": [[text(16, 0)]],
    "1 x 512": [[text(512, 1)]],
    "8 x 128": [[text(128, 10 + i) for i in range(8)]],
    "mixed 8-512": [mixed],
}


def ours(precision, sparse=False, cases=CASES):
    request = [
        {"name": k, "batches": v, "sparse": sparse, "runs": arguments.runs if "mixed" not in k else 1}
        for k, v in cases.items()
    ]
    (arguments.dir / "cases.json").write_text(json.dumps(request))
    binary = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/compare"
    printed = subprocess.run(
        [binary, arguments.dir, name, precision, arguments.dir / "cases.json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {line["name"]: line for line in map(json.loads, printed.splitlines())}


def padded(run, cases=CASES):
    """As FlagEmbedding: sorted by length, batches of 16, padded to their longest."""
    results = {}
    for case, batches in cases.items():
        ids = sorted((tokenizer.encode(t).ids for batch in batches for t in batch), key=len, reverse=True)
        chunks = [ids[i : i + 16] for i in range(0, len(ids), 16)]
        arrays = []
        for chunk in chunks:
            longest = max(map(len, chunk))
            array = np.array([row + [1] * (longest - len(row)) for row in chunk], np.int64)
            arrays.append((array, np.array([len(row) for row in chunk], np.int32)))
        best = wall = 1e9
        for _ in range(arguments.runs if "mixed" not in case else 1):
            cpu, began = time.process_time(), time.perf_counter()
            first = [run(*array) for array in arrays][0][0]
            best, wall = min(best, time.process_time() - cpu), min(wall, time.perf_counter() - began)
        results[case] = {
            "tokens": sum(map(len, ids)),
            "cpu": best,
            "wall": wall,
            "first": (first / np.linalg.norm(first)).tolist(),
        }
    return results


def positions(ids):
    return np.where(ids == 1, 1, np.arange(ids.shape[1]) + 2).astype(np.int64)


def onnxruntime(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids, lengths: session.run(["hidden"], {"ids": ids, "positions": positions(ids), "lengths": lengths})[
        0
    ][:, 0]


def run_torch(model):
    def run(ids, lengths):
        with torch.no_grad():
            ids = torch.tensor(ids)
            return model(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state[:, 0].numpy()

    return run


model = make()
plain, quantized = arguments.dir / f"{name}.onnx", arguments.dir / f"{name}.int8.onnx"
if not plain.exists():
    to_onnx(model, plain)
if not quantized.exists():
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        plain,
        quantized,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Attention"],
        use_external_data_format=True,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )

results = {}
for precision in ("f32", "int8"):
    results[f"elanus {precision}"] = ours(precision)
    results[f"elanus {precision}, dense + sparse"] = ours(precision, sparse=True)
    results[f"onnxruntime {precision}"] = padded(onnxruntime(plain if precision == "f32" else quantized))
    print(precision, "done", file=sys.stderr)
if not arguments.skip_torch:
    results["torch f32, padded"] = padded(run_torch(model))

print(
    f"{name}, tokens per second of one core (CPU time)\n\n| | " + " | ".join(CASES) + " |\n|---|" + "---|" * len(CASES)
)
for engine, cases in results.items():
    print(f"| {engine} | " + " | ".join(f"{cases[c]['tokens'] / cases[c]['cpu']:,.0f}" for c in CASES) + " |")
for precision in ("f32", "int8"):
    us, them = results[f"elanus {precision}"], results[f"onnxruntime {precision}"]
    print(
        f"| elanus / onnxruntime {precision} | "
        + " | ".join(f"{them[c]['cpu'] / us[c]['cpu']:.2f}" for c in CASES)
        + " |"
    )
    both = results[f"elanus {precision}, dense + sparse"]
    print(
        f"| time of dense + sparse over dense, {precision} | "
        + " | ".join(f"{both[c]['cpu'] / us[c]['cpu']:.3f}" for c in CASES)
        + " |"
    )
if "torch f32, padded" in results:
    print(
        "| elanus f32 / torch padded | "
        + " | ".join(f"{results['torch f32, padded'][c]['cpu'] / results['elanus f32'][c]['cpu']:.2f}" for c in CASES)
        + " |"
    )
print()
for precision in ("f32", "int8"):
    us, them = results[f"elanus {precision}"], results["onnxruntime f32"]
    print(
        f"cosine of elanus {precision} to onnxruntime f32:",
        ", ".join(f"{c} {np.dot(us[c]['first'], them[c]['first']):.6f}" for c in CASES if "mixed" not in c),
    )
    print(f"first vector after {us['first vector']['wall']:.2f} s; peak memory {us['peak memory']['VmHWM']}")
long = {"1 x 8192": [[text(8192, 77)]]}
for precision in ("f32", "int8"):
    line = ours(precision, cases=long)
    print(
        f"8,192 tokens, {precision}: {line['1 x 8192']['cpu']:.1f} s of one core, peak memory {line['peak memory']['VmHWM']}"
    )
