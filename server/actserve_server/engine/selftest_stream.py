"""Proves at start-up that the last residual stream gives what the model samples by.

Of the families that the server knows this is proven against another implementation. Of a model
whose stream was found by structure it is the proof that nothing is added beside what was found.
"""

from contextlib import aclosing
from dataclasses import replace

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import GREEDY_ONE_TOKEN, Capture, Rows, Run, Tokens, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest_checks import (
    LOGPROB_TOLERANCE,
    LOGPROBS,
    logprob_difference,
)
from actserve_server.engine.selftest_probes import Prompt

OF_STREAM = (
    HookPoint.EMBEDDING,
    HookPoint.RESID_PRE,
    HookPoint.ATTN_OUT,
    HookPoint.RESID_MID,
    HookPoint.MLP_OUT,
    HookPoint.RESID_POST,
)
"""The stream and what is added to it."""


async def last_stream_misses(engine: Engine, info: ModelInfo, prompt: Prompt) -> str | None:
    """By how much the last stream, through the model's own final norm and unembedding, misses the
    log probabilities that the model tells; None if it does not. Raises `ActserveError` if the run
    fails as a whole."""
    last = Site(HookPoint.RESID_POST, info.layer_count - 1)
    if info.at(last).unserved:
        return f"{last} is not served"
    count = min(LOGPROBS, info.vocabulary_size)
    end = Selection(Spans(((len(prompt) - 1, len(prompt)),)))
    lens = Unembed(count)
    capture = Capture((last,), end, lens)
    run = Run(
        id="self-test-stream",
        token_ids=prompt,
        sampling=replace(GREEDY_ONE_TOKEN, logprobs=count),
        captures=(capture,),
        computes_all=True,
    )
    read: dict[int, float] = {}
    told: dict[int, float] = {}
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                found = lens.split(to_float32(event.bits, info.row_type(capture)))
                ids, logprobs = found.top_ids[0].tolist(), found.top_logprobs[0].tolist()
                read = dict(zip(ids, logprobs, strict=True))
            elif isinstance(event, Tokens):
                for token in event.logprobs:
                    told |= {each.id: each.logprob for each in token.top}
    if wrong := logprob_difference(read, told, LOGPROB_TOLERANCE[info.element_type]):
        return f"{last} does not give what the model samples by: {wrong}"
    return None
