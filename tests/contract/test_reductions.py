"""Reduction: one row a sequence."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import readout_pb2
from tests.contract.harness import (
    decoded,
    fetch,
    generate,
    inline,
    kinds,
    matrices,
    run,
    site,
)
from tests.contract.readouts import of_kind

LAST, MEAN, MAX = (
    readout_pb2.REDUCTION_LAST,
    readout_pb2.REDUCTION_MEAN,
    readout_pb2.REDUCTION_MAX,
)
FORMULAS = [
    (LAST, lambda x: x[-1]),
    (MEAN, lambda x: x.mean(axis=0)),
    (MAX, lambda x: x.max(axis=0)),
]
D = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)


def where(events: list[Any], kind: str) -> list[int]:
    """Where the only readout of the first sequence reads."""
    (only,) = of_kind(events, kind)[0].positions
    return list(only.positions)


@pytest.mark.parametrize(("reduction", "formula"), FORMULAS)
@pytest.mark.parametrize("make", [fetch, generate])
async def test_a_reduction_is_its_formula(make: Any, reduction: int, formula: Any) -> None:
    capture = {"sites": [site(0), site(3)], "positions": {"span": {"start": 1}}}
    plain = matrices(await run(make(capture=capture)))
    events = await run(make(capture={**capture, "reduction": reduction}))
    reduced = matrices(events)
    assert reduced.keys() == plain.keys()
    for key, (positions, rows) in reduced.items():
        assert positions == plain[key][0][-1:]
        np.testing.assert_allclose(rows, [formula(plain[key][1])], rtol=1e-6, atol=1e-6)


async def test_the_selected_positions_are_still_told() -> None:
    capture = {"sites": [site()], "positions": {"span": {"start": 3}}, "reduction": MEAN}
    events = await run(fetch("hello", capture=capture))
    assert where(events, "item_started") == [3, 4, 5]
    events = await run(generate(capture=capture))
    assert list(of_kind(events, "sample_finished")[0].positions[0].positions) == [
        3,
        4,
        5,
        6,
        7,
        8,
        9,
    ]


@pytest.mark.parametrize("reduction", [None, MEAN])
async def test_no_selected_row_gives_no_chunk(reduction: int | None) -> None:
    never = {"token_ids": {"ids": [0]}}
    events = await run(
        generate(capture={"sites": [site()], "positions": never, "reduction": reduction})
    )
    assert "activations" not in kinds(events)
    assert where(events, "sample_finished") == []


@pytest.mark.parametrize(("reduction", "formula"), FORMULAS)
async def test_rows_are_projected_before_they_are_reduced(reduction: int, formula: Any) -> None:
    rows = matrices(await run(fetch()))[0, 0][1]
    projection = {"directions": inline(D), "relu": {}}
    capture = {"sites": [site()], "projection": projection, "reduction": reduction}
    expected = formula(np.maximum(rows @ D.T, 0))
    got = matrices(await run(fetch(capture=capture)))[0, 0][1]
    np.testing.assert_allclose(got, [expected], rtol=1e-5, atol=1e-5)

    projection["send_top"] = 2
    (chunk,) = of_kind(await run(fetch(capture=capture)), "activations")
    order = np.argsort(-expected, kind="stable")[:2]
    assert list(chunk.indices) == order.tolist()
    np.testing.assert_allclose(decoded(chunk.rows), [expected[order]], rtol=1e-5, atol=1e-5)
