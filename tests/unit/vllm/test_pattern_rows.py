"""A worker makes of queries and keys what `PatternRows` say, in any chunks, batches and blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actserve_server.domain import blocks
from actserve_server.domain.attention_rows import (
    LargestWeights,
    QueryMeasures,
    ReceivedWeights,
)
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.operations import Add
from actserve_server.domain.positions import Selection
from actserve_server.domain.runs import Capture, Intervention, Run, Sampling
from actserve_server.engine.pattern_memory import pattern_memory
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.bank import BankFullError, VectorBank
from actserve_server.engine.vllm.layout import Layout, SiteKey
from actserve_server.engine.vllm.step_batch import BatchRows, Model
from actserve_server.engine.vllm.step_plan import RoutedStep, route
from actserve_server.engine.vllm.tapped_run import TappedRun
from tests.unit.vllm.steps import ALL, at, change, site

CPU = torch.device("cpu")
BANK_BYTES = 1 << 20
T, D, HEADS, LAYERS = 13, 8, 4, 2
IDS = np.array([7, 3, 3, 7, 5, 3, 1, 7, 3, 3, 3, 2, 9])
FULL = AttentionRule(heads=HEADS, key_value_heads=4, head_dim=D, scale=D**-0.5)
SINKS = np.array([-1, 0, 2, 5], np.float32)
RULES = {
    "full": FULL,
    "grouped": replace(FULL, key_value_heads=2),
    "one key-value head": replace(FULL, key_value_heads=1),
    "window 1": replace(FULL, sliding_window=1),
    "window": replace(FULL, sliding_window=4),
    "window beyond T": replace(FULL, sliding_window=10 * T),
    "soft cap": replace(FULL, soft_cap=0.8),
    "sinks": replace(FULL, sinks=SINKS),
    "everything": replace(FULL, key_value_heads=2, sliding_window=5, soft_cap=0.8, sinks=SINKS),
}
SOME = at((1, 3), (5, 6), (8, 11))
QUERIES = {"all": at((0, T)), "some": SOME, "the last": at((T - 1, T)), "the first": at((0, 1))}
CUTS = {
    "whole": [0, T],
    "chunks": [0, 5, 6, 12, T],
    "one by one": list(range(T + 1)),
    "preempted": [0, 6, 9, 0, 4, T],
}


@dataclass
class Rows:
    """What a sequence has at every position of both layers."""

    q: torch.Tensor
    k: torch.Tensor
    """[layers, tokens, width]."""

    @staticmethod
    def random(
        rule: AttentionRule, seed: int = 0, dtype: torch.dtype = torch.float32, tokens: int = T
    ) -> "Rows":
        made = torch.Generator().manual_seed(seed)
        q = 2 * torch.randn(LAYERS, tokens, rule.heads * D, generator=made)
        k = 2 * torch.randn(LAYERS, tokens, rule.key_value_heads * D, generator=made)
        return Rows(q.to(dtype), k.to(dtype))

    def expected(self, rule: AttentionRule, capture: Capture, layer: int) -> np.ndarray:
        """What the definition makes of it."""
        q, k = (each[layer].float().numpy() for each in (self.q, self.k))
        derived = capture.derived
        if isinstance(derived, ReceivedWeights):
            return derived.apply(rule, q[: derived.end], k[: derived.end])
        assert isinstance(derived, QueryMeasures | LargestWeights)
        positions = capture.spans.within(0, len(q))
        return derived.apply(rule, q[positions], k, positions, np.resize(IDS, len(q)))


def model(rule: AttentionRule) -> Model:
    layout, widths = Layout(), {}
    for layer in range(LAYERS):
        for point, heads in (("q", rule.heads), ("k", rule.key_value_heads)):
            layout.add_place([(site(f"{point}.{layer}"), False)])
            widths[SiteKey.of(site(f"{point}.{layer}"))] = heads * D
    return Model(layout, D, widths=widths, attention=(rule,) * LAYERS)


def captures(where: Selection = QUERIES["all"]) -> dict[str, Capture]:
    sites = (site("q.1"), site("q.0"))
    return {
        "measures": Capture(sites, where, QueryMeasures(HEADS, (4, 60))),
        "largest": Capture(sites[:1], where, LargestWeights((2, 0, 3), 3)),
        "largest of more than there are": Capture(sites, where, LargestWeights((1,), T + 2)),
        "received": Capture(
            sites,
            at((0, where.spans.ranges[-1][1])),
            ReceivedWeights(HEADS, where.spans),
        ),
    }


def start(
    bank: VectorBank,
    rule: AttentionRule,
    *taps_of: Capture | Intervention,
    key: int = 1,
    tokens: int = T,
    itemsize: int = 4,
) -> TappedRun:
    run = Run(
        id="r",
        token_ids=tuple(np.resize(IDS, tokens).tolist()),
        sampling=Sampling(max_tokens=1),
        captures=tuple(each for each in taps_of if isinstance(each, Capture)),
        interventions=tuple(each for each in taps_of if isinstance(each, Intervention)),
    )
    sent = wire.taps_of(run, key)
    assert sent is not None
    key_bytes = rule.key_value_heads * D * itemsize
    return TappedRun.start(wire.decode(wire.encode(sent)), bank, key_bytes)


def step(
    bank: VectorBank, rule: AttentionRule, *parts: tuple[TappedRun, Rows, int, int]
) -> RoutedStep | None:
    """A forward pass of positions [start, end) of some runs."""
    items, row = [], 0
    for run, of, first, end in parts:
        ids = np.resize(IDS, of.q.shape[1])
        on_device = torch.from_numpy(ids[first:end].astype(np.int32))
        items.append(BatchRows(run, row, first, end - first, ids, len(ids), on_device))
        row += end - first
    routed = route(items, bank, model(rule))
    if routed is None:
        return None
    q, k = (
        torch.cat([getattr(of, name)[:, first:end] for _, of, first, end in parts], dim=1)
        for name in "qk"
    )
    routed.plan.begin()
    for layer in range(LAYERS):
        # Not through the op, inside which no test sees what is allocated.
        routed.plan.run(2 * layer, q[layer].clone(), None)
        routed.plan.run(2 * layer + 1, k[layer].clone(), None)
    routed.plan.check()
    return routed


Given = dict[tuple[int, int, SiteKey], dict[int, np.ndarray]]
"""By run, capture and site the first row of each position."""


def take(given: Given, routed: RoutedStep | None) -> None:
    for block in routed.blocks if routed else ():
        for column in block.columns:
            rows = column.work.rows
            assert rows is not None
            for key, position, row in zip(block.keys, block.positions, rows.numpy(), strict=True):
                of = given.setdefault((int(key), block.number, column.site), {})
                of.setdefault(int(position), row.copy())


def check(given: Given, rule: AttentionRule, run: int, of: Rows, every: Sequence[Capture]) -> None:
    for number, capture in enumerate(every):
        for each in capture.sites:
            assert each.layer is not None
            expected = of.expected(rule, capture, each.layer)
            found = given[run, number, SiteKey.of(each)]
            assert [*found] == capture.spans.within(0, of.q.shape[1]).tolist()
            mine = np.stack([*found.values()])
            if isinstance(capture.derived, LargestWeights):
                check_largest(capture.derived, mine, expected)
            else:
                np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=2e-6)


def check_largest(derived: LargestWeights, mine: np.ndarray, expected: np.ndarray) -> None:
    """Of nearly equal weights either may come first."""
    for got, wanted in zip(derived.split(mine), derived.split(expected), strict=True):
        np.testing.assert_allclose(got.weights, wanted.weights, rtol=1e-4, atol=2e-6)
        for row, other, near in zip(got.keys, wanted.keys, wanted.weights, strict=True):
            for place in np.flatnonzero(row != other):
                alike = np.isclose(near, near[place], rtol=1e-4, atol=2e-6)
                assert row[place] in other[alike] or alike[-1]


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("where", QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rows_are_their_definition_however_a_prompt_is_cut(
    rule: AttentionRule, where: Selection, cuts: list[int]
) -> None:
    bank, of, given = VectorBank(CPU, BANK_BYTES), Rows.random(rule), {}
    every = [*captures(where).values()]
    run = start(bank, rule, *every)
    for first, end in pairwise(cuts):
        if end > first:
            take(given, step(bank, rule, (run, of, first, end)))
    check(given, rule, 1, of, every)
    run.end(bank)
    assert bank.used_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_are_held_in_the_models_type_to_the_last_bit(dtype: torch.dtype) -> None:
    rule = RULES["everything"]
    bank, of, given = VectorBank(CPU, BANK_BYTES), Rows.random(rule, dtype=dtype), {}
    every = [*captures(SOME).values()]
    run = start(bank, rule, *every, itemsize=2)
    keys = LAYERS * SOME.spans.ranges[-1][1] * 2 * D * 2
    received = 4 * 2 * HEADS * SOME.spans.ranges[-1][1]
    assert bank.used_bytes == keys + received
    for first, end in pairwise(CUTS["chunks"]):
        take(given, step(bank, rule, (run, of, first, end)))
    check(given, rule, 1, of, every)


@pytest.mark.parametrize("block_bytes", [1, 4 * T * 5, 1 << 20])
def test_blocks_change_nothing(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    for rule in RULES.values():
        bank, of, given = VectorBank(CPU, BANK_BYTES), Rows.random(rule), {}
        every = [*captures().values()]
        run = start(bank, rule, *every)
        take(given, step(bank, rule, (run, of, 0, T)))
        check(given, rule, 1, of, every)


def test_runs_of_a_batch_look_at_their_own_keys() -> None:
    rule, bank, given = RULES["grouped"], VectorBank(CPU, BANK_BYTES), {}
    every = [*captures(SOME).values()]
    first, second = Rows.random(rule, 1), Rows.random(rule, 2)
    one, other = (start(bank, rule, *every, key=key) for key in (1, 2))
    take(given, step(bank, rule, (one, first, 0, 7)))
    take(given, step(bank, rule, (other, second, 0, 9), (one, first, 7, 8)))
    take(given, step(bank, rule, (one, first, 8, T), (other, second, 9, T)))
    check(given, rule, 1, first, every)
    check(given, rule, 2, second, every)


def test_keys_stay_where_vectors_are_moved_around_them() -> None:
    rule, bank, given = RULES["grouped"], VectorBank(CPU, BANK_BYTES), {}
    filler = start(bank, rule, *captures().values(), key=9)
    every, of = [*captures(SOME).values()], Rows.random(rule)
    run = start(bank, rule, *every)
    take(given, step(bank, rule, (run, of, 0, 6)))
    filler.end(bank)
    bank._close_gaps()
    take(given, step(bank, rule, (run, of, 6, T)))
    check(given, rule, 1, of, every)


def test_queries_and_keys_are_read_after_the_edits_of_their_sites() -> None:
    rule, bank, given = RULES["grouped"], VectorBank(CPU, BANK_BYTES), {}
    edits = [
        change(Add(np.linspace(-1, 1, width, dtype=np.float32)), name, where=at((2, 9)))
        for name, width in (("q.1", HEADS * D), ("k.1", 2 * D))
    ]
    every, of = [*captures(SOME).values()], Rows.random(rule)
    run = start(bank, rule, *edits, *every)
    for first, end in pairwise(CUTS["chunks"]):
        take(given, step(bank, rule, (run, of, first, end)))
    for tensor in (of.q, of.k):
        tensor[1, 2:9] += torch.linspace(-1, 1, tensor.shape[2])
    check(given, rule, 1, of, every)


def test_a_run_whose_first_keys_are_not_there_fails() -> None:
    rule, bank = FULL, VectorBank(CPU, BANK_BYTES)
    run = start(bank, rule, captures()["measures"])
    with pytest.raises(RuntimeError, match="keys of layer 0 came from position 4 on, but those"):
        step(bank, rule, (run, Rows.random(rule), 4, 6))


def test_nothing_is_kept_behind_the_last_query() -> None:
    rule, bank, of = FULL, VectorBank(CPU, BANK_BYTES), Rows.random(FULL)
    run = start(bank, rule, *captures(at((2, 5))).values())
    assert run.keys is not None
    assert run.keys.tokens == 5
    assert step(bank, rule, (run, of, 0, 4)) is not None
    assert step(bank, rule, (run, of, 4, 8)) is not None
    assert step(bank, rule, (run, of, 8, T)) is None


def test_a_step_is_planned_anew_as_long_as_keys_are_kept() -> None:
    run = start(VectorBank(CPU, BANK_BYTES), FULL, *captures(at((2, 5))).values())
    assert [run.same_until(position) for position in (0, 4)] == [1, 5]
    assert run.same_until(5) > 100


def test_a_run_that_finds_no_room_for_its_keys_holds_nothing() -> None:
    bank = VectorBank(CPU, 4 * (2 * T * HEADS * D) - 4)
    with pytest.raises(BankFullError):
        start(bank, FULL, captures()["measures"])
    edit = change(Add(np.ones(HEADS * D, np.float32)), "q.0")
    bank = VectorBank(CPU, 4 * (2 * T * HEADS * D))
    with pytest.raises(BankFullError):
        start(bank, FULL, captures()["measures"], edit)
    assert bank.used_bytes == 0


def test_what_is_held_is_what_is_counted() -> None:
    every = captures(SOME)
    run = Run(id="r", token_ids=(1,) * T, captures=tuple(every.values()))
    memory = pattern_memory(run)
    assert memory is not None
    assert (memory.layers, memory.tokens, memory.received) == ((0, 1), 11, 2 * 11 * HEADS)
    endless = Capture((site("q.1"),), ALL, QueryMeasures(HEADS))
    longer = pattern_memory(
        replace(run, captures=(endless,), sampling=Sampling(max_tokens=4), token_ids=(1,) * T)
    )
    assert longer is not None
    assert (longer.layers, longer.tokens, longer.received) == ((1,), T + 3, 0)
    plain = Capture((site("q.1"), site("k.1")), ALL)
    assert pattern_memory(replace(run, captures=(plain,))) is None


class Largest(TorchDispatchMode):
    """Notes how many bytes the largest tensor takes that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.bytes = max(self.bytes, each.numel() * each.element_size())
        return result


@pytest.mark.parametrize("kind", captures())
def test_a_long_prompt_takes_no_square_of_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 18)
    rule, tokens = RULES["everything"], 1024
    rule = replace(rule, sliding_window=None)
    bank = VectorBank(CPU, 1 << 20)
    capture = captures(at((0, tokens)))[kind]
    if isinstance(capture.derived, LargestWeights):
        capture = replace(capture, derived=replace(capture.derived, count=4))
    run = start(bank, rule, capture, tokens=tokens)
    of = Rows.random(rule, tokens=tokens)
    with Largest() as largest:
        step(bank, rule, (run, of, 0, tokens))
    # Eight bytes where keys are numbered; the prompt's own rows and the bank take more.
    most = max(2 * blocks.BLOCK_BYTES, 1 << 20)
    assert largest.bytes <= most < 4 * tokens * tokens
