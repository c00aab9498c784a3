"""Damage to one collection: told everywhere, kept apart, mended only when asked."""

import json
import subprocess

import pytest
from pymilvus import MilvusClient, MilvusException

from helpers import simple
from node import Node, binary


def elanus(*args):
    return subprocess.run([binary(), *args], capture_output=True, text=True, timeout=60)


def metric(node, name):
    lines = node.page("/metrics")[1].splitlines()
    return float(next(line for line in lines if line.startswith(f"elanus_{name} ")).split()[1])


@pytest.fixture
def damaged(tmp_path):
    """The stopped node of two collections, of which `bad` has a damaged segment; and that file."""
    node = Node(tmp_path).start()
    client = MilvusClient(node.uri)
    for name in ("good", "bad"):
        simple(client, name)
        client.insert(name, [{"id": i, "v": [i, 0, 0, 0]} for i in range(100)])
        client.flush(name)
    client.insert("bad", [{"id": 100, "v": [100, 0, 0, 0]}])
    collection = client.describe_collection("bad")["collection_id"]
    client.close()
    busy = elanus("verify", node.data_dir)
    assert busy.returncode == 2 and str(node.process.pid) in busy.stderr, busy
    node.stop()
    sound = elanus("verify", node.data_dir, "--deep")
    assert sound.returncode == 0 and "2 collections" in sound.stdout, sound
    (segment,) = (node.data_dir / "data" / str(collection)).glob("*.arrow")
    with open(segment, "r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff")
    yield node, segment
    if node.process.poll() is None:
        node.kill()


def test_a_quarantined_collection_says_so_and_the_others_serve(damaged):
    node, segment = damaged
    node.start()
    client = MilvusClient(node.uri)
    assert segment.name in client.describe_collection("bad")["properties"]["elanus.damage"]
    assert "elanus.damage" not in client.describe_collection("good")["properties"]
    status, page = node.page("/readyz")
    assert status == 200 and segment.name in json.loads(page)["damaged"][0]
    assert metric(node, "damaged_collections") == 1
    with pytest.raises(MilvusException) as refused:
        client.query("bad", "id == 1")
    assert segment.name in refused.value.message
    assert client.query("good", output_fields=["count(*)"])[0]["count(*)"] == 100
    assert metric(node, "log_files_bytes") > 100
    client.drop_collection("bad")
    assert metric(node, "damaged_collections") == 0
    assert json.loads(node.page("/readyz")[1])["damaged"] == []
    client.close()


def test_verify_names_the_file_and_repair_drops_it_when_told(damaged):
    node, segment = damaged
    found = elanus("verify", node.data_dir, "--json")
    assert found.returncode == 1
    report = json.loads(found.stdout)
    assert not report["sound"]
    assert [item["path"] for item in report["findings"]] == [str(segment)]
    assert "offset" in report["findings"][0]["problem"]
    plan = elanus("repair", node.data_dir)
    assert plan.returncode == 1 and "would drop" in plan.stdout and "100 rows" in plan.stdout
    assert elanus("verify", node.data_dir).returncode == 1
    done = elanus("repair", node.data_dir, "--yes")
    assert done.returncode == 0, done
    assert elanus("verify", node.data_dir, "--deep").returncode == 0
    assert (node.data_dir / "damaged").is_dir()
    node.start()
    client = MilvusClient(node.uri)
    assert [row["id"] for row in client.query("bad", "id >= 0")] == [100]
    assert client.query("good", output_fields=["count(*)"])[0]["count(*)"] == 100
    client.close()


def test_files_can_be_looked_at(damaged):
    node, _ = damaged
    catalog = elanus("inspect", "catalog", node.data_dir / "catalog")
    assert {c["name"] for c in json.loads(catalog.stdout)["collections"]} == {"good", "bad"}
    log = elanus("inspect", "log", node.data_dir / "log")
    assert all(json.loads(line)["lsn"] > 0 for line in log.stdout.splitlines())
    assert elanus("inspect", "segment", node.data_dir / "nothing").returncode == 2
    assert elanus("verify", node.data_dir / "nowhere").returncode == 2


def test_a_weaker_durability_shows(tmp_path):
    node = Node(tmp_path, "--set", "durability=async").start()
    client = MilvusClient(node.uri)
    try:
        simple(client, "weak")
        assert client.describe_collection("weak")["properties"]["elanus.durability"] == "async"
        assert metric(node, "synced_writes") == 0
        assert "may be lost with power" in node.said()
    finally:
        client.close()
        node.kill()
