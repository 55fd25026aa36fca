"""Conditions: an intervention acts at the selected tokens whose score meets its bounds."""

from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import readout_pb2, site_pb2
from actserve_server.domain.conditions import check_order
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.probes import Aggregator, Ema, RollingMean, ScoreReduction
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    collect,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    report,
    run,
    serving,
    site,
)
from tests.contract.readouts import kept, of_kind
from tests.contract.refusals import ONES, WIDTH, Case, check, engine, refusal
from tests.contract.test_interventions import plain_rows, run_ids
from tests.unit.test_probes import reference

PRE, POST = Site(HookPoint.RESID_PRE, 1), Site(HookPoint.RESID_POST, 1)
W = np.linspace(-1, 1, WIDTH).astype(np.float32)
LENGTH, GENERATED = 20, 6
"""In tokens: the beginning of the text and its characters, and what is generated."""
MEAN = {"mean": {"mean": inline(9 * ONES)}}


def when(
    where: dict[str, Any] | None = None, direction: Any = None, bias: float = 0.0, **fields: Any
) -> dict[str, Any]:
    """A condition with a probe at resid_pre.1 unless told otherwise."""
    probe = {
        "site": site(1, site_pb2.HOOK_POINT_RESID_PRE) if where is None else where,
        "direction": inline(W) if direction is None else direction,
        "bias": bias,
    }
    return {"when": {"probe": probe, **fields}}


AGGREGATORS: list[tuple[dict[str, Any], Aggregator]] = [
    ({}, Aggregator()),
    ({"reduction": readout_pb2.REDUCTION_LAST}, Aggregator()),
    ({"ema": {"weight": 0.25}}, Aggregator(Ema(0.25))),
    ({"rolling_mean": {"tokens": 3}}, Aggregator(RollingMean(3))),
    ({"reduction": readout_pb2.REDUCTION_MEAN}, Aggregator(reduction=ScoreReduction.MEAN)),
    ({"reduction": readout_pb2.REDUCTION_MAX}, Aggregator(reduction=ScoreReduction.MAX)),
    (
        {"ema": {"weight": 1.0}, "reduction": readout_pb2.REDUCTION_MAX},
        Aggregator(Ema(1.0), ScoreReduction.MAX),
    ),
]
BOUNDS = [({"above": 1.5}, 1.5, np.inf), ({"below": 0.5}, -np.inf, 0.5)]
BOUNDS += [({"above": -0.5, "below": 2.0}, -0.5, 2.0)]


@pytest.mark.parametrize(("positions", "first"), [({}, 0), ({"generated": {}}, LENGTH)])
@pytest.mark.parametrize(("bounds", "low", "high"), BOUNDS, ids=str)
@pytest.mark.parametrize(("wire", "aggregator"), AGGREGATORS, ids=str)
async def test_it_acts_at_the_selected_tokens_whose_score_is_between_the_bounds(
    wire: dict[str, Any],
    aggregator: Aggregator,
    bounds: dict[str, Any],
    low: float,
    high: float,
    positions: dict[str, Any],
    first: int,
) -> None:
    change = intervention(
        **MEAN,
        **when(bias=0.5, aggregator=wire, **bounds),
        **({"positions": positions} if positions else {}),
    )
    events = await run(
        generate(
            prompt={"text": "a" * (LENGTH - 1)},
            sampling={"max_tokens": GENERATED, "temperature": 0},
            interventions=[change],
            capture={"sites": [site()]},
        ),
        FakeEngine(),
    )
    ids = run_ids(events)
    scores = reference(plain_rows(PRE, ids) @ W + np.float32(0.5), aggregator)
    acts = [t for t in range(first, len(ids)) if low < scores[t] < high]
    expected = plain_rows(POST, ids)
    expected[acts] = 9
    np.testing.assert_array_equal(matrices(events)[0, 0][1], expected)
    told = report(events)
    assert (told.rows, told.changed_rows, told.reused_rows) == (len(acts), len(acts), 0)
    assert told.HasField("mean_relative_change") == bool(acts)


def _reports(events: list[Any]) -> list[Any]:
    (finished,) = of_kind(events, "item_finished")
    return [*finished.interventions]


async def test_a_changed_site_is_read_as_the_interventions_before_left_it() -> None:
    zero = intervention(zero={})
    at_zero = {"above": -0.5, "below": 0.5}
    here = intervention(**MEAN, **when(site(), **at_zero))
    events = await run(fetch(interventions=[zero, here], capture={"sites": [site()]}))
    assert (matrices(events)[0, 0][1] == 9).all()
    # Without the first, some rows score otherwise.
    events = await run(fetch(interventions=[here, zero], capture={"sites": [site()]}))
    (before, after) = _reports(events)
    assert before.rows < after.rows


