"""Patching from kept rows: what a capture keeps can replace rows of another run, by its name."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from actserve.v1 import readout_pb2, site_pb2, tensor_pb2
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    Served,
    collect,
    decoded,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    kinds,
    matrices,
    report,
    serving,
    site,
)
from tests.contract.readouts import kept, of_kind
from tests.contract.refusals import call

K, Q = site_pb2.HOOK_POINT_K, site_pb2.HOOK_POINT_Q
WHERE = [site(0), site(2)]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def events_of(served: Served, request: Any) -> list[Any]:
    return await collect(call(served, request))


async def keep(served: Served, text: str, sites: list[Any] = WHERE, **spec: Any) -> tuple[str, Any]:
    """The name of what was kept of a prompt, and its rows."""
    request = fetch(text, capture={"sites": sites, "keep": {}, **spec})
    events = await events_of(served, request)
    return kept(events)[0], matrices(events)


def replace(*sites: dict[str, Any], name: str, **fields: Any) -> dict[str, Any]:
    source = {key: fields.pop(key) for key in ("site", "positions") if key in fields}
    selector = fields.pop("where", {"all": {}})
    return intervention(
        *sites, positions=selector, replace={"rows": {"kept": {"name": name, **source}}}, **fields
    )


async def test_replacing_by_name_is_replacing_by_value(served: Served) -> None:
    name, rows = await keep(served, "hello")
    every = {"sites": [site(layer) for layer in range(4)]}
    by_name = [replace(site(2), name=name)]
    by_value = [intervention(site(2), replace={"rows": inline(rows[0, 1][1])})]
    named, valued = [
        await events_of(served, fetch("world", capture=every, interventions=edits))
        for edits in (by_name, by_value)
    ]
    for key, (_, expected) in matrices(valued).items():
        np.testing.assert_array_equal(matrices(named)[key][1], expected)
    np.testing.assert_array_equal(matrices(named)[0, 2][1], rows[0, 1][1])
    assert report(named) == report(valued)


async def test_each_site_takes_its_own_rows_and_one_report_tells_of_all(served: Served) -> None:
    name, rows = await keep(served, "hello")
    events = await events_of(
        served,
        fetch("world", capture={"sites": WHERE}, interventions=[replace(*WHERE, name=name)]),
    )
    for key, (_, expected) in rows.items():
        np.testing.assert_array_equal(matrices(events)[key][1], expected)
    told = report(events)
    assert (told.rows, told.changed_rows, told.reused_rows) == (12, 10, 0)
    one_by_one = await events_of(
        served,
        fetch("world", interventions=[replace(each, name=name) for each in WHERE]),
    )
    single = of_kind(one_by_one, "item_finished")[0].interventions
    assert told.changed_rows == sum(each.changed_rows for each in single)
    np.testing.assert_allclose(
        told.mean_relative_change,
        np.mean([each.mean_relative_change for each in single]),
        rtol=1e-6,
    )


async def test_another_sites_rows_go_to_all_sites(served: Served) -> None:
    name, rows = await keep(served, "hello")
    edit = replace(site(1), site(3), name=name, site=site(0))
    capture = {"sites": [site(1), site(3)]}
    events = await events_of(served, fetch("world", capture=capture, interventions=[edit]))
    for index in range(2):
        np.testing.assert_array_equal(matrices(events)[0, index][1], rows[0, 0][1])


@pytest.mark.parametrize(
    ("positions", "where", "changed"),
    [
        ([1, 4], {"list": {"positions": [0, 2]}}, [0, 2]),
        ([5], {"list": {"positions": [0, 2]}}, [0, 2]),  # One for all.
        ([3], {"all": {}}, [0, 1, 2]),
    ],
    ids=str,
)
async def test_chosen_positions_replace_chosen_ones(
    served: Served, positions: list[int], where: dict[str, Any], changed: list[int]
) -> None:
    name, rows = await keep(served, "hello")
    edit = replace(site(2), name=name, positions=positions, where=where)
    plain = matrices(await events_of(served, fetch("no", capture={"sites": [site(2)]})))
    events = await events_of(
        served, fetch("no", capture={"sites": [site(2)]}, interventions=[edit])
    )
    expected = plain[0, 0][1].copy()
    expected[changed] = rows[0, 1][1][positions]
    np.testing.assert_array_equal(matrices(events)[0, 0][1], expected)


async def test_each_head_takes_its_own_part_of_the_kept_rows(served: Served) -> None:
    where = site(1, Q)
    name, rows = await keep(served, "hello", [where])
    edit = replace(where, name=name, heads=[3, 0])
    plain = matrices(await events_of(served, fetch("world", capture={"sites": [where]})))
    events = await events_of(
        served, fetch("world", capture={"sites": [where]}, interventions=[edit])
    )
    expected = plain[0, 0][1].copy()
    for columns in (slice(0, 4), slice(12, 16)):
        expected[:, columns] = rows[0, 0][1][:, columns]
    np.testing.assert_array_equal(matrices(events)[0, 0][1], expected)
    assert report(events).rows == 12


async def test_every_sample_and_prompt_keeps_its_own(served: Served) -> None:
    capture = {"sites": [site()], "keep": {}}
    fetched = kept(await events_of(served, fetch("a", "b", capture=capture)))
    sampling = {"max_tokens": 3, "samples": 2, "seed": 1}
    sampled = kept(await events_of(served, generate(sampling=sampling, capture=capture)))
    names = [*fetched, *sampled]
    assert len(set(names)) == 4
    assert all(name.startswith("keptActivations/") for name in names)


async def test_kept_rows_of_a_generation_include_generated_tokens(served: Served) -> None:
    capture = {"sites": [site()], "keep": {}}
    events = await events_of(served, generate(capture=capture))
    rows = matrices(events)[0, 0][1]
    edit = replace(site(), name=kept(events)[0], positions=[8], where={"last": {}})
    after = await events_of(served, fetch("x", interventions=[edit]))
    np.testing.assert_array_equal(matrices(after)[0, 0][1][-1], rows[8])


async def test_rows_that_are_kept_alone_do_not_travel(served: Served) -> None:
    events = await events_of(served, fetch("hello", readouts=[{"keep": {"sites": WHERE}}]))
    assert kinds(events) == ["started", "item_started", "item_finished", "finished"]
    assert events[-1].finished.usage.activation_bytes == 0
    edits = [replace(*WHERE, name=kept(events)[0])]
    expected = matrices(await events_of(served, fetch("hello", capture={"sites": WHERE})))
    after = await events_of(served, fetch("world", capture={"sites": WHERE}, interventions=edits))
    for key, (_, rows) in expected.items():
        np.testing.assert_array_equal(matrices(after)[key][1], rows)


@pytest.mark.parametrize(
    "readout",
    [
        {"projection": {"directions": inline(np.ones((2, 16)))}},
        {"reduction": readout_pb2.REDUCTION_MEAN},
        {"element_type": tensor_pb2.ELEMENT_TYPE_F16},
    ],
    ids=lambda readout: next(iter(readout)),
)
async def test_rows_are_kept_as_the_model_computed_them(
    served: Served, readout: dict[str, Any]
) -> None:
    name, _ = await keep(served, "hello", **readout)
    exact = matrices(await events_of(served, fetch("hello", capture={"sites": WHERE})))
    edits = [replace(*WHERE, name=name)]
    after = await events_of(served, fetch("world", capture={"sites": WHERE}, interventions=edits))
    for key, (_, rows) in exact.items():
        np.testing.assert_array_equal(matrices(after)[key][1], rows)


async def test_rows_of_a_bf16_model_come_back_bit_by_bit() -> None:
    async with serving(FakeEngine(element_type=ElementType.BF16)) as served:
        name, rows = await keep(served, "hello")
        request = fetch(
            "world", capture={"sites": WHERE}, interventions=[replace(*WHERE, name=name)]
        )
        events = await events_of(served, request)
    chunks = of_kind(events, "activations")
    assert {chunk.rows.element_type for chunk in chunks} == {tensor_pb2.ELEMENT_TYPE_BF16}
    for chunk in chunks:
        kept_rows = rows[0, chunk.site_index][1][list(chunk.positions)]
        np.testing.assert_array_equal(decoded(chunk.rows), kept_rows)


async def test_a_sequence_without_a_captured_row_keeps_nothing(served: Served) -> None:
    never = {"token_ids": {"ids": [0]}}
    capture = {"sites": [site()], "positions": never, "keep": {}}
    assert kept(await events_of(served, generate(capture=capture))) == [""]


async def test_nothing_is_kept_unasked(served: Served) -> None:
    assert kept(await events_of(served, fetch("hello"))) == [""]


async def test_an_unused_replacement_is_named_as_it_was_sent(served: Served) -> None:
    name, _ = await keep(served, "hello", positions={"last": {}})
    never = {"token_ids": {"ids": [0]}}
    unused = replace(site(2), name=name, where=never)
    edits = [replace(*WHERE, name=name), unused]
    refused = await failure(served.generation.Generate(generate(interventions=edits)))
    assert (refused.reason, refused.field) == ("INTERVENTION_UNUSED", "interventions[1]")
    assert refused.message.startswith("interventions[1]: the intervention changed no row")


REFUSED = [
    ({"name": ""}, "FIELD_REQUIRED", "name", "not set"),
    ({"site": site(1)}, "SITE_INVALID", "site", "resid_post.1 was not kept"),
    ({"site": {}}, "SITE_INVALID", "site.hook_point", "not set"),
    ({"site": site(1, K)}, "TENSOR_WIDTH_MISMATCH", "site", "8 wide"),
    ({"positions": [2, 1]}, "FIELD_INVALID", "positions", "ascending"),
    ({"positions": [1, 1]}, "FIELD_INVALID", "positions", "ascending"),
    ({"positions": [6]}, "POSITION_OUT_OF_RANGE", "positions", "position 6 was not kept"),
    ({"positions": [1, 2]}, "TENSOR_SIZE_MISMATCH", "", "2 rows, but 6 positions"),
]


@pytest.mark.parametrize(("change", "reason", "field", "says"), REFUSED, ids=str)
async def test_kept_rows_that_do_not_fit_are_refused(
    served: Served, change: dict[str, Any], reason: str, field: str, says: str
) -> None:
    name, _ = await keep(served, "hello", [site(2), site(1, K)])
    edit = replace(site(2), **{"name": name, **change})
    refused = await failure(
        served.generation.FetchActivations(fetch("world", interventions=[edit]))
    )
    assert refused.reason == reason
    at = "interventions[0].replace.rows.kept"
    assert refused.field == (f"{at}.{field}" if field else at)
    assert says in refused.message


async def test_heads_need_kept_rows_of_as_many_heads(served: Served) -> None:
    name, _ = await keep(served, "hello", [site(2)])
    edit = replace(site(1, Q), name=name, site=site(2), heads=[1])
    refused = await failure(
        served.generation.FetchActivations(fetch("world", interventions=[edit]))
    )
    assert refused.reason == "TENSOR_WIDTH_MISMATCH"
    assert "16 wide in 0 heads, but q.1 is 16 wide in 4 heads" in refused.message


async def test_an_unknown_name_is_not_found(served: Served) -> None:
    edit = replace(site(2), name="keptActivations/unknown")
    refused = await failure(served.generation.Generate(generate(interventions=[edit])))
    assert refused.reason == "KEPT_NOT_FOUND"
    assert refused.details["ResourceInfo"].resource_name == "keptActivations/unknown"
