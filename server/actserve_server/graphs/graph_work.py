"""Graphs that are made in the background, whatever becomes of the calls that asked for them.

One is made at a time, in order of their coming; of a tenant that asks for many, others are not made
to wait for all: accounts take turns.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from actserve_server import work_outcomes
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import account
from actserve_server.domain.work import HEARTBEAT_S, WorkProgress, WorkState
from actserve_server.graphs.stored_graphs import GraphRegistry, StoredGraph
from actserve_server.graphs.traced_graph import TracedGraph, Tracer, TraceRequest
from actserve_server.graphs.transcoder_files import handed_on
from actserve_server.stages import Stage, stage
from actserve_server.work_outcomes import Outcome, Work

MAX_WAITING = 32
"""Of all tenants; a request that comes when so many wait is refused."""
MAX_OWN_WAITING = 4
"""Of one of them."""
RETRY_AFTER_S = 30.0
"""When to ask again for a place in the queue."""
STORE_TRIES = 120
"""Of storing what was made, where the database cannot be reached."""

log = structlog.get_logger("actserve.graphs")


class Messages(Protocol):
    """How what comes of a graph is written, for whoever reads it."""

    def parts(self, graph: TracedGraph) -> Sequence[bytes]:
        """Serialized events with its nodes and edges."""
        ...

    def error(self, error: Exception) -> bytes:
        """A serialized Status."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    stored: StoredGraph
    request: TraceRequest
    messages: Messages
    context: Context = field(default_factory=copy_context)
    """That of the call that asked for it, of whose trace it is."""
    progress: WorkProgress = field(default=WorkProgress(WorkState.WAITING, 0, 0))
    tracing: "asyncio.Task[TracedGraph] | None" = None
    is_unwanted: bool = False

    @property
    def account(self) -> str:
        return account(self.stored.tenant)

    def reach(self, done: int, steps: int) -> None:
        self.progress = WorkProgress(WorkState.RUNNING, done, steps)


