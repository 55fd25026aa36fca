"""Asks an engine's workers something, between two of its steps."""

import asyncio
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

CHECK_S = 0.5
"""How often it is looked whether anyone is left to answer."""


async def ask(llm: AsyncLLM, method: str, *of: Any) -> list[Any]:
    """What each rank answers. Raises `EngineDeadError` if the engine dies meanwhile, of which vLLM
    tells those alone who wait for a request."""
    asked = asyncio.ensure_future(llm.collective_rpc(method, args=of))
    try:
        while not asked.done():
            await asyncio.wait({asked}, timeout=CHECK_S)
            if llm.errored and not asked.done():
                raise EngineDeadError
        return asked.result()
    finally:
        asked.cancel()
