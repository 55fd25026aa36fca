"""ExplanationEdit: an edited explanation as a vector."""

from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import generation_service_pb2
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    Served,
    begin_drain,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    serving,
    site,
)
from tests.contract.nlas import Tiny, events_of, explain_text, texts

BOATS, TRAINS = "It is about boats.", "It is about trains."
EVERY = {"sites": [site(layer) for layer in range(4)]}


def edit(original: str = BOATS, edited: str = TRAINS, **fields: Any) -> dict[str, Any]:
    source = {key: fields.pop(key) for key in ("nla",) if key in fields}
    add = {"vector": {"edit": {"original": original, "edited": edited, **source}}}
    add |= {key: fields.pop(key) for key in ("coefficient", "relative") if key in fields}
    return intervention(site(1), add=add, **fields)


def addition(tiny: Tiny, **add: Any) -> dict[str, Any]:
    """The same as a vector."""
    vector = tiny.reconstructed(TRAINS) - tiny.reconstructed(BOATS)
    return intervention(site(1), add={"vector": inline(vector), **add})


async def rows_of(served: Served, interventions: list[Any]) -> np.ndarray:
    request = fetch("hello", capture=EVERY, interventions=interventions)
    found = matrices(await collect(served.generation.FetchActivations(request)))
    return np.stack([found[0, index][1] for index in range(4)])


@pytest.mark.parametrize(
    "options",
    [{}, {"coefficient": -2.5}, {"relative": True}, {"relative": True, "coefficient": 3.0}],
    ids=str,
)
async def test_an_edit_adds_what_the_texts_reconstruct_to_less_one_another(
    options: dict[str, Any],
) -> None:
    tiny = Tiny()
    async with serving(None, tiny.loaded()) as served:
        edited = await rows_of(served, [edit(**options)])
        added = await rows_of(served, [addition(tiny, **options)])
        plain = await rows_of(served, [])
    np.testing.assert_allclose(edited, added, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(edited[0], plain[0])
    assert not np.allclose(edited[1:], plain[1:], atol=0.1)


async def test_several_edits_and_vectors_apply_in_their_order() -> None:
    tiny = Tiny()
    last = {"positions": {"last": {}}}
    async with serving(None, tiny.loaded()) as served:
        edited = await rows_of(
            served, [edit(), intervention(site(1), zero={}, **last), edit(TRAINS, BOATS, **last)]
        )
        vector = tiny.reconstructed(TRAINS) - tiny.reconstructed(BOATS)
        plain = await rows_of(served, [])
    np.testing.assert_allclose(edited[1][-1], -vector, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(edited[1][:-1], plain[1][:-1] + vector, rtol=1e-4, atol=1e-4)


async def test_a_generation_is_steered_as_by_the_vector() -> None:
    tiny = Tiny()
    async with serving(None, tiny.loaded()) as served:
        request = generate(sampling={"max_tokens": 20, "temperature": 0}, interventions=[edit()])
        events = await collect(served.generation.Generate(request))
        request = generate(
            sampling={"max_tokens": 20, "temperature": 0}, interventions=[addition(tiny)]
        )
        expected = await collect(served.generation.Generate(request))
    assert [e.tokens.text for e in events if e.HasField("tokens")] == [
        e.tokens.text for e in expected if e.HasField("tokens")
    ]
    usage = events[-1].finished.usage
    both = len(BOATS) + len(TRAINS) + 2
    assert usage.prompt_tokens == expected[-1].finished.usage.prompt_tokens + both


async def test_a_text_is_explained_as_it_is_after_an_edit() -> None:
    tiny = Tiny()
    edited = await events_of(explain_text("hello", interventions=[edit()]), tiny)
    plain = await events_of(explain_text("hello"), tiny)
    assert len(texts(edited)) == 6
    assert all(one != other for one, other in zip(texts(edited), texts(plain), strict=True))
    assert edited[-1].finished.interventions[0].rows == 6


async def test_the_reconstructor_may_be_named() -> None:
    first, second = Tiny(id="first"), Tiny(id="second", head=np.eye(16, dtype=np.float32))
    async with serving(None, first.loaded(), second.loaded()) as served:
        rows = [
            await rows_of(served, [edit(nla=name)])
            for name in ("models/fake/nlas/first", "models/fake/nlas/second")
        ]
        vector = second.reconstructed(TRAINS) - second.reconstructed(BOATS)
        plain = await rows_of(served, [])
    assert not np.allclose(rows[0], rows[1])
    np.testing.assert_allclose(rows[1][1], plain[1] + vector, rtol=1e-4, atol=1e-4)


async def test_a_call_that_is_cancelled_while_a_vector_is_made_frees_its_runs() -> None:
    ar = FakeEngine(token_delay_s=60)
    nla = Tiny(ar=ar).loaded()
    async with serving(None, nla) as served:
        stream = served.generation.Generate(generate(interventions=[edit()]))
        await eventually(lambda: len(ar.counters.running) == 2)
        stream.cancel()
        await eventually(lambda: not ar.counters.running and nla.gate.calls == 0)
    assert served.engine.counters.started == 0


async def test_a_server_that_drains_makes_no_more_vectors() -> None:
    tiny = Tiny()
    async with serving(FakeEngine(token_delay_s=0.02), tiny.loaded()) as served:
        running = served.generation.Generate(generate(sampling={"max_tokens": 200}))
        await running.read()
        draining = await begin_drain(served)
        refused = await failure(served.generation.Generate(generate(interventions=[edit()])))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert tiny.ar is not None
        assert tiny.ar.counters.started == 0
        running.cancel()
        await draining


async def test_a_dead_reconstructor_fails_the_call_before_it_runs() -> None:
    tiny = Tiny()
    assert tiny.ar is not None
    tiny.ar.faults.dead = True
    async with serving(None, tiny.loaded()) as served:
        request = generation_service_pb2.GenerateRequest(
            prompt={"text": "hello"}, interventions=[edit()]
        )
        failed = await failure(served.generation.Generate(request))
    assert failed.reason == "ENGINE_DEAD"
    assert served.engine.counters.started == 0
