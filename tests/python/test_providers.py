"""Functions and re-rankers of providers elsewhere, which are a local server here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pymilvus import DataType, Function, FunctionType, MilvusClient

from helpers import refused
from node import Node

KEY = "sk-that-nobody-sees"


class Provider:
    """Vectors and scores of texts that end in a number; says what `fail` has instead."""

    def __init__(self):
        self.asked, self.fail, self.dim = [], None, 4
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                provider.asked.append((self.path, headers, body))
                status, answer = provider.fail or (200, provider.answer(self.path, body))
                answer = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path, body):
        if path == "/rerank":
            scores = enumerate(int(text.split()[-1]) / 10 for text in body["texts"])
            return [{"index": index, "score": score} for index, score in scores]
        numbers = [float(text.split()[-1]) if text != "check" else 0 for text in body["input"]]
        vectors = [[number, *[1.0] * (self.dim - 1)] for number in numbers]
        return {"data": [{"index": index, "embedding": row} for index, row in enumerate(vectors)]}


@pytest.fixture(scope="module")
def provider():
    provider = Provider()
    yield provider
    provider.server.shutdown()


@pytest.fixture(scope="module")
def there(tmp_path_factory, provider):
    """A node whose operator allows the local server, and knows a key for it."""
    home = tmp_path_factory.mktemp("providers")
    settings = home / "elanus.toml"
    settings.write_text(f'[providers]\nallow = ["{provider.url}"]\n[credentials]\nmine = "{KEY}"\n')
    node = Node(home, "--config", str(settings)).start()
    yield node
    node.stop()
    assert KEY not in node.said()
    for path in node.data_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.fixture
def client(there, provider):
    provider.fail, provider.dim = None, 4
    provider.asked.clear()
    client = MilvusClient(there.uri)
    yield client
    for name in client.list_collections():
        client.drop_collection(name)
    client.close()


def create(client, provider, **params):
    given = {"provider": "openai", "model_name": "small", "url": f"{provider.url}/v1/embeddings"}
    params = {**given, "credential": "mine", **params}
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=100)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=4)
    schema.add_function(Function("f", FunctionType.TEXTEMBEDDING, "text", "dense", params=params))
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="L2")
    client.create_collection("c", schema=schema, index_params=index, consistency_level="Strong")


def test_rows_and_questions_are_embedded_elsewhere(client, provider):
    create(client, provider)
    assert [body["input"] for _, _, body in provider.asked] == [["check"]]
    provider.asked.clear()
    rows = [{"id": n, "text": f"text {n}"} for n in range(300)]
    assert client.insert("c", rows)["insert_count"] == 300
    found = client.search("c", ["number 7"], limit=3, output_fields=["text", "dense"])[0]
    assert found[0]["entity"] == {"text": "text 7", "dense": [7.0, 1.0, 1.0, 1.0]}
    assert {hit["id"] for hit in found[1:]} == {6, 8}
    for path, headers, body in provider.asked:
        assert (path, headers["authorization"]) == ("/v1/embeddings", f"Bearer {KEY}")
        assert (body["model"], body["encoding_format"]) == ("small", "float")
        assert len(body["input"]) <= 128


def test_what_does_not_fit_is_refused_when_it_is_declared(client, provider):
    provider.dim = 3
    with refused(2400, "required embedding dim is [4]", "is [3]"):
        create(client, provider)
    provider.dim = 4
    with refused(1100, "does not match the dimension [8]"):
        create(client, provider, dim=8)
    with refused(1100, "can not find credential: other"):
        create(client, provider, credential="other")
    asked = len(provider.asked)
    for url in ("http://127.0.0.1:1/v1", "http://169.254.169.254/latest", "https://example.com/v1"):
        with refused(1100, "is not allowed", "providers.allow"):
            create(client, provider, url=url)
    assert len(provider.asked) == asked
    assert client.list_collections() == []


def test_a_failing_provider_fails_the_call_and_writes_nothing(client, provider):
    create(client, provider)
    provider.fail = (400, {"error": {"message": f"bad key {KEY}"}})
    with refused(2400, "function failed", "400", "bad key [key]"):
        client.insert("c", [{"id": 1, "text": "text 1"}])
    with refused(2400, "function failed"):
        client.search("c", ["number 1"], limit=1)
    provider.fail = (401, {"error": {"message": f"Incorrect API key provided: {KEY[:6]}"}})
    with refused(2400, "the key was refused"):
        client.insert("c", [{"id": 1, "text": "text 1"}])
    provider.fail = (200, {"data": "garbage"})
    with refused(2400, "not understood"):
        client.insert("c", [{"id": 1, "text": "text 1"}])
    provider.fail = None
    assert client.query("c", "id >= 0", output_fields=["count(*)"])[0]["count(*)"] == 0
    client.insert("c", [{"id": 1, "text": "text 1"}])


def test_hits_are_judged_elsewhere(client, provider):
    create(client, provider)
    client.insert("c", [{"id": n, "text": f"text {n}"} for n in range(10)])
    params = {"reranker": "model", "provider": "tei", "endpoint": provider.url, "queries": ["best"]}
    ranker = Function("r", FunctionType.RERANK, ["text"], params={**params, "max_client_batch_size": 3})
    provider.asked.clear()
    found = client.search("c", ["number 0"], limit=7, output_fields=["text"], ranker=ranker)[0]
    assert [hit["id"] for hit in found] == [6, 5, 4, 3, 2, 1, 0]
    assert found[0]["distance"] == pytest.approx(0.6)
    calls = [body for path, _, body in provider.asked if path == "/rerank"]
    assert sorted(len(body["texts"]) for body in calls) == [1, 3, 3] and calls[0]["query"] == "best"
    elsewhere = Function("r", FunctionType.RERANK, ["text"], params={**params, "endpoint": "http://10.0.0.1"})
    with refused(1100, "is not allowed"):
        client.search("c", ["number 0"], limit=7, ranker=elsewhere)
