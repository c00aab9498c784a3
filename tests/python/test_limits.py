"""What the node takes, and no more (contract §11)."""

import pytest
from pymilvus import DataType

from helpers import KEY, assert_status, create, ok, pb, refused, schema, search_request, simple, vector


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
