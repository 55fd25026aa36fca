"""Load: slow readers, callers that leave, full queues, shutting down."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    Served,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    kinds,
    serving,
    site,
)

ENDLESS = {"max_tokens": 100_000, "ignore_eos": True}


def slow(delay_s: float = 0.01, **options: Any) -> FakeEngine:
    limits = Limits(max_sequence_tokens=200_000)
    return FakeEngine(token_delay_s=delay_s, limits=limits, **options)


def everything_is_free(served: Served) -> bool:
    admitted = served.app.engine
    return not served.engine.counters.running and (
        admitted.running,
        admitted.waiting,
        admitted.reserved_bytes,
    ) == (0, 0, 0)


def unread(served: Served) -> Any:
    """A fetch of much more than fits between a server and a client that does not read: each of four
    prompts has 16 MB of rows."""
    return served.generation.FetchActivations(fetch(*(["x" * 500] * 4)))


async def test_a_slow_reader_slows_the_run_instead_of_filling_memory() -> None:
    row_bytes = 4096 * 4
    fake = FakeEngine(width=4096, rows_per_event=8)
    prompts = [f"{i:02}" + "x" * 198 for i in range(60)]
    async with serving(fake, max_running=4) as served:
        stream = served.generation.FetchActivations(fetch(*prompts))
        await stream.read()
        handed_out = -1
        while handed_out != fake.counters.rows:
            handed_out = fake.counters.rows
            await asyncio.sleep(0.3)
        assert handed_out * row_bytes < 16 << 20, "it read on without a reader"
        assert fake.counters.started < 60
        names = kinds(await collect(stream))
        assert names[-1] == "finished"
        assert names.count("item_finished") == 60
    assert fake.counters.rows == 60 * 201


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_cancelling_frees_the_runs_and_the_budget(read: int) -> None:
    async with serving(slow()) as served:
        request = generate(sampling={**ENDLESS, "samples": 3}, capture={"sites": [site()]})
        stream = served.generation.Generate(request)
        for _ in range(read):
            await stream.read()
        await eventually(lambda: served.app.engine.reserved_bytes > 0)
        stream.cancel()
        await eventually(lambda: everything_is_free(served), within_s=1)


async def test_cancelling_an_unread_stream_frees_what_is_parked_at_the_transport() -> None:
    fake = FakeEngine(width=8192, rows_per_event=16)
    async with serving(fake, max_running=2) as served:
        stream = unread(served)
        await stream.read()
        await asyncio.sleep(0.5)  # Flow control has stopped the server in the middle of a write.
        assert served.app.engine.reserved_bytes > 0
        stream.cancel()
        await eventually(lambda: everything_is_free(served), within_s=1)


async def test_a_deadline_frees_the_runs() -> None:
    async with serving(slow()) as served:
        request = generate(sampling=ENDLESS)
        failed = await failure(served.generation.Generate(request, timeout=0.2))
        assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: everything_is_free(served), within_s=1)


async def test_a_client_that_vanishes_frees_the_runs() -> None:
    async with serving(slow()) as served:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{served.app.port}")
        stub = replace(served, channel=channel).generation
        stream = stub.Generate(generate(sampling=ENDLESS))
        await stream.read()
        await channel.close()
        await eventually(lambda: everything_is_free(served), within_s=1)


async def test_cancelling_while_waiting_leaves_the_queue() -> None:
    async with serving(slow(), max_running=1) as served:
        first = served.generation.Generate(generate(sampling=ENDLESS))
        await first.read()
        second = served.generation.Generate(generate(sampling=ENDLESS))
        await eventually(lambda: served.app.engine.waiting == 1)
        second.cancel()
        await eventually(lambda: served.app.engine.waiting == 0)
        assert served.app.engine.running == 1
        first.cancel()
        await eventually(lambda: everything_is_free(served))


async def test_an_error_of_one_prompt_ends_the_call_and_the_other_prompts() -> None:
    async with serving(slow(0.2)) as served:
        stream = served.generation.FetchActivations(fetch("a", "b", "c"))
        await eventually(lambda: len(served.engine.counters.running) == 3)
        served.engine.faults.incomplete = True
        assert (await failure(stream)).reason == "CAPTURE_INCOMPLETE"
        await eventually(lambda: everything_is_free(served))


async def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    async with serving(slow(), max_running=1, max_queue=1) as served:
        running = served.generation.Generate(generate(sampling=ENDLESS))
        await running.read()
        waiting = served.generation.Generate(generate(sampling=ENDLESS))
        await eventually(lambda: served.app.engine.waiting == 1)
        refused = await failure(served.generation.Generate(generate()))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
        assert refused.details["RetryInfo"].retry_delay.seconds == 1
        assert "1 runs are in flight and 1 wait" in refused.message
        running.cancel()
        waiting.cancel()


async def test_a_reader_that_stops_holds_up_nobody_and_is_ended() -> None:
    fake = FakeEngine(width=8192, rows_per_event=16)
    async with serving(fake, max_running=2, reader_timeout_s=4) as served:
        stalled = unread(served)
        await stalled.read()
        await eventually(lambda: served.app.engine.reserved_bytes > 0)
        async with asyncio.timeout(3):
            await collect(served.generation.Generate(generate()))
        assert served.app.engine.reserved_bytes > 0
        await eventually(lambda: everything_is_free(served), within_s=20)
        refused = await failure(stalled)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "READER_STALLED",
    )
    assert "4 s" in refused.message


async def test_a_reader_that_stops_leaves_captures_to_others() -> None:
    one = 501 * 8192 * 4  # A sequence of `unread`.
    fake = FakeEngine(width=8192, rows_per_event=16)
    limits = {"max_capture_bytes": one, "capture_budget_bytes": 4 * one}
    async with serving(fake, **limits, reader_timeout_s=30) as served:
        stalled = unread(served)
        await stalled.read()
        await eventually(lambda: served.app.engine.reserved_bytes == 2 * one, within_s=5)
        async with asyncio.timeout(10):
            await collect(served.generation.FetchActivations(fetch("hello")))
        stalled.cancel()
        await eventually(lambda: everything_is_free(served), within_s=5)


async def test_a_reader_that_is_slow_is_served_to_the_end() -> None:
    fake = FakeEngine(width=8192, rows_per_event=16)
    async with serving(fake, reader_timeout_s=2) as served:
        stream = unread(served)
        count, last = 0, None
        async for event in stream:
            count, last = count + 1, event
            await asyncio.sleep(0.04)
    assert count > 60
    assert last is not None
    assert last.WhichOneof("event") == "finished"


async def test_a_call_of_more_prompts_than_the_queue_holds_is_served() -> None:
    async with serving(slow(0.001), max_running=2, max_queue=1) as served:
        request = fetch(*(str(i) for i in range(50)))
        names = kinds(await collect(served.generation.FetchActivations(request)))
    assert names.count("item_finished") == 50
    assert served.engine.counters.most_running == 2


async def test_a_small_call_does_not_wait_for_all_of_a_large_one() -> None:
    async with serving(slow(0.02), max_running=2) as served:
        large = asyncio.create_task(
            collect(served.generation.FetchActivations(fetch(*(str(i) for i in range(100)))))
        )
        await eventually(lambda: served.app.engine.running == 2)
        await collect(served.generation.FetchActivations(fetch("small")))
        assert served.engine.counters.started < 20
        assert not large.done()
        await large


async def test_captures_wait_for_the_byte_budget_and_all_are_served() -> None:
    one = 6 * 16 * 4  # "hello" at one site
    fake = slow(0.005)
    async with serving(fake, max_capture_bytes=one, capture_budget_bytes=2 * one) as served:
        calls = [collect(served.generation.FetchActivations(fetch("hello"))) for _ in range(8)]
        results = await asyncio.gather(*calls)
        assert all(kinds(events)[-1] == "finished" for events in results)
        assert fake.counters.most_running == 2
        await eventually(lambda: everything_is_free(served))


async def test_draining_lets_running_calls_finish_and_refuses_new_ones() -> None:
    fake = slow(0.2)
    async with serving(fake, drain_grace_s=3600) as served:
        # So slow that it goes on until it is told to be quick.
        running = served.generation.Generate(generate(sampling={"max_tokens": 500}))
        await running.read()
        draining = asyncio.create_task(served.app.drain())
        await eventually(lambda: served.app.engine._draining)
        refused = await failure(served.generation.Generate(generate()))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert refused.details["RetryInfo"].retry_delay.seconds == 1
        assert not draining.done()
        fake._delay_s = 0.0
        events = await collect(running)
        assert kinds(events)[-1] == "finished"
        await draining


async def test_draining_ends_calls_that_outlive_the_grace() -> None:
    async with serving(slow(), drain_grace_s=0.2) as served:
        running = served.generation.Generate(generate(sampling=ENDLESS))
        await running.read()
        await served.app.drain()  # Which returns, although the call would go on for ever.
        assert (await failure(running)).code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
        assert everything_is_free(served)


async def test_draining_an_idle_server_waits_for_no_grace() -> None:
    async with serving(drain_grace_s=3600) as served, asyncio.timeout(60):
        await served.app.drain()
