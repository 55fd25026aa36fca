"""Projection: rows come as their components along given directions."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import readout_pb2, site_pb2, tensor_pb2
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import fetch, generate, inline, matrices, run, site
from tests.contract.readouts import of_kind

WIDTH, COUNT = 16, 6
_RNG = np.random.default_rng(0)
D = _RNG.standard_normal((COUNT, WIDTH)).astype(np.float32)
B = _RNG.standard_normal(COUNT).astype(np.float32)
T = np.abs(_RNG.standard_normal(COUNT)).astype(np.float32)


def top_only(y: np.ndarray, k: int) -> np.ndarray:
    kept = np.sort(y, axis=1)[:, -k][:, None]
    return np.where(y >= kept, np.maximum(y, 0), 0)


VARIANTS = [
    ({}, lambda y: y),
    ({"bias": inline(B)}, lambda y: y + B),
    ({"bias": inline(B), "relu": {}}, lambda y: np.maximum(y + B, 0)),
    ({"jump_relu": {"thresholds": inline(T)}}, lambda y: np.where(y > T, y, 0)),
    ({"top_k": {"k": 2}}, lambda y: top_only(y, 2)),
    ({"bias": inline(B), "top_k": {"k": 99}}, lambda y: np.maximum(y + B, 0)),
]


async def plain(request: Any) -> np.ndarray:
    return matrices(await run(request))[0, 0][1]


@pytest.mark.parametrize(("options", "formula"), VARIANTS)
async def test_a_projection_is_its_formula(options: dict[str, Any], formula: Any) -> None:
    rows = await plain(fetch("hello world"))
    projection = {"directions": inline(D), **options}
    events = await run(fetch("hello world", capture={"sites": [site()], "projection": projection}))
    positions, values = matrices(events)[0, 0]
    assert positions == list(range(12))
    np.testing.assert_allclose(values, formula(rows @ D.T), rtol=1e-5, atol=1e-5)
    assert list(events[0].started.readouts[0].widths) == [COUNT]
    assert list(events[0].started.readouts[0].heads) == [0]
    assert not any(chunk.indices for chunk in of_kind(events, "activations"))


@pytest.mark.parametrize(("options", "formula"), VARIANTS)
@pytest.mark.parametrize("wanted", [1, 3, COUNT, 99])
async def test_send_top_sends_the_largest_elements_with_their_directions(
    wanted: int, options: dict[str, Any], formula: Any
) -> None:
    rows = await plain(fetch("hello world"))
    projection = {"directions": inline(D), "send_top": wanted, **options}
    events = await run(fetch("hello world", capture={"sites": [site()], "projection": projection}))
    values = matrices(events)[0, 0][1]
    count = min(wanted, COUNT)
    assert list(events[0].started.readouts[0].widths) == [count]
    indices = [i for chunk in of_kind(events, "activations") for i in chunk.indices]
    dense = formula(rows @ D.T)
    chosen = np.take_along_axis(dense, np.reshape(indices, (-1, count)), axis=1)
    np.testing.assert_allclose(values, chosen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values, -np.sort(-dense, axis=1)[:, :count], rtol=1e-5, atol=1e-5)


async def test_every_site_and_sample_is_projected() -> None:
    capture = {"sites": [site(0), site(2)], "positions": {"generated": {}}}
    sampling = {"max_tokens": 4, "temperature": 0, "samples": 2}
    rows = matrices(await run(generate(sampling=sampling, capture=capture)))
    capture["projection"] = {"directions": inline(D)}
    values = matrices(await run(generate(sampling=sampling, capture=capture)))
    assert values.keys() == rows.keys() == {(s, i) for s in range(2) for i in range(2)}
    for key, (positions, projected) in values.items():
        assert positions == rows[key][0] == [6, 7, 8]
        np.testing.assert_allclose(projected, rows[key][1] @ D.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (tensor_pb2.ELEMENT_TYPE_UNSPECIFIED, tensor_pb2.ELEMENT_TYPE_F32),
        (tensor_pb2.ELEMENT_TYPE_F16, tensor_pb2.ELEMENT_TYPE_F16),
        (tensor_pb2.ELEMENT_TYPE_BF16, tensor_pb2.ELEMENT_TYPE_BF16),
    ],
)
@pytest.mark.parametrize(
    "readout",
    [
        {"projection": {"directions": inline(D)}},
        {"reduction": readout_pb2.REDUCTION_LAST},
    ],
    ids=["projection", "reduction"],
)
async def test_what_is_computed_comes_as_f32_unless_told_otherwise(
    readout: dict[str, Any], wanted: int, sent: int
) -> None:
    half = FakeEngine(element_type=ElementType.BF16)
    capture = {"sites": [site()], "element_type": wanted, **readout}
    events = await run(fetch("hello", capture=capture), half)
    assert events[0].started.readouts[0].element_type == sent
    assert {chunk.rows.element_type for chunk in of_kind(events, "activations")} == {sent}


async def test_projected_rows_of_more_than_a_mebibyte_come_in_several_messages() -> None:
    wide = np.ones((50_000, 16))
    for top in (None, 40_000):
        projection = {"directions": inline(wide), "send_top": top}
        capture = {"sites": [site()], "projection": projection}
        events = await run(fetch("x" * 19, capture=capture))
        assert max(event.ByteSize() for event in events) <= 1 << 20
        positions, values = matrices(events)[0, 0]
        assert positions == list(range(20))
        assert values.shape == (20, top or 50_000)


async def test_rows_of_other_hook_points_are_projected_at_their_own_width() -> None:
    where = site(1, site_pb2.HOOK_POINT_K)
    rows = await plain(fetch(capture={"sites": [where]}))
    capture = {"sites": [where], "projection": {"directions": inline(D[:, :8])}}
    values = await plain(fetch(capture=capture))
    np.testing.assert_allclose(values, rows @ D[:, :8].T, rtol=1e-5, atol=1e-5)
