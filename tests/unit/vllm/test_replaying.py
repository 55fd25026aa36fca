"""At each step of a replay one token is left to sample, wherever vLLM has the run in its batch."""

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from actserve_server.engine.vllm.replaying import REPLAYED_ARG, Replaying

VOCABULARY = 10
LOGITS = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))


def _params(*tokens: int) -> SamplingParams:
    return SamplingParams(extra_args={REPLAYED_ARG: [*tokens]} if tokens else None)


def _update(
    added: list[tuple[int, SamplingParams, list[int]]] | None = None,
    removed: list[int] | None = None,
    moved: list[tuple[int, int, MoveDirectionality]] | None = None,
) -> BatchUpdate:
    new = [(row, params, None, generated) for row, params, generated in added or []]
    return BatchUpdate(4, removed or [], new, moved or [])


def _left(processor: Replaying) -> dict[int, int]:
    """The rows that are masked, and the token that each has left."""
    logits = processor.apply(LOGITS.clone())
    left = {}
    for row in range(len(logits)):
        if not torch.equal(logits[row], LOGITS[row]):
            (token,) = torch.isfinite(logits[row]).nonzero().ravel().tolist()
            left[row] = token
    return left


@pytest.fixture
def processor() -> Replaying:
    return Replaying(torch.device("cpu"))


def test_a_run_is_given_its_tokens_one_after_the_other_and_then_left_alone(
    processor: Replaying,
) -> None:
    generated: list[int] = []
    processor.update_state(_update(added=[(1, _params(7, 3), generated), (0, _params(), [])]))
    assert _left(processor) == {1: 7}
    processor.update_state(None)  # Of a prompt that is computed in parts.
    assert _left(processor) == {1: 7}
    generated.append(-1)  # What vLLM has not fetched yet.
    processor.update_state(None)
    assert _left(processor) == {1: 3}
    generated.append(3)
    processor.update_state(None)
    assert _left(processor) == {}


def test_a_run_keeps_its_tokens_when_it_moves_is_preempted_and_comes_back(
    processor: Replaying,
) -> None:
    one, other = [1], [2, 2]
    processor.update_state(
        _update(added=[(0, _params(1, 4, 5), one), (2, _params(2, 2, 6), other)])
    )
    assert _left(processor) == {0: 4, 2: 6}
    processor.update_state(_update(moved=[(0, 2, MoveDirectionality.SWAP)]))
    assert _left(processor) == {2: 4, 0: 6}
    processor.update_state(_update(removed=[2]))
    assert _left(processor) == {0: 6}
    one.append(4)
    processor.update_state(_update(added=[(3, _params(1, 4, 5), one)]))
    assert _left(processor) == {0: 6, 3: 5}


def test_a_row_that_another_run_takes_is_its_own(processor: Replaying) -> None:
    processor.update_state(_update(added=[(0, _params(1), [])]))
    processor.update_state(_update(added=[(0, _params(), [])]))
    assert _left(processor) == {}


def test_a_step_without_a_replay_touches_nothing(processor: Replaying) -> None:
    processor.update_state(_update(added=[(0, _params(), [])]))
    logits = LOGITS.clone()
    assert processor.apply(logits) is logits
    assert torch.equal(logits, LOGITS)
