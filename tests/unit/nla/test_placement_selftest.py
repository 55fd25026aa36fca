"""An AV's engine that places vectors wrongly is found out before it serves."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.runs import Placement, Rows, Run, RunEvent, Tokens
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.nla.pair_selftest import TOKENS, prove_placement

IDS = (3, 1, 4, 1, 5, 9)
_TABLE = np.random.default_rng(1).standard_normal((10, 8)).astype(np.float32)


class Engine:
    """Says what its embeddings add up to. `fault` changes what it makes of a run."""

    def __init__(
        self,
        fault: Callable[[Run], Run] = lambda run: run,
        element_type: ElementType = ElementType.F32,
    ) -> None:
        self.info: Any = SimpleNamespace(element_type=element_type)
        self._fault = fault

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        run = self._fault(run)
        rows = _TABLE[list(run.token_ids)].copy()
        for placement in run.placements:
            rows[placement.position] = placement.vector
        element_type = self.info.element_type
        bits = convert(rows, ElementType.F32, element_type)
        yield Rows(0, 0, np.arange(len(rows)), bits)
        said = int(abs(to_float32(bits, element_type).sum()) * 1000)
        yield Tokens(len(rows), (said,) * TOKENS, ("?",) * TOKENS, "?" * TOKENS)


def _moved(run: Run) -> Run:
    placements = (replace(each, position=(each.position + 1) % len(IDS)) for each in run.placements)
    return replace(run, placements=tuple(placements))


def _scaled(run: Run) -> Run:
    placements = (Placement(each.position, each.vector * 2) for each in run.placements)
    return replace(run, placements=tuple(placements))


def _spread(run: Run) -> Run:
    """A single vector also lands at its neighbour."""
    if len(run.placements) != 1:
        return run
    (only,) = run.placements
    return replace(run, placements=(only, replace(only, position=only.position + 1)))


async def _prove(engine: Any) -> None:
    await prove_placement(engine, IDS, 5.0)


@pytest.mark.parametrize("element_type", ElementType)
async def test_an_engine_that_places_vectors_as_they_are_passes(element_type: ElementType) -> None:
    await _prove(Engine(element_type=element_type))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda run: replace(run, placements=()), id="ignored"),
        pytest.param(_moved, id="moved"),
        pytest.param(_scaled, id="scaled again"),
        pytest.param(_spread, id="spread"),
    ],
)
async def test_an_engine_that_does_not_is_refused(fault: Callable[[Run], Run]) -> None:
    with pytest.raises(ValueError, match=r"placing|placed"):
        await _prove(Engine(fault))


async def test_wrong_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"position 3 gave wrong rows at \[4\]"):
        await _prove(Engine(_spread))
