"""Search, range, grouping (contract §6.1–6.4)."""

import numpy as np
import pytest
from pymilvus import DataType

from helpers import (
    KEY,
    assert_status,
    create,
    distances,
    ids,
    ok,
    refused,
    schema,
    search_request,
    simple,
    vector,
)


@pytest.fixture
def line(client, name):
    """Rows 0..99 on a line, half of them sealed: v = [id, 0, 0, 0], group = id % 4, t = text."""
    simple(
        client,
        name,
        extra=[("g", DataType.INT64, {"nullable": True}), ("t", DataType.VARCHAR, {"max_length": 9})],
        dynamic=True,
    )

    def row(i):
        return {"id": i, "g": None if i == 99 else i % 4, "t": f"t{i % 3}", "v": [i, 0, 0, 0], "dyn": i % 5}

    client.insert(name, [row(i) for i in range(50)])
    client.flush(name)
    client.insert(name, [row(i) for i in range(50, 100)])
    return name


def test_limit_offset_and_several_queries(client, line):
    found = client.search(line, [[0, 0, 0, 0], [99, 0, 0, 0]], limit=3, offset=2)
    assert [ids(hits) for hits in found] == [[2, 3, 4], [97, 96, 95]]
    assert distances(found[0]) == [4, 9, 16]
    assert ids(client.search(line, [[0] * 4], limit=5, search_params={"offset": 98})[0]) == [98, 99]
    assert client.search(line, [[0] * 4], limit=5, offset=200)[0] == []


@pytest.mark.parametrize("topk", [0, -1, 16385, "x"])
def test_topk_out_of_range(wire, line, topk):
    request = search_request(line, [[0] * 4], limit=topk)
    assert_status(wire.Search(request).status, 1100, 5, "[1, 16384]" if topk != "x" else "topk")


def test_topk_of_16384_is_fine(client, line):
    assert len(client.search(line, [[0] * 4], limit=16384)[0]) == 100


def test_offset_and_limit_together_have_a_bound(wire, line):
    answer = wire.Search(search_request(line, [[0] * 4], limit=10, params={"offset": 16380}))
    assert_status(answer.status, 1100, 5, "should be in range [1, 16384], but got 16390")
    assert_status(wire.Search(search_request(line, [[0] * 4], params={"offset": -1})).status, 1100)


def test_round_decimal(wire, client, line):
    hits = client.search(line, [[0.126, 0, 0, 0]], limit=2, round_decimal=2)[0]
    np.testing.assert_allclose(distances(hits), [0.02, 0.76], atol=1e-6)
    assert_status(
        wire.Search(search_request(line, [[0] * 4], params={"round_decimal": 7})).status,
        1100,
        5,
        "round_decimal [7] is invalid, should be -1 or an integer in range [0, 6]",
    )


def test_the_field_may_be_left_out_only_if_there_is_one_vector(wire, client, line, name):
    assert ids(client.search(line, [[5, 0, 0, 0]], limit=1)[0]) == [5]
    client.drop_collection(name)
    create(client, name, schema(KEY, vector(), vector(4, "w")), ("v", "FLAT", "L2"), ("w", "FLAT", "IP"))
    answer = wire.Search(search_request(name, [[0] * 4], field=""))
    assert_status(answer.status, 1100, 5, "multiple anns_fields exist, please specify a anns_field")
    answer = wire.Search(search_request(name, [[0] * 4], field="nope"))
    assert answer.status.code != 0 and "nope" in answer.status.reason


def test_the_metric_must_be_that_of_the_index(client, line):
    with refused(1100, "metric type not match"):
        client.search(line, [[0] * 4], search_params={"metric_type": "COSINE"})
    assert len(client.search(line, [[0] * 4], search_params={"metric_type": "L2"})[0]) == 10
    assert len(client.search(line, [[0] * 4], search_params={"metric_type": ""})[0]) == 10


def test_a_query_of_another_dimension(client, line):
    with refused(1100, "dimension"):
        client.search(line, [[0] * 5])


def test_filters_restrict_hits(client, line):
    hits = client.search(line, [[0] * 4], filter="id % 10 == 0 and g == 2", limit=3)[0]
    assert ids(hits) == [10, 30, 50]
    hits = client.search(line, [[0] * 4], filter='t == "t1" and dyn == {x}', filter_params={"x": 3}, limit=2)[
        0
    ]
    assert ids(hits) == [13, 28]
    assert client.search(line, [[0] * 4], filter="id > 1000")[0] == []
    with refused(1100, "cannot parse expression: id >>> 3"):
        client.search(line, [[0] * 4], filter="id >>> 3")


