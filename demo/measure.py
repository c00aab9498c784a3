"""Measures a node over the wire with pymilvus: `python -m demo.measure [--rows N]`.

Random unit vectors of 384 dimensions and random sparse rows of about 50 terms; exact search. The
figures are of this machine at this moment and include the Python client, which shares its cores;
they are for finding changes, not for comparing products.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from pymilvus import AnnSearchRequest, DataType, MilvusClient, RRFRanker

from .node import ROOT, Node, binary

DIM = 384
TERMS = 30_522
TERMS_PER_ROW = 50
BATCH_ROWS = 1_000
SEARCHES = 200


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def create(client: MilvusClient, name: str) -> None:
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=DIM)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="COSINE")
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def sparse_row(chance: np.random.Generator) -> dict[int, float]:
    terms = chance.choice(TERMS, TERMS_PER_ROW, replace=False)
    return dict(zip(terms.tolist(), chance.random(TERMS_PER_ROW).tolist(), strict=True))


def unit(chance: np.random.Generator, rows: int) -> np.ndarray:
    vectors = chance.standard_normal((rows, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def insert(client: MilvusClient, name: str, rows: int, chance: np.random.Generator) -> float:
    """Inserts in batches and returns rows per second of the insert calls alone."""
    seconds = 0.0
    for first in range(0, rows, BATCH_ROWS):
        vectors = unit(chance, BATCH_ROWS)
        batch = [
            {"id": first + i, "dense": vectors[i], "sparse": sparse_row(chance)} for i in range(BATCH_ROWS)
        ]
        begin = time.perf_counter()
        client.insert(name, batch)
        seconds += time.perf_counter() - begin
    return rows / seconds


def latency(label: str, search) -> None:
    """Prints the median and the 99th percentile of many calls, one at a time."""
    times = []
    for _ in range(SEARCHES):
        begin = time.perf_counter()
        search()
        times.append((time.perf_counter() - begin) * 1000)
    p50, p99 = np.percentile(times, [50, 99])
    print(f"{label:<34} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000, help="rows to insert, a multiple of 1,000")
    rows = parser.parse_args().rows
    chance = np.random.default_rng(42)
    with tempfile.TemporaryDirectory() as folder, Node(Path(folder) / "data", ROOT / ".models") as node:
        print(f"binary {binary().stat().st_size / 1e6:.0f} MB, ready after {node.ready_ms:.0f} ms")
        time.sleep(1.0)
        print(f"resident when idle {resident_mb(node.pid):.0f} MB")
        client = MilvusClient(node.uri)
        create(client, "measured")
        rate = insert(client, "measured", rows, chance)
        print(f"inserted {rows:,} rows, dense and sparse given: {rate:,.0f} rows/s, {BATCH_ROWS:,} a call")
        begin = time.perf_counter()
        client.flush("measured")
        print(f"flush {time.perf_counter() - begin:.2f} s, resident {resident_mb(node.pid):.0f} MB")

        def dense_leg() -> dict:
            return {"data": unit(chance, 1).tolist(), "anns_field": "dense", "limit": 10}

        def sparse_leg() -> dict:
            return {"data": [sparse_row(chance)], "anns_field": "sparse", "limit": 10}

        def hybrid() -> None:
            legs = [AnnSearchRequest(**leg(), param={}) for leg in (dense_leg, sparse_leg)]
            client.hybrid_search("measured", legs, RRFRanker(), limit=10)

        latency("dense, exact, top 10", lambda: client.search("measured", **dense_leg()))
        latency("sparse, exact, top 10", lambda: client.search("measured", **sparse_leg()))
        latency("hybrid, RRF, top 10", hybrid)
        latency("get by key", lambda: client.get("measured", ids=[int(chance.integers(rows))]))
        client.close()


if __name__ == "__main__":
    main()
