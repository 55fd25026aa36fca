"""Pairs loaded and unloaded while the server runs, whatever becomes of the calls that asked for it.

One is loaded at a time: on a GPU vLLM measures the memory that is left while it starts.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import structlog

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.work import WorkProgress, WorkState
from actserve_server.engine.closing import close_all, collect_dead
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.loadable_pairs import LoadablePairs
from actserve_server.nla.pair_sources import NlaSource

RESOURCE_TYPE = "actserve.v1.NlaPair"
LOAD_S = 3600.0
"""A load that takes longer has failed, so that the next one gets its turn."""
STEPS = 2
"""Of loading: an engine each for AV and AR."""

log = structlog.get_logger("actserve.nla")

Reached = Callable[[int], None]
"""Is told how many steps are done."""
Load = Callable[[NlaSource, Reached], Awaitable[Autoencoder]]
"""Loads a pair. Raises MEMORY_EXCEEDED, and ValueError or FileNotFoundError where it cannot be
loaded, which says why."""


class PairState(IntEnum):
    """As NlaPairState of the contract."""

    UNLOADED = 1
    LOADING = 2
    LOADED = 3
    UNLOADING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair that may be loaded, as it is now."""

    id: str
    state: PairState
    loading: WorkProgress | None = None
    """Of the last time that somebody asked for it."""
    error: ActserveError | None = None
    """Why that failed."""
    running_calls: int = 0


@dataclass(slots=True, eq=False)
class _Loading:
    progress: WorkProgress
    error: ActserveError | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def goes_on(self) -> bool:
        return self.progress.state in (WorkState.WAITING, WorkState.RUNNING)

    def reached(self, done: int) -> None:
        self.progress = WorkProgress(WorkState.RUNNING, done, STEPS)