async def test_another_site_is_read_after_all_interventions_there() -> None:
    later = intervention(site(3), **MEAN, **when(site(), above=-0.5, below=0.5))
    events = await run(fetch(interventions=[later, intervention(zero={})]))
    first, second = _reports(events)
    assert first.rows == second.rows > 0


async def test_heads_that_take_their_own_kept_rows_are_decided_together() -> None:
    q = site(1, site_pb2.HOOK_POINT_Q)
    async with serving(FakeEngine()) as served:
        donor = await collect(
            served.generation.FetchActivations(fetch("hello", capture={"sites": [q], "keep": {}}))
        )
        name = kept(donor)[0]
        source = {"kept": {"name": name, "positions": [2]}}
        change = intervention(q, heads=[0, 1, 2, 3], mean={"mean": source}, **when(q, above=0.0))
        events = await collect(
            served.generation.FetchActivations(
                fetch("other", interventions=[change], capture={"sites": [q]})
            )
        )
    row = matrices(donor)[0, 0][1][2]
    rows = matrices(events)[0, 0][1]
    replaced = (rows == row).reshape(len(rows), 4, -1).all(axis=2)
    # All heads of a row, or none.
    assert (replaced.all(axis=1) | ~replaced.any(axis=1)).all()
    (told,) = _reports(events)
    assert told.rows == replaced.sum() > 0
    assert not replaced.all()


async def test_a_condition_that_is_never_met_is_an_answer() -> None:
    change = intervention(zero={}, **when(above=1e30))
    told = report(await run(generate(interventions=[change])))
    assert (told.rows, told.changed_rows, told.reused_rows) == (0, 0, 0)
    assert not told.HasField("mean_relative_change")


async def test_what_it_selects_must_be_run_all_the_same() -> None:
    change = intervention(zero={}, positions={"token_ids": {"ids": [0]}}, **when(above=1e30))
    refused = await refusal(generate(interventions=[change]))
    assert (refused.reason, refused.field) == ("INTERVENTION_UNUSED", "interventions[0]")


async def test_a_score_that_is_not_finite_withholds_the_answer() -> None:
    large = intervention(site(0), mean={"mean": inline(3e38 * ONES)})
    change = intervention(site(1), zero={}, **when(site(0), direction=inline(ONES), above=0.0))
    refused = await refusal(generate(interventions=[large, change]))
    assert refused.reason == "INTERVENTION_INCOMPLETE"
    assert refused.field == "interventions[1].when"
    assert "not finite at position 0" in refused.message


async def test_the_direction_may_be_named_as_any_vector() -> None:
    """Kept rows without a site are those of the probe's site, not of the changed one."""
    pre = site(1, site_pb2.HOOK_POINT_RESID_PRE)
    async with serving(FakeEngine()) as served:
        donor = await collect(
            served.generation.FetchActivations(fetch("hello", capture={"sites": [pre], "keep": {}}))
        )
        row = matrices(donor)[0, 0][1][0]
        source = {"kept": {"name": kept(donor)[0], "positions": [0]}}
        found = [
            await collect(
                served.generation.Generate(
                    generate(interventions=[intervention(zero={}, **when(direction=each, above=0))])
                )
            )
            for each in (source, inline(row))
        ]
    assert report(found[0]) == report(found[1])
    assert report(found[0]).rows > 0