class GraphWork:
    """The graphs that this server makes."""

    def __init__(
        self,
        tracer: Tracer,
        registry: GraphRegistry,
        dictionaries: DictionaryRegistry,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.tracer = tracer
        self._registry = registry
        self._dictionaries = dictionaries
        self._heartbeat_s = heartbeat_s
        self._jobs: dict[int, _Job] = {}
        """By key of the graph, in order of their coming."""
        self._begun = asyncio.Event()
        self._coming: list[str] = []
        """The accounts whose graphs are being stored, and have a place in the queue."""
        self._closing = False
        self._last = ""
        """The account of the graph that was made last."""
        self._tasks: Sequence[asyncio.Task[None]] = ()

    @property
    def waiting(self) -> int:
        """Graphs that wait for others."""
        return sum(each.tracing is None for each in tuple(self._jobs.values()))

    def check_room(self, tenant: str) -> None:
        """Raises QUEUE_FULL where a graph would have to wait for too many, or DRAINING."""
        if self._closing:
            raise ended()
        waiting = [each.account for each in self._jobs.values() if each.tracing is None]
        waiting += self._coming
        own = waiting.count(account(tenant))
        if len(waiting) >= MAX_WAITING or own >= MAX_OWN_WAITING:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{own} graphs of yours wait, of {MAX_OWN_WAITING} that may, and {len(waiting)} of "
                f"all callers, of {MAX_WAITING}; try again in {RETRY_AFTER_S:g} s, or delete "
                "graphs that are not made yet",
                metadata={"waiting": own, "limit": MAX_OWN_WAITING},
                retry_after_s=RETRY_AFTER_S,
            )

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Holds a place for one that is begun in the block, so that of many that come at once no
        more wait than may. Raises as `check_room`."""
        self.check_room(tenant)
        self._coming.append(account(tenant))
        try:
            yield
        finally:
            self._coming.remove(account(tenant))

    def begin(self, stored: StoredGraph, request: TraceRequest, messages: Messages) -> None:
        """Puts a graph that was just stored into the queue."""
        self._jobs[stored.key] = _Job(stored, request, messages)
        self._begun.set()
        if not self._tasks:
            # In no context, since they are not of the call that happens to come first.
            self._tasks = [
                asyncio.create_task(each, context=Context()) for each in (self._run(), self._beat())
            ]

    def progress(self, stored: StoredGraph) -> WorkProgress | None:
        """How far it has come; None where it is not made here."""
        job = self._jobs.get(stored.key)
        return None if job is None else job.progress

    def forget(self, stored: StoredGraph) -> None:
        """Ends the work on a graph that was deleted, if it is made here."""
        if (job := self._jobs.get(stored.key)) is not None:
            self._cancel(job)

    async def close(self) -> None:
        """Ends all work, which the graphs tell from now on."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in self._jobs.values():
            try:
                await self._registry.fail(job.stored.key, job.progress, job.messages.error(ended()))
            except ActserveError as error:
                # That it is over shows once nothing was heard of it for a while.
                log.warning("graph", graph=job.stored.id, stored=False, reason=error.reason)
        self._jobs.clear()
        await self.tracer.close()

    async def _run(self) -> None:
        while True:
            await self._begun.wait()
            while self._jobs:
                job = self._next()
                self._last = job.account
                try:
                    await self._make(job)
                except ActserveError as error:
                    log.error("graph", graph=job.stored.id, stored=False, reason=error.reason)
                self._jobs.pop(job.stored.key, None)
            self._begun.clear()

    def _next(self) -> _Job:
        jobs = list(self._jobs.values())
        return next((each for each in jobs if each.account != self._last), jobs[0])

    async def _make(self, job: _Job) -> None:
        job.reach(0, 0)
        job.tracing = asyncio.create_task(self._traced(job), context=job.context)
        try:
            graph = await job.tracing
            messages = await asyncio.to_thread(job.messages.parts, graph)
            steps = max(1, job.progress.steps)
            await self._stored(
                lambda: self._registry.finish(
                    job.stored, messages, steps=steps, nodes=graph.nodes, edges=graph.edges
                )
            )
            work_outcomes.ended(Work.GRAPH, Outcome.DONE)
        except asyncio.CancelledError:
            if job.is_unwanted:
                work_outcomes.ended(Work.GRAPH, Outcome.UNWANTED)
                return
            job.tracing.cancel()
            await asyncio.gather(job.tracing, return_exceptions=True)
            raise
        except Exception as error:  # It is told, in place of the graph.
            work_outcomes.ended(Work.GRAPH, Outcome.FAILED)
            told = job.messages.error(error)
            await self._stored(lambda: self._registry.fail(job.stored.key, job.progress, told))

    async def _traced(self, job: _Job) -> TracedGraph:
        stored = job.stored
        transcoders = handed_on(self._dictionaries, stored.tenant, stored.dictionaries)
        with stage(Stage.GRAPH):
            async with transcoders as folder:
                return await self.tracer.trace(replace(job.request, transcoders=folder), job.reach)

    async def _stored(self, store: Callable[[], Awaitable[None]]) -> None:
        """Stores, again and again while the database cannot be reached."""
        tries = STORE_TRIES
        while True:
            try:
                await store()
                return
            except ActserveError as error:
                tries -= 1
                if error.reason is not Reason.STORE_UNREACHABLE or not tries:
                    raise
                await asyncio.sleep(error.retry_after_s or 1.0)

    async def _beat(self) -> None:
        """Says again and again how far graphs have come, and ends those that nobody wants."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for job in list(self._jobs.values()):
                try:
                    wanted = await self._registry.tell(job.stored.key, job.progress)
                except ActserveError:
                    continue  # The database says so itself.
                if not wanted:
                    self._cancel(job)

    def _cancel(self, job: _Job) -> None:
        job.is_unwanted = True
        if job.tracing is not None:
            job.tracing.cancel()
        else:
            self._jobs.pop(job.stored.key, None)


def ended() -> ActserveError:
    """The server ended before the work was done."""
    return ActserveError(
        Reason.DRAINING,
        "the server ended before the graph was made; delete it, and create it again",
    )
