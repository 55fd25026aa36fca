"""With rows split over ranks, every rank reads whole rows and changes its own part of them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add
from actserve_server.domain.probes import Aggregator, Ema, Probe
from actserve_server.domain.runs import Intervention, Unembed
from actserve_server.engine.vllm import head as head_module
from actserve_server.engine.vllm import sharding
from actserve_server.engine.vllm.bank import StepVectors, VectorBank
from actserve_server.engine.vllm.head import Head
from actserve_server.engine.vllm.layout import Layout, SiteKey
from actserve_server.engine.vllm.sharding import AgreedGather, Shards
from actserve_server.engine.vllm.step_batch import Model
from actserve_server.engine.vllm.step_plan import route
from actserve_server.engine.vllm.taps import EditWork
from tests.unit.vllm.steps import change, make_run, read, rows, site, start

T = TypeVar("T")


class Ranks:
    """Tensor-parallel ranks as threads, with an all-gather among them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[torch.Tensor] = [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=20)
        self._local = threading.local()

    def all_gather(self, part: torch.Tensor, dim: int) -> torch.Tensor:
        assert part.is_contiguous()  # vLLM's refuses others on some devices.
        self._parts[self._local.rank] = part
        self._barrier.wait()
        whole = torch.cat(self._parts, dim)
        self._barrier.wait()
        return whole

    def failed(self, failed: bool) -> bool:
        return bool(self.all_gather(torch.tensor([failed]), 0).any())

    def run(self, work: Callable[[int], T]) -> list[T]:
        """What each rank's work returns."""

        def as_rank(rank: int) -> T:
            self._local.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self._size) as threads:
            return list(threads.map(as_rank, range(self._size)))


@pytest.fixture
def make_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Ranks]:
    def make(size: int) -> Ranks:
        ranks = Ranks(size)
        monkeypatch.setattr(sharding, "tensor_model_parallel_all_gather", ranks.all_gather)
        monkeypatch.setattr(sharding, "failed_on_any_rank", ranks.failed)
        return ranks

    return make


WHOLE = torch.arange(24, dtype=torch.float32).reshape(3, 8)


