"""What breaks clients (contract §15): one test for each, named after what breaks."""

import time

import grpc
import pytest
from pymilvus import DataType, Function, FunctionType, MilvusClient, MilvusException
from pymilvus.client.prepare import Prepare

from helpers import (
    KEY,
    assert_status,
    column,
    common_pb,
    create,
    indexes,
    ok,
    pairs,
    pb,
    schema,
    search_request,
    simple,
    vector,
)

INT64, VEC = DataType.INT64, DataType.FLOAT_VECTOR


def query(wire, name, expr, fields=(), **params):
    return wire.Query(
        pb.QueryRequest(
            collection_name=name,
            expr=expr,
            output_fields=fields,
            query_params=pairs(**params),
            use_default_consistency=True,
        )
    )


def fields(answer):
    return {f.field_name: f for f in answer.fields_data}


def test_01_a_connect_that_fails_means_no_client_at_all(node, wire):
    assert_status(wire.Connect(pb.ConnectRequest()).status, 0, 0)
    MilvusClient(node.uri).close()


def test_02_an_identifier_of_zero_means_no_connect_to_the_node_sdk(wire):
    assert wire.Connect(pb.ConnectRequest()).identifier != 0


def test_03_user_errors_as_grpc_errors_are_retried_for_minutes(client):
    began = time.monotonic()
    for call in (
        lambda: client.search("nope", [[0]]),
        lambda: client.load_collection("nope"),
        lambda: client.create_partition("nope", "p"),
        lambda: client.describe_index("nope", "i"),
    ):
        with pytest.raises(MilvusException):
            call()
    assert time.monotonic() - began < 10


def test_04_a_handler_that_dies_is_taken_for_a_lost_connection(wire, client, name):
    """Garbage in every field; what comes back is an answer, in band."""
    simple(client, name)
    request = pb.SearchRequest(
        collection_name=name,
        placeholder_group=b"\xff" * 100,
        nq=-1,
        search_params=pairs(topk="nan", params="[]"),
    )
    assert wire.Search(request).status.code == 1100
    assert wire.Insert(pb.InsertRequest(collection_name=name, num_rows=2**32 - 1)).status.code == 1100


def test_05_a_failure_with_only_the_new_code_is_a_success_to_the_node_sdk(wire):
    status = wire.Query(pb.QueryRequest(collection_name="nope", expr="id > 0")).status
    assert status.code and status.error_code


def test_06_a_listed_meta_field_is_asked_for_on_insert(wire, client, name):
    create(client, name, schema(KEY, vector(), dynamic=True), ("v", "FLAT", "L2"))
    described = ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name)))
    assert [f.name for f in described.schema.fields] == ["id", "v"]
    client.insert(name, [{"id": 1, "v": [0] * 4}])


