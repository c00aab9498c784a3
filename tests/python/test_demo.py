"""The demo's main path on the real models: what a new user sees first has to be right."""

import contextlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from demo import fetch_models, library  # noqa: E402
from demo.corpus import collect, fingerprint  # noqa: E402
from demo.node import Node  # noqa: E402


@pytest.fixture(scope="module")
def model_dir() -> Path:
    try:
        fetch_models.fetch_all(fetch_models.DEFAULT_DIR)
    except fetch_models.Unavailable as missing:
        pytest.skip(f"the demo's models are not here and could not be fetched: {missing}")
    return fetch_models.DEFAULT_DIR


@pytest.fixture(scope="module")
def documents():
    return collect()


@pytest.fixture(scope="module")
def client(model_dir, documents, tmp_path_factory):
    """A client of a node that has embedded every document."""
    with Node(tmp_path_factory.mktemp("demo") / "data", model_dir) as node:
        with contextlib.closing(library.MilvusClient(node.uri)) as client:
            assert library.prepare(client, documents) is not None
            yield client


def test_the_corpus_is_large_distinct_and_always_the_same(documents):
    assert len(documents) >= 5_000
    assert len({document.text for document in documents}) == len(documents)
    assert len({document.name for document in documents}) == len(documents)
    assert fingerprint(collect()) == fingerprint(documents)


def test_nearly_all_questions_have_answers_in_this_python(documents):
    assert len(library.questions(documents)) >= 30


def test_every_text_is_stored_once(client, documents):
    assert library.count(client) == len(documents)


def test_a_second_run_inserts_nothing(client, documents):
    assert library.prepare(client, documents) is None


def test_a_programmer_finds_what_they_expect(client):
    for ask, wanted in {
        "make a temporary directory": {"tempfile.mkdtemp", "tempfile.TemporaryDirectory"},
        "compress bytes": {"zlib.compress", "gzip.compress", "bz2.compress", "lzma.compress"},
        "parse command line arguments": {"argparse", "argparse.ArgumentParser", "getopt", "getopt.getopt"},
    }.items():
        found = library.fused(client, ask).names
        assert wanted & set(found), f"{ask!r} found {found}"


def test_fused_results_are_at_least_as_good_as_the_better_leg(client, documents):
    asked = library.questions(documents)
    dense, dense_missed = library.measure(client, asked, library.dense)
    sparse, sparse_missed = library.measure(client, asked, library.sparse)
    fused, fused_missed = library.measure(client, asked, library.fused)
    for leg, result in (("dense", dense), ("sparse", sparse), ("fused", fused)):
        print(f"{leg}: recall@10 {result.recall_at_10:.3f}, MRR {result.mrr_at_10:.3f}")
    assert fused.recall_at_10 >= max(dense.recall_at_10, sparse.recall_at_10), [
        question.ask for question in fused_missed
    ]
    assert fused.mrr_at_10 >= max(dense.mrr_at_10, sparse.mrr_at_10)
    assert fused.recall_at_10 >= 0.9, [question.ask for question in fused_missed]
    # A leg that is broken, and not merely weaker, must not hide behind the other.
    assert dense.recall_at_10 >= 0.7, [question.ask for question in dense_missed]
    assert sparse.recall_at_10 >= 0.6, [question.ask for question in sparse_missed]


def test_a_filter_keeps_only_what_it_names(client):
    hits = library.fused(client, "read a compressed file", filter='module in ["gzip", "lzma"]')
    assert hits.names
    assert all(name.split(".")[0] in ("gzip", "lzma") for name in hits.names)
