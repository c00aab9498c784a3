"""Insert, upsert, delete (contract §5)."""

import pytest
from pymilvus import DataType

from helpers import KEY, assert_status, column, create, indexes, ok, pb, refused, schema, simple, vector

INT64, VEC = DataType.INT64, DataType.FLOAT_VECTOR


def count(client, name):
    return client.query(name, output_fields=["count(*)"])[0]["count(*)"]


def raw(wire, name, rows, *columns):
    return wire.Insert(pb.InsertRequest(collection_name=name, fields_data=columns, num_rows=rows))


@pytest.fixture
def numbers(client, name):
    """Rows 0..9 with n = 10 * id."""
    simple(client, name, extra=[("n", INT64)])
    client.insert(name, [{"id": i, "n": 10 * i, "v": [i, 0, 0, 0]} for i in range(10)])
    return name


KEYS = column("id", INT64, long_data=[1, 2])
NS = column("n", INT64, long_data=[1, 2])
VS = column("v", VEC, float_vector=[0] * 8, dim=4)

BAD_INSERTS = {
    "no rows": (0, [KEYS, NS, VS], "num_rows should be greater than 0"),
    "missing column": (2, [KEYS, VS], "fieldSchema(n) has no corresponding fieldData pass in"),
    "extra column": (2, [KEYS, NS, VS, column("x", INT64, long_data=[1, 2])], "x"),
    "short column": (
        2,
        [KEYS, column("n", INT64, long_data=[1]), VS],
        "the num_rows (1) of field (n) is not equal to passed num_rows (2)",
    ),
    "other dimension": (
        2,
        [KEYS, NS, column("v", VEC, float_vector=[0] * 10, dim=5)],
        "the dim (5) of field data(v) is not equal to schema dim (4)",
    ),
    "other type": (2, [KEYS, column("n", DataType.VARCHAR, string_data=["a", "b"]), VS], "n"),
    "not a number": (
        2,
        [KEYS, NS, column("v", VEC, float_vector=[float("nan")] * 8, dim=4)],
        "is not a number or infinity",
    ),
    "infinity": (
        2,
        [KEYS, NS, column("v", VEC, float_vector=[float("inf")] * 8, dim=4)],
        "is not a number or infinity",
    ),
}


@pytest.mark.parametrize("rows, columns, text", BAD_INSERTS.values(), ids=BAD_INSERTS.keys())
def test_inserts_that_do_not_fit_are_refused_as_a_whole(wire, client, numbers, rows, columns, text):
    assert_status(raw(wire, numbers, rows, *columns).status, 1100, 5, text)
    assert count(client, numbers) == 10


def test_values_that_do_not_fit_are_refused(client, name):
    simple(
        client,
        name,
        extra=[
            ("t", DataType.VARCHAR, {"max_length": 4, "nullable": True}),
            ("a", DataType.ARRAY, {"element_type": INT64, "max_capacity": 2, "nullable": True}),
            ("j", DataType.JSON, {"nullable": True}),
            ("f", DataType.FLOAT, {"nullable": True}),
        ],
    )

    def insert(**values):
        client.insert(name, [{"id": 1, "v": [0] * 4, **values}])

    with refused(1100, "exceeds max length"):
        insert(t="12345")
    with refused(1100, "max length"):
        insert(t="ßßß")  # six bytes
    with refused(1100):
        insert(a=[1, 2, 3])
    with refused(1100):
        insert(j={"x": "y" * 70_000})
    with refused(1100, "is not a number or infinity"):
        insert(f=float("nan"))
    insert(t="ßß", a=[1, 2], j={"x": 1}, f=1.0)
    assert count(client, name) == 1


@pytest.mark.parametrize("kind, low, high", [(DataType.INT8, -128, 127), (DataType.INT16, -32768, 32767)])
def test_small_integers_are_checked(wire, client, name, kind, low, high):
    simple(client, name, extra=[("x", kind)])

    def insert(value):
        return raw(
            wire,
            name,
            1,
            column("id", INT64, long_data=[1]),
            column("x", kind, int_data=[value]),
            column("v", VEC, float_vector=[0] * 4, dim=4),
        ).status

    assert insert(low).code == insert(high).code == 0
    assert insert(low - 1).code == insert(high + 1).code == 1100


