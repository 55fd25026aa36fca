"""A step with a tapped run in it never goes through a full CUDA graph, which has no taps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from vllm.config import CUDAGraphMode

from actserve_server.domain.operations import Add
from actserve_server.domain.positions import NO_END
from actserve_server.domain.runs import Run
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.cuda_graphs import CudaGraphs
from actserve_server.engine.vllm.families import FAMILIES
from actserve_server.engine.vllm.graphs import FULL, PLAIN, STREAM
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.worker import WorkerConfig
from tests.unit.vllm.standins import Runner, VllmWorker, Worker
from tests.unit.vllm.steps import at, change, make_run, read
from tests.unit.vllm.toys import WIDTH, Model

LLAMA = FAMILIES["LlamaForCausalLM"]
PLAIN_RUN, CAPTURED = make_run(), make_run(read("resid_post.0"))
LATE = make_run(change(Add(np.ones(WIDTH), 1.0), "resid_post.0", where=at((5, NO_END))))


class Dispatcher:
    """Chooses the largest CUDA graph that it may."""

    def dispatch(self, tokens: int, *, invalid_modes: Any = None) -> CUDAGraphMode:
        full = CUDAGraphMode.FULL
        return CUDAGraphMode.PIECEWISE if full in (invalid_modes or ()) else full


class GpuRunner(Runner):
    """As much of vLLM's on a GPU as matters here."""

    def __init__(self) -> None:
        super().__init__(Model())
        self.cudagraph_dispatcher = Dispatcher()
        self.captured: list[tuple[int, CUDAGraphMode, int]] = []
        """(size, mode, places without a tap)"""

    def _warmup_and_capture(self, desc: int, cudagraph_runtime_mode: CUDAGraphMode) -> None:
        self.captured.append((desc, cudagraph_runtime_mode, len(taps._left_out)))


class GpuVllmWorker(VllmWorker):
    def load_model(self) -> None:
        self.model_runner = GpuRunner()


class GpuWorker(CudaGraphs, Worker, GpuVllmWorker):
    model_runner: Any

    def mode(self, new: dict[str, Run], *requests: tuple[str, int, int]) -> CUDAGraphMode:
        """How vLLM runs a step."""
        modes = []
        forward = self.model_runner._model_forward

        def dispatched_first(hidden: Any) -> Any:
            modes.append(self.model_runner.cudagraph_dispatcher.dispatch(len(hidden)))
            return forward(hidden)

        self.model_runner._model_forward = dispatched_first
        self.step(self.model_runner.set_batch(*requests), new)
        self.model_runner._model_forward = forward
        (mode,) = modes
        return mode


@pytest.fixture
def ring() -> Iterator[RingReader]:
    reader = RingReader(capacity=1 << 16)
    yield reader
    reader.close()


@pytest.fixture
def worker(ring: RingReader) -> GpuWorker:
    return GpuWorker(WorkerConfig(str(ring.folder), LLAMA))


def test_a_plain_step_may_go_through_a_full_graph(worker: GpuWorker) -> None:
    assert worker.mode({"p": PLAIN_RUN}, ("p", 0, 3)) == CUDAGraphMode.FULL
    # Nor does a tapped run keep others from it in steps that it has no part in.
    worker.mode({"c": CAPTURED}, ("p", 3, 1), ("c", 0, 3))
    assert worker.mode({}, ("p", 4, 1)) == CUDAGraphMode.FULL


def test_a_step_with_a_tapped_run_goes_piece_by_piece(worker: GpuWorker) -> None:
    step = {"p": PLAIN_RUN, "c": CAPTURED}
    assert worker.mode(step, ("p", 0, 1), ("c", 0, 3)) == CUDAGraphMode.PIECEWISE
    assert worker.graph_steps() == {PLAIN: 0, STREAM: 1, FULL: 0}


def test_a_run_whose_positions_are_still_to_come_has_no_taps_yet(worker: GpuWorker) -> None:
    assert worker.mode({"l": LATE}, ("l", 0, 3)) == CUDAGraphMode.PIECEWISE
    assert worker.graph_steps() == {PLAIN: 1, STREAM: 0, FULL: 0}


@pytest.mark.parametrize("lean", [False, True])
def test_without_a_plain_graph_no_step_goes_through_a_full_one(
    ring: RingReader, lean: bool
) -> None:
    worker = GpuWorker(WorkerConfig(str(ring.folder), LLAMA, lean_graphs=lean))
    worker.drop_graph(PLAIN)
    assert worker.mode({"p": PLAIN_RUN}, ("p", 0, 3)) == CUDAGraphMode.PIECEWISE


def test_full_graphs_are_captured_without_taps_and_others_of_every_graph(
    worker: GpuWorker,
) -> None:
    for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
        worker.model_runner._warmup_and_capture(8, mode)
    places = worker._model.layout.place_count
    assert worker.model_runner.captured == [
        (8, CUDAGraphMode.PIECEWISE, places),
        (8, CUDAGraphMode.PIECEWISE, places - 4),
        (8, CUDAGraphMode.PIECEWISE, 0),
        (8, CUDAGraphMode.FULL, places),
    ]
