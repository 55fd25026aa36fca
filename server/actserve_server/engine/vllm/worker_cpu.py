"""The CPU worker that `worker_cls` names."""

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker

from actserve_server.engine.vllm import lora_cpu
from actserve_server.engine.vllm.worker import TapWorker


class CpuTapWorker(TapWorker, CPUWorker):
    """vLLM's CPU worker with taps."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        lora_cpu.install()
        super().load_model(*args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        # vLLM samples for every request of a step and, where a prompt is not at its end, throws the
        # token away and turns the request's own generator back; those of a CPU cannot be turned
        # back, and vLLM 0.32 dies ("CPU Generator does not use offset"). Out of sight they are
        # neither used nor turned back, so a seed gives the same tokens however its prompt is cut.
        runner, generators = self.model_runner, self.model_runner.input_batch.generators
        unfinished = np.flatnonzero(
            runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        ).tolist()
        aside = {index: generators.pop(index) for index in unfinished if index in generators}
        try:
            return super().sample_tokens(*args, **kwargs)
        finally:
            generators.update(aside)
