"""What runs inside vLLM's worker process: taps in the model, a plan for every step, rows out.

`TapWorker` is a mixin over vLLM's own worker classes; `worker_cpu.py` and `worker_gpu.py` make the
concrete ones that `worker_cls` names. It uses three seams: `load_model`, `execute_model`, and the
model runner's `_model_forward`, which vLLM documents as the place to see a forward pass. There the
batch is final: whatever reordered it has run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actserve_server.engine.vllm import taps, wire
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.ring import RingWriter
from actserve_server.engine.vllm.routing import BatchRows, TappedRun, route
from actserve_server.engine.vllm.shipping import Shipper

CODE_VERSION = "1"
"""Part of vLLM's compile-cache key: change it with the taps' place or meaning in the graph."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """vLLM's `additional_config`: how the server reaches its worker."""

    ring_folder: str

    def compute_hash(self) -> str:
        """Only what changes the compiled graph; the folder differs at every start."""
        return f"actserve-taps-{CODE_VERSION}"


class TapWorker:
    """Mixin before a vLLM worker class."""

    # Of vLLM's worker.
    vllm_config: Any
    model_runner: Any
    device: Any
    rank: int

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        config = self.vllm_config.model_config
        attach_taps(self.model_runner.get_model(), config.architecture)
        self._width = config.get_hidden_size()
        self._dtype = config.dtype
        self._bank = VectorBank(self._width, self._dtype, self.device)
        self._runs: dict[str, TappedRun] = {}
        # Activations are the same on every tensor-parallel rank at every site; one sends them.
        self._shipper = (
            Shipper(RingWriter(Path(self.vllm_config.additional_config.ring_folder)), self.device)
            if self.rank == 0
            else None
        )
        self._vllm_forward = self.model_runner._model_forward
        self.model_runner._model_forward = self._forward

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        # Finished covers aborted; a preempted request is neither and keeps its run.
        for request_id in scheduler_output.finished_req_ids:
            if run := self._runs.pop(request_id, None):
                for slot in run.slots:
                    self._bank.release(slot)
        for request in scheduler_output.scheduled_new_reqs:
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            message = extra.get(wire.EXTRA_ARG)
            # A resumed request may be announced as new again; its run goes on.
            if message and request.req_id not in self._runs:
                run_taps = wire.decode(message)
                slots = tuple(self._bank.put(edit.delta) for edit in run_taps.edits)
                self._runs[request.req_id] = TappedRun(run_taps, slots)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        routed = (
            route(self._tapped_rows(), self._bank, self._width, self._dtype) if self._runs else None
        )
        if routed is None:
            return self._vllm_forward(*args, **kwargs)
        with taps.step(routed.plan):
            output = self._vllm_forward(*args, **kwargs)
        if missed := routed.plan.missed():
            raise RuntimeError(f"the forward pass never reached tap points {missed}")
        if self._shipper:
            self._shipper.ship(routed.blocks, routed.receipts)
        return output

    def _tapped_rows(self) -> Iterator[BatchRows]:
        runner = self.model_runner
        batch = runner.input_batch
        starts = runner.query_start_loc.np
        computed = batch.num_computed_tokens_cpu
        for index, request_id in enumerate(batch.req_ids):
            if run := self._runs.get(request_id):
                row = int(starts[index])
                yield BatchRows(run, row, int(computed[index]), int(starts[index + 1]) - row)
