"""Attribution graphs in the client: what they say, and how they are written for viewers."""

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from actserve import AttributionGraph, GraphNode, GraphSummary, GraphTest, InvalidRequest
from actserve.cli.graph import to_ablate
from actserve.errors import BadResponse
from actserve.graphs import graph_from_proto
from actserve.monitor_fits import Work
from actserve.v1 import attribution_graph_service_pb2 as pb

SCHEMA = json.loads(
    (Path(__file__).parent / "files/neuronpedia_graph.schema.json").read_text("utf-8")
)
SUMMARY = GraphSummary(
    name="models/fake/attributionGraphs/capital",
    tokens=("The", " capital"),
    token_ids=(3, 8),
    dictionaries=(),
    settings={
        "max_logits": 10,
        "logit_probability": 0.95,
        "max_nodes": 100,
        "node_threshold": 0.8,
        "edge_threshold": 0.98,
    },
    work=Work("succeeded", 4, 4, None),
    nodes=6,
    edges=6,
    created=datetime(2026, 1, 1, tzinfo=timezone.utc),
    expires=datetime(2026, 2, 1, tzinfo=timezone.utc),
)


def neuron(index: int, layer: int, which: int, activation: float) -> GraphNode:
    return GraphNode(
        index=index,
        kind="neuron",
        position=1,
        influence=0.1 * index,
        label=f"mlp_act.{layer}[{which}]",
        layer=layer,
        neuron=which,
        activation=activation,
    )


def logit(index: int, token_id: int, probability: float) -> GraphNode:
    return GraphNode(
        index=index,
        kind="logit",
        position=1,
        influence=probability,
        label=f"→ {token_id!r}",
        token_id=token_id,
        probability=probability,
    )


def embedding(index: int, token_id: int) -> GraphNode:
    return GraphNode(
        index=index,
        kind="embedding",
        position=index,
        influence=0.5,
        label=repr(SUMMARY.tokens[index]),
        token_id=token_id,
    )


# Two neurons in a row before two tokens, one of which the first neuron also reaches by itself.
GRAPH = AttributionGraph(
    SUMMARY,
    (
        embedding(0, 3),
        embedding(1, 8),
        neuron(2, 0, 7, 2.0),
        neuron(3, 4, 5, -4.0),
        logit(4, 11, 0.6),
        logit(5, 12, 0.2),
    ),
    np.array([0, 1, 2, 2, 3, 3]),
    np.array([2, 2, 3, 4, 4, 5]),
    np.array([1.5, 0.5, -1.0, 0.25, 3.0, -2.0], np.float32),
)


def test_what_ablating_does_is_the_sum_over_all_paths() -> None:
    # Without the first neuron the second has a quarter less of its activation.
    np.testing.assert_allclose(GRAPH.predicted([2]), [-0.25 - 3.0 * 0.25, 2.0 * 0.25], rtol=1e-6)
    np.testing.assert_allclose(GRAPH.predicted([3]), [-3.0, 2.0])
    # With both at zero nothing is left for the first to do to the second.
    np.testing.assert_allclose(GRAPH.predicted(GRAPH.neurons), [-3.25, 2.0])


@pytest.mark.parametrize("node", [0, 4, 6, -1, True, "2"])
def test_only_a_neuron_of_the_graph_can_be_ablated(node: int) -> None:
    with pytest.raises(InvalidRequest):
        GRAPH.predicted([node])


def test_neighbours_are_told_the_largest_first() -> None:
    assert [(node.index, weight) for node, weight in GRAPH.into(GRAPH.logits[0])] == [
        (3, 3.0),
        (2, 0.25),
    ]
    assert [node.index for node, _ in GRAPH.out_of(2)] == [3, 4]
    assert [node.index for node in GRAPH.neurons] == [3, 2]


def test_influence_by_token_is_a_share_without_that_of_predictions() -> None:
    np.testing.assert_allclose(GRAPH.influence_by_token(), [1 / 3, 2 / 3], rtol=1e-6)


def test_the_command_ablates_attention_sinks_only_where_there_is_nothing_else() -> None:
    sink, other = replace(neuron(2, 0, 5, 1.0), position=0), neuron(3, 1, 7, 2.0)
    assert to_ablate([sink, other], 2) == [other]
    assert to_ablate([sink], 2) == [sink]
    assert to_ablate([sink, other], 0) == []


