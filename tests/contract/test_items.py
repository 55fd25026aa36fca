"""The items of a fetch are checked, run and answered one by one, in the same call."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.rpc import error_details_pb2

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import kept_activations_service_pb2 as kept_pb
from actserve.v1 import kept_activations_service_pb2_grpc as kept_grpc
from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    addition,
    collect,
    failure,
    fetch,
    intervention,
    kinds,
    matrices,
    serving,
    site,
)
from tests.contract.readouts import of_kind

WIDTH = 16
LAYERS = 4
READ = {"rows": {"sites": [site(2)]}}
KEEP = {"keep": {"sites": [site(layer) for layer in range(LAYERS)]}}
LONG = [1] * 65
EMPTY: dict[str, Any] = {"prompt": {"token_ids": {}}}
TEXTS = ("one two three", "four five", "six")


def engine(**changes: Any) -> FakeEngine:
    return FakeEngine(
        layer_count=LAYERS, width=WIDTH, limits=Limits(max_sequence_tokens=64, **changes)
    )


def items(*listed: dict[str, Any], **changes: Any) -> pb.FetchActivationsRequest:
    return pb.FetchActivationsRequest(**{"items": listed, "readouts": [READ], **changes})


def text(said: str, **changes: Any) -> dict[str, Any]:
    return {"prompt": {"text": said}, **changes}


def closed(events: Sequence[Any]) -> list[pb.ItemFinished]:
    """How each item ended, in the order of the request."""
    return sorted(of_kind(events, "item_finished"), key=lambda each: each.item_index)


def reason(status: Any) -> str:
    """The reason of an item's status; empty for one that was served."""
    if not status.code:
        return ""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def field(status: Any) -> str:
    for each in status.details:
        bad = error_details_pb2.BadRequest()
        if each.Is(bad.DESCRIPTOR):
            each.Unpack(bad)
            return bad.field_violations[0].field
    return ""


BAD: dict[int, tuple[dict[str, Any], str, str]] = {
    3: (EMPTY, "PROMPT_EMPTY", "items[3].prompt"),
    140: ({"prompt": {"token_ids": {"ids": LONG}}}, "PROMPT_TOO_LONG", "items[140].prompt"),
    500: (
        {"prompt": {"token_ids": {"ids": [1 << 30]}}},
        "TOKEN_OUT_OF_RANGE",
        "items[500].prompt.token_ids.ids[0]",
    ),
    501: ({"prompt": {}}, "FIELD_REQUIRED", "items[501].prompt"),
    733: (
        text("a", positions={"list": {"positions": [99]}}),
        "POSITION_OUT_OF_RANGE",
        "items[733].positions",
    ),
    900: (
        text("a", interventions=[intervention(site(9), zero={})]),
        "LAYER_OUT_OF_RANGE",
        "items[900].interventions[0].sites[0]",
    ),
    999: (text("a", key="k" * 257), "FIELD_INVALID", "items[999].key"),
}
"""Items that cannot be served, with the reason and the field of their status."""


async def test_a_thousand_items_of_which_seven_are_bad() -> None:
    listed = [
        BAD[index][0] if index in BAD else text(f"prompt {index}", key=f"k{index}")
        for index in range(1000)
    ]
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(items(*listed)))
    assert kinds(events)[0] == "started"
    assert kinds(events)[-1] == "finished"
    every = closed(events)
    assert [each.item_index for each in every] == [*range(1000)]
    assert {each.item_index for each in every if each.status.code} == {*BAD}
    for index, (_, why, where) in BAD.items():
        assert (reason(every[index].status), field(every[index].status)) == (why, where)
    rows = matrices(events)
    assert len(rows) == 993
    tokens = {each.item_index: each.prompt.ids for each in of_kind(events, "item_started")}
    for index in range(1000):
        if index not in BAD:
            assert every[index].key == f"k{index}"
            at, found = rows[index, 0]
            assert at == [*range(len(found))] == [*range(len(tokens[index]))]


