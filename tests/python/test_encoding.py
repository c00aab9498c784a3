"""How rows travel, to the byte (contract §3)."""

import numpy as np
import pytest
from pymilvus import DataType

from helpers import (
    KEY,
    assert_status,
    column,
    create,
    floats,
    ok,
    pairs,
    pb,
    placeholder,
    refused,
    schema,
    schema_pb,
    search_request,
    simple,
    sparse_bytes,
    vector,
)

SCALARS = [
    ("b", DataType.BOOL, True),
    ("i8", DataType.INT8, -128),
    ("i16", DataType.INT16, 32767),
    ("i32", DataType.INT32, -(2**31)),
    ("i64", DataType.INT64, 2**63 - 1),
    ("f", DataType.FLOAT, 1.5),
    ("d", DataType.DOUBLE, 1e300),
    ("t", DataType.VARCHAR, "käse\u0000 🧀"),
    ("j", DataType.JSON, {"a": [1, None, {"b": "c"}], "ü": 2.5}),
    ("ai", DataType.ARRAY, [1, 2, 3]),
    ("at", DataType.ARRAY, ["x", ""]),
    ("ab", DataType.ARRAY, [True, False]),
    ("af", DataType.ARRAY, [0.5]),
    ("ad", DataType.ARRAY, []),
]
OPTIONS = {
    "t": {"max_length": 50},
    "ai": {"element_type": DataType.INT64, "max_capacity": 5},
    "at": {"element_type": DataType.VARCHAR, "max_capacity": 5, "max_length": 10},
    "ab": {"element_type": DataType.BOOL, "max_capacity": 5},
    "af": {"element_type": DataType.FLOAT, "max_capacity": 5},
    "ad": {"element_type": DataType.DOUBLE, "max_capacity": 5},
}


def scalar_fields(nullable=False):
    return [
        (n, kind, {**OPTIONS.get(n, {}), **({"nullable": True} if nullable else {})})
        for n, kind, _ in SCALARS
    ]


def raw_insert(wire, name, rows, *columns, upsert=False):
    request = (pb.UpsertRequest if upsert else pb.InsertRequest)(
        collection_name=name, fields_data=columns, num_rows=rows
    )
    return (wire.Upsert if upsert else wire.Insert)(request)


def raw_query(wire, name, expr, fields, **params):
    return ok(
        wire.Query(
            pb.QueryRequest(
                collection_name=name,
                expr=expr,
                output_fields=fields,
                use_default_consistency=True,
                query_params=pairs(**params),
            )
        )
    )


def by_name(answer):
    return {field.field_name: field for field in answer.fields_data}


@pytest.mark.parametrize("flushed", [False, True], ids=["growing", "sealed"])
def test_every_scalar_type_comes_back_as_it_went_in(client, name, flushed):
    create(client, name, schema(KEY, *scalar_fields(), vector()), ("v", "FLAT", "L2"))
    row = {n: value for n, _, value in SCALARS}
    client.insert(name, [{"id": 1, **row, "v": [1, 2, 3, 4]}])
    if flushed:
        client.flush(name)
    found = client.query(name, "id == 1", output_fields=["*"])[0]
    assert {k: v for k, v in found.items() if k in row} == row
    hit = client.search(name, [[1, 2, 3, 4]], limit=1, output_fields=["*"])[0][0]
    assert {k: v for k, v in hit["entity"].items() if k in row} == row


