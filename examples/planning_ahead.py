"""Does the model plan a rhyme, or the noun behind its article? Here it does not.

    make serve                                        # in another terminal
    python examples/planning_ahead.py                 # or with the address of a server

Larger models hold the rhyme in mind when a line begins (Lindsey et al., "On the Biology of a Large
Language Model", 2025). We ask two questions. Does a definition of an apple make "an" likelier than
one of a banana does? And of two first lines that differ in their last word, does each make its own
rhyme likelier, where the second line ends and already where it begins, at any depth? Each number
stands beside the range that chance gives, and beside the same number of a prompt that has the word
in it, which shows that it would be seen.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import actserve

DEFINITIONS = (
    ("A red or green fruit that grows on trees and is pressed for cider is", " an", " apple"),
    ("A large grey animal with a trunk and tusks is", " an", " elephant"),
    ("A round orange citrus fruit is", " an", " orange"),
    ("The thing that a hen lays and a bird sits on is", " an", " egg"),
    ("The person who flies into space is", " an", " astronaut"),
    ("A piece of land with water on all sides is", " an", " island"),
    ("A bird that hunts at night and turns its head is", " an", " owl"),
    ("A small insect that lives in large colonies and carries crumbs is", " an", " ant"),
    ("A person who paints pictures is", " an", " artist"),
    ("A vehicle that takes the sick to hospital is", " an", " ambulance"),
    ("A thing held over the head in the rain is", " an", " umbrella"),
    ("A sea animal with eight arms is", " an", " octopus"),
    ("A yellow fruit that is long and curved is", " a", " banana"),
    ("A tall animal with a very long neck is", " a", " giraffe"),
    ("A yellow and sour citrus fruit is", " a", " lemon"),
    ("The thing that wool is knitted into against the cold is", " a", " sweater"),
    ("The person who treats the sick is", " a", " doctor"),
    ("A high piece of land with steep sides is", " a", " mountain"),
    ("A bird that is kept for its eggs is", " a", " chicken"),
    ("A small animal that spins a web is", " a", " spider"),
    ("A person who teaches children in school is", " a", " teacher"),
    ("A vehicle that runs on rails is", " a", " train"),
    ("A thing that is used to sweep the floor is", " a", " broom"),
    ("A sea animal with a fin that is feared by swimmers is", " a", " shark"),
)
COUPLETS = """\
I met a very friendly | bear mouse | and it was sitting on the | chair house
One day my father caught a | cat dog | and it was hiding in a | hat log
They told me that the sky was | blue gray | and I believed that it was | true day
We walked together through the | snow rain | and waited for the wind to | blow train
I looked into the silent | night day | and soon the world was full of | light play
She put the letter in a | box bag | and wrapped it up in woollen | socks rag
The sailor looked across the | sea sand | and held a book upon his | knee hand
He wore a coat of silver and | gold red | and said that he was feeling | cold dead
The baker made a loaf of | bread cake | and took it with him to his | bed lake
A king was standing by the | door wall | and he had fallen on the | floor hall
The child was playing with a | ball toy | and she was friendly to us | all boy
"""
"""Couplets: the first line, two words that may end it, the second line, and the rhyme to each."""
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Measured:
    """A number, and what chance makes of it."""

    value: float
    chance: tuple[float, float]
    """Where 95% of the draws lie if what belongs together is chosen at random."""
    shown: float
    """The same number where the prompt has the word in it."""

    @property
    def is_chance(self) -> bool:
        return self.chance[0] <= self.value <= self.chance[1]

    def __str__(self) -> str:
        low, high = self.chance
        return f"{self.value:.2f} (chance {low:.2f} to {high:.2f}, in sight {self.shown:.2f})"


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured."""

    article: Measured
    """How often a definition with " an" makes it likelier than one with " a" does; 0.5 is none."""
    ending: Measured
    """By how much the right first line raises its rhyme where the second line ends, in nats."""
    beginning: Measured
    """The same where the second line begins; the mean over all depths."""
    by_layer: np.ndarray
    """Of the latter each depth, float32 [layers]; then where the word is in sight, [2, layers]."""

    def check(self) -> None:
        """A small model plans nothing, and what it knows is seen. Raises `AssertionError`."""
        for name in ("article", "ending", "beginning"):
            found: Measured = getattr(self, name)
            assert found.is_chance, f"{name}: {found}; so it plans"
            assert found.shown > found.chance[1], f"{name}: {found}; nothing would be seen"

    def __str__(self) -> str:
        return (
            f"how often the article suits the noun that follows: {self.article}\n"
            "log probability that the rhyme gains from the first line's last word, in nats\n"
            f"  at the end of the second line: {self.ending}\n"
            f"  at its beginning: {self.beginning}"
        )


