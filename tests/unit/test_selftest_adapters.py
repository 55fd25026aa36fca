"""An adapter is served only if runs under it are under it, whatever runs beside them."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.selftest_adapters import prove_adapters
from tests.unit.tiny_engine import Batch, TinyEngine

NAMES = ("", "one", "two")

Route = Callable[[str, frozenset[str]], str]
"""(adapter, those of all runs in progress) -> the one by which it is computed."""


class Adapted:
    """A tiny model under each adapter, which may be taken for another one."""

    def __init__(
        self, route: Route = lambda adapter, _: adapter, taps: Any = None, **options: Any
    ) -> None:
        """`taps` are those under the second adapter."""
        self._models = {
            name: TinyEngine(taps if name == "two" else None, seed=seed, layer_count=1, **options)
            for seed, name in enumerate(NAMES)
        }
        self._route = route
        self._running = Counter[str]()
        adapters = {
            name: LoraAdapter(id=name, path="", rank=1, shapes={}, sha256="")
            for name in NAMES
            if name
        }
        self.info = replace(self._models[""].info, adapters=adapters)

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self._running[run.adapter] += 1
        try:
            await asyncio.sleep(0)  # Until all that come together are there.
            model = self._models[self._route(run.adapter, frozenset(+self._running))]
            async for event in model.run(run):
                yield event
        finally:
            self._running[run.adapter] -= 1


async def failures(engine: Adapted) -> Mapping[str, str]:
    proven, found = await prove_adapters(engine, engine.info)  # pyright: ignore[reportArgumentType]
    assert proven.adapters.keys() == engine.info.adapters.keys() - found.keys()
    return found


@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16])
async def test_adapters_that_are_what_they_are_called_are_served(element_type: ElementType) -> None:
    assert await failures(Adapted(element_type=element_type)) == {}


async def test_one_that_changes_nothing_was_not_loaded() -> None:
    found = await failures(Adapted(lambda adapter, _: "" if adapter == "one" else adapter))
    assert found == {"one": "it changes no row"}


@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16])
async def test_one_that_is_taken_for_another_beside_it_is_not_served(
    element_type: ElementType,
) -> None:
    def route(adapter: str, beside: frozenset[str]) -> str:
        return "two" if adapter == "one" and "two" in beside else adapter

    found = await failures(Adapted(route, element_type=element_type))
    assert found == {"one": "its rows are those of two"}


@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16])
async def test_none_is_served_where_runs_without_one_are_changed_beside_them(
    element_type: ElementType,
) -> None:
    def route(adapter: str, beside: frozenset[str]) -> str:
        return adapter or ("two" if "two" in beside else "")

    found = await failures(Adapted(route, element_type=element_type))
    assert found.keys() == {"one", "two"}
    assert {*found.values()} == {
        "beside runs with adapters, of one without its rows are those of two"
    }


async def test_one_whose_rows_are_wrong_is_not_served() -> None:
    def late(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows, np.roll(rows, 1, axis=0)

    assert (await failures(Adapted(taps={HookPoint.Q: late}))).keys() == {"two"}