@pytest.mark.parametrize("flushed", [False, True], ids=["growing", "sealed"])
def test_nulls_of_every_scalar_type_come_back_as_nulls(client, name, flushed):
    create(client, name, schema(KEY, *scalar_fields(nullable=True), vector()), ("v", "FLAT", "L2"))
    row = {n: value for n, _, value in SCALARS}
    rows = [
        {"id": 1, **row, "v": [1, 0, 0, 0]},
        {"id": 2, **dict.fromkeys(row), "v": [2, 0, 0, 0]},
        {"id": 3, "v": [3, 0, 0, 0]},
        {"id": 4, **row, "v": [4, 0, 0, 0]},
    ]
    client.insert(name, rows)
    if flushed:
        client.flush(name)
    found = client.query(name, "id > 0", output_fields=["*"])
    assert [f["t"] for f in found] == [row["t"], None, None, row["t"]]
    for key in row:
        assert [f[key] for f in found] == [row[key], None, None, row[key]], key
    hits = client.search(name, [[0, 0, 0, 0]], limit=4, output_fields=["i64", "t"])[0]
    assert [h["entity"]["i64"] for h in hits] == [row["i64"], None, None, row["i64"]]


# ---- nulls on the wire: the asymmetric rule (3.2)


def test_golden_bytes_of_a_compact_request_and_a_dense_answer_of_scalars(wire, client, name):
    simple(client, name, extra=[("n", DataType.INT64, {"nullable": True})])
    ok(
        raw_insert(
            wire,
            name,
            4,
            column("id", DataType.INT64, long_data=[1, 2, 3, 4]),
            column("n", DataType.INT64, long_data=[10, 40], valid=[True, False, False, True]),
            column("v", DataType.FLOAT_VECTOR, float_vector=range(16), dim=4),
        )
    )
    answer = by_name(raw_query(wire, name, "id > 0", ["n"]))["n"]
    assert list(answer.valid_data) == [True, False, False, True]
    assert answer.SerializeToString(deterministic=True)[:2] == b"\x08\x05"  # type 5, INT64
    values = list(answer.scalars.long_data.data)
    assert len(values) == 4, "scalars are dense in an answer"
    assert (values[0], values[3]) == (10, 40)


def test_golden_bytes_of_compact_vectors_both_ways(wire, client, name):
    create(
        client,
        name,
        schema(KEY, vector(2), vector(2, "w", nullable=True)),
        ("v", "FLAT", "L2"),
        ("w", "FLAT", "L2"),
    )
    ok(
        raw_insert(
            wire,
            name,
            4,
            column("id", DataType.INT64, long_data=[1, 2, 3, 4]),
            column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 8, dim=2),
            column(
                "w", DataType.FLOAT_VECTOR, float_vector=[1, 2, 7, 8], dim=2, valid=[True, False, False, True]
            ),
        )
    )
    answer = by_name(raw_query(wire, name, "id > 0", ["w"]))["w"]
    assert list(answer.valid_data) == [True, False, False, True]
    assert answer.vectors.dim == 2
    assert list(answer.vectors.float_vector.data) == [1, 2, 7, 8], "null rows are left out"
    rows = client.query(name, "id > 0", output_fields=["w"])
    assert [r["w"] for r in rows] == [[1, 2], None, None, [7, 8]]
    # Rows without a vector are no hits of it.
    assert {h.id for h in client.search(name, [[0, 0]], anns_field="w", limit=9)[0]} == {1, 4}


def test_a_dense_request_of_other_clients_is_understood(wire, client, name):
    create(
        client,
        name,
        schema(KEY, vector(2), vector(2, "w", nullable=True), ("n", DataType.INT64, {"nullable": True})),
        ("v", "FLAT", "L2"),
        ("w", "FLAT", "L2"),
    )
    valid = [True, False, True]
    ok(
        raw_insert(
            wire,
            name,
            3,
            column("id", DataType.INT64, long_data=[1, 2, 3]),
            column("n", DataType.INT64, long_data=[10, 0, 30], valid=valid),
            column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 6, dim=2),
            column("w", DataType.FLOAT_VECTOR, float_vector=[1, 1, 0, 0, 3, 3], dim=2, valid=valid),
        )
    )
    rows = client.query(name, "id > 0", output_fields=["n", "w"])
    assert [(r["n"], r["w"]) for r in rows] == [(10, [1, 1]), (None, None), (30, [3, 3])]


