"""The self-test of monitors finds every kind of fault, and withdraws monitors alone."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.probe_networks import Hidden, ProbeNetwork, ProbeOutputs
from actserve_server.domain.runs import Capture, Rows, Run, RunEvent
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.selftest_monitors import prove_monitors


@pytest.mark.parametrize("element_type", ElementType)
async def test_an_engine_that_gives_what_it_should_passes(element_type: ElementType) -> None:
    engine = FakeEngine(element_type=element_type)
    assert await prove_monitors(engine, engine.info) == engine.info
    assert engine.counters.started


@pytest.mark.parametrize("served", [(), (HookPoint.LOGITS,)])
async def test_without_a_site_of_the_pass_monitors_are_not_served(
    served: tuple[HookPoint, ...],
) -> None:
    engine = FakeEngine(unserved=dict.fromkeys(set(HookPoint) - {*served}, "not enabled"))
    proven = await prove_monitors(engine, engine.info)
    assert "it takes a site of the forward pass" in proven.monitors_unserved
    assert not engine.counters.started


Fault = Callable[[ProbeNetwork], ProbeNetwork]


def _without_a_site(network: ProbeNetwork) -> ProbeNetwork:
    """Of several, the last."""
    if len(network.sites) == 1:
        return network
    kept = np.ones((network.hidden.weights if network.hidden else network.values).shape[1])
    kept[-8:] = 0
    if network.hidden:
        weights = (network.hidden.weights * kept).astype(np.float32)
        return replace(network, hidden=replace(network.hidden, weights=weights))
    return replace(network, values=(network.values * kept).astype(np.float32))


def _no_unit_biases(network: ProbeNetwork) -> ProbeNetwork:
    if network.hidden is None:
        return network
    return replace(network, hidden=Hidden(network.hidden.weights, 0 * network.hidden.bias))


def _queries_for_values(network: ProbeNetwork) -> ProbeNetwork:
    if network.queries is None:
        return network
    return replace(network, values=network.queries, queries=network.values)


class Unrectified(ProbeNetwork):
    """Whose hidden layer is linear."""

    def apply(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        assert self.hidden is not None
        y = np.concatenate(rows, axis=1) @ self.hidden.weights.T + self.hidden.bias
        queries = () if self.queries is None else (self.queries,)
        bias = self.bias if self.queries is None else 0.0
        return y @ np.concatenate([self.values, *queries]).T + np.float32(bias)


def _unrectified(network: ProbeNetwork) -> ProbeNetwork:
    if network.hidden is None:
        return network
    parts = (network.sites, network.values, network.hidden, network.queries, network.bias)
    return Unrectified(*parts)


FAULTS: dict[str, Fault] = {
    "no bias": lambda network: replace(network, bias=0.0),
    "nothing": lambda network: replace(network, values=0 * network.values),
    "not a number": lambda network: replace(network, values=np.nan * network.values),
    "without a site": _without_a_site,
    "no biases of units": _no_unit_biases,
    "queries for values": _queries_for_values,
    "no rectifier": _unrectified,
}


class Faulty(FakeEngine):
    """One that takes other networks for those it is given."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        changed = tuple(map(self._changed, run.captures))
        async with aclosing(super().run(replace(run, captures=changed))) as events:
            async for event in events:
                yield event

    def _changed(self, capture: Capture) -> Capture:
        if not isinstance(capture.derived, ProbeOutputs):
            return capture
        return replace(
            capture, derived=ProbeOutputs(tuple(map(self._fault, capture.derived.networks)))
        )


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_computed_wrongly_is_found(fault: str) -> None:
    engine = Faulty(FAULTS[fault])
    proven = await prove_monitors(engine, engine.info)
    assert proven.monitors_unserved.startswith("failed the self-test: network ")
    assert replace(proven, monitors_unserved="") == engine.info


class Lossy(FakeEngine):
    """One that loses the numbers of the last tokens."""

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        async with aclosing(super().run(run)) as events:
            async for event in events:
                if isinstance(event, Rows) and event.capture_index == 1 and 8 in event.positions:
                    continue
                yield event


async def test_what_does_not_come_is_found() -> None:
    engine = Lossy()
    proven = await prove_monitors(engine, engine.info)
    assert "is off by nan at token 8" in proven.monitors_unserved