def measure(client: actserve.Client) -> Found:
    """Measures a served model."""
    layers = client.models()[0].layer_count
    ends, begins = [], []
    shown_ends, shown_begins = [], []
    for couplet in COUPLETS.splitlines():
        line, words, second, rhymes = couplet.split(" | ")
        of_rhymes = logprobs(
            client,
            [
                f"{line} {word},\n{rest}"
                for word in (words + " " + rhymes).split()
                for rest in ("", second)
            ],
            [f" {rhyme}" for rhyme in rhymes.split()],
            layers,
        )
        # [last words, begins or ends, layers, rhymes]
        told = of_rhymes.reshape(4, 2, layers, 2)
        raised = told[..., 0] - told[..., 1]
        by_word, by_itself = (raised[0] - raised[1]) / 2, (raised[2] - raised[3]) / 2
        begins.append(by_word[0])
        ends.append(by_word[1, -1])
        shown_begins.append(by_itself[0])
        shown_ends.append(by_itself[1, -1])
    by_layer = np.stack([np.mean(begins, axis=0), np.mean(shown_begins, axis=0)])
    return Found(
        article(client, layers),
        signed(np.array(ends), np.array(shown_ends)),
        signed(np.mean(begins, axis=1), np.mean(shown_begins, axis=1)),
        by_layer,
    )


def logprobs(
    client: actserve.Client, prompts: list[str], tokens: Sequence[str], layers: int
) -> np.ndarray:
    """Of each token as what comes after each prompt, at each depth, [prompts, layers, tokens]; at
    the last depth it is what the model says."""
    sites = [f"resid_post.{layer}" for layer in range(layers)]
    asked = actserve.Predict(sites=sites, positions="last", token_ids=list(tokens))
    runs = client.fetch(prompts, predictions=asked, progress=False)
    return np.array([[run.predictions[site].token_logprobs[0] for site in sites] for run in runs])


def article(client: actserve.Client, layers: int) -> Measured:
    """Whether definitions say which article comes."""
    prompts = [definition for definition, *_ in DEFINITIONS]
    in_sight = [f"The word is:{noun}. It is" for *_, noun in DEFINITIONS]
    told = logprobs(client, [*prompts, *in_sight], (" an", " a"), layers)[:, -1]
    raised, shown = (told[:, 0] - told[:, 1]).reshape(2, -1)
    vowel = np.array([article == " an" for _, article, _ in DEFINITIONS])
    rng = np.random.default_rng(0)
    draws = [above(raised, rng.permutation(vowel)) for _ in range(DRAWS)]
    return Measured(above(raised, vowel), within(draws), above(shown, vowel))


def above(values: np.ndarray, which: np.ndarray) -> float:
    """In how many pairs the value of one that is meant is above that of one that is not."""
    pairs = itertools.product(values[which], values[~which])
    return float(np.mean([one > other for one, other in pairs]))


def signed(effects: np.ndarray, shown: np.ndarray) -> Measured:
    """A mean, where chance says of each effect whether it is for or against."""
    signs = np.random.default_rng(0).choice([-1, 1], (DRAWS, len(effects)))
    return Measured(float(effects.mean()), within(signs @ effects / len(effects)), shown.mean())


def within(draws: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def draw(found: Found, path: Path) -> None:
    """What the first line does to its rhyme where the second begins, at each depth."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "actserve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.axhspan(*found.beginning.chance, color="0.9", label="95% of chance, of the mean")
        for values, label in zip(found.by_layer, ("it rhymes", "it is that word"), strict=True):
            axes.plot(values, marker="o", ms=3, label=f"the first line's last word: {label}")
        axes.set_xlabel("layer")
        axes.set_ylabel("raised by, in nats")
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument("--picture", type=Path, help="draw the depths into this file")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served)
    print(found)
    if asked.picture:
        draw(found, asked.picture)
    found.check()
