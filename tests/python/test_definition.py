"""Collections, partitions, indexes, databases (contract §4)."""

import pytest
from pymilvus import DataType, Function, FunctionType, MilvusClient, MilvusException

from helpers import (
    KEY,
    assert_status,
    create,
    indexes,
    ok,
    pairs,
    pb,
    refused,
    schema,
    schema_pb,
    simple,
    vector,
)

# ---- names (4.1)


@pytest.mark.parametrize("bad", ["", "1abc", "a-b", "a b", "a.b", "ü", "a" * 256, "a/b", "../x"])
def test_names_that_break_the_rule_are_refused(wire, bad):
    body = schema_pb.CollectionSchema(name="x").SerializeToString()
    answer = wire.CreateCollection(pb.CreateCollectionRequest(collection_name=bad, schema=body))
    assert_status(answer, 1100)


def test_the_text_of_a_bad_name(client):
    with refused(
        1100,
        "Invalid collection name: 1x",
        "the first character of a collection name must be an underscore or letter",
    ):
        client.create_collection("1x", schema=schema(KEY, vector()))


@pytest.mark.parametrize("good", ["_", "A", "a1_B", "a" * 255])
def test_names_at_the_edge_are_accepted(client, good):
    client.create_collection(good, schema=schema(KEY, vector()))
    assert client.has_collection(good)
    client.drop_collection(good)


# ---- schemas (4.2)


def raw_create(wire, name, *fields, **kwargs):
    body = schema_pb.CollectionSchema(name=name, fields=fields, **kwargs).SerializeToString()
    return wire.CreateCollection(pb.CreateCollectionRequest(collection_name=name, schema=body))


def field(name, kind, params=None, **kwargs):
    return schema_pb.FieldSchema(
        name=name, data_type=int(kind), type_params=pairs(**(params or {})), **kwargs
    )


PK = field("id", DataType.INT64, is_primary_key=True)
VEC = field("v", DataType.FLOAT_VECTOR, {"dim": 4})

