"""Does the model count the characters of a line?

    make serve                                        # in another terminal
    python examples/counting_characters.py            # or with the address of a server

Whoever writes text in lines of equal width must know how long the line is already. In a large model
rows lie on a curve, a manifold, along which the count grows, and the next line break depends on it
(Gurnee et al., "When Models Manipulate Manifolds", 2025). We wrap sentences in random order at 40
characters, and ask three questions. How well can the count be read from a row by ridge regression,
beside the number of tokens in the line, and the same with shuffled counts? How flat is the curve of
the mean rows of ten intervals of the count? And does the log probability of a line break follow
where a row is moved along that curve, beside moves as far in other directions?
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import actserve

SENTENCES = (
    "The old bridge over the river was closed after the storm, so we took the long way home.",
    "She planted tomatoes and beans in the spring and gave most of them to her neighbours.",
    "When the train finally arrived, the platform was full of tired people with heavy bags.",
    "A small company from the north makes the best paper boats that anybody has ever seen.",
    "Nobody remembered who had left the window open during the night of the great rain.",
    "The teacher asked a simple question, and the whole class began to talk at once.",
    "In the corner of the market an old man sold maps of places that no longer exist.",
    "We counted eleven boats in the harbour before the fog came in from the sea.",
    "My brother repairs clocks, and every room of his house ticks in its own time.",
    "The recipe calls for butter, flour, two eggs and more patience than I have.",
    "They painted the door green, then blue, and at last left it the colour of wood.",
    "After dinner the children built a castle of chairs and would not let us in.",
    "The doctor said that walking in the hills would do more good than any medicine.",
    "Because the road was icy, the bus stopped at the foot of the mountain until noon.",
    "He wrote a long letter to his cousin in Canada and forgot to put a stamp on it.",
    "Two foxes crossed the field at dawn, quick and quiet, and vanished in the hedge.",
)
WIDTH, LINES, TEXTS, HELD_OUT = 40, 14, 18, 4
FIRST_LINES = 3
"""Lines of a text that are not looked at: from them the model learns how long lines are."""
EDGES = np.arange(0, WIDTH + 1, WIDTH // 10)
"""Of the intervals of the count."""
SITES = ("resid_post.0", "resid_post.5", "resid_post.12", "resid_post.20", "resid_post.29")
SITE = "resid_post.12"
"""Where rows are moved."""
BEGINNING, REACHED = 2, (1, 3, 5, 7, 9)
"""Intervals between which they are moved."""
RIDGE = 300.0
SHUFFLES = 20
MOVED_LINES = 2
"""Of each held-out text."""
OTHER = 6
"""Moves in other directions."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured. What is told is a part of the variance in held-out texts."""

    by_tokens: float
    """Of the count by the number of tokens since the line began, which is known without rows."""
    explained: np.ndarray
    """Of the count by rows of each site."""
    beyond: np.ndarray
    """By rows of each site, of the part of the count that the number of tokens does not explain."""
    shuffled: np.ndarray
    """Of the count by what was fitted to shuffled counts."""
    curve: np.ndarray
    """The mean rows of intervals at `SITE` in their first two components, [intervals, 2]."""
    flat: tuple[float, float]
    """The first two components' part of the variance of those means, and the most by chance."""
    spread: float
    """Their variance, as a multiple of that of as many means of rows of any count."""
    moved: tuple[float, ...]
    """By how much a row at the beginning of a line that is moved to the intervals `REACHED`
    raises the log probability of a line break."""
    moved_off: float
    """The same of a move opposite to the last of those, which leaves the curve."""
    moved_back: float
    """The same of rows at the end of a line that are moved to its beginning."""
    other: tuple[float, ...]
    """The same of rows at the beginning that are moved as far as the end in other directions."""
    other_back: tuple[float, ...]
    """The same of rows at the end."""

    def check(self) -> None:
        """The count is there, along a curve, and is used. Raises `AssertionError`."""
        at = SITES.index(SITE)
        assert self.explained[at] > 0.7, f"rows tell {self.explained}"
        assert self.beyond[at] > 0.4, f"beyond tokens they tell {self.beyond}"
        assert self.shuffled.max() < 0.1, f"shuffled counts are told too: {self.shuffled}"
        assert self.flat[0] > self.flat[1], f"no flatter than by chance: {self.flat}"
        assert self.spread > 3, f"the means differ {self.spread:.1f} times as much as by chance"
        assert np.all(np.diff(self.moved) > 0), f"line breaks do not follow: {self.moved}"
        assert self.moved[-1] > 2 * max(map(abs, self.other)), f"others as much: {self.other}"
        assert self.moved[-1] > self.moved_off, f"off the curve as much: {self.moved_off}"
        others = max(map(abs, self.other_back))
        assert self.moved_back < -2 * others, f"back {self.moved_back}, others {self.other_back}"

    def __str__(self) -> str:
        sites = "\n".join(
            f"{site}: {told:.2f}, beyond tokens {beyond:.2f}, of shuffled counts {chance:.2f}"
            for site, told, beyond, chance in zip(
                SITES, self.explained, self.beyond, self.shuffled, strict=True
            )
        )
        moved, other, other_back = (
            ", ".join(f"{each:.2f}" for each in some)
            for some in (self.moved, self.other, self.other_back)
        )
        return (
            f"told of the variance of the count:\nnumber of tokens: {self.by_tokens:.2f}\n{sites}\n"
            f"mean rows: {self.flat[0]:.2f} of their variance in two components, by chance at most "
            f"{self.flat[1]:.2f}; {self.spread:.1f} times as much of it as by chance\n"
            f"log probability of a line break, of rows moved along the line: {moved}; off it: "
            f"{self.moved_off:.2f}; in other directions: {other}\nof rows moved back from its end: "
            f"{self.moved_back:.2f}; in other directions: {other_back}"
        )


