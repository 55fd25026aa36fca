"""Proves at start-up that logits are made of the stream as `LogitDirections` says.

The last residual must give the logits, and in every layer the heads together what attention adds,
but for a bias, which is the same at every position. A model of which that is not so (a norm or an
output projection that this server reads wrongly) gets no attribution, or none of heads.
"""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.domain.weights import LogitDirections, LogitTarget
from actserve_server.engine.api import Engine

PROMPT_TOKENS = 12
TARGETS = 4
TOLERANCE = {ElementType.F32: 1e-3, ElementType.F16: 0.05, ElementType.BF16: 0.05}
"""Largest error relative to the largest number compared; 16-bit models round rows and logits."""

_LOGITS = Site(HookPoint.LOGITS)
_HEADS = (HookPoint.Z, HookPoint.ATTN_OUT)


async def prove_attribution(engine: Engine, info: ModelInfo) -> ModelInfo:
    """`info`, with attribution withdrawn, all or that of heads, unless it explains what the model
    has computed."""
    if info.weights.attribution_unserved:
        return info
    last = Site(HookPoint.RESID_POST, info.layer_count - 1)
    if missing := _unserved(info, HookPoint.RESID_POST, HookPoint.LOGITS):
        return _without_any(info, f"it takes {missing} to prove it, not all served")
    ids = np.random.default_rng(0).integers(0, info.vocabulary_size, PROMPT_TOKENS).tolist()
    targets = [LogitTarget(token) for token in ids[:TARGETS]]
    rows = await _rows(engine, info, ids, (last, _LOGITS))
    directions = await engine.logit_directions(targets, ())
    logits = rows[_LOGITS][:, [target.token_id for target in targets]]
    if error := _too_far(directions.logits(rows[last]), logits, info):
        return _without_any(info, f"failed the self-test: the last residual misses {error}")
    if info.weights.head_attribution_unserved:
        return info
    if missing := _unserved(info, *_HEADS):
        return _without_heads(info, f"it takes {missing} to prove it, not all served")
    layers = range(info.layer_count)
    rows = await _rows(engine, info, ids, [Site(point, at) for at in layers for point in _HEADS])
    directions = await engine.logit_directions(targets, layers)
    for layer in layers:
        z, attention = (rows[Site(point, layer)] for point in _HEADS)
        heads, added = _of_heads(directions, layer, z), attention @ directions.stream.T
        # Less what a bias may add.
        if error := _too_far(heads - heads.mean(axis=0), added - added.mean(axis=0), info):
            return _without_heads(
                info, f"failed the self-test: in layer {layer}, the heads together miss {error}"
            )
    return info


def _of_heads(directions: LogitDirections, layer: int, z: np.ndarray) -> np.ndarray:
    """Of all heads together, [rows, targets]."""
    seen = directions.heads[layer]
    return z @ seen.reshape(len(seen), -1).T


def _too_far(found: np.ndarray, expected: np.ndarray, info: ModelInfo) -> str:
    """By how much it is wrong, in words; empty if it is not."""
    error = float(np.abs(found - expected).max() / np.maximum(np.abs(expected).max(), 1e-20))
    limit = TOLERANCE[info.element_type]
    if error <= limit:
        return ""
    return f"what the model has computed by {error:.2g} of it; the limit is {limit:g}"


def _unserved(info: ModelInfo, *needed: HookPoint) -> str:
    if any(info.hook_points[point].unserved for point in needed):
        return " and ".join(needed)
    return ""


def _without_any(info: ModelInfo, reason: str) -> ModelInfo:
    weights = replace(info.weights, attribution_unserved=reason, head_attribution_unserved=reason)
    return replace(info, weights=weights)


def _without_heads(info: ModelInfo, reason: str) -> ModelInfo:
    return replace(info, weights=replace(info.weights, head_attribution_unserved=reason))


async def _rows(
    engine: Engine, info: ModelInfo, ids: list[int], sites: Sequence[Site]
) -> dict[Site, np.ndarray]:
    run = Run(
        id=f"self-test-attribution-{sites[0]}",
        token_ids=tuple(ids),
        captures=(Capture(tuple(sites), Selection(Spans(((0, NO_END),)))),),
        computes_all=True,
    )
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                values = to_float32(event.bits, info.element_type)
                parts[sites[event.site_index]].append(values)
    return {site: np.concatenate(blocks) for site, blocks in parts.items()}
