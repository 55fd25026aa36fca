"""Made-up graphs, for trying a client without a model. They have the form of real ones."""

import asyncio

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.graphs.influence import Edges, influence, prune
from actserve_server.graphs.traced_graph import Progress, TracedGraph, TraceRequest

_NEURONS = 24
"""Of a made-up graph, at most."""
_LOGITS = 4
_MLP_WIDTH = 8
"""Of layers, as far as these neurons are concerned."""


class FakeTracer:
    """Implements `actserve_server.graphs.traced_graph.Tracer`: the same prompt has the same
    graph."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self.step_s = 0.0
        """How long each step takes."""

    async def trace(self, request: TraceRequest, progress: Progress) -> TracedGraph:
        count = min(request.settings.max_nodes, _NEURONS)
        tokens, logits = len(request.token_ids), min(request.settings.max_logits, _LOGITS)
        for step in range(count + logits + 1):
            progress(step, count + logits)
            await asyncio.sleep(self.step_s)
        numbers = np.random.default_rng([*request.token_ids, tokens])
        places = np.stack(
            [
                numbers.integers(tokens, size=count),
                np.sort(numbers.integers(self._info.layer_count, size=count)),
                numbers.integers(_MLP_WIDTH, size=count),
            ],
            1,
        ).astype(np.int32)
        _, different = np.unique(places, axis=0, return_index=True)
        places = places[np.sort(different)]
        targets = len(places) + logits
        weights = numbers.standard_normal((targets, tokens + targets)).astype(np.float32)
        layers = np.concatenate([np.full(tokens, -1), places[:, 1], np.full(logits, 1 << 20)])
        weights[layers[None, :] >= layers[tokens:, None]] = 0
        probabilities = (0.5 ** np.arange(1, logits + 1)).astype(np.float32)
        edges = Edges(weights, np.abs(weights).sum(1), probabilities)
        counts = influence(edges)
        settings = request.settings
        kept = prune(edges, counts, settings.node_threshold, settings.edge_threshold, tokens)
        order = np.cumsum(kept.nodes) - 1
        into, source = np.nonzero(kept.edges)
        return TracedGraph(
            tokens=tokens,
            errors=np.zeros((0, 2), np.int32),
            units=places[kept.nodes[tokens:-logits]],
            activations=numbers.standard_normal(len(places))[kept.nodes[tokens:-logits]].astype(
                np.float32
            ),
            logits=np.arange(97, 97 + logits, dtype=np.int32) % self._info.vocabulary_size,
            probabilities=probabilities,
            influence=counts[kept.nodes],
            sources=order[source].astype(np.uint32),
            targets=order[into + tokens].astype(np.uint32),
            weights=weights[into, source],
        )

    async def close(self) -> None:
        """Nothing is left."""
