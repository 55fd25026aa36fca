"""FetchActivations: what the stream looks like, and that its numbers are the engine's."""

import itertools
from typing import Any

import numpy as np
import pytest

from actserve.v1 import site_pb2, tensor_pb2
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.engine.fake import BOS, FakeEngine
from tests.contract.harness import (
    collect,
    fetch,
    kinds,
    matrices,
    serving,
    site,
)

MIB = 1 << 20


async def test_events_come_in_the_promised_order() -> None:
    async with serving() as served:
        events = await collect(served.generation.FetchActivations(fetch("one", "two", "three")))
    names = kinds(events)
    assert names[0] == "started"
    assert names[-1] == "finished"
    assert names.count("item_started") == names.count("item_finished") == 3
    for prompt in range(3):
        own = [
            name
            for event, name in zip(events, names, strict=True)
            if (name, _sequence(event)) in {(k, prompt) for k in names}
        ]
        assert own[0] == "item_started"
        assert own[-1] == "item_finished"
        assert set(own[1:-1]) == {"activations"}


def _sequence(event: Any) -> int | None:
    name = event.WhichOneof("event")
    if name == "activations":
        return event.activations.sequence_index
    return getattr(getattr(event, name), "item_index", None)


async def test_rows_are_the_engines_rows() -> None:
    fake = FakeEngine()
    wanted = [
        site(2),
        site(None, site_pb2.HOOK_POINT_EMBEDDING),
        site(-1),
        site(0, site_pb2.HOOK_POINT_MLP_ACT),
        site(None, site_pb2.HOOK_POINT_LOGITS),
    ]
    async with serving(fake) as served:
        events = await collect(
            served.generation.FetchActivations(fetch("ab", "héllo", capture={"sites": wanted}))
        )
    sites = [
        Site(HookPoint.RESID_POST, 2),
        Site(HookPoint.EMBEDDING),
        Site(HookPoint.RESID_POST, 3),
        Site(HookPoint.MLP_ACT, 0),
        Site(HookPoint.LOGITS),
    ]
    got = matrices(events)
    for index, text in enumerate(["ab", "héllo"]):
        ids = [BOS, *text.encode()]
        for number, where in enumerate(sites):
            positions, rows = got[index, number]
            assert positions == list(range(len(ids)))
            expected = [fake.row(where, ids[: p + 1]) for p in positions]
            np.testing.assert_array_equal(rows, expected)


async def test_started_gives_the_id_of_the_call_element_type_and_widths() -> None:
    async with serving() as served:
        wanted = [site(0), site(1, site_pb2.HOOK_POINT_K), site(1, site_pb2.HOOK_POINT_MLP_ACT)]
        call = served.generation.FetchActivations(fetch(capture={"sites": wanted}))
        events = await collect(call)
        trailers = dict(await call.trailing_metadata())
    started = events[0].started
    assert started.readouts[0].element_type == tensor_pb2.ELEMENT_TYPE_F32
    assert list(started.readouts[0].widths) == [16, 8, 24]
    assert list(started.readouts[0].heads) == [0, 2, 0]
    assert started.call_id == trailers["x-request-id"]


async def test_item_started_gives_tokens_texts_and_positions() -> None:
    selector = {"span": {"start": -2}}
    request = fetch("aé", capture={"sites": [site()], "positions": selector})
    async with serving() as served:
        events = await collect(served.generation.FetchActivations(request))
    opened = next(e.item_started for e in events if e.WhichOneof("event") == "item_started")
    assert list(opened.prompt.ids) == [BOS, *"aé".encode()]
    # A token that holds half a character decodes to U+FFFD.
    assert list(opened.prompt.texts) == ["<bos>", "a", "\ufffd", "\ufffd"]
    assert list(opened.positions[0].positions) == [2, 3]
    assert matrices(events)[0, 0][0] == [2, 3]


