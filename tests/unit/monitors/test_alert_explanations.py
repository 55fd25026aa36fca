"""Explanations of the rows that raised alerts, and their budget."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import REGISTRY

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Add
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors.alert_explanations import (
    MAX_TEXT,
    AlertExplanations,
    ExplanationBudget,
    RowToExplain,
)

SITE = Site(HookPoint.RESID_POST, 1)
IDS = (256, 104, 105, 33)
NLA = "models/fake/nlas/tiny"


def counted(outcome: str) -> float:
    name = "actserve_alert_explanations_total"
    return REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0


class Explainer:
    """Says how long the row is, once it may."""

    def __init__(self, text: str = "") -> None:
        self.rows: list[np.ndarray] = []
        self.may = asyncio.Event()
        self.may.set()
        self.running = self.most = 0
        self.two = asyncio.Event()
        """Two are explained at once."""
        self.text = text

    def site(self, nla: str, sites: Sequence[Site]) -> Site:
        if nla != NLA or SITE not in sites:
            raise ActserveError(Reason.NLA_NOT_FOUND, "there is none", field=("nla",))
        return SITE

    async def explain(
        self, nla: str, site: Site, row: np.ndarray, position: int, tenant: str
    ) -> str:
        assert (nla, site) == (NLA, SITE)
        self.rows.append(row)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == 2:
            self.two.set()
        try:
            await self.may.wait()
        finally:
            self.running -= 1
        return self.text or f"{tenant} {position}"


class Bench:
    """Explanations, and what they do to their surroundings."""

    def __init__(self, budget: ExplanationBudget, explainer: Explainer | None = None) -> None:
        self.engine = FakeEngine()
        self.explainer = explainer or Explainer()
        self.stored: dict[tuple[str, str], str] = {}
        self.now = 1000.0
        self.explanations = AlertExplanations(
            AdmittedEngine(self.engine, AdmissionLimits()),
            self.explainer,
            self.store,
            budget,
            lambda: self.now,
        )

    async def store(self, tenant: str, alert: str, text: str) -> None:
        self.stored[tenant, alert] = text

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.explanations.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def row(
    alert: str = "a", tenant: str = "", nla: str = NLA, changes: tuple[Intervention, ...] = ()
) -> RowToExplain:
    sequence = Run(id="watched", token_ids=IDS, interventions=changes, tenant=tenant)
    return RowToExplain(alert=alert, tenant=tenant, nla=nla, sites=(SITE,), sequence=sequence)


async def test_the_row_of_the_token_is_explained_and_the_text_stored() -> None:
    bench = Bench(ExplanationBudget())
    async with bench.running():
        assert bench.explanations.offer(row("a7", tenant="vision"))
        await bench.explanations.idle()
    assert bench.stored == {("vision", "a7"): "vision 3"}
    (found,) = bench.explainer.rows
    np.testing.assert_array_equal(found, bench.engine.row(SITE, IDS))


async def test_the_row_is_changed_as_it_was_in_the_call() -> None:
    vector = np.ones(16, np.float32)
    everywhere = Intervention((SITE,), Selection(Spans(((0, 10),))), Add(vector))
    bench = Bench(ExplanationBudget())
    async with bench.running():
        bench.explanations.offer(row(changes=(everywhere,)))
        await bench.explanations.idle()
    (found,) = bench.explainer.rows
    np.testing.assert_allclose(found, bench.engine.row(SITE, IDS) + vector, rtol=1e-6)


async def test_no_more_are_explained_at_once_than_the_budget_says() -> None:
    bench = Bench(ExplanationBudget(at_once=2))
    bench.explainer.may.clear()
    async with bench.running():
        for number in range(5):
            bench.explanations.offer(row(str(number)))
        await bench.explainer.two.wait()
        bench.explainer.may.set()
        await bench.explanations.idle()
    assert len(bench.stored) == 5
    assert bench.explainer.most == 2


async def test_what_is_more_than_may_wait_is_dropped_and_counted() -> None:
    bench = Bench(ExplanationBudget(waiting=3))
    before = counted("dropped")
    assert [bench.explanations.offer(row()) for _ in range(5)] == [True] * 3 + [False] * 2
    assert counted("dropped") == before + 2


async def test_what_is_more_than_a_minute_has_time_for_is_dropped() -> None:
    bench = Bench(ExplanationBudget(a_minute=2))
    assert [bench.explanations.offer(row()) for _ in range(3)] == [True, True, False]
    bench.now += 59
    assert not bench.explanations.offer(row())
    bench.now += 1
    assert bench.explanations.offer(row())


@pytest.mark.parametrize("budget", [{"a_minute": 4}, {"waiting": 4}])
async def test_a_tenant_leaves_others_their_part(budget: dict[str, int]) -> None:
    bench = Bench(ExplanationBudget(**budget, share=0.5))
    offers = [bench.explanations.offer(row(tenant=who)) for who in ("a/x", "a/y", "a", "b", "b")]
    assert offers == [True, True, False, True, True]


async def test_with_no_budget_nothing_is_explained() -> None:
    bench = Bench(ExplanationBudget(a_minute=0, share=0.5))
    assert not bench.explanations.offer(row(tenant="a"))


async def test_one_that_fails_is_counted_and_the_next_is_explained() -> None:
    bench = Bench(ExplanationBudget(at_once=1))
    failed, done = counted("failed"), counted("done")
    async with bench.running():
        bench.explanations.offer(row("a", nla="models/fake/nlas/gone"))
        bench.explanations.offer(row("b"))
        await bench.explanations.idle()
    assert list(bench.stored) == [("", "b")]
    assert (counted("failed"), counted("done")) == (failed + 1, done + 1)


async def test_a_long_text_is_cut() -> None:
    bench = Bench(ExplanationBudget(), Explainer("x" * (MAX_TEXT + 5)))
    async with bench.running():
        bench.explanations.offer(row())
        await bench.explanations.idle()
    assert [len(text) for text in bench.stored.values()] == [MAX_TEXT]
