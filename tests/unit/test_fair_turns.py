"""Tenants that wait for the engine get it in the proportion of their weights."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping

import pytest

from actserve_server.domain.runs import Run, RunEvent, Sampling
from actserve_server.domain.tenant_rules import TenantRules
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.fair_turns import FairTurns
from actserve_server.engine.fake import FakeEngine


class Noting(FakeEngine):
    """Notes whose run begins."""

    def __init__(self) -> None:
        super().__init__(token_delay_s=0.0)
        self.begun: list[str] = []

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self.begun.append(run.tenant.partition("/")[0])
        await asyncio.sleep(0)  # Others come in between.
        async for event in super().run(run):
            yield event


async def begun(
    weights: Mapping[str, float], runs: Mapping[str, tuple[int, int]], share: float = 0.5
) -> list[str]:
    """Whose runs began, in their order, where each tenant asks for so many at once, each of so many
    tokens, of an engine that runs four at a time."""
    fake = Noting()
    engine = AdmittedEngine(
        fake,
        AdmissionLimits(max_running=4, share=share),
        lambda tenant: TenantRules(weight=weights.get(tenant, 1.0)),
    )

    async def ask(tenant: str, index: int, tokens: int) -> None:
        run = Run(
            id=f"{tenant}-{index}",
            token_ids=tuple(range(tokens)),
            sampling=Sampling(temperature=0.0, max_tokens=1),
            tenant=tenant,
        )
        async for _ in engine.run(run):
            pass

    asking = [
        ask(tenant, index, tokens)
        for tenant, (count, tokens) in runs.items()
        for index in range(count)
    ]
    async with asyncio.timeout(60):
        await asyncio.gather(*asking)
    assert (engine.running, engine.waiting) == (0, 0)
    return fake.begun


@pytest.mark.parametrize("first", ["light", "heavy"])
async def test_weights_of_one_and_three_give_shares_of_one_and_three(first: str) -> None:
    """Whoever asks first, and has all its runs in line before the other."""
    asked = {"light": (300, 4), "heavy": (300, 4)}
    order = [first, *({*asked} - {first})]
    told = await begun({"light": 1, "heavy": 3}, {each: asked[each] for each in order})
    share = Counter(told[:320])
    assert share["heavy"] / share["light"] == pytest.approx(3, rel=0.1)


async def test_equal_weights_give_equal_shares_of_tokens_and_not_of_runs() -> None:
    told = await begun({}, {"long": (100, 19), "short": (400, 3)}, share=1.0)
    share = Counter(told[:300])
    assert share["short"] * 4 == pytest.approx(share["long"] * 20, rel=0.1)


async def test_a_tenant_that_comes_late_waits_for_nobodys_past() -> None:
    turns = FairTurns(lambda _: 1.0)
    for _ in range(100):
        turns.begin(turns.tag("early", 10))
    late, early = turns.tag("late", 10), turns.tag("early", 10)
    assert late < early
    assert turns.tag("late", 10) <= early + 10


async def test_runs_without_a_tenant_keep_their_order() -> None:
    turns = FairTurns(lambda _: 1.0)
    tags = [turns.tag("", cost) for cost in (5, 1, 9, 1)]
    assert tags == sorted(tags)


async def test_a_run_that_is_given_up_costs_its_tenant_nothing() -> None:
    turns = FairTurns(lambda _: 2.0)
    first = turns.tag("a", 10)
    turns.tag("a", 1000)
    turns.give_back("a", 1000)
    assert turns.tag("a", 10) == first + 5


async def test_many_tenants_that_have_gone_leave_nothing_behind() -> None:
    turns = FairTurns(lambda _: 1.0)
    for index in range(5000):
        turns.begin(turns.tag(str(index), 1.0))
        turns.begin(turns.tag("busy", 1.0))
    assert len(turns._ends) <= 1001


async def test_tenants_without_end_take_no_memory_without_end() -> None:
    """Signed tokens name tenants that nobody has listed. Each has one run, whose time is to come:
    at the tag of the first all others begin."""
    turns = FairTurns(lambda _: 1.0)
    for index in range(5000):
        turns.begin(turns.tag(str(index), 1000.0))
    assert len(turns._ends) <= 1000