def test_output_fields(client, line):
    hit = client.search(line, [[7, 0, 0, 0]], limit=1, output_fields=["v", "t", "dyn", "id"])[0][0]
    assert hit["entity"] == {"v": [7, 0, 0, 0], "t": "t1", "dyn": 2, "id": 7}
    hit = client.search(line, [[7, 0, 0, 0]], limit=1, output_fields=["*"])[0][0]
    assert hit["entity"] == {"id": 7, "g": 3, "t": "t1", "v": [7, 0, 0, 0], "dyn": 2}
    assert client.search(line, [[7, 0, 0, 0]], limit=1)[0][0]["entity"] == {}


def test_an_output_field_that_is_not_there(client, name):
    simple(client, name)
    with refused(1100, "field nope not exist"):
        client.search(name, [[0] * 4], output_fields=["nope"])
    with refused(1100, "nope"):
        client.query(name, "id > 0", output_fields=["nope"])


def test_ties_go_by_key(client, name):
    simple(client, name)
    client.insert(name, [{"id": i, "v": [1, 0, 0, 0]} for i in (5, 3, 9, 1, 7)])
    assert ids(client.search(name, [[0] * 4], limit=2)[0]) == [1, 3]
    client.flush(name)
    client.insert(name, [{"id": i, "v": [1, 0, 0, 0]} for i in (4, 2, 8)])
    assert ids(client.search(name, [[0] * 4], limit=6)[0]) == [1, 2, 3, 4, 5, 7]


def test_ignore_growing_skips_what_is_not_sealed(client, line):
    hits = client.search(line, [[99, 0, 0, 0]], limit=1, search_params={"ignore_growing": True})[0]
    assert ids(hits) == [49]


# ---- range search (6.3): the radius is open, the range filter is closed


def ranged(client, name, query, limit=100, **params):
    return client.search(name, [query], limit=limit, search_params={"params": params})[0]


def test_range_search_by_distance(client, line):
    zero = [0, 0, 0, 0]
    assert ids(ranged(client, line, zero, radius=25)) == [0, 1, 2, 3, 4]
    assert ids(ranged(client, line, zero, radius=25, range_filter=4)) == [2, 3, 4]
    assert ids(ranged(client, line, zero, radius=25, limit=2)) == [0, 1]
    with refused(1100, "range_filter must less than radius"):
        ranged(client, line, zero, radius=4, range_filter=25)


@pytest.mark.parametrize("metric", ["IP", "COSINE"])
def test_range_search_by_similarity(client, name, metric):
    simple(client, name, dim=2, metric=metric)
    rows = [[1, 0], [0.5, 0.5], [0, 1], [-1, 0]]
    client.insert(name, [{"id": i, "v": v} for i, v in enumerate(rows)])
    if metric == "IP":
        assert ids(ranged(client, name, [1, 0], radius=0)) == [0, 1]
        assert ids(ranged(client, name, [1, 0], radius=-1, range_filter=0.5)) == [1, 2]
    else:
        assert ids(ranged(client, name, [1, 0], radius=0.5)) == [0, 1]
        assert ids(ranged(client, name, [1, 0], radius=-2, range_filter=0.8)) == [1, 2, 3]
    with refused(1100):
        ranged(client, name, [1, 0], radius=0.9, range_filter=0.1)


# ---- grouping (6.4)


def grouped(client, name, limit, query=(0, 0, 0, 0), **kwargs):
    return client.search(name, [list(query)], limit=limit, **kwargs)[0]


def test_one_hit_for_each_group(client, line):
    hits = grouped(client, line, 3, group_by_field="g", output_fields=["g"])
    assert ids(hits) == [0, 1, 2]
    assert ids(grouped(client, line, 10, group_by_field="g")) == [0, 1, 2, 3, 99], "null is a group"
    assert ids(grouped(client, line, 2, group_by_field="t", offset=1)) == [1, 2]


def test_groups_of_several_hits_stay_together(client, line):
    hits = grouped(client, line, 2, group_by_field="g", group_size=3, output_fields=["g"])
    assert ids(hits) == [0, 4, 8, 1, 5, 9]
    assert [h["entity"]["g"] for h in hits] == [0, 0, 0, 1, 1, 1]
    hits = grouped(client, line, 5, group_by_field="g", group_size=10, filter="id < 6")
    assert ids(hits) == [0, 4, 1, 5, 2, 3]


def test_group_values_travel_with_the_hits(wire, client, line):
    request = search_request(line, [[0] * 4], limit=4, params={"group_by_field": "g"})
    data = ok(wire.Search(request)).results
    values = data.group_by_field_value
    assert values.field_name == "g" and list(values.scalars.long_data.data) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, -1, 11])
def test_group_size_out_of_range(wire, line, size):
    request = search_request(line, [[0] * 4], params={"group_by_field": "g", "group_size": size})
    assert_status(wire.Search(request).status, 1100)


def test_grouping_does_not_go_with_ranges_or_odd_fields(client, line):
    with refused(1100, "range-search"):
        grouped(client, line, 3, group_by_field="g", search_params={"params": {"radius": 10}})
    with refused(1100):
        grouped(client, line, 3, group_by_field="v")
