"""Heads that look at their own token and at the one before, and who needs the latter.

    make serve                                        # in another terminal
    python examples/token_heads.py                    # or with the address of a server

A previous-token head looks one token back whatever stands there, so its score on sentences and on
random tokens is the same; so is that of an own-token head. Induction is made of two heads: the one
that copies what followed a token must be told which token that follows, and the previous-token head
of an earlier layer tells it (Elhage et al., "A Mathematical Framework for Transformer Circuits",
2021). So without previous-token heads the scores of induction heads fall, further than without as
many others of the same layers, of which some hurt as well.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

import actserve

SENTENCES = (
    "The old bridge over the river was closed after the storm, so we took the long way home.",
    "She planted tomatoes and beans in the spring and gave most of them to her neighbours.",
    "When the train finally arrived, the platform was full of tired people with heavy bags.",
    "A small company from the north makes the best paper boats that anybody has ever seen.",
)
PROMPTS, PERIOD = 4, 24
"""Random prompts are so many tokens, said twice."""
PREVIOUS, INDUCTION = 4, 3
"""Heads that are switched off, and that are watched."""
CONTROLS = 8
DRAWN = range(1000, 20_000)
"""Ids of tokens to draw: words, and no special ones."""

SCORES: tuple[actserve.HeadScore, ...] = ("previous_token", "current_token")


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured."""

    sentences: actserve.HeadTable
    random: actserve.HeadTable
    agreement: dict[actserve.HeadScore, float]
    """Of the scores of all heads on sentences and on random tokens, the correlation."""
    induction: float
    """The mean score of the induction heads, which lie behind all heads that are switched off."""
    without: float
    """The same without previous-token heads."""
    controls: tuple[float, ...]
    """The same without others of the same layers."""

    def check(self) -> None:
        """What is known of these heads holds of this model. Raises `AssertionError`."""
        for name in SCORES:
            assert self.random.top(name, 1)[0][2] > 0.5, f"no head has {name} above 0.5"
            assert self.agreement[name] > 0.7, f"{name} depends on the text: {self.agreement}"
        assert self.without < self.induction / 2, f"{self.induction:.2f}, then {self.without:.2f}"
        assert self.without < min(self.controls), f"{self.without:.2f}, others {self.controls}"

    def __str__(self) -> str:
        lines = [
            f"{name}: "
            + ", ".join(f"L{layer}H{head} {score:.2f}" for layer, head, score in top)
            + f"; correlation with sentences {self.agreement[name]:.2f}"
            for name in SCORES
            for top in [self.random.top(name, 5)]
        ]
        others = ", ".join(f"{each:.2f}" for each in self.controls)
        lines.append(
            f"induction score {self.induction:.2f}, without previous-token heads "
            f"{self.without:.2f}, without others {others}"
        )
        return "\n".join(lines)


def measure(client: actserve.Client) -> Found:
    """Measures a served model."""
    rng = np.random.default_rng(0)
    texts = [rng.choice(DRAWN, PERIOD, replace=False).tolist() * 2 for _ in range(PROMPTS)]
    sentences, random = client.heads([*SENTENCES]), client.heads(texts)
    watched = random.top("induction", INDUCTION)
    first = min(layer for layer, *_ in watched)
    off = [
        (layer, head)
        for layer, head, _ in random.top("previous_token", random.entropy.size)
        if layer < first
    ][:PREVIOUS]
    others = [
        (layer, head)
        for layer in sorted({layer for layer, _ in off})
        for head in range(random.heads)
        if (layer, head) not in off
    ]

    def score(heads: list[tuple[int, int]]) -> float:
        edits = tuple(actserve.Zero(f"z.{layer}", heads=[head]) for layer, head in heads)
        table = client.heads(texts, intervene=edits) if edits else random
        return float(np.mean([table.induction[layer, head] for layer, head, _ in watched]))

    chance = np.random.default_rng(1)
    drawn = [chance.choice(len(others), PREVIOUS, replace=False) for _ in range(CONTROLS)]
    return Found(
        sentences,
        random,
        {name: correlation(sentences.score(name), random.score(name)) for name in SCORES},
        score([]),
        score(off),
        tuple(score([others[at] for at in each]) for each in drawn),
    )


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the scores of all heads."""
    return float(np.corrcoef(np.stack([one.ravel(), other.ravel()]))[0, 1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument("--picture", help="draw the previous-token scores into this file")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served)
    print(found)
    if asked.picture:
        figure: Any = found.random.plot("previous_token").figure
        figure.savefig(asked.picture)
    found.check()
