"""What an operator limits that interventions add: beyond it a call is refused, or scaled down and
told so, however its additions are cut."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import model_service_pb2, site_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.model import Limits
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.row_norms import TEXT, TOKENS
from tests.contract.harness import (
    Served,
    addition,
    collect,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    report,
    serving,
    site,
)
from tests.contract.monitors import create as create_monitor
from tests.contract.monitors import full
from tests.contract.nlas import Tiny, explain_text
from tests.contract.sweeps import cells, steered, sweep
from tests.contract.vectors import create, stored

LIMIT = 0.5
UNIT = np.eye(16, dtype=np.float32)[3]
HEAD = UNIT[:4]
PLACE = Site(HookPoint.RESID_POST, 1)


def engine(
    *served: HookPoint, clamps: bool = False, limit: float | None = LIMIT, tokens: int = 64
) -> FakeEngine:
    """With a few hook points and a short text, which are quickly measured."""
    limits = Limits(max_sequence_tokens=tokens, max_relative_dose=limit, clamps_dose=clamps)
    served = served or (HookPoint.RESID_PRE, HookPoint.RESID_POST, HookPoint.Z)
    unserved = {point: "not wanted" for point in HookPoint if point not in served}
    return FakeEngine(limits=limits, unserved=unserved)


def norm(served: Served, where: Site = PLACE) -> float:
    return served.app.engine.info.row_norms[where]


def z(layer: int = 1) -> dict[str, Any]:
    return site(layer, site_pb2.HOOK_POINT_Z)


def pre(layer: int) -> dict[str, Any]:
    return site(layer, site_pb2.HOOK_POINT_RESID_PRE)


def clamp(**bounds: float) -> dict[str, Any]:
    return intervention(clamp={"direction": inline(UNIT), **bounds})


def ablation(coefficient: float) -> dict[str, Any]:
    return intervention(ablate={"direction": inline(UNIT), "coefficient": coefficient})


def on_heads(vector: Any, *heads: int, **add: Any) -> dict[str, Any]:
    return intervention(z(), heads=heads, add={"vector": inline(vector), **add})


def dosed(size: float, n: float, head_n: float) -> dict[str, list[dict[str, Any]]]:
    """Ways to add so much of the norm: `n` of the site, and `head_n` of that of heads."""
    last = {"positions": {"last": {}}}
    return {
        "one": [addition(UNIT * n * size)],
        "by its coefficient": [addition(UNIT, coefficient=-n * size)],
        "relative": [addition(9 * UNIT, coefficient=size, relative=True)],
        "in two": [addition(UNIT * n * size * 0.25), addition(UNIT * n * size * 0.75)],
        "in two that cancel": [addition(UNIT * n * size / 2), addition(-UNIT * n * size / 2)],
        "at other positions": [
            addition(UNIT * n * size / 2) | {"positions": {"list": {"positions": [0]}}},
            addition(UNIT * n * size / 2) | last,
        ],
        "by another name": [
            addition(UNIT * n * size / 2),
            intervention(pre(2), add={"vector": inline(UNIT * n * size / 2)}),
        ],
        "at one of two sites": [
            intervention(site(1), site(3), add={"vector": inline(UNIT * n * size)})
        ],
        "on a head": [on_heads(HEAD * head_n * size, 2)],
        "on four heads": [on_heads(HEAD * head_n * size / 2, 0, 1, 2, 3)],
        "relative on heads": [on_heads(HEAD, 0, 1, coefficient=size, relative=True)],
        "a lower bound": [clamp(minimum=n * size)],
        "an upper bound": [clamp(maximum=-n * size)],
        "both": [clamp(minimum=-n * size, maximum=-n * size)],
        "a bound and an addition": [clamp(minimum=n * size / 2), addition(UNIT * n * size / 2)],
        "more than a reflection": [ablation(2 + size)],
        "the contrary of removing": [ablation(-size)],
    }


async def test_what_the_model_tells_is_what_was_set() -> None:
    for clamps in (False, True):
        async with serving(engine(clamps=clamps)) as served:
            request = model_service_pb2.GetModelRequest(name="models/fake")
            limits = (await served.models.GetModel(request)).model.limits
            assert (limits.max_relative_dose, limits.clamps_dose) == (LIMIT, clamps)
    async with serving() as served:
        request = model_service_pb2.GetModelRequest(name="models/fake")
        limits = (await served.models.GetModel(request)).model.limits
        assert not limits.HasField("max_relative_dose")
        assert not limits.clamps_dose


async def test_norms_are_medians_over_a_text_without_its_first_token() -> None:
    # Of bytes, which the fake engine's tokens are after the first.
    async with serving(engine(*HookPoint, tokens=300), measured=True) as served:
        info = served.app.engine.info
        assert len(info.row_norms) == 4 * (len(HookPoint) - len(LAYERLESS)) + len(LAYERLESS)
        text = TEXT.encode()[: TOKENS - 1].decode()
        request = fetch(text, capture={"sites": [site()]})
        (rows,) = matrices(await collect(served.generation.FetchActivations(request))).values()
        assert len(rows[1]) == TOKENS
        wanted = np.median(np.linalg.norm(rows[1][1:].astype(np.float64), axis=1))
        assert norm(served) == pytest.approx(wanted, rel=1e-12)


WAYS = list(dosed(1, 1, 1))


@pytest.mark.parametrize("way", WAYS)
async def test_what_adds_more_is_refused_with_what_would_do(way: str) -> None:
    async with serving(engine(), measured=True) as served:
        n, head_n = norm(served), norm(served, Site(HookPoint.Z, 1))
        for size, allowed in ((LIMIT * 0.99, True), (LIMIT * 1.02, False)):
            edits = dosed(size, n, head_n)[way]
            call = served.generation.Generate(generate(interventions=edits))
            if allowed:
                events = await collect(call)
                told = next(e.sample_finished for e in events if e.HasField("sample_finished"))
                assert not any(each.HasField("dose_factor") for each in told.interventions)
                continue
            refused = await failure(call)
            assert refused.reason == "DOSE_TOO_LARGE"
            assert refused.field.startswith("interventions[")
            metadata = refused.details["ErrorInfo"].metadata
            assert float(metadata["dose"]) >= LIMIT * 1.01
            assert float(metadata["limit"]) == LIMIT
            assert metadata["site"] in ("resid_post.1", "resid_pre.2", "resid_post.3", "z.1")
            # To be measured, and what was allowed.
            assert served.engine.counters.started == 2


async def test_the_coefficient_that_the_error_names_is_allowed() -> None:
    async with serving(engine(), measured=True) as served:
        edit = addition(UNIT, coefficient=-100)
        refused = await failure(served.generation.Generate(generate(interventions=[edit])))
        most = float(refused.message.rpartition(" ")[2])
        assert 0.99 * LIMIT * norm(served) < most <= LIMIT * norm(served)
        edit = addition(UNIT, coefficient=-most)
        await collect(served.generation.Generate(generate(interventions=[edit])))


@pytest.mark.parametrize("way", WAYS)
async def test_or_it_is_scaled_down_and_told(way: str) -> None:
    async with serving(engine(clamps=True), measured=True) as served:
        n, head_n = norm(served), norm(served, Site(HookPoint.Z, 1))
        edits = dosed(4 * LIMIT, n, head_n)[way]
        events = await collect(served.generation.Generate(generate(interventions=edits)))
        told = next(e.sample_finished for e in events if e.HasField("sample_finished"))
        factors = [each.dose_factor for each in told.interventions]
        # At the second of two sites rows are of another length.
        assert factors == pytest.approx([0.25] * len(edits), rel=0.2)
        # What it does is what a call with the smaller one does.
        smaller = generate(interventions=[_times(edit, factors[0]) for edit in edits])
        again = await collect(served.generation.Generate(smaller))
        finished = next(e.sample_finished for e in again if e.HasField("sample_finished"))
        for one, other in zip(told.interventions, finished.interventions, strict=True):
            assert not other.HasField("dose_factor")
            assert one.mean_relative_change == pytest.approx(other.mean_relative_change, rel=1e-4)


def _times(edit: dict[str, Any], factor: float) -> dict[str, Any]:
    factor *= 1 - 1e-6
    if "add" in edit:
        add = dict(edit["add"])
        return edit | {"add": add | {"coefficient": factor * add.get("coefficient", 1)}}
    if "ablate" in edit:
        return ablation(factor * edit["ablate"]["coefficient"])
    bounds = {name: factor * each for name, each in edit["clamp"].items() if name != "direction"}
    return clamp(**bounds)


SHARES: dict[str, list[dict[str, Any]]] = {
    "one of what the other has left": [ablation(-LIMIT / 2), ablation(-LIMIT / 2)],
    "cut into many": [ablation(-LIMIT / 10) for _ in range(10)],
    "relative additions": [addition(UNIT, coefficient=LIMIT / 2, relative=True)] * 2,
}


@pytest.mark.parametrize("way", SHARES)
async def test_shares_of_a_row_are_of_what_those_before_have_left(way: str) -> None:
    """Their sum is just the limit, and more comes of them."""
    n = len(SHARES[way])
    request = generate(interventions=SHARES[way])
    async with serving(engine(), measured=True) as served:
        refused = await failure(served.generation.Generate(request))
        assert refused.reason == "DOSE_TOO_LARGE"
        dose = float(refused.details["ErrorInfo"].metadata["dose"])
        assert dose == pytest.approx((1 + LIMIT / n) ** n - 1, rel=1e-3)
    async with serving(engine(clamps=True), measured=True) as served:
        events = await collect(served.generation.Generate(request))
        told = next(e.sample_finished for e in events if e.HasField("sample_finished"))
        for report in told.interventions:
            share = report.dose_factor * LIMIT / n
            assert (1 + share) ** n - 1 == pytest.approx(LIMIT, rel=1e-5)


async def test_a_share_after_an_addition_is_of_the_longer_row() -> None:
    async with serving(engine(), measured=True) as served:
        half = addition(UNIT * norm(served) * LIMIT / 2)
        relative = addition(UNIT, coefficient=LIMIT / 2, relative=True)
        for order, dose in (
            ([half, relative], LIMIT + LIMIT**2 / 4),
            ([relative, addition(UNIT * norm(served) * LIMIT * 0.51)], LIMIT * 1.01),
        ):
            refused = await failure(served.generation.Generate(generate(interventions=order)))
            told = float(refused.details["ErrorInfo"].metadata["dose"])
            assert told == pytest.approx(dose, rel=1e-3)
        await collect(served.generation.Generate(generate(interventions=[relative, half])))


async def test_what_takes_away_or_puts_rows_in_place_has_no_dose() -> None:
    async with serving(engine(), measured=True) as served:
        n = norm(served)
        edits = [
            clamp(minimum=0, maximum=0),
            clamp(minimum=-100 * n, maximum=100 * n),
            ablation(1),
            ablation(2),
            intervention(zero={}),
            intervention(mean={"mean": inline(100 * n * UNIT)}),
            intervention(replace={"rows": inline(100 * n * UNIT)}),
            intervention(
                swap={"first": inline(9 * n * UNIT), "second": inline(9 * n * np.roll(UNIT, 1))}
            ),
            addition(0 * UNIT),
        ]
        await collect(served.generation.Generate(generate(interventions=edits)))


async def test_other_sites_have_doses_of_their_own() -> None:
    async with serving(engine(), measured=True) as served:
        edits = [
            addition(UNIT * norm(served, Site(HookPoint.RESID_POST, layer)) * LIMIT * 0.99, layer)
            for layer in range(4)
        ]
        await collect(served.generation.Generate(generate(interventions=edits)))


async def test_those_of_a_call_and_of_its_item_count_together() -> None:
    async with serving(engine(), measured=True) as served:
        half = addition(UNIT * norm(served) * LIMIT * 0.6)
        alone = fetch("one", interventions=[half])
        await collect(served.generation.FetchActivations(alone))
        both = fetch("one", interventions=[half])
        both.items.add(prompt={"text": "two"}, interventions=[half])
        refused = await failure(served.generation.FetchActivations(both))
        assert refused.reason == "DOSE_TOO_LARGE"
    async with serving(engine(clamps=True), measured=True) as served:
        events = await collect(served.generation.FetchActivations(both))
        told = {
            e.item_finished.item_index: e.item_finished
            for e in events
            if e.HasField("item_finished")
        }
        assert not told[0].interventions[0].HasField("dose_factor")
        factors = [each.dose_factor for each in told[1].interventions]
        assert factors == pytest.approx([1 / 1.2] * 2, rel=1e-4)


async def test_kept_rows_count_as_what_they_are() -> None:
    async with serving(engine(), measured=True) as served:
        kept = fetch("hello", capture={"sites": [site()], "positions": {"last": {}}, "keep": {}})
        events = await collect(served.generation.FetchActivations(kept))
        (name,) = [each.name for e in events for each in e.item_finished.kept]
        source = {"kept": {"name": name}}
        edit = intervention(add={"vector": source, "coefficient": 3})
        refused = await failure(served.generation.Generate(generate(interventions=[edit])))
        assert refused.reason == "DOSE_TOO_LARGE"
        assert refused.field == "interventions[0].add.coefficient"


async def test_stored_vectors_count_as_what_they_are() -> None:
    async with serving(engine(), measured=True) as served:
        stored_one = create("joy", norm(served) * UNIT)
        await served.vectors.CreateSteeringVector(stored_one)
        for coefficient, allowed in ((LIMIT * 0.99, True), (LIMIT * 1.01, False)):
            add = {"vector": stored("joy"), "coefficient": coefficient}
            call = served.generation.Generate(generate(interventions=[intervention(add=add)]))
            if allowed:
                await collect(call)
            else:
                assert (await failure(call)).reason == "DOSE_TOO_LARGE"


async def test_a_prompt_that_is_explained_is_limited_too() -> None:
    async with serving(engine(), Tiny().loaded(), measured=True) as served:
        edit = addition(2 * norm(served) * UNIT)
        refused = await failure(
            served.explanations.ExplainText(explain_text("hello", interventions=[edit]))
        )
        assert refused.reason == "DOSE_TOO_LARGE"


async def test_a_site_whose_rows_are_of_unknown_length_takes_relative_additions_alone() -> None:
    async with serving(engine()) as served:  # Nothing was measured.
        call = generate(interventions=[addition(1e-6 * UNIT)])
        refused = await failure(served.generation.Generate(call))
        assert refused.reason == "SITE_NOT_SERVED"
        assert refused.details["ErrorInfo"].metadata["site"] == "resid_post.1"
        relative = addition(UNIT, coefficient=LIMIT, relative=True)
        await collect(served.generation.Generate(generate(interventions=[relative])))


@pytest.mark.parametrize("clamps", [False, True])
async def test_levels_of_a_monitor_are_limited_together(clamps: bool) -> None:
    async with serving(engine(clamps=clamps), measured=True) as served:

        def level(threshold: float, share: float) -> dict[str, Any]:
            edit = addition(share * LIMIT * norm(served) * UNIT)
            return {"threshold": threshold, "intervene": {"interventions": [edit]}}

        # Each is within the limit. Which will be on is not known, so they are not scaled down.
        both = create_monitor(lower=level(0, 0.6), upper=level(1, 0.6))
        refused = await failure(served.monitors.CreateMonitor(both))
        assert refused.reason == "DOSE_TOO_LARGE"
        assert refused.field.startswith("monitor.")
        await served.monitors.CreateMonitor(
            create_monitor(lower=level(0, 0.6), upper=level(1, 0.3))
        )
        # An update of one level is looked at together with the other.
        request = pb.UpdateMonitorRequest(
            monitor={"name": full("harm"), "upper": level(1, 0.6)},
            update_mask={"paths": ["upper"]},
        )
        refused = await failure(served.monitors.UpdateMonitor(request))
        assert refused.reason == "DOSE_TOO_LARGE"


async def test_without_a_limit_nothing_is_refused_or_scaled() -> None:
    async with serving(engine(limit=None)) as served:
        edit = addition(UNIT, coefficient=1e6)
        events = await collect(served.generation.Generate(generate(interventions=[edit])))
        assert not report(events).HasField("dose_factor")


@pytest.mark.parametrize("clamps", [False, True])
async def test_each_coefficient_of_a_sweep_is_limited_by_itself(clamps: bool) -> None:
    async with serving(engine(clamps=clamps), measured=True) as served:
        coefficients = [-4 * LIMIT, -LIMIT / 2, 0, LIMIT / 2, 2 * LIMIT]
        request = sweep(variants=[steered(norm(served) * UNIT, coefficients=coefficients)])
        found = cells(await collect(served.sweeps.RunSweep(request)))
        assert len(found) == 10
        for cell in found:
            index = cell.coefficient_index
            factor = min(1, LIMIT / abs(coefficients[index])) if coefficients[index] else 1
            if factor == 1:
                assert not cell.interventions[0].HasField("dose_factor")
            elif clamps:
                assert cell.interventions[0].dose_factor == pytest.approx(factor, rel=1e-5)
            else:
                (info,) = [any_ for any_ in cell.status.details if "ErrorInfo" in any_.type_url]
                assert b"DOSE_TOO_LARGE" in info.value
                assert f"coefficients[{index}]" in cell.status.message


async def test_an_ablation_of_a_sweep_is_limited_whichever_coefficient_is_largest() -> None:
    async with serving(engine(), measured=True) as served:
        variant = {
            "interventions": [intervention(ablate={"direction": inline(UNIT)})],
            "coefficients": [-1.5, 2.0],  # The second reflects, and adds nothing.
        }
        found = cells(await collect(served.sweeps.RunSweep(sweep(variants=[variant]))))
        failed = {cell.coefficient_index for cell in found if cell.HasField("status")}
        assert failed == {0}
