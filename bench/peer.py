"""One library on one data set, in a process of its own: builds, then answers on standard input what
`elanus bench index` answers. `python -m bench.peer NAME FOLDER FIELD`.

CPU time is that of the whole process while it works with as many threads as the command says.
Queries go to the library in one call where it takes them, so that calls from Python cost it
nothing; Qdrant and Seismic are called once for each, which costs them some microseconds.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.data import load_sparse

M, EF_CONSTRUCTION, SEED, K = 16, 200, 1, 10
WARM, ALONE = 20, 200
ROUNDING = 1e-5


class Unsupported(Exception):
    """The library, or this harness, cannot do that."""


class Hnswlib:
    """hnswlib, float32"""

    package = "hnswlib==0.8.0"

    def __init__(self, rows, folder):
        import hnswlib

        self._index = hnswlib.Index("ip", rows.shape[1])
        self._index.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
        self._index.add_items(rows, num_threads=1)

    def search(self, queries, width, mask, threads):
        if mask is not None:
            raise Unsupported("its filter is a call of Python for each row")
        self._index.set_ef(width)
        return self._index.knn_query(queries, K, num_threads=threads)[0]


class FaissSq8:
    """faiss HNSW on int8 codes, three times as many rows scored again"""

    package = "faiss-cpu==1.15.1"

    def __init__(self, rows, folder):
        import faiss

        faiss.omp_set_num_threads(1)
        kind = faiss.ScalarQuantizer.QT_8bit
        self._graph = faiss.IndexHNSWSQ(rows.shape[1], kind, M, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = EF_CONSTRUCTION
        self._graph.train(rows)
        self._graph.add(rows)
        self._index = faiss.IndexRefineFlat(self._graph, faiss.swig_ptr(rows))
        self._index.k_factor = 3
        self._rows = rows

    def search(self, queries, width, mask, threads):
        import faiss

        if threads > 1:
            raise Unsupported
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            chosen = faiss.SearchParametersHNSW(sel=faiss.IDSelectorBitmap(bits), efSearch=width)
            found = self._graph.search(queries, 3 * K, params=chosen)[1]
            return rescored(self._rows, queries, found)
        self._graph.hnsw.efSearch = width
        return self._index.search(queries, K)[1]


class FaissFlat:
    """faiss, every row"""

    package = "faiss-cpu==1.15.1"

    def __init__(self, rows, folder):
        import faiss

        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexFlatIP(rows.shape[1])
        self._index.add(rows)

    def search(self, queries, width, mask, threads):
        if mask is not None or threads > 1:
            raise Unsupported
        # One at a time: many at once are another question.
        return np.concatenate([self._index.search(query[None], K)[1] for query in queries])


class UsearchBf16:
    """usearch, bfloat16"""

    package = "usearch==2.26.6"

    def __init__(self, rows, folder):
        from usearch.index import Index

        self._index = Index(
            ndim=rows.shape[1], metric="ip", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION
        )
        self._index.add(np.arange(len(rows)), rows, threads=1)

    def search(self, queries, width, mask, threads):
        if mask is not None or threads > 1:
            raise Unsupported
        self._index.expansion_search = width
        return self._index.search(queries, K, threads=1).keys.reshape(len(queries), -1).astype(np.int64)


class Scann:
    """ScaNN, a tree over asymmetric codes, 100 rows scored again; its width is leaves searched"""

    package = "scann==1.4.2"

    def __init__(self, rows, folder):
        import scann

        builder = scann.scann_ops_pybind.builder(rows, K, "dot_product")
        builder = builder.tree(int(len(rows) ** 0.5), 20, training_sample_size=min(len(rows), 100_000))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        self._index = builder.set_n_training_threads(1).build()

    def search(self, queries, width, mask, threads):
        if mask is not None or threads > 1:
            raise Unsupported
        return self._index.search_batched(queries, K, leaves_to_search=width, pre_reorder_num_neighbors=100)[0]


class Qdrant:
    """Qdrant's engine, int8 codes, twice as many rows scored again"""

    package = "qdrant-edge-py==0.9.0"

    def __init__(self, rows, folder):
        import qdrant_edge as q

        codes = q.ScalarQuantizationConfig(type=q.ScalarType.Int8, always_ram=True)
        vectors = q.EdgeVectorParams(
            size=rows.shape[1], distance=q.Distance.Dot, quantization_config=codes
        )
        graph = q.HnswIndexConfig(
            m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10, max_indexing_threads=1
        )
        self._q, self._scratch = q, tempfile.TemporaryDirectory()
        self._shard = shard(q, self._scratch.name, vectors=vectors, hnsw_config=graph)
        masks = {path.stem: np.load(path) for path in sorted(folder.glob("mask_*.npy"))}
        for name in masks:
            kind = q.PayloadSchemaType.Integer
            self._shard.update(q.UpdateOperation.create_field_index(name, kind))
        points = lambda at: q.Point(  # noqa: E731
            at, rows[at].tolist(), {name: int(mask[at]) for name, mask in masks.items()}
        )
        upsert(q, self._shard, len(rows), points)

    def search(self, queries, width, mask, threads):
        if threads > 1:
            raise Unsupported
        q, only = self._q, None
        if mask is not None:
            only = q.Filter(must=[q.FieldCondition(key=mask.name, range=q.RangeFloat(gte=1.0))])
        again = q.QuantizationSearchParams(rescore=True, oversampling=2.0)
        params = q.SearchParams(hnsw_ef=width, quantization=again)
        asks = (
            q.SearchRequest(query=q.Query.Nearest(query.tolist()), limit=K, filter=only, params=params)
            for query in queries
        )
        return padded([[hit.id for hit in self._shard.search(ask)] for ask in asks])


