"""Which heads copy what followed last time, and does the model need them?

    make serve                                            # in another terminal
    python examples/induction_heads.py                    # or with the address of a server

A model that reads a row of random tokens a second time predicts them well, since some of its heads,
the induction heads, attend to what followed each token before (Olsson et al., "In-context Learning
and Induction Heads", 2022). We find them by their score, switch off the five strongest, and compare
with switching off five others: of random heads the second reading stays good.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import actserve

PROMPTS, PERIOD = 6, 24
"""Each prompt is `PERIOD` random tokens, said twice."""
SWITCHED_OFF = 5
CONTROLS = 4
"""As many random choices of heads to compare with."""
DRAWN = range(1000, 20_000)
"""Ids of tokens to draw: words, and no special ones."""

Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured. Log probabilities are means of the tokens of the second reading."""

    table: actserve.HeadTable
    strongest: tuple[Head, ...]
    plain: float
    without: float
    """With the strongest heads switched off."""
    controls: tuple[float, ...]
    """With others switched off."""

    def check(self) -> None:
        """What is known of induction heads holds of this model. Raises `AssertionError`."""
        scores = [score for *_, score in self.table.top("induction", SWITCHED_OFF)]
        assert scores[0] > 0.5, f"no head has an induction score above 0.5: {scores}"
        assert np.median(self.table.induction) < 0.1, "most heads look like induction heads"
        lost = self.plain - self.without
        others = [self.plain - each for each in self.controls]
        assert lost > 3 * max(0.0, *others), f"lost {lost:.2f}, and with others {others}"

    def __str__(self) -> str:
        heads = ", ".join(
            f"L{layer}H{head} {score:.2f}"
            for layer, head, score in self.table.top("induction", SWITCHED_OFF)
        )
        others = ", ".join(f"{each:.2f}" for each in self.controls)
        return (
            f"induction heads: {heads}\nlog probability of a token of the second reading: "
            f"{self.plain:.2f}, without these heads {self.without:.2f}, without others {others}"
        )


def measure(client: actserve.Client) -> Found:
    """Measures a served model."""
    rng = np.random.default_rng(0)
    texts = [rng.choice(DRAWN, PERIOD, replace=False).tolist() * 2 for _ in range(PROMPTS)]
    again = range(PERIOD, 2 * PERIOD)
    table = client.heads(texts, positions=list(again))
    strongest = [(layer, head) for layer, head, _ in table.top("induction", SWITCHED_OFF)]
    others = [
        (layer, head)
        for layer in table.layers
        for head in range(table.heads)
        if (layer, head) not in strongest
    ]
    drawn = [rng.choice(len(others), SWITCHED_OFF, replace=False) for _ in range(CONTROLS)]
    return Found(
        table,
        tuple(strongest),
        said(client, texts, ()),
        said(client, texts, strongest),
        tuple(said(client, texts, [others[at] for at in each]) for each in drawn),
    )


def said(client: actserve.Client, texts: Sequence[list[int]], off: Iterable[Head]) -> float:
    """The mean log probability of the tokens of the second reading with these heads off."""
    edits = tuple(actserve.Zero(f"z.{layer}", heads=[head]) for layer, head in off)
    scores = client.score([*texts], intervene=edits, progress=False)
    # The first token of the second reading follows nothing that was read before.
    return float(np.mean([each.logprobs[PERIOD + 1 :] for each in scores]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument("--picture", help="draw the scores into this file")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served)
    print(found)
    if asked.picture:
        figure: Any = found.table.plot("induction").figure
        figure.savefig(asked.picture)
    found.check()
