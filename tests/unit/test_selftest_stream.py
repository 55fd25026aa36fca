"""A residual stream that was found by structure is served only if all that is known of it holds."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.selftest import self_test
from actserve_server.engine.selftest_stream import OF_STREAM
from tests.unit.tiny_engine import Batch, Tap, TinyEngine, honest
from tests.unit.tiny_faults import reading, scaled

NOT_FOUND: Mapping[HookPoint, str] = dict.fromkeys(
    (HookPoint.ATTN_OUT, HookPoint.RESID_MID, HookPoint.MLP_OUT), "not found"
)


def _found(taps: Mapping[HookPoint, Tap], **options: object) -> TinyEngine:
    engine = TinyEngine(taps, **options)  # type: ignore[arg-type]
    engine.info = replace(engine.info, found_by_structure=True)
    return engine


def _beside(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A part of the stream goes past the tap, which neither reads nor changes it."""
    past = np.sin(np.outer(batch.ids + 1, np.arange(rows.shape[1]))).astype(np.float32)
    edited, _ = honest(batch, site, rows - past)
    return edited + past, edited


@pytest.mark.parametrize("element_type", ElementType)
@pytest.mark.parametrize("unserved", [{}, NOT_FOUND], ids=["with branches", "stream alone"])
async def test_what_is_right_is_served(
    unserved: Mapping[HookPoint, str], element_type: ElementType
) -> None:
    engine = _found({}, unserved=unserved, element_type=element_type)
    result = await self_test(engine)
    assert result.failures == {}
    assert result.info == engine.info


async def test_of_a_branch_that_does_not_add_up_all_of_the_stream_is_refused() -> None:
    result = await self_test(_found({HookPoint.MLP_OUT: reading(scaled)}))
    unserved = {point for point, info in result.info.hook_points.items() if info.unserved}
    assert unserved == {*OF_STREAM}
    assert "is off from" in result.info.hook_points[HookPoint.RESID_POST].unserved


async def test_of_a_family_in_the_table_only_the_branch_is() -> None:
    result = await self_test(TinyEngine({HookPoint.MLP_OUT: reading(scaled)}))
    unserved = {point for point, info in result.info.hook_points.items() if info.unserved}
    assert unserved == {HookPoint.MLP_OUT}


async def test_a_stream_that_does_not_give_the_logits_is_refused() -> None:
    points = (HookPoint.EMBEDDING, HookPoint.RESID_PRE, HookPoint.RESID_POST)
    taps: Mapping[HookPoint, Tap] = dict.fromkeys(points, _beside)
    # Nothing else shows it, where the branches are not known.
    assert (await self_test(TinyEngine(taps, unserved=NOT_FOUND))).failures == {}
    result = await self_test(_found(taps, unserved=NOT_FOUND))
    assert {*points} <= {point for point, info in result.info.hook_points.items() if info.unserved}
    assert "does not give what the model samples by" in result.failures[HookPoint.RESID_POST]
