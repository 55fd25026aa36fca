"""Ends a stream whose reader has stopped, so that nothing is held for it any longer."""

import asyncio
from typing import Any

from google.protobuf.message import Message

from actserve_server.domain.errors import ActserveError, Reason


async def write(context: Any, response: Message, timeout_s: float | None) -> None:
    """Sends a message. Raises READER_STALLED if the client does not take it, nor what was sent
    before it: gRPC waits for as long as the client's window is full."""
    try:
        async with asyncio.timeout(timeout_s):
            await context.write(response)
    except TimeoutError:
        raise ActserveError(
            Reason.READER_STALLED,
            f"nothing of this answer was read for {timeout_s:g} s, so the call was ended and what "
            "was held for it freed; read it as it comes, or ask for less at once",
            metadata={"timeout_s": f"{timeout_s:g}"},
        ) from None
