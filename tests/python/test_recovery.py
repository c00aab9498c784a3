"""What every type looks like after the node was killed: from the log, and from sealed files."""

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from helpers import KEY, create, schema, vector
from node import Node

NULLABLE = {"nullable": True}
FIELDS = [
    KEY,
    ("b", DataType.BOOL, NULLABLE),
    ("i8", DataType.INT8, NULLABLE),
    ("i16", DataType.INT16, NULLABLE),
    ("i32", DataType.INT32, NULLABLE),
    ("i64", DataType.INT64, NULLABLE),
    ("f", DataType.FLOAT, NULLABLE),
    ("d", DataType.DOUBLE, NULLABLE),
    ("t", DataType.VARCHAR, {"max_length": 99, **NULLABLE}),
    ("j", DataType.JSON, NULLABLE),
    ("a", DataType.ARRAY, {"element_type": DataType.VARCHAR, "max_capacity": 9, "max_length": 9, **NULLABLE}),
    vector(4),
    ("vn", DataType.FLOAT_VECTOR, {"dim": 2, **NULLABLE}),
    ("h", DataType.FLOAT16_VECTOR, {"dim": 4}),
    ("x", DataType.BINARY_VECTOR, {"dim": 16}),
    ("i", DataType.INT8_VECTOR, {"dim": 4}),
    ("s", DataType.SPARSE_FLOAT_VECTOR),
]
INDEXES = [
    ("v", "HNSW", "COSINE"),
    ("vn", "FLAT", "L2"),
    ("h", "FLAT", "IP"),
    ("x", "BIN_FLAT", "JACCARD"),
    ("i", "FLAT", "L2"),
    ("s", "SPARSE_INVERTED_INDEX", "IP"),
]


def row(i):
    null = i % 4 == 3
    scalars = {
        "b": i % 2 == 0,
        "i8": -i,
        "i16": i * 100,
        "i32": -i * 10_000,
        "i64": i * 10**12,
        "f": i / 4,
        "d": i / 3,
        "t": f"text {i} ü",
        "j": {"i": i, "list": [1, None, {"deep": "x"}]},
        "a": [f"e{n}" for n in range(i % 5)],
        "vn": [i, -i],
    }
    return {
        "id": i,
        **(dict.fromkeys(scalars) if null else scalars),
        "v": [i + 1.0, 1, 0, 0.5],
        "h": np.array([i, 1, 2, 3], np.float16),
        "x": bytes([i, 255 - i]),
        "i": np.array([i, -i, 0, 1], np.int8),
        "s": {i: 1.0, i + 1000: 0.25},
        "extra": {"n": i},
    }


def everything(client):
    """All rows as plain values, and the hits of one search on each vector field."""
    rows = [dict(r) for r in client.query("all_types", "id >= 0", output_fields=["*"])]
    queries = {
        "v": [5, 1, 0, 0],
        "vn": [8, -8],
        "h": np.array([9, 1, 2, 3], np.float16),
        "x": bytes([7, 248]),
        "i": np.array([6, -6, 0, 1], np.int8),
        "s": {12: 1.0, 1012: 1.0},
    }
    hits = {
        field: [(h.id, h.distance) for h in client.search("all_types", [query], anns_field=field, limit=8)[0]]
        for field, query in queries.items()
    }
    return rows, hits


@pytest.mark.parametrize("flush_at", [None, 20, 40], ids=["all in the log", "half sealed", "all sealed"])
def test_every_type_survives_a_kill(tmp_path, flush_at):
    node = Node(tmp_path).start()
    try:
        client = MilvusClient(node.uri)
        create(client, "all_types", schema(*FIELDS, dynamic=True), *INDEXES)
        for start in range(0, 40, 10):
            client.insert("all_types", [row(i) for i in range(start, start + 10)])
            if start + 10 == flush_at:
                client.flush("all_types")
        client.delete("all_types", ids=[1, 21])
        client.delete("all_types", filter="i8 == -2")
        client.upsert("all_types", [{**row(30), "t": "replaced"}, {**row(4), "t": "replaced too"}])
        before = everything(client)
        assert len(before[0]) == 37
        client.close()

        for _ in range(2):
            node.kill()
            node.start()
            client = MilvusClient(node.uri)
            rows, hits = everything(client)
            assert rows == before[0]
            assert hits == before[1]
            client.close()
    finally:
        node.kill()
