"""What an NLA says of the rows that raised alerts, in the background and within a budget.

Nothing waits for an explanation, and what there is no time for is dropped: a monitor that is raised
by every token must not take the model from those who use it. The row is read by a short run of the
tokens up to it, of which the prefix cache has most.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import structlog

from actserve_server import logs
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.principals import account
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors import measures
from actserve_server.monitors.measures import ExplanationEnd
from actserve_server.stages import Stage, stage

MAX_TEXT = 16 << 10
"""Characters that are stored of one explanation."""
_MINUTE_S = 60.0

log = structlog.get_logger("actserve.explanations")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowToExplain:
    """The row of the token that raised an alert."""

    tenant: str
    alert: str
    """Its id."""
    nla: str
    """The resource name of the NLA; empty for the only one of `sites`."""
    sites: tuple[Site, ...]
    """Which the monitor reads."""
    sequence: Run
    """Runs the tokens up to that one again, which is its last, as they were run."""

    @property
    def position(self) -> int:
        return len(self.sequence.token_ids) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationBudget:
    """How much is explained at most. A tenant that has a name gets `share` of it."""

    at_once: int = 2
    a_minute: int = 30
    waiting: int = 64
    share: float = 1.0

    def of(self, limit: int, who: str) -> int:
        """What an account may take of a limit."""
        return max(1, int(limit * self.share)) if who and limit else limit


class RowExplainer(Protocol):
    """The NLAs of a server. Methods raise NLA_NOT_FOUND, and what else explaining does."""

    def site(self, nla: str, sites: Sequence[Site]) -> Site:
        """Where the rows come from that an NLA, by its resource name, explains. Without a name it
        is the only one of these sites."""
        ...

    async def explain(
        self, nla: str, site: Site, row: np.ndarray, position: int, tenant: str
    ) -> str:
        """What it says of a row of that site, float32 [width]."""
        ...


class AlertExplanations:
    """Explains what it is offered, for as long as `run` does. `store` is given the tenant, the id
    of the alert and the text, and may raise STORE_UNREACHABLE. `clock` tells seconds."""

    def __init__(
        self,
        engine: AdmittedEngine,
        explainer: RowExplainer,
        store: Callable[[str, str, str], Awaitable[None]],
        budget: ExplanationBudget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._explainer = explainer
        self._store = store
        self._budget = budget
        self._clock = clock
        self._queue: asyncio.Queue[tuple[RowToExplain, Context]] = asyncio.Queue()
        """Each with the context of the call in which the alert was raised, of whose trace it is."""
        self._waiting: Counter[str] = Counter()
        """Of each account, those in the queue."""
        self._taken: deque[tuple[float, str]] = deque()
        """When and for whom rows were taken within the last minute."""
        self._numbers = itertools.count()

    def offer(self, row: RowToExplain) -> bool:
        """Has a row explained if there is time for it. Returns at once, with whether it will be."""
        who = account(row.tenant)
        now = self._clock()
        while self._taken and self._taken[0][0] <= now - _MINUTE_S:
            self._taken.popleft()
        budget, own = self._budget, sum(each == who for _, each in self._taken)
        if (
            len(self._taken) >= budget.a_minute
            or own >= budget.of(budget.a_minute, who)
            or self._queue.qsize() >= budget.waiting
            or self._waiting[who] >= budget.of(budget.waiting, who)
        ):
            measures.explanation_ended(ExplanationEnd.DROPPED)
            return False
        self._taken.append((now, who))
        self._waiting[who] += 1
        self._queue.put_nowait((row, copy_context()))
        return True

    async def run(self) -> None:
        """Explains until it is cancelled, which drops what waits."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._budget.at_once):
                tasks.create_task(self._work())

    async def idle(self) -> None:
        """Returns once nothing waits and nothing is being explained."""
        await self._queue.join()

    async def _work(self) -> None:
        while True:
            row, context = await self._queue.get()
            who = account(row.tenant)
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]
            try:
                await asyncio.create_task(self._explain(row), context=context)
                measures.explanation_ended(ExplanationEnd.DONE)
            except ActserveError as error:
                measures.explanation_ended(ExplanationEnd.FAILED)
                log.warning("alert not explained", alert=row.alert, reason=error.reason.value)
            except Exception as error:
                measures.explanation_ended(ExplanationEnd.FAILED)
                log.error("alert not explained", alert=row.alert, **logs.described(error))
            finally:
                self._queue.task_done()

    async def _explain(self, row: RowToExplain) -> None:
        with stage(Stage.EXPLAIN, {"actserve.alert": row.alert}):
            site = self._explainer.site(row.nla, row.sites)
            vector = await self._read(row, site)
            text = await self._explainer.explain(row.nla, site, vector, row.position, row.tenant)
        await self._store(row.tenant, row.alert, text[:MAX_TEXT])

    async def _read(self, row: RowToExplain, site: Site) -> np.ndarray:
        """The row, float32 [width], as the model that was watched had it."""
        capture = Capture((site,), Selection(Spans.of([row.position])))
        run = replace(
            row.sequence, id=f"explained-alert-{next(self._numbers)}", captures=(capture,)
        )
        async with aclosing(self._engine.run(run)) as events:
            (rows,) = [event async for event in events if isinstance(event, Rows)]
        (vector,) = to_float32(rows.bits, self._engine.info.element_type)
        return vector