def test_a_key_cannot_be_given_where_ids_are_made(wire, client, name):
    create(client, name, schema(KEY, vector(), auto_id=True), ("v", "FLAT", "L2"))
    answer = raw(wire, name, 2, KEYS, VS)
    assert_status(answer.status, 1100, 5, "can not assign primary field data when auto id enabled")
    client.alter_collection_properties(name, {"allow_insert_auto_id": "true"})
    answer = ok(raw(wire, name, 2, KEYS, VS))
    assert list(answer.IDs.int_id.data) == [1, 2]


def test_inserting_a_key_again_replaces_the_row(client, numbers):
    client.insert(numbers, [{"id": 3, "n": 333, "v": [9, 9, 9, 9]}])
    assert count(client, numbers) == 10
    assert client.query(numbers, "id == 3", output_fields=["n"]) == [{"id": 3, "n": 333}]
    hits = client.search(numbers, [[3, 0, 0, 0]], limit=10)[0]
    assert [h.id for h in hits][-1] == 3 and len(hits) == 10
    client.flush(numbers)
    client.insert(numbers, [{"id": 3, "n": 334, "v": [9, 9, 9, 9]}])
    assert client.query(numbers, "n >= 333", output_fields=["n"]) == [{"id": 3, "n": 334}]


def test_of_a_key_twice_in_one_batch_the_last_stays(client, name):
    simple(client, name, extra=[("n", INT64)])
    answer = client.insert(name, [{"id": 1, "n": 1, "v": [0] * 4}, {"id": 1, "n": 2, "v": [0] * 4}])
    assert list(answer["ids"]) == [1, 1]
    assert client.query(name, "id == 1", output_fields=["n"]) == [{"id": 1, "n": 2}]
    assert count(client, name) == 1


@pytest.mark.parametrize("flushed", [False, True])
def test_upsert_replaces_a_row_as_a_whole(client, name, flushed):
    simple(client, name, extra=[("n", INT64, {"nullable": True}), ("d", INT64, {"default_value": 5})])
    client.insert(name, [{"id": 1, "n": 1, "d": 1, "v": [1] * 4}])
    if flushed:
        client.flush(name)
    answer = client.upsert(name, [{"id": 1, "v": [2] * 4}, {"id": 2, "n": 2, "v": [3] * 4}])
    assert answer["upsert_count"] == 2 and list(answer["ids"]) == [1, 2]
    rows = client.query(name, "id > 0", output_fields=["n", "d", "v"])
    assert list(rows) == [{"id": 1, "n": None, "d": 5, "v": [2] * 4}, {"id": 2, "n": 2, "d": 5, "v": [3] * 4}]


def test_partial_update_changes_only_what_is_given(client, name):
    simple(client, name, extra=[("n", INT64), ("t", DataType.VARCHAR, {"max_length": 9})], dynamic=True)
    client.insert(
        name,
        [
            {"id": 1, "n": 1, "t": "one", "v": [1] * 4, "x": 1, "y": 2},
            {"id": 2, "n": 2, "t": "two", "v": [2] * 4},
        ],
    )
    client.upsert(name, [{"id": 1, "n": 100}], partial_update=True)
    client.upsert(name, [{"id": 1, "y": 3}], partial_update=True)
    row = client.query(name, "id == 1", output_fields=["*"])[0]
    assert (row["n"], row["t"], row["v"], row["x"], row["y"]) == (100, "one", [1] * 4, 1, 3)
    # A key that is not there is inserted, and then everything is needed.
    with refused(1100):
        client.upsert(name, [{"id": 9, "n": 9}], partial_update=True)
    assert count(client, name) == 2


def test_upsert_needs_the_key(wire, client, name):
    simple(client, name)
    answer = wire.Upsert(pb.UpsertRequest(collection_name=name, fields_data=[VS], num_rows=2))
    assert_status(answer.status, 1100, 5)


def test_upsert_of_a_made_key_makes_a_new_one(client, name):
    create(client, name, schema(KEY, vector(), auto_id=True), ("v", "FLAT", "L2"))
    old = client.insert(name, [{"v": [1] * 4}])["ids"][0]
    new = client.upsert(name, [{"id": old, "v": [2] * 4}])["ids"][0]
    rows = client.query(name, filter="", limit=5, output_fields=["v"])
    assert list(rows) == [{"id": new, "v": [2] * 4}] and new != old