def test_07_a_lost_dynamic_flag_rejects_extra_keys_on_the_client(client, name):
    create(client, name, schema(KEY, vector(), dynamic=True), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": 1, "v": [0] * 4, "extra": 1}])
    assert client.query(name, "extra == 1")[0]["extra"] == 1


def test_08_a_query_without_columns_raises_no_fields_returned(wire, client, name):
    simple(client, name)
    assert client.query(name, "id == 404") == []
    assert ok(query(wire, name, "id == 404")).fields_data


def test_09_an_empty_column_whose_kind_is_unset_raises(wire, client, name):
    simple(
        client,
        name,
        extra=[
            ("t", DataType.VARCHAR, {"max_length": 9}),
            ("j", DataType.JSON),
            ("a", DataType.ARRAY, {"element_type": INT64, "max_capacity": 3}),
            ("b", DataType.BOOL),
        ],
    )
    found = fields(ok(query(wire, name, "id < 0", ["*"])))
    arms = {n: f.scalars.WhichOneof("data") or f.vectors.WhichOneof("data") for n, f in found.items()}
    assert arms == {
        "id": "long_data",
        "t": "string_data",
        "j": "json_data",
        "a": "array_data",
        "b": "bool_data",
        "v": "float_vector",
    }


def test_10_a_vector_dim_of_zero_divides_by_zero(wire, client, name):
    simple(client, name)
    assert fields(ok(query(wire, name, "id < 0", ["v"])))["v"].vectors.dim == 4
    assert client.search(name, [[0] * 4], output_fields=["v"]) == [[]]


def test_11_columns_of_different_length_give_wrong_rows(wire, client, name):
    simple(client, name, extra=[("n", INT64, {"nullable": True})], dynamic=True)
    client.insert(name, [{"id": 1, "v": [0] * 4}, {"id": 2, "n": 5, "v": [0] * 4, "x": 1}])
    found = fields(ok(query(wire, name, "id > 0", ["*"])))
    assert {n: len(f.scalars.long_data.data) for n, f in found.items() if n in ("id", "n")} == {
        "id": 2,
        "n": 2,
    }
    assert len(found["$meta"].scalars.json_data.data) == 2
    assert len(found["v"].vectors.float_vector.data) == 8


def test_12_dense_null_vectors_shift_all_later_vectors(client, name):
    create(
        client,
        name,
        schema(KEY, vector(2), vector(2, "w", nullable=True)),
        ("v", "FLAT", "L2"),
        ("w", "FLAT", "L2"),
    )
    client.insert(
        name,
        [
            {"id": 1, "v": [0, 0], "w": None},
            {"id": 2, "v": [0, 0], "w": [2, 2]},
            {"id": 3, "v": [0, 0], "w": None},
            {"id": 4, "v": [0, 0], "w": [4, 4]},
        ],
    )
    for _ in range(2):
        rows = client.query(name, "id > 0", output_fields=["w"])
        assert [r["w"] for r in rows] == [None, [2, 2], None, [4, 4]]
        hits = client.search(name, [[0, 0]], anns_field="v", limit=4, output_fields=["w"])[0]
        assert [h["entity"]["w"] for h in hits] == [None, [2, 2], None, [4, 4]]
        client.flush(name)


def test_13_compact_null_scalars_shift_all_later_values(client, name):
    simple(client, name, extra=[("n", INT64, {"nullable": True})])
    client.insert(name, [{"id": i, "n": None if i % 2 else i, "v": [i, 0, 0, 0]} for i in range(6)])
    assert [r["n"] for r in client.query(name, "id >= 0", output_fields=["n"])] == [0, None, 2, None, 4, None]
    hits = client.search(name, [[0] * 4], limit=6, output_fields=["n"])[0]
    assert [h["entity"]["n"] for h in hits] == [0, None, 2, None, 4, None]


def test_14_nulls_marked_only_in_the_new_places_read_as_zeros(wire, client, name):
    simple(client, name, extra=[("n", INT64, {"nullable": True})])
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    assert list(fields(ok(query(wire, name, "id == 1", ["n"])))["n"].valid_data) == [False]


def test_15_topks_shorter_than_the_queries_raise_in_iterators(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    request = search_request(name, [[0] * 4] * 3, dsl="id < 0")
    assert list(ok(wire.Search(request)).results.topks) == [0, 0, 0]


def test_16_without_a_primary_field_name_hits_are_keyed_by_id(client, name):
    create(client, name, schema(("my_key", INT64), vector()), ("v", "FLAT", "L2"))
    client.insert(name, [{"my_key": 7, "v": [0] * 4}])
    hit = client.search(name, [[0] * 4])[0][0]
    assert hit["my_key"] == 7 and "id" not in hit


def test_17_hits_without_ids_raise(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    results = ok(wire.Search(search_request(name, [[0] * 4]))).results
    assert results.ids.WhichOneof("id_field") == "int_id" and sum(results.topks) == len(
        results.ids.int_id.data
    )


def test_18_extra_info_in_a_mutations_success_raises_a_value_error(wire, client, name):
    simple(client, name)
    columns = [column("id", INT64, long_data=[1]), column("v", VEC, float_vector=[0] * 4, dim=4)]
    answers = [
        wire.Insert(pb.InsertRequest(collection_name=name, fields_data=columns, num_rows=1)),
        wire.Upsert(pb.UpsertRequest(collection_name=name, fields_data=columns, num_rows=1)),
        wire.Delete(pb.DeleteRequest(collection_name=name, expr="id in [1]")),
    ]
    assert [dict(ok(a).status.extra_info) for a in answers] == [{}, {}, {}]


def test_19_a_delete_that_returns_ids_changes_its_return_type(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    assert client.delete(name, ids=[1])["delete_count"] == 1
    assert not wire.Delete(pb.DeleteRequest(collection_name=name, expr="id in [1]")).HasField("IDs")


def test_20_a_named_index_that_is_not_exactly_one_is_ambiguous(client, name):
    client.create_collection(name, schema=schema(KEY, vector(), vector(4, "w")))
    assert client.describe_index(name, "v") is None
    assert client.list_indexes(name) == []
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    client.create_index(name, indexes(("w", "FLAT", "IP")), sync=False)
    assert client.describe_index(name, "w")["metric_type"] == "IP"
    assert client.describe_index(name, "nope") is None


def test_21_a_params_pair_that_is_no_json_raises(client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    client.create_index(
        name,
        indexes(
            {
                "field_name": "v",
                "index_type": "HNSW",
                "metric_type": "L2",
                "params": {"M": 4, "efConstruction": 9},
            }
        ),
        sync=False,
    )
    assert str(client.describe_index(name, "v")["M"]) == "4"


def test_22_an_unnamed_index_not_named_after_its_field_is_not_found(client, name):
    simple(client, name)
    assert client.list_indexes(name) == ["v"]
    assert client.describe_index(name, "v")["index_name"] == "v"


def test_23_an_index_or_load_that_never_finishes_is_polled_for_ever(wire, client, name):
    simple(client, name)
    (index,) = ok(wire.DescribeIndex(pb.DescribeIndexRequest(collection_name=name))).index_descriptions
    assert (index.state, index.pending_index_rows) == (common_pb.Finished, 0)
    progress = ok(wire.GetLoadingProgress(pb.GetLoadingProgressRequest(collection_name=name)))
    assert (progress.progress, progress.refresh_progress) == (100, 100)


def test_24_the_load_state_of_a_missing_collection_is_no_error(client):
    assert client.get_load_state("no_such_collection")["state"].name == "NotExist"


def test_25_listings_that_are_unimplemented_raise_bare_grpc_errors(client, name):
    simple(client, name)
    for call in (
        client.list_users,
        client.list_roles,
        client.list_privilege_groups,
        client.list_resource_groups,
        client.list_databases,
        client.list_collections,
        client.list_aliases,
        lambda: client.list_persistent_segments(name),
        lambda: client.list_loaded_segments(name),
    ):
        try:
            call()
        except MilvusException as refusal:
            assert refusal.code, "refused in band is fine"
        except grpc.RpcError as bare:
            pytest.fail(f"a bare gRPC error: {bare}")


def test_26_a_schema_mismatch_without_62_is_not_tried_again(node, client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    other = MilvusClient(node.uri)
    other.add_collection_field(name, "late", INT64, nullable=True)
    other.close()
    # This client still has the old schema in its cache; the refusal makes it look again.
    client.insert(name, [{"id": 2, "v": [0] * 4, "late": 5}])
    assert client.query(name, "id == 2", output_fields=["late"])[0]["late"] == 5


def test_27_a_schema_timestamp_moves_with_the_schema_and_with_nothing_else(client, name):
    client.create_collection(name, schema=schema(KEY, vector()))

    def stamp():
        return client.describe_collection(name)["update_timestamp"]

    first = stamp()
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    client.load_collection(name)
    client.create_partition(name, "p")
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    client.flush(name)
    client.release_collection(name)
    client.alter_collection_properties(name, {"mmap.enabled": "true"})
    assert stamp() == first
    client.add_collection_field(name, "late", INT64, nullable=True)
    assert stamp() > first


def test_28_a_guarantee_timestamp_by_a_clock_ahead_of_ours_is_waited_for(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    ahead = int((time.time() + 600) * 1000) << 18
    began = time.monotonic()
    answer = ok(wire.Query(pb.QueryRequest(collection_name=name, expr="id > 0", guarantee_timestamp=ahead)))
    assert len(answer.fields_data[0].scalars.long_data.data) == 1
    assert time.monotonic() - began < 10


def test_29_an_iterator_without_a_token_falls_back_with_a_warning(client, name, caplog):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(20)])
    iterator = client.search_iterator(name, [[0] * 4], batch_size=6)
    assert type(iterator).__name__ == "SearchIteratorV2"
    assert [h["id"] for h in iterator.next()] == list(range(6))
    iterator.close()
    assert not [r for r in caplog.records if "falling back" in r.getMessage().lower()]


def test_30_query_pages_that_are_not_ascending_lose_rows(client, name):
    simple(client, name)
    client.insert(name, [{"id": (i * 7) % 50, "v": [0] * 4} for i in range(50)])
    assert [r["id"] for r in client.query(name, "id > 10", limit=5)] == [11, 12, 13, 14, 15]


@pytest.mark.parametrize("yes", ["True", "true", "1", "TRUE"])
def test_31_booleans_are_spelt_as_each_language_likes(wire, client, name, yes):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    request = search_request(name, [[0] * 4], params={"ignore_growing": yes})
    assert list(ok(wire.Search(request)).results.topks) == [0]


def test_32_numbers_in_params_come_as_text_too(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(5)])
    for params in ('{"radius": 5}', '{"radius": "5"}', '{"radius": 5.0}', '{"radius": "5.0"}'):
        request = search_request(name, [[0] * 4], params={"params": params})
        assert list(ok(wire.Search(request)).results.ids.int_id.data) == [0, 1, 2]


def test_33_requests_of_more_than_four_megabytes(client, name):
    simple(client, name, dim=1024)
    rows = [{"id": i, "v": [float(i)] * 1024} for i in range(2000)]
    assert client.insert(name, rows)["insert_count"] == 2000


def test_34_field_order_descriptions_and_function_params_are_kept(client, name):
    """See also test_clients.py: the ORM compares whole schemas."""
    function = Function(
        "f",
        FunctionType.TEXTEMBEDDING,
        ["t"],
        ["v"],
        description="makes v",
        params={"provider": "bge-m3", "dim": 64},
    )
    client.create_collection(
        name,
        schema=schema(
            ("z", INT64, {"description": "key"}),
            ("t", DataType.VARCHAR, {"max_length": 9}),
            vector(64),
            ("a", INT64),
            functions=[function],
            description="all of it",
        ),
    )
    found = client.describe_collection(name)
    assert [f["name"] for f in found["fields"]] == ["z", "t", "v", "a"]
    assert found["description"] == "all of it" and found["fields"][0]["description"] == "key"
    assert found["functions"][0]["description"] == "makes v"
    assert found["functions"][0]["params"] == {"provider": "bge-m3", "dim": "64"}


def test_35_type_params_come_back_as_they_were_written(wire, client, name):
    body = Prepare.create_collection_request(
        name, schema(KEY, ("t", DataType.VARCHAR, {"max_length": 9, "enable_analyzer": True}), vector())
    ).schema
    ok(wire.CreateCollection(pb.CreateCollectionRequest(collection_name=name, schema=body)))
    sent = type(
        ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name))).schema
    ).FromString(body)
    found = ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name))).schema
    assert [list(f.type_params) for f in found.fields] == [list(f.type_params) for f in sent.fields]


