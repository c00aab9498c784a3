"""Text in, vectors out: the tiny BGE-M3 against what its reference implementation says (contract §8)."""

import json

import numpy as np
import pytest
from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusException, RRFRanker
from pymilvus.client.prepare import Prepare

import oracle
from helpers import (
    GOLDEN,
    KEY,
    assert_status,
    column,
    create,
    ids,
    indexes,
    pb,
    refused,
    schema,
    schema_pb,
    vector,
)

DENSE = Function(
    "dense_of_text", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params={"provider": "bge-m3", "dim": 64}
)
SPARSE = Function("sparse_of_text", FunctionType.BM25, ["text"], ["sparse"], params={"provider": "bge-m3"})
FIELDS = (
    KEY,
    ("text", DataType.VARCHAR, {"max_length": 4000}),
    vector(64, "dense"),
    ("sparse", DataType.SPARSE_FLOAT_VECTOR),
)
# Largest difference allowed in one value; what the golden data grant any backend in float32.
TOLERANCE = 2e-5


def make(client, name, fields=FIELDS, functions=(DENSE, SPARSE)):
    create(
        client,
        name,
        schema(*fields, functions=functions),
        ("dense", "FLAT", "IP"),
        ("sparse", "SPARSE_INVERTED_INDEX", "IP"),
    )


@pytest.fixture(scope="module")
def library(client, sentences):
    """The golden sentences, embedded by the node."""
    make(client, "library")
    client.insert("library", [{"id": i, "text": text} for i, text in enumerate(sentences)])
    yield "library"
    client.drop_collection("library")


def schema_body(name):
    """The schema as it travels, for declarations that pymilvus would not send."""
    return schema_pb.CollectionSchema.FromString(
        Prepare.create_collection_request(name, schema(*FIELDS)).schema
    )


def reference(golden, i):
    entry = golden["max_length_512"][i]
    return np.array(entry["dense"], np.float32), {int(k): v for k, v in entry["sparse"].items()}


def test_stored_vectors_are_those_of_the_reference(client, library, golden, sentences):
    rows = client.query(library, "id >= 0", output_fields=["dense", "sparse"])
    assert len(rows) == len(sentences)
    for row in rows:
        dense, sparse = reference(golden, row["id"])
        np.testing.assert_allclose(row["dense"], dense, atol=TOLERANCE)
        kept = {k: w for k, w in sparse.items() if w > 1e-6}
        assert kept.keys() <= row["sparse"].keys(), sentences[row["id"]]
        for key, weight in row["sparse"].items():
            assert weight == pytest.approx(sparse.get(key, 0), abs=TOLERANCE)


def test_dense_search_by_text(client, library, golden, sentences):
    data = np.array([reference(golden, i)[0] for i in range(len(sentences))])
    for i in (0, 4, 10, 19):
        hits = client.search(library, [sentences[i]], anns_field="dense", limit=5)[0]
        scores = data @ data[i]
        np.testing.assert_allclose([h.distance for h in hits], np.sort(scores)[::-1][:5], atol=5e-5)
        np.testing.assert_allclose(scores[ids(hits)], np.sort(scores)[::-1][:5], atol=5e-5)


def test_sparse_search_by_text(client, library, golden, sentences):
    weights = [reference(golden, i)[1] for i in range(len(sentences))]
    for i in (0, 4, 20):
        hits = client.search(library, [sentences[i]], anns_field="sparse", limit=5)[0]
        scores = np.array([sum(w * other.get(k, 0) for k, w in weights[i].items()) for other in weights])
        expected = np.sort(scores)[::-1][: len(hits)]
        np.testing.assert_allclose([h.distance for h in hits], expected, rtol=1e-5)


def test_several_texts_in_one_search(client, library, sentences):
    found = client.search(library, sentences[:6], anns_field="dense", limit=1, output_fields=["text"])
    assert [hits[0]["entity"]["text"] for hits in found] == sentences[:6]


def test_hybrid_search_by_text(client, library, sentences):
    text, fields = sentences[2], ("dense", "sparse")
    legs = [AnnSearchRequest([text], field, {}, 10) for field in fields]
    hits = client.hybrid_search(library, legs, RRFRanker(), limit=5, output_fields=["text"])[0]
    alone = [client.search(library, [text], anns_field=field, limit=10)[0] for field in fields]
    expected = oracle.rrf([[(h.id, h.distance) for h in found] for found in alone])[:5]
    assert ids(hits) == [key for key, _ in expected]
    np.testing.assert_allclose([h.distance for h in hits], [s for _, s in expected], rtol=2e-6)
    assert [h["entity"]["text"] for h in hits] == [sentences[h.id] for h in hits]


