"""Graphs: built in the background, reported truthfully, as good as exact search."""

import time

import grpc
import numpy as np
import pytest
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2_grpc

from helpers import KEY, create, ids, indexes, ok, refused, schema, search_request, vector, wait_until

ROWS, DIM, BATCH = 20_000, 32, 5_000


@pytest.fixture(scope="module")
def clustered():
    """Vectors around 200 centres, and queries like them."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(200, DIM))

    def near(count):
        chosen = centres[random.integers(0, len(centres), count)]
        return (chosen + 0.5 * random.normal(size=(count, DIM))).astype(np.float32)

    return near(ROWS), near(50)


@pytest.fixture(scope="module")
def indexed(client: MilvusClient, clustered):
    """A collection with a finished HNSW index, created after its rows were sealed."""
    name, (rows, _) = "indexed", clustered
    create(client, name, schema(KEY, ("n", DataType.INT64), vector(DIM)), load=False)
    for start in range(0, ROWS, BATCH):
        batch = rows[start : start + BATCH]
        data = [{"id": start + i, "n": (start + i) % 100, "v": v} for i, v in enumerate(batch)]
        client.insert(name, data)
    client.flush(name)
    params = {"M": 16, "efConstruction": 100}
    # pymilvus waits here until the node says that the index is finished.
    client.create_index(
        name, indexes({"field_name": "v", "index_type": "HNSW", "metric_type": "L2", "params": params})
    )
    client.load_collection(name)
    yield name
    client.drop_collection(name)


def recall(client, name, clustered, allowed, **search):
    rows, queries = clustered
    keys = np.flatnonzero(allowed)
    found = client.search(
        name, list(queries), limit=10, anns_field="v", output_fields=["id"], **search
    )
    right = 0
    for query, hits in zip(queries, found):
        assert len(hits) == 10
        distances = ((rows[keys] - query) ** 2).sum(axis=1)
        right += len(set(ids(hits)) & set(keys[np.argsort(distances)[:10]].tolist()))
    return right / (10 * len(queries))


def test_a_client_that_waits_for_an_index_finds_it_finished(client, indexed):
    found = client.describe_index(indexed, "v")
    assert (found["state"], found["index_type"], found["M"]) == ("Finished", "HNSW", "16")
    assert (found["total_rows"], found["indexed_rows"], found["pending_index_rows"]) == (ROWS, ROWS, 0)


def test_a_graph_finds_what_an_exact_search_finds(client, indexed, clustered):
    everything = np.full(ROWS, True)
    search = {"search_params": {"params": {"ef": 64}}}
    assert recall(client, indexed, clustered, everything, **search) >= 0.95


@pytest.mark.parametrize("share", [1, 10, 50])
def test_a_filtered_search_has_as_many_rows_as_asked_for(client, indexed, clustered, share):
    allowed = np.arange(ROWS) % 100 < share
    assert recall(client, indexed, clustered, allowed, filter=f"n < {share}") >= 0.95


def pages_of(client, name, query, between=None, size=50, **search):
    """The keys of each page of an iteration that goes to its end; `between` is called after the third."""
    iterator = client.search_iterator(name, [query], batch_size=size, anns_field="v", **search)
    pages = []
    while batch := iterator.next():
        assert [h["distance"] for h in batch] == sorted(h["distance"] for h in batch)
        pages.append(ids(batch))
        if between and len(pages) == 3:
            between()
    iterator.close()
    return pages


def agreement(pages, ranked):
    """The share of each page's rows, and of all before it, that are the best of all."""
    found = wanted = 0
    for end in range(1, len(pages) + 1):
        sent = {key for page in pages[:end] for key in page}
        found += len(sent & set(ranked[: len(sent)]))
        wanted += len(sent)
    return found / wanted


@pytest.mark.parametrize("share", [1, 30, 60, 100])
def test_an_iterator_pages_over_the_graph_and_gives_every_row_once(client, indexed, clustered, share):
    rows, queries = clustered
    allowed = np.flatnonzero(np.arange(ROWS) % 100 < share)
    pages = pages_of(client, indexed, queries[0], filter=f"n < {share}", size=200)
    assert sorted(key for page in pages for key in page) == allowed.tolist()
    ranked = allowed[np.argsort(((rows[allowed] - queries[0]) ** 2).sum(axis=1))].tolist()
    assert agreement(pages, ranked) >= 0.98
    few = pages_of(client, indexed, queries[1], filter=f"n < {share}", size=10, limit=200)
    ranked = allowed[np.argsort(((rows[allowed] - queries[1]) ** 2).sum(axis=1))].tolist()
    assert agreement(few, ranked) >= 0.97


