"""A planner that moves the last plan on does at every step what planning it anew does."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add, Clamp, Operation, Project, Replace, Zero
from actserve_server.domain.positions import NO_END, Selection
from actserve_server.domain.probes import EACH_TOKEN, Probe
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Capture, Run, Unembed
from actserve_server.engine.vllm import step_batch
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.step_plan import Planner, RoutedStep, route
from actserve_server.engine.vllm.tapped_run import TappedRun
from tests.unit.networks import KINDS, network, reading
from tests.unit.test_probes import AGGREGATORS
from tests.unit.vllm import batches
from tests.unit.vllm.batches import BANK_BYTES, CPU, MODEL, WIDTH, constant
from tests.unit.vllm.steps import ALL, at, change, make_run, read, site, start

PROJECTED = Projected(Projection(np.eye(2, WIDTH, dtype=np.float32)))
TOKENS = 60
"""Of every request's prompt and answer."""


@dataclass
class Request:
    """One of vLLM's, from its first token to its last."""

    name: str
    key: int
    run: Run | None
    tokens: np.ndarray
    prompt_tokens: int
    computed: int = 0


@dataclass
class Worker:
    """As much of one as plans steps."""

    bank: VectorBank = field(default_factory=lambda: VectorBank(CPU, BANK_BYTES))
    runs: dict[str, TappedRun] = field(default_factory=dict)

    def begin(self, request: Request) -> None:
        if request.run:
            self.runs[request.name] = start(self.bank, request.key, request.run)

    def end(self, request: Request) -> None:
        if run := self.runs.pop(request.name, None):
            run.end(self.bank)


def _where(rng: np.random.Generator) -> Selection:
    low = int(rng.integers(0, 12))
    some = [
        ALL,
        at((low, NO_END)),
        at((low, low + 5), (low + 7, low + 8)),
        at((0, 3), (40, NO_END), token_ids=(3,)),
        at((low, NO_END), token_ids=(1, 2)),
    ]
    return some[rng.choice(5, p=[0.3, 0.3, 0.25, 0.1, 0.05])]


def _condition(rng: np.random.Generator, sites: list[str]) -> Condition:
    """One whose site may be changed too, by this edit or others."""
    name = sites[0] if len(sites) == 1 and rng.random() < 0.5 else "mlp_out.0"
    direction = rng.standard_normal(WIDTH).astype(np.float32)
    aggregator = AGGREGATORS[rng.integers(len(AGGREGATORS))] if rng.random() < 0.7 else EACH_TOKEN
    return Condition(Probe(site(name), direction), aggregator, above=float(rng.normal()))


def _networks(rng: np.random.Generator, sites: list[str]) -> Capture:
    """Often those of other runs."""
    widths, kinds = dict.fromkeys(map(site, sites), WIDTH), [*KINDS.values()]
    every = [network(widths, **kinds[number]) for number in rng.permutation(len(kinds))[:2]]
    return reading(every, _where(rng))


def _taps(rng: np.random.Generator) -> Run | None:
    operations: list[Operation] = [
        Add(rng.standard_normal(WIDTH).astype(np.float32), 2.0),
        Zero(),
        Clamp(constant(1.0), minimum=0.5),
        Project(np.eye(2, WIDTH, dtype=np.float32)),
    ]
    names = ["mlp_out.0", "resid_post.0", "resid_pre.1", "final_norm"]
    taps = []
    for _ in range(rng.integers(0, 4)):
        sites = rng.permutation(names)[: rng.integers(1, 4)].tolist()
        if rng.random() < 0.5:
            lens = Unembed(top_k=1, next_token=True)
            derived = [None, lens, PROJECTED, "networks"][rng.choice(4)]
            taps.append(
                _networks(rng, sites)
                if isinstance(derived, str)
                else read(*sites, where=_where(rng), derived=derived)
            )
        else:
            condition = _condition(rng, sites) if rng.random() < 0.4 else None
            operation = operations[rng.integers(4)]
            taps.append(change(operation, *sites, where=_where(rng), when=condition))
    if rng.random() < 0.2:
        rows = rng.standard_normal((6, WIDTH)).astype(np.float32)
        taps.append(change(Replace(rows), "resid_post.0", where=at((4, 8), (30, 32))))
    return make_run(*taps) if taps else None


