"""A data disk that gets full: rows are refused in time, everything else goes on, and rows come back.

The disk is a small tmpfs, which takes root to mount; elsewhere these tests are skipped."""

import os
import socket
import subprocess
import time

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient, MilvusException

from node import Node, binary

DISK_MEBIBYTES = 24
DIM = 256
BATCH = 500


@pytest.fixture
def disk(tmp_path):
    """A node on a disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    options = ["-o", f"size={DISK_MEBIBYTES}m", "tmpfs", path]
    mounted = subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a full disk was NOT tested: cannot mount a tmpfs ({mounted.stderr!r})")
    node = Node(path)
    # The log of the process is not to suffer from the disk it tells of.
    node.log = tmp_path / "node.log"
    try:
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()
        subprocess.run(["umount", path], check=True)


def make(client, name):
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("v", DataType.FLOAT_VECTOR, dim=DIM)
    index = client.prepare_index_params()
    index.add_index("v", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=index)


def batch(first):
    vectors = np.full((BATCH, DIM), 0.5, dtype=np.float32)
    vectors[:, 0] = range(first, first + BATCH)
    return [{"id": first + i, "v": vector} for i, vector in enumerate(vectors)]


def fill(client, name):
    """Inserts until rows are refused; the number of rows that were acknowledged, and the error."""
    for first in range(0, 1 << 20, BATCH):
        try:
            client.insert(name, batch(first))
        except MilvusException as error:
            return first, error
    raise AssertionError("the disk never got full")


def refusal_seconds(client, name):
    began = time.monotonic()
    with pytest.raises(MilvusException) as refused:
        client.insert(name, batch(0)[:1])
    assert refused.value.code == 7
    return time.monotonic() - began


def count(client, name):
    return client.query(name, output_fields=["count(*)"])[0]["count(*)"]


def insert_before_long(client, name, rows):
    """Rows must be back soon after there is room on the disk: within a second, if the machine has
    nothing else to do."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return client.insert(name, rows)
        except MilvusException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def metric(node, name):
    lines = node.page("/metrics")[1].splitlines()
    return float(next(line for line in lines if line.startswith(f"elanus_{name} ")).split()[1])


def test_a_full_disk_refuses_rows_and_nothing_else(disk):
    disk.start()
    client = MilvusClient(disk.uri)
    make(client, "kept")
    make(client, "bulk")
    client.insert("kept", batch(0))
    rows, error = fill(client, "bulk")
    assert error.code == 7 and "disk limit exceeded" in error.message, error

    # Somebody else takes the rest.
    filler = disk.data_dir.parent / "filler"
    fill_with_others(filler)
    assert metric(disk, "refusing_rows") == 1 and metric(disk, "disk_free_bytes") > 0
    status, page = disk.page("/readyz")
    assert status == 200 and "kept back" in page
    # The best of a few: what else the machine does is not the node's.
    assert min(refusal_seconds(client, "bulk") for _ in range(5)) < 0.1
    assert count(client, "bulk") == rows
    assert client.search("kept", [batch(0)[7]["v"]], limit=1)[0][0]["id"] == 7
    for key in range(100):
        client.delete("kept", ids=[key])
    assert count(client, "kept") == BATCH - 100
    with pytest.raises(MilvusException) as refused:
        client.upsert("kept", batch(0))
    assert refused.value.code == 7
    with pytest.raises(MilvusException) as refused:
        make(client, "another")
    assert refused.value.code == 7

    # A drop gives its space back, and rows are let in again without a restart.
    client.drop_collection("bulk")
    filler.unlink()
    insert_before_long(client, "kept", batch(BATCH))
    assert metric(disk, "refusing_rows") == 0
    assert count(client, "kept") == 2 * BATCH - 100
    client.close()


def fill_with_others(path):
    """What somebody else writes until there is no room at all."""
    with open(path, "wb", buffering=0) as other:
        for block in (1 << 16, 1 << 12):
            try:
                while other.write(bytes(block)):
                    pass
            except OSError:
                pass


def start_on_known_ports(node):
    """Starts a node that cannot tell its ports, for want of room for endpoint.json."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        node.grpc, node.ops = (f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two))
    with open(node.log, "ab") as log:
        node.process = subprocess.Popen(
            [
                binary(),
                *("serve", "--data-dir", node.data_dir),
                *("--listen", node.grpc, "--ops-listen", node.ops),
            ],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 30
    while True:
        try:
            assert node.page("/readyz")[0] == 200
            return
        except OSError:
            assert node.process.poll() is None and time.monotonic() < deadline, node.tail()
            time.sleep(0.01)


def test_a_node_starts_on_a_full_disk(disk):
    disk.start()
    client = MilvusClient(disk.uri)
    make(client, "bulk")
    rows, _ = fill(client, "bulk")
    client.delete("bulk", ids=[0])
    client.close()
    disk.kill()
    fill_with_others(disk.data_dir.parent / "filler")
    reserve = disk.data_dir / "RESERVE"
    assert reserve.stat().st_size > 0

    # The reserve is given up for what a start needs.
    disk.start()
    client = MilvusClient(disk.uri)
    assert count(client, "bulk") == rows - 1
    client.delete("bulk", ids=[1])
    client.close()
    disk.kill()
    assert not reserve.exists()

    # Even without a single free block the rows can be read.
    fill_with_others(disk.data_dir.parent / "more")
    assert os.statvfs(disk.data_dir).f_bavail == 0
    start_on_known_ports(disk)
    client = MilvusClient(disk.uri)
    assert count(client, "bulk") == rows - 2
    for write in (lambda: client.insert("bulk", batch(rows)), lambda: client.delete("bulk", ids=[2])):
        with pytest.raises(MilvusException) as refused:
            write()
        assert refused.value.code == 7
    (disk.data_dir.parent / "filler").unlink()
    (disk.data_dir.parent / "more").unlink()
    client.delete("bulk", ids=[2])
    assert count(client, "bulk") == rows - 3
    client.drop_collection("bulk")
    make(client, "bulk")
    insert_before_long(client, "bulk", batch(0))
    assert count(client, "bulk") == BATCH
    client.close()
