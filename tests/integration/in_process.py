"""vLLM's engine in a thread of the test's own process: a start takes a second, not ten.

Where a test asks what the model computes, and not how processes live and die, most of an engine's
start is a new Python that imports vLLM. Here `AsyncLLM` is given a client that steps vLLM's own
engine core itself. Requests and outputs are encoded and decoded as between processes.

There is one such engine at a time, since vLLM keeps the groups of its ranks for a whole process.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.config import VllmConfig
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.models import registry
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.integration.harness import EngineThread


class InProcessEngine(EngineThread):
    """An `EngineThread` whose vLLM computes in a thread of this process."""

    def __init__(self, options: Any) -> None:
        with _in_process():
            super().__init__(options)

    @property
    def model(self) -> torch.nn.Module:
        """As vLLM has loaded it, with taps."""
        client: Any = self.engine.vllm.engine_core
        return client.core.model_executor.driver_worker.worker.model_runner.get_model()


@contextmanager
def _in_process() -> Iterator[None]:
    """For engines that are started inside."""
    with (
        mock.patch.object(EngineCoreClient, "make_async_mp_client", _Client),
        # vLLM looks at the class of a model in another Python, lest it touch a GPU here.
        mock.patch.object(registry, "_run_in_subprocess", lambda look: look()),
    ):
        yield


class _Client(EngineCoreClient):
    """As much of vLLM's client of an engine core as `AsyncLLM` is asked for here."""

    engine_ranks_managed: Sequence[int] = (0,)

    def __init__(self, vllm_config: VllmConfig, log_stats: bool, **_: Any) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self._encoder, self._decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreRequest)
        self._outputs: asyncio.Queue[EngineCoreOutputs | Exception] = asyncio.Queue()
        self._stepping: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)
        set_num_threads = torch.set_num_threads
        core = partial(EngineCore, vllm_config, UniProcExecutor, log_stats)
        try:
            self.core = self._thread.submit(core).result()
        finally:
            torch.set_num_threads = set_num_threads  # vLLM takes it away.

    async def get_output_async(self) -> EngineCoreOutputs:
        found = await self._outputs.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        received = self._decoder.decode(self._encoder.encode(request))
        await self._do(self._add, received)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._steps())

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        if request_ids and not self.resources.engine_dead:
            await self._do(self.core.abort_requests, request_ids)

    async def collective_rpc_async(
        self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None
    ) -> list[Any]:
        return await self._do(self.core.collective_rpc, method, timeout, args, kwargs)

    async def get_supported_tasks_async(self) -> Any:
        return await self._do(self.core.get_supported_tasks)

    async def reset_prefix_cache_async(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        return await self._do(self.core.reset_prefix_cache, reset_running_requests, reset_connector)

    def shutdown(self, timeout: float | None = None) -> None:
        if not self.resources.engine_dead:
            self.resources.engine_dead = True
            self._thread.submit(self.core.shutdown).result()
            self._thread.submit(cleanup_dist_env_and_memory).result()
            self._thread.shutdown()

    def _add(self, received: EngineCoreRequest) -> None:
        self.core.add_request(*self.core.preprocess_add_request(received))

    async def _steps(self) -> None:
        try:
            while self.core.scheduler.has_requests():
                outputs, executed = await self._do(self.core.step)
                await self._do(self.core.post_step, executed)
                for each in outputs.values():
                    self._outputs.put_nowait(each)
        except Exception as error:  # Whoever waits for outputs would wait for ever.
            self._outputs.put_nowait(error)

    async def _do(self, call: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args))
