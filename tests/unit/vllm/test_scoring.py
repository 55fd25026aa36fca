"""Scores on the device are the definition's, however a sequence comes."""

import numpy as np
import pytest
import torch

from actserve_server.domain.probes import Aggregator, Ema
from actserve_server.engine.forms import score_state
from actserve_server.engine.vllm.scoring import advance
from tests.unit.test_probes import AGGREGATORS, NUMBERS, reference

WITH_MEMORY = [each for each in AGGREGATORS if each.has_memory]


def _start(aggregator: Aggregator, sequences: int = 1) -> torch.Tensor:
    return torch.zeros((sequences, score_state(aggregator)), dtype=torch.float64)


def _weights(aggregator: Aggregator, sequences: int = 1) -> torch.Tensor:
    smoothing = aggregator.smoothing
    weight = smoothing.weight if isinstance(smoothing, Ema) else 1.0
    return torch.full((sequences, 1), weight, dtype=torch.float64)


def _in_chunks(aggregator: Aggregator, sizes: list[int]) -> np.ndarray:
    state, weights = _start(aggregator), _weights(aggregator)
    chunks = torch.from_numpy(NUMBERS).double().split(sizes)
    scores = [advance(chunk[None], aggregator, weights, state)[0] for chunk in chunks]
    return torch.cat(scores).numpy()


@pytest.mark.parametrize("aggregator", WITH_MEMORY, ids=str)
def test_scores_are_the_same_in_any_chunks(aggregator: Aggregator) -> None:
    expected = reference(NUMBERS, aggregator)
    rng = np.random.default_rng(0)
    count = len(NUMBERS)
    chunkings = [[count], [1] * count, [1, count - 1], [count - 1, 1]]
    for _ in range(20):
        cuts = np.sort(rng.choice(np.arange(1, count), size=rng.integers(1, 9), replace=False))
        chunkings.append(np.diff([0, *cuts, count]).tolist())
    for sizes in chunkings:
        got = _in_chunks(aggregator, sizes)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12, err_msg=str(sizes))


@pytest.mark.parametrize("aggregator", WITH_MEMORY, ids=str)
def test_sequences_side_by_side_are_each_by_itself(aggregator: Aggregator) -> None:
    """One begins where the other goes on."""
    numbers = torch.from_numpy(NUMBERS).double().view(2, -1)
    state = _start(aggregator, 2)
    own = state[:1].clone()
    advance(numbers[:1, :6], aggregator, _weights(aggregator), own)
    state[:1] = own
    got = advance(numbers[:, 6:], aggregator, _weights(aggregator, 2), state)
    first, second = numbers.numpy()
    np.testing.assert_allclose(got[0], reference(first, aggregator)[6:], rtol=1e-12)
    np.testing.assert_allclose(got[1], reference(second[6:], aggregator), rtol=1e-12)


def test_each_sequence_has_its_own_weight() -> None:
    numbers = torch.from_numpy(NUMBERS).double().view(2, -1)
    aggregator = Aggregator(Ema(1.0))
    weights = torch.tensor([[0.2], [0.7]], dtype=torch.float64)
    got = advance(numbers, aggregator, weights, _start(aggregator, 2))
    for row, weight in enumerate((0.2, 0.7)):
        expected = reference(numbers[row].numpy(), Aggregator(Ema(weight)))
        np.testing.assert_allclose(got[row], expected, rtol=1e-12)
