"""The GPU worker that `worker_cls` names."""

from vllm.v1.worker.gpu_worker import Worker

from actserve_server.engine.vllm.cuda_graphs import CudaGraphs


class GpuTapWorker(CudaGraphs, Worker):
    """vLLM's GPU worker with taps."""

    def determine_available_memory(self) -> int:
        found = super().determine_available_memory()
        if self.cache_config.kv_cache_memory_bytes:
            return found  # So much was asked for, whatever is left.
        return found - self.vllm_config.additional_config.workspace_budget_bytes