def test_vectors_may_be_given_for_a_search_all_the_same(client, library, golden):
    dense, sparse = reference(golden, 3)
    assert client.search(library, [dense.tolist()], anns_field="dense", limit=1)[0][0].id == 3
    assert client.search(library, [sparse], anns_field="sparse", limit=1)[0][0].id == 3


def test_output_fields_are_marked_for_clients(client, library):
    described = client.describe_collection(library)
    flags = {f["name"]: bool(f.get("is_function_output")) for f in described["fields"]}
    assert flags == {"id": False, "text": False, "dense": True, "sparse": True}
    functions = {f["name"]: f for f in described["functions"]}
    assert functions["dense_of_text"]["params"] == {"provider": "bge-m3", "dim": "64"}
    assert functions["dense_of_text"]["output_field_names"] == ["dense"]
    assert all(f["id"] > 0 for f in functions.values())


def test_an_upsert_makes_the_vectors_anew(client, name, golden, sentences):
    make(client, name)
    client.insert(name, [{"id": 1, "text": sentences[0]}])
    client.upsert(name, [{"id": 1, "text": sentences[3]}])
    row = client.query(name, "id == 1", output_fields=["dense", "text"])[0]
    np.testing.assert_allclose(row["dense"], reference(golden, 3)[0], atol=TOLERANCE)
    client.upsert(name, [{"id": 1, "text": sentences[5]}], partial_update=True)
    row = client.query(name, "id == 1", output_fields=["dense"])[0]
    np.testing.assert_allclose(row["dense"], reference(golden, 5)[0], atol=TOLERANCE)


def test_a_row_alone_and_a_row_in_a_batch_have_the_same_vector(client, name, sentences):
    make(client, name)
    client.insert(name, [{"id": i, "text": text} for i, text in enumerate(sentences)])
    for i in range(0, len(sentences), 5):
        client.insert(name, [{"id": 100 + i, "text": sentences[i]}])
        one, other = client.query(name, f"id in [{i}, {100 + i}]", output_fields=["dense"])
        np.testing.assert_allclose(one["dense"], other["dense"], atol=2e-6)


def test_only_one_of_the_two_functions(client, name, sentences):
    create(client, name, schema(*FIELDS[:3], functions=[DENSE]), ("dense", "HNSW", "COSINE"))
    client.insert(name, [{"id": i, "text": text} for i, text in enumerate(sentences[:5])])
    assert client.search(name, [sentences[4]], limit=1)[0][0].id == 4


def test_one_function_with_two_outputs(wire, client, name, golden, sentences):
    """No SDK lets one declare it; the wire does."""
    body = schema_body(name)
    function = body.functions.add(name="both", type=2)
    function.input_field_names.append("text")
    function.output_field_names.extend(["sparse", "dense"])
    for key, value in (("provider", "bge-m3"), ("dim", "64")):
        function.params.add(key=key, value=value)
    assert_status(
        wire.CreateCollection(
            pb.CreateCollectionRequest(collection_name=name, schema=body.SerializeToString())
        ),
        0,
    )
    client.create_index(name, indexes(("dense", "FLAT", "IP")), sync=False)
    client.create_index(name, indexes(("sparse", "SPARSE_INVERTED_INDEX", "IP")), sync=False)
    client.load_collection(name)
    client.insert(name, [{"id": 1, "text": sentences[1]}])
    row = client.query(name, "id == 1", output_fields=["dense", "sparse"])[0]
    np.testing.assert_allclose(row["dense"], reference(golden, 1)[0], atol=TOLERANCE)
    assert row["sparse"]