def test_an_iterator_within_a_range_gives_all_of_it(client, indexed, clustered):
    rows, queries = clustered
    distances = ((rows - queries[2]) ** 2).sum(axis=1)
    ranked = np.argsort(distances)
    bounds = {"range_filter": float(distances[ranked[40]]), "radius": float(distances[ranked[400]])}
    pages = pages_of(client, indexed, queries[2], search_params={"params": bounds})
    found = {key for page in pages for key in page}
    assert sum(map(len, pages)) == len(found)
    # At the ends, scores differ by rounding.
    assert found >= set(ranked[41:399].tolist()) and found <= set(ranked[39:402].tolist())


@pytest.fixture(scope="module")
def own(tmp_path_factory, clustered):
    """A node with a collection of two segments, each with a graph."""
    from node import Node

    node = Node(tmp_path_factory.mktemp("own")).start()
    client = MilvusClient(node.uri)
    create(client, "c", schema(KEY, vector(DIM)), ("v", "HNSW", "L2"))
    for start in (0, BATCH):
        batch = clustered[0][start : start + BATCH]
        client.insert("c", [{"id": start + i, "v": v} for i, v in enumerate(batch)])
        client.flush("c")
    wait_until(lambda: client.describe_index("c", "v")["pending_index_rows"] == 0)
    assert len(client.list_persistent_segments("c")) == 2
    yield node, client
    client.close()
    node.stop()


@pytest.mark.parametrize("between", ["writes", "a merge"])
def test_an_iterator_gives_every_row_once_whatever_happens_to_them(own, clustered, between):
    _, client = own
    rows, queries = clustered
    expected = [row["id"] for row in client.query("c", "id >= 0", output_fields=["id"], limit=16_000)]

    def write():
        client.delete("c", list(range(0, 500)))
        client.insert("c", [{"id": ROWS + i, "v": v} for i, v in enumerate(queries)])

    def merge():
        job = client.compact("c")
        wait_until(lambda: client.get_compaction_state(job) == "Completed")
        assert len(client.list_persistent_segments("c")) == 1

    pages = pages_of(client, "c", queries[3], {"writes": write, "a merge": merge}[between])
    assert sorted(key for page in pages for key in page) == sorted(expected)


def test_an_iterator_without_its_cursor_goes_on_behind_the_lowest_score_it_sent(own, clustered):
    node, client = own
    query = clustered[1][4].tolist()
    expected = {row["id"] for row in client.query("c", "id >= 0", output_fields=["id"], limit=16_000)}
    keys = {
        "iterator": "True",
        "search_iter_v2": "True",
        "collection_id": client.describe_collection("c")["collection_id"],
        "search_iter_batch_size": 50,
    }

    def pages(params, count):
        """Keys and scores of the next pages, and what to ask for those behind them with."""
        found = []
        with grpc.insecure_channel(node.grpc) as channel:
            stub = milvus_pb2_grpc.MilvusServiceStub(channel)
            for _ in range(count):
                results = ok(stub.Search(search_request("c", [query], limit=50, params=params))).results
                if not results.scores:
                    break
                found += zip(results.ids.int_id.data, results.scores)
                cursor = results.search_iterator_v2_results
                assert cursor.last_bound == pytest.approx(max(score for _, score in found))
                params = {
                    **params, "search_iter_id": cursor.token, "search_iter_last_bound": cursor.last_bound
                }
        return found, params

    first, third = pages(keys, 3)
    fourth, _ = pages(third, 1)
    # Asked for again, a page is ranked by the score alone.
    again, _ = pages(third, 1)
    assert len({key for key, _ in fourth} & {key for key, _ in again}) >= 45
    node.stop()
    node.start()
    rest, _ = pages(third, 1_000)
    sent = [key for key, _ in first + rest]
    assert len(sent) == len(set(sent)), "a row twice"
    assert [score for _, score in rest] == sorted(score for _, score in rest)
    # What a walk missed and the score that is left cannot tell.
    assert set(sent) <= expected and len(expected - set(sent)) <= 3


def test_the_progress_of_a_build_is_told_while_it_lasts(client, name, clustered):
    create(client, name, schema(KEY, vector(DIM)), load=False)
    rows, _ = clustered
    for start in range(0, ROWS, BATCH):
        batch = rows[start : start + BATCH]
        client.insert(name, [{"id": start + i, "v": v} for i, v in enumerate(batch)])
    client.flush(name)
    slow = {"M": 64, "efConstruction": 1_000}
    spec = {"field_name": "v", "index_type": "HNSW", "metric_type": "L2", "params": slow}
    client.create_index(name, indexes(spec), sync=False)
    found = client.describe_index(name, "v")
    assert found["state"] == "InProgress"
    assert 0 < found["pending_index_rows"] <= ROWS
    assert found["indexed_rows"] + found["pending_index_rows"] == found["total_rows"] == ROWS
    # Until it is built, the answer is exact.
    client.load_collection(name)
    assert ids(client.search(name, [rows[9]], limit=1)[0]) == [9]
    # A definition that is gone is not built to its end.
    client.release_collection(name)
    client.drop_index(name, "v")
    flat = {"field_name": "v", "index_type": "FLAT", "metric_type": "L2"}
    client.create_index(name, indexes(flat), sync=False)
    assert client.describe_index(name, "v")["state"] == "Finished"