def test_36_auto_id_of_the_schema_and_of_the_key_agree(wire, client, name):
    client.create_collection(name, schema=schema(KEY, vector(), auto_id=True))
    described = ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name))).schema
    assert described.autoID and described.fields[0].autoID


@pytest.mark.parametrize("level, number", [("Strong", 0), ("Session", 1), ("Bounded", 2), ("Eventually", 3)])
def test_37_the_consistency_level_is_kept(client, name, level, number):
    client.create_collection(name, schema=schema(KEY, vector()), consistency_level=level)
    assert client.describe_collection(name)["consistency_level"] == number


def test_38_a_database_taken_from_the_request_only_puts_everything_in_default(node, client, name):
    client.create_database("gotcha_db")
    other = MilvusClient(node.uri, db_name="gotcha_db")
    other.create_collection(name, schema=schema(KEY, vector()))
    assert not client.has_collection(name) and other.has_collection(name)
    other.drop_collection(name)
    other.close()
    client.drop_database("gotcha_db")


def test_39_a_token_is_no_obstacle_while_authorization_is_off(node):
    other = MilvusClient(node.uri, token="root:Milvus")
    assert isinstance(other.list_collections(), list)
    other.close()


def test_40_text_that_is_no_utf8_is_refused_not_stored(wire, client, name):
    simple(client, name, extra=[("j", DataType.JSON)])
    answer = wire.Insert(
        pb.InsertRequest(
            collection_name=name,
            num_rows=1,
            fields_data=[
                column("id", INT64, long_data=[1]),
                column("j", DataType.JSON, json_data=[b'"\xff"']),
                column("v", VEC, float_vector=[0] * 4, dim=4),
            ],
        )
    )
    assert_status(answer.status, 1100)


