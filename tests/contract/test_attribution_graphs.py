"""AttributionGraphService over the wire: begun, watched, found again, and gone after a time."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from actserve.v1 import attribution_graph_service_pb2 as pb
from actserve.v1 import dictionary_service_pb2 as dictionary_pb
from actserve.v1 import model_service_pb2, site_pb2, work_pb2
from actserve_server.dictionaries.dictionary import LoadedDictionary
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.graphs import graph_work, transcoder_files
from actserve_server.graphs.fake_tracer import FakeTracer
from actserve_server.graphs.stored_graphs import GraphRegistry
from actserve_server.graphs.traced_graph import TraceRequest
from tests.contract.dictionaries import Sent, full, matrices, numbers, uploaded
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    decoded,
    eventually,
    failure,
    serving,
    site,
    write_tokens,
)
from tests.contract.refusals import WIDTH

NAME = "models/fake/attributionGraphs/capital"
_numbers = itertools.count()


def create(name: str = "capital", **changes: Any) -> pb.CreateAttributionGraphRequest:
    fields: dict[str, Any] = {
        "attribution_graph_id": name,
        "prompt": {"text": "the capital of"},
        "request_id": f"graph-{next(_numbers)}",
        **changes,
    }
    return pb.CreateAttributionGraphRequest(**fields)


def watch(served: Served, **options: Any) -> Any:
    return served.graphs.WatchAttributionGraph(
        pb.WatchAttributionGraphRequest(name=NAME), **options
    )


async def got(served: Served, name: str = NAME, **options: Any) -> pb.AttributionGraph:
    request = pb.GetAttributionGraphRequest(name=name)
    return (await served.graphs.GetAttributionGraph(request, **options)).attribution_graph


async def done(served: Served) -> pb.AttributionGraph:
    async def is_over() -> bool:
        return (await got(served)).work.state >= work_pb2.WORK_STATE_SUCCEEDED

    await eventually(is_over, 10)
    return await got(served)


def slow(served: Served, step_s: float = 60.0) -> FakeTracer:
    tracer = served.app.graphs.work.tracer
    assert isinstance(tracer, FakeTracer)
    tracer.step_s = step_s
    return tracer


async def test_a_graph_is_begun_made_and_told() -> None:
    async with serving() as served:
        begun = (await served.graphs.CreateAttributionGraph(create())).attribution_graph
        events = await collect(watch(served))
        made = await got(served)
    assert begun.name == NAME
    assert begun.settings.max_logits == 10
    assert (begun.settings.max_feature_nodes, begun.nodes) == (1000, 0)
    assert begun.expire_time.seconds - begun.create_time.seconds == 30 * 24 * 3600
    kinds = [each.WhichOneof("event") for each in events]
    assert kinds[0] == "progress"
    assert kinds[-3:] == ["nodes", "edges", "finished"]
    last = [each.progress for each in events if each.WhichOneof("event") == "progress"][-1]
    assert last.state == work_pb2.WORK_STATE_SUCCEEDED
    assert last.steps_done == last.steps > 0
    nodes = [node for each in events for node in each.nodes.nodes]
    (edges,) = [each.edges for each in events if each.WhichOneof("event") == "edges"]
    assert (made.nodes, made.edges) == (len(nodes), len(edges.sources))
    assert (
        list(made.prompt.ids)
        == [node.embedding.token_id for node in nodes][: len(begun.prompt.ids)]
    )
    assert decoded(edges.weights).shape == (made.edges,)
    assert (np.array(edges.sources) < np.array(edges.targets)).all()
    assert {each.WhichOneof("kind") for each in nodes} == {"embedding", "neuron", "logit"}


async def test_the_same_request_makes_one_graph_and_another_with_its_id_is_refused() -> None:
    async with serving() as served:
        request = create()
        one = await served.graphs.CreateAttributionGraph(request)
        again = await served.graphs.CreateAttributionGraph(request)
        other = create("other", request_id=request.request_id)
        reused = await failure(served.graphs.CreateAttributionGraph(other))
        taken = await failure(served.graphs.CreateAttributionGraph(create()))
    assert one.attribution_graph.name == again.attribution_graph.name
    assert reused.reason == "REQUEST_ID_REUSED"
    assert taken.reason == "RESOURCE_EXISTS"


async def test_graphs_are_listed_by_name_and_deleted() -> None:
    async with serving() as served:
        for name in ("b", "a", "c"):
            await served.graphs.CreateAttributionGraph(create(name))
        first = await served.graphs.ListAttributionGraphs(
            pb.ListAttributionGraphsRequest(page_size=2)
        )
        rest = await served.graphs.ListAttributionGraphs(
            pb.ListAttributionGraphsRequest(page_token=first.next_page_token)
        )
        gone = pb.DeleteAttributionGraphRequest(name="models/-/attributionGraphs/b")
        await served.graphs.DeleteAttributionGraph(gone)
        missing = await failure(served.graphs.DeleteAttributionGraph(gone))
    names = [each.name for each in (*first.attribution_graphs, *rest.attribution_graphs)]
    assert names == [f"models/fake/attributionGraphs/{each}" for each in "abc"]
    assert missing.reason == "RESOURCE_NOT_FOUND"
    assert missing.details["ResourceInfo"].resource_type == "actserve.v1.AttributionGraph"


async def test_a_lost_watcher_costs_nothing() -> None:
    async with serving() as served:
        slow(served, 0.01)
        await served.graphs.CreateAttributionGraph(create())
        call = watch(served)
        await call.read()
        call.cancel()
        assert (await done(served)).work.state == work_pb2.WORK_STATE_SUCCEEDED
        assert (await collect(watch(served)))[-1].WhichOneof("event") == "finished"


async def test_a_graph_that_is_deleted_while_it_is_told_does_not_seem_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = GraphRegistry.part

    async def deleted_after_one(self: GraphRegistry, key: int, number: int) -> bytes | None:
        if number:
            await self.delete("", "capital")
        return await part(self, key, number)

    async with serving() as served:
        await served.graphs.CreateAttributionGraph(create())
        await done(served)
        monkeypatch.setattr(GraphRegistry, "part", deleted_after_one)
        assert (await failure(watch(served))).reason == "RESOURCE_NOT_FOUND"


async def test_deleting_ends_the_work_and_the_next_graph_is_made() -> None:
    async with serving() as served:
        tracer = slow(served)
        await served.graphs.CreateAttributionGraph(create("first"))
        tracer.step_s = 0
        await served.graphs.CreateAttributionGraph(create())
        gone = pb.DeleteAttributionGraphRequest(name="models/fake/attributionGraphs/first")
        await served.graphs.DeleteAttributionGraph(gone)
        assert (await done(served)).work.state == work_pb2.WORK_STATE_SUCCEEDED


async def test_a_failure_is_told_where_it_was_watched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: FakeTracer, request: object, progress: object) -> None:
        raise graph_work.ended()

    monkeypatch.setattr(FakeTracer, "trace", broken)
    async with serving() as served:
        await served.graphs.CreateAttributionGraph(create())
        events = await collect(watch(served))
    assert [each.WhichOneof("event") for each in events][-2:] == ["progress", "finished"]
    told = events[-2].progress
    assert told.state == work_pb2.WORK_STATE_FAILED
    info = error_details_pb2.ErrorInfo()
    told.error.details[0].Unpack(info)
    assert info.reason == "DRAINING"


async def test_the_end_of_the_server_ends_the_work_and_is_told(tmp_path: Path) -> None:
    async with serving() as served:
        slow(served)
        await served.graphs.CreateAttributionGraph(create())
        await served.app.graphs.work.close()
        told = (await got(served)).work
    assert told.state == work_pb2.WORK_STATE_FAILED
    assert told.error.code == grpc.StatusCode.UNAVAILABLE.value[0]


async def test_work_of_a_server_that_was_killed_is_over_after_a_while() -> None:
    async with serving() as served:
        slow(served)
        await served.graphs.CreateAttributionGraph(create())
        parts = served.app.graphs
        for task in parts.work._tasks:  # As if it was killed.
            task.cancel()
        parts.work._jobs.clear()
        assert (await got(served)).work.state != work_pb2.WORK_STATE_FAILED
        parts.registry._lease_s = 0.0
        told = (await got(served)).work
    assert told.state == work_pb2.WORK_STATE_FAILED
    assert "the server ended" in told.error.message


async def test_work_that_ends_while_it_is_asked_for_is_not_told_as_that_of_a_dead_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    get = GraphRegistry.get

    async def made_meanwhile(self: GraphRegistry, *of: Any) -> Any:
        read = await get(self, *of)
        await eventually(lambda: not served.app.graphs.work._jobs)
        return read

    async with serving() as served:
        slow(served, 0.05)
        await served.graphs.CreateAttributionGraph(create())
        monkeypatch.setattr(GraphRegistry, "get", made_meanwhile)
        served.app.graphs.registry._lease_s = 0.0  # As if it was too busy to say that it lives.
        assert (await got(served)).work.state == work_pb2.WORK_STATE_SUCCEEDED


async def test_a_graph_is_gone_after_its_time() -> None:
    async with serving(max_graph_seconds=1) as served:
        await served.graphs.CreateAttributionGraph(create())
        await done(served)
        await asyncio.sleep(1.1)
        assert (await failure(watch(served))).reason == "RESOURCE_NOT_FOUND"
        registry: GraphRegistry = served.app.graphs.registry
        await registry.expire()
        # Its name and its request can be used again.
        await served.graphs.CreateAttributionGraph(create())


async def test_tenants_see_their_own_alone_and_readers_make_none(tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("one", "a", Role.EXPERIMENTER),
        ("two", "b", Role.EXPERIMENTER),
        ("low", "a", Role.READER),
    )
    async with serving(token_file=tokens, max_graphs=2) as served:
        one, two, low = map(bearing, ("one", "two", "low"))
        await served.graphs.CreateAttributionGraph(create(), metadata=one)
        full = await failure(served.graphs.CreateAttributionGraph(create("more"), metadata=one))
        unseen = await failure(watch(served, metadata=two))
        listed = await served.graphs.ListAttributionGraphs(
            pb.ListAttributionGraphsRequest(), metadata=low
        )
        refused = await failure(served.graphs.CreateAttributionGraph(create("x"), metadata=low))
        # The name is free to others.
        await served.graphs.CreateAttributionGraph(create(), metadata=two)
    assert full.reason == "STORE_QUOTA_EXCEEDED"
    assert unseen.reason == "RESOURCE_NOT_FOUND"
    assert len(listed.attribution_graphs) == 1
    assert refused.reason == "PERMISSION_DENIED"


async def test_a_graph_for_which_there_is_no_room_fails_and_stores_nothing() -> None:
    async with serving(max_graph_bytes=300) as served:
        await served.graphs.CreateAttributionGraph(create())
        made = await done(served)
    assert made.work.state == work_pb2.WORK_STATE_FAILED
    assert made.work.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_no_more_wait_than_may() -> None:
    async with serving() as served:
        slow(served)
        for number in range(graph_work.MAX_OWN_WAITING + 1):
            await served.graphs.CreateAttributionGraph(create(f"g{number}"))
        full = await failure(served.graphs.CreateAttributionGraph(create("more")))
    assert (full.reason, full.code) == ("QUEUE_FULL", grpc.StatusCode.UNAVAILABLE)


async def test_of_many_that_come_at_once_no_more_wait_than_may() -> None:
    async with serving() as served:
        slow(served)
        calls = [served.graphs.CreateAttributionGraph(create(f"g{number}")) for number in range(20)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
    # One of them is being made.
    begun = sum(isinstance(end, pb.CreateAttributionGraphResponse) for end in ends)
    assert begun <= graph_work.MAX_OWN_WAITING + 1


async def test_a_graph_is_made_that_was_stored_when_its_call_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored, go_on, begin = asyncio.Event(), asyncio.Event(), GraphRegistry.begin

    async def slowly(*of: Any) -> Any:
        made = await begin(*of)
        stored.set()
        await go_on.wait()
        return made

    monkeypatch.setattr(GraphRegistry, "begin", slowly)
    async with serving() as served:
        call = served.graphs.CreateAttributionGraph(create())
        await stored.wait()
        call.cancel()
        await asyncio.sleep(0.1)
        go_on.set()
        made = await done(served)
    assert made.work.state == work_pb2.WORK_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"request_id": ""}, "FIELD_REQUIRED", "request_id"),
        ({"prompt": {}}, "FIELD_REQUIRED", "prompt"),
        ({"prompt": {"text": "a" * 600}}, "PROMPT_TOO_LONG", "prompt"),
        ({"attribution_graph_id": "A"}, "FIELD_INVALID", "attribution_graph_id"),
        ({"dictionaries": ["models/fake/dictionaries/d"]}, "RESOURCE_NOT_FOUND", "dictionaries[0]"),
        ({"dictionaries": [""]}, "FIELD_REQUIRED", "dictionaries[0]"),
        ({"adapter": "models/fake/adapters/a"}, "FEATURE_NOT_SERVED", "adapter"),
        ({"model": "models/other"}, "MODEL_NOT_FOUND", "model"),
        *(
            ({"settings": {name: value}}, "FIELD_INVALID", f"settings.{name}")
            for name, values in {
                "max_logits": (0, 101),
                "max_feature_nodes": (0, 20_001),
                "logit_probability": (0, 1.5, float("nan")),
                "node_threshold": (-1, 1.5),
                "edge_threshold": (0, 2),
            }.items()
            for value in values
            if isinstance(value, float) or value >= 0
        ),
    ],
)
async def test_what_cannot_be_is_refused(changes: dict[str, Any], reason: str, field: str) -> None:
    async with serving() as served:
        refused = await failure(served.graphs.CreateAttributionGraph(create(**changes)))
        listed = await served.graphs.ListAttributionGraphs(pb.ListAttributionGraphsRequest())
    assert (refused.reason, refused.field) == (reason, field)
    assert not listed.attribution_graphs


LAYERS = 4
"""Of the fake model."""


def transcoder(layer: int, **about: Any) -> Sent:
    """One that reads and writes at a layer, with numbers of its own."""
    written = [site(layer, site_pb2.HOOK_POINT_MLP_OUT)]
    fields: dict[str, Any] = {
        "kind": dictionary_pb.DICTIONARY_KIND_TRANSCODER,
        "site": site(layer, site_pb2.HOOK_POINT_MLP_IN),
        "written_sites": written,
        "jump_relu": {},
        **about,
    }
    parts = matrices(skip=numbers(WIDTH, WIDTH, seed=40 + layer))
    return Sent(parts, f"layer-{layer}", fields)


async def test_features_of_transcoders_are_nodes_where_there_is_one_for_each_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed: list[list[LoadedDictionary]] = []
    folders: list[Path] = []
    traced = FakeTracer.trace

    async def noted(self: FakeTracer, request: TraceRequest, progress: Any) -> Any:
        folders.append(Path(request.transcoders))
        handed.append(transcoder_files.read(request.transcoders))
        return await traced(self, request, progress)

    monkeypatch.setattr(FakeTracer, "trace", noted)
    async with serving(max_dictionary_bytes=1 << 20) as served:
        for layer in range(LAYERS):
            await uploaded(served, transcoder(layer))
        names = [full(f"layer-{layer}") for layer in reversed(range(LAYERS))]
        request = create(dictionaries=names)
        begun = (await served.graphs.CreateAttributionGraph(request)).attribution_graph
        events = await collect(watch(served))
    assert list(begun.dictionaries) == names[::-1]
    assert begun.settings.max_feature_nodes == 7500
    kinds = {node.WhichOneof("kind") for event in events for node in event.nodes.nodes}
    assert kinds == {"embedding", "feature", "logit"}
    (read,) = handed
    assert len(read) == LAYERS
    for layer, each in enumerate(read):
        sent = transcoder(layer).parts
        np.testing.assert_array_equal(each.matrices.encoder, sent["encoder"])
        np.testing.assert_array_equal(each.matrices.skips[0], sent["skip"])
        rows = numbers(3, WIDTH, seed=9)
        expected = transcoder(layer).encoded(rows)
        np.testing.assert_allclose(each.encode(rows), expected, rtol=1e-4, atol=1e-4)
    assert not folders[0].exists()


@pytest.mark.parametrize(
    ("layers", "changes", "why"),
    [
        ([0, 1, 2], {}, "none reads layer 3"),
        ([0, 1, 2, 3, 0], {}, "there are more"),
        ([0, 1, 1], {}, "reads layer 1 as well"),
        ([0], {"site": site(0, site_pb2.HOOK_POINT_RESID_MID)}, "reads resid_mid.0"),
        ([0], {"written_sites": [site(1, site_pb2.HOOK_POINT_MLP_OUT)]}, "writes mlp_out.1"),
    ],
)
async def test_other_dictionaries_than_one_transcoder_for_each_layer_are_refused(
    layers: list[int], changes: dict[str, Any], why: str
) -> None:
    async with serving(max_dictionary_bytes=1 << 20) as served:
        for layer in {*layers}:
            await uploaded(served, transcoder(layer, **changes))
        names = [full(f"layer-{layer}") for layer in layers]
        refused = await failure(served.graphs.CreateAttributionGraph(create(dictionaries=names)))
    assert refused.reason == "FIELD_INVALID"
    assert refused.field.startswith("dictionaries")
    assert why in refused.message


async def test_a_dictionary_that_is_gone_when_its_turn_comes_fails_the_graph() -> None:
    async with serving(max_dictionary_bytes=1 << 20) as served:
        for layer in range(LAYERS):
            await uploaded(served, transcoder(layer))
        tracer = slow(served)
        await served.graphs.CreateAttributionGraph(create("first"))
        names = [full(f"layer-{layer}") for layer in range(LAYERS)]
        await served.graphs.CreateAttributionGraph(create(dictionaries=names))
        gone = dictionary_pb.DeleteDictionaryRequest(name=names[2])
        await served.dictionaries.DeleteDictionary(gone)
        tracer.step_s = 0
        first = pb.DeleteAttributionGraphRequest(name="models/fake/attributionGraphs/first")
        await served.graphs.DeleteAttributionGraph(first)
        made = await done(served)
    assert made.work.state == work_pb2.WORK_STATE_FAILED
    assert made.work.error.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_model_without_gates_says_that_it_has_no_graphs() -> None:
    async with serving(FakeEngine(architecture="GPT2LMHeadModel")) as served:
        refused = await failure(served.graphs.CreateAttributionGraph(create()))
        models = await served.models.ListModels(model_service_pb2.ListModelsRequest())
    assert refused.reason == "FEATURE_NOT_SERVED"
    assert model_service_pb2.FEATURE_ATTRIBUTION_GRAPHS not in models.models[0].features


@pytest.mark.parametrize("method", ["GetAttributionGraph", "DeleteAttributionGraph"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "FIELD_REQUIRED"),
        ("capital", "RESOURCE_NOT_FOUND"),
        ("models/other/attributionGraphs/capital", "RESOURCE_NOT_FOUND"),
    ],
)
async def test_a_name_that_is_none_is_not_found(method: str, name: str, reason: str) -> None:
    async with serving() as served:
        request = getattr(pb, f"{method}Request")(name=name)
        refused = await failure(getattr(served.graphs, method)(request))
    assert (refused.reason, refused.field) == (reason, "name")