@pytest.mark.parametrize(
    ("copies", "columns"),
    [
        (1, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (2, [(0, 4), (0, 4), (4, 8), (4, 8)]),
        (4, [(0, 8)] * 4),
    ],
)
def test_parts_are_of_ranks_or_of_groups_of_ranks_and_make_up_whole_rows(
    make_ranks: Callable[[int], Ranks], copies: int, columns: list[tuple[int, int]]
) -> None:
    shards = [Shards(rank, 4, copies) for rank in range(4)]
    parts = [each.part(WHOLE) for each in shards]
    assert all(
        torch.equal(part, WHOLE[:, low:high])
        for part, (low, high) in zip(parts, columns, strict=True)
    )
    gathered = make_ranks(4).run(lambda rank: shards[rank].gather(parts[rank]))
    assert all(torch.equal(each, WHOLE) for each in gathered)


HEADS, HEAD_WIDTH = 4, 3
PLAIN = Add(np.arange(1, 4, dtype=np.float32))
BY_WHOLE_ROWS = Condition(
    Probe(site("z.0"), np.ones(HEADS * HEAD_WIDTH, np.float32)),
    Aggregator(Ema(0.5)),
    above=0.0,
)
SCALED = Add(np.arange(1, 13, dtype=np.float32), coefficient=0.5, relative=True)


@pytest.mark.parametrize(
    "edit",
    [
        change(PLAIN, "z.0", heads=(1, 3)),
        change(SCALED, "z.0"),
        change(PLAIN, "z.0", heads=(1, 3), when=BY_WHOLE_ROWS),
    ],
    ids=["some heads", "by the norm of whole rows", "where whole rows meet a condition"],
)
def test_an_edit_of_split_rows_is_that_of_whole_ones(
    make_ranks: Callable[[int], Ranks], edit: Intervention
) -> None:
    layout = Layout()
    place = layout.add_place([(site("z.0"), False)], sharded=True)
    run = make_run(edit, read("z.0"))
    whole = torch.randn(5, HEADS * HEAD_WIDTH, generator=torch.Generator().manual_seed(2))

    def carry_out(shards: Shards | None, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What z is afterwards, and the rows captured of it."""
        bank = VectorBank(torch.device("cpu"), 1 << 20)
        key = SiteKey.of(site("z.0"))
        model = Model(layout, HEAD_WIDTH, {key: shards} if shards else {})
        routed = route([rows(start(bank, 1, run), row=1, position=0, tokens=3)], bank, model)
        assert routed is not None
        routed.plan.run(place, z, None)
        captured = routed.blocks[0].columns[0].work.rows
        assert captured is not None
        return z, captured

    expected, expected_rows = carry_out(None, whole.clone())
    assert not torch.equal(expected, whole)
    own = [whole.chunk(2, dim=1)[rank].clone() for rank in range(2)]
    results = make_ranks(2).run(lambda rank: carry_out(Shards(rank, 2), own[rank]))
    torch.testing.assert_close(torch.cat([z for z, _ in results], dim=1), expected)
    for _, captured in results:
        torch.testing.assert_close(captured, expected_rows)


def test_an_error_on_one_rank_keeps_no_other_waiting(
    make_ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in blocks of one, and after the edit that fails there is more to read."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * HEADS * HEAD_WIDTH)
    layout = Layout()
    place = layout.add_place([(site("z.0"), False)], sharded=True)
    key, run = SiteKey.of(site("z.0")), make_run(change(SCALED, "z.0"), read("z.0"))

    def carry_out(rank: int) -> bool:
        """Whether the pass succeeds."""
        bank = VectorBank(torch.device("cpu"), 1 << 20)
        model = Model(layout, HEAD_WIDTH, {key: Shards(rank, 2)})
        routed = route([rows(start(bank, 1, run), row=1, position=0, tokens=3)], bank, model)
        assert routed is not None
        if rank == 1:
            edit, _ = routed.plan._work[place]
            assert isinstance(edit, EditWork)
            edit.edited.vectors = StepVectors(_breaks, 1)
        routed.plan.run(place, torch.randn(5, HEADS * HEAD_WIDTH // 2), None)
        try:
            routed.plan.check()
        except Broken:
            return False
        return True

    assert make_ranks(2).run(carry_out) == [True, False]


class Broken(Exception):
    pass


def _breaks(rows: slice) -> torch.Tensor:
    raise Broken


class Faulty:
    """The end of a model on one of two ranks, which fails in one of its steps."""

    def __init__(self, ranks: Ranks, fails: str) -> None:
        self._ranks = ranks
        self._fails = fails
        self._gather_logits: Callable[[torch.Tensor], torch.Tensor | None] = self._gather
        self.computed = 0

    def norm(self, rows: torch.Tensor) -> torch.Tensor:
        return self._step("norm", rows)

    def compute_logits(self, rows: torch.Tensor) -> torch.Tensor | None:
        self.computed += 1
        part = self._step("part", rows)
        logits = self._gather_logits(part)
        assert logits is not None
        return self._step("whole", logits)

    def _gather(self, part: torch.Tensor) -> torch.Tensor:
        return self._ranks.all_gather(part, -1)

    def _step(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        # In the second of three blocks.
        if name == self._fails and rows[0, 0] == 2:
            raise MemoryError(name)
        return rows


def _logits(made: Faulty, head: Head, rows: torch.Tensor) -> tuple[str, int]:
    """What came of it, and how often logits were computed; then logits of rows that do no harm."""
    count = 0
    try:
        head.predictions(rows, Unembed(top_k=1), np.full(len(rows), -1), normed=False)
        what = "logits"
    except Exception as error:
        what = type(error).__name__
    finally:
        count = made.computed
    assert head.logits(torch.ones(2, 1)).shape == (2, 2)
    return what, count


@pytest.mark.parametrize(
    ("fails", "own", "other"),
    [
        ("norm", ("NotGatheredError", 1), ("NotGatheredError", 2)),
        ("part", ("NotGatheredError", 2), ("NotGatheredError", 2)),
        # The others have theirs, so it goes on for them.
        ("whole", ("MemoryError", 3), ("logits", 3)),
    ],
)
def test_a_rank_that_fails_while_logits_are_made_leaves_no_other_waiting(
    make_ranks: Callable[[int], Ranks],
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    own: tuple[str, int],
    other: tuple[str, int],
) -> None:
    monkeypatch.setattr(head_module, "ROWS_AT_ONCE", 1)
    ranks = make_ranks(2)
    rows = torch.tensor([[1.0], [2.0], [3.0]])

    def work(rank: int) -> tuple[str, int]:
        made = Faulty(ranks, fails if rank == 1 else "")
        head = Head(made.compute_logits, made.norm, 2, AgreedGather(made))  # type: ignore[arg-type]
        return _logits(made, head, rows)

    assert ranks.run(work) == [other, own]


def test_what_vllm_gathers_itself_asks_no_other_rank(
    make_ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = make_ranks(1)
    monkeypatch.setattr(sharding, "failed_on_any_rank", lambda failed: pytest.fail("asked"))
    made = Faulty(ranks, "")
    AgreedGather(made)
    (logits,) = ranks.run(lambda rank: made.compute_logits(WHOLE))
    assert logits is not None
    assert torch.equal(logits, WHOLE)
