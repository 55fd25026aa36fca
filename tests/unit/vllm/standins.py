"""Stand-ins for as much of vLLM as the worker looks at, around a small model."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from actserve_server.domain.runs import Run
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.worker import TapWorker, WorkerConfig
from tests.unit.vllm.toys import KEY_VALUE_HEADS, VOCABULARY, WIDTH, Model


@dataclass
class Runner:
    """As much of vLLM's model runner as the worker looks at."""

    model: Model
    input_batch: Any = field(
        default_factory=lambda: SimpleNamespace(
            logitsprocs=SimpleNamespace(non_argmax_invariant=[])
        )
    )
    query_start_loc: Any = None
    input_ids: Any = field(default_factory=lambda: SimpleNamespace(gpu=None))

    def get_model(self) -> Model:
        return self.model

    def profile_run(self) -> None:
        self.model(torch.zeros(1, WIDTH))

    def _model_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model(hidden)

    def set_batch(self, *requests: tuple[str, int, int], prompt_tokens: int = 10) -> torch.Tensor:
        """Requests as (id, first position, rows), in their final order; returns embeddings for
        them. The token of the batch's request i at position p is 100 i + p."""
        ids, computed, counts = zip(*requests, strict=True)
        tokens = 100 * np.arange(len(ids))[:, None] + np.arange(64)
        self.input_batch = SimpleNamespace(
            req_ids=list(ids),
            num_computed_tokens_cpu=np.array(computed),
            token_ids_cpu=tokens.astype(np.int32),
            num_prompt_tokens=np.full(len(ids), prompt_tokens),
        )
        self.query_start_loc = SimpleNamespace(np=np.cumsum([0, *counts]))
        rows = [tokens[i, at : at + count] for i, (_, at, count) in enumerate(requests)]
        self.input_ids.gpu = torch.from_numpy(np.concatenate(rows).astype(np.int32))
        return torch.randn(sum(counts), WIDTH, generator=torch.Generator().manual_seed(8))


class VllmWorker:
    """What `TapWorker` is mixed into."""

    model_runner: Runner

    def load_model(self) -> None:
        pass

    def execute_model(self, scheduler_output: Any) -> torch.Tensor:
        return self.model_runner._model_forward(scheduler_output.hidden)

    def sample_tokens(self, output: Any) -> Any:
        """vLLM's output of the step, as the test has it."""
        return output


class Worker(TapWorker, VllmWorker):
    def __init__(
        self,
        config: WorkerConfig,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.model_runner = Runner(Model())
        self.device, self.rank = torch.device("cpu"), rank
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(
                get_hidden_size=lambda: WIDTH,
                get_vocab_size=lambda: VOCABULARY,
                get_total_num_kv_heads=lambda: KEY_VALUE_HEADS,
                dtype=torch.float32,
            ),
            parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
            additional_config=config,
        )
        self.load_model()

    def step(
        self,
        hidden: torch.Tensor,
        new: dict[str, Run] | None = None,
        finished: set[str] | None = None,
    ) -> torch.Tensor:
        """Runs the batch that was set; the key of a run is its place among the new ones."""
        return self.execute_model(SchedulerOutput(hidden, new or {}, finished or set()))


@dataclass
class SchedulerOutput:
    """As much of vLLM's as the worker looks at."""

    hidden: torch.Tensor
    new: dict[str, Run]
    finished_req_ids: set[str] = field(default_factory=set)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def scheduled_new_reqs(self) -> list[Any]:
        requests = []
        for key, (request_id, run) in enumerate(self.new.items()):
            taps = wire.taps_of(run, key)
            extra = {wire.EXTRA_ARG: wire.encode(taps)} if taps else None
            params = SimpleNamespace(extra_args=extra)
            requests.append(SimpleNamespace(req_id=request_id, sampling_params=params))
        return requests
