"""Interventions: what every operation does, and where."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import site_pb2, tensor_pb2
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.requests.site_fields import HOOK_POINTS
from tests.contract.formulas import Formula, formulas
from tests.contract.harness import (
    addition,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    report,
    run,
    site,
)

WIDTH, HEAD_WIDTH = 16, 4
SITE = Site(HookPoint.RESID_POST, 1)
Q = site(1, site_pb2.HOOK_POINT_Q)
WIRE = {hook: wire for wire, hook in HOOK_POINTS.items()}

CONVERSATION = {
    "conversation": {
        "turns": [{"role": "system", "content": "be"}, {"role": "user", "content": "a cät"}]
    }
}
"""Position 9 is "b", and 18 is "a"; "ä" is 21 and 22; 36 tokens, and the answer begins at 36."""
GENERATED = 4
EVEN = [*range(32, 127, 2)]
"""Half of all characters, and so of what is generated."""

Positions = Callable[[list[int]], list[int]]


def always(*positions: int) -> Positions:
    return lambda ids: list(positions)


SELECTORS: dict[str, tuple[dict[str, Any], Positions]] = {
    "all": ({"all": {}}, always(*range(39))),
    "last": ({"last": {}}, always(35)),
    "list": ({"list": {"positions": [37, -1, 0]}}, always(0, 35, 37)),
    "range": ({"span": {"start": 20, "end": -2}}, always(*range(20, 34))),
    "open range": ({"span": {"start": -2}}, always(*range(34, 39))),
    "prompt": ({"prompt": {}}, always(*range(36))),
    "generated": ({"generated": {}}, always(36, 37, 38)),
    "token ids": (
        {"token_ids": {"ids": EVEN}},
        lambda ids: [p for p, token in enumerate(ids) if token in EVEN],
    ),
    "text": ({"text": {"text": "a"}}, always(18)),
    "text of a turn": ({"text": {"text": "ät", "occurrence": -1, "turn": 1}}, always(21, 22, 23)),
    "characters": ({"characters": {"start": 2, "end": 4, "turn": -1}}, always(20, 21, 22)),
    "turns": ({"turns": {"turns": [0]}}, always(9, 10)),
    "roles": ({"turns": {"roles": ["system", "assistant"]}}, always(9, 10, 36, 37, 38)),
    "the answer": ({"turns": {"turns": [2]}}, always(36, 37, 38)),
}


def run_ids(events: list[Any]) -> list[int]:
    """The tokens of a generation that were run: all but the last."""
    generated = [token for event in events for token in event.tokens.ids]
    return [*events[0].started.prompt.ids, *generated][:-1]


def plain_rows(where: Site, ids: list[int]) -> np.ndarray:
    """What the model computes without interventions."""
    fake = FakeEngine()
    return np.stack([fake.row(where, ids[: p + 1]) for p in range(len(ids))])


def assert_close(actual: Any, expected: Any) -> None:
    """Equal up to float32's rounding."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("formula", formulas(WIDTH), ids=str)
async def test_an_operation_changes_the_selected_rows_by_its_formula(
    formula: Formula, selector: str
) -> None:
    wire, positions_of = SELECTORS[selector]
    events = await run(
        generate(
            prompt=CONVERSATION,
            sampling={"max_tokens": GENERATED, "temperature": 0},
            interventions=[intervention(positions=wire, **formula.wire)],
            capture={"sites": [site()]},
        )
    )
    ids = run_ids(events)
    positions = positions_of(ids)
    before = plain_rows(SITE, ids)
    expected = before.astype(np.float64)
    expected[positions] = formula.of(expected[positions])
    after = matrices(events)[0, 0][1]
    assert_close(after, expected)
    untouched = np.setdiff1d(np.arange(len(ids)), positions)
    np.testing.assert_array_equal(after[untouched], before[untouched])

    told = report(events)
    change = np.linalg.norm(expected - before, axis=1) / np.linalg.norm(before, axis=1)
    assert (told.rows, told.reused_rows) == (len(positions), 0)
    assert told.changed_rows == int((after != before).any(axis=1).sum())
    assert_close(told.mean_relative_change, change[positions].mean())


