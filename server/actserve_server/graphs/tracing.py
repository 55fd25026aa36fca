"""Attribution graphs by backward passes through a frozen model.

As in Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language Models", 2025:
attention patterns and the denominators of norms are held, so that what reaches a node is a sum over
what was written to the stream before it. One backward pass tells what every source adds to a node;
many nodes of a layer go in one batch. Which neurons are nodes is decided before, by what the
predicted tokens would lose without each, through all of the linear model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actserve_server.graphs.basis import Basis
from actserve_server.graphs.frozen_model import FrozenModel
from actserve_server.graphs.influence import Edges, influence, prune
from actserve_server.graphs.neuron_basis import NeuronBasis
from actserve_server.graphs.traced_graph import Progress, TracedGraph, TraceRequest, TraceSettings

BATCH_BYTES = 256 << 20
"""Of what one batch of backward passes has at once, about."""
MAX_BATCH = 128
TOLERANCE = 1e-4
"""How far the sum of what is added to a node may be from the node, as a part of the sum of the
absolute values: beyond it something is wrong, and there is no graph."""


class IncompleteError(Exception):
    """What is added to a node does not sum to it."""


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """What is added to some nodes."""

    weights: np.ndarray
    """float32 [targets, embeddings, errors and chosen units]."""
    totals: np.ndarray
    """float32 [targets]: the sums of absolute values, over all units."""
    sums: np.ndarray
    """float32 [targets]: the sums, over all units, and what biases add."""


@dataclass(frozen=True, eq=False, slots=True)
class Units:
    """Some units of a graph, in the order of layers."""

    layers: Tensor
    positions: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.layers)

    def of(self, layer: int) -> tuple[slice, Tensor, Tensor]:
        """Which of them are of a layer, with their positions and indices."""
        first, end = torch.searchsorted(self.layers, torch.tensor([layer, layer + 1])).tolist()
        here = slice(first, end)
        return here, self.positions[here], self.indices[here]


class Tracing:
    """One prompt, and how to trace what it computes."""

    def __init__(self, model: Any, request: TraceRequest, basis: Basis | None = None) -> None:
        """Raises `NotTraceableError`."""
        self.request = request
        self.frozen = FrozenModel(model, request.token_ids, basis or NeuronBasis())
        recorded = self.frozen.recorded
        self._units = recorded.units
        self.tokens = len(request.token_ids)
        errors = [each for each in self._units if each.error is not None]
        self.errors = self.tokens * len(errors)
        """How many errors are sources, layer by layer, a token after another."""
        self.first = self.tokens + self.errors
        """The number of the first unit."""
        self.logits = _likeliest(recorded.probabilities, request.settings)
        self.probabilities = recorded.probabilities[self.logits]
        mean = self.frozen.unembedding.mean(0)
        self._directions = self.frozen.unembedding[self.logits] - mean
        self.logit_values = recorded.logits[self.logits] - recorded.logits.mean()
        """Of each predicted token its logit less the mean logit."""
        widest = max(units.activations.shape[1] for units in self._units)
        each = 3 * 4 * self.tokens * (widest + 2 * len(self._units) * self._width)
        self.batch = min(MAX_BATCH, max(1, BATCH_BYTES // each))

    @property
    def _width(self) -> int:
        return self.frozen.recorded.embeddings.shape[1]

    def choose(self) -> Units:
        """The units that the predicted tokens depend on most: by the absolute change of each logit
        if the unit were zero, in the linear model, weighted by the tokens' probabilities."""
        embeddings = self.frozen.recorded.embeddings.clone().requires_grad_()
        live = self.frozen.replay(embeddings, None)
        scores = [torch.zeros_like(units.activations) for units in self._units]
        for part in _parts(0, len(self.logits), self.batch):
            seeds = self._at_last(self._directions[part])
            gradients = _gradients(live.final, live.outputs, seeds)
            for score, units, gradient in zip(scores, self._units, gradients, strict=True):
                effects = units.written(gradient[:, 0]).abs()
                score += torch.einsum("btn,b->tn", effects, self.probabilities[part])
        flat = torch.cat([score.flatten() for score in scores])
        count = min(self.request.settings.max_nodes, int((flat > 0).sum()))
        chosen = flat.topk(count).indices.sort().values
        sizes = torch.tensor([score.numel() for score in scores])
        ends = sizes.cumsum(0)
        layers = torch.searchsorted(ends, chosen, right=True)
        within = chosen - (ends - sizes)[layers]
        widths = torch.tensor([units.activations.shape[1] for units in self._units])[layers]
        return Units(layers, within // widths, within % widths)

    def rows(self, chosen: Units) -> Iterator[tuple[slice, Rows]]:
        """What is added to each chosen unit and then to each predicted token, some at a time."""
        recorded = self.frozen.recorded
        embeddings = recorded.embeddings.clone().requires_grad_()
        with torch.no_grad():
            outputs = [
                units.write(units.activations)
                if units.error is None
                else units.write(units.activations) + units.error
                for units in self._units
            ]
            nothing = self.frozen.replay(
                torch.zeros_like(embeddings), [self._biases(units) for units in self._units]
            )
        outputs = [each.requires_grad_() for each in outputs]
        run = self.frozen.replay(embeddings, outputs)
        sources = [embeddings, *outputs]
        for layer, units in enumerate(self._units):
            here, positions, indices = chosen.of(layer)
            biases = units.read(nothing.states[layer][0])[positions, indices]
            for part in _parts(here.start, here.stop, self.batch):
                at = part - here.start
                seeds = torch.zeros(len(part), 1, self.tokens, self._width)
                seeds[torch.arange(len(part)), 0, positions[at]] = units.reading(
                    positions[at], indices[at]
                )
                gradients = _gradients(run.states[layer], sources[: layer + 1], seeds)
                rows = self._rows(gradients, chosen, biases[at])
                yield slice(int(part[0]), int(part[-1]) + 1), rows
        biases = (nothing.final[0, -1] * self._directions).sum(1)
        for part in _parts(0, len(self.logits), self.batch):
            seeds = self._at_last(self._directions[part])
            rows = self._rows(_gradients(run.final, sources, seeds), chosen, biases[part])
            first = len(chosen) + int(part[0])
            yield slice(first, first + len(part)), rows

    def values(self, chosen: Units) -> np.ndarray:
        """What is added to each chosen unit and each predicted token in all."""
        units = [
            self._units[layer].activations[chosen.of(layer)[1:]]
            for layer in range(len(self._units))
        ]
        return torch.cat([*units, self.logit_values]).numpy()

    def _rows(self, gradients: Sequence[Tensor], chosen: Units, biases: Tensor) -> Rows:
        of_embeddings, *of_layers = gradients
        weights = torch.zeros(len(biases), self.first + len(chosen))
        embedded = torch.einsum("btw,tw->bt", of_embeddings, self.frozen.recorded.embeddings)
        weights[:, : self.tokens] = embedded
        totals, sums = embedded.abs().sum(1), embedded.sum(1) + biases
        for layer, gradient in enumerate(of_layers):
            added = self._units[layer].written(gradient)
            totals += added.abs().sum((1, 2))
            sums += added.sum((1, 2))
            here, positions, indices = chosen.of(layer)
            into = slice(self.first + here.start, self.first + here.stop)
            weights[:, into] = added[:, positions, indices]
            if (error := self._units[layer].error) is not None:
                left = torch.einsum("btw,tw->bt", gradient, error)
                at = self.tokens * (layer + 1)
                weights[:, at : at + self.tokens] = left
                totals += left.abs().sum(1)
                sums += left.sum(1)
        return Rows(weights.numpy(), totals.numpy(), sums.numpy())

    def _biases(self, units: Any) -> Tensor:
        """What an MLP writes where no unit does."""
        return units.write(torch.zeros_like(units.activations))

    def _at_last(self, directions: Tensor) -> Tensor:
        """Gradients by the last position alone."""
        seeds = torch.zeros(len(directions), 1, self.tokens, self._width)
        seeds[:, 0, -1] = directions
        return seeds


def trace(
    model: Any, request: TraceRequest, progress: Progress, basis: Basis | None = None
) -> TracedGraph:
    """A graph, in the basis of neurons unless there is another. Raises `NotTraceableError`, and
    `IncompleteError`."""
    tracing = Tracing(model, request, basis)
    chosen = tracing.choose()
    targets = len(chosen) + len(tracing.logits)
    progress(0, targets)
    weights = np.zeros((targets, tracing.first + targets), np.float32)
    totals = np.zeros(targets, np.float32)
    values = tracing.values(chosen)
    for here, rows in tracing.rows(chosen):
        _check_complete(rows, values[here])
        weights[here, : rows.weights.shape[1]] = rows.weights
        totals[here] = rows.totals
        progress(here.stop, targets)
    probabilities = tracing.probabilities.numpy()
    edges = Edges(weights, totals, probabilities)
    found = influence(edges)
    settings = request.settings
    kept = prune(edges, found, settings.node_threshold, settings.edge_threshold, tracing.tokens)
    numbers = np.cumsum(kept.nodes) - 1
    of_errors = kept.nodes[tracing.tokens : tracing.first]
    of_units = kept.nodes[tracing.first : -len(probabilities)]
    into, source = np.nonzero(kept.edges)
    errors = np.arange(tracing.errors)
    told = torch.stack([chosen.positions, chosen.layers, chosen.indices], 1).numpy()
    return TracedGraph(
        tokens=tracing.tokens,
        errors=np.stack([errors % tracing.tokens, errors // tracing.tokens], 1)[of_errors].astype(
            np.int32
        ),
        units=told[of_units].astype(np.int32),
        activations=values[: len(chosen)][of_units].astype(np.float32),
        logits=tracing.logits.numpy().astype(np.int32),
        probabilities=probabilities.astype(np.float32),
        influence=found[kept.nodes],
        sources=numbers[source].astype(np.uint32),
        targets=numbers[into + tracing.first].astype(np.uint32),
        weights=weights[into, source],
    )


def _check_complete(rows: Rows, values: np.ndarray) -> None:
    wrong = np.abs(rows.sums - values) > TOLERANCE * np.maximum(rows.totals, np.abs(values))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise IncompleteError(
            f"what is added to a node sums to {rows.sums[at]:.6g}, not to {values[at]:.6g}"
        )


def _likeliest(probabilities: Tensor, settings: TraceSettings) -> Tensor:
    """The tokens to trace, likeliest first."""
    found = probabilities.topk(min(settings.max_logits, len(probabilities)))
    enough = int((found.values.cumsum(0) < settings.logit_probability).sum()) + 1
    return found.indices[:enough]


def _parts(first: int, end: int, size: int) -> Iterator[Tensor]:
    """The numbers from `first` to before `end`, so many at a time."""
    for start in range(first, end, size):
        yield torch.arange(start, min(start + size, end))


def _gradients(outputs: Tensor, inputs: Sequence[Tensor], seeds: Tensor) -> Sequence[Tensor]:
    """The gradients of outputs, [targets, *inputs], for as many gradients by the outputs."""
    found = torch.autograd.grad(
        outputs,
        inputs,
        seeds,
        retain_graph=True,
        is_grads_batched=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [each.detach() for each in found]