async def test_items_of_a_call_are_prepared_as_they_run() -> None:
    """A thousand items with interventions of their own take the memory of those that run."""
    fake = engine(max_items=1000)
    listed = [
        text(f"prompt {index}", interventions=[addition(np.ones(WIDTH) * index)])
        for index in range(60)
    ]
    async with serving(fake, max_running=4) as served:
        events = await collect(served.generation.FetchActivations(items(*listed)))
    assert fake.counters.most_running <= 4
    opened = 0
    most = 0
    for event in events:
        match event.WhichOneof("event"):
            case "item_started":
                opened += 1
                most = max(most, opened)
            case "item_finished":
                opened -= 1
    assert most <= 4


async def test_the_first_bad_item_ends_a_call_that_fails_fast_before_anything_runs() -> None:
    async with serving(engine()) as served:
        refused = await failure(
            served.generation.FetchActivations(items(text("a"), EMPTY, fail_fast=True))
        )
        assert served.engine.counters.started == 0
    assert (refused.reason, refused.field) == ("PROMPT_EMPTY", "items[1].prompt")


async def test_an_item_that_fails_as_it_runs_has_its_own_status() -> None:
    unused = intervention(site(1), positions={"token_ids": {"ids": [7]}}, zero={})
    request = items(text("a"), text("b", interventions=[unused]), text("c"))
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(request))
        whole = await failure(
            served.generation.FetchActivations(
                items(text("b", interventions=[unused]), fail_fast=True)
            )
        )
    assert [reason(each.status) for each in closed(events)] == ["", whole.reason, ""]
    assert sorted(index for index, _ in matrices(events)) == [0, 2]


async def test_a_dead_engine_ends_the_call_and_not_its_items() -> None:
    fake = engine()
    async with serving(fake) as served:
        fake.faults.dead = True
        refused = await failure(served.generation.FetchActivations(items(text("a"), text("b"))))
    assert refused.reason == "ENGINE_DEAD"


async def test_items_share_the_prompt_and_the_interventions_of_their_call() -> None:
    vector = np.arange(WIDTH, dtype=np.float32)
    shared = addition(vector, 0)
    own = addition(vector, 1, coefficient=2.0)
    request = items(
        {},
        {"interventions": [own]},
        text("other words"),
        prompt={"text": TEXTS[0]},
        interventions=[shared],
    )
    alone = [
        items(text(TEXTS[0]), interventions=[shared]),
        items(text(TEXTS[0]), interventions=[shared, own]),
        items(text("other words"), interventions=[shared]),
    ]
    async with serving(engine()) as served:
        together = await collect(served.generation.FetchActivations(request))
        for index, each in enumerate(alone):
            events = await collect(served.generation.FetchActivations(each))
            np.testing.assert_array_equal(
                matrices(together)[index, 0][1], matrices(events)[0, 0][1]
            )
            assert closed(together)[index].interventions == closed(events)[0].interventions
    assert [len(each.interventions) for each in closed(together)] == [1, 2, 1]


async def test_positions_of_an_item_stand_in_place_of_those_of_every_readout() -> None:
    last = {"positions": {"last": {}}}
    request = items(
        text(TEXTS[0]),
        text(TEXTS[0], **last),
        readouts=[{"rows": {"sites": [site(2)], "positions": {"span": {"end": 2}}}}, KEEP],
    )
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(request))
    first, second = of_kind(events, "item_started")
    count = len(first.prompt.ids)
    assert [list(each.positions) for each in first.positions] == [[0, 1], [*range(count)]]
    assert [list(each.positions) for each in second.positions] == [[count - 1]]
    assert list(second.positions[0].readout_indices) == [0, 1]


