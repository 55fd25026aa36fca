"""Rows read along directions: probes and the encoders of sparse autoencoders."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.domain.projection import (
    Activation,
    Identity,
    JumpReLU,
    Projection,
    ReLU,
    TopK,
)

INF, NAN = np.inf, np.nan


def _floats(values: object) -> np.ndarray:
    return np.array(values, np.float32)


def _whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers, whose sums are exact in any order, and which are full of ties."""
    return rng.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Identity(), [-2, 0, 1, 3, 3]),
        (ReLU(), [0, 0, 1, 3, 3]),
        (JumpReLU(_floats([0, 0, 1, 2, 3])), [0, 0, 0, 3, 0]),
        (JumpReLU(_floats([-3, -1, 0, 0, 0])), [-2, 0, 1, 3, 3]),
        (TopK(1), [0, 0, 0, 3, 0]),
        (TopK(2), [0, 0, 0, 3, 3]),
        (TopK(3), [0, 0, 1, 3, 3]),
        (TopK(5), [0, 0, 1, 3, 3]),
        (TopK(99), [0, 0, 1, 3, 3]),
    ],
    ids=repr,
)
def test_an_activation_does_what_its_formula_says(
    activation: Activation, expected: list[float]
) -> None:
    values = _floats([[-2, 0, 1, 3, 3]])
    activation.apply(values)
    assert values.tolist() == [expected]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Identity(), [-INF, INF, NAN]),
        (ReLU(), [0, INF, NAN]),
        (JumpReLU(_floats([0, 0, 0])), [0, INF, NAN]),
        (TopK(3), [0, INF, NAN]),
        (TopK(1), [0, 0, NAN]),
    ],
    ids=repr,
)
def test_an_activation_makes_no_nan_of_infinity_and_hides_none(
    activation: Activation, expected: list[float]
) -> None:
    values = _floats([[-INF, INF, NAN]])
    activation.apply(values)
    np.testing.assert_array_equal(values, _floats([expected]))


def _jump_relu(y: torch.Tensor) -> torch.Tensor:
    return y * (y > torch.linspace(-1, 1, 40))


def _top_k(y: torch.Tensor) -> torch.Tensor:
    top = torch.topk(y, 30, dim=1)
    return torch.zeros_like(y).scatter_(1, top.indices, torch.relu(top.values))


@pytest.mark.parametrize(
    ("activation", "reference"),
    [
        (Identity(), torch.clone),
        (ReLU(), torch.relu),
        (JumpReLU(np.linspace(-1, 1, 40, dtype=np.float32)), _jump_relu),
        (TopK(30), _top_k),
    ],
    ids=["identity", "relu", "jump_relu", "top_k"],
)
def test_values_are_those_of_a_torch_encoder(
    activation: Activation, reference: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    rng = np.random.default_rng(1)
    rows, directions, bias = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((9, 16), (40, 16), 40)
    )
    y = torch.nn.functional.linear(*map(torch.from_numpy, (rows, directions, bias)))
    values = Projection(directions, bias, activation).apply(rows)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, reference(y).numpy(), rtol=1e-5, atol=1e-5)


def test_a_bias_holds_what_an_autoencoder_subtracts_from_its_input() -> None:
    rng = np.random.default_rng(2)
    rows, directions = _whole(rng, 5, 8), _whole(rng, 6, 8)
    bias, subtracted = _whole(rng, 6), _whole(rng, 8)
    folded = Projection(directions, bias - directions @ subtracted)
    expected = Projection(directions, bias).apply(rows - subtracted)
    np.testing.assert_array_equal(folded.apply(rows), expected)


@pytest.mark.parametrize(
    ("rows", "top_k", "indices", "values"),
    [
        ([[1, 3, 2]], 2, [[1, 2]], [[3, 2]]),
        ([[1, 3, 3]], 1, [[1]], [[3]]),
        ([[-1, -3, -2]], 2, [[0, 2]], [[-1, -2]]),
        ([[1, 3, 2], [9, 0, 0]], 9, [[1, 2, 0], [0, 1, 2]], [[3, 2, 1], [9, 0, 0]]),
        (np.empty((0, 3)), 2, [], []),
    ],
    ids=["two", "a tie", "negative", "more than there are", "no rows"],
)
def test_the_largest_values_come_first_with_their_directions(
    rows: object, top_k: int, indices: list[list[int]], values: list[list[float]]
) -> None:
    top = Projection(np.eye(3, dtype=np.float32)).top(_floats(rows), top_k)
    assert (top.indices.tolist(), top.values.tolist()) == (indices, values)
    assert (top.indices.dtype, top.values.dtype) == (np.int64, np.float32)


ACTIVATIONS = [Identity(), ReLU(), JumpReLU(_floats([-1, 0, 1, 2, 3, 4, 5])), TopK(3)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_every_row_is_read_by_itself_whatever_the_block(
    activation: Activation, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(3)
    for count in (0, 1, 2, 11):
        rows, directions, bias = _whole(rng, count, 5), _whole(rng, 7, 5), _whole(rng, 7)
        projection = Projection(directions, bias, activation)
        values, top = projection.apply(rows), projection.top(rows, 4)
        assert values.shape == (count, 7)
        assert top.indices.shape == top.values.shape == (count, 4)
        for i, row in enumerate(rows):
            expected = (directions @ row + bias)[np.newaxis]
            activation.apply(expected)
            np.testing.assert_array_equal(values[i], expected[0])
            order = sorted(range(7), key=lambda j: (-expected[0, j], j))[:4]
            assert top.indices[i].tolist() == order
            np.testing.assert_array_equal(top.values[i], expected[0, order])


@pytest.mark.parametrize("activation", [JumpReLU(np.zeros(500, np.float32)), TopK(8)])
def test_reading_holds_one_block_and_the_result_and_no_copy_of_the_directions(
    activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    rng = np.random.default_rng(4)
    rows, directions = (rng.standard_normal((n, 300)).astype(np.float32) for n in (700, 500))
    projection = Projection(directions, None, activation)
    results = {
        "apply": (lambda: projection.apply(rows), 4 * 700 * 500),
        "top": (lambda: projection.top(rows, 8), (8 + 4) * 700 * 8),
    }
    for name, (read, result_bytes) in results.items():
        tracemalloc.start()
        read()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - result_bytes < 10 * blocks.BLOCK_BYTES < directions.nbytes, name