BAD_SCHEMAS = {
    "no fields": [],
    "no vector": [PK],
    "no key": [field("id", DataType.INT64), VEC],
    "two keys": [PK, field("b", DataType.INT64, is_primary_key=True), VEC],
    "float key": [field("id", DataType.FLOAT, is_primary_key=True), VEC],
    "nullable key": [field("id", DataType.INT64, is_primary_key=True, nullable=True), VEC],
    "key with a default": [
        field("id", DataType.INT64, is_primary_key=True, default_value=schema_pb.ValueField(long_data=1)),
        VEC,
    ],
    "same name twice": [PK, VEC, field("v", DataType.INT64)],
    "reserved name": [PK, VEC, field("$meta", DataType.JSON)],
    "reserved RowID": [PK, VEC, field("RowID", DataType.INT64)],
    "reserved Timestamp": [PK, VEC, field("Timestamp", DataType.INT64)],
    "bad field name": [PK, VEC, field("a b", DataType.INT64)],
    "no dim": [PK, field("v", DataType.FLOAT_VECTOR)],
    "dim 1": [PK, field("v", DataType.FLOAT_VECTOR, {"dim": 1})],
    "dim 32769": [PK, field("v", DataType.FLOAT_VECTOR, {"dim": 32769})],
    "dim of words": [PK, field("v", DataType.FLOAT_VECTOR, {"dim": "four"})],
    "binary dim 9": [PK, field("v", DataType.BINARY_VECTOR, {"dim": 9})],
    "sparse with dim": [PK, field("v", DataType.SPARSE_FLOAT_VECTOR, {"dim": 4})],
    "varchar without max_length": [PK, VEC, field("t", DataType.VARCHAR)],
    "varchar of 65536": [PK, VEC, field("t", DataType.VARCHAR, {"max_length": 65536})],
    "varchar of 0": [PK, VEC, field("t", DataType.VARCHAR, {"max_length": 0})],
    "array without capacity": [PK, VEC, field("a", DataType.ARRAY, element_type=5)],
    "array of 4097": [PK, VEC, field("a", DataType.ARRAY, {"max_capacity": 4097}, element_type=5)],
    "array of json": [PK, VEC, field("a", DataType.ARRAY, {"max_capacity": 4}, element_type=23)],
    "array of vectors": [PK, VEC, field("a", DataType.ARRAY, {"max_capacity": 4}, element_type=101)],
    "array of varchar without max_length": [
        PK,
        VEC,
        field("a", DataType.ARRAY, {"max_capacity": 4}, element_type=21),
    ],
    "default of another type": [
        PK,
        VEC,
        field("n", DataType.INT64, default_value=schema_pb.ValueField(string_data="x")),
    ],
    "default out of range": [
        PK,
        VEC,
        field("n", DataType.INT8, default_value=schema_pb.ValueField(int_data=300)),
    ],
    "default too long": [
        PK,
        VEC,
        field(
            "t", DataType.VARCHAR, {"max_length": 2}, default_value=schema_pb.ValueField(string_data="xxx")
        ),
    ],
    "default of json": [
        PK,
        VEC,
        field("j", DataType.JSON, default_value=schema_pb.ValueField(bytes_data=b"{}")),
    ],
    "two partition keys": [
        PK,
        VEC,
        field("a", DataType.INT64, is_partition_key=True),
        field("b", DataType.INT64, is_partition_key=True),
    ],
    "the key as partition key": [
        field("id", DataType.INT64, is_primary_key=True, is_partition_key=True),
        VEC,
    ],
    "float partition key": [PK, VEC, field("a", DataType.FLOAT, is_partition_key=True)],
    "nullable partition key": [PK, VEC, field("a", DataType.INT64, is_partition_key=True, nullable=True)],
    "auto id beside the key": [PK, VEC, field("a", DataType.INT64, autoID=True)],
    "type 999": [PK, VEC, schema_pb.FieldSchema(name="x", data_type=5), field("y", 0)],
}


@pytest.mark.parametrize("fields", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS.keys())
def test_schemas_that_break_a_rule_are_refused(wire, name, fields):
    answer = raw_create(wire, name, *fields)
    assert_status(answer, 1100)
    assert answer.reason


def test_texts_of_refused_schemas(wire, name):
    assert "schema does not contain vector field" in raw_create(wire, name, PK).reason
    sparse = field("s", DataType.SPARSE_FLOAT_VECTOR, {"dim": 4})
    assert (
        "dim should not be specified for sparse vector field s" in raw_create(wire, name, PK, sparse).reason
    )


def test_types_that_are_not_there_are_refused_with_their_name(wire, name):
    for kind in (DataType.GEOMETRY, DataType.TIMESTAMPTZ):
        answer = raw_create(wire, name, PK, VEC, field("x", kind))
        assert answer.code != 0 and "x" in answer.reason, kind


def test_ten_vector_fields_fit_and_eleven_do_not(client, wire, name):
    fields = [field(f"v{i}", DataType.FLOAT_VECTOR, {"dim": 2}) for i in range(11)]
    assert_status(raw_create(wire, name, PK, *fields), 1100)
    assert_status(raw_create(wire, name, PK, *fields[:10]), 0)


def test_sixty_four_fields_fit_and_sixty_five_do_not(client, wire, name):
    fields = [field(f"n{i}", DataType.INT64) for i in range(63)]
    assert_status(raw_create(wire, name, PK, VEC, *fields), 1100)
    assert_status(raw_create(wire, name, PK, VEC, *fields[:62]), 0)


def test_creating_again_is_success_only_if_nothing_differs(client, name):
    def same():
        return schema(KEY, ("n", DataType.INT64), vector())

    client.create_collection(name, schema=same())
    client.create_collection(name, schema=same())
    with refused(1100, "create duplicate collection with different parameters"):
        client.create_collection(name, schema=schema(KEY, vector(8)))


