"""Proves at start-up that recomputed attention patterns are those the model used.

No kernel hands out its pattern, but it hands out what it made with it: in every layer and head, the
pattern times the values must be `z`. A model of which that is not so (an attention that this
server does not know, a window read wrongly) gets no patterns at all.
"""

from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.attention_patterns import pattern
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.api import Engine

PROMPT_TOKENS = 48
PAST_WINDOW = 8
"""Tokens by which a prompt is longer than the sliding window it is to show."""
LONGEST_PROMPT = 1100
"""Tokens; a window beyond is not tested, since the proof would take longer than it is worth."""
TOLERANCE = {ElementType.F32: 1e-3, ElementType.F16: 0.05, ElementType.BF16: 0.05}
"""Largest error of a row of z relative to its norm; 16-bit kernels round weights and sums."""

_NEEDED = (HookPoint.Q, HookPoint.K, HookPoint.V, HookPoint.Z)


async def prove_attention(engine: Engine, info: ModelInfo) -> ModelInfo:
    """`info`, with attention patterns withdrawn unless they explain `z` in every layer."""
    if info.attention_unserved or not info.attention:
        return info
    if missing := [point for point in _NEEDED if info.hook_points[point].unserved]:
        return _withdrawn(info, f"it takes {', '.join(missing)} to prove them, not all served")
    longest = min(LONGEST_PROMPT, info.limits.max_sequence_tokens - 1)
    ids = np.random.default_rng(0).integers(0, info.vocabulary_size, longest).tolist()
    windows: set[int | None] = set()
    for layer, rule in enumerate(info.attention):
        # Windows are the same code in every layer, so each is proven in the first that has it.
        count = PROMPT_TOKENS if rule.sliding_window in windows else prompt_length(rule, longest)
        windows.add(rule.sliding_window)
        q, k, v, z = await _rows(engine, info, tuple(ids[:count]), layer)
        error = _error(rule, q, k, v, z)
        if not error <= TOLERANCE[info.element_type]:
            return _withdrawn(
                info,
                f"failed the self-test: in layer {layer}, recomputed patterns miss z by "
                f"{error:.2g} of its norm; the limit is {TOLERANCE[info.element_type]:g}",
            )
    return info


def prompt_length(rule: AttentionRule, longest: int) -> int:
    """Tokens that show a layer's window, where there may be so many."""
    longest, past = min(longest, LONGEST_PROMPT), (rule.sliding_window or 0) + PAST_WINDOW
    return max(PROMPT_TOKENS, past) if past <= longest else PROMPT_TOKENS


def _withdrawn(info: ModelInfo, reason: str) -> ModelInfo:
    return replace(info, attention=(), attention_unserved=reason)


async def _rows(
    engine: Engine, info: ModelInfo, token_ids: tuple[int, ...], layer: int
) -> list[np.ndarray]:
    sites = tuple(Site(point, layer) for point in _NEEDED)
    run = Run(
        id=f"self-test-attention-{layer}",
        token_ids=token_ids,
        captures=(Capture(sites, Selection(Spans(((0, NO_END),)))),),
        computes_all=True,
    )
    parts: list[list[np.ndarray]] = [[] for _ in sites]
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                parts[event.site_index].append(to_float32(event.bits, info.element_type))
    return [np.concatenate(blocks) for blocks in parts]


def _error(
    rule: AttentionRule, q: np.ndarray, k: np.ndarray, v: np.ndarray, z: np.ndarray
) -> float:
    """The largest error of a row of what the patterns say z is, relative to its norm."""
    shared = rule.heads // rule.key_value_heads
    values = np.split(v, rule.key_value_heads, axis=1)
    heads = [pattern(rule, q, k, head) @ values[head // shared] for head in range(rule.heads)]
    wrong = np.linalg.norm(np.concatenate(heads, axis=1) - z, axis=1)
    return float((wrong / np.maximum(np.linalg.norm(z, axis=1), 1e-20)).max())
