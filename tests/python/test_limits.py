"""What the node takes, and no more (contract §11)."""

import contextlib
import socket
import time
import urllib.request

import grpc
import pytest
from pymilvus import DataType, MilvusClient

from helpers import KEY, assert_status, create, ok, pb, refused, schema, search_request, simple, vector
from node import Node


def test_queries_of_one_search(wire, client, name):
    simple(client, name, dim=2)
    client.insert(name, [{"id": 1, "v": [0, 0]}])
    data = ok(wire.Search(search_request(name, [[0, 0]] * 16384, limit=1))).results
    assert len(data.topks) == 16384
    answer = wire.Search(search_request(name, [[0, 0]] * 16385, limit=1))
    assert_status(answer.status, 1100, 5, "nq [16385] is invalid", "[1, 16384]")


@pytest.mark.parametrize("dim", [2, 32768])
def test_dimensions_at_the_edge(client, name, dim):
    simple(client, name, dim=dim)
    client.insert(name, [{"id": 1, "v": [1.0] * dim}])
    assert client.search(name, [[1.0] * dim])[0][0].distance == 0


def test_the_longest_text(client, name):
    create(
        client,
        name,
        schema(KEY, ("t", DataType.VARCHAR, {"max_length": 65535}), vector()),
        ("v", "FLAT", "L2"),
    )
    client.insert(name, [{"id": 1, "t": "x" * 65535, "v": [0] * 4}])
    assert len(client.query(name, "id == 1", output_fields=["t"])[0]["t"]) == 65535
    with refused(1100):
        client.insert(name, [{"id": 1, "t": "x" * 65536, "v": [0] * 4}])


def test_the_largest_array(client, name):
    array = ("a", DataType.ARRAY, {"element_type": DataType.INT32, "max_capacity": 4096})
    create(client, name, schema(KEY, array, vector()), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": 1, "a": list(range(4096)), "v": [0] * 4}])
    assert client.query(name, "array_length(a) == 4096", output_fields=["a"])[0]["a"][-1] == 4095
    with refused(1100):
        client.insert(name, [{"id": 1, "a": list(range(4097)), "v": [0] * 4}])


def test_json_has_a_bound(client, name):
    simple(client, name, extra=[("j", DataType.JSON)], dynamic=True)
    client.insert(name, [{"id": 1, "j": f'"{"x" * 60_000}"', "v": [0] * 4}])
    with refused(1100):
        client.insert(name, [{"id": 2, "j": f'"{"x" * 70_000}"', "v": [0] * 4}])
    with refused(1100):
        client.insert(name, [{"id": 2, "j": 1, "more": "x" * 70_000, "v": [0] * 4}])


@pytest.mark.parametrize("shards, code", [(0, 0), (1, 0), (16, 0), (17, 1100), (-1, 1100)])
def test_shards(wire, client, name, shards, code):
    from pymilvus.client.prepare import Prepare

    body = Prepare.create_collection_request(name, schema(KEY, vector())).schema
    answer = wire.CreateCollection(
        pb.CreateCollectionRequest(collection_name=name, schema=body, shards_num=shards)
    )
    assert_status(answer, code)
    if code == 0:
        assert client.describe_collection(name)["num_shards"] == max(shards, 1)


@pytest.mark.parametrize("partitions, ok", [(1, True), (1024, True), (1025, False)])
def test_partitions_of_a_partition_key(client, name, partitions, ok):
    declared = schema(KEY, ("p", DataType.INT64, {"is_partition_key": True}), vector())
    if ok:
        client.create_collection(name, schema=declared, num_partitions=partitions)
        assert client.describe_collection(name)["num_partitions"] == partitions
    else:
        with refused(1100):
            client.create_collection(name, schema=declared, num_partitions=partitions)


def test_partitions_without_a_partition_key_cannot_be_counted(client, name):
    with refused(1100):
        client.create_collection(name, schema=schema(KEY, vector()), num_partitions=4)


def test_requests_that_never_end_cannot_fill_the_memory(tmp_path):
    config = tmp_path / "elanus.toml"
    # Requests may take a quarter: 50 MB.
    config.write_text("memory_limit_bytes = 200000000\n")
    node = Node(tmp_path, "--config", config).start()
    host, _, port = node.grpc.rpartition(":")
    megabytes = 1_000_000
    open_requests = []

    def begin(size):
        """A request whose last byte does not come."""
        connection = socket.create_connection((host, int(port)), timeout=20)
        open_requests.append(connection)
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: elanus\r\nContent-Length: {size + 1}\r\n\r\n"
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes(size))
        return connection

    def requests():
        text = urllib.request.urlopen(f"http://{node.ops}/metrics").read().decode()
        line = next(line for line in text.splitlines() if 'memory_bytes{user="requests"}' in line)
        return float(line.split()[-1])

    def until(is_so):
        deadline = time.monotonic() + 20
        while not is_so():
            assert time.monotonic() < deadline, requests()
            time.sleep(0.02)

    try:
        client = MilvusClient(node.uri)
        client.create_collection("rows", dimension=1_000, metric_type="L2")
        for _ in range(2):
            begin(20 * megabytes)
        until(lambda: requests() >= 40 * megabytes)
        answer = begin(20 * megabytes).recv(4096).decode()
        assert answer.startswith("HTTP/1.1 503"), answer
        assert "of requests" in answer
        # 12 MB more do not fit, a few rows do.
        large = pb.InsertRequest(collection_name="rows", hash_keys=[1] * 12 * megabytes)
        with grpc.insecure_channel(node.grpc) as channel:
            insert = channel.unary_unary("/milvus.proto.milvus.MilvusService/Insert")
            with pytest.raises(grpc.RpcError) as refusal:
                insert(large.SerializeToString())
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "of requests" in refusal.value.details()
        rows = [{"id": i, "vector": [0.5] * 1_000} for i in range(3_000)]
        assert client.insert("rows", rows[:10])["insert_count"] == 10
        for connection in open_requests:
            connection.close()
        until(lambda: requests() < megabytes)
        assert client.insert("rows", rows)["insert_count"] == 3_000
        client.close()
    finally:
        for connection in open_requests:
            connection.close()
        node.stop()
