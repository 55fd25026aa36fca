"""What runs inside vLLM's worker: taps in the model, a plan for every step, rows out.

`TapWorker` is a mixin over vLLM's own worker classes; `worker_cpu.py` and `worker_gpu.py` make the
concrete ones that `worker_cls` names. It uses three seams: `load_model`, `execute_model`, and the
model runner's `_model_forward`, which vLLM documents as the place to see a forward pass. There the
batch is final: whatever reordered it has run.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm import attach, layout, taps, wire
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.attention import describe_attention
from actserve_server.engine.vllm.bank import Banks
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import Family
from actserve_server.engine.vllm.head import Head
from actserve_server.engine.vllm.layout import FINAL_NORM, LOGITS, Layout, SiteKey
from actserve_server.engine.vllm.lifeline import end_with
from actserve_server.engine.vllm.ring import RingWriter
from actserve_server.engine.vllm.sharding import Shards
from actserve_server.engine.vllm.shipping import ShippedRows, Shipper
from actserve_server.engine.vllm.step_plan import (
    BatchRows,
    Column,
    Model,
    RowBlock,
    TappedRun,
    route,
)
from actserve_server.engine.vllm.worker_weights import Weights

_GRAPH_CODE = (attach, layout, taps)
"""The modules that, with a family's paths, decide where taps are in the compiled graph."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """vLLM's `additional_config`: how the server reaches its worker, and what it taps."""

    ring_folder: str
    family: Family
    hook_points: tuple[str, ...] = tuple(HookPoint)
    server: int | None = None
    """The process that this worker is to end with."""

    def compute_hash(self) -> str:
        """All that decides where taps are in the compiled graph, and nothing else: the rest differs
        at every start."""
        code = hashlib.sha256()
        for module in _GRAPH_CODE:
            code.update(inspect.getsource(module).encode())
        code.update(repr((self.family, sorted(self.hook_points))).encode())
        return f"actserve-taps-{code.hexdigest()}"


class TapWorker:
    """Mixin before a vLLM worker class."""

    # Of vLLM's worker.
    vllm_config: Any
    model_runner: Any
    device: Any
    rank: int

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        ours: WorkerConfig = self.vllm_config.additional_config
        if ours.server:
            end_with(ours.server)
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        config = self.vllm_config.model_config
        ranks = self.vllm_config.parallel_config.tensor_parallel_size
        family = ours.family
        model = self.model_runner.get_model()
        tapped = attach_taps(model, family, {HookPoint(name) for name in ours.hook_points})
        self._dimensions = Dimensions.of(model, family, config, ranks)
        self._attention = describe_attention(model, family)
        shards = _shards(tapped, self._dimensions, self.rank, ranks) if ranks > 1 else {}
        self._model = Model(tapped, self._dimensions.head_width, shards)
        self._head = Head(
            model.compute_logits,
            model.get_submodule(family.final_norm),
            self._dimensions.vocabulary_size,
        )
        self._weights = Weights(model, family, self._dimensions, self.rank, ranks)
        self._banks = Banks(self.device)
        self._runs: dict[str, TappedRun] = {}
        # Rows are the same on every tensor-parallel rank once gathered; one sends them.
        self._shipper = (
            Shipper(RingWriter(Path(ours.ring_folder)), self.device) if self.rank == 0 else None
        )
        self._vllm_forward = self.model_runner._model_forward
        self.model_runner._model_forward = self._forward

    def describe_taps(self) -> dict[str, Any]:
        """What is tapped, for the server process: plain ints and strings."""
        return {
            "dimensions": asdict(self._dimensions),
            "hook_points": sorted(self._model.layout.hook_points),
            "weights": self._weights.describe(),
            **self._attention,
        }

    def read_weights(self, what: str, *of: Any) -> Any:
        """A method of `Weights` by name: the part that this rank holds."""
        return getattr(self._weights, what)(*of)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.scheduled_spec_decode_tokens:
            # Of a token that is rejected, the rows would be taken for those of its position.
            raise RuntimeError("a step holds speculative tokens, which this worker does not serve")
        # Finished covers aborted; a preempted request is neither and keeps its run.
        for request_id in scheduler_output.finished_req_ids:
            if run := self._runs.pop(request_id, None):
                run.end(self._banks)
        for request in scheduler_output.scheduled_new_reqs:
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            message = extra.get(wire.EXTRA_ARG)
            # A resumed request may be announced as new again; its run goes on.
            if message and request.req_id not in self._runs:
                self._runs[request.req_id] = TappedRun.start(wire.decode(message), self._banks)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        routed = route(self._tapped_rows(), self._banks, self._model) if self._runs else None
        if routed is None:
            return self._vllm_forward(*args, **kwargs)
        with taps.step(routed.plan):
            output = self._vllm_forward(*args, **kwargs)
        if missed := routed.plan.missed():
            raise RuntimeError(f"the forward pass never reached tap places {missed}")
        blocks = [self._shipped(block) for block in routed.blocks]
        if self._shipper:
            self._shipper.ship(blocks, routed.receipts)
        return output

    def _tapped_rows(self) -> Iterator[BatchRows]:
        runner = self.model_runner
        batch = runner.input_batch
        starts = runner.query_start_loc.np
        computed = batch.num_computed_tokens_cpu
        for index, request_id in enumerate(batch.req_ids):
            if run := self._runs.get(request_id):
                row, first = int(starts[index]), int(computed[index])
                count = int(starts[index + 1]) - row
                known = batch.token_ids_cpu[index]
                prompt_end = int(batch.num_prompt_tokens[index])
                following = np.full(count, -1, np.int64)
                inside = max(0, min(count, prompt_end - 1 - first))
                following[:inside] = known[first + 1 : first + 1 + inside]
                yield BatchRows(run, row, first, count, known[first : first + count], following)

    def _shipped(self, block: RowBlock) -> ShippedRows:
        data = tuple(self._rows(column, block) for column in block.columns)
        return ShippedRows(block.number, block.keys, block.positions, data)

    def _rows(self, column: Column, block: RowBlock) -> torch.Tensor:
        rows = column.work.rows
        assert rows is not None  # The pass reached every planned place.
        if block.unembed is not None:
            normed = column.site == FINAL_NORM
            return self._head.predictions(rows, block.unembed, block.next_ids, normed=normed)
        return self._head.logits(rows) if column.site == LOGITS else rows


def _shards(
    layout: Layout, dimensions: Dimensions, rank: int, ranks: int
) -> Mapping[SiteKey, Shards]:
    copies = max(1, ranks // dimensions.key_value_heads)
    return {
        key: Shards(rank, ranks, copies if key.site.hook_point in (HookPoint.K, HookPoint.V) else 1)
        for key, site in layout.sites.items()
        if site.sharded
    }
