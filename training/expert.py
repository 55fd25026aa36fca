"""Expert iteration (Anthony et al., 2017): the AV writes several explanations of a row, the AR says
which is best, and both learn from them.

The AR learns from all of them first. From target texts alone it takes every word for true; from
what the AV really writes it learns how far to trust which part.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from actserve_server.nla.baselines import measure
from actserve_server.nla.scores import score
from training import train_ar, train_av
from training.dataset import Examples
from training.prompts import Words
from training.recipe import Recipe
from training.sampling import sample
from training.train_ar import TrainedReconstructor, reconstruct
from training.train_av import TrainedVerbalizer

SLOWER = 1 / 3
"""The learning rate of a round, to that of the first training."""
KEPT_TARGETS = 0.25
"""Target texts among what the AR reads in a round, so that it can read them still."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempts:
    """What the AV wrote of some rows."""

    rows: torch.Tensor
    """[rows, width]."""
    texts: list[list[str]]
    """Of each row, what could be parsed."""

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.texts), encoding="utf-8")
        unfinished.rename(path)

    @property
    def flat(self) -> tuple[list[int], list[str]]:
        """All texts, and which row each is of."""
        pairs = [(row, text) for row, texts in enumerate(self.texts) for text in texts]
        return [row for row, _ in pairs], [text for _, text in pairs]


def attempt(
    verbalizer: TrainedVerbalizer,
    rows: torch.Tensor,
    words: Words,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
) -> Attempts:
    answers = sample(
        verbalizer,
        rows,
        count=recipe.samples,
        temperature=recipe.temperature,
        max_tokens=recipe.max_tokens,
        end=words.end,
        seed=seed,
        name=name,
    )
    read = [[words.explanation(answer) for answer in each] for each in answers]
    texts = [[text for text, parsed in each if parsed] for each in read]
    if not any(texts):
        raise ValueError(
            f"none of {recipe.samples} explanations of {len(rows)} rows has the form; train the AV "
            f"on more than {recipe.av_examples} examples, or let it write more than "
            f"{recipe.max_tokens} tokens"
        )
    return Attempts(rows, texts)


def learn_to_read(
    reconstructor: TrainedReconstructor,
    attempts: Attempts,
    targets: Examples,
    words: Words,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
) -> None:
    """One pass of the AR over all attempts, and some target texts among them."""
    of, texts = attempts.flat
    kept = round(KEPT_TARGETS * len(texts))
    chosen = torch.randperm(len(targets.texts), generator=torch.Generator().manual_seed(seed))[
        :kept
    ]
    texts += [targets.texts[index] for index in chosen.tolist()]
    train_ar.train(
        reconstructor,
        torch.cat([attempts.rows[of], targets.rows[chosen]]),
        [words.prompt(text) for text in texts],
        batch=recipe.batch,
        rate=recipe.rate * SLOWER,
        head_rate=recipe.head_rate * SLOWER,
        seed=seed,
        name=name,
    )


def best(
    reconstructor: TrainedReconstructor, attempts: Attempts, words: Words, name: str
) -> tuple[torch.Tensor, list[str]]:
    """Of every row with an attempt, the row and the text that the AR reconstructs it best from.

    Best by the centred cosine: what most rows share is not to be explained.
    """
    of, texts = attempts.flat
    made = reconstruct(reconstructor, [words.prompt(text) for text in texts], name)
    golds = attempts.rows.float().numpy()
    scores = score(golds[of], made, measure(golds))
    cosines = [each.centered_cosine or 0.0 for each in scores]  # None has no direction.
    winners: dict[int, int] = {}
    for index, row in enumerate(of):
        if row not in winners or cosines[index] > cosines[winners[row]]:
            winners[row] = index
    return attempts.rows[list(winners)], [texts[index] for index in winners.values()]


def learn_to_write(
    verbalizer: TrainedVerbalizer,
    rows: torch.Tensor,
    texts: list[str],
    words: Words,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
) -> None:
    """One pass of the AV over the best attempts."""
    train_av.train(
        verbalizer,
        rows,
        [words.answer(text) for text in texts],
        batch=recipe.batch,
        rate=recipe.rate * SLOWER,
        seed=seed,
        name=name,
    )
