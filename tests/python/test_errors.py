"""Codes, legacy codes and texts of failures (contract §10)."""

import numpy as np
import pytest
from pymilvus import DataType, MilvusException

from helpers import KEY, assert_status, create, pb, schema, search_request, simple, vector


def describe(wire, name):
    return wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name)).status


def test_a_missing_collection_has_one_code_everywhere(wire):
    name = "no_such_collection"
    calls = {
        "describe": describe(wire, name),
        "insert": wire.Insert(pb.InsertRequest(collection_name=name, num_rows=1)).status,
        "upsert": wire.Upsert(pb.UpsertRequest(collection_name=name, num_rows=1)).status,
        "delete": wire.Delete(pb.DeleteRequest(collection_name=name, expr="id in [1]")).status,
        "search": wire.Search(search_request(name, [[0] * 4])).status,
        "query": wire.Query(pb.QueryRequest(collection_name=name, expr="id > 0")).status,
        "load": wire.LoadCollection(pb.LoadCollectionRequest(collection_name=name)),
        "release": wire.ReleaseCollection(pb.ReleaseCollectionRequest(collection_name=name)),
        "index": wire.CreateIndex(pb.CreateIndexRequest(collection_name=name, field_name="v")),
        "partition": wire.CreatePartition(
            pb.CreatePartitionRequest(collection_name=name, partition_name="p")
        ),
        "partitions": wire.ShowPartitions(pb.ShowPartitionsRequest(collection_name=name)).status,
        "statistics": wire.GetCollectionStatistics(
            pb.GetCollectionStatisticsRequest(collection_name=name)
        ).status,
        "flush": wire.Flush(pb.FlushRequest(collection_names=[name])).status,
        "rename": wire.RenameCollection(pb.RenameCollectionRequest(oldName=name, newName="other")),
        "alias": wire.CreateAlias(pb.CreateAliasRequest(collection_name=name, alias="some_alias")),
        "alter": wire.AlterCollection(pb.AlterCollectionRequest(collection_name=name)),
    }
    found = {call: (status.code, status.error_code) for call, status in calls.items()}
    assert found == dict.fromkeys(calls, (100, 4))
    assert "can't find collection" in calls["describe"].reason
    assert all(name in status.reason for status in calls.values())


def test_success_is_all_zeros_and_says_nothing(wire, client, name):
    simple(client, name)
    status = describe(wire, name)
    assert (status.code, status.error_code, status.reason, dict(status.extra_info)) == (0, 0, "", {})


def test_mistakes_of_the_user_are_marked(wire):
    status = describe(wire, "no_such_collection")
    assert status.extra_info["is_input_error"] == "true"
    assert not status.retriable


def test_what_search_and_query_say_when_nothing_is_loaded(wire, client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    status = wire.Search(search_request(name, [[0] * 4])).status
    assert_status(status, 101, 1, "failed to search: collection not loaded[collection=")
    status = wire.Query(pb.QueryRequest(collection_name=name, expr="id > 0")).status
    assert_status(status, 101, 1, "failed to query: collection not loaded[collection=")


def test_a_missing_index_partition_alias_field(wire, client, name):
    simple(client, name)
    answer = wire.DescribeIndex(pb.DescribeIndexRequest(collection_name=name, index_name="nope"))
    assert_status(answer.status, 700, 25, "index not found")
    answer = wire.LoadPartitions(pb.LoadPartitionsRequest(collection_name=name, partition_names=["nope"]))
    assert_status(answer, 200, 15, "partition not found")
    answer = wire.DescribeAlias(pb.DescribeAliasRequest(alias="nope"))
    assert_status(answer.status, 1600, 1, "alias not found[database=default][alias=nope]")


def test_the_schema_mismatch_has_both_numbers(wire, client, name):
    simple(client, name)
    answer = wire.Insert(pb.InsertRequest(collection_name=name, num_rows=1, schema_timestamp=12345))
    assert_status(answer.status, 109, 62, "collection schema mismatch")


def test_texts_that_tests_of_others_match_on(client, name):
    create(client, name, schema(KEY, vector(128)), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": 1, "v": np.zeros(128).tolist()}])
    with pytest.raises(
        MilvusException, match="vector dimension mismatch, expected vector size\\(byte\\) 512, actual 256"
    ):
        client.search(name, [[0] * 64])
    with pytest.raises(
        MilvusException, match="metric type not match: invalid parameter\\[expected=L2\\]\\[actual=IP\\]"
    ):
        client.search(name, [[0] * 128], search_params={"metric_type": "IP"})
    with pytest.raises(MilvusException, match="should be in range \\[1, 16384\\]"):
        client.search(name, [[0] * 128], limit=20_000)
    with pytest.raises(MilvusException, match="create duplicate collection with different parameters"):
        client.create_collection(name, schema=schema(KEY, vector(64)))


def test_a_filter_error_names_the_field_that_was_meant(client, name):
    create(client, name, schema(KEY, ("price", DataType.INT64), vector()), ("v", "FLAT", "L2"))
    with pytest.raises(MilvusException) as caught:
        client.query(name, "price > 3 and prise < 5")
    assert "field prise not exist" in caught.value.message
    assert "did you mean `price`?" in caught.value.message
