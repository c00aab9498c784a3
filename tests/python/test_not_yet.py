"""What this node does not do yet is refused with the reason: never ignored, never half done."""

import pytest
from pymilvus import (
    DataType,
    Function,
    FunctionType,
    LexicalHighlighter,
    SearchAggregation,
    build_roaring_bitmap,
)

from helpers import KEY, assert_status, pairs, pb, refused, schema, search_request, simple, vector


@pytest.fixture
def rows(client, name):
    text = ("t", DataType.VARCHAR, {"max_length": 50})
    simple(client, name, extra=[text, ("g", DataType.INT64), ("h", DataType.INT64)])
    client.insert(
        name, [{"id": i, "t": f"t{i}", "g": i % 2, "h": i % 3, "v": [i, 0, 0, 0]} for i in range(12)]
    )
    return name


SEARCHES = {
    "order_by_fields": {"search_params": {"order_by_fields": "g:desc"}},
    "several fields": {"group_by_fields": ["g", "h"]},
    "search_aggregation": {"search_aggregation": SearchAggregation(fields=["g"], size=3)},
    "highlighter": {"highlighter": LexicalHighlighter()},
}


@pytest.mark.parametrize("what, options", SEARCHES.items(), ids=SEARCHES.keys())
def test_searches(client, rows, what, options):
    with refused(1100, what, "not supported"):
        client.search(rows, [[0] * 4], limit=3, **options)


@pytest.mark.parametrize("params", [{"group_by_fields": "g"}, {"order_by_fields": "g:desc", "limit": 3}])
def test_queries(wire, rows, params):
    request = pb.QueryRequest(
        collection_name=rows, expr="id >= 0", output_fields=["g"], query_params=pairs(**params)
    )
    assert_status(wire.Query(request).status, 1100, 5, "not supported")


@pytest.mark.parametrize(
    "filter",
    ["text_match(t, 'x')", "phrase_match(t, 'x')", "random_sample(0.5)", "membership_match(id, {ids})"],
)
def test_filters(client, rows, filter):
    params = {"ids": build_roaring_bitmap([1, 2])} if "{" in filter else {}
    with refused(1100, f"the function `{filter.split('(')[0]}` is not supported"):
        client.query(rows, filter, filter_params=params)


def test_terms_counted_by_bm25(client, name):
    text = ("t", DataType.VARCHAR, {"max_length": 50, "enable_analyzer": True})
    function = Function("f", FunctionType.BM25, ["t"], ["s"])
    with refused(10, "BM25", "provider"):
        client.create_collection(
            name, schema=schema(KEY, text, ("s", DataType.SPARSE_FLOAT_VECTOR), functions=[function])
        )


def test_text_analysis(client):
    with refused(10, "analyser"):
        client.run_analyzer(["some text"])


def test_users_roles_and_groups(client):
    with refused(10, "authorization"):
        client.create_user("somebody", "password")
    with refused(10):
        client.create_role("some_role")
    with refused(10, "single node"):
        client.create_resource_group("some_group")


def test_changes_of_a_schema_beyond_new_fields(client, rows):
    with refused(10, "not supported"):
        client.drop_collection_field(rows, "g")


def test_a_search_that_names_an_unknown_iterator_protocol_is_a_search(wire, client, rows):
    """The first version of the iterator is a plain search on this side."""
    answer = wire.Search(search_request(rows, [[0] * 4], limit=3, params={"iterator": "True"}))
    assert list(answer.results.ids.int_id.data) == [0, 1, 2]
