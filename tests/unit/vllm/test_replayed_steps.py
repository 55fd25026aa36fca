"""Steps go through CUDA graphs that have taps in them, where these can serve; a stand-in replays
what was captured, whatever Python would do now. Kernels are run by Triton's interpreter."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context, override_forward_context

from actserve_server.domain.operations import Ablate, Add
from actserve_server.domain.positions import NO_END
from actserve_server.domain.runs import Capture, Intervention, Run
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.cuda_graphs import CudaGraphs
from actserve_server.engine.vllm.families import FAMILIES
from actserve_server.engine.vllm.graphs import FULL, PLAIN, REPLAYED, STREAM
from actserve_server.engine.vllm.options import GPU_TAPS_PIECES, GPU_TAPS_TRITON
from actserve_server.engine.vllm.records import FailureRecord, ReceiptsRecord, RowsRecord, read
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.step_modes import StepChoice, StepMode
from actserve_server.engine.vllm.worker import WorkerConfig
from tests.unit.vllm import steps
from tests.unit.vllm.standins import Runner, VllmWorker, Worker
from tests.unit.vllm.steps import at, change, make_run
from tests.unit.vllm.toys import WIDTH, Model

pytestmark = pytest.mark.usefixtures("interpreted")

LLAMA = FAMILIES["LlamaForCausalLM"]
SIZES = (1, 2, 4)
"""Of the CUDA graphs."""
PIECES, REPLAY = StepMode.PIECES, StepMode.REPLAYED

ADD = change(Add(np.arange(WIDTH), 1.0), "resid_post.0", "mlp_out.1", where=at((0, NO_END)))
ABLATE = change(Ablate(np.ones(WIDTH), 1.0), "resid_post.1", where=at((2, 5)))
ROWS = steps.read("resid_post.0", "resid_post.1", "final_norm")
CROWDED = [steps.read("resid_post.0", where=at((i, NO_END))) for i in range(5)]


@dataclass
class FullGraphs:
    """Stands for vLLM's wrapper of a model: captures a graph for each size, and replays it."""

    model: Model
    config: Any = None
    mode: CUDAGraphMode = CUDAGraphMode.FULL
    captured: dict[int, tuple[frozenset[int], bool]] = field(default_factory=dict)
    """Of each size: the places without a tap, and whether taps are kernels."""

    def unwrap(self) -> Model:
        return self.model

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        context: Any = get_forward_context()
        if context.cudagraph_runtime_mode != self.mode:
            return self.model(hidden)
        size = next(size for size in SIZES if size >= len(hidden))
        if context.capturing:
            self.captured[size] = (taps._left_out, taps._are_replayed)
        left_out, kernels = self.captured[size]
        padded = torch.cat([hidden, torch.full((size - len(hidden), WIDTH), 9.0)])
        current, taps._current = taps._current, None
        try:
            with taps.leaving_out(left_out), taps.replayed() if kernels else nullcontext():
                return self.model(padded)[: len(hidden)]
        finally:
            taps._current = current


class Dispatcher:
    """Takes a full graph for a decode step, as vLLM does."""

    def dispatch(self, tokens: int, requests: int, *, invalid_modes: Any = None) -> CUDAGraphMode:
        full = CUDAGraphMode.FULL
        fits = tokens == requests and tokens <= SIZES[-1] and full not in (invalid_modes or ())
        return full if fits else CUDAGraphMode.PIECEWISE


class GpuRunner(Runner):
    """As much of vLLM's on a GPU as matters here."""

    model: Any

    def __init__(self) -> None:
        torch.manual_seed(4)
        super().__init__(Model())
        self.model = FullGraphs(self.model)
        self.cudagraph_dispatcher = Dispatcher()

    def get_model(self) -> Model:
        return self.model.unwrap()

    def profile_run(self) -> None:
        # More tokens than any CUDA graph has.
        with in_mode(CUDAGraphMode.NONE):
            self.model(torch.zeros(64, WIDTH))

    def _warmup_and_capture(self, size: int, cudagraph_runtime_mode: CUDAGraphMode) -> None:
        with in_mode(cudagraph_runtime_mode, capturing=True):
            self.model(torch.zeros(size, WIDTH))


def in_mode(mode: CUDAGraphMode, *, capturing: bool = False) -> Any:
    context: Any = SimpleNamespace(cudagraph_runtime_mode=mode, capturing=capturing)
    return override_forward_context(context)


class GpuVllmWorker(VllmWorker):
    vllm_config: Any
    model_runner: Any

    def load_model(self) -> None:
        self.model_runner = GpuRunner()
        config = self.vllm_config
        config.compilation_config = SimpleNamespace(max_cudagraph_capture_size=SIZES[-1])
        config.scheduler_config = SimpleNamespace(max_num_seqs=8)

    def execute_model(self, scheduler_output: Any) -> torch.Tensor:
        runner, hidden = self.model_runner, scheduler_output.hidden
        mode = runner.cudagraph_dispatcher.dispatch(len(hidden), len(runner.input_batch.req_ids))
        with in_mode(mode):
            return runner._model_forward(hidden)