@pytest.mark.parametrize(
    ("listed", "changes", "where", "says"),
    [
        ([], {}, "items", "no items"),
        ([{}], {}, "items[0].prompt", "item 0 has no prompt"),
        ([text("a"), {}], {}, "items[1].prompt", "item 1 has no prompt"),
        ([{}], EMPTY, "prompt", "no tokens"),
        ([text("a")] * 4, {}, "items", "at most 3"),
    ],
    ids=["none", "no prompt", "one without", "an empty one for all", "too many"],
)
async def test_what_concerns_all_items_is_refused_for_all(
    listed: list[dict[str, Any]], changes: dict[str, Any], where: str, says: str
) -> None:
    async with serving(engine(max_items=3)) as served:
        refused = await failure(served.generation.FetchActivations(items(*listed, **changes)))
        assert served.engine.counters.started == 0
    assert refused.field == where
    assert says in refused.message


async def test_own_and_shared_interventions_are_bounded_together() -> None:
    zero = intervention(site(1), zero={})
    request = items(text("a", interventions=[zero] * 2), text("b"), interventions=[zero] * 2)
    async with serving(engine(max_interventions=3)) as served:
        events = await collect(served.generation.FetchActivations(request))
    bad, good = closed(events)
    assert (reason(bad.status), field(bad.status)) == (
        "TOO_MANY_INTERVENTIONS",
        "items[0].interventions",
    )
    assert not good.status.code


async def test_texts_and_sources_of_tokens_can_be_left_out() -> None:
    async with serving(engine()) as served:
        (whole,), (bare,) = [
            of_kind(
                await collect(
                    served.generation.FetchActivations(items(text(TEXTS[0]), ids_only=ids_only))
                ),
                "item_started",
            )
            for ids_only in (False, True)
        ]
    assert list(bare.prompt.ids) == list(whole.prompt.ids)
    assert whole.prompt.texts
    assert whole.prompt.sources
    assert not bare.prompt.texts
    assert not bare.prompt.sources


def patched(*cells: tuple[int, int], clean: dict[str, Any]) -> list[dict[str, Any]]:
    """A grid of patches: each cell replaces the row of a layer and position by that of the clean
    prompt, which item 0 keeps."""
    return [
        clean,
        *(
            {
                "readout_indices": [0],
                "interventions": [
                    intervention(
                        site(layer),
                        positions={"list": {"positions": [position]}},
                        replace={
                            "rows": {
                                "kept": {
                                    "item": {"item_index": 0, "readout_index": 1},
                                    "positions": [position],
                                }
                            }
                        },
                    )
                ],
            }
            for layer, position in cells
        ),
    ]


async def test_a_patching_grid_is_one_call_and_equals_single_calls() -> None:
    clean, corrupt = "a clean prompt", "a wrong prompt"
    cells = [(layer, position) for layer in range(LAYERS) for position in range(3)]
    grid = items(
        *patched(*cells, clean=text(clean)), prompt={"text": corrupt}, readouts=[READ, KEEP]
    )
    async with serving(engine()) as served:
        together = await collect(served.generation.FetchActivations(grid))
        source = await collect(
            served.generation.FetchActivations(items(text(clean), readouts=[READ, KEEP]))
        )
        name = closed(source)[0].kept[0].name
        for index, (layer, position) in enumerate(cells, start=1):
            at = {"list": {"positions": [position]}}
            rows = {"kept": {"name": name, "positions": [position]}}
            change = intervention(site(layer), positions=at, replace={"rows": rows})
            alone = await collect(
                served.generation.FetchActivations(items(text(corrupt), interventions=[change]))
            )
            np.testing.assert_array_equal(matrices(together)[index, 0][1], matrices(alone)[0, 0][1])
    assert not any(each.status.code for each in closed(together))


