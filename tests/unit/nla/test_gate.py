"""The gate refuses calls before they begin, and never in their middle."""

import asyncio

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.nla.gate import Gate


async def _call(gate: Gate) -> None:
    async with gate.call():
        pass


async def test_calls_beyond_the_limit_are_refused_until_one_ends() -> None:
    gate = Gate(max_calls=1)
    async with gate.call():
        with pytest.raises(ActserveError) as refused:
            await _call(gate)
        assert refused.value.reason is Reason.QUEUE_FULL
        assert refused.value.retry_after_s is not None
        assert gate.calls == 1
    await _call(gate)


async def test_draining_refuses_new_calls_and_waits_for_those_in_progress() -> None:
    gate = Gate()
    async with gate.call():
        gate.drain()
        with pytest.raises(ActserveError) as refused:
            await _call(gate)
        assert refused.value.reason is Reason.DRAINING
        idle = asyncio.ensure_future(gate.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
    await asyncio.wait_for(idle, 1)


async def test_a_call_that_fails_is_over() -> None:
    gate = Gate()
    with pytest.raises(RuntimeError):
        async with gate.call():
            raise RuntimeError
    assert gate.calls == 0
    await asyncio.wait_for(gate.wait_idle(), 1)
