"""An engine that is started again when it dies.

Whoever uses the engine need not know. While it is dead every call fails with ENGINE_DEAD, and says
when to try again. What comes in its place is another process with other rows: it must describe the
same model, and prove itself as the first one did, before a call reaches it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, replace

import numpy as np
import structlog

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix
from actserve_server.engine.api import Engine
from actserve_server.engine.closing import collect_dead

START_S = 30.0
"""How long a start is expected to take before one was measured."""
SOONEST_RETRY_S = 2.0
LATEST_RETRY_S = 30.0
"""Between these callers are told to try again. A start may take less than it is expected to, so
nobody is sent away for long."""

Start = Callable[[], Awaitable[Engine]]
Prove = Callable[[Engine], Awaitable[ModelInfo]]
"""What an engine may serve: what it says of itself, less what it fails to prove."""
Measure = Callable[[Engine, ModelInfo], Awaitable[Mapping[Site, float]]]
"""How long its rows are, by site."""

log = structlog.get_logger("actserve.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartLimits:
    """How long it is tried to start a dead engine again.

    What passes by itself, such as memory that a process still holds while it dies, passes within
    the pauses. What does not, a new server or a person may mend, so the server then ends and does
    not look as if it were about to serve.
    """

    first_pause_s: float = 1.0
    """After the first start that failed; each one after is twice as long. Before the first there is
    none: what has served is worth a start at once."""
    longest_pause_s: float = 30.0
    starts: int = 8
    """In a row, of which all fail. All pauses together are a minute and a half."""
    total_s: float = 1800.0
    """For all of them: a start may hang."""


class Restarts:
    """What the engines of one server share when they are started again."""

    def __init__(
        self,
        limits: RestartLimits | None = None,
        restarted: Callable[[str], None] = lambda model_id: None,
    ) -> None:
        """`restarted` is told each engine that serves again."""
        self.limits = limits or RestartLimits()
        self.restarted = restarted
        self.turn = asyncio.Lock()
        """One start at a time: on a GPU vLLM measures the memory that is left while it starts."""
        self.given_up = asyncio.Event()
        """Set once an engine stays dead."""
        self.why = ""
        self.interrupted = False
        """Whether an engine was closed while it was being started."""

    def apart(self) -> "Restarts":
        """For engines without which the server goes on: that one stays dead is told by its own
        calls alone. They are started in turn with the others."""
        apart = Restarts(self.limits, self.restarted)
        apart.turn = self.turn
        return apart


class RestartingEngine:
    """Implements `actserve_server.engine.api.Engine` with one engine after another."""

    def __init__(
        self,
        engine: Engine,
        prove: Prove,
        start: Start | None = None,
        restarts: Restarts | None = None,
    ) -> None:
        """`engine` is the first, just started. Without `start` it is the last as well."""
        self._current: Engine | None = engine
        self._described = self._info = engine.info
        self._prove = prove
        self._start = start
        self._restarts = restarts or Restarts()
        self._restarting: asyncio.Task[None] | None = None
        self._closed = False
        self._start_s = START_S
        self._expected_at = 0.0
        """When it is thought to serve again, in `time.monotonic`."""

    @property
    def info(self) -> ModelInfo:
        """What the engine has proven, or the one before while there is none. Another object after
        each restart, so that a call can tell whether its engine is still there."""
        return self._info

    @property
    def current(self) -> Engine:
        """The engine that serves now. Raises ENGINE_DEAD if there is none."""
        if self._current is None:
            raise self._dead()
        return self._current

    async def prove(self) -> None:
        """Runs the self-test of the first engine. Call this before serving."""
        assert self._current is not None
        self._info = await self._prove(self._current)

    async def measure(self, measure: Measure) -> None:
        """Finds how long rows are, by the first engine. The next ones keep it: it is of the model.
        Call this before serving, and after `prove`."""
        assert self._current is not None
        self._info = replace(self._info, row_norms=await measure(self._current, self._info))

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        async with self._living() as engine:
            return await engine.tokenize(prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        async with self._living() as engine:
            return await engine.spell(words)

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        async with self._living() as engine, aclosing(engine.run(run)) as events:
            async for event in events:
                yield event

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        return self.current.ended_text(run, generated)

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        async with self._living() as engine:
            return await engine.token_rows(matrix, token_ids)

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        async with self._living() as engine:
            return await engine.head_rows(layer, head, matrix, rows)

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        async with self._living() as engine:
            return await engine.logit_directions(targets, layers)

    @property
    def graphs(self) -> Mapping[str, frozenset[HookPoint]]:
        return self.current.graphs

    async def drop_graph(self, name: str) -> None:
        async with self._living() as engine:
            await engine.drop_graph(name)

    async def check_health(self) -> None:
        async with self._living() as engine:
            await engine.check_health()

    async def close(self) -> None:
        """Also of an engine that is just being started."""
        self._closed = True
        if self._restarting is not None and not self._restarting.done():
            self._restarts.interrupted = True
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        if self._current is not None:
            await self._current.close()

    @asynccontextmanager
    async def _living(self) -> AsyncGenerator[Engine, None]:
        """The engine that serves now. Raises ENGINE_DEAD if there is none, and in place of any
        error that comes of its death."""
        engine = self._current
        if engine is None:
            raise self._dead()
        try:
            yield engine
        except Exception as error:
            if not await self._has_died(engine, error):
                raise
            raise self._dead() from error

    async def _has_died(self, engine: Engine, error: Exception) -> bool:
        """Whether there will be another in its place."""
        if self._start is None:
            return False
        if self._current is engine:
            if not _tells_death(error):
                try:
                    await engine.check_health()
                except ActserveError as found:
                    error = found
            if _tells_death(error):
                self._replace(engine)
        return self._current is not engine

    def _replace(self, engine: Engine) -> None:
        if self._current is not engine or self._closed:
            return  # Somebody was faster.
        self._current = None
        self._expected_at = time.monotonic() + self._start_s
        # On behalf of nobody: it works for all callers, not for the one who noticed.
        self._restarting = asyncio.create_task(self._start_another(engine), context=Context())

    def _dead(self) -> ActserveError:
        left_s = self._expected_at - time.monotonic()
        retry_after_s = min(max(left_s, SOONEST_RETRY_S), LATEST_RETRY_S)
        return ActserveError(
            Reason.ENGINE_DEAD,
            f"the engine of {self._info.id} has died and is being started again; try again in "
            f"{retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    async def _start_another(self, dead: Engine) -> None:
        model_id, died_at = self._info.id, time.monotonic()
        log.error("engine died", model=model_id)
        try:
            await dead.close()
        except Exception:
            log.exception("a dead engine was not cleaned up", model=model_id)
        del dead
        try:
            async with asyncio.timeout(self._restarts.limits.total_s):
                engine, info = await self._start_again()
        except Exception as error:
            reason = str(error) or "it takes too long"
            self._restarts.why = f"the engine of {model_id} died and does not start again: {reason}"
            self._restarts.given_up.set()
            return
        # Which it can be now that all runs that it cut are over.
        collect_dead()
        self._current, self._info = engine, replace(info, row_norms=self._info.row_norms)
        self._restarts.restarted(model_id)
        seconds = round(time.monotonic() - died_at, 1)
        log.info("engine started again", model=model_id, seconds=seconds)

    async def _start_again(self) -> tuple[Engine, ModelInfo]:
        """Tries several times. Raises the error of the last attempt."""
        limits, pause_s = self._restarts.limits, 0.0
        for left in reversed(range(limits.starts)):
            self._expected_at = time.monotonic() + pause_s + self._start_s
            await asyncio.sleep(pause_s)
            try:
                async with self._restarts.turn:
                    return await self._proven()
            except Exception as error:
                log.warning(
                    "engine start failed", model=self._info.id, reason=str(error), starts_left=left
                )
                if not left:
                    raise
            pause_s = min(2 * pause_s or limits.first_pause_s, limits.longest_pause_s)
        raise AssertionError("there is at least one start")

    async def _proven(self) -> tuple[Engine, ModelInfo]:
        """An engine that has proven itself, and what."""
        assert self._start is not None
        began = time.monotonic()
        engine = await self._start()
        try:
            if not _same_model(engine.info, self._described):
                # What was kept, learned and validated is of the model as it was.
                raise ValueError("its model is not the same as before; start the server again")
            info = await self._prove(engine)
        except BaseException:
            await engine.close()
            raise
        self._start_s = time.monotonic() - began
        return engine, info


def _tells_death(error: Exception) -> bool:
    return isinstance(error, ActserveError) and error.reason is Reason.ENGINE_DEAD


def _same_model(one: ModelInfo, other: ModelInfo) -> bool:
    # Rules of attention may hold arrays, which do not compare; they are proven anyway.
    return replace(one, attention=()) == replace(other, attention=())
