"""Vector types and metrics against brute force in numpy (contract §3.1, §6.2)."""

import numpy as np
import pytest
from pymilvus import DataType

from helpers import KEY, create, ok, placeholder, schema, search_request

N, DIM, K = 300, 32, 10
TOLERANCE = {"f4": 1e-5, "f2": 1e-3, "bf2": 1e-2}


def bf16_bytes(rows):
    """Upper halves of float32, as bfloat16 travels."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return (bits >> 16).astype("<u2")


def bf16_values(rows):
    return (bf16_bytes(rows).astype(np.uint32) << 16).view(np.float32)


def scores(metric, data, query):
    data, query = np.asarray(data, np.float64), np.asarray(query, np.float64)
    if metric == "L2":
        return ((data - query) ** 2).sum(1)
    if metric == "IP":
        return data @ query
    norms = np.linalg.norm(data, axis=1) * np.linalg.norm(query)
    return np.divide(data @ query, norms, out=np.zeros(len(data)), where=norms > 0)


def best(metric, values, k=K):
    """Rows of the k best scores; ties by key."""
    sign = 1 if metric in ("L2", "HAMMING", "JACCARD") else -1
    return np.lexsort((np.arange(len(values)), sign * values))[:k]


def check(hits, metric, values, tolerance):
    """The hits are the best rows, or rows as good as those within the rounding of the type."""
    values = np.asarray(values)
    expected = best(metric, values)
    found = [hit.id for hit in hits]
    assert len(set(found)) == K
    np.testing.assert_allclose([h.distance for h in hits], values[found], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(values[found], values[expected], rtol=tolerance, atol=tolerance)
    distances = np.array([h.distance for h in hits])
    steps = np.diff(distances)
    assert (steps >= 0).all() if metric in ("L2", "HAMMING", "JACCARD") else (steps <= 0).all()


@pytest.fixture(params=[False, True], ids=["growing", "sealed"])
def sealed(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
@pytest.mark.parametrize("index", ["FLAT", "HNSW", "IVF_FLAT", "AUTOINDEX"])
def test_float_vectors_are_found_exactly(client, name, rng, metric, index, sealed):
    data = rng.standard_normal((N, DIM)).astype(np.float32)
    create(client, name, schema(KEY, ("v", DataType.FLOAT_VECTOR, {"dim": DIM})), ("v", index, metric))
    client.insert(name, [{"id": i, "v": row.tolist()} for i, row in enumerate(data)])
    if sealed:
        client.flush(name)
    queries = rng.standard_normal((5, DIM)).astype(np.float32)
    found = client.search(name, queries.tolist(), limit=K)
    for query, hits in zip(queries, found, strict=True):
        check(hits, metric, scores(metric, data, query), TOLERANCE["f4"])


@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
def test_float16_vectors(client, name, rng, metric, sealed):
    data = rng.standard_normal((N, DIM)).astype(np.float16)
    create(client, name, schema(KEY, ("v", DataType.FLOAT16_VECTOR, {"dim": DIM})), ("v", "FLAT", metric))
    client.insert(name, [{"id": i, "v": row} for i, row in enumerate(data)])
    if sealed:
        client.flush(name)
    query = rng.standard_normal(DIM).astype(np.float16)
    hits = client.search(name, [query], limit=K)[0]
    check(hits, metric, scores(metric, data, query), TOLERANCE["f2"])
    row = client.query(name, "id == 7", output_fields=["v"])[0]["v"]
    assert np.frombuffer(row[0] if isinstance(row, list) else row, np.float16).tolist() == data[7].tolist()


@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
def test_bfloat16_vectors(client, wire, name, rng, metric, sealed):
    data = rng.standard_normal((N, DIM)).astype(np.float32)
    create(client, name, schema(KEY, ("v", DataType.BFLOAT16_VECTOR, {"dim": DIM})), ("v", "FLAT", metric))
    client.insert(name, [{"id": i, "v": bf16_bytes(row).tobytes()} for i, row in enumerate(data)])
    if sealed:
        client.flush(name)
    query = rng.standard_normal(DIM).astype(np.float32)
    request = search_request(name, [[0]], limit=K)
    request.placeholder_group = placeholder(103, [bf16_bytes(query).tobytes()])
    result = ok(wire.Search(request)).results
    values = scores(metric, bf16_values(data), bf16_values(query))
    found = list(result.ids.int_id.data)
    np.testing.assert_allclose(result.scores, values[found], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(values[found], values[best(metric, values)], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
def test_int8_vectors(client, name, rng, metric, sealed):
    data = rng.integers(-128, 128, (N, DIM), dtype=np.int8)
    create(client, name, schema(KEY, ("v", DataType.INT8_VECTOR, {"dim": DIM})), ("v", "HNSW", metric))
    client.insert(name, [{"id": i, "v": row} for i, row in enumerate(data)])
    if sealed:
        client.flush(name)
    query = rng.integers(-128, 128, DIM, dtype=np.int8)
    check(client.search(name, [query], limit=K)[0], metric, scores(metric, data, query), 1e-5)


@pytest.mark.parametrize("metric", ["HAMMING", "JACCARD"])
def test_binary_vectors(client, name, rng, metric, sealed):
    data = rng.integers(0, 256, (N, 16), dtype=np.uint8)
    create(client, name, schema(KEY, ("v", DataType.BINARY_VECTOR, {"dim": 128})), ("v", "BIN_FLAT", metric))
    client.insert(name, [{"id": i, "v": row.tobytes()} for i, row in enumerate(data)])
    if sealed:
        client.flush(name)
    query = rng.integers(0, 256, 16, dtype=np.uint8)
    bits, asked = np.unpackbits(data, axis=1), np.unpackbits(query)
    if metric == "HAMMING":
        values = (bits != asked).sum(1).astype(float)
    else:
        values = 1 - (bits & asked).sum(1) / (bits | asked).sum(1)
    hits = client.search(name, [query.tobytes()], limit=K)[0]
    assert [h.id for h in hits] == best(metric, values).tolist(), "ties go by key"
    np.testing.assert_allclose([h.distance for h in hits], values[best(metric, values)], rtol=1e-6)


def random_sparse(rng, terms=200, most=20):
    size = int(rng.integers(1, most))
    indices = rng.choice(terms, size, replace=False)
    return {int(i): float(np.float32(w)) for i, w in zip(indices, rng.random(size) + 0.1, strict=True)}


@pytest.mark.parametrize("index", ["SPARSE_INVERTED_INDEX", "SPARSE_WAND", "AUTOINDEX"])
def test_sparse_vectors(client, name, rng, index, sealed):
    data = [random_sparse(rng) for _ in range(N)]
    create(client, name, schema(KEY, ("v", DataType.SPARSE_FLOAT_VECTOR)), ("v", index, "IP"))
    client.insert(name, [{"id": i, "v": row} for i, row in enumerate(data)])
    if sealed:
        client.flush(name)
    for _ in range(5):
        query = random_sparse(rng)
        values = np.array([sum(w * row.get(i, 0) for i, w in query.items()) for row in data])
        shared = [i for i, row in enumerate(data) if row.keys() & query.keys()]
        order = [i for i in best("IP", values, N) if i in set(shared)][:K]
        hits = client.search(name, [query], limit=K)[0]
        assert len(hits) == len(order)
        np.testing.assert_allclose([h.distance for h in hits], values[order], rtol=1e-5)
        np.testing.assert_allclose(values[[h.id for h in hits]], values[order], rtol=1e-5)


def test_sparse_values_may_be_negative(client, name):
    create(
        client, name, schema(KEY, ("v", DataType.SPARSE_FLOAT_VECTOR)), ("v", "SPARSE_INVERTED_INDEX", "IP")
    )
    client.insert(
        name, [{"id": 1, "v": {1: -2.0}}, {"id": 2, "v": {1: 1.0, 2: -5.0}}, {"id": 3, "v": {9: 1.0}}]
    )
    hits = client.search(name, [{1: 1.0, 2: 1.0}], limit=5)[0]
    assert [(h.id, h.distance) for h in hits] == [(1, -2.0), (2, -4.0)]


def test_scipy_rows_are_sparse_rows_too(client, name):
    create(
        client, name, schema(KEY, ("v", DataType.SPARSE_FLOAT_VECTOR)), ("v", "SPARSE_INVERTED_INDEX", "IP")
    )
    client.insert(name, [{"id": 1, "v": [(5, 0.5), (2, 1.5)]}])
    assert client.query(name, "id == 1", output_fields=["v"])[0]["v"] == {2: 1.5, 5: 0.5}


def test_a_zero_vector_has_cosine_zero_with_everything(client, name):
    create(client, name, schema(KEY, ("v", DataType.FLOAT_VECTOR, {"dim": 2})), ("v", "FLAT", "COSINE"))
    client.insert(name, [{"id": 1, "v": [0, 0]}, {"id": 2, "v": [3, 0]}, {"id": 3, "v": [-1, 0]}])
    hits = client.search(name, [[5, 0]], limit=3)[0]
    assert [(h.id, h.distance) for h in hits] == [(2, 1.0), (1, 0.0), (3, -1.0)]
    assert [h.distance for h in client.search(name, [[0, 0]], limit=3)[0]] == [0, 0, 0]
    assert client.query(name, "id == 2", output_fields=["v"])[0]["v"] == [3, 0], "stored unchanged"


def test_all_vector_types_live_in_one_collection(client, name):
    fields = [
        ("f", DataType.FLOAT_VECTOR, {"dim": 4}),
        ("h", DataType.FLOAT16_VECTOR, {"dim": 4}),
        ("b", DataType.BFLOAT16_VECTOR, {"dim": 4}),
        ("i", DataType.INT8_VECTOR, {"dim": 4}),
        ("x", DataType.BINARY_VECTOR, {"dim": 8}),
        ("s", DataType.SPARSE_FLOAT_VECTOR),
    ]
    create(
        client,
        name,
        schema(KEY, *fields),
        ("f", "FLAT", "L2"),
        ("h", "FLAT", "IP"),
        ("b", "FLAT", "COSINE"),
        ("i", "HNSW", "L2"),
        ("x", "BIN_FLAT", "HAMMING"),
        ("s", "SPARSE_INVERTED_INDEX", "IP"),
    )

    def row(i):
        return {
            "id": i,
            "f": [i] * 4,
            "h": np.array([i] * 4, np.float16),
            "b": bf16_bytes(np.array([i] * 4)).tobytes(),
            "i": np.array([i] * 4, np.int8),
            "x": bytes([i]),
            "s": {i: 1.0},
        }

    client.insert(name, [row(i) for i in range(1, 6)])
    client.flush(name)
    client.insert(name, [row(i) for i in range(6, 9)])
    for field, query in (
        ("f", [7.0] * 4),
        ("i", np.array([7] * 4, np.int8)),
        ("x", bytes([7])),
        ("s", {7: 1.0}),
    ):
        assert client.search(name, [query], anns_field=field, limit=1)[0][0].id == 7, field
    assert len(client.query(name, "id > 0", output_fields=["*"])) == 8
