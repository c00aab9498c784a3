"""Hybrid search and rankers against numpy (contract §7)."""

import numpy as np
import pytest
from pymilvus import (
    AnnSearchRequest,
    DataType,
    Function,
    FunctionScore,
    FunctionType,
    RRFRanker,
    WeightedRanker,
)

import oracle
from helpers import KEY, assert_status, create, ids, ok, pairs, pb, refused, schema, search_request

N, DIM = 200, 8
METRICS = {"a": "COSINE", "b": "IP", "c": "L2", "s": "IP"}


@pytest.fixture(scope="module")
def world(client):
    """One collection with four vector fields of different metrics, half sealed, half growing."""
    name = "hybrid_world"
    fields = [(f, DataType.FLOAT_VECTOR, {"dim": DIM}) for f in "abc"]
    create(
        client,
        name,
        schema(
            KEY,
            *fields,
            ("s", DataType.SPARSE_FLOAT_VECTOR),
            ("g", DataType.INT64),
            ("t", DataType.VARCHAR, {"max_length": 20}),
        ),
        *[(f, "FLAT", METRICS[f]) for f in "abc"],
        ("s", "SPARSE_INVERTED_INDEX", "IP"),
    )
    rng = np.random.default_rng(7)

    def row(i):
        terms = rng.choice(50, 6, replace=False)
        return {
            "id": i,
            **{f: rng.standard_normal(DIM).tolist() for f in "abc"},
            "s": {int(t): float(rng.random()) + 0.1 for t in terms},
            "g": i % 5,
            "t": f"text {i}",
        }

    rows = [row(i) for i in range(N)]
    client.insert(name, rows[: N // 2])
    client.flush(name)
    client.insert(name, rows[N // 2 :])
    yield name
    client.drop_collection(name)


@pytest.fixture
def queries():
    rng = np.random.default_rng(11)
    return {
        **{f: [rng.standard_normal(DIM).tolist() for _ in range(3)] for f in "abc"},
        "s": [
            {int(t): float(rng.random()) + 0.1 for t in rng.choice(50, 8, replace=False)} for _ in range(3)
        ],
    }


def leg(queries, field, limit=30, nq=1, **kwargs):
    return AnnSearchRequest(queries[field][:nq], field, {"metric_type": METRICS[field]}, limit, **kwargs)


def single(client, world, queries, field, limit=30, nq=1, **kwargs):
    found = client.search(world, queries[field][:nq], anns_field=field, limit=limit, **kwargs)
    return [[(h.id, h.distance) for h in hits] for hits in found]


def check(hits, expected):
    """Same scores; same keys, except where float rounding makes a tie."""
    got = [(h.id, h.distance) for h in hits]
    expected = expected[: len(got)]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in expected], rtol=2e-6, atol=1e-7)
    scores = dict(expected)
    for (key, score), (other, _) in zip(got, expected, strict=True):
        assert key == other or abs(scores.get(key, score) - score) < 1e-6


@pytest.mark.parametrize("k", [60, 1, 0.5, 16383])
def test_rrf(client, world, queries, k):
    hits = client.hybrid_search(world, [leg(queries, "a"), leg(queries, "s")], RRFRanker(k), limit=20)[0]
    lists = [single(client, world, queries, f)[0] for f in "as"]
    check(hits, oracle.rrf(lists, k))
    assert len(hits) == 20


@pytest.mark.parametrize(
    "fields, weights",
    [
        ("ab", (0.7, 0.3)),
        ("abcs", (0.1, 0.2, 0.3, 0.4)),
        ("c", (1.0,)),
        ("cs", (0.5, 0.5)),
        ("as", (0.0, 1.0)),
    ],
)
@pytest.mark.parametrize("norm", [True, False])
def test_weighted(client, world, queries, fields, weights, norm):
    legs = [leg(queries, f) for f in fields]
    hits = client.hybrid_search(world, legs, WeightedRanker(*weights, norm_score=norm), limit=25)[0]
    lists = [single(client, world, queries, f)[0] for f in fields]
    check(hits, oracle.weighted(lists, weights, [METRICS[f] for f in fields], norm))


def test_searches_one_after_another_find_what_the_first_found(client, world, queries):
    """After some that were short, the node runs them on another thread."""

    def found():
        hits = client.hybrid_search(world, [leg(queries, "b"), leg(queries, "s")], RRFRanker(), limit=20)[0]
        return [(h.id, h.distance) for h in hits], single(client, world, queries, "s", output_fields=["t"])

    first = found()
    assert all(found() == first for _ in range(100))


def test_several_queries_are_fused_each_for_itself(client, world, queries):
    found = client.hybrid_search(
        world, [leg(queries, "a", nq=3), leg(queries, "b", nq=3)], RRFRanker(), limit=10
    )
    lists = [single(client, world, queries, f, nq=3) for f in "ab"]
    for i in range(3):
        check(found[i], oracle.rrf([lists[0][i], lists[1][i]]))


def test_each_leg_has_its_own_filter_and_depth(client, world, queries):
    legs = [
        leg(queries, "a", limit=5, expr="g == 1"),
        leg(queries, "b", limit=7, expr="g == {x}", expr_params={"x": 2}),
    ]
    hits = client.hybrid_search(world, legs, RRFRanker(), limit=50, output_fields=["g"])[0]
    assert len(hits) == 12
    assert {h["entity"]["g"] for h in hits} == {1, 2}


def test_offset_and_fields(client, world, queries):
    legs = [leg(queries, "a"), leg(queries, "s")]
    whole = client.hybrid_search(world, legs, RRFRanker(), limit=12)[0]
    page = client.hybrid_search(world, legs, RRFRanker(), limit=5, offset=4, output_fields=["t", "g"])[0]
    assert ids(page) == ids(whole)[4:9]
    assert page[0]["entity"] == {"t": f"text {page[0].id}", "g": page[0].id % 5}


def test_round_decimal_is_that_of_the_fused_score(client, world, queries):
    legs = [leg(queries, "a"), leg(queries, "b")]
    hits = client.hybrid_search(world, legs, WeightedRanker(0.5, 0.5), limit=5, round_decimal=2)[0]
    assert all(round(h.distance, 2) == pytest.approx(h.distance, abs=1e-6) for h in hits)


def raw_hybrid(wire, world, queries, fields="ab", **rank):
    """The legs, and rank parameters as given."""
    requests = []
    for f in fields:
        requests.append(search_request(world, queries[f][:1], field=f, limit=30))
    return wire.HybridSearch(
        pb.HybridSearchRequest(
            collection_name=world, requests=requests, rank_params=pairs(**rank), use_default_consistency=True
        )
    )


def test_without_a_strategy_it_is_rrf(wire, client, world, queries):
    data = ok(raw_hybrid(wire, world, queries, limit=10)).results
    lists = [single(client, world, queries, f)[0] for f in "ab"]
    np.testing.assert_allclose(data.scores, [s for _, s in oracle.rrf(lists)[:10]], rtol=2e-6)


def test_absent_norm_score_means_false(wire, client, world, queries):
    data = ok(
        raw_hybrid(wire, world, queries, strategy="weighted", params='{"weights":[0.5,0.5]}', limit=10)
    ).results
    lists = [single(client, world, queries, f)[0] for f in "ab"]
    expected = oracle.weighted(lists, (0.5, 0.5), ["COSINE", "IP"], norm_score=False)
    np.testing.assert_allclose(data.scores, [s for _, s in expected[:10]], rtol=2e-6)


BAD_RANKS = {
    "no limit": ({"strategy": "rrf"}, "limit not found in rank_params"),
    "unknown strategy": ({"strategy": "magic", "limit": 5}, "unsupported rank type magic"),
    "k of zero": (
        {"strategy": "rrf", "params": '{"k": 0}', "limit": 5},
        "The rank params k should be in range (0, 16384)",
    ),
    "k of 16384": ({"strategy": "rrf", "params": '{"k": 16384}', "limit": 5}, "(0, 16384)"),
    "k of words": ({"strategy": "rrf", "params": '{"k": "many"}', "limit": 5}, ""),
    "one weight for two": (
        {"strategy": "weighted", "params": '{"weights":[1]}', "limit": 5},
        "the length of weights param mismatch with ann search requests",
    ),
    "weight of two": (
        {"strategy": "weighted", "params": '{"weights":[2,1]}', "limit": 5},
        "rank param weight should be in range [0, 1]",
    ),
    "no weights": ({"strategy": "weighted", "params": "{}", "limit": 5}, ""),
    "broken json": ({"strategy": "rrf", "params": "{", "limit": 5}, ""),
    "limit of zero": ({"limit": 0}, ""),
    "too deep": ({"limit": 10, "offset": 16380}, ""),
}


@pytest.mark.parametrize("rank, text", BAD_RANKS.values(), ids=BAD_RANKS.keys())
def test_rank_parameters_that_are_refused(wire, world, queries, rank, text):
    assert_status(raw_hybrid(wire, world, queries, **rank).status, 1100, 5, text)


def test_requests_that_are_refused(wire, client, world, queries):
    assert_status(raw_hybrid(wire, world, queries, fields="", limit=5).status, 1100)
    with refused(1100, "sub search request nq should be the same"):
        client.hybrid_search(world, [leg(queries, "a", nq=1), leg(queries, "b", nq=2)], RRFRanker(), limit=5)
    with refused(100):
        client.hybrid_search("no_such", [leg(queries, "a")], RRFRanker(), limit=5)


def test_a_leg_without_hits_leaves_the_other(client, world, queries):
    legs = [leg(queries, "a", expr="id < 0"), leg(queries, "b")]
    hits = client.hybrid_search(world, legs, RRFRanker(), limit=5)[0]
    assert ids(hits) == [key for key, _ in single(client, world, queries, "b")[0][:5]]
    nothing = [leg(queries, "a", expr="id < 0"), leg(queries, "b", expr="id < 0")]
    assert client.hybrid_search(world, nothing, RRFRanker(), limit=5)[0] == []


def test_sub_request_params_may_be_empty_text(wire, world, queries):
    requests = [search_request(world, queries["a"][:1], field="a", limit=5, params={"params": ""})]
    ok(
        wire.HybridSearch(
            pb.HybridSearchRequest(collection_name=world, requests=requests, rank_params=pairs(limit=5))
        )
    )


def test_one_leg_is_enough(client, world, queries):
    hits = client.hybrid_search(world, [leg(queries, "s")], RRFRanker(), limit=5)[0]
    assert ids(hits) == [key for key, _ in single(client, world, queries, "s")[0][:5]]


# ---- grouping (7.3)


@pytest.mark.parametrize("scorer", ["max", "sum", "avg"])
def test_groups_in_hybrid_search(client, world, queries, scorer):
    legs = [leg(queries, "a", limit=100), leg(queries, "b", limit=100)]
    hits = client.hybrid_search(
        world,
        legs,
        RRFRanker(),
        limit=3,
        group_by_field="g",
        group_size=2,
        strict_group_size=True,
        rank_group_scorer=scorer,
        output_fields=["g"],
    )[0]
    groups = [h["entity"]["g"] for h in hits]
    assert len(hits) == 6 and len(set(groups)) == 3
    assert all(groups[i] == groups[i + 1] for i in (0, 2, 4)), "hits of a group stay together"
    totals = [
        {"max": max, "sum": sum, "avg": lambda x: sum(x) / 2}[scorer]([h.distance for h in hits[i : i + 2]])
        for i in (0, 2, 4)
    ]
    assert totals == sorted(totals, reverse=True)


# ---- function rankers (7.4)


def rank_function(**params):
    inputs = params.pop("inputs", [])
    return Function(name="r", input_field_names=inputs, function_type=FunctionType.RERANK, params=params)


def test_rrf_and_weighted_as_functions(client, world, queries):
    legs = [leg(queries, "a"), leg(queries, "b")]
    lists = [single(client, world, queries, f)[0] for f in "ab"]
    hits = client.hybrid_search(world, legs, rank_function(reranker="rrf", k=10), limit=10)[0]
    check(hits, oracle.rrf(lists, 10))
    hits = client.hybrid_search(
        world, legs, rank_function(reranker="weighted", weights=[0.4, 0.6], norm_score=True), limit=10
    )[0]
    check(hits, oracle.weighted(lists, (0.4, 0.6), ["COSINE", "IP"]))


def test_a_function_ranks_a_plain_search_as_well(client, world, queries):
    alone = single(client, world, queries, "a")[0]
    for ranker in (
        rank_function(reranker="rrf", k=10),
        FunctionScore(functions=[rank_function(reranker="rrf", k=10)]),
    ):
        hits = client.search(world, queries["a"][:1], anns_field="a", limit=30, ranker=ranker)[0]
        check(hits, oracle.rrf([alone], 10))


def test_rankers_that_are_not_there_are_refused_by_name(client, world, queries):
    with refused(1100, "unsupported rerank function: [magic]"):
        client.hybrid_search(world, [leg(queries, "a")], rank_function(reranker="magic"), limit=5)


def decay(function, **params):
    return rank_function(
        inputs=["g"],
        reranker="decay",
        function=function,
        **{"origin": 0, "scale": 2, "offset": 1, "decay": 0.3, **params},
    )


@pytest.mark.parametrize("function", ["gauss", "exp", "linear"])
def test_decay(client, world, queries, function):
    """`g` is the key modulo 5; scores fade with its distance from 0."""
    hits = client.search(world, queries["a"][:1], anns_field="a", limit=N, ranker=decay(function))[0]
    plain = dict(single(client, world, queries, "a", limit=N)[0])
    expected = {key: score * oracle.decay(function, key % 5, 0, 2, 1, 0.3) for key, score in plain.items()}
    scores = [h.distance for h in hits]
    np.testing.assert_allclose(scores, [s for _, s in oracle.order(expected)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores, [expected[h.id] for h in hits], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode, merge", [("max", max), ("sum", sum), ("avg", lambda x: sum(x) / len(x))])
def test_decay_merges_the_legs(client, world, queries, mode, merge):
    """Distances become 1 - 2·atan(d)/π first."""
    ranker = decay("gauss", score_mode=mode)
    hits = client.hybrid_search(world, [leg(queries, "a"), leg(queries, "c")], ranker, limit=40)[0]
    near = dict(single(client, world, queries, "a")[0])
    far = {key: 1 - 2 * np.arctan(d) / np.pi for key, d in single(client, world, queries, "c")[0]}
    merged = {k: merge([part[k] for part in (near, far) if k in part]) for k in near.keys() | far.keys()}
    expected = {key: score * oracle.decay("gauss", key % 5, 0, 2, 1, 0.3) for key, score in merged.items()}
    ordered = oracle.order(expected)[: len(hits)]
    np.testing.assert_allclose([h.distance for h in hits], [s for _, s in ordered], rtol=1e-4, atol=1e-6)


BAD_DECAYS = [
    {"function": "magic"},
    {"scale": 0},
    {"scale": "wide"},
    {"decay": 1},
    {"decay": 0},
    {"offset": -1},
    {"origin": "here"},
    {"score_mode": "median"},
]


@pytest.mark.parametrize("params", BAD_DECAYS, ids=str)
def test_decays_that_are_refused(client, world, queries, params):
    with refused(1100):
        client.search(
            world, queries["a"][:1], anns_field="a", ranker=decay(**{"function": "gauss", **params})
        )


def test_decay_needs_one_number(client, world, queries):
    for inputs in ([], ["t"], ["g", "id"], ["nothing"]):
        ranker = rank_function(inputs=inputs, reranker="decay", function="exp", origin=0, scale=1)
        with refused(1100):
            client.search(world, queries["a"][:1], anns_field="a", ranker=ranker)


def test_boosts_lift_the_rows_that_match(client, world, queries):
    boost = rank_function(reranker="boost", weight=3, filter="g == 2")
    hits = client.search(world, queries["a"][:1], anns_field="a", limit=N, ranker=boost)[0]
    plain = dict(single(client, world, queries, "a", limit=N)[0])
    expected = {key: score * 3 if key % 5 == 2 else score for key, score in plain.items()}
    scores = [h.distance for h in hits]
    np.testing.assert_allclose(scores, [expected[h.id] for h in hits], rtol=1e-6)
    assert scores == sorted(scores, reverse=True)
    added = FunctionScore(functions=[boost], params={"boost_mode": "sum"})
    hits = client.search(world, queries["a"][:1], anns_field="a", limit=N, ranker=added)[0]
    expected = {key: score + 3 if key % 5 == 2 else score for key, score in plain.items()}
    np.testing.assert_allclose([h.distance for h in hits], [expected[h.id] for h in hits], rtol=1e-6)


def test_a_boost_needs_a_weight_and_a_filter_that_is_one(client, world, queries):
    for params in (
        {},
        {"weight": "heavy"},
        {"weight": 2, "filter": "g =="},
        {"weight": 2, "filter": "nothing == 1"},
    ):
        with refused(1100):
            client.search(
                world, queries["a"][:1], anns_field="a", ranker=rank_function(reranker="boost", **params)
            )