class GpuWorker(CudaGraphs, Worker, GpuVllmWorker):
    model_runner: Any

    def take(
        self,
        *requests: tuple[str, int, int],
        new: dict[str, Run] | None = None,
        finished: set[str] | None = None,
    ) -> torch.Tensor:
        """A step of these requests, each as (id, first position, rows)."""
        return self.step(self.model_runner.set_batch(*requests), new, finished)

    @property
    def mode(self) -> StepMode:
        assert self.choice is not None
        return self.choice.mode


@dataclass
class Served:
    """A worker and what it has sent."""

    worker: GpuWorker
    ring: RingReader

    def records(self) -> list[RowsRecord | ReceiptsRecord | FailureRecord]:
        return [read(each.copy()) for each in self.ring.take()]


def started(ring: RingReader, gpu_taps: str) -> Served:
    worker = GpuWorker(WorkerConfig(str(ring.folder), LLAMA, gpu_taps=gpu_taps))
    worker.model_runner.profile_run()
    for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
        for size in SIZES:
            worker.model_runner._warmup_and_capture(size, mode)
    return Served(worker, ring)


@pytest.fixture
def rings() -> Iterator[list[RingReader]]:
    readers = [RingReader(capacity=1 << 16) for _ in range(2)]
    yield readers
    for each in readers:
        each.close()
    taps.launch_in_graphs(None)


@pytest.fixture
def replaying(rings: list[RingReader]) -> Served:
    return started(rings[0], GPU_TAPS_TRITON)


def run(*of: Intervention | Capture) -> Run:
    return make_run(*of)


def test_two_sets_of_full_graphs_are_captured_one_with_kernels_as_taps(replaying: Served) -> None:
    worker = replaying.worker
    every = frozenset(range(worker._model.layout.place_count))
    assert worker.model_runner.model.captured == dict.fromkeys(SIZES, (every, False))
    assert worker._with_taps.captured == dict.fromkeys(SIZES, (frozenset(), True))


def test_a_step_goes_the_fastest_way_that_serves_it(replaying: Served) -> None:
    worker, modes = replaying.worker, []
    for requests, new in (
        ((("p", 0, 3),), {"p": run()}),
        ((("p", 3, 1),), {}),
        ((("p", 4, 1), ("a", 0, 3)), {"a": run(ROWS, ADD)}),
        ((("p", 5, 1), ("a", 3, 1)), {}),
        ((("a", 4, 1), ("p", 6, 1)), {}),
        ((("p", 7, 1),), {}),
    ):
        worker.take(*requests, new=new)
        modes.append((worker.mode, worker._residents.step if worker._residents else None))
    assert modes == [
        (StepMode.PLAIN, 0),
        (StepMode.PLAIN, 0),
        # Its tables would do, but vLLM has no full graph for the tokens of a prompt.
        (StepMode.REPLAYED, 0),
        (StepMode.REPLAYED, 1),
        (StepMode.REPLAYED, 2),
        (StepMode.PLAIN, 2),
    ]
    assert worker.graph_steps() == {PLAIN: 3, STREAM: 1, FULL: 0, REPLAYED: 2}


def test_what_is_sent_is_what_is_sent_piece_by_piece(rings: list[RingReader]) -> None:
    both = [
        started(ring, how)
        for ring, how in zip(rings, (GPU_TAPS_TRITON, GPU_TAPS_PIECES), strict=True)
    ]
    new = {
        "a": run(ADD, ABLATE, ROWS),
        "b": run(steps.read("resid_post.0", where=at((4, NO_END)))),
        "c": run(change(Add(np.ones(WIDTH), 2.0), "final_norm"), ROWS),
    }
    outputs = [[], []]
    for served, output in zip(both, outputs, strict=True):
        take = served.worker.take
        output.append(take(("a", 0, 2), ("b", 0, 3), ("c", 0, 1), new=new))
        for position in range(2, 7):
            decode = ("a", position, 1), ("b", position + 1, 1), ("c", position - 1, 1)
            output.append(take(*decode))
        # Others come and go, and a run is computed anew.
        output.append(take(("c", 6, 1), ("b", 0, 1), finished={"a"}))
        output.append(take(("b", 1, 1), ("p", 3, 1), ("c", 7, 1), new={"p": run()}))
    worker = both[0].worker
    assert worker.graph_steps()[REPLAYED] == 7
    assert both[1].worker.graph_steps().keys() == {PLAIN, STREAM, FULL}
    for mine, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, theirs)
    mine, theirs = (each.records() for each in both)
    assert len(mine) == len(theirs)
    for one, two in zip(mine, theirs, strict=True):
        assert type(one) is type(two)
        assert not isinstance(one, FailureRecord)
        assert not isinstance(two, FailureRecord)
        assert one.keys.tolist() == two.keys.tolist()
        assert one.positions.tolist() == two.positions.tolist()
        if isinstance(one, RowsRecord):
            assert isinstance(two, RowsRecord)
            rows = (each.data.view(np.float32) for each in (one, two))
            np.testing.assert_allclose(*rows, rtol=1e-5, atol=1e-5)
        else:
            assert isinstance(two, ReceiptsRecord)
            assert one.edits.tolist() == two.edits.tolist()
            np.testing.assert_allclose(one.changes, two.changes, rtol=1e-4, atol=1e-6)


