"""Fits that go on in the background, whatever becomes of the calls that asked for them.

They wait in order. A tenant has one at a time, and all of them together no more than a number and
no more bytes than are allowed. Computing is done in threads of its own at a lower priority, so that
whoever serves comes first.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import structlog

from actserve_server import work_outcomes
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import account
from actserve_server.domain.work import HEARTBEAT_S, WorkProgress, WorkState
from actserve_server.monitors.monitor_registry import MonitorRegistry
from actserve_server.monitors.stored_fits import StoredFits
from actserve_server.monitors.stored_monitors import Definition, StoredMonitor
from actserve_server.stages import Stage, stage
from actserve_server.work_outcomes import Outcome, Work

P = ParamSpec("P")
T = TypeVar("T")

MAX_AT_ONCE = 2
"""Fits of all tenants that are done at the same time."""
MAX_WAITING = 64
"""Of all tenants; a request that comes when so many wait is refused."""
MAX_OWN_WAITING = 8
"""Of one of them."""
RETRY_AFTER_S = 30.0
"""When to ask again for a place in the queue."""
STORE_TRIES = 120
"""Of storing what was fitted, where the database cannot be reached."""
_NICENESS = 10
"""How much less urgent the threads are."""

log = structlog.get_logger("actserve.monitors")


class FitCancelledError(Exception):
    """Nobody wants it any more."""


class FitJob:
    """One fit, from the queue to its end. Its threads and the event loop both look at it."""

    def __init__(
        self,
        stored: StoredMonitor,
        steps: int,
        held_bytes: int,
        text_bytes: int,
        threads: Executor,
    ) -> None:
        """`text_bytes` is what it takes while it waits."""
        self.stored = stored
        self.held_bytes = held_bytes
        self.text_bytes = text_bytes
        self.state = WorkState.WAITING
        self._steps = steps
        self._steps_done = 0
        self.context = copy_context()
        """That of the call that asked for it, of whose trace it is."""
        self._cancelled = threading.Event()
        self._threads = threads

    @property
    def key(self) -> tuple[str, str]:
        """The tenant and the id of the monitor."""
        return self.stored.tenant, self.stored.id

    @property
    def account(self) -> str:
        return account(self.stored.tenant)

    @property
    def progress(self) -> WorkProgress:
        return WorkProgress(self.state, self._steps_done, self._steps)

    def step(self) -> None:
        """One more is done."""
        self._steps_done += 1

    def check(self) -> None:
        """Raises FitCancelledError if nobody wants it any more."""
        if self._cancelled.is_set():
            raise FitCancelledError

    def cancel(self) -> None:
        self._cancelled.set()

    async def in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns or raises, that looks at `check` often."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.cancel()
            # What it holds is free once the thread has seen that.
            await asyncio.gather(future, return_exceptions=True)
            raise


class Fit(Protocol):
    """What is to be done."""

    async def make(self, job: FitJob) -> Definition:
        """The monitor with its probe. Raises what is wrong with the examples."""
        ...

    def failed(self, job: FitJob, error: Exception) -> Definition:
        """The monitor without a probe, and why."""
        ...


@dataclass(slots=True, eq=False)
class _Queued:
    job: FitJob
    fit: Fit
    tasks: "tuple[asyncio.Task[None], ...]" = ()
    """Its heartbeat, and once it runs the work."""


class FitWork:
    """The fits of this server."""

    def __init__(
        self,
        registry: MonitorRegistry,
        stored: StoredFits,
        *,
        max_bytes: int,
        tenant_share: float,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """`max_bytes` is what all that are done take together, and what those take that wait; one
        that a tenant with a name asked for takes its share at most."""
        self._registry = registry
        self._stored = stored
        self._max_bytes = max_bytes
        self._tenant_share = tenant_share
        self._heartbeat_s = heartbeat_s
        self._queue: dict[tuple[str, str], _Queued] = {}
        """In order of their coming."""
        self._coming: list[tuple[str, int]] = []
        """Of those that are not in it yet, the account and the bytes of their texts."""
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, "actserve-fit", _yield_to_others)
        self._closing = False

    @property
    def waiting(self) -> int:
        """Fits that wait for others."""
        queued = tuple(self._queue.values())
        return sum(each.job.state is WorkState.WAITING for each in queued)

    def max_own_bytes(self, tenant: str) -> int:
        """What one fit may take."""
        return int(self._max_bytes * (self._tenant_share if account(tenant) else 1))

    def check_room(self, tenant: str, text_bytes: int = 0) -> None:
        """Raises QUEUE_FULL, or DRAINING, where a fit whose texts take so much would have to wait
        for too many others, or for others of too much text."""
        if self._closing:
            raise ended()
        jobs = [each.job for each in self._queue.values()]
        waiting = [(job.account, job.text_bytes) for job in jobs if job.state is WorkState.WAITING]
        waiting += self._coming
        whose = account(tenant)
        own = sum(each == whose for each, _ in waiting)
        if len(waiting) >= MAX_WAITING or own >= MAX_OWN_WAITING:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{own} fits of yours wait, of {MAX_OWN_WAITING} that may, and {len(waiting)} of "
                f"all callers, of {MAX_WAITING}; try again in {RETRY_AFTER_S:g} s, or delete "
                "monitors that are not fitted yet",
                metadata={"waiting": own, "limit": MAX_OWN_WAITING},
                retry_after_s=RETRY_AFTER_S,
            )
        limit = self.max_own_bytes(tenant)
        every = sum(size for _, size in waiting) + text_bytes
        own_bytes = sum(size for each, size in waiting if each == whose) + text_bytes
        if own_bytes > limit or every > self._max_bytes:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"the texts of this fit and of those of yours that wait take {own_bytes} bytes, of "
                f"{limit} that they may, and of all callers {every}, of {self._max_bytes}; try "
                f"again in {RETRY_AFTER_S:g} s, or send fewer",
                metadata={"limit": limit},
                retry_after_s=RETRY_AFTER_S,
            )

    @contextmanager
    def place(self, tenant: str, text_bytes: int) -> Iterator[None]:
        """Holds a place for one that is begun in the block, so that of many that come at once no
        more wait than may. Raises as `check_room`."""
        self.check_room(tenant, text_bytes)
        coming = account(tenant), text_bytes
        self._coming.append(coming)
        try:
            yield
        finally:
            self._coming.remove(coming)

    async def begin(
        self, stored: StoredMonitor, steps: int, held_bytes: int, text_bytes: int, fit: Fit
    ) -> None:
        """Puts a fit into the queue, unless it is in some server's already. Raises
        STORE_UNREACHABLE."""
        job = FitJob(stored, steps, held_bytes, text_bytes, self._threads)
        if not await self._stored.begin(*job.key, stored.etag, job.progress) or self._closing:
            return
        queued = _Queued(job, fit)
        queued.tasks = (asyncio.create_task(self._beat(job)),)
        self._queue[job.key] = queued
        self._start_next()

    async def progress(
        self, tenant: str, monitors: Sequence[StoredMonitor]
    ) -> Mapping[str, WorkProgress | None]:
        """How far the work for some monitors has come that are not done, by id; None where it was
        ended by the end of the server that did it. Raises STORE_UNREACHABLE."""
        here = {each.id: self._queue.get((tenant, each.id)) for each in monitors}
        away = [each for each in monitors if here[each.id] is None]
        known = await self._stored.of(tenant, [each.id for each in away]) if away else {}
        return {
            each.id: queued.job.progress
            if (queued := here[each.id]) is not None
            else known.get((each.id, each.etag))
            for each in monitors
        }

    async def forget(self, tenant: str, monitor: str) -> None:
        """Ends the work for a monitor that was deleted, wherever it is done. Raises
        STORE_UNREACHABLE."""
        if (queued := self._queue.get((tenant, monitor))) is not None:
            self._cancel(queued)
        await self._stored.end(tenant, monitor)

    async def close(self) -> None:
        """Ends all work, which the monitors tell from now on."""
        self._closing = True
        queued = list(self._queue.values())
        for each in queued:
            self._cancel(each)
        tasks = [task for each in queued for task in each.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in queued:
            try:
                await self._store(each.job, each.fit.failed(each.job, ended()), tries=1)
            except ActserveError as error:
                # That it is over shows once nothing was heard of it for a while.
                log.warning("fit", monitor=each.job.stored.id, stored=False, reason=error.reason)
        self._threads.shutdown(wait=False)

    def _start_next(self) -> None:
        """Starts those that wait, in order, as far as there is room."""
        running = [each.job for each in self._queue.values() if each.job.state is WorkState.RUNNING]
        busy = {job.account for job in running}
        held = sum(job.held_bytes for job in running)
        count = len(running)
        for queued in list(self._queue.values()):
            job = queued.job
            if count == MAX_AT_ONCE or self._closing:
                return
            if job.state is not WorkState.WAITING or job.account in busy:
                continue
            if held and held + job.held_bytes > self._max_bytes:
                return  # In order, so that a large one is not passed by for ever.
            count, held = count + 1, held + job.held_bytes
            busy.add(job.account)
            job.state = WorkState.RUNNING
            running = asyncio.create_task(self._run(queued), context=job.context)
            queued.tasks += (running,)

    async def _run(self, queued: _Queued) -> None:
        job = queued.job
        try:
            try:
                with stage(Stage.FIT):
                    made = await queued.fit.make(job)
                await self._store(job, made, STORE_TRIES)
                work_outcomes.ended(Work.FIT, Outcome.DONE)
            except FitCancelledError:
                work_outcomes.ended(Work.FIT, Outcome.UNWANTED)
                return
            except Exception as error:  # It is told, in place of a probe.
                work_outcomes.ended(Work.FIT, Outcome.FAILED)
                await self._store(job, queued.fit.failed(job, error), STORE_TRIES)
        except ActserveError as error:
            log.error("fit", monitor=job.stored.id, stored=False, reason=error.reason)
        finally:
            self._leave(queued)

    async def _store(self, job: FitJob, definition: Definition, tries: int) -> None:
        """Makes of the monitor what was fitted, unless it was deleted."""
        stored = job.stored
        while True:
            try:
                await self._registry.replace(
                    stored.tenant, stored.id, stored.etag, lambda _: definition
                )
                await self._stored.end(*job.key)
                return
            except ActserveError as error:
                tries -= 1
                gone = error.reason in (Reason.RESOURCE_NOT_FOUND, Reason.ETAG_MISMATCH)
                if gone:
                    return
                if error.reason is not Reason.STORE_UNREACHABLE or not tries:
                    raise
                await asyncio.sleep(error.retry_after_s or 1.0)

    async def _beat(self, job: FitJob) -> None:
        """Says again and again that the work goes on, and ends it where nobody wants it."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                wanted = await self._stored.tell(*job.key, job.stored.etag, job.progress)
            except ActserveError:
                continue  # The database says so itself.
            queued = self._queue.get(job.key)
            if not wanted and queued is not None and queued.job is job:
                self._cancel(queued)
                return

    def _cancel(self, queued: _Queued) -> None:
        queued.job.cancel()
        this = asyncio.current_task()
        for task in queued.tasks:
            if task is not this:
                task.cancel()
        if queued.job.state is WorkState.WAITING:
            self._leave(queued)

    def _leave(self, queued: _Queued) -> None:
        queued.tasks[0].cancel()
        if self._queue.get(queued.job.key) is queued:
            del self._queue[queued.job.key]
        self._start_next()


def ended() -> ActserveError:
    """The server ended before the work was done."""
    return ActserveError(
        Reason.DRAINING,
        "the server ended before the monitor was fitted; delete it, and fit it again",
    )


def _yield_to_others() -> None:
    """Makes the calling thread less urgent, which on Linux concerns that thread alone."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
