"""The GPU worker that `worker_cls` names."""

from vllm.v1.worker.gpu_worker import Worker

from actserve_server.engine.vllm.worker import TapWorker


class GpuTapWorker(TapWorker, Worker):
    """vLLM's GPU worker with taps."""
