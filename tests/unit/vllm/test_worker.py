"""The worker steers exactly or fails: against a small model and a stand-in for vLLM's worker."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.runs import Add, Capture, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.records import ReceiptsRecord, RowsRecord, read
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.worker import TapWorker, WorkerConfig

WIDTH = 4
ALL = Spans(((0, NO_END),))


class Norm(nn.Module):
    def forward(
        self, branch: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = branch + residual
        return total, total


class Layer(nn.Module):
    """Adds 1 as attention and 10 as MLP, with vLLM's deferred residual adds."""

    def __init__(self) -> None:
        super().__init__()
        self.post_attention_layernorm = Norm()

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stream = hidden_states if residual is None else hidden_states + residual
        _, stream = self.post_attention_layernorm(torch.ones_like(stream), stream)
        return torch.full_like(stream, 10.0), stream


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = None
        for layer in self.model.layers:
            hidden, residual = layer(torch.arange(len(hidden)), hidden, residual)
        assert residual is not None
        return hidden + residual


@dataclass
class Runner:
    """As much of vLLM's model runner as the worker looks at."""

    model: Model
    input_batch: Any = None
    query_start_loc: Any = None

    def get_model(self) -> Model:
        return self.model

    def _model_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model(hidden)

    def set_batch(self, *requests: tuple[str, int, int]) -> int:
        """Requests as (id, first position, rows), in their final order; returns the row count."""
        ids, computed, counts = zip(*requests, strict=True)
        self.input_batch = SimpleNamespace(
            req_ids=list(ids), num_computed_tokens_cpu=np.array(computed)
        )
        self.query_start_loc = SimpleNamespace(np=np.cumsum([0, *counts]))
        return sum(counts)


class VllmWorker:
    """What `TapWorker` is mixed into."""

    model_runner: Runner

    def load_model(self) -> None:
        pass

    def execute_model(self, scheduler_output: Any) -> torch.Tensor:
        return self.model_runner._model_forward(scheduler_output.hidden)


class Worker(TapWorker, VllmWorker):
    def __init__(self, folder: str) -> None:
        self.model_runner = Runner(Model())
        self.device, self.rank = torch.device("cpu"), 0
        config = SimpleNamespace(
            architecture="LlamaForCausalLM", dtype=torch.float32, get_hidden_size=lambda: WIDTH
        )
        self.vllm_config = SimpleNamespace(
            model_config=config, additional_config=WorkerConfig(folder)
        )
        self.load_model()


@dataclass
class Step:
    """As much of vLLM's scheduler output as the worker looks at."""

    hidden: torch.Tensor
    new: list[tuple[str, Run, int]] = field(default_factory=list)
    finished_req_ids: set[str] = field(default_factory=set)

    @property
    def scheduled_new_reqs(self) -> list[Any]:
        requests = []
        for request_id, run, key in self.new:
            taps = wire.taps_of(run, key)
            extra = {wire.EXTRA_ARG: wire.encode(taps)} if taps else None
            params = SimpleNamespace(extra_args=extra)
            requests.append(SimpleNamespace(req_id=request_id, sampling_params=params))
        return requests


@pytest.fixture
def ring() -> Iterator[RingReader]:
    reader = RingReader(capacity=1 << 16)
    yield reader
    reader.close()


@pytest.fixture
def worker(ring: RingReader) -> Worker:
    return Worker(str(ring.folder))


POST = Site(HookPoint.RESID_POST, 0)
STEERED = Run(id="s", token_ids=(1,), interventions=(Add(POST, ALL, np.full(WIDTH, 5, "f4")),))
CAPTURED = Run(id="c", token_ids=(1,), capture=Capture((POST,), ALL))
PLAIN = Run(id="p", token_ids=(1,))


def test_rows_and_edits_follow_the_final_order_of_the_batch(
    worker: Worker, ring: RingReader
) -> None:
    """vLLM announces requests in one order and may run them in another."""
    rows = worker.model_runner.set_batch(("c", 0, 2), ("p", 7, 1), ("s", 0, 2))
    hidden = torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, WIDTH) * 100
    new = [("s", STEERED, 1), ("p", PLAIN, 2), ("c", CAPTURED, 3)]
    output = worker.execute_model(Step(hidden.clone(), new))
    assert (output - hidden)[:, 0].tolist() == [22, 22, 22, 27, 27]

    records = ring.records()
    captured = read(next(records).copy())
    assert isinstance(captured, RowsRecord)
    assert captured.keys.tolist() == [3, 3]
    assert captured.positions.tolist() == [0, 1]
    assert captured.data.view(np.float32)[0, :, 0].tolist() == [11.0, 111.0]
    receipts = read(next(records).copy())
    assert isinstance(receipts, ReceiptsRecord)
    assert (receipts.keys.tolist(), receipts.positions.tolist()) == ([1, 1], [0, 1])


def test_a_run_ends_with_its_request_and_frees_its_vectors(worker: Worker) -> None:
    worker.model_runner.set_batch(("s", 0, 1))
    worker.execute_model(Step(torch.zeros(1, WIDTH), [("s", STEERED, 1)]))
    assert worker._bank.used == 1
    worker.model_runner.set_batch(("p", 0, 1))
    output = worker.execute_model(Step(torch.zeros(1, WIDTH), [("p", PLAIN, 2)], {"s"}))
    assert output[0, 0] == 22
    assert worker._bank.used == 0


def test_a_resumed_request_that_is_announced_again_keeps_its_run(worker: Worker) -> None:
    for _ in range(2):
        worker.model_runner.set_batch(("s", 0, 1))
        output = worker.execute_model(Step(torch.zeros(1, WIDTH), [("s", STEERED, 1)]))
        assert output[0, 0] == 27
    assert worker._bank.used == 1


def test_a_pass_that_skips_a_planned_tap_fails_instead_of_answering(worker: Worker) -> None:
    worker.model_runner.model.model.layers = worker.model_runner.model.model.layers[:0]
    worker._vllm_forward = lambda hidden: hidden
    worker.model_runner.set_batch(("s", 0, 1))
    with pytest.raises(RuntimeError, match=r"never reached tap points \[2\]"):
        worker.execute_model(Step(torch.zeros(1, WIDTH), [("s", STEERED, 1)]))


def test_an_error_in_a_tap_fails_the_step_instead_of_answering_unsteered(worker: Worker) -> None:
    wide = Run(id="w", token_ids=(1,), interventions=(Add(POST, ALL, np.ones(WIDTH + 1, "f4")),))
    worker.model_runner.set_batch(("w", 0, 1))
    with pytest.raises(RuntimeError):
        worker.execute_model(Step(torch.zeros(1, WIDTH), [("w", wide, 1)]))


def test_taps_survive_torch_compile() -> None:
    """An edit is seen by code after it, in one graph without breaks."""
    from actserve_server.engine.vllm import taps

    def add_twice(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden * 2
        taps.tap(hidden, None, 0)
        return hidden + 1

    class Always(taps.StepPlan):
        def run(self, point: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
            hidden += 100

    compiled = torch.compile(add_twice, fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(3)).tolist() == [3, 3, 3]
    with taps.step(Always()):
        assert compiled(torch.ones(3)).tolist() == [103, 103, 103]


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="GPT9 is not served"):
        attach_taps(Model(), "GPT9")
