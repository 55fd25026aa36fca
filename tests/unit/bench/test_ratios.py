"""Ratios are to the base as it was just before and after, round by round."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from bench.ratios import Rate, Ratio, compare
from bench.workloads import Request, Workload

QUIET = Console(file=io.StringIO())
LOADS = [Workload("decode", 2, prompt_tokens=16, max_tokens=5, ids=(2, 9))]


def in_turn(*rates: float, asked: list[Sequence[Request]] | None = None) -> Rate:
    """An engine that is as fast as this, one measurement after the other."""
    left = iter(rates)

    async def rate(requests: Sequence[Request]) -> float:
        if asked is not None:
            asked.append(requests)
        return next(left)

    return rate


async def test_a_ratio_is_to_the_mean_of_the_base_before_and_after() -> None:
    base = in_turn(1, 1, 100, 300)  # The first two warm up.
    (ratio,) = await compare(base, {"idle": in_turn(1, 50)}, LOADS, 1, QUIET)
    assert (ratio.workload, ratio.mode) == ("decode", "idle")
    assert ratio.ratios == [50 / 200]
    assert ratio.base_rates == [200]


async def test_a_measurement_of_the_base_serves_the_mode_before_it_and_the_one_after() -> None:
    base = in_turn(1, 1, 1, 100, 200, 400)
    modes = {"idle": in_turn(1, 150), "steered": in_turn(1, 150)}
    idle, steered = await compare(base, modes, LOADS, 1, QUIET)
    assert idle.ratios == [1.0]
    assert steered.ratios == [0.5]


async def test_the_round_that_warms_up_does_not_count() -> None:
    found = await compare(in_turn(*[10] * 8), {"idle": in_turn(1, 10, 20, 30)}, LOADS, 3, QUIET)
    assert [each.ratios for each in found] == [[1.0, 2.0, 3.0]]


async def test_no_prompt_is_asked_twice() -> None:
    asked: list[Sequence[Request]] = []
    modes = {"idle": in_turn(*[1] * 3, asked=asked)}
    await compare(in_turn(*[1] * 6, asked=asked), modes, LOADS, 2, QUIET)
    prompts = [request.token_ids for requests in asked for request in requests]
    assert len(prompts) == 2 * 3 * 3
    assert len(set(prompts)) == len(prompts)
    assert all(2 <= token < 9 for prompt in prompts for token in prompt)


@pytest.mark.parametrize(
    ("ratios", "median"), [((0.9, 1.0, 5.0), 1.0), ((1.0, 2.0), 1.5), ((0.97,), 0.97)]
)
def test_the_figure_of_a_mode_is_the_median_of_its_rounds(
    ratios: tuple[float, ...], median: float
) -> None:
    assert Ratio("decode", "idle", [1.0] * len(ratios), [*ratios]).median == median