def test_groups_add_the_edges_between_them() -> None:
    found = GRAPH.grouped({"inner": [2, 3], "out": GRAPH.logits})
    assert found[0] == ("'The' at 0", "inner", 1.5)
    assert ("inner", "out", 1.25) in found
    with pytest.raises(InvalidRequest, match="two supernodes"):
        GRAPH.grouped({"one": [2], "two": [2]})


def test_what_is_written_is_what_neuronpedia_reads(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    made = GRAPH.to_neuronpedia(path, supernodes={"inner": [2, 3]})
    assert json.loads(path.read_text("utf-8")) == made
    jsonschema.validate(made, SCHEMA)
    nodes = {node["node_id"]: node for node in made["nodes"]}
    assert len(nodes) == len(GRAPH.nodes)
    assert {link[end] for link in made["links"] for end in ("source", "target")} <= nodes.keys()
    assert made["qParams"]["supernodes"] == [["inner", "0_7_1", "4_5_1"]]
    # Layer 4 and index 5 by Cantor's numbers; logits come after the last layer.
    assert nodes["4_5_1"]["feature"] == 9 * 10 // 2 + 5
    assert nodes["6_11_1"]["clerp"] == "Output 11 (p=0.600)"
    assert nodes["E_3_0"]["feature_type"] == "embedding"
    assert [node["is_target_logit"] for node in made["nodes"]].count(True) == 1


def test_the_schema_refuses_what_is_no_graph() -> None:
    made = GRAPH.to_neuronpedia()
    for broken in (
        {**made, "nodes": [{**made["nodes"][0], "feature_type": "neuron"}]},
        {**made, "links": [{"source": "E_3_0", "target": "0_7_1"}]},
        {key: value for key, value in made.items() if key != "qParams"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_graphs_and_tests_of_them_can_be_looked_at() -> None:
    assert "mlp_act.4[5]" in GRAPH._repr_html_()
    change = np.array([-1.0, 1.0], np.float32)
    tested = GraphTest(GRAPH, GRAPH.neurons, change, 2 * change, change, change)
    assert tested.correlation == pytest.approx(1)
    assert "Correlation 1.000" in tested._repr_html_()
    assert np.isnan(replace(tested, predicted=0 * change).correlation)


def test_features_and_errors_have_names_of_their_own() -> None:
    told = [
        pb.AttributionNode(embedding={"token_id": 3}),
        pb.AttributionNode(reconstruction_error={"dictionary_index": 0}, position=1),
        pb.AttributionNode(feature={"dictionary_index": 0, "feature_index": 1, "activation": 2}),
        pb.AttributionNode(logit={"token_id": 5, "probability": 1}, position=1),
    ]
    edges = pb.AttributionEdges(
        sources=[1, 2],
        targets=[2, 3],
        weights={
            "element_type": "ELEMENT_TYPE_F32",
            "shape": [2],
            "data": np.array([0.5, 1.5], "<f4").tobytes(),
        },
    )
    summary = replace(SUMMARY, nodes=4, dictionaries=("zero",))
    graph = graph_from_proto(summary, told, [edges], {5: " x"})
    assert [node.label for node in graph.nodes] == [
        "'The'",
        "error of zero",
        "zero[1]",
        "→ ' x'",
    ]
    np.testing.assert_allclose(graph.predicted(graph.features), [-1.5])
    made = graph.to_neuronpedia()
    jsonschema.validate(made, SCHEMA)
    assert len({node["node_id"] for node in made["nodes"]}) == 4
    assert made["metadata"]["transcoder_list"] == ["zero"]
    with pytest.raises(InvalidRequest, match="kind error"):
        graph.predicted([1])
    with pytest.raises(BadResponse, match="dictionary 0"):
        graph_from_proto(replace(summary, dictionaries=()), told, [edges], {})


@pytest.mark.parametrize(
    "edges",
    [
        pb.AttributionEdges(sources=[0], targets=[1]),
        pb.AttributionEdges(
            sources=[1],
            targets=[0],
            weights={"element_type": "ELEMENT_TYPE_F32", "shape": [1], "data": bytes(4)},
        ),
        pb.AttributionEdges(
            sources=[0],
            targets=[9],
            weights={"element_type": "ELEMENT_TYPE_F32", "shape": [1], "data": bytes(4)},
        ),
    ],
)
def test_a_graph_that_does_not_fit_together_is_no_answer(edges: pb.AttributionEdges) -> None:
    nodes = [pb.AttributionNode(embedding={"token_id": 3}, position=at) for at in (0, 1)]
    with pytest.raises(BadResponse):
        graph_from_proto(replace(SUMMARY, nodes=2), nodes, [edges], {})
