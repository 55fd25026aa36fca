"""The two engines compared, and the modes ours runs in."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.platforms import current_platform
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
from actserve_server.engine.vllm import cpus, startup
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from bench.workloads import Request

_ids = itertools.count()

_FOUND = dict(os.environ)
"""The environment before our engine has set anything for vLLM."""

_SPIN_S = 1.5
"""For so long and no longer does a vLLM worker in a process of its own spin after a step before it
waits in earnest; what is measured next must not share the cores with it."""

EVERYWHERE = Selection(Spans(((0, NO_END),)))


class Stock:
    """Plain vLLM, with the options and the KV cache of ours."""

    def __init__(self, llm: AsyncLLM, pause_s: float = 0.0) -> None:
        self._llm = llm
        self._pause_s = pause_s

    @staticmethod
    def like_ours(options: EngineOptions) -> "Stock":
        """In as many processes as our engine, on the same cores, with the same model runner: what
        is left between the two is our code."""
        with startup.reading_variables():
            return Stock._like_ours(options)

    @staticmethod
    def _like_ours(options: EngineOptions) -> "Stock":
        startup.prepare_environment()
        config = AsyncEngineArgs(**_plain_args(options)).create_engine_config()
        with cpus.given_to(config) if current_platform.is_cpu() else nullcontext():
            return Stock(AsyncLLM.from_vllm_config(config))

    @staticmethod
    def by_default(options: EngineOptions) -> "Stock":
        """As vLLM starts for those who set nothing: it chooses processes, cores, model runner and
        what its processes preload."""
        with startup.reading_variables(), _environment_as_found():
            args = AsyncEngineArgs(**_plain_args(options))
            return Stock(AsyncLLM.from_engine_args(args), pause_s=_SPIN_S)

    async def rate(self, requests: Sequence[Request]) -> float:
        """Tokens a second over all requests at once."""
        rate = await _rate([self._one(request) for request in requests], requests)
        await asyncio.sleep(self._pause_s)
        return rate

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

    def doing(self, change: "Change") -> Callable[[Sequence[Request]], Awaitable[float]]:
        """The rate of requests that one mode makes runs of."""

        async def rate(requests: Sequence[Request]) -> float:
            return await self.rate(apply(change, requests))

        return rate

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
        "idle": idle,
        "one layer": capture(Site(HookPoint.RESID_POST, middle)),
        "all layers": capture(*(Site(HookPoint.RESID_POST, layer) for layer in layers)),
        "own vector each": _intervene(info, lambda vectors: Add(vectors[0], 0.1)),
    }
    for point in served:
        site = Site(point, None if point in LAYERLESS else middle)
        changes[f"capture {point.value}"] = capture(site)
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


def idle(run: Run, _: int) -> Run:
    return run


def capture(*sites: Site) -> Change:
    return lambda run, _: replace(run, captures=(Capture(sites, EVERYWHERE),))


def changed_by(interventions: Sequence[tuple[Intervention, ...]]) -> Change:
    """Each run by those of its number, as far as there are enough."""
    return lambda run, number: replace(
        run, interventions=interventions[number % len(interventions)]
    )


def _intervene(info: ModelInfo, operation: Callable[[np.ndarray], Operation]) -> Change:
    site = Site(HookPoint.RESID_POST, info.layer_count // 2)
    vectors = np.random.default_rng(0).normal(size=(64, 4, info.width)).astype(np.float32)
    return changed_by([(Intervention((site,), EVERYWHERE, operation(own)),) for own in vectors])


def _plain_args(options: EngineOptions) -> dict[str, Any]:
    args = startup.engine_args(options)
    del args["worker_cls"]
    args.pop("compilation_config", None)
    return args


@contextmanager
def _environment_as_found() -> Iterator[None]:
    ours = dict(os.environ)
    # But for forking, which this process has too many threads for.
    _replace_environment({**_FOUND, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    try:
        yield
    finally:
        _replace_environment(ours)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


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