def test_a_step_that_goes_on_writes_its_number_alone(
    replaying: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, written = replaying.worker, []
    residents = worker._residents
    assert residents is not None
    write = residents.write
    monkeypatch.setattr(residents, "write", lambda *of: written.append(1) or write(*of))
    worker.take(("a", 0, 2), new={"a": run(ROWS)})
    for position in range(2, 9):
        worker.take(("a", position, 1))
    assert len(written) == 1
    assert residents.tables.clock.tolist() == [7, 1]
    half = residents.step % 2
    slots = [residents.output_of(site) for site in residents._output_of]
    assert residents.tables.row_stamps[half, slots, 0].tolist() == [7, 7, 7]
    # Another in the batch, and it is written again.
    worker.take(("p", 0, 1), ("a", 9, 1), new={"p": run()})
    assert len(written) == 2


def test_a_run_that_does_not_fit_takes_its_steps_piece_by_piece_until_it_ends(
    replaying: Served,
) -> None:
    worker = replaying.worker
    worker.take(("a", 0, 2), ("x", 0, 2), new={"a": run(ROWS), "x": run(*CROWDED)})
    worker.take(("a", 2, 1), ("x", 2, 1))
    assert worker.choice == StepChoice(PIECES, "it has a run that is not in the tables")
    worker.take(("a", 3, 1))
    assert worker.mode is REPLAY
    worker.take(("x", 3, 1), ("a", 4, 1))
    assert worker.mode is PIECES
    worker.take(("a", 5, 1), finished={"x"})
    assert worker.mode is REPLAY
    rows = [each for each in replaying.records() if isinstance(each, RowsRecord)]
    own = [each.positions[each.keys == 0] for each in rows]
    assert np.concatenate(own).tolist() == [0, 1, 2, 3, 4, 5]


def test_more_runs_than_slots_go_piece_by_piece(replaying: Served) -> None:
    worker = replaying.worker
    runs = {str(index): run(ROWS) for index in range(9)}
    worker.take(*((name, 0, 1) for name in runs), new=runs)
    worker.take(("7", 1, 1), ("8", 1, 1))
    assert worker.mode is PIECES
    worker.take(("6", 1, 1), ("7", 2, 1))
    assert worker.mode is REPLAY
    # A slot is free, and the next one takes it.
    worker.take(("6", 2, 1), ("n", 0, 1), new={"n": run(ROWS)}, finished={"0"})
    assert worker.mode is REPLAY


def test_a_run_without_work_in_a_step_is_replayed_without_taps(replaying: Served) -> None:
    worker = replaying.worker
    late = run(steps.read("resid_post.0", where=at((3, NO_END))))
    worker.take(("a", 0, 1), new={"a": late})
    assert worker.mode is REPLAY
    assert worker.graph_steps() == {PLAIN: 1, STREAM: 0, FULL: 0, REPLAYED: 0}
    worker.take(("a", 3, 1))
    assert worker.graph_steps()[REPLAYED] == 1


def test_a_graph_with_taps_that_was_dropped_serves_no_more(replaying: Served) -> None:
    worker = replaying.worker
    worker.drop_graph(REPLAYED)
    worker.take(("a", 0, 1), new={"a": run(ROWS)})
    assert worker.choice == StepChoice(PIECES, "there is no graph with taps to replay")
    worker.take(("p", 0, 1), new={"p": run()})
    assert worker.mode is StepMode.PLAIN


def test_a_graph_that_lost_its_taps_fails_the_runs_and_no_others(replaying: Served) -> None:
    """Nothing is told that was not read in this very step, as of the step before."""
    worker = replaying.worker
    worker.take(("a", 0, 1), new={"a": run(ROWS)})
    taps.launch_in_graphs(None)
    worker.take(("a", 1, 1))
    records = replaying.records()
    assert [type(each) for each in records] == [RowsRecord, FailureRecord]
    (failed,) = (each for each in records if isinstance(each, FailureRecord))
    assert failed.keys.tolist() == [0]
    assert failed.why == "a CUDA graph was replayed without its taps"


def test_there_is_nothing_of_it_unless_it_is_asked_for(rings: list[RingReader]) -> None:
    worker = started(rings[0], GPU_TAPS_PIECES).worker
    assert worker._residents is None
    worker.take(("a", 0, 1), new={"a": run(ROWS)})
    assert worker.mode is PIECES
    assert worker._vllm_dispatch(1, 1) is CUDAGraphMode.FULL
    assert taps._launch is None