def test_a_column_of_another_length_than_rows_or_valid_rows_is_refused(wire, client, name):
    simple(client, name, extra=[("n", DataType.INT64, {"nullable": True})])
    answer = raw_insert(
        wire,
        name,
        3,
        column("id", DataType.INT64, long_data=[1, 2, 3]),
        column("n", DataType.INT64, long_data=[1, 2, 3, 4], valid=[True, False, True]),
        column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 12, dim=4),
    )
    assert_status(answer.status, 1100, None, "num_rows", "n")


def test_a_default_is_used_where_a_row_is_not_valid_and_goes_before_null(client, name):
    simple(
        client,
        name,
        extra=[
            ("a", DataType.INT64, {"default_value": 5}),
            ("b", DataType.VARCHAR, {"max_length": 9, "default_value": "dflt", "nullable": True}),
            ("c", DataType.BOOL, {"nullable": True}),
        ],
    )
    client.insert(
        name,
        [
            {"id": 1, "v": [0] * 4},
            {"id": 2, "a": 6, "b": "x", "c": True, "v": [0] * 4},
            {"id": 3, "a": None, "b": None, "c": None, "v": [0] * 4},
        ],
    )
    rows = client.query(name, "id > 0", output_fields=["a", "b", "c"])
    assert [(r["a"], r["b"], r["c"]) for r in rows] == [(5, "dflt", None), (6, "x", True), (5, "dflt", None)]


@pytest.mark.parametrize(
    "default, kind, options",
    [
        (True, DataType.BOOL, {}),
        (np.int8(-5), DataType.INT8, {}),
        (-6, DataType.INT8, {}),  # travels as a 64-bit number
        (np.int16(300), DataType.INT16, {}),
        (np.int32(70_000), DataType.INT32, {}),
        (2**40, DataType.INT64, {}),
        (0.5, DataType.FLOAT, {}),
        (0.1, DataType.DOUBLE, {}),
        ("é", DataType.VARCHAR, {"max_length": 5}),
    ],
)
def test_defaults_of_every_type(client, name, default, kind, options):
    simple(client, name, extra=[("x", kind, {"default_value": default, **options})])
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    assert client.query(name, "id == 1", output_fields=["x"])[0]["x"] == default


# ---- sparse rows (3.3)

SPARSE = {0: 0.5, 7: 2.0, 4_294_967_294: 1.0}
GOLDEN_SPARSE = bytes.fromhex("000000000000003f0700000000000040feffffff0000803f")


def sparse_collection(client, name):
    create(
        client, name, schema(KEY, ("s", DataType.SPARSE_FLOAT_VECTOR)), ("s", "SPARSE_INVERTED_INDEX", "IP")
    )


def test_golden_bytes_of_a_sparse_row(wire, client, name):
    sparse_collection(client, name)
    assert sparse_bytes(SPARSE) == GOLDEN_SPARSE
    client.insert(name, [{"id": 1, "s": SPARSE}])
    data = by_name(raw_query(wire, name, "id == 1", ["s"]))["s"].vectors
    assert list(data.sparse_float_vector.contents) == [GOLDEN_SPARSE]
    assert client.query(name, "id == 1", output_fields=["s"])[0]["s"] == SPARSE


def test_an_unsorted_sparse_row_is_sorted_and_a_double_index_refused(wire, client, name):
    sparse_collection(client, name)
    records = [GOLDEN_SPARSE[i : i + 8] for i in (16, 0, 8)]
    ok(
        raw_insert(
            wire,
            name,
            1,
            column("id", DataType.INT64, long_data=[1]),
            column("s", DataType.SPARSE_FLOAT_VECTOR, sparse_float_vector=[b"".join(records)], dim=8),
        )
    )
    data = by_name(raw_query(wire, name, "id == 1", ["s"]))["s"].vectors
    assert list(data.sparse_float_vector.contents) == [GOLDEN_SPARSE]
    twice = GOLDEN_SPARSE[:8] * 2
    for bad in (
        twice,
        GOLDEN_SPARSE[:7],
        bytes.fromhex("ffffffff0000803f"),
        bytes.fromhex("010000000000c07f"),
        bytes.fromhex("010000000000807f"),
    ):
        answer = raw_insert(
            wire,
            name,
            1,
            column("id", DataType.INT64, long_data=[2]),
            column("s", DataType.SPARSE_FLOAT_VECTOR, sparse_float_vector=[bad], dim=8),
        )
        assert_status(answer.status, 1100)
    assert client.query(name, "id == 2") == []


