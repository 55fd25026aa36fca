"""The AV in training is the AV that is served: a prompt, the row in its slot, what follows."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.unit.training.tiny import WIDTH, load
from training import train_av
from training.models import embed
from training.sampling import sample
from training.train_av import TrainedVerbalizer

PROMPT, SLOT, SCALE = [5, 6, 7, 8, 9, 10], 3, 4.0
ANSWERS = [[11, 12, 13], [14], [15, 16, 17, 18, 19, 20, 21, 22, 23]]
END = 2


@pytest.fixture
def verbalizer(base: Path) -> TrainedVerbalizer:
    torch.manual_seed(0)
    return TrainedVerbalizer(load(base)[0], 4, PROMPT, SLOT, SCALE)


def _rows(count: int) -> torch.Tensor:
    return 30 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))


def _logits(verbalizer: TrainedVerbalizer, row: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """Of the token after the prompt and each of the answer, as one plain pass has them."""
    embedded = embed(verbalizer.model, torch.tensor([PROMPT + answer])).clone()
    embedded[0, SLOT] = SCALE * row / row.norm()
    return verbalizer.model(inputs_embeds=embedded).logits[0, len(PROMPT) - 1 :]


def test_the_loss_is_that_of_answers_alone_each_by_itself(verbalizer: TrainedVerbalizer) -> None:
    rows = _rows(len(ANSWERS))
    losses = [
        functional.cross_entropy(
            _logits(verbalizer, row, answer)[:-1], torch.tensor(answer), reduction="none"
        )
        for row, answer in zip(rows, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(
        verbalizer.loss(rows, ANSWERS), torch.cat(losses).mean(), rtol=1e-4, atol=1e-4
    )


def test_training_lowers_the_loss(verbalizer: TrainedVerbalizer) -> None:
    rows = _rows(len(ANSWERS))
    before = verbalizer.loss(rows, ANSWERS).item()
    order = [0, 1, 2] * 120
    after = train_av.train(
        verbalizer,
        rows[order],
        [ANSWERS[index] for index in order],
        batch=6,
        rate=1e-2,
        seed=0,
        name="AV",
    )
    assert after < before / 2


def test_greedy_answers_are_what_plain_passes_say(verbalizer: TrainedVerbalizer) -> None:
    rows = _rows(5)
    written = sample(
        verbalizer, rows, count=1, temperature=0.0, max_tokens=6, end=END, seed=0, name="AV"
    )
    for row, (answer,) in zip(rows, written, strict=True):
        following = _logits(verbalizer, row, answer).argmax(-1).tolist()
        assert following[:-1] == answer
        assert len(answer) == 6 or following[-1] == END


def test_an_answer_ends_at_its_end_whatever_others_do(verbalizer: TrainedVerbalizer) -> None:
    rows = _rows(6)
    options = {"count": 1, "temperature": 0.0, "max_tokens": 8, "seed": 0, "name": "AV"}
    unended = [each[0] for each in sample(verbalizer, rows, end=-1, **options)]
    # A token that some answers have, and others do not, or late.
    end = unended[0][2]
    ended = [each[0] for each in sample(verbalizer, rows, end=end, **options)]
    assert ended == [answer[: answer.index(end)] if end in answer else answer for answer in unended]
    assert len({len(answer) for answer in ended}) > 1


def test_samples_of_a_row_differ_and_repeat_with_their_seed(verbalizer: TrainedVerbalizer) -> None:
    rows = _rows(2)
    first, again, other = (
        sample(
            verbalizer, rows, count=4, temperature=1.0, max_tokens=6, end=END, seed=seed, name="AV"
        )
        for seed in (1, 1, 2)
    )
    assert [len(each) for each in first] == [4, 4]
    assert len({tuple(answer) for answer in first[0]}) > 1
    assert first == again != other
