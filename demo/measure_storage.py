"""Measures what storage promises: `python -m demo.measure_storage [--milvus PATH] [--milvus-lite PATH]`.

Inserts over the wire as bytes that are made beforehand, so that the client costs next to nothing;
memory after a load; start, first search and stop on a million rows. With the path of a
`milvus-server` command (of the PyPI package `milvus`) or of a `milvus-lite` one, the same inserts
go to it in the same run, in turns with ours. That Milvus listens on all interfaces, so everything
then runs in a network namespace of its own (`unshare`, `ip`).
"""

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from .measure import resident_mb
from .node import ROOT, Node

BATCH_ROWS = 1_000
SERVICE = "/milvus.proto.milvus.MilvusService"
ROUNDS = 3


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


def insert(address: str, requests: Iterable[bytes]) -> float:
    """Inserts on one connection, one call after the other; rows per second of the calls alone."""
    unlimited = [("grpc.max_send_message_length", -1)]
    rows, seconds = 0, 0.0
    with grpc.insecure_channel(address, options=unlimited) as channel:
        call = channel.unary_unary(f"{SERVICE}/Insert")
        for request in requests:
            begin = time.perf_counter()
            answer = call(request)
            seconds += time.perf_counter() - begin
            status = milvus_pb2.MutationResult.FromString(answer).status
            if status.code or status.error_code:
                raise SystemExit(f"insert: {status.reason}")
            rows += BATCH_ROWS
    return rows / seconds


def create_plainly(address: str, name: str, dim: int) -> None:
    """Creates a collection without index, with one call that every release of Milvus knows."""
    fields = [
        schema_pb2.FieldSchema(fieldID=100, name="id", is_primary_key=True, data_type=schema_pb2.Int64),
        schema_pb2.FieldSchema(
            fieldID=101,
            name="dense",
            data_type=schema_pb2.FloatVector,
            type_params=[common_pb2.KeyValuePair(key="dim", value=str(dim))],
        ),
    ]
    schema = schema_pb2.CollectionSchema(name=name, fields=fields)
    request = milvus_pb2.CreateCollectionRequest(
        collection_name=name, schema=schema.SerializeToString(), shards_num=1
    )
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=120)
        call = channel.unary_unary(f"{SERVICE}/CreateCollection")
        # It listens before it is ready.
        for _ in range(120):
            status = common_pb2.Status.FromString(call(request.SerializeToString()))
            if not (status.code or status.error_code):
                return
            time.sleep(1)
    raise SystemExit(f"create: {status.reason}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def running(*command: object) -> Iterator[None]:
    """A peer's server, which is killed with all its processes at the end."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def milvus(command: str, folder: Path) -> Iterator[str]:
    port = free_port()
    with running(command, "--data", folder, "--proxy-port", port):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def milvus_lite(command: str, folder: Path) -> Iterator[str]:
    port = free_port()
    with running(command, "server", "--data-dir", folder, "--host", "127.0.0.1", "--port", port):
        yield f"127.0.0.1:{port}"


def disk_of(folder: Path) -> str:
    """The file system that a folder lies on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    around = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    device, point, kind = max(around, key=lambda mount: len(mount[1]))[:3]
    return f"{device} on {point} ({kind})"


def measure_inserts(folder: Path, rows: int, peers: dict, chance: np.random.Generator) -> None:
    vectors = chance.standard_normal((rows, 384), dtype=np.float32)
    print(f"all data directories are on {disk_of(folder)}")
    with Node(folder / "inserts", ROOT / ".models") as node:
        client = MilvusClient(node.uri)
        create(client, "measured", 384)
        idle = resident_mb(node.pid)
        ours = insert(node.address, requests("measured", vectors))
        print(f"insert {rows:,} rows × 384: {ours:,.0f} rows/s, {BATCH_ROWS:,} a call, one connection")
        client.flush("measured")
        client.search("measured", [vectors[0]], limit=1)
        # What the heap has free goes back several times a second.
        time.sleep(1)
        raw, resident = vectors.nbytes / 1e6, resident_mb(node.pid) * 1.048576
        print(f"resident {resident:.0f} MB for {raw:.0f} MB of vectors ({resident / raw:.2f} ×), idle {idle:.0f}")
        client.close()
    for name, start in peers.items():
        with Node(folder / f"beside {name}", ROOT / ".models") as node, start(folder / name) as peer:
            rates = []
            for turn in range(ROUNDS):
                collection = f"measured_{turn}"
                turns = []
                for address in (node.address, peer):
                    create_plainly(address, collection, 384)
                    turns.append(insert(address, list(requests(collection, vectors))))
                rates.append(turns)
                print(f"in turns with {name}: {turns[0]:,.0f} and {turns[1]:,.0f} rows/s")
            ratio = statistics.median(ours / theirs for ours, theirs in rates)
            print(f"{name}, same bytes, {ROUNDS} turns: median ratio {ratio:.1f}")


def measure_start(folder: Path, rows: int, dim: int, chance: np.random.Generator) -> None:
    vectors = chance.standard_normal((rows, dim), dtype=np.float32)
    data = folder / "start"
    with Node(data, ROOT / ".models") as node:
        client = MilvusClient(node.uri)
        create(client, "measured", dim)
        insert(node.address, requests("measured", vectors))
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
        insert(node.address, requests("measured", vectors[: rows // 4]))
        client.close()
        node._process.kill()
    with Node(data, ROOT / ".models") as node:
        resident = resident_mb(node.pid)
        print(f"ready after {node.ready_ms:.0f} ms with {rows // 4:,} rows to replay, resident {resident:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000, help="rows to insert, a multiple of 1,000")
    parser.add_argument("--start-rows", type=int, default=1_000_000, help="rows at a start; 0 leaves it out")
    parser.add_argument("--dir", metavar="PATH", help="where the data directories are made")
    parser.add_argument("--milvus", metavar="PATH", help="a milvus-server command to compare with")
    parser.add_argument("--milvus-lite", metavar="PATH", help="a milvus-lite command to compare with")
    given = parser.parse_args()
    if given.milvus and any(name != "lo" for _, name in socket.if_nameindex()):
        again = [sys.executable, "-m", "demo.measure_storage", *sys.argv[1:]]
        alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
        os.execvp(alone[0], [*alone, *again])
    peers = {}
    if given.milvus:
        peers["Milvus"] = lambda folder: milvus(given.milvus, folder)
    if given.milvus_lite:
        peers["milvus-lite"] = lambda folder: milvus_lite(given.milvus_lite, folder)
    chance = np.random.default_rng(42)
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        measure_inserts(Path(folder), given.rows, peers, chance)
        if given.start_rows:
            measure_start(Path(folder), given.start_rows, 32, chance)


if __name__ == "__main__":
    main()
