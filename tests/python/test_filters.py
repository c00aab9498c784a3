"""The filter language: expressions and the rows they select (contract §9)."""

import pytest
from pymilvus import DataType

from helpers import KEY, create, refused, schema, vector

# id is 0..9. `n` is id but null at 3 and 7; the rest follows from the table below.
ROWS = [
    {
        "id": i,
        "n": None if i in (3, 7) else i,
        "i8": i - 5,
        "f": i / 2,
        "d": i * 0.1,
        "b": i % 2 == 0,
        "t": ["apple", "banana", "cherry", "100%", "a_b", "", "Ünï", "it's", 'say "x"', "back\\slash"][i],
        "tn": None if i == 4 else f"t{i}",
        "j": [
            {"a": 1, "b": {"c": "x"}, "l": [1, 2, 3]},
            {"a": 2.5, "l": []},
            {"a": "1"},
            {"a": None},
            {"b": {"c": "y"}, "l": ["x", 1]},
            {},
            [1, 2],
            5,
            '"text"',
            {"a": True, "l": [3]},
        ][i],
        "arr": list(range(i % 4)),
        "words": [
            ["red"],
            ["red", "blue"],
            [],
            ["green"],
            ["blue"],
            ["red", "green", "blue"],
            [],
            ["x"],
            ["y"],
            ["red"],
        ][i],
        "dyn": i * 10,
        **({"opt": "yes"} if i < 3 else {}),
        "v": [i, 0, 0, 0],
    }
    for i in range(10)
]

FIELDS = [
    KEY,
    ("n", DataType.INT64, {"nullable": True}),
    ("i8", DataType.INT8),
    ("f", DataType.FLOAT),
    ("d", DataType.DOUBLE),
    ("b", DataType.BOOL),
    ("t", DataType.VARCHAR, {"max_length": 50}),
    ("tn", DataType.VARCHAR, {"max_length": 9, "nullable": True}),
    ("j", DataType.JSON),
    ("arr", DataType.ARRAY, {"element_type": DataType.INT64, "max_capacity": 8}),
    ("words", DataType.ARRAY, {"element_type": DataType.VARCHAR, "max_capacity": 8, "max_length": 9}),
    vector(),
]


@pytest.fixture(scope="module")
def table(client):
    """Rows 0..5 sealed, 6..9 growing."""
    create(client, "filter_table", schema(*FIELDS, dynamic=True), ("v", "FLAT", "L2"))
    client.insert("filter_table", ROWS[:6])
    client.flush("filter_table")
    client.insert("filter_table", ROWS[6:])
    yield "filter_table"
    client.drop_collection("filter_table")


ALL = set(range(10))