class QdrantSparse:
    """Qdrant's engine, exact"""

    package = "qdrant-edge-py==0.9.0"

    def __init__(self, rows, folder):
        import qdrant_edge as q

        self._q, self._scratch = q, tempfile.TemporaryDirectory()
        params = q.EdgeSparseVectorParams(full_scan_threshold=0)
        self._shard = shard(q, self._scratch.name, sparse_vectors={"s": params})
        vector = lambda row: q.SparseVector(row["id"].tolist(), row["weight"].tolist())  # noqa: E731
        upsert(q, self._shard, len(rows), lambda at: q.Point(at, {"s": vector(rows[at])}, {}))

    def search(self, queries, width, mask, threads):
        if mask is not None or threads > 1 or width:
            raise Unsupported
        q = self._q
        ask = lambda row: q.SearchRequest(  # noqa: E731
            query=q.Query.Nearest(q.SparseVector(row["id"].tolist(), row["weight"].tolist()), "s"), limit=K
        )
        return padded([[hit.id for hit in self._shard.search(ask(row))] for row in queries])


class Seismic:
    """Seismic, approximate; its width is terms of a query that count"""

    package = "pyseismic-lsr==0.5.4"
    # Terms that count, and how much of the worst score kept a block must promise.
    PROMISE = {4: 0.9, 6: 0.9, 8: 0.9, 10: 0.8, 12: 0.8, 20: 0.7, 40: 0.6, 60: 0.4}

    def __init__(self, rows, folder):
        import seismic

        self._string = seismic.get_seismic_string()
        documents = seismic.SeismicDataset()
        for at, row in enumerate(rows):
            if len(row):
                documents.add_document(str(at), row["id"].astype(self._string), row["weight"].copy())
        self._index = seismic.SeismicIndex.build_from_dataset(
            documents, n_postings=2000, centroid_fraction=0.1, min_cluster_size=2, summary_energy=0.4,
            num_threads=1,
        )

    def search(self, queries, width, mask, threads):
        if mask is not None or threads > 1 or width not in self.PROMISE:
            raise Unsupported
        asked = [
            (str(at), row["id"].astype(self._string), row["weight"].copy()) for at, row in enumerate(queries)
        ]
        found = (self._index.search(*query, K, width, self.PROMISE[width]) for query in asked)
        return padded([[int(hit[2]) for hit in hits] for hits in found])


DENSE = {
    "hnswlib": Hnswlib,
    "faiss-sq8": FaissSq8,
    "usearch-bf16": UsearchBf16,
    "scann": Scann,
    "qdrant-int8": Qdrant,
}
FLAT = {"faiss-flat": FaissFlat}
SPARSE = {"qdrant-sparse": QdrantSparse, "seismic": Seismic}
PEERS = DENSE | FLAT | SPARSE