def measure(client: actserve.Client) -> Found:
    """Measures a served model."""
    rng = np.random.default_rng(0)
    texts = [wrapped(rng) for _ in range(TEXTS)]
    runs = client.fetch(texts, SITES, progress=False)
    # A line break is no part of a line.
    looked = [late(run.tokens) & (characters(run.tokens) > 0) for run in runs]

    def of(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What is looked at, of the texts that are fitted to and of those held out."""
        chosen = [array[at] for array, at in zip(arrays, looked, strict=True)]
        return np.concatenate(chosen[HELD_OUT:]), np.concatenate(chosen[:HELD_OUT])

    def rows_of(site: str) -> tuple[np.ndarray, np.ndarray]:
        return of([run[site].astype(np.float64) for run in runs])

    count, new_count = of([characters(run.tokens) for run in runs])
    number, new_number = of([tokens_of_line(run.tokens) for run in runs])
    line = np.polyfit(number, count, 1)
    said, new_said = np.polyval(line, number), np.polyval(line, new_number)
    told = []
    for site in SITES:
        rows, new_rows = rows_of(site)
        pairs = (
            (count, new_count),
            (count - said, new_count - new_said),
            (rng.permutation(count), new_count),
        )
        told.append([explained(new, ridge(rows, known, new_rows)) for known, new in pairs])
    found = np.array(told)

    rows, _ = rows_of(SITE)
    means = interval_means(rows, count)
    left, sizes, _ = np.linalg.svd(means - means.mean(0), full_matrices=False)
    chance = [
        np.linalg.svd(some - some.mean(0), compute_uv=False)
        for some in (interval_means(rows, rng.permutation(count)) for _ in range(SHUFFLES))
    ]
    moves = means[list(REACHED)] - means[BEGINNING]
    others = other_moves(rows, interval_of(count), rng)
    others *= np.linalg.norm(moves[-1])
    begun, ended = beginnings_and_ends(texts[:HELD_OUT])
    from_begin = breaks(client, begun, np.concatenate([moves, -moves[-1:], others]))
    from_end = breaks(client, ended, np.concatenate([-moves[-1:], others]))
    return Found(
        by_tokens=explained(new_count, new_said),
        explained=found[:, 0],
        beyond=found[:, 1],
        shuffled=found[:, 2],
        curve=(left * sizes)[:, :2],
        flat=(two_of(sizes), max(map(two_of, chance))),
        spread=float((sizes**2).sum() / np.mean([(each**2).sum() for each in chance])),
        moved=from_begin[: len(moves)],
        moved_off=from_begin[len(moves)],
        moved_back=from_end[0],
        other=from_begin[len(moves) + 1 :],
        other_back=from_end[1:],
    )


def wrapped(rng: np.random.Generator) -> str:
    """Sentences in random order, in lines of at most `WIDTH` characters."""
    lines = [""]
    for word in " ".join(rng.permutation(SENTENCES)).split():
        if len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:LINES])


def characters(tokens: tuple[str, ...]) -> np.ndarray:
    """Of each token how many characters its line has with it."""
    text, found = "", []
    for token in tokens:
        text = (text + token).rpartition("\n")[2]
        found.append(len(text))
    return np.array(found)


def tokens_of_line(tokens: tuple[str, ...]) -> np.ndarray:
    """Of each token how many its line has with it."""
    found, number = [], 0
    for token in tokens:
        number = 0 if "\n" in token else number + 1
        found.append(number)
    return np.array(found)


def late(tokens: tuple[str, ...]) -> np.ndarray:
    """Which tokens are behind the first lines."""
    return np.cumsum(["\n" in token for token in tokens]) >= FIRST_LINES


def ridge(rows: np.ndarray, values: np.ndarray, new_rows: np.ndarray) -> np.ndarray:
    """What ridge regression says of new rows."""
    mean, size = rows.mean(0), rows.std(0) + 1e-6
    known = (rows - mean) / size
    penalty = RIDGE * np.eye(rows.shape[1])
    weights = np.linalg.solve(known.T @ known + penalty, known.T @ (values - values.mean()))
    return (new_rows - mean) / size @ weights + values.mean()


def explained(values: np.ndarray, said: np.ndarray) -> float:
    return float(1 - ((values - said) ** 2).sum() / ((values - values.mean()) ** 2).sum())


def interval_of(count: np.ndarray) -> np.ndarray:
    return np.clip(np.searchsorted(EDGES, count, side="left") - 1, 0, len(EDGES) - 2)


def interval_means(rows: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The mean row of each interval of the count, [intervals, width]."""
    return np.stack([rows[interval_of(count) == each].mean(0) for each in range(len(EDGES) - 1)])


def two_of(sizes: np.ndarray) -> float:
    """The part of the first two components."""
    return float((sizes[:2] ** 2).sum() / (sizes**2).sum())


def other_moves(rows: np.ndarray, interval: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Directions of length 1, half of them random, half from a row to another of the same interval:
    such as rows differ by, but for the count. [OTHER, width]."""
    found = list(rng.standard_normal((OTHER // 2, rows.shape[1])))
    for each in rng.choice(len(EDGES) - 1, OTHER - len(found)):
        one, another = rng.choice(np.flatnonzero(interval == each), 2, replace=False)
        found.append(rows[another] - rows[one])
    moves = np.stack(found)
    return moves / np.linalg.norm(moves, axis=1, keepdims=True)


def beginnings_and_ends(texts: list[str]) -> tuple[list[str], list[str]]:
    """Texts up to a word that ends near the twelfth character of a line, and up to its last."""
    begun, ended = [], []
    for text in texts:
        lines = text.split("\n")
        for number in range(FIRST_LINES, FIRST_LINES + MOVED_LINES):
            line = lines[number]
            begun.append("\n".join([*lines[:number], line[: line.index(" ", 11)]]))
            ended.append("\n".join(lines[: number + 1]))
    return begun, ended


def breaks(client: actserve.Client, prompts: list[str], moves: np.ndarray) -> tuple[float, ...]:
    """By how much moves of the last row raise the log probability of a line break, on average."""
    vectors = moves.astype(np.float32)
    edits = [[], *([actserve.Add(SITE, each, positions="last")] for each in vectors)]
    runs = client.fetch(
        prompts * len(edits),
        predictions=actserve.Predict(positions="last", token_ids="\n"),
        intervene=[each for each in edits for _ in prompts],
        progress=False,
    )
    told = [run.predictions["final_norm"].token_logprobs[0, 0] for run in runs]
    plain, *changed = np.array(told).reshape(len(edits), len(prompts)).mean(1)
    return tuple(float(each - plain) for each in changed)


def draw(found: Found, path: Path) -> None:
    """The curve of the mean rows, and what moves along it do."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "actserve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.5, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*found.curve.T, color="0.8", zorder=1)
        points = left.scatter(*found.curve.T, c=EDGES[1:], cmap="viridis", zorder=2)
        figure.colorbar(points, ax=left, label="characters in the line, up to")
        left.set_xlabel(f"first component of mean rows at {SITE}")
        left.set_ylabel("second component")
        reached = EDGES[[each + 1 for each in REACHED]]
        right.plot(reached, found.moved, marker="o", label="to another count")
        right.scatter([reached[-1]] * len(found.other), found.other, color="0.6", label="elsewhere")
        right.axhline(0, color="0.8", zorder=0)
        right.set_xlabel("characters that a row is moved to, up to")
        right.set_ylabel("log probability of a line break, change")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument(
        "--picture", type=Path, help="draw the curve, and what moves along it do, into this file"
    )
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served)
    print(found)
    if asked.picture:
        draw(found, asked.picture)
    found.check()