@pytest.mark.parametrize("selector", SELECTORS)
async def test_a_capture_holds_the_selected_rows(selector: str) -> None:
    wire, positions_of = SELECTORS[selector]
    events = await run(
        generate(
            prompt=CONVERSATION,
            sampling={"max_tokens": GENERATED, "temperature": 0},
            capture={"sites": [site()], "positions": wire},
        )
    )
    ids = run_ids(events)
    positions, rows = matrices(events)[0, 0]
    assert positions == positions_of(ids)
    assert list(events[-2].sample_finished.positions[0].positions) == positions
    np.testing.assert_array_equal(rows, plain_rows(SITE, ids)[positions])


async def test_a_generated_token_counts_by_its_id_once_it_is_run() -> None:
    def asking(max_tokens: int, token: int) -> pb.GenerateRequest:
        capture = {"sites": [site()], "positions": {"token_ids": {"ids": [token]}}}
        sampling = {"max_tokens": max_tokens, "temperature": 0}
        edit = {
            **addition(np.zeros(WIDTH)),
            "allow_unused": True,
            "positions": capture["positions"],
        }
        return generate(sampling=sampling, capture=capture, interventions=[edit])

    ids = run_ids(await run(generate()))
    for position in range(7, len(ids)):
        token, generated = ids[position], position - 5
        counted = [p for p in range(position) if ids[p] == token]
        # It is the last one sampled, and then the last but one.
        for max_tokens, expected in (generated, counted), (generated + 1, [*counted, position]):
            events = await run(asking(max_tokens, token))
            assert list(events[-2].sample_finished.positions[0].positions) == expected
            assert report(events).rows == len(expected)


@pytest.mark.parametrize("hook_point", [hook for hook in HookPoint if hook is not HookPoint.LOGITS])
async def test_every_hook_point_but_the_logits_can_be_changed(hook_point: HookPoint) -> None:
    fake = FakeEngine()
    where = site(None if hook_point in LAYERLESS else 2, WIRE[hook_point])
    width = fake.info.hook_points[hook_point].width
    ablate = next(formula for formula in formulas(width) if formula.name == "ablate")
    changed = fetch(interventions=[intervention(where, **ablate.wire)], capture={"sites": [where]})
    plain = fetch(capture={"sites": [where]})
    before, after = [matrices(await run(request))[0, 0][1] for request in (plain, changed)]
    assert after.shape == (6, width)
    assert_close(after, ablate.of(before.astype(np.float64)))


@pytest.mark.parametrize("formula", formulas(HEAD_WIDTH), ids=str)
async def test_an_operation_on_heads_changes_each_by_itself(formula: Formula) -> None:
    edit = intervention(Q, heads=[3, 1], **formula.wire)
    events = await run(fetch("ab", interventions=[edit], capture={"sites": [Q]}))
    plain = await run(fetch("ab", capture={"sites": [Q]}))
    before = matrices(plain)[0, 0][1].reshape(3, 4, HEAD_WIDTH)
    after = matrices(events)[0, 0][1].reshape(3, 4, HEAD_WIDTH)
    for head in (1, 3):
        expected = formula.of(before[:, head].astype(np.float64))
        assert_close(after[:, head], expected)
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])
    change = np.linalg.norm(after - before, axis=2) / np.linalg.norm(before, axis=2)
    told = report(events)
    assert told.rows == 6
    assert_close(told.mean_relative_change, change[:, [1, 3]].mean())


async def test_key_value_heads_are_fewer() -> None:
    where = site(1, site_pb2.HOOK_POINT_V)
    edit = intervention(where, heads=[1], zero={})
    rows = matrices(await run(fetch(interventions=[edit], capture={"sites": [where]})))[0, 0][1]
    assert rows.shape == (6, 8)
    assert rows[:, :4].all()
    assert not rows[:, 4:].any()


async def test_an_intervention_acts_at_each_of_its_sites() -> None:
    sites = [site(3), site(0, site_pb2.HOOK_POINT_MLP_IN), site(None, WIRE[HookPoint.FINAL_NORM])]
    edit = intervention(*sites, mean={"mean": inline(np.arange(WIDTH))})
    events = await run(fetch("ab", interventions=[edit], capture={"sites": sites}))
    for index in range(3):
        np.testing.assert_array_equal(
            matrices(events)[0, index][1], np.tile(np.arange(WIDTH), (3, 1))
        )
    assert report(events).rows == 9