def shard(q, folder: str, **kinds):
    optimizers = q.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=10)
    return q.EdgeShard.create(folder, q.EdgeConfig(max_search_threads=1, optimizers=optimizers, **kinds))


def upsert(q, shard, count: int, point) -> None:
    for start in range(0, count, 1000):
        points = [point(at) for at in range(start, min(count, start + 1000))]
        shard.update(q.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass
    shard.flush()


def padded(lists: list[list[int]]) -> np.ndarray:
    found = np.full((len(lists), K), -1, np.int64)
    for at, ids in enumerate(lists):
        found[at, : len(ids)] = ids[:K]
    return found


def rescored(rows, queries, found) -> np.ndarray:
    """The best of what was found, by the rows themselves."""
    scores = np.einsum("qkd,qd->qk", rows[found], queries)
    scores[found < 0] = -np.inf
    return np.take_along_axis(found, np.argsort(-scores, axis=1)[:, :K], 1)


class Mask(np.ndarray):
    """A mask that knows its name."""

    name = ""


class Judge:
    """Which of the results are as close as the last true one: equal texts have equal scores."""

    def __init__(self, rows, queries):
        self._rows, self._queries = rows, queries

    def _scores(self, query: int, ids) -> np.ndarray:
        if isinstance(self._rows, np.ndarray):
            return self._rows[ids] @ self._queries[query]
        asked = dict(zip(self._queries[query]["id"].tolist(), self._queries[query]["weight"].tolist()))
        one = lambda row: sum(w * asked.get(i, 0.0) for i, w in zip(row["id"].tolist(), row["weight"].tolist()))  # noqa: E731
        return np.array([one(self._rows[at]) for at in ids])

    def recall(self, found, truth) -> float:
        hits = wanted = 0
        for query, (ids, true) in enumerate(zip(found, truth)):
            true = true[:K][true[:K] >= 0]
            wanted += len(true)
            ids = ids[ids >= 0]
            if len(true) and len(ids):
                worst = self._scores(query, true).min()
                enough = self._scores(query, ids) >= worst - abs(worst) * ROUNDING
                hits += min(int(enough.sum()), len(true))
        return hits / max(wanted, 1)


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def main() -> None:
    name, folder, field = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    say = lambda **answer: print(json.dumps(answer), file=answers, flush=True)  # noqa: E731
    read = (lambda part: np.load(folder / f"{part}.npy")) if field == "dense" else (lambda part: load_sparse(folder, part))
    rows, queries = read(field), read(f"{field}_q")
    before, cpu, wall = resident_mb(), time.process_time(), time.perf_counter()
    try:
        peer = PEERS[name](rows, folder)
    except ValueError as error:
        # Data that it cannot hold.
        say(refused=str(error))
        return
    say(
        build_cpu_s=time.process_time() - cpu,
        build_wall_s=time.perf_counter() - wall,
        threads=1,
        grown_mb=resident_mb() - before,
    )
    judge = Judge(rows, queries)
    for line in sys.stdin:
        _, width, truth, mask, threads = line.split()
        width, threads, truth = int(width), int(threads), np.load(folder / truth)
        if mask == "-":
            chosen = None
        else:
            chosen = np.load(folder / mask).astype(bool).view(Mask)
            chosen.name = Path(mask).stem
        try:
            peer.search(queries[:WARM], width, chosen, threads)
        except Unsupported:
            say(unsupported=True)
            continue
        cpu, wall = time.process_time(), time.perf_counter()
        found = peer.search(queries, width, chosen, threads)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        micros = []
        for at in range(min(ALONE, len(queries))):
            began = time.perf_counter()
            peer.search(queries[at : at + 1], width, chosen, threads)
            micros.append((time.perf_counter() - began) * 1e6)
        p50, p99 = np.percentile(micros, [50, 99])
        say(
            recall=judge.recall(found, truth),
            qps_cpu=len(queries) / cpu,
            qps=len(queries) / wall,
            p50_us=p50,
            p99_us=p99,
        )


if __name__ == "__main__":
    main()
