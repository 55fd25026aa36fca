"""Taps stay in a compiled graph, and compiled code sees what they change."""

from collections.abc import Callable, Iterator

import pytest
import torch

from actserve_server.engine.vllm import taps


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def _compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    # In one graph without breaks, functionalized as vLLM's is.
    return torch.compile(function, fullgraph=True, backend="aot_eager")


class Adds(taps.StepPlan):
    """Adds a number at every place it is asked to: to the first tensor, and half to the second."""

    def __init__(self, **at: float) -> None:
        super().__init__()
        self._at = at

    def run(self, place: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        number = self._at.get(f"at_{place}", 0.0)
        hidden += number
        if residual is not None:
            residual += number / 2


def test_code_after_a_tap_sees_an_edit() -> None:
    def add_twice(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden * 2
        taps.tap(hidden, None, 0)
        return hidden + 1

    compiled = _compiled(add_twice)
    assert compiled(torch.ones(3)).tolist() == [3, 3, 3]
    with taps.step(Adds(at_0=100)):
        assert compiled(torch.ones(3)).tolist() == [103, 103, 103]
    assert compiled(torch.ones(3)).tolist() == [3, 3, 3]


def test_an_edit_of_the_residual_is_seen_too() -> None:
    def pair(x: torch.Tensor) -> torch.Tensor:
        hidden, residual = x * 2, x * 10
        taps.tap(hidden, residual, 0)
        hidden, residual = hidden * 3, residual + hidden
        taps.tap(hidden, residual, 1)
        return torch.stack([hidden, residual])

    compiled = _compiled(pair)
    assert compiled(torch.ones(1)).flatten().tolist() == [6, 12]
    with taps.step(Adds(at_0=100, at_1=1000)):
        assert compiled(torch.ones(1)).flatten().tolist() == [306 + 1000, 162 + 500]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_edits_of_views_of_one_tensor_are_seen_each_in_its_own_part(place: int) -> None:
    """Queries, keys and values are views of what one projection returns."""

    def project(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (x * 1).split([2, 1, 1], dim=-1)
        taps.tap(q, None, 0)
        taps.tap(k, None, 1)
        taps.tap(v, None, 2)
        return torch.cat([q * 1, k * 10, v * 100], dim=-1)

    compiled = _compiled(project)
    assert compiled(torch.ones(2, 4)).tolist() == [[1, 1, 10, 100]] * 2
    with taps.step(Adds(**{f"at_{place}": 1.0})):
        expected = [[2, 2, 10, 100], [1, 1, 20, 100], [1, 1, 10, 200]][place]
        assert compiled(torch.ones(2, 4)).tolist() == [expected] * 2


def test_the_callers_own_tensor_is_changed() -> None:
    def through(hidden: torch.Tensor) -> torch.Tensor:
        taps.tap(hidden, None, 0)
        return hidden * 1

    hidden = torch.ones(2)
    with taps.step(Adds(at_0=1.0)):
        assert _compiled(through)(hidden).tolist() == [2, 2]
    assert hidden.tolist() == [2, 2]


def test_a_plan_ends_with_its_step_even_if_that_fails() -> None:
    hidden = torch.zeros(1)

    def failing_step() -> None:
        with taps.step(Adds(at_0=1.0)):
            raise RuntimeError("the pass failed")

    with pytest.raises(RuntimeError, match="the pass failed"):
        failing_step()
    taps.tap(hidden, None, 0)
    assert hidden.tolist() == [0]
