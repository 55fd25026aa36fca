"""Summaries of attention: what numpy makes of the whole patterns that the same call gives."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain import blocks
from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import decoded, fetch, generate, intervention, run, site
from tests.contract.readouts import of_kind, patterns, summaries

LAYERS, HEADS = 4, 4
"""Of the fake engine, whose odd layers have a window, and whose heads share keys in pairs."""
TEXT = "abcab abba"
OFFSETS = [4, 0, 1, 60]
TOP_KEYS = 3
METRICS = [
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "entropy",
    "distance",
]


def asked(**spec: Any) -> list[dict[str, Any]]:
    """A summary of all layers, and beside it the patterns of all heads at the same queries."""
    queries = {"queries": spec["queries"]} if "queries" in spec else {}
    return [
        {"attention_summary": {"offsets": OFFSETS, "top_keys": TOP_KEYS, **spec}},
        *(
            {"attention": {"layer": layer, "heads": range(HEADS), **queries}}
            for layer in range(LAYERS)
        ),
    ]


def sinking() -> FakeEngine:
    """A model whose heads have attention sinks."""
    fake = FakeEngine()
    sinks = np.array([-1, 0, 1, 3], np.float32)
    rules = tuple(replace(rule, sinks=sinks) for rule in fake.info.attention)
    fake._info = replace(fake.info, attention=rules)
    return fake


def without_room() -> FakeEngine:
    """One that gives whole queries and keys, since it has no room for keys of its own."""
    return FakeEngine(vector_bytes=0)


def expected(
    weights: np.ndarray, queries: list[int], ids: list[int], top_keys: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The counts and means of one layer, in float64 from whole patterns [heads, queries, keys]."""
    weights = weights.astype(np.float64)
    at, keys = np.array(queries), np.arange(weights.shape[2])
    ids_at = np.array(ids)
    follows = np.zeros(weights.shape[1:], bool)
    follows[:, 1:] = ids_at[at, None] == ids_at[keys[:-1]]
    follows &= keys <= at[:, None]
    before = [np.flatnonzero(at >= offset) for offset in OFFSETS]
    later = np.flatnonzero(at > 0)
    repeats = follows.any(1)
    logs = np.log(np.where(weights > 0, weights, 1))
    received = weights.mean(1)
    top = np.argsort(-received, axis=1, kind="stable")[:, :top_keys]
    counts = {
        "queries": len(at),
        "previous_token_queries": len(later),
        "induction_queries": int(repeats.sum()),
        "offset_queries": [len(rows) for rows in before],
    }
    means = {
        "previous_token": weights[:, later, at[later] - 1].mean(1),
        "current_token": weights[:, np.arange(len(at)), at].mean(1),
        "first_token": weights[:, :, 0].mean(1),
        "induction": (weights * follows).sum(2)[:, repeats].mean(1),
        "entropy": -(weights * logs).sum(2).mean(1),
        "distance": (weights * (at[:, None] - keys)).sum(2).mean(1),
        "at_offsets": np.stack(
            [
                weights[:, rows, at[rows] - offset].mean(1) if len(rows) else np.full(HEADS, np.nan)
                for rows, offset in zip(before, OFFSETS, strict=True)
            ],
            axis=1,
        ),
        "top_keys": top,
        "top_key_means": np.take_along_axis(received, top, 1),
    }
    return counts, means


def check(
    chunk: Any, weights: np.ndarray, queries: list[int], ids: list[int], top_keys: int = TOP_KEYS
) -> None:
    counts, means = expected(weights, queries, ids, top_keys)
    for name, count in counts.items():
        got = getattr(chunk, name)
        assert (list(got) if isinstance(count, list) else got) == count, name
    for name in [*METRICS, "at_offsets", "top_key_means"]:
        got = decoded(getattr(chunk, name))
        np.testing.assert_allclose(got, means[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert np.reshape(chunk.top_keys, (HEADS, top_keys)).tolist() == means["top_keys"].tolist()


@pytest.mark.parametrize("make", [fetch, generate])
@pytest.mark.parametrize("model", [FakeEngine, sinking, without_room])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"queries": {"list": {"positions": [3, 6, -1]}}},
        {"queries": {"token_ids": {"ids": [*b"ab"]}}},
        {"layers": [3, -3], "queries": {"span": {"start": 1}}},
        {"top_keys": 0},
        {"top_keys": 0, "queries": {"token_ids": {"ids": [*b"ab"]}}},
    ],
    ids=["all queries", "a list", "by token", "some layers", "no keys", "by token, no keys"],
)
async def test_every_metric_is_that_of_the_whole_patterns_of_the_call(
    make: Any, model: Any, spec: dict[str, Any]
) -> None:
    request = fetch(TEXT, readouts=asked(**spec))
    if make is generate:
        request = generate(
            prompt={"text": TEXT}, readouts=asked(**spec), sampling={"max_tokens": 6}
        )
    events = await run(request, model())
    ids = [256, *TEXT.encode()]
    for tokens in of_kind(events, "tokens"):
        ids.extend(tokens.ids)
    found = patterns(events)
    (chunks,) = summaries(events).values()
    layers = [each % LAYERS for each in spec.get("layers", range(LAYERS))]
    assert [chunk.layer for chunk in chunks] == layers
    (started,) = of_kind(events, "started")
    assert [list(each.layers) for each in started.readouts] == [layers, [], [], [], []]
    for chunk in chunks:
        of_layer = [found[0, 1 + chunk.layer, head] for head in range(HEADS)]
        weights = np.stack([each.weights for each in of_layer])
        if model is sinking:
            assert (weights.sum(2) < 1).all()
        check(chunk, weights, of_layer[0].queries, ids, spec.get("top_keys", TOP_KEYS))


