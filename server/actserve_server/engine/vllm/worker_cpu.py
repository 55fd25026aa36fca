"""The CPU worker that `worker_cls` names."""

from vllm.v1.worker.cpu_worker import CPUWorker

from actserve_server.engine.vllm.worker import TapWorker


class CpuTapWorker(TapWorker, CPUWorker):
    """vLLM's CPU worker with taps."""