def test_an_empty_sparse_row_is_legal_and_never_a_hit(client, name):
    sparse_collection(client, name)
    client.insert(name, [{"id": 1, "s": {}}, {"id": 2, "s": {3: 1.0}}, {"id": 3, "s": {4: 1.0}}])
    assert client.query(name, "id == 1", output_fields=["s"])[0]["s"] == {}
    hits = client.search(name, [{3: 2.0}], anns_field="s", limit=5, search_params={"metric_type": "IP"})
    assert [(h.id, h.distance) for h in hits[0]] == [(2, 2.0)]


# ---- the dynamic field (3.4)


def test_dynamic_keys_come_and_go_as_columns(wire, client, name):
    simple(client, name, extra=[("n", DataType.INT64)], dynamic=True)
    client.insert(
        name,
        [
            {"id": 1, "n": 5, "v": [0] * 4, "color": "red", "deep": {"a": [1, 2]}},
            {"id": 2, "n": 6, "v": [1] * 4},
        ],
    )
    rows = client.query(name, "id > 0", output_fields=["*"])
    assert rows[0]["color"] == "red" and rows[0]["deep"] == {"a": [1, 2]}
    assert "color" not in rows[1] and "$meta" not in rows[1]
    assert list(client.query(name, 'color == "red"', output_fields=["color"])) == [{"id": 1, "color": "red"}]
    answer = raw_query(wire, name, "id == 1", ["color"])
    meta = by_name(answer)["$meta"]
    assert meta.is_dynamic and meta.type == DataType.JSON
    assert "color" in answer.output_fields
    hit = client.search(name, [[0] * 4], limit=1, output_fields=["n", "color"])[0][0]
    assert hit["entity"] == {"n": 5, "color": "red"}


def test_dynamic_columns_of_clients_that_leave_the_name_empty(wire, client, name):
    simple(client, name, dynamic=True)
    meta = column("", DataType.JSON, json_data=[b'{"k":1}'])
    meta.is_dynamic = True
    ok(
        raw_insert(
            wire,
            name,
            1,
            column("id", DataType.INT64, long_data=[1]),
            column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 4, dim=4),
            meta,
        )
    )
    assert list(client.query(name, "k == 1", output_fields=["k"])) == [{"id": 1, "k": 1}]


@pytest.mark.parametrize("json", [b"[1]", b"1", b"null", b"{", b'{"v":1}', b'{"$meta":1}', b"\xff"])
def test_dynamic_columns_hold_objects_without_the_names_of_fields(wire, client, name, json):
    simple(client, name, dynamic=True)
    meta = column("$meta", DataType.JSON, json_data=[json])
    meta.is_dynamic = True
    answer = raw_insert(
        wire,
        name,
        1,
        column("id", DataType.INT64, long_data=[1]),
        column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 4, dim=4),
        meta,
    )
    assert_status(answer.status, 1100)


# ---- query vectors (3.6)


def test_golden_bytes_of_a_placeholder_group():
    group = floats([[1.0, -2.0]])
    assert group == bytes.fromhex("0a100a02243010651a080000803f000000c0")


def test_queries_without_a_count_are_counted(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(5)])
    request = search_request(name, [[0, 0, 0, 0], [4, 0, 0, 0]], limit=2, nq=0)
    data = ok(wire.Search(request)).results
    assert (data.num_queries, list(data.topks)) == (2, [2, 2])
    assert list(data.ids.int_id.data) == [0, 1, 4, 3]


