"""A function gets another model: stored texts are embedded anew, and all rows change at once."""

import json
import threading

import numpy as np
import pytest
from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusClient, RRFRanker
from pymilvus.exceptions import SchemaMismatchRetryableException

from helpers import KEY, create, refused, schema, vector, wait_until
from node import Node

FIELDS = (
    KEY,
    ("text", DataType.VARCHAR, {"max_length": 4000}),
    vector(64, "dense"),
    ("sparse", DataType.SPARSE_FLOAT_VECTOR),
)


def dense(model="bge-m3", **params):
    params = {"provider": "builtin", "model_name": model, **params}
    return Function("dense_of_text", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params=params)


def sparse(**params):
    return Function(
        "sparse_of_text", FunctionType.BM25, ["text"], ["sparse"], params={"provider": "bge-m3", **params}
    )


def prompted(prompt):
    """The model with another prompt, which makes other vectors; a text is still nearest to itself."""
    return dense("BAAI/bge-m3", ingestion_prompt=prompt, search_prompt=prompt)


def make(client, name, functions, index="FLAT"):
    create(
        client,
        name,
        schema(*FIELDS, functions=functions),
        ("dense", index, "IP"),
        ("sparse", "SPARSE_INVERTED_INDEX", "IP"),
    )


def state(client, name):
    """What the node tells of vectors that are made anew; None when there are none."""
    told = client.describe_collection(name)["properties"].get("elanus.reembedding")
    return told and json.loads(told)


def done(client, name):
    wait_until(lambda: state(client, name) is None, 60)


def model_of(client, name, function="dense_of_text"):
    functions = {f["name"]: f for f in client.describe_collection(name)["functions"]}
    return functions[function]["params"]


def stored(client, name):
    rows = client.query(name, "id >= 0", output_fields=["dense", "sparse"])
    return {row["id"]: (np.array(row["dense"], np.float32), row["sparse"]) for row in rows}


def test_rows_of_every_age_get_what_the_new_functions_make(client, name, sentences):
    make(client, name, (dense("BAAI/bge-m3"), sparse()))
    rows = [{"id": i, "text": text} for i, text in enumerate(sentences)]
    half = len(rows) // 2
    client.insert(name, rows[:half])
    client.flush(name)
    client.insert(name, rows[half:])
    client.delete(name, ids=[0])
    before = stored(client, name)
    client.alter_collection_function(name, "dense_of_text", prompted("p: "))
    client.alter_collection_function(name, "sparse_of_text", sparse(ingestion_prompt="s: "))
    client.upsert(name, [{"id": 1, "text": sentences[2]}])
    client.upsert(name, [{"id": 2, "text": sentences[1]}], partial_update=True)
    done(client, name)
    assert model_of(client, name)["ingestion_prompt"] == "p: "
    assert model_of(client, name, "sparse_of_text")["ingestion_prompt"] == "s: "

    # As if the rows had been inserted into a collection with these functions.
    fresh = name + "_fresh"
    make(client, fresh, (prompted("p: "), sparse(ingestion_prompt="s: ")))
    client.insert(fresh, rows[1:])
    client.upsert(fresh, [{"id": 1, "text": sentences[2]}, {"id": 2, "text": sentences[1]}])
    found, expected = stored(client, name), stored(client, fresh)
    client.drop_collection(fresh)
    assert found.keys() == expected.keys() == before.keys()
    for key, (vector_of_row, terms) in found.items():
        assert np.allclose(vector_of_row, expected[key][0], atol=2e-5)
        assert not np.allclose(vector_of_row, before[key][0], atol=1e-3), "it changed"
        assert terms.keys() == expected[key][1].keys()
    hit = client.search(name, [sentences[4]], anns_field="dense", limit=1)[0][0]
    assert hit["id"] == 4 and hit["distance"] == pytest.approx(1, abs=1e-4)
    # New rows go on by it, and hidden columns are nowhere to be seen.
    client.insert(name, [{"id": 100, "text": "a new text"}])
    hit = client.search(name, ["a new text"], anns_field="dense", limit=1, output_fields=["*"])[0][0]
    assert hit["id"] == 100 and hit["distance"] == pytest.approx(1, abs=1e-4)
    assert set(hit["entity"]) <= {"id", "text", "dense", "sparse"}
    assert [f["name"] for f in client.describe_collection(name)["fields"]] == ["id", "text", "dense", "sparse"]


