"""What is added to a node sums to it, and edges say what a change of their source does."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from actserve_server.graphs.basis import NotTraceableError
from actserve_server.graphs.frozen_model import prepared
from actserve_server.graphs.neuron_basis import GatedNeurons
from actserve_server.graphs.traced_graph import TracedGraph, TraceRequest, TraceSettings
from actserve_server.graphs.tracing import IncompleteError, Tracing, Units, trace
from tests.unit.graphs.tiny_models import CONFIGS, LAYERS, other_kind, tiny

PROMPT = (5, 17, 3, 88, 17, 3, 41)
ALL = 10_000
"""More than there are neurons."""
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def request(**settings: Any) -> TraceRequest:
    return TraceRequest(token_ids=PROMPT, settings=TraceSettings(**settings))


def tracing(family: str, **settings: float) -> Tracing:
    return Tracing(prepared(tiny(CONFIGS[family])), request(**settings))


def rows(found: Tracing, chosen: Units) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    for here, made in found.rows(chosen):
        yield here, made.weights, made.sums


@FAMILIES
def test_what_is_added_to_a_node_and_biases_sum_to_it(family: str) -> None:
    found = tracing(family, max_nodes=200)
    chosen = found.choose()
    values = found.values(chosen)
    sums = np.concatenate([each for _, _, each in rows(found, chosen)])
    np.testing.assert_allclose(sums, values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


@FAMILIES
def test_without_biases_all_neurons_and_embeddings_are_all_that_there_is(family: str) -> None:
    found = tracing(family, max_nodes=ALL)
    chosen = found.choose()
    values = found.values(chosen)
    sums = np.concatenate([each.sum(1) for _, each, _ in rows(found, chosen)])
    if family in ("llama", "qwen2"):  # Those have biases.
        assert not np.allclose(sums, values, rtol=1e-2)
    else:
        np.testing.assert_allclose(sums, values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


@FAMILIES
def test_a_changed_neuron_moves_its_neighbours_as_its_edges_say(family: str) -> None:
    found = tracing(family, max_nodes=ALL)
    chosen = found.choose()
    weights = np.concatenate([each for _, each, _ in rows(found, chosen)])
    recorded = found.frozen.recorded
    here, positions, indices = chosen.of(0)
    source = here.start + int(
        torch.argmax(
            torch.from_numpy(np.abs(weights).sum(0))[
                found.first + here.start : found.first + here.stop
            ]
        )
    )
    activations = [units.activations.clone() for units in recorded.units]
    activations[0][positions[source], indices[source]] *= 3

    def run(parts: list[torch.Tensor]) -> np.ndarray:
        outputs = [units.write(part) for units, part in zip(recorded.units, parts, strict=True)]
        with torch.no_grad():
            again = found.frozen.replay(recorded.embeddings, outputs)
            read = [
                units.read(again.states[layer][0])[chosen.of(layer)[1:]]
                for layer, units in enumerate(recorded.units)
            ]
            logits = again.final[0, -1] @ found.frozen.unembedding.T
        return torch.cat([*read, logits[found.logits] - logits.mean()]).numpy()

    moved = run(activations) - run([units.activations for units in recorded.units])
    said = 2 * weights[:, found.first + source]
    assert np.abs(said).max() > 0.01
    np.testing.assert_allclose(moved, said, rtol=1e-3, atol=1e-3 * np.abs(said).max())


def test_the_whole_graph_holds_what_it_says() -> None:
    steps: list[tuple[int, int]] = []
    asked = request(max_nodes=100, max_logits=3)
    graph = trace(prepared(tiny(CONFIGS["qwen3"])), asked, lambda *step: steps.append(step))
    assert TracedGraph.checked(graph.arrays(), asked).arrays().keys() == graph.arrays().keys()
    assert steps[0] == (0, steps[-1][1])
    assert steps[-1][0] == steps[-1][1]
    assert 0 < len(graph.units) <= 100
    assert len(graph.logits) == 3
    first_logit = graph.nodes - 3
    np.testing.assert_allclose(graph.influence[first_logit:], graph.probabilities)
    inner = range(len(PROMPT), first_logit)
    assert set(inner) <= set(graph.sources.tolist()) & set(graph.targets.tolist())
    assert (np.diff(graph.units[:, 1]) >= 0).all()


def test_a_smaller_share_keeps_fewer_nodes_and_edges() -> None:
    model = prepared(tiny(CONFIGS["llama"]))

    def size(**settings: float) -> tuple[int, int]:
        graph = trace(model, request(max_nodes=150, **settings), lambda *_: None)
        return graph.nodes, graph.edges

    whole, fewer = size(node_threshold=1, edge_threshold=1), size(node_threshold=0.5)
    sparse = size(node_threshold=1, edge_threshold=0.5)
    assert fewer < whole
    assert sparse[1] < whole[1]


def test_likely_tokens_are_traced_until_they_are_likely_enough() -> None:
    every = tracing("llama", logit_probability=1, max_logits=50)
    shares = every.probabilities.cumsum(0)
    assert (every.probabilities.diff() <= 0).all()
    some = tracing("llama", logit_probability=float(shares[2]) - 1e-6, max_logits=50)
    assert some.logits.tolist() == every.logits[:3].tolist()


def test_a_model_without_gates_is_refused() -> None:
    with pytest.raises(NotTraceableError):
        Tracing(prepared(other_kind()), request())


def test_a_model_with_something_else_that_is_not_linear_is_refused() -> None:
    model = tiny(CONFIGS["llama"])
    projection = model.base_model.layers[1].self_attn.o_proj
    original = projection.forward
    projection.forward = lambda state: original(state).relu()
    with pytest.raises(NotTraceableError, match="layer 1 is not linear"):
        Tracing(prepared(model), request())


def test_a_sum_that_lacks_something_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GatedNeurons.written
    monkeypatch.setattr(GatedNeurons, "written", lambda self, found: 0.9 * whole(self, found))
    with pytest.raises(IncompleteError):
        trace(prepared(tiny(CONFIGS["llama"])), request(), lambda *_: None)


def test_a_layer_without_a_chosen_neuron_is_passed_by() -> None:
    found = tracing("llama", max_nodes=1)
    chosen = found.choose()
    assert [here.stop for here, _, _ in rows(found, chosen)] == [1, 1 + len(found.logits)]


def test_every_layer_has_units() -> None:
    assert len(tracing("gemma3").frozen.recorded.units) == LAYERS
