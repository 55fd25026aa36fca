"""The compiled graphs of one model: with every tap, with those of the stream alone, with none.

A tap that a step has no use for still costs a call, and keeps the compiler from fusing what is on
either side of it. So the same modules, with the same weights, are compiled more than once, and each
step takes the graph with the fewest taps among those that reach all that its plan does. The graph
without any is what vLLM itself would run.

vLLM compiles the `forward` of one module of the model, the decoder, when it is first called. Each
lean graph is a twin of that module: an object with the same submodules and parameters, and with a
code object of its own, under which PyTorch and vLLM keep what they compile. Where vLLM compiles
nothing, taps are left out as the model runs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.config import set_current_vllm_config

from actserve_server.domain.sites import HookPoint
from actserve_server.engine.api import REPLAYED_GRAPH
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.layout import Layout

log = logging.getLogger(__name__)

FULL, STREAM, PLAIN, REPLAYED = "full", "stream", "plain", REPLAYED_GRAPH

STREAM_POINTS = frozenset(
    {HookPoint.EMBEDDING, HookPoint.RESID_PRE, HookPoint.RESID_POST, HookPoint.FINAL_NORM}
)
"""What most runs read and change: one place for each layer, and two."""


@dataclass(slots=True, eq=False)
class Graph:
    """One of them."""

    name: str
    left_out: frozenset[int]
    """The places without a tap."""
    module: nn.Module | None
    """What is compiled; None where nothing is."""
    steps: int = 0
    """How many it has served."""


class Graphs:
    """Chooses a graph for each step. The full one is always there; lean ones have fewer taps, and
    serve once they are compiled."""

    def __init__(
        self,
        model: nn.Module,
        layers: str,
        layout: Layout,
        config: Any,
        *,
        lean: bool = True,
        unreplayed: frozenset[int] | None = None,
    ) -> None:
        """`layers` is the path of the model's decoder layers, `config` vLLM's own. Without `lean`
        there is none but the full one. Where `unreplayed` is given there is one more, for CUDA
        graphs that are replayed with their taps, all but those at these places; it is never chosen
        by `reaching`."""
        self._layout = layout
        self._config = config
        self._decoder, why = _decoder(model, layers)
        self._full = Graph(FULL, frozenset(), self._decoder and self._decoder.module)
        self._serving = [self._full]
        """The fewest taps come first."""
        self._replayed: Graph | None = None
        self._waiting = self._lean_ones() if lean and not why else []
        """Those that are not compiled yet, with the places that they leave out."""
        if unreplayed is not None and not why:
            self._waiting.insert(0, (REPLAYED, unreplayed))
        if why:
            log.warning("every step has all taps", extra={"reason": why})
        if self._decoder is None:
            while self._waiting:
                self._serve(Graph(*self._waiting.pop(), None))

    def _lean_ones(self) -> list[tuple[str, frozenset[int]]]:
        every = frozenset(range(self._layout.place_count))
        stream = {
            site.place
            for key, site in self._layout.sites.items()
            if key.site.hook_point in STREAM_POINTS
        }
        lean = [(PLAIN, every)]
        if stream and stream < every:
            lean.append((STREAM, every - stream))
        return lean

    def _serve(self, graph: Graph) -> None:
        if graph.name == REPLAYED:
            self._replayed = graph
        else:
            self._serving.insert(0, graph)

    @property
    def _every(self) -> list[Graph]:
        return [*self._serving, *([self._replayed] if self._replayed else [])]

    @property
    def lean(self) -> Mapping[str, list[str]]:
        """The hook points that each lean graph reaches at every layer; of those that serve."""
        return {each.name: self._reached(each) for each in self._serving if each.left_out}

    @property
    def replayed(self) -> Mapping[str, list[str]]:
        """Likewise of the one that is replayed, if it serves."""
        return {REPLAYED: self._reached(self._replayed)} if self._replayed else {}

    def _reached(self, graph: Graph) -> list[str]:
        reached, missed = set[HookPoint](), set[HookPoint]()
        for key, site in self._layout.sites.items():
            (missed if site.place in graph.left_out else reached).add(key.site.hook_point)
        if HookPoint.FINAL_NORM in reached:
            reached.add(HookPoint.LOGITS)  # They are made of its rows.
        return sorted(reached - missed)

    @property
    def steps(self) -> Mapping[str, int]:
        """How many steps each graph has served."""
        return {graph.name: graph.steps for graph in self._every}

    def compile(self, run: Callable[[], object]) -> Iterator[tuple[str, Exception | None]]:
        """Compiles the lean graphs one after the other, by running the model, and says of each what
        went wrong. Nothing is compiled once the model serves."""
        while self._waiting:
            name, left_out = self._waiting.pop()
            try:
                twin = self._decoder and _twin(self._decoder.module, f"{name}_taps", self._config)
                graph = Graph(name, left_out, twin)
                with self._in_use(graph):
                    run()
                self._serve(graph)
                yield name, None
            except Exception as error:
                yield name, error

    def drop(self, name: str) -> None:
        """Has the steps of a lean graph, or of the replayed one, served by others."""
        self._serving = [each for each in self._serving if each.name != name or not each.left_out]
        self._waiting = [each for each in self._waiting if each[0] != name]
        if name == REPLAYED:
            self._replayed = None

    @contextmanager
    def reaching(self, places: Set[int]) -> Iterator[None]:
        """Inside, a forward pass goes through all of these places."""
        graph = next(each for each in self._serving if each.left_out.isdisjoint(places))
        graph.steps += 1
        with self._in_use(graph):
            yield

    @contextmanager
    def computing(self, name: str) -> Iterator[None]:
        """Inside, the model is computed by this graph, which serves."""
        (graph,) = (each for each in self._every if each.name == name)
        with self._in_use(graph):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Inside, a forward pass is computed by the replayed graph."""
        assert self._replayed is not None  # Who asks has seen it among the `steps`.
        self._replayed.steps += 1
        with self._in_use(self._replayed):
            yield

    @contextmanager
    def _in_use(self, graph: Graph) -> Iterator[None]:
        decoder = self._decoder
        if decoder and graph.module:
            decoder.parent._modules[decoder.name] = graph.module
        try:
            with taps.leaving_out(graph.left_out), _kind_of_taps(graph):
                yield
        finally:
            if decoder:
                decoder.parent._modules[decoder.name] = decoder.module


