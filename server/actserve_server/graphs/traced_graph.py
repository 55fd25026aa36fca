"""What is to be traced, and the graph that comes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from actserve_server.domain.model import ModelInfo

Progress = Callable[[int, int], None]
"""Is told how many steps are done, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How large a graph may be, as AttributionSettings of the contract."""

    max_logits: int = 10
    logit_probability: float = 0.95
    max_nodes: int = 1000
    """Neurons or features."""
    node_threshold: float = 0.8
    edge_threshold: float = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """The prompt whose next token is traced."""

    token_ids: tuple[int, ...]
    settings: TraceSettings
    transcoders: str = ""
    """A folder with the transcoders of all layers, as `transcoder_files` writes them; empty for a
    graph of neurons."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TracedGraph:
    """Nodes and edges. Nodes are numbered in the order in which they are computed: the embeddings
    of the prompt's tokens, what transcoders leave out by layer, units by layer, and the predicted
    tokens, at the last position. An edge leads from a lower number to a higher one."""

    tokens: int
    """Of the prompt, each of which has an embedding."""
    errors: np.ndarray
    """int32 [errors, 2]: position, layer; none in a graph of neurons."""
    units: np.ndarray
    """int32 [units, 3]: position, layer, index; neurons, or features of transcoders."""
    activations: np.ndarray
    """float32 [units]."""
    logits: np.ndarray
    """int32 [logits]: token ids."""
    probabilities: np.ndarray
    """float32 [logits]."""
    influence: np.ndarray
    """float32 [nodes]."""
    sources: np.ndarray
    """uint32 [edges], ordered by target."""
    targets: np.ndarray
    """uint32 [edges]."""
    weights: np.ndarray
    """float32 [edges], in units of the target."""

    @property
    def nodes(self) -> int:
        return self.tokens + len(self.errors) + len(self.units) + len(self.logits)

    @property
    def edges(self) -> int:
        return len(self.weights)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """All of it, by name."""
        return {"tokens": np.array([self.tokens], np.int32)} | {
            name: getattr(self, name) for name in _ARRAYS
        }

    @staticmethod
    def checked(arrays: Mapping[str, np.ndarray], request: TraceRequest) -> "TracedGraph":
        """A graph of what another process sent. Raises ValueError for what cannot be one of this
        request."""
        if arrays.keys() != {"tokens", *_ARRAYS}:
            raise ValueError(f"a graph consists of other arrays than {sorted(arrays)}")
        for name, (kind, dimensions) in _ARRAYS.items():
            array = arrays[name]
            if array.dtype != kind or array.ndim != dimensions:
                raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
            if kind is np.float32 and not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        (tokens,) = arrays["tokens"].tolist()
        graph = TracedGraph(tokens=tokens, **{name: arrays[name] for name in _ARRAYS})
        shapes = {
            "tokens": tokens == len(request.token_ids),
            "errors": graph.errors.shape[1:] == (2,)
            and (bool(request.transcoders) or not len(graph.errors)),
            "units": graph.units.shape[1:] == (3,)
            and len(graph.units) <= request.settings.max_nodes,
            "activations": len(graph.activations) == len(graph.units),
            "logits": 0 < len(graph.logits) <= request.settings.max_logits,
            "probabilities": len(graph.probabilities) == len(graph.logits),
            "influence": len(graph.influence) == graph.nodes,
            "sources": len(graph.sources) == graph.edges,
            "targets": len(graph.targets) == graph.edges
            and (not graph.edges or int(graph.targets.max()) < graph.nodes),
            "edges": bool((graph.sources < graph.targets).all()),
        }
        if wrong := [name for name, fits in shapes.items() if not fits]:
            raise ValueError(f"{', '.join(wrong)} of a graph are not of its request")
        return graph


_ARRAYS: Mapping[str, tuple[type[np.generic], int]] = {
    "errors": (np.int32, 2),
    "units": (np.int32, 2),
    "activations": (np.float32, 1),
    "logits": (np.int32, 1),
    "probabilities": (np.float32, 1),
    "influence": (np.float32, 1),
    "sources": (np.uint32, 1),
    "targets": (np.uint32, 1),
    "weights": (np.float32, 1),
}
"""Element type and number of dimensions."""
assert {"tokens", *_ARRAYS} == {field.name for field in fields(TracedGraph)}


GATED = frozenset(
    {
        "FakeForCausalLM",
        "Gemma3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }
)
"""Architectures whose graphs are served: their MLPs have gates, one MLP to a layer. The first is
made up."""


def unserved(info: ModelInfo) -> str:
    """Why no graphs are made of a model; empty where they are."""
    if info.architecture in GATED:
        return ""
    served = ", ".join(sorted(GATED - {"FakeForCausalLM"}))
    return f"{info.architecture} is none of those of which graphs are made: {served}"


class Tracer(Protocol):
    """Makes graphs of one model, one at a time."""

    async def trace(self, request: TraceRequest, progress: Progress) -> TracedGraph:
        """Raises ActserveError. What was being done is given up where this is cancelled."""
        ...

    async def close(self) -> None:
        """Ends whatever is left."""
        ...