async def test_usage_counts_tokens_and_payload_bytes() -> None:
    async with serving() as served:
        events = await collect(served.generation.FetchActivations(fetch("ab", "c")))
    usage = events[-1].finished.usage
    assert (usage.prompt_tokens, usage.output_tokens) == (5, 0)
    assert usage.activation_bytes == 5 * 16 * 4
    sent = sum(len(e.activations.rows.data) for e in events)
    assert usage.activation_bytes == sent


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        ({"all": {}}, [0, 1, 2, 3, 4, 5]),
        ({"last": {}}, [5]),
        ({"prompt": {}}, [0, 1, 2, 3, 4, 5]),
        ({"list": {"positions": [-1, 0, 3]}}, [0, 3, 5]),
        ({"span": {"start": 1, "end": -1}}, [1, 2, 3, 4]),
        ({"span": {"end": 2}}, [0, 1]),
        ({"span": {"start": 4, "end": 99}}, [4, 5]),
        ({"token_ids": {"ids": [ord("l"), ord("h"), 0]}}, [1, 3, 4]),
        ({"text": {"text": "l"}}, [3, 4]),
        ({"text": {"text": "l", "occurrence": 0}}, [3]),
        ({"characters": {"start": 0, "end": 2}}, [1, 2]),
    ],
    ids=str,
)
async def test_a_selector_selects(selector: dict[str, Any], positions: list[int]) -> None:
    request = fetch("hello", capture={"sites": [site()], "positions": selector})
    async with serving() as served:
        events = await collect(served.generation.FetchActivations(request))
    assert list(events[1].item_started.positions[0].positions) == positions
    assert matrices(events)[0, 0][0] == positions


@pytest.mark.parametrize("source", list(ElementType))
@pytest.mark.parametrize(
    ("wire", "target"),
    [
        (tensor_pb2.ELEMENT_TYPE_UNSPECIFIED, None),
        (tensor_pb2.ELEMENT_TYPE_F32, ElementType.F32),
        (tensor_pb2.ELEMENT_TYPE_F16, ElementType.F16),
        (tensor_pb2.ELEMENT_TYPE_BF16, ElementType.BF16),
    ],
)
async def test_rows_come_in_the_element_type_asked_for(
    source: ElementType, wire: int, target: ElementType | None
) -> None:
    fake = FakeEngine(element_type=source)
    request = fetch("a", capture={"sites": [site()], "element_type": wire})
    async with serving(fake) as served:
        events = await collect(served.generation.FetchActivations(request))
    computed = fake.row(Site(HookPoint.RESID_POST, 1), [BOS, ord("a")])
    bits = convert(computed, ElementType.F32, source)
    target = target or source
    expected = to_float32(convert(bits, source, target), target)
    rows = matrices(events)[0, 0][1]
    np.testing.assert_array_equal(rows[1], expected)
    sent = next(e.activations.rows for e in events if e.WhichOneof("event") == "activations")
    assert sent.element_type == events[0].started.readouts[0].element_type


async def test_no_message_exceeds_one_mebibyte_and_rows_stay_whole() -> None:
    fake = FakeEngine(width=4096, rows_per_event=1000)
    async with serving(fake) as served:
        events = await collect(served.generation.FetchActivations(fetch("x" * 299)))
    chunks = [e for e in events if e.WhichOneof("event") == "activations"]
    assert len(chunks) == 5  # 300 rows of 16 KiB, 63 to a chunk
    assert max(e.ByteSize() for e in events) <= MIB
    for event in chunks:
        rows = event.activations.rows
        assert list(rows.shape) == [len(event.activations.positions), 4096]
        assert len(rows.data) == len(event.activations.positions) * 4096 * 4
    assert matrices(events)[0, 0][0] == list(range(300))


async def test_many_prompts_run_at_once_and_interleave() -> None:
    fake = FakeEngine(token_delay_s=0.01)
    async with serving(fake) as served:
        request = fetch(*(f"prompt {i}" for i in range(100)))
        events = await collect(served.generation.FetchActivations(request))
    assert fake.counters.most_running == 100
    order = [s for e in events if (s := _sequence(e)) is not None]
    assert len(list(itertools.groupby(order))) > 100, "prompts came one after the other"
    assert {key[0] for key in matrices(events)} == set(range(100))
