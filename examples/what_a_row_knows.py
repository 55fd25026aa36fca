"""How long does a row know its own token, and from where on the noun before it?

    make serve                                        # in another terminal
    python examples/what_a_row_knows.py               # or with the address of a server

Sentences of two forms name an animal and then a place. At the place, which is the last token, we
ask what can be read from the row at each depth: the place itself, or the animal that came before
it. What is read is learned on sentences of one form and asked of those of the other, as the nearest
of mean rows; beside both stands what is read of shuffled animals. Before the first layer a row
cannot know what came before it, so there it must be chance.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import actserve

ANIMALS = ("dog", "cat", "horse", "bird", "wolf", "lion", "bear", "snake")
PLACES = ("river", "house", "tree", "wall", "bridge", "car", "church", "table")
FORMS = ("I saw a {} near the {}", "There was an old {}, and it slept behind the {}")
SHUFFLES = 10


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured: of each depth the part that is read rightly, [depths]; the first depth is
    what the first layer reads."""

    own: np.ndarray
    before: np.ndarray
    shuffled: np.ndarray
    """The mean of some shuffles."""
    highest: float
    """The highest of any shuffle and depth."""

    def check(self) -> None:
        """Raises `AssertionError` unless rows tell their own token at every depth, and the noun
        before it only after attention."""
        assert self.own.min() > 0.9, f"a row does not know its own token: {self.own}"
        assert self.before[0] <= self.highest, f"known before any attention: {self.before[0]:.2f}"
        assert self.before.max() > 2 * self.highest, f"{self.before}, by chance {self.highest:.2f}"

    def __str__(self) -> str:
        lines = ["depth   own token   noun before   shuffled"]
        lines += [
            f"{depth:5} {own:11.2f} {before:13.2f} {chance:10.2f}"
            for depth, (own, before, chance) in enumerate(
                zip(self.own, self.before, self.shuffled, strict=True)
            )
        ]
        return "\n".join([*lines, f"the highest of all shuffles: {self.highest:.2f}"])


def measure(client: actserve.Client) -> Found:
    """Measures a served model."""
    layers = client.models()[0].layer_count
    sites = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(layers))]
    named = [
        (form, animal, place)
        for form in range(len(FORMS))
        for animal in range(len(ANIMALS))
        for place in range(len(PLACES))
    ]
    texts = [FORMS[form].format(ANIMALS[animal], PLACES[place]) for form, animal, place in named]
    runs = client.fetch(texts, sites, positions="last", progress=False)
    form, animal, place = np.array(named).T
    rng = np.random.default_rng(0)
    # Within a form and place, so that each animal stays as frequent there.
    grid = animal.reshape(len(FORMS), len(ANIMALS), len(PLACES))
    shuffles = [rng.permuted(grid, axis=1).ravel() for _ in range(SHUFFLES)]
    own, before, chance = [], [], []
    for site in sites:
        rows = np.stack([run[site][0] for run in runs]).astype(np.float64)
        own.append(read(rows, place, form))
        # What rows of a form and place have in common is known, and taken off.
        rest = rows - common(rows, form * len(PLACES) + place)
        before.append(read(rest, animal, form))
        chance.append([read(rest, each, form) for each in shuffles])
    return Found(np.array(own), np.array(before), np.mean(chance, axis=1), float(np.max(chance)))


def common(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each row the mean of its group."""
    means = np.stack([rows[groups == each].mean(0) for each in range(groups.max() + 1)])
    return means[groups]


def read(rows: np.ndarray, names: np.ndarray, form: np.ndarray) -> float:
    """How often the nearest of the mean rows of each name, by their angle and in sentences of the
    other form, is that of the right name."""
    rows = rows - common(rows, form)
    right = []
    for asked in range(len(FORMS)):
        known = form != asked
        means = np.stack([rows[known & (names == each)].mean(0) for each in range(names.max() + 1)])
        means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-9
        right.append((rows[~known] @ means.T).argmax(1) == names[~known])
    return float(np.mean(right))


def draw(found: Found, path: Path) -> None:
    """What is read at each depth."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "actserve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(found.own, marker="o", ms=3, label="its own token")
        axes.plot(found.before, marker="o", ms=3, label="the noun before it")
        axes.plot(found.shuffled, color="0.6", ls="--", label="shuffled nouns")
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("layers before")
        axes.set_ylabel("read rightly")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument("--picture", type=Path, help="draw what is read into this file")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served)
    print(found)
    if asked.picture:
        draw(found, asked.picture)
    found.check()
