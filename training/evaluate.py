"""What a trained pair is worth, on rows of documents it has not seen.

Beside the pair itself stand controls: without them a template that says the same of every row, or
of every row of one token, could look like an explanation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from actserve_server.nla.profile import Baseline
from actserve_server.nla.scores import normalize, score
from training.dataset import Examples
from training.prompts import Words
from training.recipe import Recipe
from training.sampling import sample
from training.targets import visible
from training.train_ar import TrainedReconstructor, reconstruct
from training.train_av import TrainedVerbalizer

CANDIDATES = 256
"""Rows among which the right one is looked for."""


@dataclass(frozen=True, slots=True)
class Result:
    """How rows compare with what was reconstructed of them; means over rows."""

    variance_explained: float
    cosine: float
    centered_cosine: float
    retrieval: float
    """Share of the reconstructions to which, of the rows of a group of `CANDIDATES`, their own is
    the nearest by centred cosine."""
    rows: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results by what the AR was given, and samples to look at."""

    results: dict[str, Result]
    parsed: float
    """Share of the greedy explanations that have the form."""
    chance: float
    """Retrieval by guessing."""
    samples: list[dict[str, str]]

    def document(self) -> dict[str, object]:
        return asdict(self)


def evaluate(
    verbalizer: TrainedVerbalizer,
    reconstructor: TrainedReconstructor,
    held_out: Examples,
    baseline: Baseline,
    words: Words,
    recipe: Recipe,
    examples: int = 12,
) -> Evaluation:
    golds = held_out.rows.float().numpy()

    def write(count: int, temperature: float, name: str) -> list[list[tuple[str, bool]]]:
        answers = sample(
            verbalizer,
            held_out.rows,
            count=count,
            temperature=temperature,
            max_tokens=recipe.max_tokens,
            end=words.end,
            seed=recipe.seed,
            name=name,
        )
        return [[words.explanation(answer) for answer in each] for each in answers]

    def read(texts: Sequence[str], name: str) -> np.ndarray:
        # A text may be empty where it was not parsed; the AR reads no empty ones.
        prompts = [words.prompt(text if text.strip() else ".") for text in texts]
        return reconstruct(reconstructor, prompts, f"read {name}")

    greedy = [each[0] for each in write(1, 0.0, "explain")]
    texts = [text for text, _ in greedy]
    sampled = write(recipe.samples, recipe.temperature, "explain, several times")
    flat = read([text for each in sampled for text, _ in each], "samples")
    many = flat.reshape(len(golds), recipe.samples, -1)
    explained = read(texts, "explanations")
    made = {
        "greedy explanation": explained,
        "sampled explanation": many[:, 0],
        f"best of {recipe.samples} explanations": _best(golds, many),
        "explanation of another row": np.roll(explained, 1, axis=0),
        f"best of {recipe.samples} of another row": _best(golds, np.roll(many, 1, axis=0)),
        "the token alone": read([f"Text: {visible(each)}" for each in held_out.tokens], "tokens"),
        "target text": read(held_out.texts, "targets"),
        "the mean row": np.broadcast_to(_mean(baseline), golds.shape),
    }
    return Evaluation(
        results={name: _compare(golds, rows, baseline) for name, rows in made.items()},
        parsed=sum(parsed for _, parsed in greedy) / len(greedy),
        chance=1 / min(CANDIDATES, len(golds)),
        samples=[
            {"target": target, "explanation": text}
            for target, text in list(zip(held_out.texts, texts, strict=True))[:examples]
        ],
    )


def _best(golds: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Of several reconstructions of each row, the one of the highest cosine, as servers choose."""
    cosines = [[each.cosine for each in score(golds, rows, None)] for rows in many.swapaxes(0, 1)]
    return many[np.arange(len(golds)), np.argmax(cosines, axis=0)]


def _compare(golds: np.ndarray, made: np.ndarray, baseline: Baseline) -> Result:
    scores = score(golds, made, baseline)
    explained = [each.variance_explained for each in scores]
    centered = [each.centered_cosine for each in scores]
    return Result(
        variance_explained=float(np.mean([each for each in explained if each is not None])),
        cosine=float(np.mean([each.cosine for each in scores])),
        centered_cosine=float(np.mean([0.0 if each is None else each for each in centered])),
        retrieval=retrieval(golds, made, _mean(baseline)),
        rows=len(golds),
    )


def retrieval(golds: np.ndarray, made: np.ndarray, mean: np.ndarray) -> float:
    """See `Result.retrieval`; both are [rows, width]. The last group may be smaller, and is left
    out if there is a whole one."""
    groups = max(1, len(golds) // CANDIDATES)
    hits: list[bool] = []
    for start in range(0, groups * CANDIDATES, CANDIDATES):
        gold, other = (normalize(rows[start : start + CANDIDATES]) - mean for rows in (golds, made))
        gold /= np.linalg.norm(gold, axis=1, keepdims=True)
        # The length of a reconstruction changes none of its own comparisons.
        hits.extend((other @ gold.T).argmax(1) == np.arange(len(gold)))
    return float(np.mean(hits))


def _mean(baseline: Baseline) -> np.ndarray:
    assert baseline.mean is not None
    return baseline.mean
