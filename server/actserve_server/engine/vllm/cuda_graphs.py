"""Full CUDA graphs for steps without taps, piecewise ones for the others.

A CUDA graph that is replayed as a whole never runs the Python of a tap. So vLLM captures full
graphs of the model without taps, and here a step that has a tapped run in it is kept from them. Of
what it compiles, which is split at taps, vLLM captures the pieces: of each graph in turn.
"""

from collections.abc import Set
from typing import Any

from vllm.config import CUDAGraphMode

from actserve_server.engine.vllm.graphs import PLAIN
from actserve_server.engine.vllm.worker import TapWorker


class CudaGraphs(TapWorker):
    """Mixin before a worker class of vLLM's whose model runner captures CUDA graphs."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        self._vllm_dispatch = runner.cudagraph_dispatcher.dispatch
        runner.cudagraph_dispatcher.dispatch = self._dispatch
        self._vllm_capture = runner._warmup_and_capture
        runner._warmup_and_capture = self._capture

    def _dispatch(
        self, *args: Any, invalid_modes: Set[CUDAGraphMode] | None = None, **kwargs: Any
    ) -> Any:
        """Here the batch is final. Whether its tapped runs have work in this step is not known yet;
        where none has, the plain graph serves piece by piece."""
        tapped = not self._runs.keys().isdisjoint(self.model_runner.input_batch.req_ids)
        if tapped or PLAIN not in self._graphs.steps:
            invalid_modes = {*(invalid_modes or ()), CUDAGraphMode.FULL}
        return self._vllm_dispatch(*args, invalid_modes=invalid_modes, **kwargs)

    def _capture(
        self, desc: Any, cudagraph_runtime_mode: CUDAGraphMode, *args: Any, **kwargs: Any
    ) -> None:
        """Captures CUDA graphs for a size of batch: full ones without taps, others of each
        graph."""
        for name in self._graphs.steps:
            if cudagraph_runtime_mode == CUDAGraphMode.FULL and name != PLAIN:
                continue
            with self._graphs.computing(name):
                self._vllm_capture(desc, cudagraph_runtime_mode, *args, **kwargs)
