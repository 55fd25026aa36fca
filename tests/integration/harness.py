"""Runs a real engine from ordinary test functions, and a transformers reference beside it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.runs import Capture, Finished, FinishReason, Rows, Run, Sampling, Tokens
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions

T = TypeVar("T")

ALL = Spans(((0, NO_END),))


class EngineThread:
    """A `VllmEngine` on an event loop of its own, called from any test."""

    def __init__(self, options: EngineOptions) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = self.call(VllmEngine.start(options))

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.submit(coroutine).result()

    def run(self, run: Run) -> "Result":
        return self.call(collect(self.engine, run))

    def run_all(self, runs: Iterable[Run]) -> list["Result"]:
        """All at once; results in order."""

        async def gather() -> list[Result]:
            return list(await asyncio.gather(*(collect(self.engine, run) for run in runs)))

        return self.call(gather())

    def close(self) -> None:
        self.call(self.engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(slots=True)
class Result:
    """Everything a run delivered. Rows are float32, [positions, width], by site."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    rows: dict[Site, np.ndarray] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


async def collect(engine: VllmEngine, run: Run) -> Result:
    result = Result()
    sites = run.capture.sites if run.capture else ()
    parts: dict[int, list[Rows]] = {index: [] for index in range(len(sites))}
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            match event:
                case Tokens():
                    assert event.position == len(run.token_ids) + len(result.token_ids)
                    result.token_ids += event.ids
                    result.text += event.text
                    result.logprobs += event.logprobs
                case Rows():
                    parts[event.site_index].append(event)
                case Finished():
                    result.finish = event.reason
                    result.positions = event.captured_positions.tolist()
                    assert event.output_tokens == len(result.token_ids)
    element_type = engine.info.element_type
    for index, site in enumerate(sites):
        positions = [int(p) for rows in parts[index] for p in rows.positions]
        assert positions == result.positions, f"{site}: rows {positions}, told {result.positions}"
        none = np.empty((0, engine.info.width), element_type.storage)
        bits = np.concatenate([none, *(rows.bits for rows in parts[index])])
        result.rows[site] = to_float32(bits, element_type)
    return result


def every_site(layer_count: int) -> tuple[Site, ...]:
    layered = [hook for hook in HookPoint if hook is not HookPoint.EMBEDDING]
    return (
        Site(HookPoint.EMBEDDING),
        *(Site(hook, layer) for layer in range(layer_count) for hook in layered),
    )


class Reference:
    """transformers with forward hooks: the numbers ours must equal."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self._model = self.model.model
        self._layers = self._model.layers

    def rows(self, token_ids: Sequence[int]) -> dict[Site, np.ndarray]:
        """Every site's rows for a prompt, float32, [tokens, width]."""
        rows: dict[Site, np.ndarray] = {}

        def keep(site: Site) -> Callable[[Any], None]:
            def hook(value: Any) -> None:
                tensor = value[0] if isinstance(value, tuple) else value
                rows[site] = tensor.detach().float()[0].numpy()

            return hook

        handles = []
        for index, layer in enumerate(self._layers):
            attention, mid_norm, mlp = _parts(layer)
            handles += [
                _on_input(layer, keep(Site(HookPoint.RESID_PRE, index))),
                _on_output(attention, keep(Site(HookPoint.ATTN_OUT, index))),
                _on_input(mid_norm, keep(Site(HookPoint.RESID_MID, index))),
                _on_output(mlp, keep(Site(HookPoint.MLP_OUT, index))),
                _on_output(layer, keep(Site(HookPoint.RESID_POST, index))),
            ]
        try:
            with torch.no_grad():
                self.model(torch.tensor([list(token_ids)]))
        finally:
            for handle in handles:
                handle.remove()
        rows[Site(HookPoint.EMBEDDING)] = rows[Site(HookPoint.RESID_PRE, 0)]
        return rows

    @contextmanager
    def adding(self, additions: Mapping[Site, np.ndarray]) -> Iterator[None]:
        """Adds [tokens, width] (or [1, width]) to the outputs of sites while inside."""
        handles = []
        for site, addition in additions.items():
            delta = torch.from_numpy(addition).to(self.model.dtype)
            if site.layer is None:
                handles.append(_add_to_input(self._layers[0], delta))
                continue
            attention, _, mlp = _parts(self._layers[site.layer])
            match site.hook_point:
                case HookPoint.RESID_PRE:
                    handles.append(_add_to_input(self._layers[site.layer], delta))
                case HookPoint.RESID_POST:
                    handles.append(_add_to_output(self._layers[site.layer], delta))
                # The stream after attention is the residual plus what attention adds.
                case HookPoint.ATTN_OUT | HookPoint.RESID_MID:
                    handles.append(_add_to_output(attention, delta))
                case HookPoint.MLP_OUT:
                    handles.append(_add_to_output(mlp, delta))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def logprobs(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log probabilities after the last token, [vocabulary]."""
        with torch.no_grad():
            logits = self.model(torch.tensor([list(token_ids)])).logits[0, -1]
        return torch.log_softmax(logits.float(), -1).numpy()


def _parts(layer: Any) -> tuple[Any, Any, Any]:
    """The modules whose output, input and output are attn_out, resid_mid and mlp_out."""
    if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma 3 norms what it adds.
        return (
            layer.post_attention_layernorm,
            layer.pre_feedforward_layernorm,
            layer.post_feedforward_layernorm,
        )
    return layer.self_attn, layer.post_attention_layernorm, layer.mlp


def _on_input(module: Any, keep: Callable[[Any], None]) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: Any, keep: Callable[[Any], None]) -> Any:
    return module.register_forward_hook(lambda _m, _a, output: keep(output))


def _add_to_input(module: Any, delta: torch.Tensor) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] + delta, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + delta}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _add_to_output(module: Any, delta: torch.Tensor) -> Any:
    def hook(_: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + delta, *output[1:])
        return output + delta

    return module.register_forward_hook(hook)


def relative_errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|ours - theirs| / |theirs| of every row."""
    return np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of every row."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def prompt_run(name: str, token_ids: Sequence[int], capture: Capture | None = None) -> Run:
    """A run of a prompt alone."""
    return Run(id=name, token_ids=tuple(token_ids), capture=capture)


GREEDY = Sampling(temperature=0.0, max_tokens=16, ignore_eos=True)