def _batches(rng: np.random.Generator) -> Iterator[tuple[list[Request], list[Request], list[int]]]:
    """Steps of a scheduler: the requests in their order, those that have ended before, and how many
    tokens each computes. Requests come in chunks, decode, are preempted, and end."""
    running: list[Request] = []
    made = 0
    for _ in range(120):
        ended = [each for each in running if each.computed >= TOKENS]
        running = [each for each in running if each not in ended]
        if len(running) < 5 and (not running or rng.random() < 0.1):
            made += 1
            tokens = rng.integers(0, 5, TOKENS)
            running.append(Request(f"r{made}", made, _taps(rng), tokens, int(rng.integers(1, 20))))
            if rng.random() < 0.3:
                running[-1].computed = int(rng.integers(0, running[-1].prompt_tokens))  # Cached.
        if running and rng.random() < 0.03:
            running[rng.integers(len(running))].computed = 0  # Preempted.
        if rng.random() < 0.03:
            rng.shuffle(running)  # type: ignore[arg-type]
        # Where others leave little room in the steps, chunks are of one token.
        longest = 1 if rng.random() < 0.5 else 7
        counts = [min(longest, max(1, each.prompt_tokens - each.computed)) for each in running]
        yield running, ended, counts
        for each, count in zip(running, counts, strict=True):
            each.computed += count


def _as_batch(requests: list[Request], counts: list[int]) -> step_batch.Batch:
    # Longer than needed, and written over at every step, as vLLM's own are.
    return step_batch.Batch(
        [each.name for each in requests],
        np.array([*np.cumsum([0, *counts]), 99]),
        np.array([*(each.computed for each in requests), 77]),
        np.array([each.tokens for each in requests]).reshape(-1, TOKENS),
        np.array([each.prompt_tokens for each in requests]),
    )


def _outcome(routed: RoutedStep | None, count: int) -> tuple[torch.Tensor, list[tuple]]:
    """What the pass computes, and everything that is sent of it."""
    batch = batches.Batch.random(count)
    if routed is None:
        return torch.cat([batch.stream, batch.normed]), []
    batch.carry_out(routed)
    sent: list[tuple] = []
    for block in routed.blocks:
        following = None if block.next_ids is None else block.next_ids.tolist()
        rows = [each.work.rows.tolist() for each in block.columns if each.work.rows is not None]
        assert len(rows) == len(block.columns)
        sent.append((block.number, block.keys.tolist(), block.positions.tolist(), following, rows))
    if receipts := routed.receipts:
        tables = (receipts.keys, receipts.edits, receipts.positions)
        sent.append((*(each.tolist() for each in tables), receipts.changes.tolist()))
    return torch.cat([batch.stream, batch.normed]), sent


@pytest.mark.parametrize("seed", range(30))
def test_steps_are_planned_as_if_each_were_the_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, anew = Worker(), Worker()
    planner, known, steady = Planner(ours.bank, MODEL), set(), 0
    for requests, ended, counts in _batches(rng):
        for worker in (ours, anew):
            for each in ended:
                worker.end(each)
            for each in requests:
                if each.name not in known:
                    worker.begin(each)
        if ended or any(each.name not in known for each in requests):
            planner.forget()
        known |= {each.name for each in requests}
        batch = _as_batch(requests, counts)
        before = planner._last
        found = planner.plan(batch, ours.runs)
        steady += before is not None and planner._last is before
        expected = route((rows for _, rows in batch.tapped(anew.runs)), anew.bank, MODEL)
        got, wanted = _outcome(found, sum(counts)), _outcome(expected, sum(counts))
        assert torch.equal(got[0], wanted[0])
        assert got[1] == wanted[1]
    assert steady  # Else nothing was tested.


def test_a_step_that_goes_on_makes_nothing_anew() -> None:
    worker = Worker()
    run = make_run(read("resid_post.0"), change(Add(constant(1.0)), "final_norm"))
    requests = [Request(f"r{key}", key, run, np.zeros(TOKENS, int), 1) for key in range(3)]
    for each in requests:
        worker.begin(each)
    planner = Planner(worker.bank, MODEL)
    plans = []
    for position in range(4):
        for each in requests:
            each.computed = position
        routed = planner.plan(_as_batch(requests, [1, 1, 1]), worker.runs)
        assert routed is not None
        assert routed.blocks[0].positions.tolist() == [position] * 3
        plans.append(routed.plan)
    assert all(each is plans[0] for each in plans)
    assert worker.runs["r0"].reached == 1  # Written down where the plan ends.
    planner.forget()
    assert {run.reached for run in worker.runs.values()} == {4}


def test_the_tokens_that_follow_are_those_of_each_step_of_a_prompt_in_chunks_of_one() -> None:
    worker = Worker()
    tokens = np.arange(10, 10 + TOKENS)
    run = make_run(read("resid_post.0", derived=Unembed(next_token=True)))
    request = Request("r", 1, run, tokens, prompt_tokens=3)
    worker.begin(request)
    planner = Planner(worker.bank, MODEL)
    following = []
    for position in range(5):
        request.computed = position
        routed = planner.plan(_as_batch([request], [1]), worker.runs)
        assert routed is not None
        (block,) = routed.blocks
        assert block.next_ids is not None
        following += block.next_ids.tolist()
    assert following == [11, 12, -1, -1, -1]
