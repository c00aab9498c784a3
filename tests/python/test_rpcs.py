"""Every rpc answers, and says honestly what it did not do (contract §2)."""

import grpc
import pytest
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2

from helpers import (
    KEY,
    common_pb,
    create,
    ok,
    pairs,
    pb,
    refused,
    schema,
    simple,
    vector,
    wait_until,
)

SERVICE = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"]

# Not done by this node; an empty success would be a lie.
NOT_SERVED = """
CreateSnapshot DropSnapshot ListSnapshots DescribeSnapshot RestoreSnapshot RestoreExternalSnapshot
ExportSnapshot GetExportSnapshotState GetRestoreSnapshotState ListRestoreSnapshotJobs
PinSnapshotData UnpinSnapshotData CreateNamespace DescribeNamespace ListNamespaces DropNamespace
HasNamespace GetNamespaceStats Prewarm DescribePrewarmTask ReplicateMessage
UpdateReplicateConfiguration GetReplicateConfiguration GetReplicateInfo CreateRowPolicy
DropRowPolicy ListRowPolicies AddUserTags DeleteUserTags GetUserTags ListUsersWithTag
RefreshExternalCollection GetRefreshExternalCollectionProgress ListRefreshExternalCollectionJobs
BatchUpdateManifest ListIndexedSegment DescribeSegmentIndexData RegisterLink CalcDistance Import
AddFileResource
""".split()

# A listing that a client polls must be in-band: pymilvus raises the bare RpcError otherwise.
IN_BAND = """
GetVersion CheckHealth AllocTimestamp ShowCollections ListDatabases ListAliases ListCredUsers
ListResourceGroups ListPrivilegeGroups SelectRole SelectUser SelectGrant GetReplicas
GetPersistentSegmentInfo GetQuerySegmentInfo GetCompactionState GetCompactionStateWithPlans
GetMetrics ListImportTasks GetImportState BackupRBAC
""".split()


def status_of(answer):
    if isinstance(answer, common_pb.Status):
        return answer
    for field in ("status", "alter_status"):
        if field in answer.DESCRIPTOR.fields_by_name:
            return getattr(answer, field)
    return None


def call(wire, rpc):
    """The in-band status of an empty request, or the gRPC code of a refusal."""
    method = SERVICE.methods_by_name[rpc]
    request = getattr(milvus_pb2, method.input_type.name, None)
    if request is None:
        from pymilvus.grpc_gen import feder_pb2

        request = getattr(feder_pb2, method.input_type.name)
    try:
        return status_of(getattr(wire, rpc)(request(), timeout=10))
    except grpc.RpcError as refusal:
        return refusal.code()


UNARY = [m.name for m in SERVICE.methods if not m.client_streaming and not m.server_streaming]


@pytest.mark.parametrize("rpc", UNARY)
def test_an_empty_request_is_answered(wire, rpc):
    answer = call(wire, rpc)
    if isinstance(answer, grpc.StatusCode):
        assert answer is grpc.StatusCode.UNIMPLEMENTED
    elif answer is not None and answer.code:
        assert answer.error_code, "a failure without a legacy code is a success to the Node SDK"
        assert answer.reason


@pytest.mark.parametrize("rpc", NOT_SERVED)
def test_what_is_not_done_is_not_called_done(wire, rpc):
    answer = call(wire, rpc)
    if isinstance(answer, grpc.StatusCode):
        assert answer is grpc.StatusCode.UNIMPLEMENTED
    else:
        assert answer.code != 0


@pytest.mark.parametrize("rpc", ["CreateReplicateStream", "DumpMessages"])
def test_streams_are_not_served(wire, rpc):
    method = SERVICE.methods_by_name[rpc]
    request = getattr(milvus_pb2, method.input_type.name)()
    stream = getattr(wire, rpc)(iter([request]) if method.client_streaming else request)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("rpc", IN_BAND)
def test_listings_answer_in_band(wire, rpc):
    assert isinstance(call(wire, rpc), common_pb.Status)


