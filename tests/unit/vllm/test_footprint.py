"""A step takes no more of the device than was counted before its runs began."""

import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm import SamplingParams
from vllm.logprobs import Logprob

from actserve_server.domain import blocks
from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add, Clamp, Project, Replace
from actserve_server.domain.probes import Aggregator, Ema, Probe
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Capture, Intervention, Run, TokenLogprobs, Tokens, Unembed
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.footprint import Need, most_bytes, report_bytes_of, step_need
from actserve_server.engine.vllm import bank as bank_module
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.layout import Layout, SiteKey
from actserve_server.engine.vllm.step_batch import Model
from actserve_server.engine.vllm.step_plan import route
from actserve_server.openai.engine_client import sampling_request
from tests.unit.networks import network, reading
from tests.unit.vllm.steps import at, change, make_run, read, rows, site, start

WIDTH, LAYERS, TOKENS = 64, 6, 400
BLOCK_BYTES = 16 * 4 * WIDTH
"""Sixteen rows are in hand at once."""
IN_HAND_BYTES = 12 * BLOCK_BYTES + 2 * 4 * TOKENS * WIDTH
"""What is made of a block, and a site as it is read: as docs/performance.md has it."""
CPU = torch.device("cpu")
INFO = FakeEngine(width=WIDTH, layer_count=LAYERS, step_tokens=TOKENS).info
SITES = [site(f"resid_post.{layer}") for layer in range(LAYERS)]
NAMES = [str(each) for each in SITES]


class Held(TorchDispatchMode):
    """Bytes of the tensors that there are, but for some."""

    def __init__(self, *but: torch.Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {id(each.untyped_storage()) for each in but}
        self._but = [each.untyped_storage() for each in but]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, made)):
            if isinstance(each, torch.Tensor):
                self._add(each.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", BLOCK_BYTES)
        patch.setattr(taps, "NOTED_AT_ONCE", BLOCK_BYTES // 4)
        patch.setattr(bank_module, "GATHERED_AHEAD_BYTES", BLOCK_BYTES)
        yield


def _measured(*each: Intervention | Capture) -> tuple[int, int]:
    """The most bytes that a step of the run took, and what was counted."""
    run = make_run(*each)
    layout = Layout()
    for name in SITES:
        layout.add_place([(name, True)])
    model = Model(layout, widths=dict.fromkeys(layout.sites, WIDTH))
    bank = VectorBank(CPU, 4 << 20)
    hidden, residual = torch.randn(2, TOKENS, WIDTH)
    tapped = start(bank, 1, run)
    # Two runs with vectors of their own, so that each row has one.
    other = start(bank, 2, make_run(*_other(each)))
    batch = [rows(tapped, 0, 0, TOKENS // 2), rows(other, TOKENS // 2, 0, TOKENS // 2)]
    with _small_blocks(), Held(hidden, residual, bank._numbers) as held:
        routed = route(batch, bank, model)
        assert routed is not None
        routed.plan.begin()
        for name in SITES:  # Not through the op, in which no tensor would be seen.
            routed.plan.run(layout.sites[SiteKey.of(name)].place, hidden, residual)
        routed.plan.check()
    needs = [Counter([_need(run)]), Counter([_need(make_run(*_other(each)))])]
    return held.most, most_bytes(needs, TOKENS)


def _other(each: tuple[Intervention | Capture, ...]) -> list[Intervention | Capture]:
    return [
        change(Add(np.full(WIDTH, 3.0, np.float32)), *map(str, one.sites), when=one.when)
        if isinstance(one, Intervention) and isinstance(one.operation, Add)
        else one
        for one in each
    ]


def _need(run: Run) -> Need:
    return step_need(replace(run, token_ids=(1,) * (TOKENS // 2)), INFO)


ONES = np.ones(WIDTH, np.float32)
MANY = np.random.default_rng(0).standard_normal((TOKENS // 2, WIDTH)).astype(np.float32)
WHEN = Condition(Probe(SITES[0], ONES), Aggregator(Ema(0.5)), above=0.0)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param([read(*NAMES)], id="rows of every site"),
        pytest.param([read(*NAMES), read(NAMES[0], where=at((0, 3)))], id="and some once more"),
        pytest.param([read(*NAMES, derived=Unembed(top_k=2))], id="predictions"),
        pytest.param([read(*NAMES, derived=Projected(Projection(MANY[:5])))], id="components"),
        pytest.param(
            [reading([network(dict.fromkeys(SITES, WIDTH), units=96)])],
            id="a network with more units than a row is wide",
        ),
        pytest.param(
            [change(Add(ONES * n), name) for n, name in enumerate(NAMES)], id="vectors of their own"
        ),
        pytest.param([change(Add(ONES), *NAMES) for _ in range(20)], id="twenty edits of each row"),
        pytest.param(
            [change(Replace(MANY), *NAMES, where=at((0, len(MANY))))], id="a vector for each row"
        ),
        pytest.param([change(Project(MANY[:8]), *NAMES)], id="projections"),
        pytest.param([change(Clamp(ONES, minimum=0.0), *NAMES, when=WHEN)], id="under a condition"),
    ],
)
def test_a_step_takes_what_was_counted_and_what_a_tap_has_in_hand(
    asked: list[Intervention | Capture],
) -> None:
    most, counted = _measured(*asked)
    assert most <= counted + IN_HAND_BYTES, (most, counted)


@pytest.mark.parametrize("told", [0, 1, 5, 20, 128])
def test_log_probabilities_in_vllms_form_take_no_more_than_is_counted(told: int) -> None:
    params = SamplingParams(max_tokens=500, logprob_token_ids=[*range(300, 300 + told)] or None)
    if not told:
        params.logprobs = 0
    sampling = sampling_request(params, {}).base
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held = [_tokens(position, told + 1) for position in range(1000, 1500)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == sampling.max_tokens
    assert after - before <= report_bytes_of(Run(id="a", token_ids=(1,), sampling=sampling))


def _tokens(position: int, candidates: int) -> Tokens:
    told = {
        300 + each: Logprob(-0.1 * each, 300 + each, f"token {each}") for each in range(candidates)
    }
    logprobs = (TokenLogprobs(-0.1 * position, (), told),)
    text = f"token {position}"
    return Tokens(position, (position + 1,), (f" {text}",), text, logprobs)
