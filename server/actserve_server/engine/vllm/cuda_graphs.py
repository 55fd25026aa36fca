"""Full CUDA graphs for steps without taps, piecewise ones for the others; and on demand full ones
with taps in them.

A CUDA graph that is replayed as a whole never runs the Python of a tap. So vLLM captures full
graphs of the model without taps, and here a step that has a tapped run in it is kept from them. Of
what it compiles, which is split at taps, vLLM captures the pieces: of each graph in turn.

With `gpu_taps` "triton" full graphs are captured a second time, of the model with taps that are
kernels over static tables (`triton_taps.py`). A step whose tapped runs are all in the tables goes
through these.
"""

import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.graphs import PLAIN, REPLAYED
from actserve_server.engine.vllm.layout import Layout
from actserve_server.engine.vllm.options import GPU_TAPS_TRITON
from actserve_server.engine.vllm.replayed_step import ReplayedStep
from actserve_server.engine.vllm.resident_runs import ResidentRuns, places_of
from actserve_server.engine.vllm.step_modes import StepChoice, StepMode, choose
from actserve_server.engine.vllm.step_plan import RoutedStep
from actserve_server.engine.vllm.tap_tables import WIDEST, TapSizes, TapTables
from actserve_server.engine.vllm.worker import NOWHERE, TapWorker

log = logging.getLogger(__name__)


class CudaGraphs(TapWorker):
    """Mixin before a worker class of vLLM's whose model runner captures CUDA graphs."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        self._residents: ResidentRuns | None = None
        self._replayed: ReplayedStep | None = None
        """Of the last step, if it was replayed with taps."""
        self.choice: StepChoice | None = None
        """Of the last step."""
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        if self.vllm_config.additional_config.gpu_taps == GPU_TAPS_TRITON:
            self._take_tables()
        self._vllm_dispatch = runner.cudagraph_dispatcher.dispatch
        runner.cudagraph_dispatcher.dispatch = self._dispatch
        self._vllm_capture = runner._warmup_and_capture
        runner._warmup_and_capture = self._capture

    def _take_tables(self) -> None:
        """Before vLLM finds what memory is left."""
        from actserve_server.engine.vllm.triton_taps import Place, tap_rows

        runner, config, model = self.model_runner, self.vllm_config, self._model
        if not hasattr(runner.model, "unwrap"):
            log.warning("vLLM has no full CUDA graphs of this model: steps go piece by piece")
            self._graphs.drop(REPLAYED)
            return
        served = [width for width in model.widths.values() if width <= self._dimensions.width]
        sizes = TapSizes(
            sites=len(model.layout.sites),
            width=max(served, default=self._dimensions.width),
            rows=config.compilation_config.max_cudagraph_capture_size,
            runs=config.scheduler_config.max_num_seqs,
        )
        tables = TapTables.empty(sizes, config.model_config.dtype, self.device)
        self._residents = ResidentRuns(tables, model, self._bank)
        places = [Place(*place) for place in places_of(model.layout)]
        bank = self._bank.numbers

        def launch(hidden: torch.Tensor, residual: torch.Tensor | None, place: int) -> None:
            # More rows than any CUDA graph has are vLLM's, which finds what memory a step takes.
            if len(hidden) <= sizes.rows:
                tap_rows(hidden, residual, places[place], tables, bank)

        taps.launch_in_graphs(launch)
        # What is captured lies in the wrapper, so a second one has graphs of its own.
        wrapper = type(runner.model)
        self._with_taps = wrapper(runner.model.unwrap(), config, CUDAGraphMode.FULL)
        log.info("taps in CUDA graphs", extra={"bytes": tables.nbytes, "rows": sizes.rows})

    def _unreplayed(self, layout: Layout) -> frozenset[int] | None:
        if self.vllm_config.additional_config.gpu_taps != GPU_TAPS_TRITON:
            return None
        return frozenset(
            site.place
            for key, site in layout.sites.items()
            if key in self._model.shards or self._model.widths[key] > WIDEST
        )

    def _start(self, request_id: str, message: dict[str, Any]) -> None:
        super()._start(request_id, message)
        run = self._runs.get(request_id)
        if self._residents is None or run is None:
            return
        if why := self._residents.begin(request_id, run):
            log.debug("a run goes piece by piece", extra={"reason": why})

    def _end(self, request_id: str) -> None:
        super()._end(request_id)
        if self._residents is not None:
            self._residents.end(request_id)

    def _dispatch(
        self, *args: Any, invalid_modes: Set[CUDAGraphMode] | None = None, **kwargs: Any
    ) -> Any:
        """Here the batch is final. Whether its tapped runs have work in this step is not known yet;
        where none has, the plain graph serves, piece by piece or as a whole."""
        graphs = self._graphs.steps
        self.choice = choose(self._batch(), self._runs, graphs, self._residents)
        if self.choice.mode is StepMode.PIECES:
            invalid_modes = {*(invalid_modes or ()), CUDAGraphMode.FULL}
        return self._vllm_dispatch(*args, invalid_modes=invalid_modes, **kwargs)

    def _capture(
        self, desc: Any, cudagraph_runtime_mode: CUDAGraphMode, *args: Any, **kwargs: Any
    ) -> None:
        """Captures CUDA graphs for a size of batch: full ones without taps or with taps that are
        replayed, others of each graph."""
        full = cudagraph_runtime_mode == CUDAGraphMode.FULL
        for name in self._graphs.steps:
            if name not in (PLAIN, REPLAYED) if full else name == REPLAYED:
                continue
            capture = partial(self._vllm_capture, desc, cudagraph_runtime_mode, *args, **kwargs)
            with self._graphs.computing(name):
                if name == REPLAYED:
                    with self._replaying_taps():
                        capture()
                else:
                    capture()

    @contextmanager
    def _replaying_taps(self) -> Iterator[None]:
        """Inside, vLLM captures and replays the full CUDA graphs that have taps."""
        runner = self.model_runner
        without, runner.model = runner.model, self._with_taps
        try:
            yield
        finally:
            runner.model = without

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        chosen = self.choice is not None and self.choice.mode is StepMode.REPLAYED
        if self._residents is None or not chosen or not _is_full():
            self._replayed = None
            return super()._forward(*args, **kwargs)
        batch = self._batch()
        goes_on = self._planner.goes_on(batch)
        step = self._planned()
        if step is None:
            # None of them has work in this step, or what they have cannot be planned.
            self._replayed = None
            with self._graphs.reaching(NOWHERE):
                return self._vllm_forward(*args, **kwargs)
        if goes_on and self._replayed is not None:
            self._residents.go_on()
        else:
            self._residents.write(batch, self._runs)
            self._replayed = ReplayedStep(step, batch, self._runs, self._residents, self._model)
        with self._graphs.replaying(), self._replaying_taps():
            output = self._vllm_forward(*args, **kwargs)
        self._take(self._replayed, step)
        return output

    def _take(self, replayed: ReplayedStep, step: RoutedStep) -> None:
        proven, error = None, None
        try:
            proven = replayed.take()
        except Exception as failure:
            error = failure
        if not self._fail_if(error, step.keys):
            self._ship(step, proven)


def _is_full() -> bool:
    """Whether vLLM has found a full CUDA graph for this pass."""
    return get_forward_context().cudagraph_runtime_mode == CUDAGraphMode.FULL