def test_no_answer_is_a_mix_while_rows_are_written(node, client, name, sentences):
    make(client, name, (prompted("a: "), sparse()), index="HNSW")
    texts = {i: f"{sentences[i % len(sentences)]} number {i}" for i in range(300)}
    client.insert(name, [{"id": i, "text": text} for i, text in texts.items()])
    client.flush(name)
    stop, wrong = threading.Event(), []

    def search(n):
        with_own = MilvusClient(node.uri)
        while not stop.is_set():
            n = (n * 7 + 3) % 300
            # Two of the same: by products of terms, a text need not be nearest to itself.
            legs = [AnnSearchRequest([texts[n]], "dense", {}, 3) for _ in range(2)]
            try:
                hit = with_own.search(name, [texts[n]], anns_field="dense", limit=1)[0][0]
                if hit["id"] != n or hit["distance"] < 0.999:
                    wrong.append((n, hit))
                if with_own.hybrid_search(name, legs, RRFRanker(), limit=1)[0][0]["id"] != n:
                    wrong.append((n, "hybrid"))
            except Exception as error:  # noqa: BLE001, what a thread meets is told below
                wrong.append((n, error))
        with_own.close()

    def write():
        with_own, n = MilvusClient(node.uri), 0
        while not stop.is_set():
            n = (n + 31) % 300
            try:
                with_own.upsert(name, [{"id": n, "text": texts[n]}])
            except SchemaMismatchRetryableException:
                pass  # The client tried twice, and two changes came in between.
            except Exception as error:  # noqa: BLE001
                wrong.append((n, error))
        with_own.close()

    threads = [threading.Thread(target=search, args=(n,)) for n in (1, 2)] + [threading.Thread(target=write)]
    [thread.start() for thread in threads]
    try:
        for prompt in ("b: ", "c: ", "d: "):
            client.alter_collection_function(name, "dense_of_text", prompted(prompt))
            done(client, name)
    finally:
        stop.set()
        [thread.join() for thread in threads]
    assert not wrong, (len(wrong), wrong[:6])
    assert client.query(name, output_fields=["count(*)"])[0]["count(*)"] == 300
    assert model_of(client, name)["ingestion_prompt"] == "d: "


def test_a_change_is_given_up_by_altering_back_or_dropping_and_needs_a_model_that_fits(client, name, sentences):
    make(client, name, (dense("BAAI/bge-m3"), sparse()))
    client.insert(name, [{"id": i, "text": text} for i, text in enumerate(sentences * 20)])
    before = stored(client, name)
    with refused(2400, "nowhere"):
        client.alter_collection_function(name, "dense_of_text", dense("nowhere"))
    with refused(1100, "dim"):
        client.alter_collection_function(name, "dense_of_text", dense("BAAI/bge-m3", dim=32))
    client.alter_collection_function(name, "dense_of_text", prompted("p: "))
    client.alter_collection_function(name, "dense_of_text", dense("BAAI/bge-m3"))
    assert state(client, name) is None
    assert all(np.array_equal(row[0], before[key][0]) for key, row in stored(client, name).items())
    client.alter_collection_function(name, "dense_of_text", prompted("q: "))
    client.drop_collection_function(name, "dense_of_text")
    assert state(client, name) is None
    client.insert(name, [{"id": 1000, "text": "x", "dense": [1.0] * 64}])
    assert client.query(name, "id == 1000", output_fields=["dense"])[0]["dense"] == [1.0] * 64


def test_it_goes_on_after_a_kill_and_waits_for_a_model_that_is_gone(models, tmp_path, sentences):
    [(tmp_path / part).mkdir() for part in ("models", "node")]
    real = {path.name: path.resolve() for path in (models / "BAAI").iterdir()}["bge-m3"]
    first, second = tmp_path / "models" / "first", tmp_path / "models" / "second"
    first.symlink_to(real)
    second.symlink_to(real)
    node = Node(tmp_path / "node", "--model-dir", str(tmp_path / "models")).start()
    client = MilvusClient(node.uri)
    make(client, "items", (dense("first"), sparse(provider="builtin", model_name="first")))
    texts = [f"{text} number {n}" for n in range(60) for text in sentences]
    for at in range(0, len(texts), 500):
        rows = enumerate(texts[at : at + 500], at)
        client.insert("items", [{"id": i, "text": text} for i, text in rows])
    prompt = {"ingestion_prompt": "p: ", "search_prompt": "p: "}
    client.alter_collection_function("items", "dense_of_text", dense("second", **prompt))
    node.kill()
    client.close()
    second.unlink()

    node.start()
    client = MilvusClient(node.uri)
    wait_until(lambda: state(client, "items")["state"] == "waiting")
    told = state(client, "items")
    assert "second" in told["reason"] and told["embedded_rows"] < told["rows"] == len(texts)
    assert told["functions"]["dense_of_text"]["model_name"] == "second"
    assert f"elanus_reembed_rows_left {told['rows'] - told['embedded_rows']}" in node.page("/metrics")[1]
    assert model_of(client, "items")["model_name"] == "first"
    hit = client.search("items", [texts[7]], anns_field="dense", limit=1)[0][0]
    assert hit["id"] == 7 and hit["distance"] == pytest.approx(1, abs=1e-4)
    with refused(2400, "second"):
        client.insert("items", [{"id": len(texts), "text": "needs both models"}])
    second.symlink_to(real)
    done(client, "items")
    assert model_of(client, "items")["model_name"] == "second"
    hit = client.search("items", [texts[7]], anns_field="dense", limit=1)[0][0]
    assert hit["id"] == 7 and hit["distance"] == pytest.approx(1, abs=1e-4)
    client.close()
    node.stop()