async def test_an_item_is_read_by_the_readouts_that_it_names() -> None:
    read = [{"rows": {"sites": [site(layer)]}} for layer in (1, 2)]
    request = items(
        text("a b", readout_indices=[2]),
        text("a b", readout_indices=[1, 0]),
        text("a b"),
        text("a b", readout_indices=[3]),
        readouts=[*read, KEEP],
    )
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(request))
    rows = [
        {each.readout_index for each in of_kind(events, "activations") if each.sequence_index == at}
        for at in range(4)
    ]
    assert rows == [set(), {0, 1}, {0, 1}, set()]
    told = {each.item_index: each for each in of_kind(events, "item_started")}
    assert {
        at: sorted(index for part in each.positions for index in part.readout_indices)
        for at, each in told.items()
    } == {0: [2], 1: [0, 1], 2: [0, 1, 2]}
    assert [[kept.readout_index for kept in each.kept] for each in closed(events)] == [
        [2],
        [],
        [2],
        [],
    ]
    bad = closed(events)[3].status
    assert (reason(bad), field(bad)) == ("FIELD_INVALID", "items[3].readout_indices[0]")
    whole = {
        (chunk.readout_index, chunk.sequence_index): chunk
        for chunk in of_kind(events, "activations")
    }
    for readout in (0, 1):
        assert whole[readout, 1].rows == whole[readout, 2].rows


@pytest.mark.parametrize(
    ("source", "why", "where"),
    [
        ({"item_index": 1, "readout_index": 1}, "FIELD_INVALID", ".item_index"),
        ({"item_index": 5, "readout_index": 1}, "FIELD_INVALID", ".item_index"),
        ({"item_index": 0, "readout_index": 0}, "FIELD_INVALID", ".readout_index"),
        ({"item_index": 0, "readout_index": 7}, "FIELD_INVALID", ".readout_index"),
        ({"readout_index": 1}, "FIELD_REQUIRED", ".item_index"),
        ({"item_index": 0}, "FIELD_REQUIRED", ".readout_index"),
    ],
    ids=[
        "itself",
        "a later one",
        "of rows that travel",
        "of no readout",
        "no item",
        "no readout",
    ],
)
async def test_rows_are_of_an_earlier_item_and_of_what_it_keeps(
    source: dict[str, int], why: str, where: str
) -> None:
    change = intervention(site(1), replace={"rows": {"kept": {"item": source}}})
    request = items(text("a"), text("a", interventions=[change]), readouts=[READ, KEEP])
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(request))
    good, bad = closed(events)
    assert not good.status.code
    at = "items[1].interventions[0].replace.rows.kept.item"
    assert (reason(bad.status), field(bad.status)) == (why, at + where)


@pytest.mark.parametrize("fail_fast", [False, True])
async def test_what_uses_rows_of_an_item_that_failed_fails_too(fail_fast: bool) -> None:
    cells = patched((1, 0), clean=EMPTY)
    request = items(*cells, prompt={"text": "words"}, readouts=[READ, KEEP], fail_fast=fail_fast)
    async with serving(engine()) as served:
        if fail_fast:
            assert (await failure(served.generation.FetchActivations(request))).reason == (
                "PROMPT_EMPTY"
            )
            return
        events = await collect(served.generation.FetchActivations(request))
    assert [reason(each.status) for each in closed(events)] == ["PROMPT_EMPTY", "KEPT_NOT_FOUND"]


async def test_only_items_can_use_what_an_earlier_one_keeps() -> None:
    source = {"kept": {"item": {"item_index": 0, "readout_index": 1}}}
    request = fetch("a", interventions=[intervention(site(1), replace={"rows": source})])
    async with serving(engine()) as served:
        refused = await failure(served.generation.FetchActivations(request))
    assert refused.field == "interventions[0].replace.rows.kept.item"


async def test_names_of_what_is_kept_are_told_before_it_is_computed() -> None:
    request = items(text("a"), EMPTY, text("c"), readouts=[KEEP, KEEP])
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(request))
        stub = kept_grpc.KeptActivationsServiceStub(served.channel)
        opened = {each.item_index: each.kept for each in of_kind(events, "item_started")}
        assert sorted(opened) == [0, 2]
        for each in closed(events):
            assert [*each.kept] == [*opened.get(each.item_index, ())]
            for kept in each.kept:
                assert kept.sequence_index == each.item_index
                found = await stub.GetKeptActivations(
                    kept_pb.GetKeptActivationsRequest(name=kept.name)
                )
                assert len(found.kept_activations.sites) == LAYERS
    names = [kept.name for each in closed(events) for kept in each.kept]
    assert len({*names}) == 4


