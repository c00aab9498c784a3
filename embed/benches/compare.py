"""The engine against onnxruntime and torch: same weights, same texts, one run, one thread each.

    make bench-embed PYTHON=path/to/venv/bin/python

needs: torch transformers tokenizers safetensors numpy onnx onnxruntime bge-m3-lite==0.6.2 pymilvus

Makes an XLM-RoBERTa of BGE-M3's size with random weights (1.2 GB; the word table is small, for it is only
looked up), an ONNX graph of the same weights with onnxruntime's fused operators (Attention,
SkipLayerNormalization, BiasGelu), in float32 and quantized dynamically per channel, and measures CPU time:
wall time says little on a machine that does other work. Everybody gets the same token ids, and everybody has a
turn in each round; ratios are medians over the rounds.

Texts of mixed lengths are padded for the others in batches of 16, longest first, as pymilvus' function for
BGE-M3 has FlagEmbedding do it. bge-m3-lite makes its own batches, and its own graphs of the one here, which has
the operators that it makes of BGE-M3's; it wants the weights of BGE-M3 itself, so its tokenizer and heads are left
out, and what it does to a model for the sake of precision only (SmoothQuant). Writes docs/benchmarks/embedding.md if the
model has BGE-M3's size. `--layers 2 --hidden 128` makes a small one, to see that it works, and prints.
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from bge_m3_lite.embedder import BATCH_SIZE, MAX_BATCH_TOKENS, BGEM3Embedder
from bge_m3_lite.fuse import _chunk_attention
from bge_m3_lite.model import session_options
from bge_m3_lite.quantize import ATTENTION_CHUNK, QuantConfig, quantize, write_external_data
from onnx import TensorProto, helper, numpy_helper
from pymilvus import DataType, Function, FunctionType, MilvusClient
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


def sixteen(ids):
    return [ids[i : i + 16] for i in range(0, len(ids), 16)]


def as_lite(ids):
    return [[ids[i] for i in batch] for batch in BGEM3Embedder._batches(ids, BATCH_SIZE, MAX_BATCH_TOKENS)]


def padded(run, batched=sixteen, cases=CASES):
    """CPU time with what is padded to the longest of its batch; `batched` makes them, of texts sorted by length."""
    results = {}
    for case, batches in cases.items():
        ids = [[tokenizer.encode(t).ids for t in batch] for batch in batches]
        if case == MIXED:
            ids = batched(sorted(ids[0], key=len, reverse=True))
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


def one_thread():
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


def onnxruntime(path, options=None):
    options = options or one_thread()
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
    """Questions of 16 tokens to a node, one at a time. For each way to ask, lists of seconds: as the client sees a
    question, as the node does, and what the node needs beside the forward pass."""
    with tempfile.TemporaryDirectory() as folder, Node(Path(folder) / "data", arguments.dir) as node:
        endpoint = json.loads((node.data_dir / "endpoint.json").read_text())
        metrics = f"http://{endpoint['ops']}/metrics"
        connection = http.client.HTTPConnection(endpoint["grpc"])

        def embeddings(question):
            body = json.dumps({"model": name, "input": question, "input_type": "query"})
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"the node answers {answer.status} to a question")

        client = MilvusClient(node.uri)
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.VARCHAR, max_length=1000)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=hidden)
        of = {"provider": "builtin", "model_name": name}
        schema.add_function(Function("d", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params=of))
        index = client.prepare_index_params()
        index.add_index("dense", index_type="FLAT", metric_type="IP")
        client.create_collection("texts", schema=schema, index_params=index)
        client.insert("texts", [{"id": i, "text": text(16, 4000 + i)} for i in range(100)])

        def search(question):
            client.search("texts", data=[question], anns_field="dense", limit=10)

        def asked(rpc, ask, seed):
            def spent():
                page = urllib.request.urlopen(metrics).read().decode()
                values = [
                    re.search(rf"^{metric} (\S+)$", page, re.MULTILINE)
                    for metric in (r"elanus_model_run_seconds\S*", rf'elanus_rpc_seconds_sum{{rpc="{rpc}"}}')
                ]
                return np.array([float(value[1]) for value in values])

            for i in range(20):
                ask(text(16, seed - 1 - i))
            by_client, by_node, before = [], [], spent()
            for i in range(arguments.questions):
                question = text(16, seed + i)
                start = time.perf_counter()
                ask(question)
                by_client.append(time.perf_counter() - start)
                after = spent()
                by_node.append(after - before)
                before = after
            return by_client, [total for _, total in by_node], [total - run for run, total in by_node]

        return {
            "HTTP, `/v1/embeddings`": asked("/v1/embeddings", embeddings, 6000),
            "gRPC, `search`": asked("search", search, 8000),
        }


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

lite, lite_quantized = arguments.dir / f"{name}.lite.onnx", arguments.dir / f"{name}.lite-int8.onnx"
if not lite.exists():
    graph = onnx.load(str(plain))
    _chunk_attention(graph, ATTENTION_CHUNK)
    write_external_data(graph, lite.with_name(lite.name + "_data"))
    onnx.save_model(graph, str(lite))
if not lite_quantized.exists():
    quantize(plain, lite_quantized, QuantConfig(smooth_alpha=None))

load = os.getloadavg()[0]
began = time.monotonic()
peers = {"f32": (plain, lite), "int8": (quantized, lite_quantized)}
# What was measured is kept: a run that was broken off is gone on with.
kept = arguments.dir / f"{name}-{arguments.texts}.measured.json"
measured = json.loads(kept.read_text()) if kept.exists() else {}


def once(what, measure):
    """What was measured before, or is now."""
    if what not in measured:
        measured[what] = measure()
        kept.write_text(json.dumps(measured))
        print(f"{what} after {time.monotonic() - began:.0f} s", file=sys.stderr)
    return measured[what]


def peers_in_turn():
    results = {}
    for precision in ("f32", "int8"):
        results[f"elanus {precision}"] = ours(precision)
        path, of_lite = peers[precision]
        results[f"onnxruntime {precision}"] = padded(onnxruntime(path))
        results[f"bge-m3-lite {precision}"] = padded(onnxruntime(of_lite, session_options(1)), as_lite)
    results["torch f32"] = padded(run_torch(model))
    return results


asked = once("questions", questions)
# The first start converts the weights.
first_start = once("first start", lambda: {p: ours(p, {}, False)["first vector"] for p in ("f32", "int8")})
rounds = [once(f"round {number}", peers_in_turn) for number in range(1, arguments.rounds + 1)]
long = once("long text", lambda: {p: ours(p, LONG, False) for p in ("f32", "int8")})


def rate(engine, case):
    return statistics.median(r[engine][case]["tokens"] / r[engine][case]["cpu"] for r in rounds)


def times_as_quick(engine, peer, case):
    return statistics.median(r[peer][case]["cpu"] / r[engine][case]["cpu"] for r in rounds)


def cost_of_sparse(engine, case):
    return statistics.median(r[engine][case + AND_SPARSE]["cpu"] / r[engine][case]["cpu"] for r in rounds)


def first_vector(precision, which):
    return f"{statistics.median(r[f'elanus {precision}']['first vector'][which] for r in rounds):.2f}"


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
    f"has a turn, medians; {arguments.texts} texts of mixed lengths. torch {torch.__version__.split('+')[0]}, onnxruntime {ort.__version__}, bge-m3-lite {version('bge-m3-lite')}. What is compared, and how: "
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
        for p, peer in (
            ("f32", "onnxruntime f32"),
            ("f32", "bge-m3-lite f32"),
            ("f32", "torch f32"),
            ("int8", "onnxruntime int8"),
            ("int8", "bge-m3-lite int8"),
        )
    ),
    *(
        row(f"dense and sparse take × the time of dense, {p}", [f"{cost_of_sparse(f'elanus {p}', case):.3f}" for case in CASES])
        for p in ("f32", "int8")
    ),
    "",
    "## A question to a node",
    "",
    f"{len(next(iter(asked.values()))[0])} questions of 16 tokens each way, one at a time, in milliseconds by the clock, p50 and p99. What the node "
    "sees is its own `elanus_rpc_seconds`, from a request that has arrived to an answer that is handed to the network; "
    "the forward pass is `elanus_model_run_seconds`. The client is in Python.",
    "",
    row("", asked),
    row("---", ["---"] * len(asked)),
    *(
        row(title, [", ".join(milliseconds(way[index])) for way in asked.values()])
        for index, title in enumerate(("as the client sees it", "as the node sees it", "of it not the forward pass"))
    ),
    "",
    "## One process",
    "",
    row("", ["float32", "int8"]),
    row("---", ["---"] * 2),
    row("first vector, weights converted before: CPU s", [first_vector(p, "cpu") for p in long]),
    row("the same by the clock: s", [first_vector(p, "wall") for p in long]),
    row("first vector ever: CPU s", [f"{first_start[p]['cpu']:.2f}" for p in long]),
    row("a text of 8,192 tokens: CPU s", [f"{long[p]['1 x 8192']['cpu']:.1f}" for p in long]),
    row("the same: peak memory of the process, MB", [f"{int(long[p]['peak memory']['VmHWM'].split()[0]) / 1000 * 1.024:,.0f}" for p in long]),
    row(of, [f"{np.dot(rounds[-1][f'elanus {p}']['1 x 512']['first'], rounds[-1]['onnxruntime f32']['1 x 512']['first']):.6f}" for p in long]),
]  # fmt: skip
text_of = "\n".join(lines) + "\n"
print(text_of)
if (layers, hidden) == (24, 1024):
    (ROOT / "docs/benchmarks/embedding.md").write_text(text_of)
