"""Bounds what runs at once, so that load makes callers wait or go elsewhere, never the server die.

Six limits: bytes of captured rows (reserved for a whole run before it starts, since its rows may
all wait for a slow reader), of what else waits there to be read, of the vectors that change rows
(equal ones once, since the engine holds them once), and of what a step takes of the device; runs in
flight, and runs waiting. A run is in flight until the engine has finished it, whether or not
anybody reads what it gave: its events are taken from the engine as they come and wait here, within
what the run has reserved. So a reader that stops holds bytes, of which a caller may have no more
than its share, and never a place among the runs in flight.

Runs are admitted strictly in their order, so a large one is not starved by small ones; only those
that wait for their own caller's share are passed by. The order is that in which they came, between
tenants weighed as `fair_turns.py` has it. A run holds one reservation and never waits for a
second, so nothing can deadlock. A call of many runs keeps at most as many of them in line as may
run at once, so a small call that comes later waits for one run, not for all of them; and once a
call is let in, its later runs are not refused.
"""

import asyncio
import itertools
from bisect import insort_right
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import account
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import Capture, Intervention, Run, RunEvent
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tenant_rules import RulesOf, no_rules
from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix
from actserve_server.engine.api import Engine
from actserve_server.engine.fair_turns import FairTurns
from actserve_server.engine.footprint import Need, Workspace, most_bytes, report_bytes_of, step_need
from actserve_server.engine.forms import score_state_bytes, vector_bytes
from actserve_server.engine.merge import merge
from actserve_server.engine.pattern_memory import pattern_bytes, pattern_memory
from actserve_server.stages import Stage, stage

T = TypeVar("T")
K = TypeVar("K")

_UNNAMED = "call "
"""How a caller without an account begins, as no name of a tenant does."""

RETRY_AFTER_S = 1.0
"""When a refused caller should try again: about the time in which a busy server finishes a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How much runs at once, over all calls."""

    capture_budget_bytes: int = 4 << 30
    """Bytes of captured rows that runs in flight may produce."""
    vector_budget_bytes: int = 256 << 20
    """Bytes of vectors that runs in flight may change rows by, what the engine has room for; what
    conditions keep of their scores, and the keys from which patterns are read, count too."""
    workspace_budget_bytes: int = 2 << 30
    """Bytes that a step of runs in flight may take of the model's device, for captured rows until
    they are sent and for tables of what is changed."""
    report_budget_bytes: int = 2 << 30
    """Bytes of what runs give beside rows: tokens, log probabilities, receipts."""
    max_running: int = 256
    """Runs in flight."""
    max_queue: int = 1024
    """Runs that wait for one of the former; a call that comes when so many wait is refused."""
    share: float = 1.0
    """The most that one caller may hold: of the bytes, a tenant, or a call of a server without
    tenants; of the runs in flight, a tenant. What holds nothing yet is always given one run."""


