"""Whose turn it is where runs wait: each tenant gets tokens in the proportion of its weight.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). A run is tagged with the time at which it
would begin if each tenant had an engine of its own, as fast as its weight; the lowest tag goes
first. So a tenant that asks for much waits for itself, one that comes late waits for nobody's past,
and what one leaves unused the others have.
"""

from collections.abc import Callable

MAX_FLOWS = 1000
"""Those whose time has passed go beyond so many: they are as if they had never run. Then, where
tenants are made up as they come, those whose time passes first."""


class FairTurns:
    """Tags of runs. A flow is a tenant; all without one are one flow, in the order that they
    come."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._now = 0.0
        """The tag of the run that began last."""
        self._ends: dict[str, float] = {}
        """By flow, when its last run would end."""

    def tag(self, flow: str, cost: float) -> float:
        """Of a run that takes so much."""
        start = max(self._now, self._ends.get(flow, 0.0))
        if flow not in self._ends and len(self._ends) >= MAX_FLOWS:
            self._forget()
        self._ends[flow] = start + cost / self._weight(flow)
        return start

    def _forget(self) -> None:
        last = sorted(self._ends.items(), key=lambda flow: flow[1])[MAX_FLOWS // 2 :]
        self._ends = {flow: end for flow, end in last if end > self._now}

    def begin(self, tag: float) -> None:
        """A run of this tag begins."""
        self._now = max(self._now, tag)

    def give_back(self, flow: str, cost: float) -> None:
        """A run of this flow will not begin."""
        if flow in self._ends:
            self._ends[flow] -= cost / self._weight(flow)