async def test_an_item_that_fails_keeps_nothing() -> None:
    """The second readout finds no room, so that the first one's rows are freed."""
    request = items(
        text("a b c d e f"),
        readouts=[{"keep": {"sites": [site(1)]}}, {"keep": {"sites": [site(2)]}}],
    )
    async with serving(engine(), max_kept_bytes=2048) as served:
        events = await collect(served.generation.FetchActivations(request))
        (bad,) = closed(events)
        assert (reason(bad.status), field(bad.status)) == (
            "KEPT_QUOTA_EXCEEDED",
            "readouts[1].keep",
        )
        assert not bad.kept
        # There is room for as much as before.
        one = items(text("a b c d e f"), readouts=[{"keep": {"sites": [site(1)]}}])
        (good,) = closed(await collect(served.generation.FetchActivations(one)))
        assert good.kept


async def test_items_that_fail_are_in_no_mean() -> None:
    mean = {"rows": {"sites": [site(2)], "reduction": "REDUCTION_MEAN", "statistics": {}}}
    unused = intervention(site(1), positions={"token_ids": {"ids": [7]}}, zero={})
    request = items(
        text("a", label="x"),
        text("b", label="x", interventions=[unused]),
        {**EMPTY, "label": "y"},
        readouts=[mean],
    )
    async with serving(engine()) as served:
        events = await collect(served.generation.FetchActivations(request))
        alone = await collect(
            served.generation.FetchActivations(items(text("a", label="x"), readouts=[mean]))
        )
    assert of_kind(events, "statistics") == of_kind(alone, "statistics")
    assert [each.rows for each in of_kind(events, "statistics")] == [1]


async def kept_names(served: Any, request: Any, rpc: str = "FetchActivations") -> list[str]:
    events = await collect(getattr(served.generation, rpc)(request))
    name = "item_finished" if rpc == "FetchActivations" else "sample_finished"
    return sorted(kept.name for each in of_kind(events, name) for kept in each.kept)


def keeping(request_id: str = "", said: str = "a b", **changes: Any) -> pb.FetchActivationsRequest:
    return items(text(said), text("c"), readouts=[KEEP], request_id=request_id, **changes)


def generating(request_id: str = "", **changes: Any) -> pb.GenerateRequest:
    sampling = {"max_tokens": 3, "temperature": 0, "samples": 2}
    fields = {"prompt": {"text": "a"}, "sampling": sampling, "readouts": [KEEP], **changes}
    return pb.GenerateRequest(request_id=request_id, **fields)


@pytest.mark.parametrize(
    ("rpc", "make"), [("FetchActivations", keeping), ("Generate", generating)], ids=["fetch", "gen"]
)
async def test_a_call_that_is_made_again_keeps_its_rows_once(rpc: str, make: Any) -> None:
    async with serving(engine()) as served:
        first = await kept_names(served, make("an-id"), rpc)
        held = served.app.kept.held_bytes
        assert len(first) == 2
        assert await kept_names(served, make("an-id"), rpc) == first
        assert served.app.kept.held_bytes == held
        others = [
            *await kept_names(served, make("another-id"), rpc),
            *await kept_names(served, make(""), rpc),
            *await kept_names(served, make(""), rpc),
        ]
        assert len({*first, *others}) == 8


async def test_another_request_with_the_same_id_keeps_rows_of_its_own() -> None:
    async with serving(engine()) as served:
        first = await kept_names(served, keeping("an-id"))
        second = await kept_names(served, keeping("an-id", "other words"))
        assert {*first}.isdisjoint(second)