def test_dropping_what_is_not_there_is_success(client):
    client.drop_collection("never_there")


@pytest.mark.parametrize("kind, options", [(DataType.INT64, {}), (DataType.VARCHAR, {"max_length": 30})])
def test_auto_ids_are_given_by_the_server(client, name, kind, options):
    create(client, name, schema(("id", kind, options), vector(), auto_id=True), ("v", "FLAT", "L2"))
    given = client.insert(name, [{"v": [i, 0, 0, 0]} for i in range(5)])["ids"]
    more = client.insert(name, [{"v": [i, 0, 0, 0]} for i in range(5)])["ids"]
    assert len(set(given) | set(more)) == 10
    if kind == DataType.VARCHAR:
        assert all(isinstance(key, str) and int(key) > 0 for key in given)
    rows = client.query(name, filter="", limit=20, output_fields=["v"])
    assert sorted(r["id"] for r in rows) == sorted([*given, *more])
    assert client.get(name, ids=[given[3]], output_fields=["v"])[0]["v"] == [3, 0, 0, 0]


# ---- what describe tells (4.3)


def test_describe_tells_what_was_declared(client, name):
    declared = schema(
        ("id", DataType.VARCHAR, {"max_length": 40, "description": "the key"}),
        ("z", DataType.INT64, {"nullable": True, "description": "last letter first"}),
        ("a", DataType.ARRAY, {"element_type": DataType.VARCHAR, "max_capacity": 7, "max_length": 9}),
        ("d", DataType.DOUBLE, {"default_value": 1.5}),
        ("p", DataType.INT64, {"is_partition_key": True}),
        vector(16),
        dynamic=True,
        description="what it is",
    )
    client.create_collection(
        name, schema=declared, num_partitions=8, num_shards=2, properties={"my.key": "my value"}
    )
    found = client.describe_collection(name)
    assert found["collection_name"] == name and found["description"] == "what it is"
    assert [f["name"] for f in found["fields"]] == ["id", "z", "a", "d", "p", "v"]
    by_name = {f["name"]: f for f in found["fields"]}
    assert by_name["id"]["is_primary"] and by_name["id"]["description"] == "the key"
    assert by_name["id"]["params"] == {"max_length": 40}
    assert by_name["z"]["nullable"]
    assert by_name["a"]["element_type"] == DataType.VARCHAR
    assert by_name["a"]["params"] == {"max_capacity": 7, "max_length": 9}
    assert by_name["p"]["is_partition_key"]
    assert by_name["v"]["params"] == {"dim": 16}
    assert found["enable_dynamic_field"] and found["num_partitions"] == 8 and found["num_shards"] == 2
    assert found["properties"] == {"my.key": "my value"}
    assert found["collection_id"] > 0 and found["created_timestamp"] > 0
    assert found["update_timestamp"] > 0


def test_fields_are_numbered_from_100_in_order(wire, client, name):
    client.create_collection(name, schema=schema(KEY, ("n", DataType.INT64), vector(), dynamic=True))
    described = ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name)))
    assert [f.fieldID for f in described.schema.fields] == [100, 101, 102]
    assert described.update_timestamp_str == str(described.update_timestamp)
    assert len(described.virtual_channel_names) == described.shards_num >= 1
    by_id = ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collectionID=described.collectionID)))
    assert by_id.collection_name == name


# ---- partitions (4.4)


