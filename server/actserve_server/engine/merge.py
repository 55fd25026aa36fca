"""Reads many event sources at once into one stream, at the pace of its reader.

Sources are opened in order, at most `parallel` at a time. The buffer is bounded, so a slow reader
slows every source instead of filling memory. However the stream ends (exhausted, closed early,
cancelled, or by an error in a source, which is raised as it is), every open source has been closed
when it has ended.

Why not `asyncio.TaskGroup`: a failing child cancels the task that entered the group, and a stream
parked at `yield` has left that task running somewhere else; the reader would see a bare
cancellation instead of the error.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_CANCELLED_WITHIN = "a source was cancelled from within"

BUFFERED_EVENTS = 8
"""Events of one stream that wait for its reader, over all sources."""


@dataclass(frozen=True, slots=True)
class _Event(Generic[T]):
    index: int
    value: T


@dataclass(frozen=True, slots=True)
class _Ended:
    """A worker has no more sources, or `error` ended it."""

    error: BaseException | None = None


async def merge(
    sources: Sequence[Callable[[], AsyncGenerator[T, None]]], parallel: int
) -> AsyncGenerator[tuple[int, T], None]:
    """Yields (index of the source, event)."""
    if len(sources) == 1:
        # There is nothing to merge, and no need for a task and a buffer in each event's way.
        async with aclosing(sources[0]()) as events:
            try:
                async for value in events:
                    yield 0, value
            except asyncio.CancelledError:
                reader = asyncio.current_task()
                if reader is None or reader.cancelling():
                    raise
                raise RuntimeError(_CANCELLED_WITHIN) from None
        return

    queue: asyncio.Queue[_Event[T] | _Ended] = asyncio.Queue(BUFFERED_EVENTS)
    pending = iter(enumerate(sources))
    closing = False

    async def work() -> None:
        try:
            # Workers share the iterator, so each source is taken once and in order.
            for index, open_source in pending:
                async with aclosing(open_source()) as events:
                    async for value in events:
                        await queue.put(_Event(index, value))
        except asyncio.CancelledError:
            if closing:
                raise
            # A source that cancels itself must not leave the reader waiting for ever.
            await queue.put(_Ended(RuntimeError(_CANCELLED_WITHIN)))
        except Exception as error:
            await queue.put(_Ended(error))
        else:
            await queue.put(_Ended())

    workers = [asyncio.create_task(work()) for _ in range(min(parallel, len(sources)))]
    try:
        running = len(workers)
        while running:
            match await queue.get():
                case _Event(index, value):
                    yield index, value
                case _Ended(error):
                    if error is not None:
                        raise error
                    running -= 1
    finally:
        closing = True
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
