"""Graphs of features are those of circuit-tracer, whose own code made the files of `files`.

Three things differ by definition, and each is seen here: circuit-tracer leaves out features and
errors of the first token, takes an edge's part of what is shown and not of all that is added, and
takes embeddings of Gemma 3 before they are scaled.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actserve_server.graphs.frozen_model import prepared
from actserve_server.graphs.influence import Edges, influence, prune
from actserve_server.graphs.traced_graph import TraceRequest, TraceSettings
from actserve_server.graphs.tracing import Tracing, Units
from actserve_server.graphs.transcoder_basis import TranscoderBasis
from tests.unit.graphs.circuit_tracer_cases import CASES, EDGES, LOGITS, NODES, PROMPT, Case
from tests.unit.graphs.tiny_models import CONFIGS, LAYERS, tiny

TOKENS, ERRORS = len(PROMPT), LAYERS * len(PROMPT)


@dataclass(frozen=True, eq=False)
class Both:
    """One case, in our order of nodes: tokens, errors, features, predicted tokens."""

    case: Case
    theirs: dict[str, np.ndarray]
    tracing: Tracing
    features: np.ndarray
    """Layer, position and index of circuit-tracer's features, [features, 3]."""
    order: np.ndarray
    """Of each of our nodes its number there."""

    def units(self) -> Units:
        return Units(*torch.from_numpy(self.features).T.contiguous())

    def their_weights(self) -> np.ndarray:
        """[features and predicted tokens, nodes]."""
        return self.theirs["adjacency_matrix"][np.ix_(self.order[TOKENS + ERRORS :], self.order)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.family)
def both(request: pytest.FixtureRequest) -> Both:
    case: Case = request.param
    theirs = load_file(case.file)
    features = theirs["active_features"]
    first = len(features)
    order = [
        np.arange(first + ERRORS, first + ERRORS + TOKENS),
        np.arange(first, first + ERRORS),
        np.arange(first),
        np.arange(first + ERRORS + TOKENS, len(theirs["adjacency_matrix"])),
    ]
    asked = TraceRequest(
        token_ids=PROMPT,
        settings=TraceSettings(max_nodes=10_000, max_logits=LOGITS),
        transcoders="folder",
    )
    basis = TranscoderBasis([case.transcoder(layer) for layer in range(LAYERS)])
    tracing = Tracing(prepared(tiny(CONFIGS[case.family])), asked, basis)
    return Both(case, theirs, tracing, features, np.concatenate(order))


def test_nodes_are_the_same_but_for_the_first_token(both: Both) -> None:
    active = [
        [layer, *at]
        for layer, units in enumerate(both.tracing.frozen.recorded.units)
        for at in units.activations.nonzero().tolist()
    ]
    assert any(position == 0 for _, position, _ in active)
    assert both.features.tolist() == [each for each in active if each[1] > 0]
    ours = both.tracing.values(both.units())
    np.testing.assert_allclose(
        ours[: len(both.features)], both.theirs["activation_values"], rtol=1e-4, atol=1e-5
    )
    assert both.tracing.logits.tolist() == both.theirs["logit_tokens"].tolist()
    np.testing.assert_allclose(
        both.tracing.probabilities, both.theirs["logit_probabilities"], rtol=1e-4
    )


def test_nodes_that_are_chosen_are_those_that_reach_a_predicted_token(both: Both) -> None:
    """circuit-tracer has all that are active, and gives no influence to the others."""
    chosen = both.tracing.choose()
    ours = torch.stack([chosen.layers, chosen.positions, chosen.indices], 1).tolist()
    reaching = both.theirs["node_influence"][: len(both.features)] > 0
    assert [each for each in ours if each[1] > 0] == both.features[reaching].tolist()


def test_edges_are_the_same(both: Both) -> None:
    ours = np.concatenate([rows.weights for _, rows in both.tracing.rows(both.units())])
    theirs = both.their_weights()[:, : ours.shape[1]].copy()
    assert np.count_nonzero(theirs) > 500
    # A token's embedding is scaled in Gemma 3 before anything reads it, which circuit-tracer's
    # weights of a token lack.
    if both.case.family == "gemma3":
        theirs[:, :TOKENS] *= math.sqrt(CONFIGS["gemma3"].hidden_size)
    # What the MLPs left out at the first token is a source here alone.
    of_first = [TOKENS * (1 + layer) for layer in range(LAYERS)]
    assert not theirs[:, of_first].any()
    assert ours[:, of_first].any()
    theirs[:, of_first] = ours[:, of_first]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6 * np.abs(theirs).max())


def test_influence_and_pruning_of_the_same_edges_are_the_same(both: Both) -> None:
    """Of all that leads into a node, what is shown: ours takes also what is not shown."""
    weights = both.their_weights()
    edges = Edges(weights, np.abs(weights).sum(1), both.theirs["logit_probabilities"])
    found = influence(edges)
    # Of a predicted token circuit-tracer tells what leaves it, which is nothing.
    shown = both.order[:-LOGITS]
    np.testing.assert_allclose(
        found[:-LOGITS], both.theirs["node_influence"][shown], rtol=1e-3, atol=1e-6
    )
    kept = prune(edges, found, NODES, EDGES, TOKENS)
    assert not kept.nodes.all()
    assert kept.nodes.tolist() == both.theirs["node_mask"][both.order].tolist()
    into = both.order[TOKENS + ERRORS :]
    np.testing.assert_array_equal(kept.edges, both.theirs["edge_mask"][np.ix_(into, both.order)])