@pytest.mark.parametrize("flushed", [False, True])
def test_delete_by_keys_counts_requests(client, numbers, flushed):
    if flushed:
        client.flush(numbers)
    assert client.delete(numbers, ids=[1, 2, 77]) == {"delete_count": 3, "cost": 0}
    assert [r["id"] for r in client.query(numbers, "id >= 0")] == [0, 3, 4, 5, 6, 7, 8, 9]
    assert 1 not in {h.id for h in client.search(numbers, [[1, 0, 0, 0]], limit=10)[0]}


@pytest.mark.parametrize("flushed", [False, True])
def test_delete_by_expression_counts_matches(client, numbers, flushed):
    if flushed:
        client.flush(numbers)
    assert client.delete(numbers, filter="n >= 70 and id < 100")["delete_count"] == 3
    assert count(client, numbers) == 7
    assert client.delete(numbers, filter="n in {list}", filter_params={"list": [0, 10]})["delete_count"] == 2
    assert [r["id"] for r in client.query(numbers, "id >= 0")] == [2, 3, 4, 5, 6]


def test_a_deleted_key_can_come_back(client, numbers):
    client.delete(numbers, ids=[4])
    client.insert(numbers, [{"id": 4, "n": 1, "v": [0] * 4}])
    client.flush(numbers)
    assert client.query(numbers, "id == 4", output_fields=["n"]) == [{"id": 4, "n": 1}]
    client.delete(numbers, ids=[4])
    client.insert(numbers, [{"id": 4, "n": 2, "v": [0] * 4}])
    assert client.query(numbers, "id == 4", output_fields=["n"]) == [{"id": 4, "n": 2}]


@pytest.mark.parametrize("expr", ["", " ", "true", "1 == 1"])
def test_deleting_everything_by_accident_is_refused(wire, client, numbers, expr):
    answer = wire.Delete(pb.DeleteRequest(collection_name=numbers, expr=expr))
    assert_status(answer.status, 1100)
    assert count(client, numbers) == 10


def test_delete_by_text_keys(client, name):
    create(client, name, schema(("id", DataType.VARCHAR, {"max_length": 20}), vector()), ("v", "FLAT", "L2"))
    keys = ["plain", "it's", 'say "x"', "back\\slash", "ünï"]
    client.insert(name, [{"id": key, "v": [0] * 4} for key in keys])
    client.delete(name, ids=["plain", "ünï"])
    assert sorted(r["id"] for r in client.query(name, filter="", limit=9)) == sorted(keys[1:4])
    for key in keys[1:4]:
        client.delete(name, filter="id == {k}", filter_params={"k": key})
    assert client.query(name, filter="", limit=9) == []


def test_deleting_by_a_condition_needs_load_and_by_keys_does_not(client, numbers):
    client.release_collection(numbers)
    client.delete(numbers, ids=[1])
    with refused(101, "not loaded"):
        client.delete(numbers, filter="n > 50")
    client.load_collection(numbers)
    assert count(client, numbers) == 9


def test_writing_works_without_load(client, name):
    client.create_collection(name, schema=schema(KEY, vector()))
    client.insert(name, [{"id": 1, "v": [1] * 4}])
    client.upsert(name, [{"id": 1, "v": [2] * 4}])
    client.create_index(name, indexes(("v", "FLAT", "L2")), sync=False)
    client.load_collection(name)
    assert client.query(name, "id == 1", output_fields=["v"])[0]["v"] == [2] * 4


def test_writing_to_what_is_not_there(client):
    for call in (lambda: client.insert("no_such", [{"id": 1}]), lambda: client.delete("no_such", ids=[1])):
        with refused(100, "find collection"):
            call()


def test_large_batches_and_many_small_ones(client, name):
    simple(client, name, extra=[("n", INT64)])
    client.insert(name, [{"id": i, "n": i % 7, "v": [i, 0, 0, 0]} for i in range(10_000)])
    for i in range(10_000, 10_050):
        client.insert(name, [{"id": i, "n": 7, "v": [i, 0, 0, 0]}])
    assert count(client, name) == 10_050
    client.flush(name)
    assert len(client.query(name, "n == 7", output_fields=["id"])) == 50
    hits = client.search(name, [[9_999, 0, 0, 0]], limit=3)[0]
    assert [h.id for h in hits] == [9_999, 9_998, 10_000]
