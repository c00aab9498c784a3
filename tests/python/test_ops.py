"""The ops port, settings, and a life of a node (contract §12)."""

import json
import subprocess

import pytest
from pymilvus import MilvusClient

from helpers import simple
from node import Node, binary


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_health(node, path):
    assert node.page(path)[0] == 200


def test_metrics_are_in_the_text_format_of_prometheus(node, client, name):
    simple(client, name)
    client.search(name, [[0] * 4])
    status, text = node.page("/metrics")
    assert status == 200
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert any(line.startswith("elanus_") for line in lines)
    for line in lines:
        float(line.rsplit(" ", 1)[1])
    assert any("Search" in line or "search" in line for line in lines)


def test_nothing_else_is_served(node):
    assert node.page("/")[0] == 404
    assert node.page("/../etc/passwd")[0] in (400, 404)


def test_the_grpc_port_is_not_the_ops_port(node):
    assert node.grpc != node.ops
    endpoint = json.loads((node.data_dir / "endpoint.json").read_text())
    assert endpoint["grpc"] == node.grpc


def test_a_node_ends_quickly_and_comes_back(tmp_path):
    node = Node(tmp_path).start()
    client = MilvusClient(node.uri)
    simple(client, "kept")
    client.insert("kept", [{"id": i, "v": [i, 0, 0, 0]} for i in range(100)])
    client.delete("kept", ids=[0])
    assert node.stop() < 2
    client.close()
    assert not (node.data_dir / "endpoint.json").exists()
    node.start()
    client = MilvusClient(node.uri)
    try:
        assert client.query("kept", output_fields=["count(*)"])[0]["count(*)"] == 99
        assert client.search("kept", [[0] * 4], limit=1)[0][0].id == 1
    finally:
        client.close()
        node.kill()


def test_unknown_settings_are_errors(tmp_path):
    config = tmp_path / "elanus.toml"
    config.write_text("lisen = '127.0.0.1:0'\n")
    run = subprocess.run(
        [binary(), "serve", "--config", config, "--data-dir", tmp_path / "d"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert run.returncode != 0 and "lisen" in run.stderr + run.stdout


def test_an_address_beyond_this_machine_needs_a_decision(tmp_path):
    run = subprocess.run(
        [binary(), "serve", "--listen", "0.0.0.0:0", "--data-dir", tmp_path / "d"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert run.returncode != 0 and "auth" in run.stderr + run.stdout