def _kind_of_taps(graph: Graph) -> AbstractContextManager[None]:
    return taps.replayed() if graph.name == REPLAYED else nullcontext()


@dataclass(frozen=True, slots=True, eq=False)
class _Decoder:
    """The module that vLLM compiles, and the one that calls it by its name."""

    parent: nn.Module
    name: str
    module: nn.Module


def _decoder(model: nn.Module, layers: str) -> tuple[_Decoder | None, str]:
    """None where vLLM compiles nothing, or with the reason where it compiles something else."""
    # What vLLM's decorator has made a kind of its wrapper.
    compiled: dict[str, nn.Module] = {
        path: module
        for path, module in model.named_modules()
        if issubclass(type(module), TorchCompileWithNoGuardsWrapper)
        and not getattr(module, "do_not_compile", False)
    }
    if not compiled:
        return None, ""
    path, module = next(iter(compiled.items()))
    if len(compiled) > 1 or not path or not layers.startswith(f"{path}."):
        paths = ", ".join(path or "the whole model" for path in compiled)
        return None, f"vLLM compiles {paths}, not the one module that holds {layers}"
    parent, _, name = path.rpartition(".")
    return _Decoder(model.get_submodule(parent), name, module), ""


def _twin(module: nn.Module, name: str, config: Any) -> nn.Module:
    """The same submodules and parameters, compiled under a name of its own."""
    kind = type(module)
    forward = kind.forward
    own = FunctionType(
        forward.__code__.replace(co_name=f"forward_{name}"),
        forward.__globals__,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__, own.__annotations__ = forward.__kwdefaults__, forward.__annotations__
    own.__module__ = forward.__module__
    # A part of the key under which vLLM keeps what it has compiled ahead of time.
    own.__qualname__ = f"{forward.__qualname__}_{name}"
    twin_kind = type(kind.__name__, (kind,), {"forward": own, "__module__": kind.__module__})
    twin: Any = twin_kind.__new__(twin_kind)
    twin.__dict__.update(module.__dict__)
    # The tag is the folder of what vLLM compiles otherwise.
    with set_current_vllm_config(config), set_model_tag(name):
        TorchCompileWithNoGuardsWrapper.__init__(twin)
        twin._compile_tag = name
    return twin