async def test_a_change_shows_from_its_site_on_where_widths_agree() -> None:
    sites = [
        site(0),
        site(1, site_pb2.HOOK_POINT_MLP_OUT),
        site(1),
        site(2, site_pb2.HOOK_POINT_MLP_ACT),
        site(3),
    ]
    edits = [addition(np.full(WIDTH, 3.0))]
    steered = matrices(await run(fetch(capture={"sites": sites}, interventions=edits)))
    plain = matrices(await run(fetch(capture={"sites": sites})))
    moved = [steered[0, index][1] - plain[0, index][1] for index in range(len(sites))]
    for rows, by in zip(moved, [0.0, 0.0, 3.0, 0.0, 3.0], strict=True):
        assert_close(rows, np.full_like(rows, by))


async def test_interventions_act_in_the_order_of_the_request() -> None:
    zero = intervention(zero={})
    add = addition(np.arange(WIDTH))
    for edits, expected in ([zero, add], np.arange(WIDTH)), ([add, zero], np.zeros(WIDTH)):
        rows = matrices(await run(fetch(interventions=edits)))[0, 0][1]
        np.testing.assert_array_equal(rows, np.tile(expected, (6, 1)))


@pytest.mark.parametrize("element_type", ["F16", "BF16"])
async def test_a_tensor_may_come_in_half_precision(element_type: str) -> None:
    # Sixteenths, which all types hold.
    values = (np.arange(WIDTH, dtype=np.float32) - 7) / 16
    halves = values.astype("<f2") if element_type == "F16" else (values.view("<u4") >> 16)
    mean = {
        "element_type": tensor_pb2.ElementType.Value(f"ELEMENT_TYPE_{element_type}"),
        "shape": [WIDTH],
        "data": halves.astype("<f2" if element_type == "F16" else "<u2").tobytes(),
    }
    events = await run(fetch(interventions=[intervention(mean={"mean": {"tensor": mean}})]))
    np.testing.assert_array_equal(matrices(events)[0, 0][1], np.tile(values, (6, 1)))


@pytest.mark.parametrize(
    "selector",
    [
        {"all": {}},
        {"list": {"positions": [-1, 1]}},
        {"span": {"start": 2, "end": 99}},
        {"token_ids": {"ids": [ord("l")]}},
        {"text": {"text": "ell"}},
    ],
    ids=str,
)
async def test_captured_rows_can_be_put_back_in_place(selector: dict[str, Any]) -> None:
    capture = {"sites": [site()], "positions": selector}
    source = matrices(await run(fetch("hello", capture=capture)))[0, 0]
    patch = intervention(positions=selector, replace={"rows": inline(source[1])})
    # Of another prompt with the selected tokens at the same places.
    patched = matrices(await run(fetch("jello", interventions=[patch])))[0, 0][1]
    plain = matrices(await run(fetch("jello")))[0, 0][1]
    expected = plain.copy()
    expected[source[0]] = source[1]
    np.testing.assert_array_equal(patched, expected)
    assert (expected != plain).any()


async def test_rows_can_be_put_at_listed_generated_positions() -> None:
    rows = np.arange(2 * WIDTH).reshape(2, WIDTH)
    patch = intervention(positions={"list": {"positions": [7, 2]}}, replace={"rows": inline(rows)})
    events = await run(generate(interventions=[patch], capture={"sites": [site()]}))
    np.testing.assert_array_equal(matrices(events)[0, 0][1][[2, 7]], rows)


async def test_a_change_of_the_final_norm_shows_in_the_logits_and_the_text() -> None:
    logits = site(None, WIRE[HookPoint.LOGITS])
    edit = intervention(site(None, WIRE[HookPoint.FINAL_NORM]), zero={})
    for edits in [], [edit]:
        events = await run(generate(interventions=edits, capture={"sites": [logits]}))
        rows = matrices(events)[0, 0][1]
        assert rows.shape == (10, FakeEngine().info.vocabulary_size)
        ids = [*run_ids(events), events[-3].tokens.ids[0]]
        assert rows[5:].argmax(axis=1).tolist() == ids[6:]
        assert bool(edits) == (rows[5:].max() == 0)


async def test_a_strong_addition_changes_the_text() -> None:
    plain = await run(generate())
    steered = await run(generate(interventions=[addition(np.full(WIDTH, 50.0), layer=3)]))
    assert run_ids(plain) != run_ids(steered)


async def test_an_addition_at_generated_positions_leaves_the_first_token() -> None:
    edit = {**addition(np.full(WIDTH, 50.0), layer=3), "positions": {"generated": {}}}
    plain = run_ids(await run(generate()))
    steered = run_ids(await run(generate(interventions=[edit])))
    assert plain[:7] == steered[:7]
    assert plain[7:] != steered[7:]
