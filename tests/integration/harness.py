"""Runs a real engine from ordinary test functions."""

import asyncio
import gc
import itertools
import threading
import warnings
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from prometheus_client import REGISTRY

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Add
from actserve_server.domain.positions import NO_END, Positions, Selection, Spans, resolve
from actserve_server.domain.prompts import Prompt, TextPrompt, TokenizedPrompt
from actserve_server.domain.runs import (
    GREEDY_ONE_TOKEN,
    Capture,
    Finished,
    FinishReason,
    Intervention,
    InterventionReport,
    Rows,
    Run,
    Sampling,
    Tokens,
)
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.rpc.transport import metrics

T = TypeVar("T")

ALL = Selection(Spans(((0, NO_END),)))

SiteRows = Mapping[Site, np.ndarray]
"""Float32 [positions, width] by site."""


class LoopThread:
    """An event loop of its own, called from any test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.submit(coroutine).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        # vLLM leaves a socket context to the garbage collector, which warns of it; at the end of
        # the session that would be an error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


class EngineThread(LoopThread):
    """A `VllmEngine` on an event loop of its own."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__()
        self.rows_found = 0
        """Of captures, that had been captured before."""
        self.engine = self.call(VllmEngine.start(options, self, metrics.RING_FILL.observe))

    def held(self, more: int) -> None: ...

    def found(self, rows: int) -> None:
        self.rows_found += rows

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    def tokenize(self, prompt: str | Prompt) -> TokenizedPrompt:
        return self.call(
            self.engine.tokenize(TextPrompt(prompt) if isinstance(prompt, str) else prompt)
        )

    def run(self, run: Run) -> "Result":
        return self.call(collect(self.engine, run))

    def run_all(self, runs: Iterable[Run]) -> list["Result"]:
        """All at once; results in order."""

        async def gather() -> list[Result]:
            return list(await asyncio.gather(*(collect(self.engine, run) for run in runs)))

        return self.call(gather())

    def forget(self) -> None:
        """What comes next finds nothing of what has run before."""
        self.engine.rows.clear()
        assert self.call(self.engine.vllm.reset_prefix_cache())

    def close(self) -> None:
        self.call(self.engine.close())
        del self.engine
        super().close()


@dataclass(slots=True)
class Captured:
    """What one capture delivered: float32 [positions, width] by site."""

    positions: list[int]
    rows: SiteRows


@dataclass(slots=True)
class Result:
    """Everything a run delivered."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    captures: list[Captured] = field(default_factory=list)
    finish: FinishReason | None = None
    stopped_by: int | str | None = None
    interventions: tuple[InterventionReport, ...] = ()

    @property
    def rows(self) -> SiteRows:
        """Of the first capture."""
        return self.captures[0].rows

    @property
    def positions(self) -> list[int]:
        """Of the first capture."""
        return self.captures[0].positions


async def collect(engine: VllmEngine, run: Run) -> Result:
    result = Result()
    parts: dict[tuple[int, int], list[Rows]] = {}
    positions: tuple[np.ndarray, ...] = ()
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            match event:
                case Tokens():
                    assert event.position == len(run.token_ids) + len(result.token_ids)
                    result.token_ids += event.ids
                    result.text += event.text
                    result.logprobs += event.logprobs
                case Rows():
                    parts.setdefault((event.capture_index, event.site_index), []).append(event)
                case Finished():
                    result.finish = event.reason
                    result.stopped_by = event.stopped_by
                    result.interventions = event.interventions
                    positions = event.captured_positions
                    assert event.output_tokens == len(result.token_ids)
    for number, (capture, told) in enumerate(zip(run.captures, positions, strict=True)):
        # What is made of the rows of several sites together is under the first one.
        rows = {
            site: _joined(parts.pop((number, index), []), told, engine.info, capture, width)
            for index, (site, width) in enumerate(
                zip(capture.sites, engine.info.row_widths(capture), strict=False)
            )
        }
        result.captures.append(Captured(told.tolist(), rows))
    assert not parts, f"rows of captures and sites that nobody asked for: {list(parts)}"
    return result


def _joined(
    parts: list[Rows], told: np.ndarray, info: ModelInfo, capture: Capture, width: int
) -> np.ndarray:
    element_type = info.row_type(capture)
    none = np.empty((0, width), element_type.storage)
    bits = np.concatenate([none, *(part.bits for part in parts)])
    positions = [int(position) for part in parts for position in part.positions]
    assert positions == told.tolist(), f"rows {positions}, told {told}"
    return to_float32(bits, element_type)


_numbers = itertools.count(1)


def make_run(
    token_ids: Sequence[int],
    *interventions: Intervention,
    sites: Iterable[Site] = (),
    at: Selection = ALL,
    captures: Iterable[Capture] = (),
    sampling: Sampling = GREEDY_ONE_TOKEN,
) -> Run:
    """A run that captures `sites` at the positions `at`, or whatever `captures` say."""
    if sites := tuple(sites):
        captures = (Capture(sites, at), *captures)
    return Run(
        id=f"run-{next(_numbers)}",
        token_ids=tuple(token_ids),
        sampling=sampling,
        captures=tuple(captures),
        interventions=interventions,
    )


def again(run: Run) -> Run:
    """The same run once more."""
    return replace(run, id=f"{run.id}-{next(_numbers)}")


def greedy(max_tokens: int) -> Sampling:
    """Exactly so many tokens, each the likeliest."""
    return Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def at(*positions: int) -> Selection:
    return Selection(Spans.of(positions))


def select(positions: Positions, prompt: TokenizedPrompt, max_tokens: int = 1) -> Selection:
    """As the service resolves what a caller writes."""
    return resolve(positions, prompt, len(prompt.ids) + max_tokens - 1, ("positions",))


def add(
    site: Site, vector: np.ndarray, coefficient: float = 1.0, selection: Selection = ALL
) -> Intervention:
    return Intervention((site,), selection, Add(vector, coefficient))


def every_site(info: ModelInfo) -> tuple[Site, ...]:
    """Every site that is served."""
    return tuple(
        Site(hook_point, layer)
        for hook_point in HookPoint
        if not info.hook_points[hook_point].unserved
        for layer in ([None] if hook_point in LAYERLESS else range(info.layer_count))
    )


def relative_errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|ours - theirs| / |theirs| of every row; of a row of zeros, 0 if ours is zeros too."""
    error, size = np.linalg.norm(ours - theirs, axis=-1), np.linalg.norm(theirs, axis=-1)
    return np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of every row."""

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij->i", a, b, dtype=np.float64)

    return dot(ours, theirs) / np.sqrt(dot(ours, ours) * dot(theirs, theirs))


async def started(engine: VllmEngine, run: Run) -> None:
    """Runs until the first tokens, and cancels the rest."""
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                return


def cached_tokens() -> int:
    """How many tokens vLLM had not to compute so far, of the engine that started last."""
    return int(vllm_counter("vllm:prefix_cache_hits_total"))


def vllm_counter(name: str) -> float:
    """One of vLLM's metrics, of the engine that started last."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    )
