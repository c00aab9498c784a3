"""Models from a hub, by command and by setting; the hub is a local one with Hugging Face's manners."""

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pymilvus import DataType, Function, FunctionType, MilvusClient, MilvusException

from helpers import GOLDEN
from node import Node, binary

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = GOLDEN / "tiny-bge-m3"
TOKEN = "hf_a_token_that_nobody_sees"


class Hub:
    """The files of the tiny model as `org/tiny`; `.safetensors` and `.bin` lie on another host."""

    def __init__(self):
        self.open = threading.Event()  # until then large files stop in their middle
        self.open.set()
        self.asked = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.asked.append((self.path, dict(self.headers)))
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = request.path.split("?")[0]
        if path == "/api/models/org/tiny/revision/main":
            return self.send(request, json.dumps({"sha": COMMIT, "siblings": self.list()}).encode())
        name = path.rsplit("/", 1)[-1]
        if path == f"/org/tiny/resolve/{COMMIT}/{name}" and (FOLDER / name).is_file():
            body = (FOLDER / name).read_bytes()
            if not name.endswith((".safetensors", ".bin")):
                return self.send(request, body)
            request.send_response(302)
            request.send_header("location", f"{self.cdn}/{name}?signature=1")
            request.send_header("x-linked-etag", f'"{hashlib.sha256(body).hexdigest()}"')
            request.send_header("content-length", "0")
            return request.end_headers()
        if path in ("/model.safetensors", "/pytorch_model.bin"):
            return self.send(request, (FOLDER / name).read_bytes(), large=True)
        request.send_error(404)

    def list(self):
        found = []
        for path in sorted(FOLDER.iterdir()):
            body = path.read_bytes()
            blob = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
            entry = {"rfilename": path.name, "size": len(body), "blobId": blob}
            if path.suffix in (".safetensors", ".bin"):
                entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
            found.append(entry)
        return found

    def send(self, request, body, large=False):
        begin = 0
        if wanted := request.headers.get("range"):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("content-range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("content-length", str(len(body) - begin))
        request.end_headers()
        middle = len(body) // 2
        if large and begin < middle:
            request.wfile.write(body[begin:middle])
            request.wfile.flush()
            self.open.wait(30)
            begin = middle
        request.wfile.write(body[begin:])

    def close(self):
        self.open.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def command(folder, *words, hub=None):
    env = {**os.environ, "HF_TOKEN": TOKEN, **({"HF_ENDPOINT": hub.url} if hub else {})}
    words = [binary(), "model", *words, "--model-dir", folder]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def run(folder, *words, hub=None):
    process = command(folder, *words, hub=hub)
    out, err = process.communicate(timeout=60)
    assert TOKEN not in out + err
    return process.returncode, out, err


def wait(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_model_is_pulled_after_a_kill_in_its_middle(tmp_path, hub):
    hub.open.clear()
    process = command(tmp_path, "pull", "org/tiny", hub=hub)
    part = tmp_path / f".draft.org.tiny.{COMMIT[:12]}" / "model.safetensors.part"
    wait(lambda: part.is_file() and part.stat().st_size > 300_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run(tmp_path, "list")[1] == "", "half a model is no model"
    hub.open.set()
    code, out, err = run(tmp_path, "pull", "org/tiny", hub=hub)
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["fetched"], answer["commit"], answer["files"]) == ("org/tiny", COMMIT, 6)
    assert "org/tiny: 100 %" in err
    ranges = [h["range"] for p, h in hub.asked if p.startswith("/model.safetensors") and "range" in h]
    assert len(ranges) == 1, "the second attempt went on where the first was killed"
    held = {p.rsplit("/", 1)[-1].split("?")[0] for p, _ in hub.asked}
    assert not held & {"pytorch_model.bin", "special_tokens_map.json"}, "only what is needed"
    for path, headers in hub.asked:
        assert ("authorization" in headers) == (not path.startswith("/model.safetensors"))
    assert json.loads(run(tmp_path, "verify", "org/tiny")[1])["checksums"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["org"]
    code, _, err = run(tmp_path, "pull", "org/tiny", hub=hub)
    assert code == 1 and "remove that model first" in err


def test_a_model_that_cannot_be_had_says_what_to_do(tmp_path, hub):
    code, _, err = run(tmp_path, "pull", "org/other", hub=hub)
    assert code == 1 and "no such repository" in err and "elanus model add" in err
    hub.close()
    code, _, err = run(tmp_path, "pull", "org/tiny", "--endpoint", "http://127.0.0.1:1")
    assert code == 1 and "HF_ENDPOINT" in err and "config.json" in err


def test_a_node_fetches_the_models_of_its_settings_and_no_others(tmp_path, hub):
    hub.open.clear()
    settings = tmp_path / "elanus.toml"
    settings.write_text(f'[models]\ndownload = ["org/tiny"]\nhub = "{hub.url}"\n')
    node = Node(tmp_path, "--config", str(settings)).start()
    client = MilvusClient(node.uri)

    def create(model):
        params = {"provider": "builtin", "model_name": model}
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.VARCHAR, max_length=100)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=64)
        schema.add_function(Function("f", FunctionType.TEXTEMBEDDING, "text", "dense", params=params))
        client.create_collection("c", schema=schema)

    with pytest.raises(MilvusException, match="is not here yet") as refusal:
        create("org/tiny")
    assert refusal.value.code == 2
    with pytest.raises(MilvusException, match="was not found.*elanus model pull org/other"):
        create("org/other")
    hub.open.set()
    wait(lambda: "a model was fetched" in node.said())
    create("org/tiny")
    assert client.insert("c", [{"id": 1, "text": "a kite"}])["insert_count"] == 1
    client.close()
    node.stop()
    asked = len(hub.asked)
    node.start()
    node.stop()
    assert len(hub.asked) == asked, "a model that is there is not asked for"
    assert not any("other" in path for path, _ in hub.asked)
