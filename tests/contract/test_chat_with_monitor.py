"""The chat server of the examples: what a monitor stops is not said, and the user is told so."""

import asyncio
import importlib.util
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import Level, Probe, Stop
from tests.contract.harness import serving

PATH = Path(__file__).parents[2] / "examples/chat_with_monitor.py"
SPEC = importlib.util.spec_from_file_location("chat_with_monitor", PATH)
assert SPEC
assert SPEC.loader
chat: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chat)

ASKED = {"user": "u-7", "messages": [{"role": "user", "content": "hello"}]}
PROBE = Probe("resid_post.1", np.ones(16))
NEVER, ALWAYS = 1e6, -1e6


@asynccontextmanager
async def chatting(threshold: float) -> AsyncIterator[tuple[Any, str]]:
    """The client of a server, and the address of the chat, of which the monitor has a threshold."""
    async with serving() as served:
        with actserve.Client(f"127.0.0.1:{served.app.port}") as client:

            def begin() -> Any:
                client.monitors.create(
                    "rude", probe=PROBE, positions="generated", upper=Level(threshold, Stop())
                )
                return chat.server(client, "rude", 0)

            server = await asyncio.to_thread(begin)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield client, f"http://127.0.0.1:{server.server_port}/chat"
            finally:
                await asyncio.to_thread(server.shutdown)
                server.server_close()
                thread.join()


def said(address: str, body: Any = ASKED) -> tuple[int, list[dict[str, Any]]]:
    request = urllib.request.Request(address, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, [json.loads(line) for line in answer]
    except urllib.error.HTTPError as error:
        return error.code, [json.loads(line) for line in error]


async def test_an_answer_that_nothing_stops_is_said_as_it_is() -> None:
    async with chatting(NEVER) as (_, address):
        status, pieces = await asyncio.to_thread(said, address)
        assert status == 200
        assert pieces[-1]["done"] in ("stop", "length")
        assert chat.SORRY not in "".join(each.get("text", "") for each in pieces)
        assert len(pieces) > 2


async def test_what_the_monitor_stops_is_not_said_and_the_user_is_told() -> None:
    async with chatting(ALWAYS) as (client, address):
        status, pieces = await asyncio.to_thread(said, address)
        assert status == 200
        assert pieces[-1] == {"done": "withheld"}
        assert pieces[-2]["text"].endswith(chat.SORRY)
        assert sum(len(each["text"]) for each in pieces[:-2]) <= 1  # The token that crossed.
        (alert,) = await asyncio.to_thread(lambda: [*client.alerts.list(end_user="u-7")])
        assert (alert.monitor, alert.action) == ("rude", "stop")


async def test_without_the_monitor_nothing_is_answered() -> None:
    async with chatting(NEVER) as (client, address):
        await asyncio.to_thread(client.monitors.delete, "rude")
        status, pieces = await asyncio.to_thread(said, address)
        assert (status, pieces) == (503, [{"text": chat.BUSY}])


@pytest.mark.parametrize(
    "body", [3, {}, {"messages": [], "user": 3}, {"messages": [{"role": 1}], "user": "u"}]
)
async def test_a_request_that_is_none_says_what_to_send(body: Any) -> None:
    async with chatting(NEVER) as (_, address):
        status, pieces = await asyncio.to_thread(said, address, body)
        assert status == 400
        assert pieces[0]["error"]


async def test_a_monitor_that_stops_nothing_is_refused_at_the_start() -> None:
    async with chatting(NEVER) as (client, _):
        await asyncio.to_thread(client.monitors.update, "rude", upper=Level(1.0))
        with pytest.raises(ValueError, match="stops nothing"):
            await asyncio.to_thread(chat.server, client, "rude", 0)
