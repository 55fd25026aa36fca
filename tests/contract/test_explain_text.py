"""ExplainText: what is explained are the rows that FetchActivations would give."""

from typing import Any

import grpc
import numpy as np
import pytest

from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import BOS, FakeEngine
from tests.contract.harness import (
    begin_drain,
    collect,
    eventually,
    failure,
    fetch,
    inline,
    intervention,
    kinds,
    matrices,
    serving,
    site,
)
from tests.contract.nlas import (
    GREEDY,
    MAX_TOKENS,
    WIDTH,
    Tiny,
    events_of,
    explain,
    explain_text,
    explanations,
    texts,
)
from tests.contract.readouts import kept

VECTOR = np.full(WIDTH, 2.0)


def steer(**fields: Any) -> dict[str, Any]:
    return intervention(site(0), add={"vector": inline(VECTOR)}, **fields)


CASES: list[dict[str, Any]] = [
    {},
    {"positions": {"last": {}}},
    {"positions": {"list": {"positions": [-1, 1, 3]}}},
    {"positions": {"text": {"text": "ll"}}},
    {"positions": {"prompt": {}}},
    {"positions": {"token_ids": {"ids": [ord("l")]}}},
    {"prompt": {"token_ids": {"ids": [5, 6, 7]}}},
    {"prompt": {"conversation": {"turns": [{"role": "user", "content": "hi"}]}}},
    {"interventions": [steer()]},
    {"interventions": [steer(positions={"last": {}})], "positions": {"last": {}}},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16])
async def test_it_explains_the_rows_that_a_fetch_gives(
    fields: dict[str, Any], element_type: ElementType
) -> None:
    prompt = fields.get("prompt", {"text": "hello"})
    fetched = fetch(
        prompts=[prompt],
        interventions=fields.get("interventions", ()),
        capture={"sites": [site()], "positions": fields.get("positions")},
    )
    fake, tiny = FakeEngine(element_type=element_type), Tiny(prefill="Yes.")
    async with serving(fake, tiny.loaded()) as served:
        positions, rows = matrices(await collect(served.generation.FetchActivations(fetched)))[0, 0]
        direct = await collect(
            served.explanations.ExplainActivations(explain(rows, positions=positions))
        )
        events = await collect(served.explanations.ExplainText(explain_text(**fields)))
    assert explanations(events) == explanations(direct)
    assert list(events[0].started.positions) == positions
    assert events[0].started.rows == len(positions)


async def test_the_stream_opens_with_the_prompt_as_the_model_sees_it() -> None:
    events = await events_of(explain_text("hi", model="models/fake", nla="models/fake/nlas/tiny"))
    assert kinds(events) == ["started", *["explanation"] * 3, "finished"]
    started = events[0].started
    assert list(started.prompt.ids) == [BOS, *b"hi"]
    assert list(started.prompt.texts) == ["<bos>", "h", "i"]
    assert (started.nla, started.site.layer) == ("models/fake/nlas/tiny", 1)
    assert started.call_id


async def test_the_end_tells_what_interventions_did_and_what_was_consumed() -> None:
    tiny = Tiny()
    edits = [steer(), steer(positions={"last": {}})]
    events = await events_of(explain_text("hello", interventions=edits), tiny)
    finished = events[-1].finished
    assert [report.rows for report in finished.interventions] == [6, 1]
    assert [report.changed_rows for report in finished.interventions] == [6, 1]
    assert finished.usage.prompt_tokens == 6 + 6 * len(tiny.prompt().ids)
    assert finished.usage.output_tokens == 6 * MAX_TOKENS
    assert finished.usage.activation_bytes == 0, "no row travels"


async def test_kept_rows_can_be_patched_in() -> None:
    async with serving(None, Tiny().loaded()) as served:
        request = fetch("world", capture={"sites": [site(1)], "keep": {}})
        events = await collect(served.generation.FetchActivations(request))
        patch = intervention(site(1), replace={"rows": {"kept": {"name": kept(events)[0]}}})
        stub = served.explanations
        patched = await collect(stub.ExplainText(explain_text("hello", interventions=[patch])))
        world = await collect(stub.ExplainText(explain_text("world")))
        hello = await collect(stub.ExplainText(explain_text("hello")))
    # The row of BOS is the same in both.
    assert texts(patched) == texts(world)
    assert texts(patched)[1:] != texts(hello)[1:]


