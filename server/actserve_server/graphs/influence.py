"""How much each node of a graph counts, and which nodes and edges are left out.

As in circuit-tracer (its `graph.py`, by Hanna, Piotrowski, Lindsey and Ameisen, 2025), but that the
part of an edge is taken of all edges into its target, also of those from neurons that are no nodes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Edges into nodes of a graph whose nodes are numbered in causal order: sources first, which
    have none, then those that edges lead into."""

    weights: np.ndarray
    """float32 [targets, nodes]: what each node adds to each that edges lead into."""
    totals: np.ndarray
    """float32 [targets]: the sum of the absolute weights of all edges into each, also of those
    that come from no node here."""
    logits: np.ndarray
    """float32 [logits]: the probabilities of the predicted tokens, which are the last targets."""

    @property
    def nodes(self) -> int:
        return self.weights.shape[1]

    @property
    def first_target(self) -> int:
        """The number of the first node that edges lead into."""
        return self.nodes - len(self.weights)


def influence(edges: Edges) -> np.ndarray:
    """Of each node, float32 [nodes]: of a predicted token its probability; of another the sum, over
    the edges that leave it, of the target's influence times the edge's part of its total."""
    found = np.zeros(edges.nodes, np.float64)
    found[-len(edges.logits) :] = edges.logits
    for row in reversed(range(len(edges.weights))):
        total = edges.totals[row]
        node = edges.first_target + row
        if total > 0 and found[node] > 0:
            # Edges lead from lower numbers alone, so the influence of this node is complete.
            found[:node] += np.abs(edges.weights[row, :node]) * (found[node] / total)
    return found.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What is left of a graph."""

    nodes: np.ndarray
    """bool [nodes]."""
    edges: np.ndarray
    """bool [targets, nodes]."""


def prune(
    edges: Edges,
    influences: np.ndarray,
    node_threshold: float,
    edge_threshold: float,
    embeddings: int,
) -> Pruned:
    """Keeps the most influential nodes that have `node_threshold` of all influence together, and
    of the edges between them the most influential that have `edge_threshold` of theirs. Of the
    rest, a node stays only with an edge into it and one out of it, an error with the latter;
    embeddings, which are the first nodes, and predicted tokens always do."""
    first, logits = edges.first_target, edges.nodes - len(edges.logits)
    nodes = np.ones(edges.nodes, bool)
    # All but the predicted tokens, whose influence is given.
    nodes[:logits] = _most(influences[:logits], node_threshold)
    nodes[:embeddings] = True
    weights = np.where(nodes[first:, None] & nodes[None, :], edges.weights, 0)
    totals = np.abs(weights).sum(1)
    within = influence(Edges(weights, totals, edges.logits))
    share = within[first:] / np.where(totals > 0, totals, 1)
    scores = np.abs(weights) * share[:, None]
    kept = _most(scores.ravel(), edge_threshold).reshape(scores.shape) & (scores > 0)
    while True:
        used = np.asarray(kept[:, embeddings:logits].any(axis=0))
        used[first - embeddings :] &= kept[: logits - first].any(1)
        if not (nodes[embeddings:logits] & ~used).any():
            return Pruned(nodes, kept)
        nodes[embeddings:logits] &= used
        kept &= nodes[first:, None] & nodes[None, :]


def _most(values: np.ndarray, share: float) -> np.ndarray:
    """Which values, the largest first, have this share of their sum together."""
    order = np.argsort(-values, kind="stable")
    sums = np.cumsum(values[order], dtype=np.float64)
    found = np.zeros(len(values), bool)
    if len(sums) and sums[-1] > 0:
        enough = int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1
        found[order[:enough]] = True
    return found