def test_partitions_hold_their_own_rows(client, name):
    simple(client, name)
    assert client.list_partitions(name) == ["_default"]
    client.create_partition(name, "p-1")
    client.create_partition(name, "p-1")
    client.load_partitions(name, ["p-1"])
    client.insert(name, [{"id": 1, "v": [1, 0, 0, 0]}])
    client.insert(name, [{"id": 2, "v": [2, 0, 0, 0]}], partition_name="p-1")
    assert client.has_partition(name, "p-1") and not client.has_partition(name, "p-2")

    def found(*partitions):
        return {h.id for h in client.search(name, [[0] * 4], partition_names=list(partitions))[0]}

    assert found("p-1") == {2} and found("_default") == {1} and found() == {1, 2}
    assert [r["id"] for r in client.query(name, "id > 0", partition_names=["p-1"])] == [2]
    client.delete(name, filter="id > 0", partition_name="p-1")
    assert [r["id"] for r in client.query(name, "id > 0")] == [1]
    with refused(200, "partition", "nowhere"):
        client.query(name, "id > 0", partition_names=["nowhere"])
    with refused(200):
        client.insert(name, [{"id": 3, "v": [0] * 4}], partition_name="nowhere")


def test_partitions_that_cannot_be_dropped(client, name):
    simple(client, name)
    client.create_partition(name, "p")
    with refused(1100, "default partition cannot be deleted"):
        client.drop_partition(name, "_default")
    client.load_partitions(name, ["p"])
    with refused(1100, "please release it first"):
        client.drop_partition(name, "p")
    client.release_partitions(name, ["p"])
    client.drop_partition(name, "p")
    assert client.list_partitions(name) == ["_default"]


def test_rows_go_with_their_partition(client, name):
    simple(client, name)
    client.create_partition(name, "p")
    client.insert(name, [{"id": 2, "v": [2, 0, 0, 0]}], partition_name="p")
    client.insert(name, [{"id": 3, "v": [3, 0, 0, 0]}])
    client.release_collection(name)
    client.drop_partition(name, "p")
    client.load_collection(name)
    assert [r["id"] for r in client.query(name, "id > 0")] == [3]


def test_with_a_partition_key_the_server_chooses_the_partition(client, name):
    create(
        client,
        name,
        schema(KEY, ("tenant", DataType.VARCHAR, {"max_length": 9, "is_partition_key": True}), vector()),
        ("v", "FLAT", "L2"),
        num_partitions=4,
    )
    client.insert(name, [{"id": i, "tenant": f"t{i % 7}", "v": [i, 0, 0, 0]} for i in range(70)])
    assert client.list_partitions(name) == [f"_default_{i}" for i in range(4)]
    rows = client.query(name, 'tenant == "t3"', output_fields=["tenant"])
    assert sorted(r["id"] for r in rows) == [i for i in range(70) if i % 7 == 3]
    hits = client.search(name, [[0] * 4], filter='tenant in ["t1", "t2"]', limit=50)[0]
    assert len(hits) == 20
    text = "not support manually specifying the partition names if partition key mode is used"
    with refused(1100, text):
        client.query(name, "id > 0", partition_names=["_default_0"])
    with refused(1100, text):
        client.insert(name, [{"id": 1, "tenant": "x", "v": [0] * 4}], partition_name="_default_0")
    with refused(1100):
        client.create_partition(name, "mine")


# ---- aliases, databases, rename (4.5)


@pytest.fixture
def alias(client, name):
    yield f"alias_{name}"
    client.drop_alias(f"alias_{name}")


def test_an_alias_stands_for_its_collection_everywhere(client, name, alias):
    simple(client, name)
    client.create_alias(name, alias)
    client.create_alias(name, alias)
    client.insert(alias, [{"id": 1, "v": [1, 0, 0, 0]}])
    assert client.query(alias, "id == 1")[0]["id"] == 1
    assert client.search(alias, [[0] * 4])[0][0].id == 1
    assert client.describe_collection(alias)["collection_name"] == name
    assert client.describe_collection(name)["aliases"] == [alias]
    described = client.describe_alias(alias)
    assert described["collection_name"] == name and described["alias"] == alias
    assert client.list_aliases(name)["aliases"] == [alias]
    assert alias in client.list_aliases()["aliases"]
    with refused(1100, "associated aliases"):
        client.drop_collection(name)
    client.drop_alias(alias)
    client.drop_alias(alias)
    with refused(1600, "alias not found"):
        client.describe_alias(alias)