async def test_summaries_follow_interventions() -> None:
    edits = [intervention(site(0, site_pb2.HOOK_POINT_K), heads=[1], zero={})]
    events = await run(fetch(TEXT, readouts=asked(), interventions=edits))
    weights = np.stack([patterns(events)[0, 1, head].weights for head in range(HEADS)])
    check(summaries(events)[0, 0][0], weights, list(range(11)), [256, *TEXT.encode()])
    plain = await run(fetch(TEXT, readouts=asked()))
    untouched = [summaries(each)[0, 0][0].entropy.data for each in (events, plain)]
    assert untouched[0] != untouched[1]


async def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = summaries(await run(fetch(TEXT, readouts=asked()))).values()
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3 * 4 * 11)
    (cut,) = summaries(await run(fetch(TEXT, readouts=asked()))).values()
    for one, other in zip(cut, whole, strict=True):
        assert one.top_keys == other.top_keys
        for name in [*METRICS, "at_offsets", "top_key_means"]:
            np.testing.assert_allclose(
                decoded(getattr(one, name)), decoded(getattr(other, name)), rtol=1e-5, atol=1e-7
            )


async def test_every_prompt_and_sample_has_its_own() -> None:
    readouts = asked()[:1]
    events = await run(fetch("ab", TEXT, readouts=readouts))
    alone = await run(fetch(TEXT, readouts=readouts))
    found = summaries(events)
    assert {key: chunks[0].queries for key, chunks in found.items()} == {(0, 0): 3, (1, 0): 11}
    assert [each.entropy for each in found[1, 0]] == [
        each.entropy for each in summaries(alone)[0, 0]
    ]
    samples = await run(generate(readouts=readouts, sampling={"samples": 2, "max_tokens": 3}))
    assert summaries(samples).keys() == {(0, 0), (1, 0)}


async def test_where_nothing_is_selected_every_mean_is_that_of_nothing() -> None:
    events = await run(generate(readouts=asked(queries={"token_ids": {"ids": [0]}})))
    assert not patterns(events)
    (chunks,) = summaries(events).values()
    assert len(chunks) == LAYERS
    for chunk in chunks:
        assert (chunk.queries, chunk.previous_token_queries, chunk.induction_queries) == (0, 0, 0)
        assert list(chunk.offset_queries) == [0] * len(OFFSETS)
        for name in METRICS:
            assert np.isnan(decoded(getattr(chunk, name))).all()
            assert getattr(chunk, name).shape == [HEADS]
        assert set(chunk.top_keys) == {-1}
        assert not decoded(chunk.top_key_means).any()


async def test_keys_that_receive_nothing_are_not_among_the_top() -> None:
    events = await run(fetch("ab", readouts=[{"attention_summary": {"top_keys": 5}}]))
    for chunk in summaries(events)[0, 0]:
        keys = np.reshape(chunk.top_keys, (HEADS, 5))
        assert (keys[:, 3:] == -1).all()
        assert np.sort(keys[:, :3]).tolist() == [[0, 1, 2]] * HEADS
        assert not decoded(chunk.top_key_means)[:, 3:].any()


async def test_all_heads_of_25_prompts_of_192_tokens_are_less_than_two_megabytes() -> None:
    layers, tokens = 30, 192
    fake = FakeEngine(layer_count=layers, limits=Limits(max_sequence_tokens=256))
    readout = {"attention_summary": {"offsets": [2, 3, 4, 96], "top_keys": 8}}
    events = await run(fetch("ab" * 95 + "c", readouts=[readout]), fake)
    (chunks,) = summaries(events).values()
    assert [chunk.queries for chunk in chunks] == [tokens] * layers
    sent = sum(event.ByteSize() for event in events if event.HasField("attention_summary"))
    # A model of nine heads, whose whole patterns take 995 MB, as SmolLM2-135M.
    assert 25 * sent * 9 / HEADS < 2e6


async def test_the_largest_summary_of_a_layer_fits_into_a_message() -> None:
    fake = FakeEngine(layer_count=1)
    readout = {"attention_summary": {"offsets": range(64), "top_keys": 64}}
    events = await run(fetch("x" * 99, readouts=[readout]), fake)
    (chunk,) = of_kind(events, "attention_summary")
    assert chunk.ByteSize() / HEADS * 800 < 1 << 20