CASES = {
    # comparison
    "id == 3": {3},
    "id != 3": ALL - {3},
    "id < 3": {0, 1, 2},
    "id <= 3": {0, 1, 2, 3},
    "id > 7": {8, 9},
    "id >= 7": {7, 8, 9},
    "3 > id": {0, 1, 2},
    "3 == id": {3},
    "-2 <= i8": {3, 4, 5, 6, 7, 8, 9},
    "f == 1.5": {3},
    "f > 3": {7, 8, 9},
    "d >= 0.5": {5, 6, 7, 8, 9},
    "id == 3.0": {3},
    "id > 2.5": {3, 4, 5, 6, 7, 8, 9},
    "id < 2.5": {0, 1, 2},
    "id == 2.5": set(),
    "i8 < 1000": ALL,
    "i8 == 1000": set(),
    "i8 != 1000": ALL,
    "i8 > -99999999999": ALL,
    "id == 0x3": {3},
    "id == 0b11": {3},
    "id == 07": {7},
    "f < 1e0": {0, 1},
    "f < .6": {0, 1},
    't == "apple"': {0},
    "t == 'apple'": {0},
    't > "b"': {1, 2, 6, 7, 8, 9},
    't == ""': {5},
    't != ""': ALL - {5},
    't == "Ünï"': {6},
    't == "\\u00dcn\\u00ef"': {6},
    't == "it\'s"': {7},
    "t == 'it\\'s'": {7},
    't == "say \\"x\\""': {8},
    't == "back\\\\slash"': {9},
    "t == r'back\\slash'": {9},
    # booleans
    "b": {0, 2, 4, 6, 8},
    "not b": {1, 3, 5, 7, 9},
    "!b": {1, 3, 5, 7, 9},
    "b == true": {0, 2, 4, 6, 8},
    "b == False": {1, 3, 5, 7, 9},
    "b != TRUE": {1, 3, 5, 7, 9},
    "b and id > 5": {6, 8},
    "true": ALL,
    "1 == 1": ALL,
    "1 == 2": set(),
    "false": set(),
    # and, or, not; precedence
    "id == 1 or id == 2": {1, 2},
    "id == 1 || id == 2": {1, 2},
    "id > 3 and id < 6": {4, 5},
    "id > 3 && id < 6": {4, 5},
    "id == 0 or id > 7 and id < 9": {0, 8},
    "(id == 0 or id > 7) and id < 9": {0, 8},
    "(id == 0 or id == 9) and b": {0},
    "not (id > 3)": {0, 1, 2, 3},
    "NOT (id > 3) AND b": {0, 2},
    "not not b": {0, 2, 4, 6, 8},
    "not (id > 3 or id == 0)": {1, 2, 3},
    "((((id == 4))))": {4},
    # ranges
    "2 < id < 5": {3, 4},
    "2 <= id <= 5": {2, 3, 4, 5},
    "5 > id >= 3": {3, 4},
    "0.1 < d < 0.35": {2, 3},
    '"a" < t < "b"': {0, 4},
    "-1 < i8 < 1": {5},
    # in
    "id in [1, 3, 5]": {1, 3, 5},
    "id in [1, 3, 5,]": {1, 3, 5},
    "id not in [1, 3, 5]": ALL - {1, 3, 5},
    "id in []": set(),
    "id not in []": ALL,
    "not (id in [1, 2])": ALL - {1, 2},
    't in ["apple", "cherry", "nope"]': {0, 2},
    "b in [true]": {0, 2, 4, 6, 8},
    "f in [0.5, 1, 1.5]": {1, 2, 3},
    "i8 in [-5, 300]": {0},
    # arithmetic
    "id + 1 == 3": {2},
    "id - 1 == 3": {4},
    "id * 2 > 15": {8, 9},
    "id / 2 == 2": {4, 5},
    "id % 3 == 0": {0, 3, 6, 9},
    "f * 2 == 5": {5},
    "1 + id == 3": {2},
    "id == 1 + 2": {3},
    "id == 2 ** 3": {8},
    "id == 10 - 2 * 3": {4},
    "id == -(-3)": {3},
    "d + 0.5 >= 1.35": {9},
    # columns against columns
    "id == n": ALL - {3, 7},
    "id > i8": ALL,
    "i8 > id": set(),
    # like
    't like "a%"': {0, 4},
    't like "%an%"': {1},
    't like "%y"': {2},
    't like "apple"': {0},
    't like "%"': ALL,
    't like "a_b"': {4},
    't like "_pple"': {0},
    't like "100\\\\%"': {3},
    't like "%\\"%"': {8},
    "not (t like 'a%')": ALL - {0, 4},
    't like ""': {5},
    't like "a%e"': {0},
    't LIKE "%a%a%"': {1, 9},
    # nulls: three values
    "n is null": {3, 7},
    "n is not null": ALL - {3, 7},
    "n IS NULL": {3, 7},
    "n == 3": set(),
    "n != 3": ALL - {3, 7},
    "not (n == 5)": ALL - {3, 5, 7},
    "n in [1, 3]": {1},
    "n not in [1, 3]": ALL - {1, 3, 7},
    "n > 5 or id == 3": {3, 6, 8, 9},
    "n > 5 and id == 7": set(),
    "not (n > 5)": {0, 1, 2, 4, 5},
    'tn like "t%"': ALL - {4},
    'not (tn == "t1")': ALL - {1, 4},
    "n is null and id > 5": {7},
    "n < 100": ALL - {3, 7},
    # JSON: a value of another type, or none, is no match
    'j["a"] == 1': {0},
    'j["a"] > 1': {1},
    'j["a"] == "1"': {2},
    "j['a'] == true": {9},
    'j["a"] != 1': {1},
    'j["b"]["c"] == "x"': {0},
    'j["b"]["c"] in ["x", "y"]': {0, 4},
    'j["l"][0] == 1': {0},
    'j["l"][0] == "x"': {4},
    'j["l"][9] == 1': set(),
    'j["nope"] == 1': set(),
    "exists j['a']": {0, 1, 2, 9},
    'not exists j["a"]': ALL - {0, 1, 2, 9},
    'j["a"] like "1%"': {2},
    'j["a"] in [1, 2.5, "1"]': {0, 1, 2},
    'j["a"] is null': ALL - {0, 1, 2, 9},
    'j["a"] is not null': {0, 1, 2, 9},
    'j["a"] * 2 == 5': {1},
    '1 < j["a"] < 3': {1},
    'json_contains(j["l"], 3)': {0, 9},
    'json_contains(j["l"], "x")': {4},
    'json_contains_all(j["l"], [1, 3])': {0},
    'json_contains_any(j["l"], [3, "x"])': {0, 4, 9},
    'array_length(j["l"]) == 3': {0},
    # the dynamic field
    "dyn == 30": {3},
    "dyn > 75": {8, 9},
    '$meta["dyn"] == 30': {3},
    'opt == "yes"': {0, 1, 2},
    "exists opt": {0, 1, 2},
    'opt != "yes"': set(),
    "dyn / 10 == 3": {3},
    "nobody_has_this == 1": set(),
    "dyn in [10, 20]": {1, 2},
    # arrays
    "array_contains(arr, 2)": {3, 7},
    "ARRAY_CONTAINS(arr, 2)": {3, 7},
    "array_contains_all(arr, [0, 1])": {2, 3, 6, 7},
    "array_contains_any(arr, [1, 2])": {2, 3, 6, 7},
    "array_length(arr) == 0": {0, 4, 8},
    "array_length(arr) > 1": {2, 3, 6, 7},
    "arr[0] == 0": {1, 2, 3, 5, 6, 7, 9},
    "arr[2] == 2": {3, 7},
    "arr[7] == 0": set(),
    "arr == [0, 1]": {2, 6},
    'array_contains(words, "red")': {0, 1, 5, 9},
    'array_contains_any(words, ["x", "y"])': {7, 8},
    'words[0] == "blue"': {4},
    'json_contains(words, "green")': {3, 5},
    # white space and letters
    "  id==3  ": {3},
    "id\n==\t3": {3},
    "ID == 3": set(),
}


