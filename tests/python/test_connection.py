"""Endpoint, sessions, health, consistency (contract §1)."""

import json
import re
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pymilvus import DataType, MilvusClient, MilvusException

from helpers import KEY, common_pb, ok, pb, refused, schema, search_request, simple, vector


def test_connect_gives_each_client_an_identifier_of_its_own(wire):
    answers = [ok(wire.Connect(pb.ConnectRequest())) for _ in range(3)]
    identifiers = [answer.identifier for answer in answers]
    assert 0 not in identifiers
    assert len(set(identifiers)) == 3
    info = answers[0].server_info
    assert info.deploy_mode == "STANDALONE"
    assert info.build_tags


def test_the_version_opens_the_feature_gates_of_clients(client, wire):
    version = client.get_server_version()
    major, minor, _ = (int(part) for part in re.match(r"v?(\d+)\.(\d+)\.(\d+)", version).groups())
    assert (major, minor) >= (2, 6)
    assert ok(wire.GetVersion(pb.GetVersionRequest())).version


def test_health_is_told_in_every_dialect(node, wire):
    answer = ok(wire.CheckHealth(pb.CheckHealthRequest()))
    assert answer.isHealthy and not answer.reasons
    states = wire.GetComponentStates(pb.GetComponentStatesRequest())
    assert states.state.state_code == common_pb.Healthy
    with grpc.insecure_channel(node.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", "milvus.proto.milvus.MilvusService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == serving


def test_metrics_are_json_that_the_node_sdk_can_parse(wire):
    answer = ok(wire.GetMetrics(pb.GetMetricsRequest(request='{"metric_type":"system_info"}')))
    infos = json.loads(answer.response)["nodes_info"]
    assert infos and {"identifier", "name", "infos"} <= set(infos[0])


def test_timestamps_are_hybrid_and_rise(wire):
    first = ok(wire.AllocTimestamp(pb.AllocTimestampRequest())).timestamp
    second = ok(wire.AllocTimestamp(pb.AllocTimestampRequest())).timestamp
    assert second > first
    assert abs((first >> 18) / 1000 - time.time()) < 10


def test_the_database_travels_in_the_metadata(node, client, name):
    client.create_database("meta_db")
    other = MilvusClient(node.uri, db_name="meta_db")
    try:
        simple(other, name)
        assert other.list_collections() == [name]
        assert name not in client.list_collections()
        other.insert(name, [{"id": 1, "v": [0, 0, 0, 0]}])
        assert other.query(name, "id == 1")[0]["id"] == 1
        with refused(100):
            client.query(name, "id == 1")
        other.use_database("default")
        assert name not in other.list_collections()
        other.use_database("meta_db")
        other.drop_collection(name)
    finally:
        other.close()
        client.drop_database("meta_db")


def test_a_request_may_name_the_database_itself(client, wire, name):
    client.create_database("named_db")
    schema_bytes = _schema_bytes()
    ok(
        wire.CreateCollection(
            pb.CreateCollectionRequest(db_name="named_db", collection_name=name, schema=schema_bytes)
        )
    )
    listed = ok(wire.ShowCollections(pb.ShowCollectionsRequest(db_name="named_db")))
    assert list(listed.collection_names) == [name]
    # The request goes before the metadata.
    metadata = (("dbname", "default"),)
    described = wire.DescribeCollection(
        pb.DescribeCollectionRequest(db_name="named_db", collection_name=name), metadata=metadata
    )
    assert ok(described).db_name == "named_db"
    ok(wire.DropCollection(pb.DropCollectionRequest(db_name="named_db", collection_name=name)))
    client.drop_database("named_db")


def test_an_unknown_database_is_code_800(node, wire):
    answer = wire.ShowCollections(pb.ShowCollectionsRequest(), metadata=(("dbname", "nowhere"),))
    assert answer.status.code == 800
    assert "database not found" in answer.status.reason and "nowhere" in answer.status.reason


def test_messages_of_many_megabytes_pass(client, name):
    simple(client, name, dim=512)
    rows = [{"id": i, "v": [float(i)] * 512} for i in range(8_000)]
    assert client.insert(name, rows)["insert_count"] == 8_000  # 16 MB up
    found = client.query(name, "id >= 0", output_fields=["v"], limit=8_000)
    assert len(found) == 8_000 and found[-1]["v"][0] == 7_999.0  # 16 MB down


@pytest.mark.parametrize("level", ["Strong", "Session", "Bounded", "Eventually"])
def test_a_write_is_visible_at_every_consistency_level_as_soon_as_it_is_acknowledged(client, name, level):
    simple(client, name)
    for key in range(20):
        client.insert(name, [{"id": key, "v": [key, 0, 0, 0]}])
        found = client.search(name, [[key, 0, 0, 0]], limit=1, consistency_level=level)
        assert found[0][0]["id"] == key
        assert len(client.query(name, f"id == {key}", consistency_level=level)) == 1


def test_a_guarantee_in_the_near_future_is_not_waited_for(wire, client, name):
    simple(client, name)
    now = ok(wire.AllocTimestamp(pb.AllocTimestampRequest())).timestamp
    request = search_request(
        name,
        [[0, 0, 0, 0]],
        guarantee_timestamp=now + (3_600_000 << 18),
        use_default_consistency=False,
        consistency_level=4,
    )
    began = time.monotonic()
    ok(wire.Search(request))
    assert time.monotonic() - began < 10


def test_the_level_of_a_collection_is_kept(client, name):
    client.create_collection(name, schema=schema(KEY, vector()), consistency_level="Eventually")
    assert client.describe_collection(name)["consistency_level"] == common_pb.Eventually


def test_a_collection_recreated_by_somebody_else_is_noticed(node, client, name):
    """The cached schema is refused once (109 and 62), read again, and the insert succeeds."""
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0, 0, 0, 0]}])
    other = MilvusClient(node.uri)
    other.drop_collection(name)
    simple(other, name, extra=[("n", DataType.INT64, {"nullable": True})])
    other.close()
    client.insert(name, [{"id": 2, "n": 5, "v": [0, 0, 0, 0]}])
    assert client.query(name, "id > 0", output_fields=["n"]) == [{"id": 2, "n": 5}]


def test_user_errors_come_back_at_once(client):
    began = time.monotonic()
    with pytest.raises(MilvusException):
        client.query("no_such_collection", "id == 1")
    assert time.monotonic() - began < 10, "the client retried a mistake of its user"


def _schema_bytes():
    from pymilvus.client.prepare import Prepare

    return Prepare.create_collection_request("x", schema(KEY, vector())).schema
