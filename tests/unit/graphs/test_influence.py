"""Influence, and what is left out by it, of a graph that is computed by hand."""

import numpy as np

from actserve_server.graphs.influence import Edges, influence, prune

# Two embeddings (0, 1), two neurons (2, 3), one predicted token (4).
WEIGHTS = np.array(
    [
        [3.0, -1.0, 0.0, 0.0, 0.0],  # Into 2, all that there is.
        [1.0, 0.0, 1.0, 0.0, 0.0],  # Into 3; as much again comes from no node.
        [0.0, 0.0, 6.0, -2.0, 0.0],  # Into 4, all that there is.
    ],
    np.float32,
)
EDGES = Edges(WEIGHTS, np.array([4, 4, 8], np.float32), np.array([0.5], np.float32))


def test_influence_is_shared_by_absolute_weight_along_every_path() -> None:
    third = 0.5 * 2 / 8
    second = 0.5 * 6 / 8 + third * 1 / 4
    np.testing.assert_allclose(
        influence(EDGES), [second * 3 / 4 + third / 4, second / 4, second, third, 0.5]
    )


def test_all_stays_where_all_influence_is_wanted() -> None:
    kept = prune(EDGES, influence(EDGES), 1, 1, 2)
    assert kept.nodes.all()
    np.testing.assert_array_equal(kept.edges, WEIGHTS != 0)


def test_the_least_influential_neuron_goes_first_and_its_edges_with_it() -> None:
    kept = prune(EDGES, influence(EDGES), 0.7, 1, 2)
    assert kept.nodes.tolist() == [True, True, True, False, True]
    assert not kept.edges[:, 3].any()
    assert not kept.edges[1].any()


def test_the_least_influential_edge_goes_first() -> None:
    kept = prune(EDGES, influence(EDGES), 1, 0.9, 2)
    assert kept.edges.sum() < (WEIGHTS != 0).sum()
    assert kept.edges[2, 2]


def test_a_neuron_without_an_edge_into_it_goes() -> None:
    kept = prune(EDGES, influence(EDGES), 1, 0.75, 2)
    assert kept.nodes.tolist() == [True, True, True, False, True]


def test_nothing_is_lost_where_nothing_leads_to_the_logit() -> None:
    edges = Edges(np.zeros((3, 5), np.float32), np.zeros(3, np.float32), EDGES.logits)
    assert influence(edges).tolist() == [0, 0, 0, 0, 0.5]
    kept = prune(edges, influence(edges), 0.8, 0.98, 2)
    assert kept.nodes.tolist() == [True, True, False, False, True]
