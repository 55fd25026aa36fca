"""The two engines compared, and the modes ours runs in."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.runs import Add, Capture, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm import startup
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from bench.workloads import Request

_ids = itertools.count()


class Stock:
    """vLLM as anyone would run it, with the same options."""

    def __init__(self, options: EngineOptions) -> None:
        startup.prepare_environment()
        arguments = startup.engine_args(options)
        del arguments["worker_cls"]
        arguments.pop("compilation_config", None)
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    async def rate(self, requests: Sequence[Request]) -> float:
        """Tokens a second over all requests at once."""
        return await _rate([self._one(request) for request in requests], requests)

    def _one(self, request: Request) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            params = SamplingParams(
                temperature=0.0,
                max_tokens=request.max_tokens,
                ignore_eos=True,
                output_kind=RequestOutputKind.DELTA,
            )
            prompt = {"prompt_token_ids": list(request.token_ids)}
            outputs = self._llm.generate(prompt, params, f"stock-{next(_ids)}")  # type: ignore[arg-type]
            async for _ in outputs:
                pass

        return run

    def close(self) -> None:
        self._llm.shutdown(30.0)


class Tapped:
    """Our engine."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine

    @staticmethod
    async def start(options: EngineOptions) -> "Tapped":
        return Tapped(await VllmEngine.start(options))

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    async def rate(self, runs: Sequence[Run]) -> float:
        """Tokens a second over all runs at once."""
        requests = [Request(run.token_ids, run.sampling.max_tokens) for run in runs]
        return await _rate([self._one(run) for run in runs], requests)

    def _one(self, run: Run) -> Callable[[], Awaitable[None]]:
        async def drain() -> None:
            async with aclosing(self.engine.run(run)) as events:
                async for _ in events:
                    pass

        return drain

    async def close(self) -> None:
        await self.engine.close()


class Modes:
    """What ours is asked to do beside generating."""

    names = ("idle", "one layer", "all layers", "own vector each")

    def __init__(self, info: ModelInfo) -> None:
        everywhere = Spans(((0, NO_END),))
        layers = range(info.layer_count)
        self._site = Site(HookPoint.RESID_POST, info.layer_count // 2)
        self._everywhere = everywhere
        self._one = Capture((self._site,), everywhere)
        self._all = Capture(
            tuple(Site(HookPoint.RESID_POST, layer) for layer in layers), everywhere
        )
        self._vectors = np.random.default_rng(0).normal(size=(64, info.width)).astype(np.float32)

    def apply(self, mode: str, requests: Sequence[Request]) -> list[Run]:
        runs = [
            Run(
                id=f"bench-{next(_ids)}",
                token_ids=request.token_ids,
                sampling=Sampling(temperature=0.0, max_tokens=request.max_tokens, ignore_eos=True),
            )
            for request in requests
        ]
        match mode:
            case "one layer":
                return [replace(run, capture=self._one) for run in runs]
            case "all layers":
                return [replace(run, capture=self._all) for run in runs]
            case "own vector each":
                return [
                    replace(run, interventions=(self._add(index),))
                    for index, run in enumerate(runs)
                ]
        return runs

    def _add(self, index: int) -> Add:
        return Add(self._site, self._everywhere, self._vectors[index % len(self._vectors)], 0.1)


async def _rate(
    jobs: Sequence[Callable[[], Awaitable[None]]], requests: Sequence[Request]
) -> float:
    # Prefill is measured by prompt tokens, decode by generated ones.
    tokens = sum(
        len(request.token_ids) if request.max_tokens == 1 else request.max_tokens
        for request in requests
    )
    started = time.perf_counter()
    await asyncio.gather(*(job() for job in jobs))
    return tokens / (time.perf_counter() - started)
