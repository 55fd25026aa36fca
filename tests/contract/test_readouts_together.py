"""Readouts: everything that is read of a prompt comes of one run, as if each were alone."""

from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from actserve.v1 import readout_pb2, site_pb2
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    collect,
    decoded,
    failure,
    fetch,
    generate,
    inline,
    matrices,
    run,
    serving,
    site,
)
from tests.contract.readouts import of_kind

LAYERS = 5
RNG = np.random.default_rng(3)
EVERY_LAYER = [site(layer) for layer in range(LAYERS)]
PROBES = [
    {
        "name": f"probe {layer}",
        "rows": {
            "sites": [site(layer)],
            "positions": {"last": {}},
            "projection": {"directions": inline(RNG.standard_normal((2, 16)))},
        },
    }
    for layer in range(LAYERS)
]
LENS = {"name": "lens", "predictions": {"sites": EVERY_LAYER, "top_k": 2}}
PATTERNS = [
    {"name": f"heads {layer}", "attention": {"layer": layer, "heads": [0, 3]}} for layer in (1, 3)
]
SUMMARY = {"name": "summary", "attention_summary": {"offsets": [2], "top_keys": 3}}
ATTRIBUTION = {
    "name": "attribution",
    "logit_attribution": {
        "sites": [*EVERY_LAYER, site(2, site_pb2.HOOK_POINT_Z)],
        "targets": [{"token_id": 104}, {"token_id": 33, "minus_token_id": 0}],
    },
}
TOGETHER = [*PROBES, LENS, *PATTERNS, SUMMARY, ATTRIBUTION]


KINDS = ("activations", "predictions", "attention", "attention_summary", "logit_attribution")


class Watched(FakeEngine):
    """Remembers the runs it was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(layer_count=LAYERS, **options)
        self.runs: list[Run] = []

    def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self.runs.append(run)
        return super().run(run)


def of_readouts(events: list[Any]) -> dict[int, list[Any]]:
    """What came of each readout: its chunks, without the readout's index."""
    found: dict[int, list[Any]] = {}
    for event in events:
        kind = event.WhichOneof("event")
        if kind in KINDS:
            chunk = getattr(event, kind)
            found.setdefault(chunk.readout_index, []).append(chunk)
            chunk.readout_index = 0
    return found


def positions(closed: Any) -> list[list[int]]:
    """Where each readout has read."""
    by_index = {i: list(each.positions) for each in closed.positions for i in each.readout_indices}
    return [by_index[index] for index in sorted(by_index)]


async def test_probes_a_lens_and_patterns_of_a_prompt_are_one_call_and_one_run() -> None:
    fake = Watched()
    async with serving(fake) as served:
        before = fake.counters.started
        events = await collect(
            served.generation.FetchActivations(fetch("hello", readouts=TOGETHER))
        )
        assert fake.counters.started - before == 1
    assert sorted(of_readouts(events)) == [*range(len(TOGETHER))]
    assert events[-1].WhichOneof("event") == "finished"


@pytest.mark.parametrize("make", [fetch, generate], ids=["fetch", "generate"])
async def test_each_readout_gives_what_it_gives_alone(make: Any) -> None:
    texts = ["hello"] if make is fetch else []
    together = of_readouts(await run(make(*texts, readouts=TOGETHER), Watched()))
    for index, readout in enumerate(TOGETHER):
        alone = of_readouts(await run(make(*texts, readouts=[readout]), Watched()))
        assert joined(together[index]) == joined(alone[0])


def joined(chunks: list[Any]) -> dict[Any, list[Any]]:
    """The chunks by sequence, site and head, however they were cut."""
    parts: dict[Any, list[Any]] = {}
    for chunk in chunks:
        match chunk:
            case readout_pb2.ActivationChunk():
                key, rows = (chunk.site_index, None), [chunk.positions, chunk.rows]
            case readout_pb2.PredictionChunk():
                key, rows = (chunk.site_index, None), [chunk.positions, chunk.top_logprobs]
            case readout_pb2.AttentionSummaryChunk():
                key, rows = (None, chunk.layer), [range(4), chunk.at_offsets]
            case readout_pb2.LogitAttributionChunk():
                key, rows = (chunk.site_index, None), [chunk.positions, chunk.contributions]
            case _:
                key, rows = (None, chunk.head), [chunk.queries, chunk.weights]
        where, values = rows
        parts.setdefault(key, []).extend(zip(where, decoded(values).tolist(), strict=True))
    return parts


