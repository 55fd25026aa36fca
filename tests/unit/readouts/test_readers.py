"""Reading a sequence: the same results however its rows are cut, and heavy work off the loop."""

import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import astuple, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from actserve_server.domain import blocks
from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.model import HookPointInfo, Limits, ModelInfo
from actserve_server.domain.positions import NO_END, AllPositions, Selection, Spans
from actserve_server.domain.projection import (
    Activation,
    Identity,
    Projected,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.domain.runs import Finished, FinishReason, Rows, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.readouts import plan, readers
from actserve_server.readouts.reductions import Reduction
from actserve_server.readouts.results import (
    ReadAttention,
    ReadAttentionSummary,
    ReadPredictions,
    ReadRows,
    RowsToKeep,
)

TOKENS, WIDTH, DIRECTIONS = 23, 8, 5
SITES = (Site(HookPoint.RESID_POST, 0), Site(HookPoint.RESID_MID, 0))
EVERY = Selection(Spans(((0, NO_END),)))
RULE = AttentionRule(heads=2, key_value_heads=1, head_dim=4, scale=0.5)
RNG = np.random.default_rng(0)
PROJECTION = Projection(RNG.standard_normal((DIRECTIONS, WIDTH)).astype(np.float32))
INFO = ModelInfo(
    id="toy",
    path="toy",
    architecture="Toy",
    layer_count=1,
    width=WIDTH,
    vocabulary_size=10,
    longest_token=1,
    element_type=ElementType.BF16,
    limits=Limits(max_sequence_tokens=100),
    hook_points={
        point: HookPointInfo(width=RULE.head_dim if point is HookPoint.K else WIDTH)
        for point in HookPoint
    },
    attention=(RULE,),
)
PROMPT_IDS = tuple(token % 5 for token in range(TOKENS))
CUTS = [[0, TOKENS], [0, 1, 2, 9, TOKENS], list(range(TOKENS + 1))]


def rows_of(**fields: Any) -> plan.RowReadout:
    return plan.RowReadout(sites=SITES, positions=AllPositions(), **fields)


READOUTS = {
    "rows": rows_of(),
    "kept rows": plan.KeepReadout(sites=SITES, positions=AllPositions(), ttl_s=1.0),
    "projected": rows_of(projection=PROJECTION),
    "largest": rows_of(projection=PROJECTION, send_top=2),
    "mean": rows_of(reduction=Reduction.MEAN),
    "largest of the mean": rows_of(projection=PROJECTION, send_top=2, reduction=Reduction.MEAN),
    "projected in the engine": rows_of(projection=PROJECTION, in_engine=True),
    "largest in the engine": rows_of(projection=PROJECTION, send_top=2, in_engine=True),
    "largest of the mean, projected in the engine": rows_of(
        projection=PROJECTION, send_top=2, reduction=Reduction.MEAN, in_engine=True
    ),
    "predictions": plan.PredictionReadout(
        sites=SITES, unembed=Unembed(2, (7,)), positions=AllPositions()
    ),
    "attention": plan.AttentionReadout(layer=0, heads=(1, 0), positions=AllPositions()),
    "largest attention": plan.AttentionReadout(
        layer=0, heads=(1,), positions=AllPositions(), top_k=3
    ),
    "summary": plan.AttentionSummaryReadout(
        layers=(0,), positions=AllPositions(), offsets=(2,), top_keys=3
    ),
    "largest attention in the engine": plan.AttentionReadout(
        layer=0, heads=(1,), positions=AllPositions(), top_k=3, largest=LargestWeights((1,), 3)
    ),
    "summary in the engine": plan.AttentionSummaryReadout(
        layers=(0,),
        positions=AllPositions(),
        offsets=(2,),
        top_keys=3,
        measures=QueryMeasures(2, (2,)),
        received=ReceivedWeights(2, Spans(((0, TOKENS),))),
    ),
}
HEAVY = {name for name in READOUTS if "projected" in name or "largest" in name}
HEAVY |= {"mean", "attention", "summary", "summary in the engine"}
HEAVY -= {"projected in the engine", "largest in the engine"}


def planned(*readouts: plan.Readout) -> plan.Plan:
    return plan.plan(tuple(plan.Placed(readout, EVERY) for readout in readouts), PROMPT_IDS)


def events(of: plan.Plan, cuts: list[int]) -> Iterator[Rows | Finished]:
    """What an engine would give: rows of a capture in order, captures interleaved."""
    captures = of.captures
    bits = {}
    for number, capture in enumerate(captures):
        widths = INFO.row_widths(capture)
        for index, (site, width) in enumerate(zip(capture.sites, widths, strict=True)):
            # The same whatever else is captured.
            rng = np.random.default_rng([*str(site).encode()])
            values = rng.standard_normal((TOKENS, width)).astype(np.float32)
            bits[number, index] = convert(values, ElementType.F32, INFO.row_type(capture))
    for low, high in pairwise(cuts):
        for (number, index), rows in bits.items():
            yield Rows(number, index, np.arange(low, high), rows[low:high])
    positions = np.arange(TOKENS)
    yield Finished(FinishReason.LENGTH, 1, tuple(positions for _ in captures))


async def read(of: plan.Plan, cuts: list[int]) -> list[tuple[int, Any]]:
    """Everything read, each with the index of its readout."""
    reading = readers.Reading(of, INFO)
    return [item for event in events(of, cuts) async for item in reading.read(event)]


async def results(readout: plan.Readout, cuts: list[int]) -> list[Any]:
    return [item for _, item in await read(planned(readout), cuts)]


def joined(items: list[Any]) -> dict[Any, list[np.ndarray]]:
    """Arrays of all results, joined along positions."""
    parts: dict[Any, list[list[np.ndarray | None]]] = {}
    for item in items:
        for key, arrays in _arrays(item):
            parts.setdefault(key, []).append(arrays)
    return {
        key: [np.concatenate(each) for each in zip(*several, strict=True) if each[0] is not None]
        for key, several in parts.items()
    }


def _arrays(item: Any) -> list[tuple[Any, list[np.ndarray | None]]]:
    match item:
        case RowsToKeep():
            return [(("kept", site), [item.positions, rows]) for site, rows in item.rows.items()]
        case ReadRows():
            return [(("rows", item.site_index), [item.positions, item.bits, item.indices])]
        case ReadAttention():
            return [(("attention", item.head), [item.queries, item.weights, item.keys])]
        case ReadAttentionSummary():
            return [(("summary", item.layer), [np.atleast_1d(x) for x in astuple(item.summary)])]
        case _:
            found = item.predictions
            arrays = [item.positions, found.top_ids, found.top_logprobs, found.token_logprobs]
            return [(("predictions", item.site_index), arrays)]


@pytest.mark.parametrize("name", READOUTS)
async def test_where_rows_are_cut_changes_nothing(name: str) -> None:
    whole = joined(await results(READOUTS[name], CUTS[0]))
    assert whole
    for cuts in CUTS[1:]:
        for key, arrays in joined(await results(READOUTS[name], cuts)).items():
            for got, expected in zip(arrays, whole[key], strict=True):
                # A product of one row and of many may round differently.
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


async def threads_of(readout: plan.Readout, patch: pytest.MonkeyPatch) -> set[int]:
    """Where the results of reading rows are made."""
    threads: set[int] = set()

    def make(kind: Any, **fields: Any) -> Any:
        threads.add(threading.get_ident())
        return kind(**fields)

    for kind in (ReadRows, ReadAttention, ReadAttentionSummary, ReadPredictions):
        patch.setattr(readers, kind.__name__, partial(make, kind))
    await results(readout, CUTS[1])
    return threads


@pytest.mark.parametrize("name", READOUTS)
async def test_what_takes_computing_is_computed_off_the_event_loop(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "QUICK_OPERATIONS", 0)
    threads = await threads_of(READOUTS[name], monkeypatch)
    assert (threading.get_ident() in threads) == (name not in HEAVY | {"kept rows"})
    assert bool(threads) == (name != "kept rows")


async def test_a_few_rows_are_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = await threads_of(READOUTS["projected"], monkeypatch)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("top_k", [None, 3])
async def test_the_patterns_of_a_long_prompt_are_never_held_whole(
    top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 17)
    tokens, pattern_bytes = 1024, 4 * 1024 * 1024
    readout = plan.AttentionReadout(layer=0, heads=(0, 1), positions=AllPositions(), top_k=top_k)
    of, at = planned(readout), np.arange(tokens)
    reading = readers.Reading(of, INFO)
    for number, capture in enumerate(of.captures):
        for index, width in enumerate(INFO.row_widths(capture)):
            values = RNG.standard_normal((tokens, width))
            bits = convert(values.astype(np.float32), ElementType.F32, INFO.element_type)
            assert not [got async for got in reading.read(Rows(number, index, at, bits))]
    finished = Finished(FinishReason.LENGTH, 1, tuple(at for _ in of.captures))
    tracemalloc.start()
    try:
        queries = 0
        async for _, result in reading.read(finished):
            assert isinstance(result, ReadAttention)
            queries += len(result.queries)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert queries == 2 * tokens
    assert peak < 10 * blocks.BLOCK_BYTES < pattern_bytes


async def test_kept_rows_are_the_engines_bits() -> None:
    readout = READOUTS["kept rows"]
    (last,) = await results(readout, CUTS[1])
    assert isinstance(last, RowsToKeep)
    assert last.element_type is ElementType.BF16
    given = [e for e in events(planned(readout), CUTS[0]) if isinstance(e, Rows)]
    for rows in given:
        np.testing.assert_array_equal(last.rows[SITES[rows.site_index]], rows.bits)


async def test_readouts_that_are_read_together_give_what_each_gives_alone() -> None:
    of = planned(*READOUTS.values(), *READOUTS.values())
    found = await read(of, CUTS[1])
    for index, readout in enumerate([*READOUTS.values(), *READOUTS.values()]):
        together = joined([item for number, item in found if number == index])
        alone = joined(await results(readout, CUTS[1]))
        assert together.keys() == alone.keys()
        for key, arrays in together.items():
            for got, expected in zip(arrays, alone[key], strict=True):
                np.testing.assert_array_equal(got, expected)


def test_a_site_is_captured_once_at_the_same_positions() -> None:
    every = planned(*READOUTS.values())
    captured = [(site, capture.derived) for capture in every.captures for site in capture.sites]
    assert len({*captured}) == len(captured)
    # Rows, queries and keys; predictions; all components, and the largest; the largest weights;
    # what is measured of queries, and what keys receive.
    assert len(every.captures) == 7


def test_what_is_read_elsewhere_is_captured_apart() -> None:
    last = Selection(Spans(((22, 23),)))
    readout = READOUTS["rows"]
    apart = plan.plan((plan.Placed(readout, EVERY), plan.Placed(readout, last)), PROMPT_IDS)
    assert [capture.selection for capture in apart.captures] == [EVERY, last]
    assert all(capture.sites == SITES for capture in apart.captures)


PROJECTED = {
    "all": {},
    "largest": {"send_top": 2},
    "mean": {"reduction": Reduction.MEAN},
    "last": {"reduction": Reduction.LAST},
    "largest of the largest": {"send_top": 3, "reduction": Reduction.MAX},
}


@pytest.mark.parametrize("fields", PROJECTED.values(), ids=PROJECTED)
@pytest.mark.parametrize("activation", [Identity(), ReLU(), TopK(2)], ids=str)
async def test_projected_in_the_engine_or_here_is_the_same(
    activation: Activation, fields: dict[str, Any]
) -> None:
    projection = replace(PROJECTION, activation=activation)
    rows = RNG.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    given: list[dict[Any, list[np.ndarray]]] = []
    for in_engine in (False, True):
        wanted = planned(rows_of(projection=projection, in_engine=in_engine, **fields))
        (capture,) = wanted.captures
        derived, reading = capture.derived, readers.Reading(wanted, INFO)
        assert isinstance(derived, Projected) is in_engine
        bits = convert(rows, ElementType.F32, ElementType.BF16)
        exact = to_float32(bits, ElementType.BF16)
        items = []
        for low, high in pairwise([0, 1, 5, TOKENS]):
            for site in range(len(SITES)):
                part = bits[low:high]
                if isinstance(derived, Projected):
                    part = derived.apply(exact[low:high])
                event = Rows(0, site, np.arange(low, high), part)
                items += [item async for _, item in reading.read(event)]
        finished = Finished(FinishReason.LENGTH, 1, (np.arange(TOKENS),))
        items += [item async for _, item in reading.read(finished)]
        given.append(joined(items))
    here, there = given
    assert here.keys() == there.keys()
    for key in here:
        for one, other in zip(here[key], there[key], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


WIDE = Projection(np.ones((5, 8), np.float32))
NARROW = Projection(np.ones((4, 8), np.float32), np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("readouts", "room", "there"),
    [
        ([rows_of()], 1000, [None]),
        ([rows_of(projection=NARROW)], 2 * 144, [True]),
        ([rows_of(projection=NARROW)], 2 * 143, [False]),
        ([rows_of(projection=NARROW)] * 3, 4 * 144, [True, True, False]),
        ([rows_of(projection=WIDE)], 1000, [False]),
        ([rows_of(projection=WIDE, send_top=2)], 1000, [True]),
        ([rows_of(projection=WIDE, send_top=3)], 1000, [False]),
        ([rows_of(projection=WIDE, send_top=2, reduction=Reduction.MEAN)], 1000, [False]),
    ],
)
def test_the_engine_projects_where_it_has_room_and_less_is_sent(
    readouts: list[plan.Readout], room: int, there: list[bool | None]
) -> None:
    chosen = plan.projected_where_best(readouts, replace(INFO, vector_bytes=room))
    found = [each.in_engine if each.projection else None for each in chosen]  # type: ignore[union-attr]
    assert found == there


def attention_of(top_k: int | None) -> plan.AttentionReadout:
    return plan.AttentionReadout(layer=0, heads=(1,), positions=AllPositions(), top_k=top_k)


def summary_of(top_keys: int) -> plan.AttentionSummaryReadout:
    return plan.AttentionSummaryReadout(layers=(0,), positions=AllPositions(), top_keys=top_keys)


KEYS = 10 * RULE.head_dim * 2
"""Bytes of ten in BF16."""
PROMPT = Selection(Spans(((2, 5), (7, 10))))
BY_TOKEN = Selection(Spans(((2, 5), (10, NO_END))), frozenset([1]))
RECEIVED = 10 * RULE.heads * 4


@pytest.mark.parametrize(
    ("readouts", "selection", "run_tokens", "room", "there"),
    [
        ([attention_of(None), rows_of()], EVERY, 10, 1000, [False, False]),
        ([attention_of(64)], EVERY, 10, KEYS, [True]),
        ([attention_of(65)], EVERY, 10, KEYS, [False]),
        ([attention_of(3)], EVERY, 10, KEYS - 1, [False]),
        ([attention_of(3)], EVERY, 12, KEYS, [False]),
        ([attention_of(3)], PROMPT, 12, KEYS, [True]),
        ([attention_of(3)], BY_TOKEN, 12, 2 * KEYS, [True]),
        # Keys are there once.
        ([attention_of(3), attention_of(4), summary_of(0)], EVERY, 10, KEYS, [True, True, True]),
        ([summary_of(2)], EVERY, 10, KEYS, [False]),
        ([summary_of(2)], EVERY, 10, KEYS + RECEIVED, [True]),
        ([summary_of(2), attention_of(3)], EVERY, 10, KEYS, [False, True]),
        # Who knows which is the last query of a run that goes on?
        ([summary_of(2)], EVERY, 12, 1000, [False]),
        ([summary_of(2)], PROMPT, 12, KEYS + RECEIVED, [True]),
        ([summary_of(2)], BY_TOKEN, 12, 1000, [False]),
    ],
)
def test_the_engine_reads_patterns_where_it_has_room_and_knows_the_last_query(
    readouts: list[plan.Readout],
    selection: Selection,
    run_tokens: int,
    room: int,
    there: list[bool],
) -> None:
    placed = [plan.Placed(readout, selection) for readout in readouts]
    info = replace(INFO, vector_bytes=4 * room, pattern_rows_unserved="")

    def chosen(info: ModelInfo) -> list[bool]:
        best = plan.patterns_where_best(placed, 10, run_tokens, info)
        captured = [[each.derived for each in placed.captures] for placed in best]
        return [any(each) for each in captured]

    assert chosen(info) == there
    assert not any(chosen(replace(info, pattern_rows_unserved="failed the self-test")))
    assert not any(chosen(replace(info, attention=())))