def test_parameters_out_of_range_are_refused(client, name):
    create(client, name, schema(KEY, vector(4)), load=False)
    for key, value in [("M", 1), ("M", 2049), ("efConstruction", 0)]:
        with refused(1100, f"param '{key}' ({value}) should be in range"):
            client.create_index(
                name,
                indexes({"field_name": "v", "index_type": "HNSW", "params": {key: value}}),
                sync=False,
            )
    client.create_index(name, indexes(("v", "HNSW", "L2")), sync=False)
    client.load_collection(name)
    with refused(1100, "ef [0] is invalid"):
        client.search(name, [[0] * 4], limit=1, search_params={"params": {"ef": 0}})


def test_a_node_that_is_restarted_searches_by_the_same_graph(tmp_path, clustered):
    from node import Node

    rows, _ = clustered
    node = Node(tmp_path).start()
    client = MilvusClient(node.uri)
    create(client, "c", schema(KEY, vector(DIM)), ("v", "AUTOINDEX", "COSINE"))
    client.insert("c", [{"id": i, "v": v} for i, v in enumerate(rows[:BATCH])])
    client.flush("c")
    deadline = time.monotonic() + 30
    while client.describe_index("c", "v")["state"] != "Finished":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    files = sorted(path.name for path in node.data_dir.glob("data/*/*.idx"))
    assert len(files) == 1
    client.close()
    node.stop()
    node.start()
    client = MilvusClient(node.uri)
    assert ids(client.search("c", [rows[3]], limit=1)[0]) == [3]
    assert sorted(path.name for path in node.data_dir.glob("data/*/*.idx")) == files
    client.close()
    node.stop()


def test_a_range_search_is_answered_by_the_graph(client, indexed, clustered):
    rows, queries = clustered
    found = wanted = 0
    for query in queries[:20]:
        distances = ((rows - query) ** 2).sum(axis=1)
        ranked = np.argsort(distances)
        low, high = float(distances[ranked[5]]), float(distances[ranked[40]])
        params = {"ef": 100, "radius": high, "range_filter": low}
        hits = client.search(
            indexed, [query], limit=100, anns_field="v", search_params={"params": params}
        )[0]
        assert all(low <= hit["distance"] < high * 1.0001 for hit in hits)
        found += len(set(ids(hits)) & set(ranked[5:40].tolist()))
        wanted += 35
    assert found / wanted >= 0.97


FILTERS = [
    'color == "c7"',
    'color in ["c1", "c2"] and n > 150',
    "n != 3",
    "n > 100 and n < 110 and n != 105",
    "n < 20 or price >= 90.5",
    "flag and n == 6",
    'color like "c1%"',
    'text like "%word 12%"',
    "array_contains(tags, 3)",
    "array_contains_all(tags, [3, 4])",
    "not array_contains_any(tags, [0, 5])",
    'doc["n"] == 12',
    'doc["n"] >= 50 and doc["s"] == "s3"',
    "json_contains(doc[\"list\"], 4)",
    'key like "k1%"',
    'not (doc["n"] in [1, 2, 3])',
]

SCALARS = [
    {"field_name": "color", "index_type": "Trie"},
    {"field_name": "n", "index_type": "STL_SORT"},
    {"field_name": "price", "index_type": "INVERTED"},
    {"field_name": "flag", "index_type": "BITMAP"},
    {"field_name": "text", "index_type": "NGRAM", "params": {"min_gram": 2, "max_gram": 3}},
    {"field_name": "tags", "index_type": "AUTOINDEX"},
    {
        "field_name": "doc",
        "index_name": "doc_n",
        "index_type": "INVERTED",
        "params": {"json_path": 'doc["n"]', "json_cast_type": "double"},
    },
    {
        "field_name": "doc",
        "index_name": "doc_s",
        "index_type": "AUTOINDEX",
        "params": {"json_path": 'doc["s"]', "json_cast_type": "VARCHAR"},
    },
    {
        "field_name": "doc",
        "index_name": "doc_list",
        "index_type": "INVERTED",
        "params": {"json_path": 'doc["list"]', "json_cast_type": "ARRAY_DOUBLE"},
    },
    {
        "field_name": "key",
        "index_name": "dynamic",
        "index_type": "INVERTED",
        "params": {"json_cast_type": "VARCHAR"},
    },
]


