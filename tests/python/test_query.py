"""Query, get, count (contract §6.5)."""

import pytest
from pymilvus import DataType

from helpers import assert_status, create, ok, pairs, pb, refused, schema, simple, vector


@pytest.fixture
def rows(client, name):
    """Rows 0..99 inserted in a scattered order, half of them sealed."""
    simple(client, name, extra=[("n", DataType.INT64)])
    order = [(i * 37) % 100 for i in range(100)]
    client.insert(name, [{"id": i, "n": 100 - i, "v": [i, 0, 0, 0]} for i in order[:50]])
    client.flush(name)
    client.insert(name, [{"id": i, "n": 100 - i, "v": [i, 0, 0, 0]} for i in order[50:]])
    return name


def test_rows_come_in_ascending_order_of_the_key(client, rows):
    assert [r["id"] for r in client.query(rows, "id >= 0")] == list(range(100))
    assert [r["id"] for r in client.query(rows, "n > 50", limit=3, offset=2)] == [2, 3, 4]
    assert client.query(rows, "id >= 0", limit=5, offset=100) == []


def test_text_keys_are_ordered_as_text(client, name):
    create(client, name, schema(("id", DataType.VARCHAR, {"max_length": 9}), vector()), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": str(i), "v": [0] * 4} for i in range(20)])
    assert [r["id"] for r in client.query(name, 'id != ""')] == sorted(map(str, range(20)))


def test_get_returns_rows_by_key(client, rows):
    found = client.get(rows, ids=[7, 3, 500], output_fields=["n"])
    assert found == [{"id": 3, "n": 97}, {"id": 7, "n": 93}]
    assert client.get(rows, ids=[]) == []


def test_the_key_is_always_there_and_star_is_all(client, wire, rows):
    assert client.query(rows, "id == 1", output_fields=["n"]) == [{"id": 1, "n": 99}]
    assert list(client.query(rows, "id == 1")) == [{"id": 1, "n": 99, "v": [1, 0, 0, 0]}]
    answer = ok(wire.Query(pb.QueryRequest(collection_name=rows, expr="id == 1")))
    assert [f.field_name for f in answer.fields_data] == ["id"]
    assert answer.primary_field_name == "id" and answer.session_ts > 0


def test_a_query_without_a_filter_needs_a_limit(client, wire, rows):
    with refused(1100, "empty expression should be used with limit"):
        client.query(rows, filter="")
    assert [r["id"] for r in client.query(rows, filter="", limit=2)] == [0, 1]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": -2},
        {"limit": 16385},
        {"limit": 10, "offset": 16380},
        {"limit": 5, "offset": -1},
        {"limit": "x"},
    ],
)
def test_pages_out_of_range(wire, rows, params):
    answer = wire.Query(pb.QueryRequest(collection_name=rows, expr="id >= 0", query_params=pairs(**params)))
    assert_status(answer.status, 1100)


def test_a_limit_of_minus_one_is_no_limit(wire, rows):
    answer = ok(
        wire.Query(pb.QueryRequest(collection_name=rows, expr="id >= 0", query_params=pairs(limit=-1)))
    )
    assert len(answer.fields_data[0].scalars.long_data.data) == 100


def test_count(client, rows):
    def count(filter=""):
        return client.query(rows, filter, output_fields=["count(*)"])

    assert count() == [{"count(*)": 100}]
    assert count("id < 30") == [{"count(*)": 30}]
    assert count("id < 0") == [{"count(*)": 0}]
    client.delete(rows, ids=[0, 1])
    assert count() == [{"count(*)": 98}]
    with refused(1100, "count entities with pagination is not allowed"):
        client.query(rows, "id > 0", output_fields=["count(*)"], limit=5)


def test_counting_rows_with_nulls_counts_them(client, name):
    simple(client, name, extra=[("n", DataType.INT64, {"nullable": True})])
    client.insert(name, [{"id": i, "n": None, "v": [0] * 4} for i in range(4)])
    assert client.query(name, output_fields=["count(*)"])[0]["count(*)"] == 4


def test_what_is_not_done_is_refused_clearly(wire, rows):
    for params in ({"group_by_fields": "n"}, {"order_by_fields": "n:desc", "limit": 3}):
        answer = wire.Query(
            pb.QueryRequest(
                collection_name=rows, expr="id >= 0", output_fields=["n"], query_params=pairs(**params)
            )
        )
        values = [list(f.scalars.long_data.data) for f in answer.fields_data if f.field_name == "n"]
        done = params.get("order_by_fields") and values and values[0] == [100, 99, 98]
        assert answer.status.code in (10, 1100) or done, "neither refused nor done"


def test_an_empty_answer_has_columns(client, wire, rows):
    assert client.query(rows, "id < 0", output_fields=["*"]) == []
    answer = ok(wire.Query(pb.QueryRequest(collection_name=rows, expr="id < 0", output_fields=["*"])))
    columns = {f.field_name: f for f in answer.fields_data}
    assert set(columns) == {"id", "n", "v"}
    assert columns["n"].scalars.WhichOneof("data") == "long_data"
    assert columns["v"].vectors.dim == 4
