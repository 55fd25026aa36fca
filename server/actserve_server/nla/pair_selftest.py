"""Tests an AV's engine before it serves: a vector that did not arrive would go unnoticed, since the
AV explains its placeholder as fluently.
"""

from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Capture, Placement, Rows, Run, Sampling, Tokens
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.engine.api import Engine

TOKENS = 4
"""Generated to see that placed embeddings are those of the tokens."""

_EMBEDDING = Site(HookPoint.EMBEDDING)


async def prove_placement(engine: Engine, ids: tuple[int, ...], scale: float) -> None:
    """Raises ValueError unless vectors placed in a prompt arrive as they are.

    Two promises: the prompt's own embeddings, placed, give what its tokens give, so no embedding
    scale is applied twice or left out; and another vector, of L2 norm `scale`, is what enters the
    residual stream, at its own position and no other.
    """
    own, tokens = await _run(engine, Run(id="selftest-nla-ids", token_ids=ids))
    everywhere = tuple(Placement(position, row) for position, row in enumerate(own))
    again, same = await _run(
        engine, Run(id="selftest-nla-own", token_ids=ids, placements=everywhere)
    )
    if not np.array_equal(again, own) or same != tokens:
        raise ValueError("placing a prompt's own embeddings changes what the model says")
    slot = len(ids) // 2
    noise = np.random.default_rng(0).standard_normal(own.shape[1])
    vector = (noise * (scale / np.linalg.norm(noise))).astype(np.float32)
    placed, _ = await _run(
        engine,
        Run(id="selftest-nla-slot", token_ids=ids, placements=(Placement(slot, vector),)),
    )
    expected = own.copy()
    expected[slot] = _in_element_type(vector, engine.info.element_type)
    if not np.array_equal(placed, expected):
        wrong = np.flatnonzero((placed != expected).any(axis=1)).tolist()
        raise ValueError(f"a vector placed at position {slot} gave wrong rows at {wrong}")


async def _run(engine: Engine, run: Run) -> tuple[np.ndarray, list[int]]:
    """What enters the residual stream, float32 [positions, width], and what is said."""
    prompt = Selection(Spans(((0, len(run.token_ids)),)))
    run = replace(
        run,
        sampling=Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True),
        captures=(Capture((_EMBEDDING,), prompt),),
    )
    rows: list[np.ndarray] = []
    tokens: list[int] = []
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            match event:
                case Rows():
                    rows.append(to_float32(event.bits, engine.info.element_type))
                case Tokens():
                    tokens += event.ids
    return np.concatenate(rows), tokens


def _in_element_type(vector: np.ndarray, element_type: ElementType) -> np.ndarray:
    return to_float32(convert(vector, ElementType.F32, element_type), element_type)
