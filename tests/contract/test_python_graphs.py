"""The Python client's attribution graphs on the fake engine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

import actserve
from actserve import NotFound, Predict
from actserve.cli.app import app as cli
from actserve_server.graphs import graph_work
from actserve_server.graphs.fake_tracer import FakeTracer
from tests.client.test_graphs import SCHEMA
from tests.contract.dictionaries import uploaded
from tests.contract.harness import Served, serving
from tests.contract.test_attribution_graphs import LAYERS, transcoder

PROMPT = "the capital of"


def client_of(served: Served) -> actserve.AsyncClient:
    return actserve.AsyncClient(f"127.0.0.1:{served.app.port}")


async def test_a_graph_is_waited_for_found_again_and_deleted() -> None:
    async with serving() as served, client_of(served) as client:
        trace = await client.graphs.create(PROMPT, name="capital", max_logits=3, max_nodes=12)
        graph = await trace.wait()
        again = await client.graphs.get("capital")
        listed = [each.id async for each in client.graphs.list()]
        found = await client.graphs.tracing(graph.summary)
        await found.cancel()
        with pytest.raises(NotFound):
            await client.graphs.get("capital")
    assert trace.work.state == "succeeded"
    assert graph.id == "capital"
    assert listed == ["capital"]
    assert len(graph.logits) == 3
    assert 0 < len(graph.neurons) <= 12
    assert graph.summary.settings["max_nodes"] == 12
    assert again.nodes == graph.nodes
    assert [node.label for node in graph.nodes[: len(graph.tokens)]] == [*map(repr, graph.tokens)]
    np.testing.assert_array_equal(again.weights, graph.weights)
    jsonschema.validate(graph.to_neuronpedia(), SCHEMA)


async def test_why_a_graph_could_not_be_made_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: FakeTracer, request: object, progress: object) -> None:
        raise graph_work.ended()

    monkeypatch.setattr(FakeTracer, "trace", broken)
    async with serving() as served, client_of(served) as client:
        trace = await client.graphs.create(PROMPT, name="capital")
        with pytest.raises(actserve.Unavailable, match="the server ended"):
            await trace.wait()
        with pytest.raises(actserve.Unavailable, match="the server ended"):
            await client.graphs.get("capital")


async def test_a_test_sets_the_neurons_to_zero_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    async with serving() as served, client_of(served) as client:
        graph = await (await client.graphs.create(PROMPT)).wait()
        (node, *_) = graph.neurons
        fetch = client.fetch

        async def noted(prompts: Any, **options: Any) -> Any:
            asked.update(options)
            return await fetch(prompts, **options)

        monkeypatch.setattr(client, "fetch", noted)
        tested = await client.graphs.test(graph, [node])
        site = f"mlp_act.{node.layer}"
        plain, changed = await fetch([PROMPT, PROMPT], site, intervene=asked["intervene"])
        wanted = Predict(positions="last", token_ids=[each.token_id or 0 for each in graph.logits])
        before = (await fetch(PROMPT, predictions=wanted)).predictions["final_norm"]
    expected = plain[site].copy()
    expected[node.position, node.neuron] = 0
    assert plain[site][node.position, node.neuron] != 0
    np.testing.assert_allclose(changed[site], expected, atol=1e-6)
    np.testing.assert_array_equal(tested.logprobs_before, before.token_logprobs[0])
    change = tested.logprobs_after - tested.logprobs_before
    np.testing.assert_allclose(tested.measured, change - change.mean(), atol=1e-6)
    predicted = graph.predicted([node])
    np.testing.assert_allclose(tested.predicted, predicted - predicted.mean(), atol=1e-6)


async def test_features_are_ablated_by_taking_away_what_they_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    async with serving(max_dictionary_bytes=1 << 20) as served, client_of(served) as client:
        for layer in range(LAYERS):
            await uploaded(served, transcoder(layer))
        names = [f"layer-{layer}" for layer in range(LAYERS)]
        graph = await (await client.graphs.create(PROMPT, dictionaries=names)).wait()
        (node, *_) = graph.features
        fetch = client.fetch

        async def noted(prompts: Any, **options: Any) -> Any:
            asked.update(options)
            return await fetch(prompts, **options)

        monkeypatch.setattr(client, "fetch", noted)
        tested = await client.graphs.test(graph, [node])
        site = f"mlp_out.{node.layer}"
        plain, changed = await fetch([PROMPT, PROMPT], site, intervene=asked["intervene"])
    assert graph.summary.dictionaries == tuple(names)
    assert node.layer is not None
    assert node.feature is not None
    expected = plain[site].copy()
    decoder = transcoder(node.layer).parts["decoder"]
    expected[node.position] -= (node.activation or 0.0) * decoder[node.feature]
    np.testing.assert_allclose(changed[site], expected, rtol=1e-4, atol=1e-4)
    assert tested.nodes == (node,)


async def test_the_command_writes_a_graph_and_says_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    async with serving() as served:
        where = ["--server", f"127.0.0.1:{served.app.port}"]
        run = await asyncio.to_thread(
            CliRunner().invoke, cli, ["graph", PROMPT, "-o", str(path), "--test", "2", *where]
        )
        refused = await asyncio.to_thread(
            CliRunner().invoke, cli, ["graph", PROMPT, "-o", "graph.txt", *where]
        )
    assert run.exit_code == 0, run.output
    jsonschema.validate(json.loads(path.read_text("utf-8")), SCHEMA)
    assert "Attribution graph" in run.stdout
    assert "2 neurons ablated" in run.stdout
    assert refused.exit_code == 2