class PairWork:
    """Loads into, and takes out of, the autoencoders that are served."""

    def __init__(
        self, pairs: LoadablePairs, nlas: "Autoencoders[Any]", load: Load | None = None
    ) -> None:
        """Without `load` there are no pairs."""
        self._pairs = pairs if load is not None else LoadablePairs()
        self._nlas = nlas
        self._load_pair = load
        self._turn = asyncio.Lock()
        self._loading: dict[str, _Loading] = {}
        self._leaving: dict[str, Autoencoder] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def all(self) -> Sequence[Pair]:
        """All, by id."""
        sources = await asyncio.to_thread(self._pairs.all)
        return [self._now(pair) for pair in sorted(sources)]

    async def get(self, pair: str, name: str, field: FieldPath = ("name",)) -> Pair:
        """The one of that id, whose name a request gave. Raises RESOURCE_NOT_FOUND."""
        self._known(await asyncio.to_thread(self._pairs.all), pair, name, field)
        return self._now(pair)

    async def load(self, pair: str, name: str) -> Pair:
        """Begins to load it, unless it is loaded or being loaded.

        Raises RESOURCE_NOT_FOUND, RESOURCE_EXISTS where the name is that of an NLA of another
        server, RESOURCE_NOT_READY while it is unloaded, and DRAINING.
        """
        source = self._known(await asyncio.to_thread(self._pairs.all), pair, name, ("name",))
        if self._closing:
            raise ActserveError(Reason.DRAINING, "this server is shutting down; load it elsewhere")
        there = self._nlas.get(pair)
        if there is not None and not isinstance(there, Autoencoder):
            raise ActserveError(
                Reason.RESOURCE_EXISTS,
                f"an NLA of another server is served as {pair!r}; give the pair another id",
                field=("name",),
                metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
            )
        if pair in self._leaving:
            raise self._not_ready(name, PairState.UNLOADING, "is being unloaded; wait until it is")
        doing = self._loading.get(pair)
        if there is None and not (doing is not None and doing.goes_on):
            doing = _Loading(WorkProgress(WorkState.WAITING, 0, STEPS))
            self._loading[pair] = doing
            doing.task = self._spawn(self._load(pair, source, doing))
        return self._now(pair)

    async def unload(self, pair: str, name: str) -> Pair:
        """Takes it out, so that no call finds it any more, and ends its engines once those that it
        works on are finished. Does nothing where it is not loaded.

        Raises RESOURCE_NOT_FOUND, and RESOURCE_NOT_READY while it is being loaded.
        """
        self._known(await asyncio.to_thread(self._pairs.all), pair, name, ("name",))
        doing = self._loading.get(pair)
        if doing is not None and doing.goes_on:
            raise self._not_ready(name, PairState.LOADING, "is being loaded; wait until it is")
        there = self._nlas.get(pair)
        if isinstance(there, Autoencoder):
            self._nlas.remove(pair)
            self._leaving[pair] = there
            there.gate.refuse(lambda: unloaded(pair))
            self._spawn(self._unload(pair, there))
        return self._now(pair)

    async def wait_idle(self) -> None:
        """Returns once no call is left to those that are being unloaded."""
        for each in list(self._leaving.values()):
            await each.gate.wait_idle()

    async def close(self) -> None:
        """Ends all that is being loaded or unloaded."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        leaving = list(self._leaving.values())
        self._leaving.clear()
        await close_all(*leaving)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        # On behalf of nobody: it goes on when the call is over.
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, pair: str, source: NlaSource, doing: _Loading) -> None:
        assert self._load_pair is not None
        async with self._turn:
            doing.reached(0)
            try:
                async with asyncio.timeout(LOAD_S):
                    loaded = await self._load_pair(source, doing.reached)
            except Exception as error:
                doing.error = _kept(_told(error, pair))
                doing.progress = WorkProgress(WorkState.FAILED, doing.progress.steps_done, STEPS)
                log.warning("pair not loaded", nla=pair, reason=str(doing.error.message))
                # Of its engines one may have been there.
                collect_dead()
                return
        self._nlas.add(loaded)
        doing.progress = WorkProgress(WorkState.SUCCEEDED, STEPS, STEPS)
        log.info("pair loaded", nla=pair)

    async def _unload(self, pair: str, nla: Autoencoder) -> None:
        await nla.gate.wait_idle()
        try:
            await nla.close()
        except Exception:
            log.exception("a pair was not cleaned up", nla=pair)
        del nla
        self._leaving.pop(pair, None)
        collect_dead()
        log.info("pair unloaded", nla=pair)

    def _known(
        self, sources: Mapping[str, NlaSource], pair: str, name: str, field: FieldPath
    ) -> NlaSource:
        if pair in sources:
            return sources[pair]
        known = ", ".join(sorted(sources))
        may = known or "none, unless its operator gives it an --nla-folder"
        raise ActserveError(
            Reason.RESOURCE_NOT_FOUND,
            f"this server knows no pair {name[:100]!r}; it may load {may}",
            field=field,
            metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
        )

    def _now(self, pair: str) -> Pair:
        doing, there = self._loading.get(pair), self._nlas.get(pair)
        leaving = self._leaving.get(pair)
        state = PairState.UNLOADED
        if doing is not None and doing.goes_on:
            state = PairState.LOADING
        elif leaving is not None:
            state = PairState.UNLOADING
        elif isinstance(there, Autoencoder):
            state = PairState.LOADED
        used = leaving or (there if isinstance(there, Autoencoder) else None)
        return Pair(
            id=pair,
            state=state,
            loading=None if doing is None else doing.progress,
            error=None if doing is None else doing.error,
            running_calls=0 if used is None else used.gate.calls,
        )

    def _not_ready(self, name: str, state: PairState, says: str) -> ActserveError:
        return ActserveError(
            Reason.RESOURCE_NOT_READY,
            f"{name[:100]} {says}, as GetNlaPair tells, then ask again",
            field=("name",),
            metadata={"resource_name": name, "state": state.name},
        )


def unloaded(pair: str) -> ActserveError:
    """What a call is told that found the pair just before it was taken out."""
    return ActserveError(
        Reason.NLA_NOT_FOUND,
        f"the NLA {pair} is being unloaded; use one of ListNlas",
        field=("nla",),
        metadata={"resource_type": "actserve.v1.Nla", "resource_name": pair},
    )


def _kept(error: ActserveError) -> ActserveError:
    """Without the frames that it came through, which hold what was loaded."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _told(error: Exception, pair: str) -> ActserveError:
    if isinstance(error, ActserveError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ActserveError(
            Reason.MEMORY_EXCEEDED,
            f"the pair {pair} cannot be loaded: the shared memory (/dev/shm) or the disk of the "
            "cache is full; make room there, and load it again",
        )
    if isinstance(error, ValueError | FileNotFoundError):
        return ActserveError(
            Reason.NLA_PAIR_INVALID,
            f"the pair {pair} cannot be loaded: {error}; mend it, and load it again",
            metadata={"nla": pair},
        )
    log.error("unexpected error", nla=pair, exc_info=error)
    return ActserveError(
        Reason.INTERNAL, f"the pair {pair} was not loaded; the server's log says why"
    )