@pytest.mark.parametrize("kind", ["a parameter", "MINHASH"])
def test_one_function_with_two_outputs_with_pymilvus(client, name, golden, sentences, kind):
    if kind == "MINHASH":
        both = Function("both", FunctionType.MINHASH, ["text"], ["dense", "sparse"], params={"provider": "bge-m3"})
    else:
        params = {"provider": "local", "model_name": "BAAI/bge-m3", "sparse_output_field": "sparse"}
        both = Function("both", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params=params)
    make(client, name, functions=[both])
    described = client.describe_collection(name)
    assert described["functions"][0]["output_field_names"] == ["dense", "sparse"]
    assert [f["name"] for f in described["fields"] if f.get("is_function_output")] == ["dense", "sparse"]
    client.insert(name, [{"id": i, "text": text} for i, text in enumerate(sentences[:4])])
    row = client.query(name, "id == 1", output_fields=["dense", "sparse"])[0]
    dense, sparse = reference(golden, 1)
    np.testing.assert_allclose(row["dense"], dense, atol=TOLERANCE)
    assert row["sparse"].keys() == sparse.keys()
    assert client.search(name, [sentences[2]], anns_field="dense", limit=1)[0][0].id == 2
    weights = [reference(golden, i)[1] for i in range(4)]
    best = max(sum(w * weights[2].get(k, 0) for k, w in other.items()) for other in weights)
    found = client.search(name, [sentences[2]], anns_field="sparse", limit=1)[0][0]
    assert found.distance == pytest.approx(best, rel=1e-5)


def test_a_sparse_output_that_is_no_field_is_refused(client, name):
    params = {"provider": "bge-m3", "sparse_output_field": "nothing"}
    lost = Function("f", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params=params)
    with refused(1100, "nothing"):
        client.create_collection(name, schema=schema(*FIELDS, functions=[lost]))


def test_an_output_that_is_given_is_refused(wire, client, name):
    make(client, name)
    answer = wire.Insert(
        pb.InsertRequest(
            collection_name=name,
            num_rows=1,
            fields_data=[
                column("id", DataType.INT64, long_data=[1]),
                column("text", DataType.VARCHAR, string_data=["x"]),
                column("dense", DataType.FLOAT_VECTOR, float_vector=[0] * 64, dim=64),
            ],
        )
    )
    assert_status(answer.status, 1100)


def test_text_for_a_field_without_a_function_is_refused(client, name):
    create(client, name, schema(KEY, vector()), ("v", "FLAT", "L2"))
    with refused(1100):
        client.search(name, ["some text"], anns_field="v")


def test_a_model_that_is_not_there_is_told_at_create(client, name):
    missing = Function(
        "f",
        FunctionType.TEXTEMBEDDING,
        ["text"],
        ["dense"],
        params={"provider": "local", "model_name": "nobody/no-model"},
    )
    with pytest.raises(Exception) as caught:
        client.create_collection(name, schema=schema(*FIELDS[:3], functions=[missing]))
    assert caught.value.code in (1100, 2400) and "nobody/no-model" in str(caught.value)


def test_a_dimension_that_the_model_does_not_have_is_told_at_create(client, name):
    fields = (FIELDS[0], FIELDS[1], vector(128, "dense"))
    with refused(1100, "64"):
        client.create_collection(
            name,
            schema=schema(
                *fields,
                functions=[
                    Function(
                        "f", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params={"provider": "bge-m3"}
                    )
                ],
            ),
        )


BAD_FUNCTIONS = {
    "input is no text": (["id"], ["dense"]),
    "no input": (["nothing"], ["dense"]),
    "no output": (["text"], ["nothing"]),
}


@pytest.mark.parametrize("inputs, outputs", BAD_FUNCTIONS.values(), ids=BAD_FUNCTIONS.keys())
def test_declarations_that_break_a_rule(wire, name, inputs, outputs):
    body = schema_body(name)
    function = body.functions.add(name="f", type=2, input_field_names=inputs, output_field_names=outputs)
    function.params.add(key="provider", value="bge-m3")
    answer = wire.CreateCollection(
        pb.CreateCollectionRequest(collection_name=name, schema=body.SerializeToString())
    )
    assert_status(answer, 1100, 5)


def test_two_functions_cannot_fill_one_field(wire, name):
    body = schema_body(name)
    for function_name in ("f", "g"):
        function = body.functions.add(
            name=function_name, type=2, input_field_names=["text"], output_field_names=["dense"]
        )
        function.params.add(key="provider", value="bge-m3")
    answer = wire.CreateCollection(
        pb.CreateCollectionRequest(collection_name=name, schema=body.SerializeToString())
    )
    assert_status(answer, 1100, 5)


def test_a_function_cannot_read_what_may_be_null(client, name):
    fields = (KEY, ("text", DataType.VARCHAR, {"max_length": 99, "nullable": True}), vector(64, "dense"))
    with refused(1100):
        client.create_collection(name, schema=schema(*fields, functions=[DENSE]))