@pytest.mark.parametrize("expression", list(CASES))
def test_expression(client, table, expression):
    rows = client.query(table, expression, output_fields=["id"])
    assert {r["id"] for r in rows} == CASES[expression]


@pytest.mark.parametrize(
    "expression", ["id % 3 == 0", "n is null", "dyn > 75", 't like "a%"', "not (n == 5)"]
)
def test_search_and_count_see_the_same_rows(client, table, expression):
    expected = CASES[expression]
    hits = client.search(table, [[0] * 4], filter=expression, limit=10)[0]
    assert {h.id for h in hits} == expected
    assert client.query(table, expression, output_fields=["count(*)"])[0]["count(*)"] == len(expected)


REFUSED = [
    "id",
    "id +",
    "id = 3",
    "== 3",
    "id == ",
    "(id == 3",
    "id == 3)",
    "id in 3",
    "id in [",
    'id in ["x"]',
    'id == "3"',
    "t == 3",
    "b == 1",
    "b > true",
    "t + 1 == 2",
    "id == 3 id == 4",
    "id like 'x%'",
    "t like 3",
    "not t",
    "id and b",
    "id % 2.5 == 0",
    "f % 2 == 0",
    "id / 0 == 1",
    "id % 0 == 1",
    "j + 1",
    "j == j",
    "arr > 3",
    "unknown_fn(id)",
    "array_length(id) == 1",
    "v == 1",
    "v is null",
    "'x' == 1",
    "id == 'unterminated",
    "id == 99999999999999999999",
    "5 < id > 3",
    "9 < id < 3",
    "id << 1 == 2",
    "id & 1 == 1",
    "{missing} == id",
    "id == {missing}",
    "exists id",
    "text_match(t, 'x')",
    "random_sample(2)",
    "id And b",
    "@",
    "id == $",
]


@pytest.mark.parametrize("expression", REFUSED)
def test_expression_that_is_refused(client, table, expression):
    with refused(1100, "failed to create query plan: cannot parse expression: " + expression):
        client.query(table, expression, output_fields=["id"])


def test_an_unknown_field_is_named_where_there_is_no_dynamic_field(client, name):
    create(client, name, schema(KEY, ("price", DataType.INT64), vector()), ("v", "FLAT", "L2"))
    with refused(1100, "field prise not exist"):
        client.query(name, "prise > 3")


def test_what_was_added_later_reads_as_null_or_default(client, name):
    create(client, name, schema(KEY, vector()), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    client.flush(name)
    client.add_collection_field(name, "extra", DataType.INT64, nullable=True)
    client.insert(name, [{"id": 2, "extra": 5, "v": [0] * 4}])
    assert [r["id"] for r in client.query(name, "extra is null")] == [1]
    assert [r["id"] for r in client.query(name, "extra == 5")] == [2]
    assert client.query(name, "extra != 5") == []


def test_big_lists_are_fast_with_and_without_templates(client, table):
    many = list(range(5, 100_000))
    expected = {5, 6, 7, 8, 9}
    assert {r["id"] for r in client.query(table, f"id in {many}", output_fields=["id"])} == expected
    rows = client.query(table, "id in {ids}", filter_params={"ids": many}, output_fields=["id"])
    assert {r["id"] for r in rows} == expected


TEMPLATES = [
    ("n > {x}", {"x": 7}, {8, 9}),
    ("{x} < n", {"x": 7}, {8, 9}),
    ("t == {x}", {"x": 'say "x"'}, {8}),
    ("t like {x}", {"x": "a%"}, {0, 4}),
    ("{lo} < id < {hi}", {"lo": 2, "hi": 5}, {3, 4}),
    ("id in {x} and b == {y}", {"x": [1, 2, 4], "y": True}, {2, 4}),
    ("j['a'] == {x}", {"x": 2.5}, {1}),
    ("array_contains_any(words, {x})", {"x": ["x", "y"]}, {7, 8}),
    ("id + {x} == 5", {"x": 2}, {3}),
]


@pytest.mark.parametrize("expression, params, expected", TEMPLATES, ids=[t[0] for t in TEMPLATES])
def test_template(client, table, expression, params, expected):
    rows = client.query(table, expression, filter_params=params, output_fields=["id"])
    assert {r["id"] for r in rows} == expected


def test_a_template_of_another_type_is_refused(client, table):
    with refused(1100):
        client.query(table, "id == {x}", filter_params={"x": "three"})
    with refused(1100, "missing"):
        client.query(table, "id == {missing}", filter_params={"x": 1})