async def test_equal_captures_are_shared() -> None:
    fake = Watched()
    everywhere = {"sites": EVERY_LAYER}
    listed = [
        {"rows": everywhere},
        {"rows": {**everywhere, "reduction": readout_pb2.REDUCTION_MEAN}},
        {"rows": {"sites": [site(3), site(1)]}},
        {"keep": {"sites": [site(2)]}},
        {"attention": {"layer": 1, "heads": [0]}},
        {"attention": {"layer": 1, "heads": [1, 2]}},
        {"rows": {"sites": [site(1)], "positions": {"last": {}}}},
    ]
    await run(fetch("hello", readouts=listed), fake)
    (only,) = [each for each in fake.runs if not each.id.startswith("self-test")]
    assert [len(capture.sites) for capture in only.captures] == [LAYERS + 2, 1]
    # Six tokens everywhere, and one row at the last.
    assert fake.counters.rows == 6 * (LAYERS + 2) + 1


async def test_a_site_that_is_kept_and_read_is_both() -> None:
    listed = [
        {"keep": {"sites": [site(2)]}},
        {"rows": {"sites": [site(2)]}, "name": "read"},
        {"keep": {"sites": [site(1), site(2)], "positions": {"last": {}}}},
    ]
    async with serving(Watched()) as served:
        events = await collect(served.generation.FetchActivations(fetch("hello", readouts=listed)))
        (closed,) = of_kind(events, "item_finished")
        first, second = closed.kept
        assert (first.readout_index, second.readout_index) == (0, 2)
        assert {chunk.readout_index for chunk in of_kind(events, "activations")} == {1}
        for kept, places in ((first, [*range(6)]), (second, [5])):
            found = served.app.kept.get(kept.name)
            assert found.positions.tolist() == places


async def test_what_comes_of_each_readout_is_told_first() -> None:
    (started,) = of_kind(await run(fetch("hello", readouts=TOGETHER), Watched()), "started")
    told = started.readouts
    assert [each.name for each in told] == [each["name"] for each in TOGETHER]
    assert [list(each.widths) for each in told] == [[2]] * LAYERS + [[]] * 5


@pytest.mark.parametrize("make", [fetch, generate], ids=["fetch", "generate"])
async def test_readouts_that_read_in_the_same_places_share_a_list(make: Any) -> None:
    texts = ["hello"] if make is fetch else []
    events = await run(make(*texts, readouts=TOGETHER), Watched())
    (told,) = of_kind(events, "item_started" if make is fetch else "sample_finished")
    count = 6 if make is fetch else 10
    assert positions(told) == [[5]] * LAYERS + [[*range(count)]] * 5
    assert len(told.positions) == 2


async def test_each_readout_of_rows_has_its_own_means() -> None:
    mean = {"reduction": readout_pb2.REDUCTION_MEAN, "statistics": {}}
    listed = [
        {"rows": {"sites": [site(0)], **mean}},
        {"predictions": {"top_k": 1}},
        {"rows": {"sites": [site(1), site(2)], **mean}},
    ]
    events = await run(fetch("ab", "abc", readouts=listed, labels=["x", "x"]), Watched())
    means = {(each.readout_index, each.site_index): each for each in of_kind(events, "statistics")}
    assert sorted(means) == [(0, 0), (2, 0), (2, 1)]
    for (readout, index), each in means.items():
        where = listed[readout]["rows"]["sites"][index]
        alone = {"sites": [where], "reduction": readout_pb2.REDUCTION_MEAN}
        rows = matrices(await run(fetch("ab", "abc", capture=alone), Watched()))
        expected = (rows[0, 0][1][0] + rows[1, 0][1][0]) / 2
        np.testing.assert_allclose(decoded(each.mean), expected, rtol=1e-6, atol=1e-6)
    assert {chunk.readout_index for chunk in of_kind(events, "predictions")} == {1}
    assert not of_kind(events, "activations")


async def test_the_rows_of_all_readouts_count_against_the_limit_and_shared_ones_once() -> None:
    fake = Watched()
    room = 6 * 16 * 4
    limits = fake.info.limits
    tight = Watched(limits=type(limits)(max_sequence_tokens=64, max_capture_bytes=2 * room))
    same = [{"rows": {"sites": [site(1)]}}] * 3 + [{"rows": {"sites": [site(2)]}}]
    async with serving(tight) as served:
        await collect(served.generation.FetchActivations(fetch("hello", readouts=same)))
        request = fetch("hello", readouts=[*same, {"rows": {"sites": [site(3)]}}])
        refused = await failure(served.generation.FetchActivations(request))
    assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "readouts")