def test_texts_beyond_the_length_of_the_model_are_cut(client, name):
    make(client, name)
    client.insert(name, [{"id": 1, "text": "word " * 799}, {"id": 2, "text": "w"}])
    rows = client.query(name, "id > 0", output_fields=["dense", "sparse"])
    assert len(rows) == 2 and all(row["sparse"] for row in rows)


def test_an_empty_text_is_refused_and_nothing_is_written(client, name):
    make(client, name)
    with refused(2400, "empty text"):
        client.insert(name, [{"id": 1, "text": "a text"}, {"id": 2, "text": ""}])
    assert client.query(name, filter="", limit=5) == []
    with refused(2400, "empty text"):
        client.search(name, [""], anns_field="dense", limit=5)


# ---- re-ranking by a model (7.4)


@pytest.fixture(scope="module")
def passages(client):
    """What the reference re-ranker was asked about, but for the empty passage."""
    reference = json.loads((GOLDEN / "tiny-reranker.golden.json").read_text())
    run = next(run for run in reference["runs"] if run["max_length"] == 512)
    scored = zip(reference["pairs"], run["scores_normalized"], strict=True)
    query = reference["pairs"][0][0]
    scores = {passage: score for (asked, passage), score in scored if asked == query and passage}
    create(client, "passages", schema(KEY, FIELDS[1], vector(2)), ("v", "FLAT", "L2"))
    client.insert("passages", [{"id": i, "text": text, "v": [i, 0]} for i, text in enumerate(scores)])
    yield query, list(scores.values())
    client.drop_collection("passages")


def reranker(*queries, inputs=("text",), **params):
    given = {
        "reranker": "model",
        "provider": "local",
        "model_name": "tiny-reranker",
        "queries": list(queries),
    }
    return Function("rank", FunctionType.RERANK, list(inputs), params={**given, **params})


def test_a_model_ranks_hits_as_the_reference_does(client, passages):
    query, scores = passages
    hits = client.search("passages", [[0, 0]], limit=10, ranker=reranker(query), output_fields=["text"])[0]
    assert len(hits) == len(scores) > 2
    order = np.argsort(scores)[::-1]
    assert ids(hits) == order.tolist()
    np.testing.assert_allclose([h.distance for h in hits], np.array(scores)[order], atol=TOLERANCE)


def test_token_vectors_rank_hits_as_the_reference_does(client, name, golden):
    """Late interaction as a second stage: BGE-M3's own weighted sum, or one part of it."""
    scores = golden["scores_0.4_0.2_0.4"]
    create(client, name, schema(KEY, FIELDS[1], vector(2)), ("v", "FLAT", "L2"))
    passages = list(dict.fromkeys(passage for _, passage in scores["pairs"] if passage))
    client.insert(name, [{"id": i, "text": text, "v": [i, 0]} for i, text in enumerate(passages)])
    for pair, (query, passage) in enumerate(scores["pairs"]):
        if not query or not passage:
            continue
        for weights, kind in (
            (None, "colbert+sparse+dense"),
            ("[0, 0, 1]", "colbert"),
            ([0, 1, 0], "sparse"),
        ):
            given = {} if weights is None else {"weights": weights}
            late = reranker(query, reranker="colbert", model_name="BAAI/bge-m3", **given)
            hits = client.search(name, [[0, 0]], limit=len(passages), ranker=late)[0]
            distances = [hit.distance for hit in hits]
            assert distances == sorted(distances, reverse=True) and len(hits) == len(passages)
            found = next(hit.distance for hit in hits if hit.id == passages.index(passage))
            assert found == pytest.approx(scores[kind][pair], rel=TOLERANCE, abs=TOLERANCE)
    for weights in ("[1, 1]", "[0, 0, 0]", "[1, -1, 1]", "much"):
        with refused(1100, "weights"):
            late = reranker("a", reranker="colbert", model_name="BAAI/bge-m3", weights=weights)
            client.search(name, [[0, 0]], limit=3, ranker=late)


def test_a_dense_field_may_be_narrower_than_the_vectors_of_the_model(client, name, golden, sentences):
    short = Function("f", FunctionType.TEXTEMBEDDING, ["text"], ["dense"], params={"provider": "bge-m3", "dim": 48})
    create(client, name, schema(KEY, FIELDS[1], vector(48, "dense"), functions=[short]), ("dense", "FLAT", "IP"))
    client.insert(name, [{"id": i, "text": text} for i, text in enumerate(sentences[:4])])
    for row in client.query(name, "id >= 0", output_fields=["dense"]):
        whole = reference(golden, row["id"])[0][:48]
        np.testing.assert_allclose(row["dense"], whole / np.linalg.norm(whole), atol=TOLERANCE)
    hit = client.search(name, [sentences[2]], limit=1)[0][0]
    assert hit.id == 2 and hit.distance == pytest.approx(1, abs=1e-5)