def test_filters_find_the_same_rows_with_and_without_indexes(client, name):
    rows = 6_000
    create(
        client,
        name,
        schema(
            KEY,
            ("color", DataType.VARCHAR, {"max_length": 16}),
            ("n", DataType.INT32),
            ("price", DataType.DOUBLE),
            ("flag", DataType.BOOL),
            ("text", DataType.VARCHAR, {"max_length": 64}),
            ("tags", DataType.ARRAY, {"element_type": DataType.INT64, "max_capacity": 4}),
            ("doc", DataType.JSON),
            vector(),
            dynamic=True,
        ),
        ("v", "FLAT", "L2"),
    )
    for start in range(0, rows, 2_000):
        client.insert(
            name,
            [
                {
                    "id": i,
                    "color": f"c{i % 20}",
                    "n": i % 300,
                    "price": i % 1000 / 10,
                    "flag": i % 3 == 0,
                    "text": f"some word {i % 500}",
                    "tags": [i % 7, i % 5],
                    "doc": {"n": i % 100, "s": f"s{i % 9}", "list": [i % 6, "x"]},
                    "key": f"k{i % 30}",
                    "v": [0] * 4,
                }
                for i in range(start, start + 2_000)
            ],
        )
    client.flush(name)

    def answers():
        found = [client.query(name, filter, output_fields=["id"], limit=rows) for filter in FILTERS]
        return [sorted(row["id"] for row in rows) for rows in found]

    plain = answers()
    assert all(0 < len(found) < rows for found in plain)
    # pymilvus waits here until the node says that each index is finished.
    for spec in SCALARS:
        client.create_index(name, indexes(spec))
        found = client.describe_index(name, spec.get("index_name", spec["field_name"]))
        assert (found["state"], found["indexed_rows"], found["pending_index_rows"]) == ("Finished", rows, 0)
        assert found["index_type"] == spec["index_type"]
        for key, value in spec.get("params", {}).items():
            assert found[key] == str(value)
    assert answers() == plain
    client.delete(name, ids=[7, 12])
    assert [len(set(old) - set(new)) for old, new in zip(plain, answers())] == [
        len({7, 12} & set(old)) for old in plain
    ]
    for index in client.list_indexes(name):
        if index != "v":
            client.drop_index(name, index)
    assert client.list_indexes(name) == ["v"]
    assert client.query(name, "n == 299", output_fields=["count(*)"])[0]["count(*)"] == rows // 300


@pytest.mark.parametrize(
    "spec, why",
    [
        ({"field_name": "n", "index_type": "Trie"}, "invalid index type Trie"),
        ({"field_name": "price", "index_type": "BITMAP"}, "invalid index type BITMAP"),
        ({"field_name": "doc", "index_type": "STL_SORT"}, "invalid index type STL_SORT"),
        ({"field_name": "doc", "index_type": "INVERTED"}, "must specify cast type"),
        (
            {"field_name": "doc", "index_type": "INVERTED", "params": {"json_cast_type": "INT8"}},
            "json_cast_type INT8 is not supported",
        ),
        ({"field_name": "text", "index_type": "NGRAM"}, "both min_gram and max_gram"),
        (
            {"field_name": "text", "index_type": "NGRAM", "params": {"min_gram": 3, "max_gram": 2}},
            "invalid min_gram or max_gram",
        ),
        ({"field_name": "id", "index_type": "BITMAP"}, "primary key"),
    ],
)
def test_an_index_that_the_field_does_not_take_is_refused(client, name, spec, why):
    fields = (
        KEY,
        ("n", DataType.INT32),
        ("price", DataType.DOUBLE),
        ("text", DataType.VARCHAR, {"max_length": 64}),
        ("doc", DataType.JSON),
        vector(),
    )
    create(client, name, schema(*fields), load=False)
    with refused(1100, why):
        client.create_index(name, indexes(spec))


def test_an_index_is_named_by_its_path_only_where_it_has_one(client, name):
    fields = (KEY, ("n", DataType.INT32), ("doc", DataType.JSON), vector())
    create(client, name, schema(*fields, dynamic=True), load=False)
    cast = {"json_cast_type": "VARCHAR"}
    for field, params in [
        ("n", {"json_path": 'doc["n"]'}),
        ("key", cast),
        ("doc", {"json_path": 'doc["s"]', **cast}),
    ]:
        spec = {"field_name": field, "index_type": "INVERTED", "params": params}
        client.create_index(name, indexes(spec), sync=False)
    assert sorted(client.list_indexes(name)) == ['doc["s"]', "key", "n"]
    # A cast is a parameter, not a word in another one.
    with refused(1100, "non-exist field: other"):
        spec = {"field_name": "other", "params": {"note": "json_cast_type"}}
        client.create_index(name, indexes({"index_type": "INVERTED", **spec}))
