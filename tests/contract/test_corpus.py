"""A corpus that is read through the client, on the real servicers and a fake engine."""

import asyncio
import contextlib
import os
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

import actserve

from .harness import serving

SITE = "resid_post.1"
PROMPTS = int(os.environ.get("CORPUS_PROMPTS", "2000"))
BAD = {17, 400, 401, 999, 1600, 1601, 1999}


def corpus() -> Iterator[str]:
    """Short prompts, of which seven are too long."""
    return ("x" * 100_000 if index in BAD else f"prompt {index}" for index in range(PROMPTS))


@pytest.mark.timeout(1800)  # CORPUS_PROMPTS may be many.
async def test_bad_prompts_come_in_their_place_and_memory_stays_flat(
    monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    alive: weakref.WeakSet[actserve.Activations] = weakref.WeakSet()
    init = actserve.Activations.__init__

    def counted(self: actserve.Activations, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        alive.add(self)

    monkeypatch.setattr(actserve.Activations, "__init__", counted)
    async with serving() as served, actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as client:
        plain = await client.fetch("prompt 5", SITE)
        bad, most, memory, index = [], 0, [], -1
        async for result in client.fetch_iter(corpus(), SITE, on_error="return"):
            index += 1
            most = max(most, len(alive))
            if isinstance(result, actserve.ActserveError):
                assert result.field == f"prompts[{index}]"
                bad.append(index)
            else:
                assert result.key == str(index)
                if index == 5:
                    np.testing.assert_array_equal(result[SITE], plain[SITE])
            if index % 500 == 499:
                memory.append(psutil.Process().memory_info().rss / 1e6)
    assert index == PROMPTS - 1
    assert bad == sorted(BAD)
    assert most <= 5 * 32  # Five for each that may run at once.
    record_property("MB of client, server and engine", [round(each) for each in memory])
    # Of the whole process, in MB. A result alone takes 600 bytes and its objects twice that.
    assert memory[-1] < memory[0] + 50, memory


class Wire:
    """A proxy between a caller and a server that cuts the connection, in the middle of what the
    server sends, after each of these numbers of bytes."""

    def __init__(self, port: int, cuts: Iterable[int]) -> None:
        self.port = port
        self.left = deque(cuts)
        self._sent = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:  # gRPC may keep a connection for a while.
            writer.transport.abort()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        behind = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers += [writer, behind[1]]
        asking = asyncio.create_task(self._ask(reader, behind[1]))
        while data := await behind[0].read(1 << 12):
            self._sent += len(data)
            if self.left and self._sent > self.left[0]:
                self.left.popleft()
                break
            writer.write(data)
            await writer.drain()
        for each in (writer, behind[1]):
            each.transport.abort()
        await asking

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 12):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()  # The caller has gone.


@pytest.mark.parametrize("resumes", [False, True])
async def test_a_connection_that_is_cut_loses_and_repeats_nothing(
    monkeypatch: pytest.MonkeyPatch, resumes: bool
) -> None:
    """Three times: by itself, or by a program that goes on after the last key it has seen."""
    if resumes:
        monkeypatch.setattr("actserve._retries._LONGEST_PAUSES_S", ())
    # Long enough that a cut falls into the middle of an answer.
    prompts = [f"{index} {'x' * 200}" for index in range(96)]
    found: list[str] = []
    async with serving() as served:
        wire = Wire(served.app.port, cuts=(300_000, 600_000, 900_000))
        async with wire as target, actserve.AsyncClient(target) as client:
            failures = 0
            while len(found) < len(prompts):
                after = found[-1] if found else None
                try:
                    async for acts in client.fetch_iter(prompts, SITE, after=after):
                        assert "".join(acts.tokens[1:]) == prompts[int(acts.key)]
                        found.append(acts.key)
                except actserve.Unavailable:
                    failures += 1
                    assert failures < 10
    assert not wire.left
    assert bool(failures) == resumes
    assert found == [str(index) for index in range(len(prompts))]
