"""Whole programs of users, unchanged: ORM, asynchronous client, frameworks (contract §14, §17)."""

import asyncio

import numpy as np
import pytest
from pymilvus import (
    AnnSearchRequest,
    AsyncMilvusClient,
    Collection,
    CollectionSchema,
    DataType,
    FieldSchema,
    Function,
    FunctionType,
    MilvusException,
    RRFRanker,
    WeightedRanker,
    connections,
    utility,
)

from helpers import KEY, create, indexes, refused, schema, simple, vector

DIM = 16
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew potions".split()


def embed(text):
    """Stands for a user's own model: a dense and a sparse vector of a text."""
    dense, sparse = np.zeros(DIM, np.float32), {}
    for word in text.split():
        at = WORDS.index(word)
        dense[at % DIM] += 1
        sparse[at] = sparse.get(at, 0) + 1.0
    return (dense / np.linalg.norm(dense)).tolist(), sparse


@pytest.fixture
def orm(node):
    host, port = node.grpc.split(":")
    connections.connect("default", host=host, port=port)
    yield
    connections.disconnect("default")


def test_the_seed_workflow(orm, name):
    """ORM, VARCHAR auto id, columns, sparse and dense, hybrid search, re-ranking on the client."""
    fields = [
        FieldSchema(name="pk", dtype=DataType.VARCHAR, is_primary=True, auto_id=True, max_length=100),
        FieldSchema(name="text", dtype=DataType.VARCHAR, max_length=512),
        FieldSchema(name="sparse_vector", dtype=DataType.SPARSE_FLOAT_VECTOR),
        FieldSchema(name="dense_vector", dtype=DataType.FLOAT_VECTOR, dim=DIM),
    ]
    if utility.has_collection(name):
        Collection(name).drop()
    collection = Collection(name, CollectionSchema(fields, ""), consistency_level="Strong")
    collection.create_index("sparse_vector", {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"})
    collection.create_index("dense_vector", {"index_type": "FLAT", "metric_type": "IP"})
    collection.load()

    rng = np.random.default_rng(5)
    docs = [" ".join(rng.choice(WORDS, 6)) for _ in range(200)] + ["wizards brew potions"]
    for start in range(0, len(docs), 50):
        texts = docs[start : start + 50]
        dense, sparse = zip(*map(embed, texts), strict=True)
        result = collection.insert([texts, list(sparse), list(dense)])
        assert result.insert_count == len(texts) and all(isinstance(k, str) for k in result.primary_keys)
    assert collection.num_entities == len(docs)

    dense, sparse = embed("wizards brew potions")
    sparse_req = AnnSearchRequest([sparse], "sparse_vector", {"metric_type": "IP"}, limit=10)
    dense_req = AnnSearchRequest([dense], "dense_vector", {"metric_type": "IP"}, limit=10)
    hits = collection.hybrid_search([sparse_req, dense_req], RRFRanker(), limit=10, output_fields=["text"])[0]
    assert len(hits) == 10
    assert "wizards brew potions" in [hit.get("text") for hit in hits]

    # The user re-ranks what came back.
    wanted = {"wizards", "brew", "potions"}
    reranked = sorted(
        hits, key=lambda hit: -len(wanted & set(hit.get("text").split())) / len(hit.get("text").split())
    )
    assert reranked[0].get("text") == "wizards brew potions"
    collection.release()
    collection.drop()


def test_the_orm_finds_a_collection_as_it_was_declared(orm, name):
    def declared(**changes):
        return CollectionSchema(
            [
                FieldSchema("id", DataType.INT64, is_primary=True, description="the key"),
                FieldSchema("n", DataType.INT64, nullable=True, default_value=changes.get("default", 3)),
                FieldSchema(
                    "a", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4, max_length=10
                ),
                FieldSchema(
                    "t", DataType.VARCHAR, max_length=changes.get("length", 99), is_partition_key=True
                ),
                FieldSchema("v", DataType.FLOAT_VECTOR, dim=4),
            ],
            description="d",
            enable_dynamic_field=True,
        )

    Collection(name, declared(), consistency_level="Session", num_partitions=5)
    again = Collection(name, declared(), consistency_level="Session")
    assert [f.name for f in again.schema.fields] == ["id", "n", "a", "t", "v"]
    for changes in ({"length": 98}, {"default": 4}):
        with pytest.raises(MilvusException):
            Collection(name, declared(**changes))
    with pytest.raises(MilvusException):
        Collection(name, declared(), consistency_level="Strong")


def test_the_orm_finds_functions_as_they_were_declared(orm, name):
    def declared():
        built = CollectionSchema(
            [
                FieldSchema("id", DataType.INT64, is_primary=True, auto_id=True),
                FieldSchema("text", DataType.VARCHAR, max_length=99),
                FieldSchema("v", DataType.FLOAT_VECTOR, dim=64),
            ]
        )
        built.add_function(
            Function(
                "f", FunctionType.TEXTEMBEDDING, ["text"], ["v"], params={"provider": "bge-m3", "dim": "64"}
            )
        )
        return built

    Collection(name, declared())
    assert Collection(name, declared()).schema.functions[0].params["provider"] == "bge-m3"


def test_the_orm_api(orm, name):
    collection = Collection(
        name,
        CollectionSchema(
            [
                FieldSchema("id", DataType.INT64, is_primary=True),
                FieldSchema("v", DataType.FLOAT_VECTOR, dim=2),
            ]
        ),
    )
    assert collection.is_empty and not collection.indexes and utility.has_collection(name)
    collection.insert([[1, 2, 3], [[1, 0], [2, 0], [3, 0]]])
    collection.upsert([[3], [[9, 0]]])
    collection.flush()
    collection.create_index(
        "v", {"index_type": "HNSW", "metric_type": "L2", "params": {"M": 8, "efConstruction": 64}}
    )
    assert collection.index().params["index_type"] == "HNSW"
    assert collection.has_index()
    collection.load()
    assert utility.loading_progress(name)["loading_progress"] == "100%"
    assert utility.load_state(name).name == "Loaded"
    assert utility.index_building_progress(name)["pending_index_rows"] == 0
    hits = collection.search([[0, 0]], "v", {"metric_type": "L2"}, limit=2, output_fields=["v"])[0]
    assert hits.ids == [1, 2] and hits[0].entity.get("v") == [1, 0]
    assert collection.query("id in [3]", output_fields=["v"])[0]["v"] == [9, 0]
    assert collection.delete("id in [1]").delete_count == 1
    assert collection.query("id > 0", output_fields=["count(*)"])[0]["count(*)"] == 2
    partition = collection.create_partition("p")
    partition.insert([[7], [[7, 7]]])
    assert collection.has_partition("p") and partition.num_entities == 1
    utility.create_alias(name, f"{name}_alias")
    assert Collection(f"{name}_alias").num_entities == 3
    utility.drop_alias(f"{name}_alias")
    hits = collection.hybrid_search(
        [AnnSearchRequest([[0, 0]], "v", {"metric_type": "L2"}, 3)], WeightedRanker(1.0), limit=3
    )
    assert len(hits[0]) == 3
    pages = collection.query_iterator(batch_size=2, expr="id > 0")
    assert [len(pages.next()), len(pages.next()), len(pages.next())] == [2, 1, 0]
    collection.release()
    collection.drop_index()
    collection.drop()
    assert not utility.has_collection(name)


async def test_the_asynchronous_client(node, client, name):
    other = AsyncMilvusClient(node.uri)
    try:
        await other.create_collection(
            name,
            schema=schema(KEY, ("n", DataType.INT64), vector(), dynamic=True),
            index_params=indexes(("v", "FLAT", "L2")),
        )
        rows = [{"id": i, "n": i % 3, "v": [i, 0, 0, 0], "d": str(i)} for i in range(100)]
        assert (await other.insert(name, rows))["insert_count"] == 100
        assert (await other.upsert(name, rows[:5]))["upsert_count"] == 5
        found = await asyncio.gather(
            *[other.search(name, [[i, 0, 0, 0]], limit=1, output_fields=["d"]) for i in range(50)]
        )
        assert [hits[0][0]["entity"]["d"] for hits in found] == [str(i) for i in range(50)]
        assert len(await other.query(name, "n == 1")) == 33
        assert (await other.get(name, ids=[3]))[0]["n"] == 0
        legs = [AnnSearchRequest([[5, 0, 0, 0]], "v", {"metric_type": "L2"}, 10)]
        assert (await other.hybrid_search(name, legs, RRFRanker(), limit=1))[0][0]["id"] == 5
        assert (await other.delete(name, ids=[1]))["delete_count"] == 1
        await other.flush(name)
        assert (await other.query(name, output_fields=["count(*)"]))[0]["count(*)"] == 99
        assert await other.has_collection(name) and name in await other.list_collections()
        assert (await other.describe_collection(name))["collection_name"] == name
        with pytest.raises(MilvusException):
            await other.query("no_such_collection", "id > 0")
        await other.release_collection(name)
        await other.load_collection(name)
        await other.drop_collection(name)
        assert not await other.has_collection(name)
    finally:
        await other.close()


async def test_many_clients_write_and_read_at_once(node, client, name):
    simple(client, name, extra=[("w", DataType.INT64)])
    others = [AsyncMilvusClient(node.uri) for _ in range(4)]

    async def work(w, other):
        for i in range(20):
            await other.insert(name, [{"id": w * 1000 + i, "w": w, "v": [w, i, 0, 0]}])
            hits = await other.search(name, [[w, i, 0, 0]], filter=f"w == {w}", limit=1)
            assert hits[0][0]["id"] == w * 1000 + i

    await asyncio.gather(*[work(w, other) for w, other in enumerate(others)])
    await asyncio.gather(*[other.close() for other in others])
    assert client.query(name, output_fields=["count(*)"])[0]["count(*)"] == 80


def test_what_frameworks_do_step_by_step(client, name):
    """Collection, indexes one by one, load, rows with metadata, hybrid search by function score."""
    client.create_collection(
        name,
        schema=schema(
            ("pk", DataType.INT64),
            ("text", DataType.VARCHAR, {"max_length": 65535}),
            vector(4, "vector"),
            ("sparse", DataType.SPARSE_FLOAT_VECTOR),
            auto_id=True,
            dynamic=True,
        ),
    )
    for field, kind in (("vector", "AUTOINDEX"), ("sparse", "AUTOINDEX")):
        client.create_index(
            name,
            indexes(
                {
                    "field_name": field,
                    "index_type": kind,
                    "metric_type": "COSINE" if field == "vector" else "IP",
                }
            ),
        )
        found = client.describe_index(name, field)
        assert (found["state"], found["pending_index_rows"]) == ("Finished", 0)
    client.load_collection(name)
    client.insert(
        name,
        [
            {"text": f"doc {i}", "vector": [1, i, 0, 0], "sparse": {i: 1.0}, "source": f"f{i % 2}.md"}
            for i in range(20)
        ],
    )
    legs = [
        AnnSearchRequest(
            [[1, 3, 0, 0]],
            "vector",
            {"metric_type": "COSINE", "params": {"nprobe": 10}},
            5,
            expr='source == "f1.md"',
        ),
        AnnSearchRequest([{3: 1.0}], "sparse", {"metric_type": "IP", "drop_ratio_search": 0.2}, 5),
    ]
    ranker = Function(
        "weighted", FunctionType.RERANK, [], params={"reranker": "weighted", "weights": [0.5, 0.5]}
    )
    hits = client.hybrid_search(name, legs, ranker, limit=4, output_fields=["text", "source"])[0]
    assert hits[0]["entity"] == {"text": "doc 3", "source": "f1.md"}
    assert client.delete(name, filter='source == "f0.md"')["delete_count"] == 10
    rows = client.query(name, filter='source like "f%"', limit=50, output_fields=["*"])
    assert len(rows) == 10 and {r["source"] for r in rows} == {"f1.md"}


def test_foreign_search_parameters_are_ignored(client, name):
    create(client, name, schema(KEY, vector()), ("v", "HNSW", "L2"))
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    params = {
        "params": {"nprobe": 10, "ef": 1, "drop_ratio_search": 0.2, "search_list": 3, "metric_type": "L2"}
    }
    assert client.search(name, [[0] * 4], limit=5, search_params=params)[0][0].id == 1


def test_a_mistake_in_one_call_does_not_disturb_the_next(client, name):
    simple(client, name)
    for _ in range(50):
        with refused(1100):
            client.query(name, "id ===== 1")
    client.insert(name, [{"id": 1, "v": [0] * 4}])
    assert client.get(name, ids=[1])[0]["id"] == 1