class _Count:
    """What callers hold of something, each and together."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.total = 0

    def add(self, caller: str, count: int) -> None:
        self.total += count
        self.of[caller] += count
        if not self.of[caller]:
            del self.of[caller]  # Most callers are calls, of which there is no end.


class _SharedCount:
    """Bytes of the vectors that callers hold, each and together: equal vectors count once."""

    def __init__(self) -> None:
        self._of = _Count()
        self._total = 0
        self._holders: Counter[bytes] = Counter()
        self._own_holders: Counter[tuple[str, bytes]] = Counter()

    @property
    def total(self) -> int:
        return self._total

    def of(self, caller: str) -> int:
        return self._of.of[caller]

    def more(self, vectors: Mapping[bytes, int]) -> int:
        """What all would hold more with these, which are bytes by digest."""
        return sum(size for digest, size in vectors.items() if digest not in self._holders)

    def more_of(self, caller: str, vectors: Mapping[bytes, int]) -> int:
        """What the caller would hold more with these."""
        held = self._own_holders
        return sum(size for digest, size in vectors.items() if (caller, digest) not in held)

    def add(self, caller: str, vectors: Mapping[bytes, int]) -> None:
        self._total += self.more(vectors)
        self._of.add(caller, self.more_of(caller, vectors))
        self._holders.update(vectors.keys())
        self._own_holders.update((caller, digest) for digest in vectors)

    def remove(self, caller: str, vectors: Mapping[bytes, int]) -> None:
        for digest in vectors:
            _subtract(self._holders, digest)
            _subtract(self._own_holders, (caller, digest))
        self._total -= self.more(vectors)
        self._of.add(caller, -self.more_of(caller, vectors))


def _account_of(caller: str) -> str:
    return "" if caller.startswith(_UNNAMED) else caller


def _within(held: float, more: float, limit: float) -> bool:
    """Whether a caller may hold so much more. What holds nothing yet is always given its first."""
    return not held or not more or held + more <= limit


def _subtract(counter: "Counter[K]", key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


@dataclass(eq=False, slots=True)
class _Place:
    """A run that waits, or is in flight, or is over with its rows still unread."""

    caller: str
    is_tenant: bool
    reserved_bytes: int
    report_bytes: int
    vectors: Mapping[bytes, int]
    """Bytes by digest."""
    need: Need
    admitted: asyncio.Future[None]
    flow: str
    cost: int
    """Tokens that it may take."""
    tag: float = 0.0
    """Whose turn it is: the lowest goes first."""
    running: bool = False


_Holding = tuple[tuple[Intervention, ...], tuple[Capture, ...]]
"""What a run holds vectors for."""

_OVER = object()
"""Comes after the last event of a run."""


@dataclass(slots=True)
class Load:
    """What an account has of the engine."""

    running: int = 0
    waiting: int = 0
    reserved_bytes: int = 0


class AdmittedEngine:
    """An `Engine` that runs no more at once than its limits allow."""

    def __init__(
        self,
        engine: Engine,
        limits: AdmissionLimits | None = None,
        rules: RulesOf = no_rules,
    ) -> None:
        self._engine = engine
        self._limits = limits or AdmissionLimits()
        self._weight: Callable[[str], float] = lambda tenant: rules(tenant).weight
        self._turns = FairTurns(self._weight)
        self._waiting: list[_Place] = []
        self._running = _Count()
        self._reserved_bytes = _Count()
        self._report_bytes = _Count()
        self._vectors = _SharedCount()
        self._workspace = Workspace()
        self._last_vectors: tuple[_Holding, Mapping[bytes, int]] = ((), ()), {}
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._numbers = itertools.count()

    @property
    def info(self) -> ModelInfo:
        """The engine's own."""
        return self._engine.info

    @property
    def running(self) -> int:
        """Runs in flight."""
        return self._running.total

    @property
    def waiting(self) -> int:
        """Runs that wait to be admitted."""
        return len(self._waiting)

    def loads(self) -> Mapping[str, Load]:
        """Who has what of the engine, by account; empty for calls without one. Any thread may
        ask."""
        found: defaultdict[str, Load] = defaultdict(Load)
        for caller, count in dict(self._running.of).items():
            found[_account_of(caller)].running += count
        for caller, count in dict(self._reserved_bytes.of).items():
            found[_account_of(caller)].reserved_bytes += count
        for place in tuple(self._waiting):
            found[place.flow].waiting += 1
        return found

    @property
    def reserved_bytes(self) -> int:
        """Capture bytes reserved by runs in flight, and by those whose rows are still unread."""
        return self._reserved_bytes.total

    @property
    def vector_bytes(self) -> int:
        """Bytes of the vectors of runs in flight, equal ones once."""
        return self._vectors.total

    @property
    def workspace_bytes(self) -> int:
        """The most that a step of runs in flight takes of the model's device."""
        return self._workspace.most_bytes(self.info.step_tokens)

    @property
    def report_bytes(self) -> int:
        """Bytes reserved for what runs give beside rows, until it is read."""
        return self._report_bytes.total

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        with stage(Stage.TOKENIZE):
            return await self._engine.tokenize(prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        return await self._engine.spell(words)

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        return self._engine.ended_text(run, generated)

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        return await self._engine.token_rows(matrix, token_ids)

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        return await self._engine.head_rows(layer, head, matrix, rows)

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        return await self._engine.logit_directions(targets, layers)

    @property
    def graphs(self) -> Mapping[str, frozenset[HookPoint]]:
        return self._engine.graphs

    async def drop_graph(self, name: str) -> None:
        await self._engine.drop_graph(name)

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def close(self) -> None:
        await self._engine.close()

    def drain(self) -> None:
        """Refuses new calls from now on; admitted ones and their waiting runs go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns once no call is left."""
        await self._idle.wait()

    async def run(
        self, run: Run, checked: ModelInfo | None = None
    ) -> AsyncGenerator[RunEvent, None]:
        async with aclosing(self.run_all([run], checked)) as events:
            async for _, event in events:
                yield event

    def run_all(
        self, runs: Sequence[Run], checked: ModelInfo | None = None
    ) -> AsyncGenerator[tuple[int, RunEvent], None]:
        """Streams the events of all runs, each with its index in `runs`.

        Refuses at once, before anything is streamed, what could never be admitted or comes at a
        bad time. Closing the stream aborts the runs and frees what they hold. `checked` is as in
        `enter`.
        """
        try:
            for index, run in enumerate(runs):
                self.check(run, index)
            call = self.enter(runs[0].tenant, runs[0], checked)
        except ActserveError:
            self._forget_vectors()
            raise
        return call.merge([lambda run=run: call.run(run) for run in runs])

    def enter(
        self, tenant: str, first: Run | None = None, checked: ModelInfo | None = None
    ) -> "AdmittedCall":
        """Lets in a call with this first run, if it is known already. `checked` is what it was
        checked against, if not just now: its runs are refused if that is no longer what is served.
        Raises DRAINING or QUEUE_FULL if it comes at a bad time."""
        if self._draining:
            raise ActserveError(
                Reason.DRAINING,
                "this server is shutting down; try again to reach another",
                retry_after_s=RETRY_AFTER_S,
            )
        caller = account(tenant) or f"{_UNNAMED}{next(self._numbers)}"
        if self._waiting or not self._fits(self._place(caller, tenant, first)):
            self._check_queue(account(tenant))
        return AdmittedCall(self, caller, checked or self.info)

    def _check_queue(self, tenant: str) -> None:
        waiting, limit = len(self._waiting), self._limits.max_queue
        if tenant and waiting < limit:
            waiting = sum(place.caller == tenant for place in self._waiting)
            limit = int(limit * self._limits.share)
        if waiting >= limit:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{self.running} runs are in flight and {waiting} wait, the most this server lets "
                f"in; try again in {RETRY_AFTER_S:g} s",
                metadata={"running": self.running, "waiting": waiting},
                retry_after_s=RETRY_AFTER_S,
            )

    def _place(self, caller: str, tenant: str, run: Run | None) -> _Place:
        return _Place(
            caller=caller,
            is_tenant=bool(account(tenant)),
            reserved_bytes=self.capture_bytes(run) if run else 0,
            report_bytes=report_bytes_of(run) if run else 0,
            vectors=self._vectors_of(run) if run else {},
            need=step_need(run, self.info) if run else (),
            admitted=asyncio.get_running_loop().create_future(),
            flow=account(tenant),
            cost=len(run.token_ids) + run.sampling.max_tokens if run else 0,
        )

    def _vectors_of(self, run: Run) -> Mapping[bytes, int]:
        # The samples of a call have the same interventions, of which there may be thousands.
        (interventions, captures), vectors = self._last_vectors
        if run.interventions is not interventions or run.captures is not captures:
            vectors = vector_bytes(run.interventions, run.captures)
            self._last_vectors = (run.interventions, run.captures), vectors
        # Of its own sequence, so that no other run shares it.
        own = score_state_bytes(run.interventions) + pattern_bytes(pattern_memory(run), self.info)
        return {**vectors, f"of {run.id} alone".encode(): own} if own else vectors

    def _forget_vectors(self) -> None:
        """Or what a call held would stay in memory until the next one."""
        self._last_vectors = ((), ()), {}

    def capture_bytes(self, run: Run) -> int:
        """The most bytes of rows a run can produce, in the element types the engine gives."""
        end = len(run.token_ids) + run.sampling.max_tokens - 1
        return sum(self._capture_bytes(capture, end) for capture in run.captures)

    def _capture_bytes(self, capture: Capture, end: int) -> int:
        return capture.spans.count(end) * self.info.row_bytes(capture)

    def check(self, run: Run, index: int) -> None:
        """Raises CAPTURE_TOO_LARGE or TOO_MANY_ROWS for a run that could never be admitted."""
        wanted = self.capture_bytes(run)
        limit = min(self.info.limits.max_capture_bytes, self._limits.capture_budget_bytes)
        if wanted > limit:
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"sequence {index} would capture {wanted} bytes, but one sequence may capture at "
                f"most {limit}; ask for fewer sites or positions, or a lower max_tokens",
                field=("readouts",),
                metadata={"bytes": wanted, "limit": limit, "sequence_index": index},
            )
        wanted, limit = sum(self._vectors_of(run).values()), self._limits.vector_budget_bytes
        if wanted > limit:
            raise ActserveError(
                Reason.TOO_MANY_ROWS,
                f"the interventions, projections and monitors of sequence {index} have vectors of "
                f"{wanted} bytes as float32, with the keys that attention is read from, but one "
                f"sequence may have at most {limit}; change fewer sites or positions, project or "
                "read attention in a call of its own, or name fewer monitors",
                field=("interventions",),
                metadata={"bytes": wanted, "limit": limit},
            )
        need, limit = Counter([step_need(run, self.info)]), self._limits.workspace_budget_bytes
        if (wanted := most_bytes([need], self.info.step_tokens)) > limit:
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"sequence {index} would take {wanted} bytes of the model's device in one step for "
                f"what is read and changed, but a step may take at most {limit} "
                "(workspace_budget_bytes); read or change fewer sites or positions",
                field=("readouts" if run.captures else "interventions",),
                metadata={"bytes": wanted, "limit": limit, "sequence_index": index},
            )
        if (wanted := report_bytes_of(run)) > (limit := self._limits.report_budget_bytes):
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"tokens, log probabilities and reports of sequence {index} may take {wanted} "
                f"bytes, but at most {limit} are there for all; lower max_tokens or logprobs, or "
                "change fewer positions",
                field=("interventions" if run.interventions else "sampling",),
                metadata={"bytes": wanted, "limit": limit, "sequence_index": index},
            )

    async def _merge(
        self, sources: Sequence[Callable[[], AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[tuple[int, T], None]:
        self._calls += 1
        self._idle.clear()
        try:
            async with aclosing(merge(sources, self._limits.max_running)) as events:
                async for event in events:
                    yield event
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    @asynccontextmanager
    async def _started(
        self, run: Run, caller: str, info: ModelInfo
    ) -> AsyncGenerator[AsyncGenerator[RunEvent, None], None]:
        events: asyncio.Queue[Any] = asyncio.Queue()
        read = asyncio.Event()
        serving = asyncio.create_task(self._serve(run, caller, info, events, read))
        try:
            async with aclosing(_until_over(events, read, serving)) as given:
                yield given
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _serve(
        self,
        run: Run,
        caller: str,
        info: ModelInfo,
        events: "asyncio.Queue[Any]",
        read: asyncio.Event,
    ) -> None:
        """Waits until the run may begin, takes its events as they come, so that it is over when the
        engine says so, and holds what it has reserved until they are read."""
        try:
            place = self._place(caller, run.tenant, run)
            async with self._admitted(place):
                try:
                    self._check_still_there(info)
                    with stage(Stage.ENGINE, {"actserve.model": self.info.id}):
                        async with aclosing(self._engine.run(run)) as given:
                            async for event in given:
                                events.put_nowait(event)
                finally:
                    self._end(place)
                events.put_nowait(_OVER)
                await read.wait()
        finally:
            self._forget_vectors()
            events.put_nowait(_OVER)  # Of a run that ended before it was complete.

    def _check_still_there(self, info: ModelInfo) -> None:
        """What a call may ask for was checked against `info`, and another engine may have proven
        less."""
        if self.info is not info:
            raise ActserveError(
                Reason.ENGINE_DEAD,
                "the engine died during this call and was started again; send the call again",
                retry_after_s=RETRY_AFTER_S,
            )

    @asynccontextmanager
    async def _admitted(self, place: _Place) -> AsyncGenerator[_Place, None]:
        with stage(Stage.QUEUE):
            await self._admit(place)
        try:
            yield place
        finally:
            self._release(place)

    async def _admit(self, place: _Place) -> None:
        place.tag = self._turns.tag(place.flow, place.cost)
        if not self._waiting and self._fits(place):
            self._take(place)
            return
        # Behind those of the same tag.
        insort_right(self._waiting, place, key=lambda each: each.tag)
        # Those in front may be waiting for their own shares.
        self._admit_waiting()
        try:
            await place.admitted
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
                self._turns.give_back(place.flow, place.cost)
                # It may have been the one too large to fit, with others that fit behind it.
                self._admit_waiting()
            else:
                self._release(place)  # Admitted and cancelled in the same instant.
            raise

    def _fits(self, place: _Place) -> bool:
        return self._fits_all(place) and self._fits_share(place)

    def _fits_all(self, place: _Place) -> bool:
        return (
            self.running < self._limits.max_running
            and self.reserved_bytes + place.reserved_bytes <= self._limits.capture_budget_bytes
            and self.report_bytes + place.report_bytes <= self._limits.report_budget_bytes
            and self.vector_bytes + self._vectors.more(place.vectors)
            <= self._limits.vector_budget_bytes
            and self._workspace.fits(
                place.need, self.info.step_tokens, self._limits.workspace_budget_bytes
            )
        )

    def _fits_share(self, place: _Place) -> bool:
        limits, caller = self._limits, place.caller
        share = limits.share
        rows, reports = self._reserved_bytes.of[caller], self._report_bytes.of[caller]
        vectors, more = self._vectors.of(caller), self._vectors.more_of(caller, place.vectors)
        running_share = self._running_share(caller) if place.is_tenant else 1
        return (
            _within(self._running.of[caller], 1, limits.max_running * running_share)
            and _within(rows, place.reserved_bytes, limits.capture_budget_bytes * share)
            and _within(reports, place.report_bytes, limits.report_budget_bytes * share)
            and _within(vectors, more, limits.vector_budget_bytes * share)
            and self._fits_step(place)
        )

    def _running_share(self, tenant: str) -> float:
        """Of the runs in flight. One that weighs more may have more than others may, as its weight
        is beside theirs, but never all, so that others always find room."""
        share, weight = self._limits.share, self._weight(tenant)
        if weight <= 1:
            return share
        others = {*self._running.of, *(each.caller for each in self._waiting)} - {tenant}
        beside = max(1.0, sum(self._weight(other) for other in others))
        return max(share, weight / (weight + beside))

    def _fits_step(self, place: _Place) -> bool:
        """Whether the caller's share of a step has room for the run too."""
        if not self._workspace.holds(place.caller):
            return True
        share = self._limits.workspace_budget_bytes * self._limits.share
        return self._workspace.fits(place.need, self.info.step_tokens, share, place.caller)

    def _take(self, place: _Place) -> None:
        self._turns.begin(place.tag)
        self._running.add(place.caller, 1)
        self._reserved_bytes.add(place.caller, place.reserved_bytes)
        self._report_bytes.add(place.caller, place.report_bytes)
        self._vectors.add(place.caller, place.vectors)
        self._workspace.add(place.caller, place.need)
        place.running = True

    def _end(self, place: _Place) -> None:
        """The engine has finished the run; what it gave may be unread."""
        if place.running:
            place.running = False
            self._running.add(place.caller, -1)
            self._vectors.remove(place.caller, place.vectors)
            self._workspace.remove(place.caller, place.need)
            self._admit_waiting()

    def _release(self, place: _Place) -> None:
        """Nothing of the run is left."""
        self._end(place)
        self._reserved_bytes.add(place.caller, -place.reserved_bytes)
        self._report_bytes.add(place.caller, -place.report_bytes)
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for index, place in enumerate(waiting):
            if not self._fits_all(place):
                self._waiting += waiting[index:]
                return
            if not self._fits_share(place):
                self._waiting.append(place)
                continue
            self._take(place)
            # A cancelled one still takes its place here and gives it back in `_admit`.
            if not place.admitted.done():
                place.admitted.set_result(None)


async def _until_over(
    events: "asyncio.Queue[Any]", read: asyncio.Event, serving: "asyncio.Task[None]"
) -> AsyncGenerator[RunEvent, None]:
    while (event := await events.get()) is not _OVER:
        yield event
    read.set()
    await serving  # Raises what ended the run, if it was an error.


class AdmittedCall:
    """A call that was let in: its runs wait for their turns, and are not refused."""

    def __init__(self, engine: AdmittedEngine, caller: str, info: ModelInfo) -> None:
        """`info` is what the call was checked against."""
        self._engine = engine
        self._caller = caller
        self._info = info

    @property
    def max_running(self) -> int:
        """Of the call's runs so many may be in line at once, or others would wait for all."""
        return self._engine._limits.max_running

    def started(self, run: Run) -> AbstractAsyncContextManager[AsyncGenerator[RunEvent, None]]:
        """The events of a run that `AdmittedEngine.check` has passed. It is in line from here on,
        whether or not anybody asks for its events."""
        return self._engine._started(run, self._caller, self._info)

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        """As `Engine.ended_text`."""
        return self._engine.ended_text(run, generated)

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        """The same as a stream."""
        async with self.started(run) as events:
            async for event in events:
                yield event

    def merge(
        self, sources: Sequence[Callable[[], AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[tuple[int, T], None]:
        """What the call's parts give, each with the index of its part. Parts begin in order, and no
        more of them are open than runs may be in flight."""
        return self._engine._merge(sources)
