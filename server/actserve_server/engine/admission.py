"""Bounds what runs at once, so that load makes callers wait or go elsewhere, never the server die.

Three limits: bytes of captured rows (reserved for a whole run before it starts, since its rows may
all wait for a slow reader), runs in flight, and runs waiting. Runs are admitted strictly in order,
so a large one is not starved by small ones. A run holds one reservation and never waits for a
second, so nothing can deadlock. A call of many runs keeps at most as many of them in line as may
run at once, so a small call that comes later waits for one run, not for all of them; and once a
call is let in, its later runs are not refused.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import Prompt, TokenizedPrompt
from actserve_server.domain.runs import Capture, Run, RunEvent
from actserve_server.engine.api import Engine
from actserve_server.engine.merge import merge
from actserve_server.engine.selftest import SelfTest, self_test

RETRY_AFTER_S = 1.0
"""When a refused caller should try again: about the time in which a busy server finishes a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How much runs at once, over all calls."""

    capture_budget_bytes: int = 4 << 30
    """Bytes of captured rows that runs in flight may produce."""
    max_running: int = 256
    """Runs in flight."""
    max_queue: int = 1024
    """Runs that wait for one of the former; a call that comes when so many wait is refused."""


@dataclass(eq=False, slots=True)
class _Waiter:
    reserved_bytes: int
    admitted: asyncio.Future[None]


class AdmittedEngine:
    """An `Engine` that runs no more at once than its limits allow."""

    def __init__(self, engine: Engine, limits: AdmissionLimits | None = None) -> None:
        self._engine = engine
        self._info = engine.info
        self._limits = limits or AdmissionLimits()
        self._waiting: deque[_Waiter] = deque()
        self._running = 0
        self._reserved_bytes = 0
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @property
    def info(self) -> ModelInfo:
        """The engine's own, less what failed the self-test."""
        return self._info

    async def prove(self) -> SelfTest:
        """Has the engine test itself, and serves what passed alone. Call before serving."""
        result = await self_test(self._engine)
        self.offer(result.info)
        return result

    def offer(self, info: ModelInfo) -> None:
        """Serves what `info` says from now on: what the engine serves, or less."""
        self._info = info

    @property
    def running(self) -> int:
        """Runs in flight."""
        return self._running

    @property
    def waiting(self) -> int:
        """Runs that wait to be admitted."""
        return len(self._waiting)

    @property
    def reserved_bytes(self) -> int:
        """Capture bytes reserved by the runs in flight."""
        return self._reserved_bytes

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        return await self._engine.tokenize(prompt)

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

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        async with aclosing(self.run_all([run])) as events:
            async for _, event in events:
                yield event

    def run_all(self, runs: Sequence[Run]) -> AsyncGenerator[tuple[int, RunEvent], None]:
        """Streams the events of all runs, each with its index in `runs`.

        Refuses at once, before anything is streamed, what could never be admitted or comes at a
        bad time. Closing the stream aborts the runs and frees what they hold.
        """
        if self._draining:
            raise ActserveError(
                Reason.DRAINING,
                "this server is shutting down; try again to reach another",
                retry_after_s=RETRY_AFTER_S,
            )
        for index, run in enumerate(runs):
            self._check_capture(run, index)
        must_wait = self._waiting or not self._fits(self.capture_bytes(runs[0]))
        if must_wait and len(self._waiting) >= self._limits.max_queue:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{self._running} runs are in flight and {len(self._waiting)} wait, the most this "
                f"server lets in; try again in {RETRY_AFTER_S:g} s",
                metadata={"running": self._running, "waiting": len(self._waiting)},
                retry_after_s=RETRY_AFTER_S,
            )
        return self._run_all(runs)

    def capture_bytes(self, run: Run) -> int:
        """The most bytes of rows a run can produce, in the element types the engine gives."""
        end = len(run.token_ids) + run.sampling.max_tokens - 1
        return sum(self._capture_bytes(capture, end) for capture in run.captures)

    def _capture_bytes(self, capture: Capture, end: int) -> int:
        rows = capture.spans.count(end)
        elements = sum(self.info.row_width(capture, site) for site in capture.sites)
        return rows * elements * self.info.row_type(capture).itemsize

    def _check_capture(self, run: Run, index: int) -> None:
        wanted = self.capture_bytes(run)
        limit = min(self.info.limits.max_capture_bytes, self._limits.capture_budget_bytes)
        if wanted > limit:
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"sequence {index} would capture {wanted} bytes, but one sequence may capture at "
                f"most {limit}; ask for fewer sites or positions, or a lower max_tokens",
                field="capture",
                metadata={"bytes": wanted, "limit": limit, "sequence_index": index},
            )

    async def _run_all(self, runs: Sequence[Run]) -> AsyncGenerator[tuple[int, RunEvent], None]:
        self._calls += 1
        self._idle.clear()
        try:
            sources = [lambda run=run: self._run_admitted(run) for run in runs]
            async with aclosing(merge(sources, self._limits.max_running)) as events:
                async for event in events:
                    yield event
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    async def _run_admitted(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        async with (
            self._admitted(self.capture_bytes(run)),
            aclosing(self._engine.run(run)) as events,
        ):
            async for event in events:
                yield event

    @asynccontextmanager
    async def _admitted(self, reserved_bytes: int) -> AsyncGenerator[None, None]:
        await self._admit(reserved_bytes)
        try:
            yield
        finally:
            self._release(reserved_bytes)

    async def _admit(self, reserved_bytes: int) -> None:
        if not self._waiting and self._fits(reserved_bytes):
            self._take(reserved_bytes)
            return
        waiter = _Waiter(reserved_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                # It may have been the one too large to fit, with others that fit behind it.
                self._admit_waiting()
            else:
                self._release(reserved_bytes)  # Admitted and cancelled in the same instant.
            raise

    def _fits(self, reserved_bytes: int) -> bool:
        return (
            self._running < self._limits.max_running
            and self._reserved_bytes + reserved_bytes <= self._limits.capture_budget_bytes
        )

    def _take(self, reserved_bytes: int) -> None:
        self._running += 1
        self._reserved_bytes += reserved_bytes

    def _release(self, reserved_bytes: int) -> None:
        self._running -= 1
        self._reserved_bytes -= reserved_bytes
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting and self._fits(self._waiting[0].reserved_bytes):
            waiter = self._waiting.popleft()
            self._take(waiter.reserved_bytes)
            # A cancelled waiter still takes its slot here and gives it back in `_admit`.
            if not waiter.admitted.done():
                waiter.admitted.set_result(None)
