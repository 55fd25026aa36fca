"""Attribution graphs as Neuronpedia and the viewer of circuit-tracer read them.

The form is that of Neuronpedia's graph schema, version 1.0.0. A neuron stands where a feature of a
transcoder would, since viewers know no other kind of node between tokens.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actserve.graphs import AttributionGraph, GraphNode

_NEURON = "cross layer transcoder"
"""What viewers call a node with a layer and an index."""
_ERROR = 2**32 - 1
"""In place of an index, which no unit has: nodes of one name would be one."""


def neuronpedia_graph(
    graph: AttributionGraph, slug: str, supernodes: dict[str, list[int]]
) -> dict[str, Any]:
    """The graph, with groups of node indices by their labels."""
    summary = graph.summary
    layers = 1 + max((node.layer for node in graph.nodes if node.layer is not None), default=0)
    ids = [_node_id(node, layers) for node in graph.nodes]
    last = len(graph.tokens) - 1
    likeliest = max((node.probability or 0.0 for node in graph.logits), default=0.0)
    return {
        "metadata": {
            "slug": slug,
            "scan": summary.name.split("/")[1],
            "prompt_tokens": list(graph.tokens),
            "prompt": "".join(graph.tokens),
            "transcoder_list": list(summary.dictionaries),
            "node_threshold": summary.settings["node_threshold"],
            "schema_version": 1,
            "info": {
                "description": ""
                if summary.dictionaries
                else "Nodes between tokens and logits are neurons of MLPs: layer and index of "
                "mlp_act.",
                "generator": {"name": "actserve", "version": version("actserve")},
                "create_time_ms": int(1000 * summary.created.timestamp()),
            },
            "generation_settings": {
                "max_n_logits": int(summary.settings["max_logits"]),
                "desired_logit_prob": summary.settings["logit_probability"],
                "max_feature_nodes": int(summary.settings["max_nodes"]),
            },
            "pruning_settings": {
                "node_threshold": summary.settings["node_threshold"],
                "edge_threshold": summary.settings["edge_threshold"],
            },
        },
        "qParams": {
            "pinnedIds": [ids[index] for each in supernodes.values() for index in each],
            "supernodes": [
                [label, *(ids[index] for index in each)] for label, each in supernodes.items()
            ],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            {
                "node_id": ids[node.index],
                "feature": _feature(node),
                "layer": _layer(node, layers),
                "ctx_idx": node.position,
                "feature_type": _TYPES[node.kind],
                "jsNodeId": _js_id(node),
                "clerp": _clerp(node),
                "token_prob": node.probability or 0.0,
                "is_target_logit": node.kind == "logit" and node.probability == likeliest,
                "run_idx": 0,
                "reverse_ctx_idx": last - node.position,
                "influence": node.influence,
                "activation": node.activation,
            }
            for node in graph.nodes
        ],
        "links": [
            {"source": ids[source], "target": ids[target], "weight": float(weight)}
            for source, target, weight in zip(
                graph.sources, graph.targets, graph.weights, strict=True
            )
        ],
    }


_TYPES = {
    "embedding": "embedding",
    "neuron": _NEURON,
    "feature": _NEURON,
    "logit": "logit",
    "error": "mlp reconstruction error",
}


def _layer(node: GraphNode, layers: int) -> str:
    if node.kind == "embedding":
        return "E"
    return str(layers + 1) if node.kind == "logit" else str(node.layer or 0)


def _node_id(node: GraphNode, layers: int) -> str:
    number = _ERROR if node.kind == "error" else _unit(node)
    if number is None:
        number = node.token_id
    return f"{_layer(node, layers)}_{number or 0}_{node.position}"


def _unit(node: GraphNode) -> int | None:
    """Which neuron or feature it is."""
    return node.neuron if node.feature is None else node.feature


def _js_id(node: GraphNode) -> str:
    if node.kind == "embedding":
        return f"E_{node.token_id}-{node.position}"
    if node.kind == "logit":
        return f"L_{node.token_id}-{node.position}"
    if node.kind == "error":
        return f"{node.layer or 0}_{node.position}-0"
    return f"{node.layer or 0}_{_unit(node) or 0}-0"


def _feature(node: GraphNode) -> int | None:
    """A number of a pair of layer and index, after Cantor, which viewers take apart again."""
    if node.kind == "embedding":
        return node.position
    if node.kind == "logit":
        return node.token_id
    unit = _unit(node)
    if node.layer is None or unit is None:
        return -1
    both = node.layer + unit
    return both * (both + 1) // 2 + unit


def _clerp(node: GraphNode) -> str:
    if node.kind == "logit":
        return f"Output {node.label.removeprefix('→ ')} (p={node.probability or 0.0:.3f})"
    return f"Emb: {node.label}" if node.kind == "embedding" else node.label
