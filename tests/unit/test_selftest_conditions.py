"""The self-test of conditions finds every kind of fault, and withdraws conditions alone."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from actserve_server.domain.conditions import Condition
from actserve_server.domain.probes import EACH_TOKEN, Aggregator, Ema, RollingMean, ScoreReduction
from actserve_server.domain.runs import Intervention, Run, RunEvent
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.selftest_conditions import prove_conditions

UNCHANGEABLE = dict.fromkeys(HookPoint, "read only")


@pytest.mark.parametrize("element_type", ElementType)
async def test_an_engine_that_decides_as_it_should_passes(element_type: ElementType) -> None:
    engine = FakeEngine(element_type=element_type)
    assert await prove_conditions(engine, engine.info) == engine.info
    assert engine.counters.started


async def test_without_a_site_that_can_be_changed_conditions_are_not_served() -> None:
    engine = FakeEngine(unserved=UNCHANGEABLE)
    proven = await prove_conditions(engine, engine.info)
    assert "it takes a site that can be changed" in proven.conditions_unserved
    assert not engine.counters.started


Fault = Callable[[Condition], Condition | None]


def _aggregated(change: Callable[[Aggregator], Aggregator]) -> Fault:
    return lambda condition: replace(condition, aggregator=change(condition.aggregator))


def _other_smoothing(aggregator: Aggregator) -> Aggregator:
    match aggregator.smoothing:
        case Ema(weight):
            return replace(aggregator, smoothing=Ema(weight / 2))
        case RollingMean(tokens):
            return replace(aggregator, smoothing=RollingMean(tokens + 2))
        case _:
            return aggregator


FAULTS: dict[str, Fault] = {
    "it always acts": lambda condition: None,
    "it never acts": lambda condition: replace(condition, above=1e30),
    "it acts where it should not": lambda condition: replace(
        condition, above=None, below=condition.above
    ),
    "no bias": lambda condition: replace(condition, probe=replace(condition.probe, bias=0.0)),
    "half the direction": lambda condition: replace(
        condition, probe=replace(condition.probe, direction=condition.probe.direction / 2)
    ),
    "no memory": _aggregated(lambda aggregator: EACH_TOKEN),
    "another smoothing": _aggregated(_other_smoothing),
    "no maximum": _aggregated(
        lambda aggregator: replace(aggregator, reduction=ScoreReduction.NEWEST)
    ),
}


class Faulty(FakeEngine):
    """One that takes other conditions for those it is given."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        changed = tuple(map(self._changed, run.interventions))
        async with aclosing(super().run(replace(run, interventions=changed))) as events:
            async for event in events:
                yield event

    def _changed(self, change: Intervention) -> Intervention:
        return replace(change, when=self._fault(change.when)) if change.when else change


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_decided_wrongly_is_found(fault: str) -> None:
    engine = Faulty(FAULTS[fault])
    proven = await prove_conditions(engine, engine.info)
    assert proven.conditions_unserved.startswith("failed the self-test: at ")
    assert replace(proven, conditions_unserved="") == engine.info