async def test_a_call_that_was_cut_is_found_by_making_it_again() -> None:
    """Whoever lost the connection, and with it the names, can still free what was kept."""
    listed = [text(f"prompt {index}") for index in range(1000)]
    request = items(*listed, readouts=[KEEP], request_id="an-id")
    async with serving(engine(), max_running=16) as served:
        call = served.generation.FetchActivations(request)
        done = 0
        async for event in call:
            done += event.WhichOneof("event") == "item_finished"
            if done == 900:
                break
        call.cancel()
        stub = kept_grpc.KeptActivationsServiceStub(served.channel)
        names = await kept_names(served, request)
        delete = kept_pb.DeleteKeptActivationsRequest
        await asyncio.gather(*(stub.DeleteKeptActivations(delete(name=name)) for name in names))
        assert len(names) == len(listed)
        assert served.app.kept.held_bytes == 0


async def test_a_request_id_has_a_bound() -> None:
    async with serving(engine()) as served:
        refused = await failure(served.generation.FetchActivations(keeping("x" * 129)))
    assert (refused.reason, refused.field) == ("FIELD_INVALID", "request_id")


async def test_a_name_tells_the_replica_that_has_the_rows() -> None:
    async with serving(engine(), replica="pod-1") as served:
        (name, _) = await kept_names(served, keeping())
    assert name.startswith("keptActivations/pod-1.")
    async with serving(engine(), replica="pod-2") as served:
        stub = kept_grpc.KeptActivationsServiceStub(served.channel)
        refused = await failure(
            stub.GetKeptActivations(kept_pb.GetKeptActivationsRequest(name=name))
        )
    assert refused.reason == "KEPT_NOT_FOUND"
    assert "'pod-1'" in refused.message
    assert "'pod-2'" in refused.message


async def test_a_call_made_again_that_fails_leaves_what_the_first_one_kept() -> None:
    """Its first rows are there already, and there is no more room for its second ones."""
    listed = [{"keep": {"sites": [site(1)]}}, {"keep": {"sites": [site(2)]}}]
    again = items(text("a b c"), readouts=listed, request_id="an-id")
    more = items(text("d e f"), readouts=listed[:1])
    async with serving(engine(), max_kept_bytes=3000) as served:
        (whole,) = closed(await collect(served.generation.FetchActivations(again)))
        first, second = [kept.name for kept in whole.kept]
        await served.kept.DeleteKeptActivations(kept_pb.DeleteKeptActivationsRequest(name=second))
        (other,) = closed(await collect(served.generation.FetchActivations(more)))
        assert other.kept
        (failed,) = closed(await collect(served.generation.FetchActivations(again)))
        assert reason(failed.status) == "KEPT_QUOTA_EXCEEDED"
        found = await served.kept.GetKeptActivations(kept_pb.GetKeptActivationsRequest(name=first))
    assert found.kept_activations.name == first


async def test_kept_rows_that_many_items_name_are_expanded_once() -> None:
    """Named item by item they would be copied for each, however small the request is."""
    room = 4 * WIDTH * 4
    limits = {"max_capture_bytes": room}
    rows = {"kept": {"item": {"item_index": 0, "readout_index": 1}}}
    same = intervention(site(1), positions={"prompt": {}}, replace={"rows": rows})
    keep = {"keep": {"sites": [site(1)]}}
    last = {"rows": {"sites": [site(1)], "positions": {"last": {}}}}
    two = {"kept": {"item": {"item_index": 0, "readout_index": 1}, "positions": [0, 1]}}
    other = intervention(site(1), positions={"span": {"end": 2}}, replace={"rows": two})
    cells = [{"readout_indices": [0], "interventions": [same]} for _ in range(20)]
    request = items(
        text("abc", readout_indices=[1]),
        *cells,
        {"readout_indices": [0], "interventions": [other]},
        prompt={"text": "xyz"},
        readouts=[last, keep],
    )
    async with serving(engine(**limits)) as served:
        events = await collect(served.generation.FetchActivations(request))
    assert [reason(each.status) for each in closed(events)] == [""] * 21 + ["TOO_MANY_ROWS"]