async def test_sampling_and_scores_are_those_of_explaining_rows() -> None:
    spec = {"samples": 2, "seed": 4, "score": True, "neighbor_distance": 1, "max_tokens": 5}
    events = await events_of(explain_text("hi", spec=spec), Tiny(prefill="It is about boats."))
    found = explanations(events)
    assert len(found) == 6
    for item in found.values():
        assert item.HasField("score")
        assert item.output_tokens == 5
        assert item.claims[0].recurrence > 0


@pytest.mark.parametrize(
    ("fake", "interventions", "reason", "says"),
    [
        (
            FakeEngine(),
            [intervention(site(1), zero={}, positions={"list": {"positions": [2, 4]}})],
            "TENSOR_DEGENERATE",
            "resid_post.1 at position 2 is zero",
        ),
        (
            FakeEngine(element_type=ElementType.F16),
            [
                intervention(
                    site(1),
                    add={"vector": inline(np.full(WIDTH, 6e4))},
                    positions={"list": {"positions": [3]}},
                )
            ]
            * 2,
            "TENSOR_NOT_FINITE",
            "resid_post.1 at position 3 is not finite",
        ),
    ],
    ids=["zero", "infinite"],
)
async def test_a_row_that_cannot_be_explained_is_refused_with_its_position(
    fake: FakeEngine, interventions: list[Any], reason: str, says: str
) -> None:
    tiny = Tiny()
    async with serving(fake, tiny.loaded()) as served:
        request = explain_text("hello", interventions=interventions)
        refused = await failure(served.explanations.ExplainText(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert refused.field == "positions"
    assert says in refused.message
    assert tiny.av is not None
    assert tiny.av.counters.started == 0


async def test_an_intervention_that_may_go_unused_is_reported_all_the_same() -> None:
    unused = steer(positions={"token_ids": {"ids": [0]}}, allow_unused=True)
    events = await events_of(explain_text("hello", interventions=[unused]))
    assert [report.rows for report in events[-1].finished.interventions] == [0]


async def test_a_failing_model_ends_the_call_before_anything_is_explained() -> None:
    fake, tiny = FakeEngine(), Tiny()
    fake.faults.incomplete = True
    async with serving(fake, tiny.loaded()) as served:
        stream = served.explanations.ExplainText(explain_text("hello"))
        failed = await failure(stream)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "CAPTURE_INCOMPLETE")
    assert tiny.av is not None
    assert tiny.av.counters.started == 0


async def test_cancelling_while_rows_are_captured_frees_the_run() -> None:
    fake = FakeEngine(token_delay_s=60)
    async with serving(fake, Tiny().loaded()) as served:
        stream = served.explanations.ExplainText(explain_text("hello"))
        await eventually(lambda: len(fake.counters.running) == 1)
        stream.cancel()
        await eventually(lambda: not fake.counters.running and served.app.engine.running == 0)


async def test_a_queue_that_is_full_refuses_before_anything_is_sent() -> None:
    fake = FakeEngine(token_delay_s=60)
    async with serving(fake, Tiny().loaded(), max_running=1, max_queue=0) as served:
        running = served.explanations.ExplainText(explain_text("hello"))
        await eventually(lambda: len(fake.counters.running) == 1)
        refused = await failure(served.explanations.ExplainText(explain_text(spec=GREEDY)))
        running.cancel()
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
    assert "RetryInfo" in refused.details


async def test_a_text_whose_rows_are_being_captured_is_explained_though_the_server_drains() -> None:
    slow = FakeEngine(token_delay_s=0.3)
    async with serving(slow, Tiny().loaded()) as served:
        stream = served.explanations.ExplainText(explain_text())
        await eventually(lambda: len(slow.counters.running) == 1)
        draining = await begin_drain(served)
        assert slow.counters.running, "the rows were there before the server drained"
        assert kinds(await collect(stream))[-1] == "finished"
        await draining
