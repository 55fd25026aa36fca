"""What runs inside vLLM's worker: taps in the model, a plan for every step, rows out.

`TapWorker` is a mixin over vLLM's own worker classes; `worker_cpu.py` and `worker_gpu.py` make the
concrete ones that `worker_cls` names. It uses four seams: `load_model`, `execute_model`, the model
runner's logits processors, and its `_model_forward`, which vLLM documents as the place to see a
forward pass. There the batch is final: whatever reordered it has run.
"""

import hashlib
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actserve_server.domain.runs import Unembed
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm import attach, found_family, graphs, layout, taps, wire
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.attention import describe_attention, rules
from actserve_server.engine.vllm.bank import BankFullError, VectorBank
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import Family
from actserve_server.engine.vllm.found_family import find_family
from actserve_server.engine.vllm.graphs import Graphs
from actserve_server.engine.vllm.head import Head
from actserve_server.engine.vllm.layout import FINAL_NORM, LOGITS, Layout, SiteKey
from actserve_server.engine.vllm.lifeline import end_with
from actserve_server.engine.vllm.lora_worker import load_adapter
from actserve_server.engine.vllm.options import GPU_TAPS_PIECES
from actserve_server.engine.vllm.quantized import check_rows_alone
from actserve_server.engine.vllm.replaying import Replaying
from actserve_server.engine.vllm.ring import RingWriter
from actserve_server.engine.vllm.sharding import AgreedGather, Shards, failed_on_any_rank
from actserve_server.engine.vllm.shipping import ShippedRows, Shipper
from actserve_server.engine.vllm.speculation import Guess, HeldStep
from actserve_server.engine.vllm.step_batch import Batch, Model
from actserve_server.engine.vllm.step_plan import Column, Planner, RoutedStep, RowBlock
from actserve_server.engine.vllm.tapped_run import RunProjection, TappedRun
from actserve_server.engine.vllm.worker_weights import Weights

log = logging.getLogger(__name__)

NOWHERE: Set[int] = frozenset()

