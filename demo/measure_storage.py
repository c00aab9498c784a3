"""Measures what storage promises: `python -m demo.measure_storage [--milvus-lite PATH]`.

Inserts over the wire as bytes that are made beforehand, so that the client costs next to nothing;
memory after a load; start, first search and stop on a million rows. With the path of a
`milvus-lite` command the same inserts go to it in the same run.
"""

import argparse
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from .measure import resident_mb
from .node import ROOT, Node

BATCH_ROWS = 1_000
INSERT = "/milvus.proto.milvus.MilvusService/Insert"


def create(client: MilvusClient, name: str, dim: int) -> None:
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dim)
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def requests(name: str, vectors: np.ndarray) -> Iterable[bytes]:
    """Inserts of 1,000 rows each, as the bytes of their messages."""
    rows, dim = vectors.shape
    for first in range(0, rows, BATCH_ROWS):
        keys = schema_pb2.LongArray(data=range(first, first + BATCH_ROWS))
        floats = schema_pb2.FloatArray(data=vectors[first : first + BATCH_ROWS].ravel())
        columns = [
            schema_pb2.FieldData(
                type=DataType.INT64, field_name="id", scalars=schema_pb2.ScalarField(long_data=keys)
            ),
            schema_pb2.FieldData(
                type=DataType.FLOAT_VECTOR,
                field_name="dense",
                vectors=schema_pb2.VectorField(dim=dim, float_vector=floats),
            ),
        ]
        request = milvus_pb2.InsertRequest(
            collection_name=name,
            fields_data=columns,
            num_rows=BATCH_ROWS,
            hash_keys=range(BATCH_ROWS),
        )
        yield request.SerializeToString()


def insert(address: str, name: str, vectors: np.ndarray) -> float:
    """Inserts on one connection, one call after the other; rows per second of the calls alone."""
    unlimited = [("grpc.max_send_message_length", -1)]
    seconds = 0.0
    with grpc.insecure_channel(address, options=unlimited) as channel:
        call = channel.unary_unary(INSERT)
        for request in requests(name, vectors):
            begin = time.perf_counter()
            answer = call(request)
            seconds += time.perf_counter() - begin
            status = milvus_pb2.MutationResult.FromString(answer).status
            if status.code or status.error_code:
                raise SystemExit(f"insert: {status.reason}")
    return len(vectors) / seconds


def rate_of_milvus_lite(command: str, folder: Path, vectors: np.ndarray) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [command, "server", "--data-dir", folder, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        client = MilvusClient(f"http://{address}")
        create(client, "measured", vectors.shape[1])
        rate = insert(address, "measured", vectors)
        client.close()
        return rate
    finally:
        server.kill()
        server.wait()


def measure_inserts(folder: Path, rows: int, lite: str | None, chance: np.random.Generator) -> None:
    vectors = chance.standard_normal((rows, 384), dtype=np.float32)
    with Node(folder / "inserts", ROOT / ".models") as node:
        client = MilvusClient(node.uri)
        create(client, "measured", 384)
        idle = resident_mb(node.pid)
        ours = insert(node.address, "measured", vectors)
        print(f"insert {rows:,} rows × 384: {ours:,.0f} rows/s, {BATCH_ROWS:,} a call, one connection")
        client.flush("measured")
        client.search("measured", [vectors[0]], limit=1)
        raw, resident = vectors.nbytes / 1e6, resident_mb(node.pid) * 1.048576
        print(f"resident {resident:.0f} MB for {raw:.0f} MB of vectors ({resident / raw:.2f} ×), idle {idle:.0f}")
        client.close()
    if lite:
        theirs = rate_of_milvus_lite(lite, folder / "lite", vectors)
        print(f"milvus-lite, same bytes: {theirs:,.0f} rows/s; ratio {ours / theirs:.1f}")


def measure_start(folder: Path, rows: int, dim: int, chance: np.random.Generator) -> None:
    vectors = chance.standard_normal((rows, dim), dtype=np.float32)
    data = folder / "start"
    with Node(data, ROOT / ".models") as node:
        client = MilvusClient(node.uri)
        create(client, "measured", dim)
        insert(node.address, "measured", vectors)
        client.flush("measured")
        client.close()
        print(f"stop with {rows:,} rows × {dim}: {node.stop():.2f} s")
    with Node(data, ROOT / ".models") as node:
        print(f"ready after {node.ready_ms:.0f} ms")
        client = MilvusClient(node.uri)
        begin = time.perf_counter()
        # From here on the channel is open: what is timed is the server's first touch of its files.
        found = client.search("measured", [vectors[rows // 2]], limit=1)[0][0]["id"]
        first = time.perf_counter() - begin
        assert found == rows // 2, f"the nearest row of row {rows // 2} is {found}"
        begin = time.perf_counter()
        client.search("measured", [vectors[1]], limit=1)
        print(f"first correct search {first:.2f} s, the next {time.perf_counter() - begin:.3f} s")
        client.close()
        print(f"stop {node.stop():.2f} s")
    with Node(data, ROOT / ".models") as node:
        client = MilvusClient(node.uri)
        insert(node.address, "measured", vectors[: rows // 4])
        client.close()
        node._process.kill()
    with Node(data, ROOT / ".models") as node:
        resident = resident_mb(node.pid)
        print(f"ready after {node.ready_ms:.0f} ms with {rows // 4:,} rows to replay, resident {resident:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000, help="rows to insert, a multiple of 1,000")
    parser.add_argument("--start-rows", type=int, default=1_000_000, help="rows at a start")
    parser.add_argument("--milvus-lite", metavar="PATH", help="a milvus-lite command to compare with")
    given = parser.parse_args()
    chance = np.random.default_rng(42)
    with tempfile.TemporaryDirectory() as folder:
        measure_inserts(Path(folder), given.rows, given.milvus_lite, chance)
        measure_start(Path(folder), given.start_rows, 32, chance)


if __name__ == "__main__":
    main()