def test_an_alias_moves_only_by_alter(client, name, alias):
    simple(client, name)
    other = f"{name}_b"
    simple(client, other)
    client.create_alias(name, alias)
    with refused(1602, "alias already exist"):
        client.create_alias(other, alias)
    client.alter_alias(other, alias)
    assert client.describe_alias(alias)["collection_name"] == other
    with refused(1600):
        client.alter_alias(name, "alias_that_is_not")
    with refused(1601, "conflict"):
        client.create_alias(name, other)
    with refused(1601):
        client.create_collection(alias, schema=schema(KEY, vector()))
    client.drop_alias(alias)
    client.drop_collection(other)


def test_renaming_keeps_the_rows_and_the_id(client, name):
    simple(client, name)
    client.insert(name, [{"id": 1, "v": [1, 0, 0, 0]}])
    before = client.describe_collection(name)["collection_id"]
    renamed = f"{name}_new"
    client.rename_collection(name, renamed)
    assert not client.has_collection(name)
    assert client.describe_collection(renamed)["collection_id"] == before
    assert client.search(renamed, [[0] * 4])[0][0].id == 1
    simple(client, name)
    with refused(1100, "duplicated new collection name"):
        client.rename_collection(renamed, name)
    client.drop_collection(renamed)


def test_databases(node, client, name):
    client.create_database("db_a", properties={"database.max.collections": 5})
    assert {"default", "db_a"} <= set(client.list_databases())
    assert client.describe_database("db_a")["name"] == "db_a"
    client.alter_database_properties("db_a", {"my.key": "x"})
    assert client.describe_database("db_a")["my.key"] == "x"
    client.drop_database_properties("db_a", ["my.key"])
    assert "my.key" not in client.describe_database("db_a")
    with refused(1100, "already exist"):
        client.create_database("db_a")
    inside = MilvusClient(node.uri, db_name="db_a")
    simple(inside, name)
    with refused(1100, "not empty"):
        client.drop_database("db_a")
    inside.drop_collection(name)
    inside.close()
    client.drop_database("db_a")
    assert "db_a" not in client.list_databases()
    with refused(1100, "can not drop default database"):
        client.drop_database("default")
    with refused(800, "database not found"):
        client.describe_database("db_a")
    with refused(802):
        client.create_database("bad-name!")


def test_the_same_name_in_two_databases_is_two_collections(node, client, name):
    client.create_database("db_b")
    other = MilvusClient(node.uri, db_name="db_b")
    simple(client, name)
    simple(other, name)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    assert other.query(name, filter="", limit=5) == []
    client.rename_collection(name, f"{name}_moved", target_db="db_b")
    assert f"{name}_moved" in other.list_collections()
    other.drop_collection(f"{name}_moved")
    other.drop_collection(name)
    other.close()
    client.drop_database("db_b")


# ---- indexes (4.7)


def test_what_an_index_was_asked_to_be_is_reported_back(client, name):
    client.create_collection(name, schema=schema(KEY, ("t", DataType.VARCHAR, {"max_length": 9}), vector()))
    client.create_index(
        name,
        indexes(
            {
                "field_name": "v",
                "index_type": "HNSW",
                "metric_type": "IP",
                "index_name": "mine",
                "params": {"M": 16, "efConstruction": 100},
            }
        ),
    )
    client.create_index(name, indexes({"field_name": "t", "index_type": "INVERTED"}))
    found = client.describe_index(name, "mine")
    assert (found["index_type"], found["metric_type"], found["field_name"]) == ("HNSW", "IP", "v")
    assert (found["M"], found["efConstruction"]) == ("16", "100")
    assert (found["state"], found["pending_index_rows"]) == ("Finished", 0)
    assert client.describe_index(name, "t")["index_type"] == "INVERTED"
    assert sorted(client.list_indexes(name)) == ["mine", "t"]
    assert client.list_indexes(name, "v") == ["mine"]


