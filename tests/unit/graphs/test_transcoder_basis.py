"""In the basis of features too what is added to a node sums to it, with errors as sources."""

import numpy as np
import pytest
import torch

from actserve_server.dictionaries.dictionary import ActivationKind
from actserve_server.graphs.basis import NotTraceableError
from actserve_server.graphs.frozen_model import prepared
from actserve_server.graphs.traced_graph import TracedGraph, TraceRequest, TraceSettings
from actserve_server.graphs.tracing import Tracing, trace
from actserve_server.graphs.transcoder_basis import FrozenFeatures, TranscoderBasis
from tests.unit.graphs.random_transcoders import FEATURES, transcoder
from tests.unit.graphs.tiny_models import CONFIGS, LAYERS, tiny

PROMPT = (5, 17, 3, 88, 17)
KINDS = pytest.mark.parametrize(
    ("family", "activation", "skip"),
    [
        ("llama", ActivationKind.RELU, False),
        ("qwen3", ActivationKind.JUMP_RELU, True),
        ("gemma3", ActivationKind.TOP_K, False),
        ("gemma3", ActivationKind.RELU, True),
    ],
)


def request(**settings: float) -> TraceRequest:
    chosen = TraceSettings(**{"max_nodes": 10_000, "max_logits": 3, **settings})  # type: ignore[arg-type]
    return TraceRequest(token_ids=PROMPT, settings=chosen, transcoders="folder")


def basis(activation: ActivationKind, *, skip: bool) -> TranscoderBasis:
    return TranscoderBasis([transcoder(each, activation, skip=skip) for each in range(LAYERS)])


@KINDS
def test_what_features_errors_embeddings_and_biases_add_sums_to_a_node(
    family: str, activation: ActivationKind, skip: bool
) -> None:
    found = Tracing(prepared(tiny(CONFIGS[family])), request(), basis(activation, skip=skip))
    chosen = found.choose()
    assert found.errors == LAYERS * len(PROMPT)
    values = found.values(chosen)
    sums = np.concatenate([rows.sums for _, rows in found.rows(chosen)])
    np.testing.assert_allclose(sums, values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


@KINDS
def test_a_changed_feature_moves_its_neighbours_as_its_edges_say(
    family: str, activation: ActivationKind, skip: bool
) -> None:
    found = Tracing(prepared(tiny(CONFIGS[family])), request(), basis(activation, skip=skip))
    chosen = found.choose()
    weights = np.concatenate([rows.weights for _, rows in found.rows(chosen)])
    recorded = found.frozen.recorded
    here, positions, indices = chosen.of(0)
    added = np.abs(weights[:, found.first + here.start : found.first + here.stop]).sum(0)
    source = int(added.argmax())

    def run(factor: float) -> np.ndarray:
        outputs = []
        for layer, units in enumerate(recorded.units):
            activations = units.activations.clone()
            if layer == 0:
                activations[positions[source], indices[source]] *= factor
            assert units.error is not None
            outputs.append(units.write(activations) + units.error)
        with torch.no_grad():
            again = found.frozen.replay(recorded.embeddings, outputs)
            read = [
                units.read(again.states[layer][0])[chosen.of(layer)[1:]]
                for layer, units in enumerate(recorded.units)
            ]
            logits = again.final[0, -1] @ found.frozen.unembedding.T
        return torch.cat([*read, logits[found.logits] - logits.mean()]).numpy()

    said = 2 * weights[:, found.first + here.start + source]
    assert np.abs(said).max() > 0.01
    np.testing.assert_allclose(run(3) - run(1), said, rtol=1e-3, atol=1e-3 * np.abs(said).max())


def test_a_graph_has_active_features_and_the_errors_that_count() -> None:
    asked = request(max_nodes=60)
    found = trace(
        prepared(tiny(CONFIGS["qwen3"])),
        asked,
        lambda *_: None,
        basis(ActivationKind.RELU, skip=False),
    )
    assert TracedGraph.checked(found.arrays(), asked).edges == found.edges
    assert 0 < len(found.errors) <= LAYERS * len(PROMPT)
    assert (found.activations > 0).all()
    assert found.units[:, 2].max() < FEATURES
    first = found.tokens + len(found.errors)
    assert found.targets.min() >= first  # Nothing leads into an error.
    assert set(range(found.tokens, first)) <= set(found.sources.tolist())


def test_an_error_that_is_left_out_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(tiny(CONFIGS["llama"]))
    made = basis(ActivationKind.RELU, skip=False)
    original = FrozenFeatures.__init__

    def without(self: FrozenFeatures, *parts: object) -> None:
        original(self, *parts)  # type: ignore[arg-type]
        self.error = None

    monkeypatch.setattr(FrozenFeatures, "__init__", without)
    with pytest.raises(NotTraceableError, match="write something else"):
        Tracing(model, request(), made)


def test_a_layer_without_a_transcoder_is_refused() -> None:
    few = TranscoderBasis([transcoder(0, ActivationKind.RELU, skip=False)])
    with pytest.raises(NotTraceableError, match="layer 1"):
        Tracing(prepared(tiny(CONFIGS["llama"])), request(), few)