def test_the_quick_form_makes_a_collection_that_can_be_used_at_once(client, name):
    client.create_collection(name, dimension=4)
    described = client.describe_collection(name)
    assert [f["name"] for f in described["fields"]] == ["id", "vector"]
    assert described["enable_dynamic_field"]
    index = client.describe_index(name, "vector")
    assert (index["index_type"], index["metric_type"]) == ("AUTOINDEX", "COSINE")
    client.insert(name, [{"id": i, "vector": [i, 1, 0, 0], "color": "red"} for i in range(10)])
    found = client.search(name, [[9, 1, 0, 0]], limit=1, output_fields=["color"])
    assert found[0][0]["id"] == 9 and found[0][0]["entity"] == {"color": "red"}


def test_statistics_count_rows(client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [0, 0, 0, 0]} for i in range(7)])
    client.delete(name, ids=[0])
    assert client.get_collection_stats(name) == {"row_count": 6}
    assert client.get_partition_stats(name, "_default")["row_count"] == 6


def test_flush_ends_and_keeps_the_rows(client, wire, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(100)])
    client.flush(name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(100, 110)])
    client.delete(name, ids=[5])
    assert len(client.query(name, "id >= 0", output_fields=["id"])) == 109
    client.flush(name)
    client.flush_all(timeout=20)
    assert client.search(name, [[105, 0, 0, 0]], limit=1)[0][0]["id"] == 105
    answer = ok(wire.Flush(pb.FlushRequest(collection_names=[name])))
    assert name in answer.coll_flush_ts or not answer.coll_flush_ts
    refusal = wire.Flush(pb.FlushRequest(collection_names=["no_such_collection"]))
    assert refusal.status.code == 100


def test_compaction_is_reported_as_done(client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10)])
    client.flush(name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10, 20)])
    client.flush(name)
    client.delete(name, ids=[3])
    sources = {segment.segment_id for segment in client.list_persistent_segments(name)}
    assert len(sources) == 2
    job = client.compact(name)
    assert job > 0
    wait_until(lambda: client.get_compaction_state(job) == "Completed")
    plans = client.get_compaction_plans(job)
    assert set(plans.plans[0].sources) == sources
    (segment,) = client.list_persistent_segments(name)
    assert (segment.segment_id, segment.num_rows) == (plans.plans[0].target, 19)
    assert len(client.query(name, "id >= 0", output_fields=["id"])) == 19
    # What is not remembered is over; what was never begun is refused.
    assert client.get_compaction_state(7) == "Completed"
    assert not client.get_compaction_plans(7).plans
    with refused(1100, "no compaction has the id"):
        client.get_compaction_state(2**62)


def test_segments_are_listed(client, wire, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10)])
    client.flush(name)
    persistent = client.list_persistent_segments(name)
    assert sum(segment.num_rows for segment in persistent) == 10
    loaded = client.list_loaded_segments(name)
    assert sum(segment.num_rows for segment in loaded) == 10


def test_a_single_node_has_one_replica_and_one_resource_group(client, name):
    simple(client, name)
    replicas = client.describe_replica(name)
    assert len(replicas) == 1
    assert replicas[0].resource_group == "__default_resource_group"
    assert "__default_resource_group" in client.list_resource_groups()
    group = client.describe_resource_group("__default_resource_group")
    assert group.num_available_node == 1


def test_batch_describe_tells_of_each_collection(client, wire, name):
    simple(client, name)
    answer = ok(
        wire.BatchDescribeCollection(
            pb.BatchDescribeCollectionRequest(collection_name=[name, "no_such_collection"])
        )
    )
    assert [r.status.code for r in answer.responses] == [0, 100]
    assert answer.responses[0].collection_name == name


def test_truncate_empties_a_collection_and_keeps_it_loaded(client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10)])
    client.truncate_collection(name)
    assert client.query(name, output_fields=["count(*)"])[0]["count(*)"] == 0
    client.insert(name, [{"id": 1, "v": [1, 0, 0, 0]}])
    assert client.search(name, [[1, 0, 0, 0]])[0][0]["id"] == 1


def test_older_clients_find_their_rpcs(client, wire, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(3)])
    assert ok(wire.HasCollection(pb.HasCollectionRequest(collection_name=name))).value
    assert not ok(wire.HasCollection(pb.HasCollectionRequest(collection_name="none"))).value
    state = ok(wire.GetIndexState(pb.GetIndexStateRequest(collection_name=name, field_name="v")))
    assert state.state == common_pb.Finished
    progress = ok(
        wire.GetIndexBuildProgress(pb.GetIndexBuildProgressRequest(collection_name=name, field_name="v"))
    )
    assert progress.indexed_rows == progress.total_rows == 3
    statistics = ok(wire.GetIndexStatistics(pb.GetIndexStatisticsRequest(collection_name=name)))
    assert [d.field_name for d in statistics.index_descriptions] == ["v"]