def test_float_queries_search_half_precision_fields(client, name):
    rng = np.random.default_rng(3)
    data = rng.standard_normal((20, 8)).astype(np.float32)
    create(client, name, schema(KEY, ("h", DataType.FLOAT16_VECTOR, {"dim": 8})), ("h", "FLAT", "L2"))
    client.insert(name, [{"id": i, "h": row.astype(np.float16)} for i, row in enumerate(data)])
    hits = client.search(name, [data[7].tolist()], limit=1)[0]
    assert hits[0].id == 7


@pytest.mark.parametrize(
    "kind, value, text",
    [
        (101, b"\0" * 12, "dimension"),
        (104, GOLDEN_SPARSE, ""),
        (100, b"\0", ""),
        (21, b"words", ""),
        (5, b"\0" * 8, ""),
    ],
)
def test_a_query_of_another_kind_than_the_field_is_refused(wire, client, name, kind, value, text):
    simple(client, name)
    request = search_request(name, [[0] * 4])
    request.placeholder_group = placeholder(kind, [value])
    assert_status(wire.Search(request).status, 1100, None, text)


def test_search_by_primary_keys(client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(10)])
    found = client.search(name, ids=[3, 8], limit=2, anns_field="v")
    assert [[h.id for h in hits] for hits in found] == [[3, 2], [8, 7]]
    with refused(1100):
        client.search(name, ids=[3, 99], limit=2, anns_field="v")


def test_search_by_text_keys(client, name):
    create(client, name, schema(("id", DataType.VARCHAR, {"max_length": 9}), vector()), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": f"k{i}", "v": [i, 0, 0, 0]} for i in range(10)])
    assert client.search(name, ids=["k5"], limit=1, anns_field="v")[0][0].id == "k5"


# ---- results (3.10–3.12)


def test_layout_of_search_results(wire, client, name):
    simple(client, name, extra=[("n", DataType.INT64)])
    client.insert(name, [{"id": i, "n": -i, "v": [i, 0, 0, 0]} for i in range(3)])
    request = search_request(name, [[0] * 4, [2, 0, 0, 0]], limit=5, output_fields=["n"], dsl="id < 2")
    answer = ok(wire.Search(request))
    data = answer.results
    assert answer.collection_name == name and answer.session_ts > 0
    assert (data.num_queries, data.top_k, list(data.topks)) == (2, 2, [2, 2])
    assert list(data.ids.int_id.data) == [0, 1, 1, 0]
    assert list(data.scores) == [0, 1, 1, 4]
    assert list(data.output_fields) == ["n"] and data.primary_field_name == "id"
    (field,) = data.fields_data
    assert (field.field_name, field.type, field.field_id > 0) == ("n", DataType.INT64, True)
    assert list(field.scalars.long_data.data) == [0, -1, -1, 0]
    assert not data.distances


def test_a_search_without_hits_still_has_its_shape(wire, client, name):
    simple(client, name)
    data = ok(wire.Search(search_request(name, [[0] * 4] * 3, output_fields=["v"]))).results
    assert list(data.topks) == [0, 0, 0]
    assert data.ids.WhichOneof("id_field") == "int_id"
    assert client.search(name, [[0] * 4] * 3, output_fields=["*"]) == [[], [], []]


def test_layout_of_a_mutation_result(wire, client, name):
    simple(client, name)
    columns = (
        column("id", DataType.INT64, long_data=[5, 3, 4]),
        column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 12, dim=4),
    )
    answer = ok(raw_insert(wire, name, 3, *columns))
    assert list(answer.IDs.int_id.data) == [5, 3, 4]
    assert list(answer.succ_index) == [0, 1, 2] and not answer.err_index
    assert (answer.insert_cnt, answer.timestamp > 0) == (3, True)
    assert not answer.status.extra_info
    assert ok(raw_insert(wire, name, 3, *columns, upsert=True)).upsert_cnt == 3


