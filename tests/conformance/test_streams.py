"""Many streams at once, a third of which are cancelled: nothing is left, at either end."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from actserve_server.engine.fake import FakeEngine
from tests.conformance.conftest import Drivers
from tests.conformance.drivers import LANGUAGES, Language
from tests.contract.harness import eventually, serving

STREAMS = 200


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
async def test_streams_that_end_and_streams_that_are_cancelled_leave_nothing(
    language: Language, drivers: Drivers
) -> None:
    driver = drivers.of(language)
    engine = FakeEngine(token_delay_s=0.02)
    async with serving(engine) as served:
        question = {
            "operation": "streams",
            "method": "Generate",
            "client": {"targets": [f"127.0.0.1:{served.app.port}"]},
            "request": {"prompt": {"text": "a"}, "sampling": {"maxTokens": 40}},
            "count": STREAMS,
            "cancel_every": 3,
        }
        ask = partial(driver.ask, question)
        answer = await asyncio.get_running_loop().run_in_executor(None, ask)
        cancelled = STREAMS // 3
        assert answer.get("result") == {
            "finished": STREAMS - cancelled,
            "cancelled": cancelled,
            "leaked": 0,
        }, answer
        await eventually(lambda: not engine.counters.running and not served.app.engine.running)
