"""Attribution graphs: what a prediction comes from, through the neurons of a model's MLPs.

After Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language Models", 2025.
Nodes are the prompt's tokens, neurons or features of transcoders, and predicted tokens; an edge
says what one adds to another with attention patterns and the denominators of norms held as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described
from actserve._names import short
from actserve._show.shown import Shown
from actserve._times import time_from_proto
from actserve.errors import BadResponse, InvalidRequest
from actserve.interventions import ChangeFeatures, Intervention, Project
from actserve.monitor_fits import Work, work_from_proto
from actserve.tensors import Float32Array, decode
from actserve.v1 import attribution_graph_service_pb2 as pb

if TYPE_CHECKING:
    import pandas as pd

GRAPHS = "attributionGraphs"
"""The collection of their names."""

NodeKind: TypeAlias = Literal["embedding", "neuron", "logit", "feature", "error"]


@dataclass(frozen=True, slots=True)
class GraphNode:
    """Something that a prediction comes from, or the prediction."""

    index: int
    """In `AttributionGraph.nodes`."""
    kind: NodeKind
    """"embedding" is a token of the prompt, "logit" a predicted one; "feature" and "error" are of
    transcoders."""
    position: int
    """Of the token that it is at."""
    influence: float
    """On the predicted tokens: of one of those its probability; of another node the sum, over the
    edges that leave it, of the target's influence times the edge's part of all that is added
    there."""
    label: str
    """What to call it, such as `mlp_act.12[305]`, or the token in quotes."""
    layer: int | None = None
    """Of a neuron, a feature and an error."""
    neuron: int | None = None
    """Of a neuron: which element of `mlp_act` of its layer."""
    feature: int | None = None
    """Of a feature: its index in its dictionary."""
    dictionary: str | None = None
    """Of a feature: the id of its dictionary."""
    activation: float | None = None
    """Of a neuron or a feature."""
    token_id: int | None = None
    """Of an embedding and a logit."""
    probability: float | None = None
    """Of a logit."""


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """A graph without its nodes and edges."""

    name: str
    """The whole name, `models/{model}/attributionGraphs/{id}`."""
    tokens: tuple[str, ...]
    """The prompt's tokens, each decoded alone."""
    token_ids: tuple[int, ...]
    dictionaries: tuple[str, ...]
    """The ids of its transcoders, by layer; empty where its nodes are neurons."""
    settings: Mapping[str, float]
    """How large it could be, as `client.graphs.create` has it."""
    work: Work
    """How far it has come."""
    nodes: int
    """How many it has; zero until the work has succeeded."""
    edges: int
    """The same."""
    created: datetime
    expires: datetime

    @property
    def id(self) -> str:
        """The last part of its name."""
        return short(self.name)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttributionGraph(Shown):
    """A graph. Nodes are in the order in which they are computed: an edge leads from a lower index
    to a higher one."""

    summary: GraphSummary
    nodes: tuple[GraphNode, ...]
    sources: NDArray[np.int64]
    """Of each edge, the index of the node that it comes from."""
    targets: NDArray[np.int64]
    """Of each edge, the index of the node that it goes to."""
    weights: Float32Array
    """Of each edge, what the source adds to the target, of either sign: to a neuron's activation;
    to a predicted token's logit less the mean logit of the vocabulary."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.summary.id

    @property
    def tokens(self) -> tuple[str, ...]:
        """The prompt's tokens, each decoded alone."""
        return self.summary.tokens

    @property
    def logits(self) -> tuple[GraphNode, ...]:
        """The predicted tokens, likeliest first."""
        return tuple(node for node in self.nodes if node.kind == "logit")

    @property
    def neurons(self) -> tuple[GraphNode, ...]:
        """The neurons, the most influential first."""
        return tuple(node for node in self.units if node.kind == "neuron")

    @property
    def features(self) -> tuple[GraphNode, ...]:
        """The features of transcoders, the most influential first."""
        return tuple(node for node in self.units if node.kind == "feature")

    @property
    def units(self) -> tuple[GraphNode, ...]:
        """The neurons or features, the most influential first."""
        found = [node for node in self.nodes if node.kind in ("neuron", "feature")]
        return tuple(sorted(found, key=lambda node: -node.influence))

    def into(self, node: GraphNode | int) -> list[tuple[GraphNode, float]]:
        """What leads into a node, with what each adds to it, the largest first.

        graph.into(graph.logits[0])[:5]
        """
        index = self._index(node)
        return self._edges(self.targets == index, self.sources)

    def out_of(self, node: GraphNode | int) -> list[tuple[GraphNode, float]]:
        """What a node leads to, with what it adds to each, the largest first."""
        index = self._index(node)
        return self._edges(self.sources == index, self.targets)

    def influence_by_token(self) -> Float32Array:
        """Of each position of the prompt the influence of its embedding and of the nodes there, as
        a part of that of all. Shape [tokens]. Much of position 0 may be an attention sink."""
        sums = np.zeros(len(self.tokens), np.float64)
        for node in self.nodes:
            if node.kind != "logit":
                sums[node.position] += node.influence
        return np.asarray(sums / max(sums.sum(), 1e-30), np.float32)

    def predicted(self, nodes: Iterable[GraphNode | int]) -> Float32Array:
        """How much each predicted token's logit, less the mean logit, would change if units were
        set to zero: along all paths of this graph, which lacks what pruning took. Shape
        [logits]."""
        gone = {self._index(node) for node in nodes}
        change = np.zeros(len(self.nodes))
        first = np.searchsorted(self.targets, np.arange(len(self.nodes) + 1))
        for node in self.nodes:
            if node.index in gone:
                if node.activation is None:
                    raise InvalidRequest(
                        f"node {node.index} is of the kind {node.kind}; only neurons and features "
                        "can be ablated",
                        reason="FIELD_INVALID",
                    )
                change[node.index] = -1.0  # In parts of its activation.
                continue
            here = slice(first[node.index], first[node.index + 1])
            added = float(self.weights[here] @ change[self.sources[here]])
            if node.kind == "logit":
                change[node.index] = added
            elif node.activation:
                change[node.index] = added / node.activation
        return np.asarray([change[node.index] for node in self.logits], np.float32)

    def grouped(
        self, supernodes: Mapping[str, Iterable[GraphNode | int]]
    ) -> list[tuple[str, str, float]]:
        """What groups of nodes add to each other: (source, target, weight), the sums of the edges
        between them, the largest first. A node that is in none stands for itself, by its label and
        position.

            graph.grouped({"France": france, "capitals": capitals})
        """
        names = self._names(supernodes)
        sums: dict[tuple[str, str], float] = {}
        for source, target, weight in zip(self.sources, self.targets, self.weights, strict=True):
            pair = names[source], names[target]
            if pair[0] != pair[1]:
                sums[pair] = sums.get(pair, 0.0) + float(weight)
        found = [(source, target, weight) for (source, target), weight in sums.items()]
        return sorted(found, key=lambda each: -abs(each[2]))

    def to_neuronpedia(
        self,
        path: str | PathLike[str] | None = None,
        *,
        slug: str | None = None,
        supernodes: Mapping[str, Iterable[GraphNode | int]] | None = None,
    ) -> dict[str, Any]:
        """The graph as Neuronpedia and the viewer of circuit-tracer read it, also written to a file
        where a path is given.

        - `slug`: what it is called there; the graph's id when None.
        - `supernodes`: labels of groups of nodes, which the viewer shows as one.

            graph.to_neuronpedia("graph.json", supernodes={"capitals": capitals})
        """
        from actserve._neuronpedia_graphs import neuronpedia_graph

        made = neuronpedia_graph(self, slug or self.id, self._grouped(supernodes or {}))
        if path is not None:
            import json

            Path(path).write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        return made

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a row for each node. Needs the extra `pandas`."""
        from dataclasses import asdict

        from actserve._extras import needed

        return needed("pandas", "data frames").DataFrame([asdict(node) for node in self.nodes])

    def __repr__(self) -> str:
        return f"AttributionGraph({self.id!r}, {len(self.nodes)} nodes, {len(self.weights)} edges)"

    def _edges(self, which: Any, ends: NDArray[np.int64]) -> list[tuple[GraphNode, float]]:
        found = [
            (self.nodes[end], float(weight))
            for end, weight in zip(ends[which], self.weights[which], strict=True)
        ]
        return sorted(found, key=lambda each: -abs(each[1]))

    def _index(self, node: GraphNode | int) -> int:
        index = node.index if isinstance(node, GraphNode) else node
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise InvalidRequest(
                f"{described(node)} is no node; give one of graph.nodes, or its index",
                reason="FIELD_INVALID",
            )
        if not 0 <= index < len(self.nodes):
            raise InvalidRequest(
                f"there is no node {index}; the graph has {len(self.nodes)}",
                reason="FIELD_INVALID",
            )
        return int(index)

    def _grouped(self, supernodes: Mapping[str, Iterable[GraphNode | int]]) -> dict[str, list[int]]:
        found = {name: [self._index(node) for node in each] for name, each in supernodes.items()}
        every = [index for each in found.values() for index in each]
        if len({*every}) < len(every):
            raise InvalidRequest(
                "a node is in two supernodes; put it into one", reason="FIELD_INVALID"
            )
        return found

    def _names(self, supernodes: Mapping[str, Iterable[GraphNode | int]]) -> list[str]:
        names = [f"{node.label} at {node.position}" for node in self.nodes]
        for name, indices in self._grouped(supernodes).items():
            for index in indices:
                names[index] = name
        return names


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GraphTest(Shown):
    """What a graph says that ablating units does, beside what it did. Changes are of logits less
    their mean over the predicted tokens of the graph: what all of them share is in no log
    probability."""

    graph: AttributionGraph
    nodes: tuple[GraphNode, ...]
    """What was ablated."""
    predicted: Float32Array
    """By the graph. Shape [logits]."""
    measured: Float32Array
    """In the model as it is. Shape [logits]."""
    logprobs_before: Float32Array
    """Of the predicted tokens. Shape [logits]."""
    logprobs_after: Float32Array
    """The same with them at zero."""

    @property
    def correlation(self) -> float:
        """Of what was predicted with what was measured, over the predicted tokens; NaN of one."""
        if len(self.predicted) < 2 or not self.predicted.any() or not self.measured.any():
            return float("nan")
        return float(np.corrcoef(self.predicted, self.measured)[0, 1])

    def __repr__(self) -> str:
        return f"GraphTest({len(self.nodes)} nodes of {self.graph.id!r}, r={self.correlation:.3f})"


def summary_from_proto(graph: pb.AttributionGraph) -> GraphSummary:
    """A graph without its nodes and edges, as the contract tells it."""
    told = graph.settings
    return GraphSummary(
        name=graph.name,
        tokens=tuple(graph.prompt.texts),
        token_ids=tuple(graph.prompt.ids),
        dictionaries=tuple(map(short, graph.dictionaries)),
        settings={
            "max_logits": told.max_logits,
            "logit_probability": told.logit_probability,
            "max_nodes": told.max_feature_nodes,
            "node_threshold": told.node_threshold,
            "edge_threshold": told.edge_threshold,
        },
        work=work_from_proto(graph.work),
        nodes=graph.nodes,
        edges=graph.edges,
        created=time_from_proto(graph.create_time),
        expires=time_from_proto(graph.expire_time),
    )


def graph_from_proto(
    summary: GraphSummary,
    nodes: Sequence[pb.AttributionNode],
    edges: Sequence[pb.AttributionEdges],
    texts: Mapping[int, str],
) -> AttributionGraph:
    """A graph of the events that tell it; `texts` are of the predicted tokens. Raises
    `BadResponse` for what is none."""
    made = tuple(_nodes(summary, nodes, texts))
    sources = np.concatenate([_indices(), *(_indices(each.sources) for each in edges)])
    targets = np.concatenate([_indices(), *(_indices(each.targets) for each in edges)])
    parts = [decode(each.weights) for each in edges]
    weights = np.concatenate([np.zeros(0, np.float32), *parts])
    if not len(sources) == len(targets) == len(weights) or len(made) != summary.nodes:
        raise BadResponse("the server sent a graph whose parts do not fit together")
    if len(targets) and (targets.max() >= len(made) or (sources >= targets).any()):
        raise BadResponse("the server sent an edge between nodes that are not there")
    order = np.argsort(targets, kind="stable")
    return AttributionGraph(summary, made, sources[order], targets[order], weights[order])


def ablation(nodes: Sequence[GraphNode], width: int) -> Intervention:
    """What sets units of one layer and position to zero, in a model whose rows of `mlp_act` have
    so many elements."""
    layer, position = nodes[0].layer, nodes[0].position
    if nodes[0].kind == "feature":
        # What it writes, which nothing computes from it again: so it is taken from the sum.
        written = {node.feature: -(node.activation or 0.0) for node in nodes}
        return ChangeFeatures(
            f"mlp_out.{layer}",
            str(nodes[0].dictionary),
            additions={index: change for index, change in written.items() if index is not None},
            positions=[position],
        )
    rows = np.zeros((len(nodes), width), np.float32)
    rows[np.arange(len(nodes)), [node.neuron or 0 for node in nodes]] = 1
    return Project(f"mlp_act.{layer}", rows, away=True, positions=[position])


def logit_ids(nodes: Iterable[pb.AttributionNode]) -> list[int]:
    """The predicted tokens."""
    return [node.logit.token_id for node in nodes if node.WhichOneof("kind") == "logit"]


def _indices(told: Iterable[int] = ()) -> NDArray[np.int64]:
    return np.fromiter(told, np.int64)


def _nodes(
    summary: GraphSummary, nodes: Sequence[pb.AttributionNode], texts: Mapping[int, str]
) -> Iterator[GraphNode]:
    for index, node in enumerate(nodes):
        if node.position >= len(summary.token_ids):
            raise BadResponse(f"the server sent a node at {node.position}, where no token is")
        common: dict[str, Any] = {
            "index": index,
            "position": node.position,
            "influence": node.influence,
        }
        kind = node.WhichOneof("kind")
        if kind == "embedding":
            token = summary.tokens[node.position] if summary.tokens else ""
            yield GraphNode(
                kind="embedding",
                label=repr(token),
                token_id=node.embedding.token_id,
                **common,
            )
        elif kind == "neuron":
            layer, neuron = node.neuron.layer, node.neuron.neuron
            yield GraphNode(
                kind="neuron",
                label=f"mlp_act.{layer}[{neuron}]",
                layer=layer,
                neuron=neuron,
                activation=node.neuron.activation,
                **common,
            )
        elif kind == "logit":
            token_id = node.logit.token_id
            yield GraphNode(
                kind="logit",
                label=f"→ {texts.get(token_id, str(token_id))!r}",
                token_id=token_id,
                probability=node.logit.probability,
                **common,
            )
        elif kind == "feature":
            found = node.feature
            dictionary = _dictionary(summary, found.dictionary_index)
            yield GraphNode(
                kind="feature",
                label=f"{dictionary}[{found.feature_index}]",
                layer=found.dictionary_index,
                feature=found.feature_index,
                dictionary=dictionary,
                activation=found.activation,
                **common,
            )
        elif kind == "reconstruction_error":
            layer = node.reconstruction_error.dictionary_index
            label = f"error of {_dictionary(summary, layer)}"
            yield GraphNode(kind="error", label=label, layer=layer, **common)
        else:
            raise BadResponse("the server sent a node of a kind that this client does not know")


def _dictionary(summary: GraphSummary, index: int) -> str:
    if index >= len(summary.dictionaries):
        raise BadResponse(f"the server sent a node of dictionary {index}, which is not there")
    return summary.dictionaries[index]