REFUSED = [
    (when(above=0.0) | {"when": {"above": 0.0}}, "FIELD_REQUIRED", ".probe", "probe"),
    (when(), "FIELD_REQUIRED", "", "above, below"),
    (when(above=2.0, below=1.0), "FIELD_INVALID", ".above", "above 2 and below 1"),
    (when(above=1.0, below=1.0), "FIELD_INVALID", ".above", "no score"),
    (when(above=float("nan")), "FIELD_INVALID", ".above", "finite"),
    (when(below=float("inf")), "FIELD_INVALID", ".below", "finite"),
    (when(bias=float("inf"), above=0.0), "FIELD_INVALID", ".probe.bias", "finite"),
    (when(direction={}, above=0.0), "FIELD_REQUIRED", ".probe.direction", "[16]"),
    (
        when(direction=inline(np.zeros(WIDTH)), above=0.0),
        "TENSOR_DEGENERATE",
        ".probe.direction",
        "0",
    ),
    (
        when(direction=inline(np.ones(3)), above=0.0),
        "TENSOR_WIDTH_MISMATCH",
        ".probe.direction.tensor.shape",
        "resid_pre.1",
    ),
    (
        when(direction={"edit": {"original": "a", "edited": "b"}}, above=0.0),
        "FIELD_INVALID",
        ".probe.direction.edit",
        "a probe changes nothing",
    ),
    (when({}, above=0.0), "SITE_INVALID", ".probe.site.hook_point", "not set"),
    (when(site(9), above=0.0), "LAYER_OUT_OF_RANGE", ".probe.site", "0 to 3"),
    (
        when(site(2), above=0.0),
        "SITE_INVALID",
        ".probe.site",
        "resid_post.2, which is computed after resid_post.1",
    ),
    (
        when(site(None, site_pb2.HOOK_POINT_LOGITS), inline(np.ones(300)), above=0.0),
        "SITE_INVALID",
        ".probe.site",
        "logits",
    ),
    (
        when(above=0.0, aggregator={"ema": {"weight": 0.0}}),
        "FIELD_INVALID",
        ".aggregator.ema.weight",
        "at most 1",
    ),
    (
        when(above=0.0, aggregator={"ema": {"weight": 1.5}}),
        "FIELD_INVALID",
        ".aggregator.ema.weight",
        "1.5",
    ),
    (
        when(above=0.0, aggregator={"rolling_mean": {}}),
        "FIELD_INVALID",
        ".aggregator.rolling_mean.tokens",
        "1 to 1024",
    ),
    (
        when(above=0.0, aggregator={"attention": {"tokens": 4}}),
        "FIELD_INVALID",
        ".aggregator.attention",
        "attention weights tokens by the queries of a monitor's network, and this probe has none",
    ),
    (
        when(above=0.0, aggregator={"rolling_mean": {"tokens": 1025}}),
        "FIELD_INVALID",
        ".aggregator.rolling_mean.tokens",
        "1025",
    ),
    (when(above=0.0, aggregator={"reduction": 9}), "FIELD_INVALID", ".aggregator.reduction", "9"),
]


@pytest.mark.parametrize(("fields", "reason", "field", "says"), REFUSED, ids=str)
async def test_a_condition_that_means_nothing_is_refused(
    fields: dict[str, Any], reason: str, field: str, says: str
) -> None:
    await check(
        Case(
            name="condition",
            request=generate(interventions=[intervention(zero={}, **fields)]),
            reason=reason,
            field=f"interventions[0].when{field}",
            says=(says,),
        )
    )


async def test_one_of_several_changed_sites_is_no_site_of_the_probe() -> None:
    change = intervention(site(1), site(2), zero={}, **when(site(1), above=0.0))
    await check(
        Case(
            name="one of several",
            request=generate(interventions=[change]),
            reason="SITE_INVALID",
            field="interventions[0].when.probe.site",
            says=("one of several", "change no other"),
        )
    )


async def test_an_unserved_site_is_not_read() -> None:
    change = intervention(
        site(3), zero={}, **when(site(1, site_pb2.HOOK_POINT_ATTN_OUT), above=0.0)
    )
    await check(
        Case(
            name="unserved",
            request=generate(interventions=[change]),
            reason="SITE_NOT_SERVED",
            field="interventions[0].when.probe.site",
            says=("not verified",),
            code=grpc.StatusCode.FAILED_PRECONDITION,
        )
    )


async def test_where_conditions_failed_their_self_test_they_are_refused() -> None:
    fake = engine(conditions_unserved="failed the self-test: it never acts")
    await check(
        Case(
            name="withdrawn",
            request=generate(interventions=[intervention(zero={}, **when(above=0.0))]),
            reason="SITE_NOT_SERVED",
            field="interventions[0].when",
            says=("it never acts",),
            code=grpc.StatusCode.FAILED_PRECONDITION,
        ),
        fake,
    )


_LAYER = "resid_pre q k v z attn_out resid_mid mlp_in mlp_act mlp_out resid_post"
IN_ORDER = [
    Site(HookPoint.EMBEDDING),
    *(Site(HookPoint(name), layer) for layer in range(3) for name in _LAYER.split()),
    Site(HookPoint.FINAL_NORM),
    Site(HookPoint.LOGITS),
]


def test_a_probe_reads_only_what_is_computed_before_each_changed_site() -> None:
    for first, probed in enumerate(IN_ORDER):
        for second, changed in enumerate(IN_ORDER):
            if first <= second:
                check_order(probed, [changed], ("when",))
                continue
            with pytest.raises(ActserveError) as error:
                check_order(probed, [changed], ("when",))
            assert error.value.reason is Reason.SITE_INVALID
