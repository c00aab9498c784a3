"""The engine against onnxruntime and torch: same weights, same texts, one run, one thread each.

    make bench-embed PYTHON=path/to/venv/bin/python

needs: torch transformers tokenizers safetensors numpy onnx onnxruntime

Makes an XLM-RoBERTa of BGE-M3's size with random weights (1.2 GB; the word table is small, for it is only
looked up), an ONNX graph of the same weights with onnxruntime's fused operators (Attention,
SkipLayerNormalization, BiasGelu), in float32 and quantized dynamically per channel, and measures CPU time:
wall time says little on a machine that does other work. Everybody gets the same token ids, and everybody has a
turn in each round; ratios are medians over the rounds.

Texts of mixed lengths are padded for the others in batches of 16, longest first, as pymilvus' function for
BGE-M3 has FlagEmbedding do it; bge-m3-lite, which is onnxruntime with such batches of 12, wants the weights of
BGE-M3 itself. Writes docs/benchmarks/embedding.md if the model has BGE-M3's size. `--layers 2 --hidden 128` makes a small one,
to see that it works, and prints.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
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
sys.path.insert(0, str(ROOT))
from demo.node import Node  # noqa: E402

GOLDEN = ROOT / "tests/data/embedding-golden/tiny-bge-m3"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dir", type=Path, default=ROOT / "target/bench-embed")
parser.add_argument("--layers", type=int, default=24)
parser.add_argument("--hidden", type=int, default=1024)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--texts", type=int, default=64, help="texts of mixed lengths")
parser.add_argument("--questions", type=int, default=400, help="questions to a node")
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


lengths = np.clip(np.random.default_rng(5).lognormal(4.3, 0.9, arguments.texts), 8, 512).astype(int)
# Batches that are one call each; the mixed texts are one call that everybody may batch as it likes.
MIXED = "mixed 8-512"
CASES = {
    "1 x 16": [[text(16, i)] for i in range(8)],
    "1 x 512": [[text(512, 20)]],
    "8 x 128": [[text(128, 30 + i) for i in range(8)]],
    MIXED: [[text(int(n), 1000 + i) for i, n in enumerate(lengths)]],
}
LONG = {"1 x 8192": [[text(8192, 77)]]}
AND_SPARSE = " and sparse"


def ours(precision, cases=CASES, sparse=True):
    """Per case, and with sparse vectors beside the dense ones, what the example prints."""
    request = [{"name": k, "batches": v, "sparse": False, "runs": 1} for k, v in cases.items()]
    if sparse:
        request += [{"name": k + AND_SPARSE, "batches": v, "sparse": True, "runs": 1} for k, v in cases.items()]
    (arguments.dir / "cases.json").write_text(json.dumps(request))
    binary = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/compare"
    printed = subprocess.run(
        [binary, arguments.dir, name, precision, arguments.dir / "cases.json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = list(map(json.loads, printed.splitlines()))
    for line in lines:
        if "cpu" in line:
            line["cpu"] = max(line["cpu"], 0.01)  # one tick of the clock
    return {line["name"]: line for line in lines}


def padded(run, cases=CASES):
    """CPU time with what is padded to the longest of its batch."""
    results = {}
    for case, batches in cases.items():
        ids = [[tokenizer.encode(t).ids for t in batch] for batch in batches]
        if case == MIXED:
            longest_first = sorted(ids[0], key=len, reverse=True)
            ids = [longest_first[i : i + 16] for i in range(0, len(longest_first), 16)]
        arrays = []
        for batch in ids:
            longest = max(map(len, batch))
            array = np.array([row + [1] * (longest - len(row)) for row in batch], np.int64)
            arrays.append((array, np.array([len(row) for row in batch], np.int32)))
        cpu = time.process_time()
        first = [run(*array) for array in arrays][0][0]
        results[case] = {
            "tokens": sum(len(row) for batch in ids for row in batch),
            "cpu": time.process_time() - cpu,
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


def questions():
    """Questions of 16 tokens to a node, one at a time: seconds as a client sees them, and what of each was not
    the forward pass."""
    with tempfile.TemporaryDirectory() as folder, Node(Path(folder) / "data", arguments.dir) as node:
        endpoint = json.loads((node.data_dir / "endpoint.json").read_text())
        metrics = f"http://{endpoint['ops']}/metrics"
        connection = http.client.HTTPConnection(endpoint["grpc"])

        def run_seconds():
            page = urllib.request.urlopen(metrics).read().decode()
            return float(re.search(r"^elanus_model_run_seconds\S* (\S+)$", page, re.MULTILINE)[1])

        def ask(seed):
            body = json.dumps({"model": name, "input": text(16, seed), "input_type": "query"})
            start = time.perf_counter()
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"the node answers {answer.status} to a question")
            return time.perf_counter() - start

        for seed in range(20):
            ask(5000 + seed)
        seen, beside, run = [], [], run_seconds()
        for seed in range(arguments.questions):
            seen.append(ask(6000 + seed))
            run, before = run_seconds(), run
            beside.append(seen[-1] - (run - before))
    return seen, beside


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

load = os.getloadavg()[0]
began = time.monotonic()
peers = {"onnxruntime f32": plain, "onnxruntime int8": quantized}
# Rounds are kept: a run that was broken off is gone on with.
kept = arguments.dir / f"{name}-{arguments.texts}.rounds.json"
if kept.exists():
    first_start, rounds = json.loads(kept.read_text())
else:
    # The first start converts the weights.
    first_start, rounds = {p: ours(p, {}, False)["first vector"] for p in ("f32", "int8")}, []
while len(rounds) < arguments.rounds:
    results = {}
    for precision in ("f32", "int8"):
        results[f"elanus {precision}"] = ours(precision)
        results[f"onnxruntime {precision}"] = padded(onnxruntime(peers[f"onnxruntime {precision}"]))
    results["torch f32"] = padded(run_torch(model))
    rounds.append(results)
    kept.write_text(json.dumps([first_start, rounds]))
    print(f"round {len(rounds)} after {time.monotonic() - began:.0f} s", file=sys.stderr)
seen, beside = questions()
long = {precision: ours(precision, LONG, False) for precision in ("f32", "int8")}


def rate(engine, case):
    return statistics.median(r[engine][case]["tokens"] / r[engine][case]["cpu"] for r in rounds)


def times_as_quick(engine, peer, case):
    return statistics.median(r[peer][case]["cpu"] / r[engine][case]["cpu"] for r in rounds)


def cost_of_sparse(engine, case):
    return statistics.median(r[engine][case + AND_SPARSE]["cpu"] / r[engine][case]["cpu"] for r in rounds)


def milliseconds(values):
    ordered = sorted(values)
    return [f"{ordered[int(len(ordered) * share)] * 1000:.2f}" for share in (0.5, 0.99)]


def row(title, values):
    return f"| {title} | " + " | ".join(values) + " |"


processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
of = "cosine of the vectors to those of onnxruntime f32, 1 x 512"
lines = [
    "# Embedding on the CPU",
    "",
    f"Written by `make bench-embed` on {time.strftime('%Y-%m-%d')} on "
    f"{processor[1] if processor else 'an unknown processor'}; load average before it {load:.1f}, after it {os.getloadavg()[0]:.1f}.",
    "",
    f"An XLM-RoBERTa with {layers} layers of {hidden}, random weights; CPU time of one thread, {len(rounds)} round(s) in which everybody "
    f"has a turn, medians; {arguments.texts} texts of mixed lengths. torch {torch.__version__.split('+')[0]}, onnxruntime {ort.__version__}. What is compared, and how: "
    "`embed/benches/compare.py`. Where the machine had other work, the ratios mean more than the figures.",
    "",
    "## Tokens per second of one core",
    "",
    row("", CASES),
    row("---", ["---"] * len(CASES)),
    *(row(engine, [f"{rate(engine, case):,.0f}" for case in CASES]) for engine in rounds[0]),
    "",
    "## Ratios",
    "",
    row("", CASES),
    row("---", ["---"] * len(CASES)),
    *(
        row(f"elanus {p} is × as quick as {peer}", [f"{times_as_quick(f'elanus {p}', peer, case):.2f}" for case in CASES])
        for p, peer in (("f32", "onnxruntime f32"), ("f32", "torch f32"), ("int8", "onnxruntime int8"))
    ),
    *(
        row(f"dense and sparse take × the time of dense, {p}", [f"{cost_of_sparse(f'elanus {p}', case):.3f}" for case in CASES])
        for p in ("f32", "int8")
    ),
    "",
    "## A question to a node",
    "",
    f"{len(seen)} questions of 16 tokens over HTTP, one at a time, in milliseconds by the clock; the forward pass is what "
    "the node's own metric `elanus_model_run_seconds` says of each.",
    "",
    row("", ["p50", "p99"]),
    row("---", ["---"] * 2),
    row("as the client sees it", milliseconds(seen)),
    row("of it not the forward pass", milliseconds(beside)),
    "",
    "## One process",
    "",
    row("", ["float32", "int8"]),
    row("---", ["---"] * 2),
    row("first vector, weights converted before: CPU s", [f"{rounds[-1][f'elanus {p}']['first vector']['cpu']:.2f}" for p in long]),
    row("first vector ever: CPU s", [f"{first_start[p]['cpu']:.2f}" for p in long]),
    row("a text of 8,192 tokens: CPU s", [f"{long[p]['1 x 8192']['cpu']:.1f}" for p in long]),
    row("the same: peak memory of the process, MB", [f"{int(long[p]['peak memory']['VmHWM'].split()[0]) / 1000 * 1.024:,.0f}" for p in long]),
    row(of, [f"{np.dot(rounds[-1][f'elanus {p}']['1 x 512']['first'], rounds[-1]['onnxruntime f32']['1 x 512']['first']):.6f}" for p in long]),
]  # fmt: skip
text_of = "\n".join(lines) + "\n"
print(text_of)
if (layers, hidden) == (24, 1024):
    (ROOT / "docs/benchmarks/embedding.md").write_text(text_of)