def test_keys_of_both_kinds_choose_their_arm(wire, client, name):
    create(client, name, schema(("id", DataType.VARCHAR, {"max_length": 9}), vector()), ("v", "FLAT", "L2"))
    answer = ok(
        raw_insert(
            wire,
            name,
            1,
            column("id", DataType.VARCHAR, string_data=["a"]),
            column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 4, dim=4),
        )
    )
    assert list(answer.IDs.str_id.data) == ["a"]
    data = ok(wire.Search(search_request(name, [[0] * 4], dsl='id == "none"'))).results
    assert data.ids.WhichOneof("id_field") == "str_id"


def test_key_value_parameters_may_come_flat_nested_or_both(wire, client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(9)])
    for params in (
        {"params": '{"radius": "10"}'},
        {"params": '{"radius": 10, "nprobe": "7"}'},
        {"radius": 10},
        {"params": "", "radius": "10.0", "unheard_of": "x"},
    ):
        data = ok(wire.Search(search_request(name, [[0] * 4], params=params))).results
        assert list(data.scores) == [0, 1, 4, 9], params
    bad = wire.Search(search_request(name, [[0] * 4], params={"params": "{"}))
    assert_status(bad.status, 1100)


def test_template_values_of_every_kind(wire, client, name):
    simple(
        client,
        name,
        extra=[
            ("t", DataType.VARCHAR, {"max_length": 9}),
            ("d", DataType.DOUBLE),
            ("b", DataType.BOOL),
            ("j", DataType.JSON),
        ],
    )
    client.insert(
        name,
        [{"id": i, "t": f"t{i}", "d": i / 2, "b": i % 2 == 0, "j": {"x": i}, "v": [0] * 4} for i in range(6)],
    )

    def found(expr, **params):
        return [r["id"] for r in client.query(name, expr, filter_params=params, output_fields=["id"])]

    assert found("id == {x}", x=3) == [3]
    assert found("d > {x}", x=1.9) == [4, 5]
    assert found("t == {x}", x="t1") == [1]
    assert found("b == {x}", x=True) == [0, 2, 4]
    assert found("id in {x}", x=[1, 2, 99]) == [1, 2]
    assert found("t in {x}", x=["t0", "t5"]) == [0, 5]
    assert found("d in {x}", x=[0.5, 1.0]) == [1, 2]
    assert found('j["x"] in {x}', x=[1, 5]) == [1, 5]
    assert found("id in {x}", x=[]) == []


def test_answers_name_fields_by_id_as_well(wire, client, name):
    simple(client, name, extra=[("n", DataType.INT64)])
    client.insert(name, [{"id": 1, "n": 1, "v": [0] * 4}])
    described = ok(wire.DescribeCollection(pb.DescribeCollectionRequest(collection_name=name)))
    expected = {f.name: f.fieldID for f in described.schema.fields}
    answer = raw_query(wire, name, "id == 1", ["n", "v"])
    assert {f.field_name: f.field_id for f in answer.fields_data} == expected


def test_what_newer_clients_send_for_nulls_is_read(wire, client, name):
    """`valid_data` inside ScalarField (17), unknown to this pymilvus: appended as raw bytes."""
    simple(client, name, extra=[("n", DataType.INT64, {"nullable": True})])
    inner = schema_pb.ScalarField(long_data=schema_pb.LongArray(data=[7])).SerializeToString()
    inner += bytes.fromhex("8a0103000100")  # field 17, packed: false, true, false
    field = schema_pb.FieldData(type=5, field_name="n").SerializeToString()
    field += b"\x1a" + bytes([len(inner)]) + inner
    request = pb.InsertRequest(
        collection_name=name,
        num_rows=3,
        fields_data=[
            column("id", DataType.INT64, long_data=[1, 2, 3]),
            column("v", DataType.FLOAT_VECTOR, float_vector=[0] * 12, dim=4),
        ],
    ).SerializeToString()
    request += b"\x2a" + bytes([len(field)]) + field
    ok(wire.Insert(pb.InsertRequest.FromString(request)))
    rows = client.query(name, "id > 0", output_fields=["n"])
    assert [r["n"] for r in rows] == [None, 7, None]
