"""A pass sees every example once, and like lengths together."""

import pytest
import torch

from training.optimization import batches, optimize

LENGTHS = [(7 * index) % 41 for index in range(1000)]


@pytest.mark.parametrize("size", [1, 32, 1000, 5000])
def test_every_example_is_in_one_batch(size: int) -> None:
    made = batches(LENGTHS, size, seed=0)
    assert sorted(index for batch in made for index in batch) == list(range(len(LENGTHS)))
    assert max(map(len, made)) == min(size, len(LENGTHS))


def test_examples_of_a_batch_are_of_like_length_and_batches_in_random_order() -> None:
    made = batches(LENGTHS, 32, seed=0)
    spreads = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in made]
    assert max(spreads) <= 6
    longest = [max(LENGTHS[i] for i in batch) for batch in made]
    assert longest != sorted(longest)
    assert made == batches(LENGTHS, 32, seed=0) != batches(LENGTHS, 32, seed=1)


def test_optimizing_finds_a_minimum_and_leaves_other_parameters_alone() -> None:
    trained, other = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    goal = torch.tensor([1.0, -2.0, 3.0])

    def loss(batch: list[int]) -> torch.Tensor:
        return (trained + other - goal).square().mean()

    last = optimize([([trained], 0.1)], [[0]] * 200, loss, "numbers")
    assert last < 0.01
    torch.testing.assert_close(trained.detach(), goal, atol=0.1, rtol=0)
    assert not other.any()
