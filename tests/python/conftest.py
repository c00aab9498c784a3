"""Fixtures: one node for the whole session, a client, and a fresh collection name for each test."""

import hashlib
import json

import grpc
import pytest
from pymilvus import MilvusClient
from pymilvus.grpc_gen import milvus_pb2_grpc

from helpers import GOLDEN
from node import Node


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of models: the tiny random ones in the layout, and under the name, of the real."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "BAAI").mkdir()
    (folder / "BAAI" / "bge-m3").symlink_to(GOLDEN / "tiny-bge-m3")
    (folder / "tiny-bge-m3").symlink_to(GOLDEN / "tiny-bge-m3")
    (folder / "tiny-reranker").symlink_to(GOLDEN / "tiny-reranker")
    return folder


@pytest.fixture(scope="session")
def node(tmp_path_factory, models):
    """The node that all tests share which do not stop or kill it."""
    node = Node(tmp_path_factory.mktemp("node"), "--model-dir", str(models)).start()
    yield node
    seconds = node.stop()
    assert "panicked" not in node.said(), f"a handler panicked:\n{node.tail(200)}"
    assert seconds < 2, f"the node took {seconds:.1f} s to end"


@pytest.fixture(scope="session")
def client(node):
    client = MilvusClient(node.uri)
    yield client
    client.close()


@pytest.fixture(scope="session")
def wire(node):
    """The bare stub, for what no client lets one send, or hides."""
    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(node.grpc, options=limits) as channel:
        yield milvus_pb2_grpc.MilvusServiceStub(channel)


@pytest.fixture
def name(request, client):
    """A collection name of this test's own; the collection is dropped afterwards."""
    digest = hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:12]
    name = f"t_{digest}"
    yield name
    client.drop_collection(name)


@pytest.fixture(scope="session")
def golden():
    """What the reference implementation says of the tiny model."""
    return json.loads((GOLDEN / "tiny-bge-m3.golden.json").read_text())


@pytest.fixture(scope="session")
def sentences():
    """The golden sentences but the last, which is empty and which functions refuse."""
    return json.loads((GOLDEN / "sentences.json").read_text())[:-1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    node = item.funcargs.get("node") if hasattr(item, "funcargs") else None
    if report.failed and node is not None:
        report.sections.append(("end of the node's log", node.tail()))
    return report