def test_a_column_can_be_added(client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [1, 0, 0, 0]}])
    before = client.describe_collection(name)["update_timestamp"]
    client.add_collection_field(name, "added", DataType.INT64, nullable=True, default_value=7)
    client.add_collection_field(name, "note", DataType.VARCHAR, nullable=True, max_length=20)
    assert client.describe_collection(name)["update_timestamp"] > before
    client.insert(name, [{"id": 2, "v": [2, 0, 0, 0], "added": 9, "note": "x"}])
    rows = client.query(name, "id > 0", output_fields=["added", "note"])
    assert rows == [{"id": 1, "added": 7, "note": None}, {"id": 2, "added": 9, "note": "x"}]
    assert [r["id"] for r in client.query(name, "added == 7")] == [1]
    assert [r["id"] for r in client.query(name, "note is null")] == [1]
    with refused(1100, "nullable"):
        client.add_collection_field(name, "bad", DataType.INT64)


def test_properties_can_be_changed(client, name):
    simple(client, name)
    client.alter_collection_properties(name, {"mmap.enabled": True, "my.own": "x"})
    properties = client.describe_collection(name)["properties"]
    assert properties["mmap.enabled"].lower() == "true" and properties["my.own"] == "x"
    client.drop_collection_properties(name, ["my.own"])
    assert "my.own" not in client.describe_collection(name)["properties"]


def test_a_property_that_would_have_no_effect_is_refused(client, name):
    simple(client, name)
    with refused(10, "ttl_field"):
        client.alter_collection_properties(name, {"ttl_field": "expires"})
    assert "ttl_field" not in client.describe_collection(name)["properties"]


def test_rows_expire(client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10)])
    client.flush(name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10, 20)])
    with refused(1100, "collection TTL is out of range"):
        client.alter_collection_properties(name, {"collection.ttl.seconds": -2})
    client.alter_collection_properties(name, {"collection.ttl.seconds": 1})

    def count():
        return client.query(name, "", output_fields=["count(*)"])[0]["count(*)"]

    wait_until(lambda: count() == 0)
    assert client.search(name, [[0, 0, 0, 0]], limit=5)[0] == []
    assert client.get(name, ids=[3, 13]) == []
    assert client.query_iterator(name, filter="id >= 0").next() == []
    # They are gone from the disk as well, and what is written from now on lives its second.
    job = client.compact(name)
    wait_until(lambda: client.get_compaction_state(job) == "Completed")
    assert client.list_persistent_segments(name) == []
    client.alter_collection_properties(name, {"collection.ttl.seconds": 3600})
    client.upsert(name, [{"id": 3, "v": [3, 0, 0, 0]}])
    assert count() == 1


def test_a_varchar_bound_can_grow(client, name):
    create(
        client, name, schema(KEY, ("t", DataType.VARCHAR, {"max_length": 4}), vector()), ("v", "FLAT", "L2")
    )
    with refused(1100, "exceeds max length"):
        client.insert(name, [{"id": 1, "t": "longer", "v": [0, 0, 0, 0]}])
    client.alter_collection_field(name, "t", {"max_length": 10})
    client.insert(name, [{"id": 1, "t": "longer", "v": [0, 0, 0, 0]}])
    assert client.query(name, "id == 1", output_fields=["t"])[0]["t"] == "longer"


def test_unknown_rpc_parameters_of_create_are_kept_not_refused(wire, client, name):
    from pymilvus.client.prepare import Prepare

    body = Prepare.create_collection_request("x", schema(KEY, vector())).schema
    ok(
        wire.CreateCollection(
            pb.CreateCollectionRequest(
                collection_name=name, schema=body, properties=pairs(**{"mmap.enabled": "true"})
            )
        )
    )
    assert client.describe_collection(name)["properties"] == {"mmap.enabled": "true"}


def test_has_collection_asks_by_describe(client, name):
    assert not client.has_collection(name)
    simple(client, name)
    assert client.has_collection(name)


def test_a_closed_client_harms_nobody(node, client, name):
    other = MilvusClient(node.uri)
    simple(other, name)
    other.close()
    assert client.has_collection(name)
