"""Search and query iterators (contract §6.6, §6.7)."""

import time

import pytest
from pymilvus import DataType, MilvusClient

from helpers import assert_status, create, ok, schema, search_request, simple, vector
from node import Node


@pytest.fixture
def line(client, name):
    """Rows 0..299 on a line, scattered over a sealed segment and a growing one."""
    simple(client, name, extra=[("n", DataType.INT64)])
    order = [(i * 113) % 300 for i in range(300)]
    client.insert(name, [{"id": i, "n": i % 3, "v": [i, 0, 0, 0]} for i in order[:200]])
    client.flush(name)
    client.insert(name, [{"id": i, "n": i % 3, "v": [i, 0, 0, 0]} for i in order[200:]])
    return name


def drain(iterator, page=None):
    """All rows of an iterator; `page` is called once, after the first page."""
    rows = []
    try:
        while batch := iterator.next():
            rows += batch
            if page:
                page()
                page = None
    finally:
        iterator.close()
    return rows


def test_a_search_iterator_walks_all_rows_in_order(client, line):
    hits = drain(client.search_iterator(line, [[0] * 4], batch_size=37))
    assert [h["id"] for h in hits] == list(range(300))
    assert [h["distance"] for h in hits[:4]] == [0, 1, 4, 9]


def test_a_search_iterator_keeps_to_filter_limit_and_fields(client, line):
    hits = drain(
        client.search_iterator(line, [[0] * 4], batch_size=10, limit=25, filter="n == 1", output_fields=["n"])
    )
    assert [h["id"] for h in hits] == list(range(1, 75, 3))
    assert {h["entity"]["n"] for h in hits} == {1}


@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
def test_rows_of_equal_score_are_neither_lost_nor_repeated(client, name, metric):
    simple(client, name, dim=2, metric=metric)
    client.insert(name, [{"id": i, "v": [1, i // 20]} for i in range(100)])
    hits = drain(client.search_iterator(name, [[1, 0]], batch_size=7))
    assert sorted(h["id"] for h in hits) == list(range(100))


def test_a_search_iterator_does_not_see_what_is_written_later(client, line):
    def write():
        client.insert(line, [{"id": 1000 + i, "n": 0, "v": [i + 0.5, 0, 0, 0]} for i in range(300)])

    hits = drain(client.search_iterator(line, [[0] * 4], batch_size=50), write)
    assert [h["id"] for h in hits] == list(range(300))


def test_the_protocol_of_the_search_iterator(wire, client, line):
    collection = client.describe_collection(line)["collection_id"]
    keys = {"iterator": "True", "search_iter_v2": "True", "collection_id": collection}
    probe = ok(
        wire.Search(search_request(line, [[0] * 4], limit=1, params={**keys, "search_iter_batch_size": 1}))
    )
    cursor = probe.results.search_iterator_v2_results
    assert cursor.token and probe.session_ts > 0
    page = {**keys, "search_iter_batch_size": 5, "search_iter_id": cursor.token}
    first = ok(wire.Search(search_request(line, [[0] * 4], limit=5, params=page)))
    assert list(first.results.ids.int_id.data) == [0, 1, 2, 3, 4]
    bound = first.results.search_iterator_v2_results.last_bound
    assert bound == 16
    page["search_iter_last_bound"] = bound
    second = ok(
        wire.Search(
            search_request(line, [[0] * 4], limit=5, params=page, guarantee_timestamp=probe.session_ts)
        )
    )
    assert list(second.results.ids.int_id.data) == [5, 6, 7, 8, 9]
    other = {**page, "collection_id": 1}
    assert_status(wire.Search(search_request(line, [[0] * 4], params=other)).status, 1100)
    two = search_request(line, [[0] * 4, [1] * 4], params=page)
    assert_status(wire.Search(two).status, 1100)


@pytest.mark.parametrize("bad", [{"offset": 3}, {"group_by_field": "n"}])
def test_what_an_iterator_cannot_do(wire, client, line, bad):
    params = {
        "iterator": "True",
        "search_iter_v2": "True",
        "search_iter_batch_size": 5,
        "collection_id": client.describe_collection(line)["collection_id"],
        **bad,
    }
    assert_status(wire.Search(search_request(line, [[0] * 4], params=params)).status, 1100)


def test_an_unknown_token_is_answered(wire, client, line):
    """After a restart the cursors are gone; the bound still says where to go on."""
    params = {
        "iterator": "True",
        "search_iter_v2": "True",
        "search_iter_batch_size": 3,
        "collection_id": client.describe_collection(line)["collection_id"],
        "search_iter_id": "00000000-0000-0000-0000-000000000000",
        "search_iter_last_bound": 16,
    }
    answer = ok(wire.Search(search_request(line, [[0] * 4], limit=3, params=params)))
    assert list(answer.results.ids.int_id.data) == [5, 6, 7]


def test_a_query_iterator_walks_all_rows_by_key(client, line):
    rows = drain(client.query_iterator(line, batch_size=37, output_fields=["n"]))
    assert [r["id"] for r in rows] == list(range(300))
    rows = drain(client.query_iterator(line, batch_size=10, filter="n == 2", limit=25))
    assert [r["id"] for r in rows] == list(range(2, 77, 3))


def test_a_query_iterator_does_not_see_what_is_written_later(client, line):
    def write():
        client.insert(line, [{"id": 1000 + i, "n": 0, "v": [0] * 4} for i in range(300)])
        client.delete(line, ids=[299, 298])

    rows = drain(client.query_iterator(line, batch_size=50), write)
    assert [r["id"] for r in rows] == list(range(300))


def test_a_query_iterator_over_text_keys(client, name):
    create(client, name, schema(("id", DataType.VARCHAR, {"max_length": 9}), vector()), ("v", "FLAT", "L2"))
    client.insert(name, [{"id": f"k{i:03}", "v": [0] * 4} for i in range(100)])
    rows = drain(client.query_iterator(name, batch_size=9))
    assert [r["id"] for r in rows] == [f"k{i:03}" for i in range(100)]


def test_iterators_over_nothing(client, name):
    simple(client, name)
    assert drain(client.query_iterator(name, batch_size=5)) == []
    assert drain(client.search_iterator(name, [[0] * 4], batch_size=5)) == []


def test_an_iterator_that_takes_longer_than_rows_are_kept_is_told_to_begin_again(tmp_path):
    node = Node(tmp_path, "--set", "retention_seconds=1").start()
    client = MilvusClient(node.uri)
    try:
        simple(client, "kept")
        client.insert("kept", [{"id": i, "v": [i, 0, 0, 0]} for i in range(20)])
        search = client.search_iterator("kept", [[0] * 4], batch_size=10)
        query = client.query_iterator("kept", batch_size=10)
        assert len(search.next()) == len(query.next()) == 10
        client.delete("kept", [15])
        time.sleep(1.1)
        for iterator in (search, query):
            with pytest.raises(Exception, match="retention_seconds.*begin again"):
                iterator.next()
        assert len(drain(client.query_iterator("kept", batch_size=10))) == 19
    finally:
        client.close()
        node.stop()
