"""The two engines compared, and the modes ours runs in."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Intervention, Run, Sampling
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.engine.vllm import startup
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from bench.workloads import Request

_ids = itertools.count()

_EVERYWHERE = Selection(Spans(((0, NO_END),)))


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


Change = Callable[[Run, int], Run]
"""A plain run and its number among those at once, as a run that captures or steers."""


def modes(info: ModelInfo) -> Mapping[str, Change]:
    """What ours is asked to do beside generating, by name.

    The four that have aims come first; then capturing each hook point in the middle of the model,
    and each operation with a vector of its own for every run.
    """
    middle = info.layer_count // 2
    layers = range(info.layer_count)
    served = [point for point, found in info.hook_points.items() if not found.unserved]
    changes: dict[str, Change] = {
        "idle": lambda run, _: run,
        "one layer": _capture(Site(HookPoint.RESID_POST, middle)),
        "all layers": _capture(*(Site(HookPoint.RESID_POST, layer) for layer in layers)),
        "own vector each": _intervene(info, lambda vectors: Add(vectors[0], 0.1)),
    }
    for point in served:
        site = Site(point, None if point in LAYERLESS else middle)
        changes[f"capture {point.value}"] = _capture(site)
    for name, operation in OPERATIONS.items():
        changes[f"operation {name}"] = _intervene(info, operation)
    return changes


OPERATIONS: Mapping[str, Callable[[np.ndarray], Operation]] = {
    "add": lambda vectors: Add(vectors[0], 0.1),
    "add relative": lambda vectors: Add(vectors[0], 0.01, relative=True),
    "ablate": lambda vectors: Ablate(vectors[0]),
    "project": lambda vectors: Project(vectors),
    "project away": lambda vectors: Project(vectors, away=True),
    "clamp": lambda vectors: Clamp(vectors[0], maximum=0.0),
    "replace": lambda vectors: Replace(vectors[:1]),
    "swap": lambda vectors: Swap(vectors[0], vectors[1]),
    "zero": lambda _: Zero(),
    "mean": lambda vectors: Mean(vectors[0]),
}
"""Each operation, of some random vectors, float32 [4, width]."""


def apply(change: Change, requests: Sequence[Request]) -> list[Run]:
    """The requests as runs of one mode."""
    return [
        change(
            Run(
                id=f"bench-{next(_ids)}",
                token_ids=request.token_ids,
                sampling=Sampling(temperature=0.0, max_tokens=request.max_tokens, ignore_eos=True),
            ),
            number,
        )
        for number, request in enumerate(requests)
    ]


def _capture(*sites: Site) -> Change:
    return lambda run, _: replace(run, captures=(Capture(sites, _EVERYWHERE),))


def _intervene(info: ModelInfo, operation: Callable[[np.ndarray], Operation]) -> Change:
    site = Site(HookPoint.RESID_POST, info.layer_count // 2)
    vectors = np.random.default_rng(0).normal(size=(64, 4, info.width)).astype(np.float32)
    made = [Intervention((site,), _EVERYWHERE, operation(own)) for own in vectors]
    return lambda run, number: replace(run, interventions=(made[number % len(made)],))


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
