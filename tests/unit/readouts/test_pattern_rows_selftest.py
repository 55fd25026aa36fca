"""What an engine tells of patterns is asked for only where it is what their definition makes."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.attention_rows import (
    LargestWeights,
    PatternRows,
    QueryMeasures,
    ReceivedWeights,
)
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.pattern_rows_selftest import prove_pattern_rows
from tests.unit.tiny_engine import HEAD_WIDTH, HEADS, KEY_VALUE_HEADS, RULE, TinyEngine

OTHER = replace(RULE, scale=0.1)


def proven(engine: TinyEngine, **changes: object) -> ModelInfo:
    given: dict[str, object] = {
        "attention": (RULE,) * engine.info.layer_count,
        "pattern_rows_unserved": "",
        "vector_bytes": 1 << 20,
    }
    info = replace(engine.info, **given | changes)  # type: ignore[arg-type]
    return asyncio.run(prove_pattern_rows(engine, info))


@pytest.mark.parametrize("element_type", ElementType)
def test_what_is_right_is_asked_for(element_type: ElementType) -> None:
    engine = TinyEngine(element_type=element_type)
    assert proven(engine).pattern_rows_unserved == ""
    assert len(engine.runs) == 1


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (QueryMeasures, "measures"),
        (LargestWeights, "largest weights"),
        (ReceivedWeights, "received weights"),
    ],
)
@pytest.mark.parametrize("layer", [0, 2])
def test_what_is_wrong_in_one_layer_is_not(kind: type[PatternRows], named: str, layer: int) -> None:
    engine = TinyEngine()

    def wrong(derived: PatternRows, site: Site, rows: np.ndarray) -> np.ndarray:
        return (
            rows * np.float32(1.01) if isinstance(derived, kind) and site.layer == layer else rows
        )

    engine.told_of_patterns = wrong
    info = proven(engine)
    assert info.attention
    assert f"failed the self-test: {named} of layer {layer} are off" in info.pattern_rows_unserved


def test_keys_of_other_weights_are_found() -> None:
    engine = TinyEngine()

    def swapped(derived: PatternRows, site: Site, rows: np.ndarray) -> np.ndarray:
        if not isinstance(derived, LargestWeights):
            return rows
        parts = rows.reshape(len(rows), HEADS, 2, -1).copy()
        parts[:, :, 0, :2] = parts[:, :, 0, 1::-1]
        return parts.reshape(rows.shape)

    engine.told_of_patterns = swapped
    assert "their keys of layer 0 are off" in proven(engine).pattern_rows_unserved


def test_every_kind_of_layer_is_tried() -> None:
    rules = (RULE, OTHER, replace(OTHER, sliding_window=3))
    # The engine attends by the first of them in all its layers.
    assert "of layer 2 are off" in proven(TinyEngine(), attention=rules).pattern_rows_unserved


def test_with_little_room_a_shorter_prompt_is_tried() -> None:
    # The engine attends without a window, which a prompt of 48 tokens does not show.
    windowed = {"attention": (replace(RULE, sliding_window=50),) * 3}
    assert "are off" in proven(TinyEngine(), **windowed).pattern_rows_unserved
    room = 4 * 58 * (2 * KEY_VALUE_HEADS * HEAD_WIDTH + 2 * HEADS)
    engine = TinyEngine()
    assert proven(engine, vector_bytes=4 * room - 4, **windowed).pattern_rows_unserved == ""
    assert [len(run.token_ids) for run in engine.runs] == [48]


def test_where_there_is_no_room_for_keys_nothing_is_tried() -> None:
    engine = TinyEngine()
    assert "bytes for keys to prove them, but 25 are there" in (
        proven(engine, vector_bytes=100).pattern_rows_unserved
    )
    assert proven(engine, attention_unserved="adds biases").pattern_rows_unserved == ""
    assert proven(engine, pattern_rows_unserved="none").pattern_rows_unserved == "none"
    assert not engine.runs