def test_a_model_needs_one_query_for_each_query_and_one_text_field(client, passages):
    query, _ = passages
    for ranker in (
        reranker(),
        reranker(query, query),
        reranker(query, inputs=["id"]),
        reranker(query, inputs=[]),
        reranker(query, provider="nobody"),
    ):
        with refused(1100):
            client.search("passages", [[0, 0]], limit=10, ranker=ranker)
    with pytest.raises(MilvusException, match="nobody/no-model"):
        client.search("passages", [[0, 0]], limit=10, ranker=reranker(query, model_name="nobody/no-model"))


def test_two_legs_with_the_same_text_share_one_run_of_the_model(client, node, library, sentences):
    def tokens():
        lines = node.page("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("elanus_model_tokens{"))

    # A question that nobody asked before: one that was is answered from memory.
    text = sentences[6] + " and once more"
    before = tokens()
    client.search(library, [text], anns_field="dense", limit=3)
    one = tokens() - before
    assert one > 0
    client.search(library, [text], anns_field="dense", limit=3)
    assert tokens() - before == one
    legs = [AnnSearchRequest([text], field, {}, 10) for field in ("dense", "sparse")]
    client.hybrid_search(library, legs, RRFRanker(), limit=3)
    assert tokens() - before == 2 * one
    lines = node.page("/metrics")[1].splitlines()
    (budget,) = [line for line in lines if line.startswith("elanus_embed_batch_tokens ")]
    assert 128 <= float(budget.rsplit(" ", 1)[1]) <= 4096


def test_a_function_is_dropped_and_added_again(client, name, sentences):
    make(client, name)
    client.insert(name, [{"id": 1, "text": sentences[0]}])
    before = client.query(name, "id == 1", output_fields=["dense", "sparse"])
    client.drop_collection_function(name, "dense_of_text")
    described = client.describe_collection(name)
    assert [f["name"] for f in described["functions"]] == ["sparse_of_text"]
    assert [f["name"] for f in described["fields"] if f.get("is_function_output")] == ["sparse"]
    assert client.query(name, "id == 1", output_fields=["dense", "sparse"]) == before
    with refused(1100, "a text can only search a field that is the output of a function"):
        client.search(name, [sentences[0]], anns_field="dense", limit=1)
    client.insert(name, [{"id": 2, "text": sentences[1], "dense": [1.0] * 64}])
    with refused(1100, "function not found: dense_of_text", "sparse_of_text"):
        client.drop_collection_function(name, "dense_of_text")
    client.add_collection_function(name, DENSE)
    client.insert(name, [{"id": 3, "text": sentences[2]}])
    assert client.search(name, [sentences[2]], anns_field="dense", limit=1)[0][0]["id"] == 3
    assert client.query(name, "id == 2", output_fields=["dense"])[0]["dense"] == [1.0] * 64
    with refused(1100, "duplicate function name"):
        client.add_collection_function(name, DENSE)


def test_a_function_is_altered_in_what_keeps_its_vectors(client, name, sentences):
    make(client, name)
    client.insert(name, [{"id": i, "text": text} for i, text in enumerate(sentences[:3])])
    best = lambda: client.search(name, [sentences[0]], anns_field="dense", limit=1)[0][0]  # noqa: E731
    assert best()["id"] == 0 and best()["distance"] == pytest.approx(1, abs=1e-4)

    def altered(name="dense_of_text", inputs=("text",), **params):
        params = {"provider": "bge-m3", "dim": 64, **params}
        return Function(name, FunctionType.TEXTEMBEDDING, list(inputs), ["dense"], params=params)

    client.alter_collection_function(name, "dense_of_text", altered(search_prompt="something else: "))
    functions = {f["name"]: f for f in client.describe_collection(name)["functions"]}
    assert functions["dense_of_text"]["params"]["search_prompt"] == "something else: "
    assert best()["distance"] < 0.999
    with refused(1100, "name not match"):
        client.alter_collection_function(name, "dense_of_text", altered(name="other"))
    with refused(1100, "function not found: other"):
        client.alter_collection_function(name, "other", altered(name="other"))
