"""Many sources, one stream: order, bounds, and no source left open."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from actserve_server.engine.merge import BUFFERED_EVENTS, merge


class Sources:
    """Sources of `length` events each, that remember what happened to them."""

    def __init__(self, count: int, length: int = 3) -> None:
        self.length = length
        self.opened: list[int] = []
        self.closed: set[int] = set()
        self.produced = 0
        self.fail_at: tuple[int, int] | None = None
        self.cancel_at: tuple[int, int] | None = None
        self.all: list[Callable[[], AsyncGenerator[int, None]]] = [
            lambda index=index: self._source(index) for index in range(count)
        ]

    async def _source(self, index: int) -> AsyncGenerator[int, None]:
        self.opened.append(index)
        try:
            for step in range(self.length):
                await asyncio.sleep(0)
                if self.fail_at == (index, step):
                    raise ValueError(f"source {index}")
                if self.cancel_at == (index, step):
                    raise asyncio.CancelledError
                self.produced += 1
                yield step
        finally:
            await asyncio.sleep(0)  # Closing may take time.
            self.closed.add(index)

    @property
    def open(self) -> set[int]:
        return set(self.opened) - self.closed


async def test_every_event_comes_once_and_in_order_within_its_source() -> None:
    sources = Sources(10)
    got: dict[int, list[int]] = {}
    async for index, value in merge(sources.all, 4):
        got.setdefault(index, []).append(value)
    assert got == {index: [0, 1, 2] for index in range(10)}
    assert not sources.open


async def test_no_more_than_parallel_are_open_and_they_open_in_order() -> None:
    sources = Sources(10)
    most = 0
    async for _ in merge(sources.all, 3):
        most = max(most, len(sources.open))
    assert most == 3
    assert sources.opened == list(range(10))


async def test_a_single_source_is_read_at_the_pace_of_its_reader_and_closed() -> None:
    sources = Sources(1, length=1000)
    async with aclosing(merge(sources.all, 2)) as stream:
        assert await anext(stream) == (0, 0)
        assert sources.produced == 1
    assert not sources.open


async def test_no_sources_make_an_empty_stream() -> None:
    assert [event async for event in merge([], 3)] == []


async def test_sources_wait_for_a_slow_reader() -> None:
    sources = Sources(2, length=1000)
    async with aclosing(merge(sources.all, 2)) as stream:
        await anext(stream)
        for _ in range(100):
            await asyncio.sleep(0)
        assert sources.produced <= BUFFERED_EVENTS + 1 + 2


async def test_closing_early_closes_the_sources() -> None:
    sources = Sources(5, length=1000)
    async with aclosing(merge(sources.all, 3)) as stream:
        await anext(stream)
    assert sources.opened == [0, 1, 2]
    assert not sources.open


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_the_reader_closes_the_sources(count: int) -> None:
    sources = Sources(count, length=10**9)

    async def read() -> None:
        async with aclosing(merge(sources.all, 3)) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sources.closed == {*range(count)}


@pytest.mark.parametrize("failing", [0, 4])
async def test_an_error_is_raised_as_it_is_and_closes_the_others(failing: int) -> None:
    sources = Sources(failing + 1, length=1000)
    sources.fail_at = (failing, 5)
    with pytest.raises(ValueError, match=f"source {failing}"):
        async for _ in merge(sources.all, 3):
            pass
    assert not sources.open


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_a_source_that_cancels_itself_does_not_hang_the_reader(cancelled: int) -> None:
    sources = Sources(cancelled + 1)
    sources.cancel_at = (cancelled, 1)

    async def read() -> None:
        async for _ in merge(sources.all, 2):
            pass

    with pytest.raises(RuntimeError, match="cancelled from within"):
        await asyncio.wait_for(read(), 1)
