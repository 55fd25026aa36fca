"""Proves at start-up that what the engine tells of patterns is what their definition makes of the
queries and keys of the same pass.

A model of which that is not so has its patterns computed from whole queries and keys instead.
"""

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.attention_patterns import pattern
from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.pattern_memory import pattern_bytes, pattern_memory
from actserve_server.readouts.readout_selftest import PROMPT_TOKENS, prompt_length

TOLERANCE = 1e-3
"""Of one, or of a number that is larger."""
OFFSET, LARGEST = 2, 5
DIFFERENT_TOKENS = 7
"""They are said again and again, so that most follow an earlier occurrence of themselves."""


async def prove_pattern_rows(engine: Engine, info: ModelInfo) -> ModelInfo:
    """`info`, with `PatternRows` withdrawn unless they are what they should be."""
    if info.pattern_rows_unserved or info.attention_unserved or not info.attention:
        return info
    layers = _layers(info.attention)
    longest = info.limits.max_sequence_tokens - 1
    count = max(prompt_length(info.attention[layer], longest) for layer in layers)
    ids = np.random.default_rng(0).integers(0, info.vocabulary_size, DIFFERENT_TOKENS)
    room = info.vector_bytes // 4
    # One that is too short to show a window is better than none.
    for tokens in (count, PROMPT_TOKENS):
        run = _run(info, np.resize(ids, tokens).tolist(), layers)
        needed = pattern_bytes(pattern_memory(run), info)
        if needed <= room:
            break
    else:
        return _withdrawn(
            info, f"it takes {needed} bytes for keys to prove them, but {room} are there"
        )
    found = await _found(engine, info, run)
    for index, layer in enumerate(layers):
        q, k, *given = (each[index] for each in found)
        for name, error in _errors(info.attention[layer], q, k, np.array(run.token_ids), given):
            # So that NaN, which stands for rows that did not come, is wrong too.
            if not error <= TOLERANCE:
                return _withdrawn(
                    info, f"failed the self-test: {name} of layer {layer} are off by {error:.2g}"
                )
    return info


def _layers(rules: tuple[AttentionRule, ...]) -> tuple[int, ...]:
    """The first of each kind, and the last, whose keys lie behind those of all others."""
    kinds = [(rule.sliding_window, rule.soft_cap, rule.sinks is None) for rule in rules]
    return tuple(sorted({*map(kinds.index, kinds), len(rules) - 1}))


def _withdrawn(info: ModelInfo, reason: str) -> ModelInfo:
    return replace(info, pattern_rows_unserved=reason)


def _run(info: ModelInfo, token_ids: list[int], layers: tuple[int, ...]) -> Run:
    heads = info.attention[0].heads
    queries, keys = (
        tuple(Site(point, layer) for layer in layers) for point in (HookPoint.Q, HookPoint.K)
    )
    every = Selection(Spans(((0, len(token_ids)),)))
    return Run(
        id="self-test-pattern-rows",
        token_ids=tuple(token_ids),
        captures=(
            Capture(queries, every),
            Capture(keys, every),
            Capture(queries, every, QueryMeasures(heads, (OFFSET,))),
            Capture(queries, every, LargestWeights(tuple(range(heads)), LARGEST)),
            Capture(queries, every, ReceivedWeights(heads, every.spans)),
        ),
        computes_all=True,
    )


def _errors(
    rule: AttentionRule, q: np.ndarray, k: np.ndarray, ids: np.ndarray, given: list[np.ndarray]
) -> Iterator[tuple[str, float]]:
    """How far off what the engine has given is."""
    measured, largest, received = given
    positions = np.arange(len(ids))
    expected = QueryMeasures(rule.heads, (OFFSET,)).apply(rule, q, k, positions, ids)
    yield "measures", _error(measured, expected)
    sums = ReceivedWeights(rule.heads, Spans(((0, len(ids)),))).apply(rule, q, k)
    yield "received weights", _error(received, sums)
    # Which of nearly equal weights is larger is a matter of rounding.
    wanted = LargestWeights(tuple(range(rule.heads)), LARGEST)
    best = wanted.split(wanted.apply(rule, q, k, positions, ids))
    for head, (mine, theirs) in enumerate(zip(wanted.split(largest), best, strict=True)):
        weights = pattern(rule, q, k, head)
        there = np.take_along_axis(weights, np.maximum(mine.keys, 0), axis=1)
        yield "largest weights", _error(mine.weights, theirs.weights)
        yield "their keys", _error(mine.weights, np.where(mine.keys < 0, 0, there))


def _error(given: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(given - expected) / np.maximum(np.abs(expected), 1)).max())


async def _found(engine: Engine, info: ModelInfo, run: Run) -> list[list[np.ndarray]]:
    """Of each capture and site the rows, float32; NaN where none came."""
    found = [
        [
            np.full((len(run.token_ids), width), np.nan, np.float32)
            for width in info.row_widths(capture)
        ]
        for capture in run.captures
    ]
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                kind = info.row_type(run.captures[event.capture_index])
                place = found[event.capture_index][event.site_index]
                place[event.positions] = to_float32(event.bits, kind)
    return found
