"""Engines are closed all at once, whatever becomes of one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actserve_server import app
from actserve_server.config import Settings
from actserve_server.engine.closing import close_all
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.autoencoders import Autoencoders
from tests.contract.nlas import Tiny

WITHIN_S = 20


class Slow(FakeEngine):
    """Closed once all have begun to close."""

    def __init__(self, together: asyncio.Barrier, fails: bool = False) -> None:
        super().__init__()
        self._together = together
        self._fails = fails
        self.closed = False

    async def close(self) -> None:
        await self._together.wait()
        await super().close()
        self.closed = True
        if self._fails:
            raise RuntimeError("it does not end")


async def test_a_server_closes_its_engine_and_those_of_its_autoencoders_at_once(
    tmp_path: Path,
) -> None:
    together = asyncio.Barrier(5)
    engines = [Slow(together) for _ in range(5)]
    model, av, ar, other_av, other_ar = engines
    pairs = [Tiny(id="one", av=av, ar=ar), Tiny(id="two", av=other_av, ar=other_ar)]
    nlas = Autoencoders([each.loaded() for each in pairs])
    options: dict[str, Any] = {"data_dir": tmp_path}
    served = app.build(model, Settings(**options), nlas)
    async with asyncio.timeout(WITHIN_S):
        await served.close()
    assert all(each.closed for each in engines)


async def test_an_engine_that_does_not_end_keeps_no_other_from_ending() -> None:
    together = asyncio.Barrier(2)
    one, other = Slow(together, fails=True), Slow(together)
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(RuntimeError, match="it does not end"):
            await close_all(one, other)
    assert other.closed