_GRAPH_CODE = (attach, found_family, graphs, layout, taps)
"""The modules that, with a family's paths, decide where taps are in the compiled graph."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """vLLM's `additional_config`: how the server reaches its worker, and what it taps."""

    ring_folder: str
    family: Family | None
    """None where it is to be found by the structure of the loaded model."""
    hook_points: tuple[str, ...] = tuple(HookPoint)
    vector_budget_bytes: int = 256 << 20
    """What the vectors of running requests take at most."""
    workspace_budget_bytes: int = 2 << 30
    """What the rows of a step take at most, beside what vLLM takes."""
    lean_graphs: bool = True
    """Whether graphs with fewer taps are compiled beside the full one."""
    gpu_taps: str = GPU_TAPS_PIECES
    speculates: bool = False
    """Whether a step may have tokens that were guessed ahead."""
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
        loaded = self.model_runner.get_model()
        check_rows_alone(loaded)
        family = ours.family or find_family(loaded)
        model: Any = loaded.get_submodule(family.inside)
        tapped = attach_taps(model, family, {HookPoint(name) for name in ours.hook_points})
        self._dimensions = Dimensions.of(model, family, config, ranks)
        self._attention = describe_attention(model, family)
        self._found = family.found
        self._ranks = ranks
        shards = _shards(tapped, self._dimensions, self.rank, ranks) if ranks > 1 else {}
        points = self._dimensions.hook_points(tapped.hook_points)
        widths = {key: points[key.site.hook_point].width for key in tapped.sites}
        attention = rules(
            self._attention,
            self._dimensions.heads,
            self._dimensions.key_value_heads,
            self._dimensions.head_width,
        )
        self._model = Model(tapped, self._dimensions.head_width, shards, widths, attention)
        self._key_bytes = points[HookPoint.K].width * config.dtype.itemsize
        self._head = Head(
            model.compute_logits,
            model.get_submodule(family.final_norm),
            self._dimensions.vocabulary_size,
            AgreedGather(model.logits_processor) if ranks > 1 else None,
        )
        self._weights = Weights(model, family, self._dimensions, self.rank, ranks)
        self._bank = VectorBank(self.device, ours.vector_budget_bytes)
        self._planner = Planner(self._bank, self._model)
        self._runs: dict[str, TappedRun] = {}
        self._speculates = ours.speculates
        self._guessed: Mapping[str, Sequence[int]] = {}
        self._held: HeldStep | None = None
        # Rows are the same on every tensor-parallel rank once gathered; one sends them.
        self._shipper = (
            Shipper(RingWriter(Path(ours.ring_folder)), self.device) if self.rank == 0 else None
        )
        # Last of those before the penalties. Named in the engine's arguments, vLLM would think that
        # it reads tokens and, scheduling asynchronously, wait at every step until it has them.
        processors = self.model_runner.input_batch.logitsprocs
        processors.non_argmax_invariant.append(Replaying(self.device))
        self._graphs = Graphs(
            model,
            family.layers,
            tapped,
            self.vllm_config,
            lean=ours.lean_graphs,
            unreplayed=self._unreplayed(tapped),
        )
        self._vllm_forward = self.model_runner._model_forward
        self.model_runner._model_forward = self._forward
        self._vllm_profile_run = self.model_runner.profile_run
        self.model_runner.profile_run = self._profile_run

    def describe_taps(self) -> dict[str, Any]:
        """What is tapped, for the server process: plain ints and strings."""
        return {
            "dimensions": asdict(self._dimensions),
            "hook_points": sorted(self._model.layout.hook_points),
            "found": self._found,
            "weights": self._weights.describe(),
            "graphs": {**self._graphs.lean, **self._graphs.replayed},
            **self._attention,
        }

    def graph_steps(self) -> dict[str, int]:
        """How many steps each graph has served."""
        return dict(self._graphs.steps)

    def drop_graph(self, name: str) -> None:
        """Steps that it would have served go to others."""
        self._graphs.drop(name)

    def load_adapter(self, *of: Any) -> str:
        """Arguments of `lora_worker.load_adapter`, but for the first."""
        return load_adapter(self.model_runner, *of)

    def read_weights(self, what: str, *of: Any) -> Any:
        """A method of `Weights` by name: the part that this rank holds."""
        return getattr(self._weights, what)(*of)

    def upload_vectors(self, pieces: Sequence[Sequence[Any]]) -> bool:
        """Arguments of `VectorBank.upload`; it does no harm to get them again. False if there is no
        room now: requests that have ended hold their vectors until the next step."""
        try:
            for piece in pieces:
                self._bank.upload(*piece)
        except BankFullError:
            return False
        return True

    def keep_vectors(self, uploads: Sequence[Sequence[Any]]) -> list[bool]:
        """Of arguments of `VectorBank.keep`, which need not be uploaded."""
        return [self._bank.keep(*each) for each in uploads]

    def drop_vectors(self, uploads: Sequence[Sequence[Any]]) -> None:
        """Arguments of `VectorBank.drop`."""
        for each in uploads:
            self._bank.drop(*each)

    def held_vector_bytes(self) -> int:
        """What the bank holds."""
        return self._bank.used_bytes

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._guessed = scheduler_output.scheduled_spec_decode_tokens
        if self._guessed and not self._speculates:
            raise RuntimeError("a step holds speculative tokens, which this worker does not serve")
        if self._held is not None:
            held, self._held = self._held, None
            self._fail_if(RuntimeError("nobody said which guessed tokens count"), held.keys)
        # Finished covers aborted; a preempted request is neither and keeps its run.
        for request_id in scheduler_output.finished_req_ids:
            self._end(request_id)
        for request in scheduler_output.scheduled_new_reqs:
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            message = extra.get(wire.EXTRA_ARG)
            # A resumed request may be announced as new again; its run goes on.
            if message and request.req_id not in self._runs:
                self._start(request.req_id, message)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        if self._held is not None:
            held, self._held = self._held, None
            with self._sending(held.keys):
                accepted = held.of_accepted(output)
                if self._shipper:
                    self._shipper.ship(accepted.blocks, accepted.receipts)
        return output

    def _start(self, request_id: str, message: dict[str, Any]) -> None:
        self._planner.forget()
        taps, error = wire.decode(message), None
        try:
            self._runs[request_id] = TappedRun.start(taps, self._bank, self._key_bytes)
        except Exception as failure:
            error = failure
        self._fail_if(error, [taps.key])

    def _end(self, request_id: str) -> None:
        if run := self._runs.pop(request_id, None):
            self._planner.forget()
            run.end(self._bank)

    def _unreplayed(self, layout: Layout) -> frozenset[int] | None:
        """The places without a tap in CUDA graphs that are replayed with their taps; None where
        there are none."""
        return None

    def _profile_run(self, *args: Any, **kwargs: Any) -> None:
        """The first pass of the model, with which vLLM compiles it and finds what memory it takes:
        of the full graph, then of each lean one."""
        self._vllm_profile_run(*args, **kwargs)
        for name, error in self._graphs.compile(partial(self._vllm_profile_run, *args, **kwargs)):
            failed = error is not None
            if self._ranks > 1:
                failed = failed_on_any_rank(failed)
            if failed:
                log.error("a graph was not compiled", exc_info=error, extra={"graph": name})
                self._graphs.drop(name)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        step = self._planned() if self._runs else None
        if step is None:
            with self._graphs.reaching(NOWHERE):
                return self._vllm_forward(*args, **kwargs)
        with taps.step(step.plan), self._graphs.reaching(step.plan.places):
            output = self._vllm_forward(*args, **kwargs)
        error = None
        try:
            step.plan.check()
        except Exception as failure:
            error = failure
        if not self._fail_if(error, step.keys):
            self._ship(step)
        return output

    def _planned(self) -> RoutedStep | None:
        batch, error = self._batch(), None
        if self._planner.goes_on(batch):
            return self._planner.plan(batch, self._runs)
        keys, step = [run.taps.key for run in self._runs.values()], None
        try:
            step = self._planner.plan(batch, self._runs)
        except Exception as failure:
            error = failure
        return None if self._fail_if(error, keys) else step

    def _batch(self) -> Batch:
        runner = self.model_runner
        batch = runner.input_batch
        return Batch(
            batch.req_ids,
            runner.query_start_loc.np,
            batch.num_computed_tokens_cpu,
            batch.token_ids_cpu,
            batch.num_prompt_tokens,
            runner.input_ids.gpu,
        )

    def _fail_if(self, error: Exception | None, keys: Collection[int]) -> bool:
        """Whether there is an error, here or on another rank. It fails these runs, which end on
        every rank, since ranks that do not go on alike would wait for each other for ever. The
        others go on. The server withholds what failed ones answer."""
        failed = error is not None
        if self._ranks > 1:
            failed = failed_on_any_rank(failed)
        if not failed:
            return False
        log.error("a step failed", exc_info=error, extra={"runs": len(keys)})
        for request_id in [name for name, run in self._runs.items() if run.taps.key in keys]:
            self._end(request_id)
        if self._shipper:
            self._shipper.fail([*keys], type(error).__name__ if error else "on another rank")
        return True

    def _ship(self, step: RoutedStep, proven: torch.Tensor | None = None) -> None:
        """`proven` tells, once the pass is over, whether it has made what is to be sent. An error
        fails these runs too, as the server is told. They go on here until it aborts them: other
        ranks do not know of it, and have no part in what is sent."""
        with self._sending(step.keys):
            guesses = self._guesses() if self._guessed else {}
            made = HeldStep(self._shipped(step.blocks), step.receipts, step.keys, guesses)
            if guesses:
                self._held = made  # Until it is known which tokens count.
            elif self._shipper:
                self._shipper.ship(made.blocks, made.receipts, proven)

    @contextmanager
    def _sending(self, keys: Collection[int]) -> Iterator[None]:
        """Tells the server of these runs if what is made of them inside cannot be sent."""
        try:
            yield
        except Exception as error:
            log.exception("rows were not sent", extra={"runs": len(keys)})
            if self._shipper:
                self._shipper.fail([*keys], type(error).__name__)

    def _guesses(self) -> Mapping[str, Guess]:
        """Of the runs of this step of which some tokens are guessed."""
        batch = self._batch()
        found = {batch.request_ids[index]: rows for index, rows in batch.tapped(self._runs)}
        return {
            name: Guess(rows.run, rows.end, len(self._guessed[name]))
            for name, rows in found.items()
            if self._guessed.get(name)
        }

    def _shipped(self, blocks: Sequence[RowBlock]) -> list[ShippedRows]:
        shipped, error = [], None
        for block in blocks:
            columns = []
            for column in block.columns:
                # All are tried: what is made of logits, every rank must make.
                try:
                    columns.append(self._rows(column, block))
                except Exception as failure:
                    error = failure
            shipped.append(ShippedRows(block.number, block.keys, block.positions, tuple(columns)))
        if error is not None:
            raise error
        return shipped

    def _rows(self, column: Column, block: RowBlock) -> torch.Tensor:
        rows = column.work.rows
        assert rows is not None  # The pass reached every planned place.
        if isinstance(block.derived, Unembed):
            normed = column.site == FINAL_NORM
            assert block.next_ids is not None
            return self._head.predictions(rows, block.derived, block.next_ids, normed=normed)
        if column.site != LOGITS:
            return rows
        if block.derived is None:
            return self._head.logits(rows)
        # What is reserved for a run has room for its components, not for its logits.
        assert isinstance(block.derived, RunProjection)  # Others are made of what taps read.
        return self._head.of_logits(rows, partial(block.derived.of, bank=self._bank))


def _shards(
    layout: Layout, dimensions: Dimensions, rank: int, ranks: int
) -> Mapping[SiteKey, Shards]:
    copies = dimensions.key_value_copies(ranks)
    return {
        key: Shards(rank, ranks, copies if key.site.hook_point in (HookPoint.K, HookPoint.V) else 1)
        for key, site in layout.sites.items()
        if site.sharded
    }
