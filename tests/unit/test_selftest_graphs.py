"""A graph with fewer taps serves only if it computes what the full one computes."""

from collections.abc import Mapping

import numpy as np
import pytest

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.selftest import self_test
from actserve_server.engine.selftest_graphs import prove_graphs
from tests.unit.tiny_engine import Batch, Tap, TinyEngine, honest
from tests.unit.tiny_faults import changing, none, reading, token_before

GRAPHS = {
    "plain": frozenset[HookPoint](),
    "stream": frozenset({HookPoint.RESID_POST, HookPoint.FINAL_NORM, HookPoint.LOGITS}),
}


def _doubled(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As what a compiler makes of a sum may be, though nobody looks at it there."""
    return honest(batch, site, 2 * rows)


async def _failures(engine: TinyEngine) -> Mapping[str, str]:
    engine.graphs = dict(GRAPHS)
    tested = await self_test(engine)
    assert not tested.failures
    return await prove_graphs(engine, tested.info)


@pytest.mark.parametrize("element_type", ElementType)
async def test_graphs_that_compute_the_same_stay(element_type: ElementType) -> None:
    engine = TinyEngine(element_type=element_type)
    assert await _failures(engine) == {}
    assert engine.graphs == GRAPHS
    assert {*engine.computed_by} == {"", "plain", "stream"}


@pytest.mark.parametrize("element_type", ElementType)
@pytest.mark.parametrize("graph", GRAPHS)
async def test_a_graph_that_computes_something_else_is_dropped(
    graph: str, element_type: ElementType
) -> None:
    engine = TinyEngine(element_type=element_type)
    engine.graph_taps[graph] = {HookPoint.ATTN_OUT: _doubled}
    assert (await _failures(engine)).keys() == {graph}
    assert engine.graphs.keys() == GRAPHS.keys() - {graph}


@pytest.mark.parametrize(
    ("tap", "says"),
    [(reading(token_before), "does not depend on its own token"), (changing(none), "after add")],
)
async def test_a_graph_whose_taps_are_wrong_is_dropped(tap: Tap, says: str) -> None:
    engine = TinyEngine()
    engine.graph_taps["stream"] = {HookPoint.RESID_POST: tap}
    failures = await _failures(engine)
    assert failures.keys() == {"stream"}
    assert says in failures["stream"]
    assert "stream" not in engine.graphs