def test_params_of_an_index_may_come_as_json(wire, client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    assert_status(
        wire.CreateIndex(
            pb.CreateIndexRequest(
                collection_name=name,
                field_name="v",
                extra_params=pairs(
                    index_type="HNSW", metric_type="L2", params='{"M": 8, "efConstruction": "64"}'
                ),
            )
        ),
        0,
    )
    found = client.describe_index(name, "v")
    assert (str(found["M"]), str(found["efConstruction"])) == ("8", "64")


def test_no_type_means_autoindex_and_no_metric_the_default(wire, client, name):
    create(
        client,
        name,
        schema(KEY, vector(), ("s", DataType.SPARSE_FLOAT_VECTOR), ("b", DataType.BINARY_VECTOR, {"dim": 8})),
        load=False,
    )
    for field in "vsb":
        assert_status(wire.CreateIndex(pb.CreateIndexRequest(collection_name=name, field_name=field)), 0)
    found = {f: client.describe_index(name, f) for f in "vsb"}
    assert {d["index_type"] for d in found.values()} == {"AUTOINDEX"}
    assert [found[f]["metric_type"] for f in "vsb"] == ["COSINE", "IP", "HAMMING"]


@pytest.mark.parametrize(
    "kind, metric",
    [
        ("FLAT", "HAMMING"),
        ("FLAT", "BM25"),
        ("FLAT", "NOPE"),
        ("BIN_FLAT", "L2"),
        ("NOPE", "L2"),
        ("SPARSE_INVERTED_INDEX", "IP"),
    ],
)
def test_an_index_that_does_not_fit_the_field_is_refused(client, name, kind, metric):
    client.create_collection(name, schema=schema(KEY, vector()))
    with refused(1100):
        client.create_index(name, indexes(("v", kind, metric)), sync=False)


def test_index_rules(client, name):
    client.create_collection(name, schema=schema(KEY, vector(), vector(4, "w")))
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    with refused(1100, "at most one distinct index is allowed per field"):
        client.create_index(name, indexes(("v", "HNSW", "L2")), sync=False)
    with refused(1100, "already exist"):
        client.create_index(
            name,
            indexes({"field_name": "w", "index_name": "v", "index_type": "FLAT", "metric_type": "L2"}),
            sync=False,
        )
    with refused(1100, "cannot create index on non-exist field: nope"):
        client.create_index(name, indexes(("nope", "FLAT", "L2")), sync=False)
    client.drop_index(name, "v")
    client.drop_index(name, "v")
    assert client.list_indexes(name) == []


def test_a_vector_index_cannot_be_dropped_while_loaded(client, name):
    simple(client, name)
    with refused(1100, "please release it first"):
        client.drop_index(name, "v")
    client.release_collection(name)
    client.drop_index(name, "v")


def test_scalar_index_names_of_all_kinds_are_accepted(client, name):
    create(
        client,
        name,
        schema(
            KEY,
            ("t", DataType.VARCHAR, {"max_length": 9}),
            ("n", DataType.INT64),
            ("b", DataType.BOOL),
            ("j", DataType.JSON),
            vector(),
        ),
        ("v", "FLAT", "L2"),
    )
    for field, kind in (("t", "Trie"), ("n", "STL_SORT"), ("b", "BITMAP")):
        client.create_index(name, indexes({"field_name": field, "index_type": kind}), sync=False)
        assert client.describe_index(name, field)["index_type"] == kind
    client.create_index(
        name,
        indexes(
            {
                "field_name": "j",
                "index_type": "INVERTED",
                "index_name": "jx",
                "params": {"json_path": 'j["x"]', "json_cast_type": "double"},
            }
        ),
        sync=False,
    )
    assert client.describe_index(name, "jx")["json_path"] == 'j["x"]'
    client.insert(
        name, [{"id": i, "t": f"t{i}", "n": i, "b": i > 1, "j": {"x": i}, "v": [0] * 4} for i in range(4)]
    )
    for filter in ('t == "t2"', "n == 2", 'j["x"] == 2'):
        assert [r["id"] for r in client.query(name, filter)] == [2]
    client.drop_index(name, "n")
    assert [r["id"] for r in client.query(name, "n == 2")] == [2]


# ---- load and release (4.8)


def test_load_needs_an_index_and_search_needs_load(client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    assert client.get_load_state(name)["state"].name == "NotLoad"
    with refused(700, "index not found"):
        client.load_collection(name)
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    for call in (lambda: client.search(name, [[0] * 4]), lambda: client.query(name, "id == 1")):
        with refused(101, "collection not loaded"):
            call()
    client.load_collection(name)
    client.load_collection(name)
    assert client.get_load_state(name)["state"].name == "Loaded"
    assert client.search(name, [[0] * 4])[0][0].id == 1
    client.refresh_load(name)
    client.release_collection(name)
    client.release_collection(name)
    with refused(101):
        client.query(name, "id == 1")
    client.delete(name, ids=[1])
    client.load_collection(name)
    assert client.query(name, filter="", limit=1) == []


def test_progress_of_what_is_not_loaded_is_an_error(wire, client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    answer = wire.GetLoadingProgress(pb.GetLoadingProgressRequest(collection_name=name))
    assert_status(answer.status, 101, None, "collection not loaded")


def test_loaded_partitions_are_searched_alone(client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    client.create_partition(name, "a")
    client.create_partition(name, "b")
    client.insert(name, [{"id": 1, "v": [0] * 4}], partition_name="a")
    client.insert(name, [{"id": 2, "v": [0] * 4}], partition_name="b")
    client.load_partitions(name, ["a"])
    assert client.get_load_state(name, "a")["state"].name == "Loaded"
    assert client.get_load_state(name, "b")["state"].name == "NotLoad"
    assert [r["id"] for r in client.query(name, "id > 0")] == [1]
    assert [h.id for h in client.search(name, [[0] * 4])[0]] == [1]
    with refused(201, "partition not loaded"):
        client.query(name, "id > 0", partition_names=["b"])


def test_more_replicas_than_nodes_are_refused(client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    with pytest.raises(Exception) as caught:
        client.load_collection(name, replica_number=3)
    assert "replica" in str(caught.value) or "resource" in str(caught.value)


def test_a_function_declared_wrongly_is_refused(client, name):
    fields = [KEY, ("t", DataType.VARCHAR, {"max_length": 99}), vector(64)]
    ghost = Function(
        name="f",
        function_type=FunctionType.TEXTEMBEDDING,
        input_field_names=["ghost"],
        output_field_names=["v"],
        params={"provider": "bge-m3"},
    )
    with pytest.raises(MilvusException):
        client.create_collection(name, schema=schema(*fields, functions=[ghost]))
    wrong = Function(
        name="f",
        function_type=FunctionType.TEXTEMBEDDING,
        input_field_names=["t"],
        output_field_names=["v"],
        params={"provider": "no_such_provider"},
    )
    with refused(1100, "unsupported text embedding service provider: [no_such_provider]"):
        client.create_collection(name, schema=schema(*fields, functions=[wrong]))


def test_struct_arrays_are_refused_clearly(wire, name):
    struct = schema_pb.StructArrayFieldSchema(name="s", fields=[field("a", DataType.INT64)])
    answer = raw_create(wire, name, PK, VEC, struct_array_fields=[struct])
    assert answer.code in (10, 1100) and "struct" in answer.reason.lower()


def test_column_names_of_partitions_are_kept_per_collection(wire, client, name):
    simple(client, name)
    client.create_partition(name, "p")
    shown = ok(wire.ShowPartitions(pb.ShowPartitionsRequest(collection_name=name)))
    assert list(shown.partition_names) == ["_default", "p"]
    assert len(set(shown.partitionIDs)) == 2 and all(shown.created_utc_timestamps)
