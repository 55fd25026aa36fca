"""Generate: the stream, samples and seeds, stopping, captures and steering."""

from typing import Any

import numpy as np

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import site_pb2
from actserve_server.domain.model import Limits
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    collect,
    generate,
    kinds,
    matrices,
    run,
    serving,
    site,
)


def texts(events: list[Any]) -> dict[int, str]:
    result: dict[int, str] = {}
    for event in events:
        if event.WhichOneof("event") == "tokens":
            chunk = event.tokens
            result[chunk.sample_index] = result.get(chunk.sample_index, "") + chunk.text
    return result


def ids(events: list[Any]) -> list[int]:
    return [token for event in events for token in event.tokens.ids]


def finishes(events: list[Any]) -> list[Any]:
    return [e.sample_finished for e in events if e.WhichOneof("event") == "sample_finished"]


async def test_events_come_in_the_promised_order() -> None:
    events = await run(generate())
    assert kinds(events) == ["started", *["tokens"] * 5, "sample_finished", "finished"]
    assert [e.tokens.position for e in events[1:6]] == [6, 7, 8, 9, 10]
    usage = events[-1].finished.usage
    assert (usage.prompt_tokens, usage.output_tokens, usage.activation_bytes) == (6, 5, 0)


async def test_without_a_readout_started_tells_of_none() -> None:
    started = (await run(generate()))[0].started
    assert not started.readouts
    assert len(started.prompt.ids) == 6


async def test_started_gives_the_width_of_every_captured_site() -> None:
    sites = [site(0, site_pb2.HOOK_POINT_V), site(1), site(None, site_pb2.HOOK_POINT_LOGITS)]
    events = await run(generate(capture={"sites": sites}))
    assert list(events[0].started.readouts[0].widths) == [8, 16, 260]
    assert list(events[0].started.readouts[0].heads) == [2, 0, 0]
    assert [matrices(events)[0, index][1].shape[1] for index in range(3)] == [8, 16, 260]


async def test_128_tokens_unless_told_otherwise() -> None:
    events = await run(generate(sampling={"temperature": 0}))
    assert events[-1].finished.usage.output_tokens == 128
    assert finishes(events)[0].reason == pb.FINISH_REASON_LENGTH


async def test_fewer_where_the_context_leaves_less() -> None:
    fake = FakeEngine(limits=Limits(max_sequence_tokens=16))
    events = await run(generate(sampling=None), fake)
    assert events[-1].finished.usage.output_tokens == 10


async def test_greedy_is_repeatable_and_seeds_differ() -> None:
    async with serving() as served:

        async def text(**sampling: Any) -> dict[int, str]:
            request = generate(sampling={"max_tokens": 20, **sampling})
            return texts(await collect(served.generation.Generate(request)))

        assert await text(temperature=0) == await text(temperature=0)
        assert await text(seed=7) == await text(seed=7)
        assert await text(seed=7) != await text(seed=8)


async def test_sample_i_uses_seed_plus_i() -> None:
    async with serving() as served:

        async def text(**sampling: Any) -> dict[int, str]:
            request = generate(sampling={"max_tokens": 20, **sampling})
            return texts(await collect(served.generation.Generate(request)))

        together = await text(seed=7, samples=3)
        alone = [(await text(seed=7 + i))[0] for i in range(3)]
    assert [together[i] for i in range(3)] == alone


async def test_samples_run_at_once_and_each_finishes() -> None:
    fake = FakeEngine(token_delay_s=0.005)
    events = await run(generate(sampling={"max_tokens": 5, "samples": 4}), fake)
    assert fake.counters.most_running == 4
    assert sorted(f.sample_index for f in finishes(events)) == [0, 1, 2, 3]
    usage = events[-1].finished.usage
    assert (usage.prompt_tokens, usage.output_tokens) == (6, 20)


async def test_a_stop_string_ends_the_text_before_it() -> None:
    whole = texts(await run(generate(sampling={"max_tokens": 30, "temperature": 0})))[0]
    stop = whole[10:13]
    events = await run(
        generate(sampling={"max_tokens": 30, "temperature": 0, "stop": [stop, "never"]})
    )
    assert texts(events)[0] == whole[: whole.index(stop)]
    assert finishes(events)[0].reason == pb.FINISH_REASON_STOP


async def test_logprobs_are_sent_when_asked_for() -> None:
    sampling = {"max_tokens": 3, "temperature": 0, "logprobs": 2}
    chunks = [e.tokens for e in (await run(generate(sampling=sampling)))[1:4]]
    for chunk in chunks:
        (logprobs,) = chunk.logprobs
        assert len(logprobs.top) == 2
        assert logprobs.top[0].id == chunk.ids[0]  # greedy
        assert logprobs.logprob == logprobs.top[0].logprob < 0
        assert logprobs.top[0].logprob >= logprobs.top[1].logprob


async def test_the_tokens_own_logprob_is_sent_without_alternatives() -> None:
    sampling = {"max_tokens": 1, "temperature": 0, "logprobs": 0}
    chunk = (await run(generate(sampling=sampling)))[1].tokens
    assert chunk.logprobs[0].logprob < 0
    assert not chunk.logprobs[0].top


async def test_every_position_but_the_last_sampled_has_a_row() -> None:
    fake = FakeEngine()
    events = await run(generate(capture={"sites": [site()]}), fake)
    sequence = [*events[0].started.prompt.ids, *ids(events)]
    positions, rows = matrices(events)[0, 0]
    assert positions == list(range(6 + 5 - 1))
    assert list(finishes(events)[0].positions[0].positions) == positions
    where = Site(HookPoint.RESID_POST, 1)
    expected = [fake.row(where, sequence[: p + 1]) for p in positions]
    np.testing.assert_array_equal(rows, expected)


async def test_generated_positions_begin_after_the_prompt() -> None:
    capture = {"sites": [site()], "positions": {"generated": {}}}
    events = await run(generate(capture=capture))
    assert matrices(events)[0, 0][0] == [6, 7, 8, 9]


async def test_a_conversation_is_rendered_with_the_header_of_the_answer() -> None:
    turns = [{"role": "user", "content": "hi"}]
    opened = (await run(generate(prompt={"conversation": {"turns": turns}})))[0].started.prompt
    assert "".join(opened.texts) == "<bos><|role|>user\nhi<|end|><|role|>assistant\n"
    without = {"turns": turns, "add_generation_prompt": False}
    opened = (await run(generate(prompt={"conversation": without})))[0].started.prompt
    assert "".join(opened.texts) == "<bos><|role|>user\nhi<|end|>"


async def test_started_tells_where_the_tokens_of_the_prompt_come_from() -> None:
    sources = (await run(generate(prompt={"text": "aé"})))[0].started.prompt.sources
    assert [(source.start, source.end) for source in sources[1:]] == [(0, 1), (1, 2), (1, 2)]
    assert not sources[0].HasField("start")


async def test_token_ids_are_used_as_they_are() -> None:
    opened = (await run(generate(prompt={"token_ids": {"ids": [72, 105]}})))[0].started.prompt
    assert list(opened.ids) == [72, 105]