def test_41_an_insert_without_ids_returns_no_ids(client, name):
    simple(client, name)
    assert list(client.insert(name, [{"id": 5, "v": [0] * 4}])["ids"]) == [5]


def test_42_negated_or_rooted_distances_fail_recall_tests(client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [3, 4, 0, 0]}])
    assert client.search(name, [[0] * 4])[0][0].distance == 25


def test_43_a_sub_request_with_empty_params_text(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    requests = [search_request(name, [[0] * 4], params={"params": ""})]
    data = ok(
        wire.HybridSearch(
            pb.HybridSearchRequest(collection_name=name, requests=requests, rank_params=pairs(limit=5))
        )
    ).results
    assert list(data.topks) == [1]


def test_44_the_number_of_queries_is_counted_not_believed(wire, client, name):
    simple(client, name)
    for claimed in (0, 1, 99):
        answer = wire.Search(search_request(name, [[0] * 4] * 2, nq=claimed))
        assert list(answer.results.topks) == [0, 0] or answer.status.code == 1100
    assert list(ok(wire.Search(search_request(name, [[0] * 4] * 2, nq=0))).results.topks) == [0, 0]


def test_45_the_count_column_has_exactly_this_name(wire, client, name):
    simple(client, name)
    (column_,) = ok(query(wire, name, "", ["count(*)"])).fields_data
    assert column_.field_name == "count(*)" and list(column_.scalars.long_data.data) == [0]
