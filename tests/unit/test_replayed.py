"""A run that replays tokens goes on as if it had sampled them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from actserve_server.domain.runs import Finished, Run, RunEvent, Sampling, Tokens
from actserve_server.engine.fake import FakeEngine

SAMPLINGS = {
    "greedy": Sampling(temperature=0.0, max_tokens=20),
    "seeded": Sampling(seed=7, max_tokens=20, logprobs=3),
    "penalties": Sampling(
        seed=1,
        max_tokens=20,
        repetition_penalty=1.8,
        presence_penalty=1.0,
        frequency_penalty=1.0,
        min_tokens=5,
        stop_token_ids=tuple(range(40, 60)),
    ),
    "a stop string": Sampling(seed=3, max_tokens=300, stop=("a", "bb"), min_tokens=12),
}


async def told(events: AsyncGenerator[RunEvent, None]) -> list[RunEvent]:
    async with aclosing(events):
        return [event async for event in events]


@pytest.mark.parametrize("name", SAMPLINGS)
async def test_tokens_text_logprobs_and_end_are_those_of_the_run_that_was_not_cut(
    name: str,
) -> None:
    engine = FakeEngine()
    run = Run(id="whole", token_ids=(72, 105), sampling=SAMPLINGS[name])
    *tokens, end = await told(engine.run(run))
    ids = [each for event in tokens if isinstance(event, Tokens) for each in event.ids]
    for cut in range(len(ids) + 1):
        again = replace(run, id=f"again {cut}", replayed=tuple(ids[:cut]))
        *others, other_end = await told(engine.run(again))
        assert others == tokens
        assert isinstance(end, Finished)
        assert isinstance(other_end, Finished)
        assert (other_end.reason, other_end.stopped_by) == (end.reason, end.stopped_by)


async def test_what_is_replayed_need_not_be_what_would_be_sampled() -> None:
    engine = FakeEngine()
    run = Run(id="r", token_ids=(72,), sampling=Sampling(temperature=0.0, max_tokens=4))
    events = await told(engine.run(replace(run, replayed=(65, 66))))
    ids = [each for event in events if isinstance(event, Tokens) for each in event.ids]
    prompt = Run(id="p", token_ids=(72, 65, 66), sampling=Sampling(temperature=0.0, max_tokens=2))
    rest = [e.ids[0] for e in await told(engine.run(prompt)) if isinstance(e, Tokens)]
    assert ids == [65, 66, *rest]


def test_no_more_is_replayed_than_may_be_generated() -> None:
    with pytest.raises(ValueError, match="more tokens than it may generate"):
        Run(id="r", token_ids=(1,), sampling=Sampling(max_tokens=1), replayed=(2, 3))


async def test_the_text_of_a_run_that_is_ended_holds_nothing_back() -> None:
    engine = FakeEngine()
    run = Run(id="r", token_ids=(1,), sampling=Sampling(stop=("bcd",), max_tokens=9))
    assert engine.ended_text(run, b"abc") == "abc"
