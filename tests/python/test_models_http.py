"""The models over HTTP and from the command line, against the golden data."""

import base64
import json
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers import GOLDEN
from node import binary

# Largest difference allowed in one value; what the golden data grant any backend in float32.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def post(node):
    """Sends JSON (or raw bytes) to the port that gRPC has as well; gives status and answer."""

    def post(path, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{node.uri}{path}", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as answer:
            return answer.code, json.load(answer)

    return post


def close(found, expected):
    return np.abs(np.array(found) - np.array(expected)).max() <= TOLERANCE


def test_openai_embeddings_with_sparse_and_token_vectors(post, golden):
    texts, rows = golden["sentences"], golden["max_length_512"]
    status, answer = post(
        "/v1/embeddings", {"model": "BAAI/bge-m3", "input": texts, "sparse": True, "colbert": True}
    )
    assert (status, answer["object"], answer["model"]) == (200, "list", "BAAI/bge-m3")
    assert [entry["index"] for entry in answer["data"]] == list(range(len(texts)))
    for entry, row in zip(answer["data"], rows, strict=True):
        assert close(entry["embedding"], row["dense"])
        assert entry["sparse"]["indices"] == sorted(map(int, row["sparse"]))
        by_id = [row["sparse"][str(i)] for i in entry["sparse"]["indices"]]
        assert not by_id or close(entry["sparse"]["values"], by_id)
        assert list(np.array(entry["colbert"]).shape) == row["colbert_shape"]
    assert answer["usage"]["prompt_tokens"] > len(texts)


def test_base64_and_fewer_dimensions(post, golden):
    text, expected = golden["sentences"][0], np.array(golden["max_length_512"][0]["dense"])
    body = {"model": "bge-m3", "input": text, "encoding_format": "base64"}
    status, answer = post("/v1/embeddings", body)
    assert status == 200
    assert close(np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4"), expected)
    status, answer = post("/v1/embeddings", {**body, "encoding_format": "float", "dimensions": 16})
    assert status == 200
    assert close(answer["data"][0]["embedding"], expected[:16] / np.linalg.norm(expected[:16]))


def test_text_embeddings_inference(post, golden):
    texts, rows = golden["sentences"][:3], golden["max_length_512"]
    status, answer = post("/embed", {"model": "tiny-bge-m3", "inputs": texts, "truncate": True})
    assert status == 200 and close(answer, [row["dense"] for row in rows[:3]])
    status, answer = post("/embed_sparse", {"model": "tiny-bge-m3", "inputs": texts[0]})
    assert status == 200
    assert {str(term["index"]) for term in answer[0]} == set(rows[0]["sparse"])
    status, answer = post("/embed", {"model": "tiny-bge-m3", "inputs": texts, "normalize": False})
    lengths = np.linalg.norm(answer, axis=1, keepdims=True)
    assert status == 200 and close(answer / lengths, [row["dense"] for row in rows[:3]])
    assert (np.abs(lengths - 1) > 0.1).all()


def test_rerank_in_both_shapes_with_the_only_model_that_can(post):
    golden = json.loads((GOLDEN / "tiny-reranker.golden.json").read_text())
    pairs = golden["pairs"]
    query = pairs[0][0]
    texts = [pair[1] for pair in pairs if pair[0] == query] + [pair[1] for pair in pairs[1:4]]
    status, raw = post("/rerank", {"query": query, "texts": texts, "raw_scores": True, "return_text": True})
    assert status == 200
    assert [rank["text"] for rank in raw] == [texts[rank["index"]] for rank in raw]
    assert [rank["score"] for rank in raw] == sorted((rank["score"] for rank in raw), reverse=True)
    assert sorted(rank["index"] for rank in raw) == list(range(len(texts)))
    body = {"query": query, "documents": texts, "top_n": 2, "return_documents": True}
    status, answer = post("/v1/rerank", body)
    assert (status, answer["model"], len(answer["results"])) == (200, "tiny-reranker", 2)
    for result, rank in zip(answer["results"], raw):
        assert result["index"] == rank["index"]
        assert abs(result["relevance_score"] - 1 / (1 + np.exp(-rank["score"]))) < TOLERANCE
        assert result["document"]["text"] == rank["text"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/embeddings", b"{", 400, "not understood"),
        ("/v1/embeddings", {"model": "BAAI/bge-m3"}, 400, "input"),
        ("/v1/embeddings", {"model": "BAAI/bge-m3", "input": []}, 400, "empty"),
        ("/v1/embeddings", {"model": "BAAI/bge-m3", "input": [1, 2]}, 400, "token ids"),
        ("/v1/embeddings", {"model": "no/such", "input": "a"}, 404, "no/such"),
        ("/v1/embeddings", {"model": "../etc", "input": "a"}, 400, "not a model name"),
        ("/v1/embeddings", {"input": "a"}, 400, "say which"),
        ("/v1/embeddings", {"model": "BAAI/bge-m3", "input": "a", "dimensions": 65}, 400, "65"),
        ("/v1/embeddings", {"model": "BAAI/bge-m3", "input": "a", "encoding_format": "x"}, 400, "base64"),
        ("/v1/embeddings", {"model": "tiny-reranker", "input": "a"}, 400, "re-ranker"),
        ("/v1/embeddings", {"model": "BAAI/bge-m3", "input": ["a"] * 16_385}, 413, "limits.queries"),
        ("/embed", {"model": "tiny-bge-m3", "inputs": "a " * 9000, "truncate": False}, 400, "are allowed"),
        ("/rerank", {"model": "tiny-reranker", "query": "a", "texts": ["a " * 9000], "truncate": False}, 400, "are allowed"),
        ("/embed", {"model": "tiny-bge-m3", "inputs": "a", "truncation_direction": "Left"}, 400, "Right"),
        ("/rerank", {"query": "a", "texts": []}, 400, "empty"),
        ("/rerank", {"model": "tiny-bge-m3", "query": "a", "texts": ["b"]}, 400, "no re-ranker"),
    ],
)
def test_refusals_say_why(post, path, body, status, says):
    found, answer = post(path, body)
    error = answer["error"]
    assert found == status
    assert says in (error["message"] if path.startswith("/v1") else error)


def test_models_are_listed_and_calls_counted(node, post):
    post("/embed", {"inputs": []})
    with urllib.request.urlopen(f"{node.uri}/v1/models", timeout=5) as answer:
        names = {model["id"] for model in json.load(answer)["data"]}
    assert {"BAAI/bge-m3", "tiny-reranker"} <= names
    metrics = node.page("/metrics")[1]
    assert 'rpc="/embed",code="400"' in metrics


def test_many_calls_at_once_give_what_each_gives_alone(post, golden):
    texts, rows = golden["sentences"], golden["max_length_512"]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(post, "/embed", {"model": "tiny-bge-m3", "inputs": text}) for text in texts * 3]
        for call, row in zip(calls, rows * 3):
            status, answer = call.result()
            assert status == 200 and close(answer[0], row["dense"])


def elanus(*arguments):
    ran = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return ran.returncode, [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr


def test_the_command_line_embeds_reranks_and_tokenizes(models, golden):
    text, row = golden["sentences"][0], golden["max_length_512"][0]
    store = ("--model-dir", models)
    code, [line], _ = elanus("embed", *store, "--model", "bge-m3", "--text", text)
    assert code == 0 and close(line["dense"], row["dense"])
    assert line["sparse"]["indices"] == sorted(map(int, row["sparse"]))
    assert len(line["colbert"]) == row["colbert_shape"][0]
    code, [line], _ = elanus("embed", *store, "--model", "bge-m3", "--text", text, "--sparse")
    assert code == 0 and set(line) == {"text", "sparse"}
    code, lines, _ = elanus(
        "rerank", *store, "--model", "tiny-reranker", "--query", text, "--text", "a", "--text", text
    )
    assert code == 0 and lines[0]["score"] >= lines[1]["score"]
    code, [line], _ = elanus("tokenize", *store, "--model", "bge-m3", "--text", text)
    assert code == 0 and line["ids"][0] == 0 and line["ids"][-1] == 2
    assert len(line["ids"]) == len(line["tokens"]) == row["colbert_shape"][0] + 1
    code, _, error = elanus("embed", *store, "--model", "no/such", "--text", "a")
    assert code == 1 and "no/such" in error and str(models) in error


def test_the_command_line_looks_after_models(tmp_path):
    store = ("--model-dir", tmp_path / "models")
    code, [line], _ = elanus("model", "add", GOLDEN / "tiny-bge-m3", "org/tiny", *store)
    assert code == 0 and line["added"] == "org/tiny"
    assert elanus("model", "add", GOLDEN / "tiny-bge-m3", "org/tiny", *store)[0] == 1
    assert elanus("model", "add", tmp_path, "org/none", *store)[0] == 1
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{}")
    code, lines, _ = elanus("model", "list", *store)
    assert code == 0 and [line["name"] for line in lines] == ["broken", "org/tiny"]
    assert "config.json" in lines[0]["error"] and lines[1]["dense"] == 64
    code, [line], _ = elanus("model", "warm", "org/tiny", "--precision", "int8", *store)
    assert code == 0 and line["precision"] == "int8"
    assert (tmp_path / "models/org/tiny/.elanus/int8.safetensors").is_file()
    code, [line], _ = elanus("model", "verify", "org/tiny", *store)
    assert code == 0 and line["verified"]
    code, lines, _ = elanus("model", "bench", "tiny", *store)
    assert code == 0 and all(line["per_second"] > 0 for line in lines)
    weights = tmp_path / "models/org/tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, error = elanus("model", "verify", "org/tiny", *store)
    assert code == 1 and "cut short" in error
    assert elanus("model", "remove", "org/tiny", *store)[0] == 0
    assert elanus("model", "info", "org/tiny", *store)[0] == 1
