"""A thought is put into the model: does it report the thought, and does it notice one?

    make serve                                        # in another terminal
    python examples/injected_thoughts.py              # or with the address of a server

A thought is the difference of what the model has in mind at "Tell me about music" from the mean
over other subjects, and is added to every token of a question at one layer, as a part of the length
of a row (Lindsey, "Emergent Introspective Awareness in Large Language Models", 2025). The more of
it, the likelier is the word for it as the answer to "What is it about?": dose and response. Three
controls stand beside that: the words for other thoughts, random directions of the same length, and
a sentence that asks for no thought at all. If the word rises there too, it was put into the model's
mouth, and a report is no sign that the model looks at itself. And asked whether a thought was put
there, a model that notices says yes more readily for a thought than for a random direction, and
than to another question.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import actserve

THOUGHTS = ("ocean", "music", "war", "love", "money", "bread", "winter", "school")
SITE = "resid_post.10"
DOSES = (0.0, 0.1, 0.2, 0.3, 0.4)
"""How long the added vector is, as a part of the mean norm of the question's rows."""
RANDOM = 8

REPORT = "Question: A thought was put into your mind. What is it about?\nAnswer: It is about the"
ELSEWHERE = "The man at the door was looking for the"
NOTICE = "Question: Was a thought put into your mind? Say yes or no.\nAnswer:"
UNRELATED = "Question: Is the old bridge made of stone? Say yes or no.\nAnswer:"


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured, by dose. Log probabilities of the words for thoughts, the mean over all
    that were put there."""

    own: np.ndarray
    """Of the word for the thought."""
    others: np.ndarray
    """Of the words for other thoughts."""
    random: np.ndarray
    """Of all words, with random directions."""
    elsewhere: np.ndarray
    """Of the word for the thought, in a sentence that asks for none."""
    noticed: np.ndarray
    """log P(Yes) - log P(No) as the answer to whether there is a thought, less the same of an
    unrelated question, with a thought in both."""
    noticed_random: np.ndarray
    """The same with random directions, of which `spread` is the standard deviation."""
    spread: np.ndarray

    def check(self) -> None:
        """The report follows the dose, is no more than steering, and nothing is noticed. Raises
        `AssertionError`."""
        assert (np.diff(self.own) > 0).all(), f"more of a thought is less said: {self.own}"
        rise = self.own - self.own[0]
        for name in ("others", "random"):
            control = getattr(self, name)
            assert rise[-1] > 2 + (control - control[0])[-1], f"{name} rise as far: {control}"
        elsewhere = self.elsewhere - self.elsewhere[0]
        assert elsewhere[-1] > rise[-1] / 2, f"it is said where it is asked for alone: {elsewhere}"
        more = self.noticed - self.noticed_random
        assert (more <= 2 * self.spread)[1:].all(), f"it notices thoughts: {more}, {self.spread}"

    def __str__(self) -> str:
        lines = ["dose   own word   other words   random   own word elsewhere   noticed   random"]
        lines += [
            f"{dose:4.1f} {own:10.2f} {others:13.2f} {random:8.2f} {elsewhere:20.2f} "
            f"{noticed:9.2f} {chance:8.2f}"
            for dose, own, others, random, elsewhere, noticed, chance in zip(
                DOSES,
                self.own,
                self.others,
                self.random,
                self.elsewhere,
                self.noticed,
                self.noticed_random,
                strict=True,
            )
        ]
        return "\n".join(lines)


def measure(client: actserve.Client) -> Found:
    """Measures a served model."""
    subjects = client.fetch(
        [f"Tell me about {thought}" for thought in THOUGHTS], SITE, positions="last", progress=False
    )
    rows = np.stack([subject[SITE][0] for subject in subjects])
    thoughts = rows - rows.mean(0)
    random = np.random.default_rng(0).standard_normal((RANDOM, rows.shape[1]))
    # Without the first token, whose row is far longer than the others.
    asked = client.fetch(REPORT, SITE, positions=slice(1, None))[SITE]
    length = np.linalg.norm(asked, axis=1).mean()
    vectors = np.concatenate([thoughts, random])
    vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f" {thought}" for thought in THOUGHTS]
    # [doses, vectors, tokens]
    report = logprobs(client, REPORT, vectors, words)
    elsewhere = logprobs(client, ELSEWHERE, vectors, words)
    answers = [logprobs(client, asked, vectors, (" Yes", " No")) for asked in (NOTICE, UNRELATED)]
    asked_of, unrelated = (each[..., 0] - each[..., 1] for each in answers)
    count = len(THOUGHTS)
    own = np.eye(count, dtype=bool)
    noticed, noticed_random = np.split(asked_of - unrelated, [count], axis=1)
    return Found(
        own=report[:, :count][:, own].mean(1),
        others=report[:, :count][:, ~own].mean(1),
        random=report[:, count:].mean((1, 2)),
        elsewhere=elsewhere[:, :count][:, own].mean(1),
        noticed=noticed.mean(1),
        noticed_random=noticed_random.mean(1),
        spread=noticed_random.std(1),
    )


def logprobs(
    client: actserve.Client, prompt: str, vectors: np.ndarray, tokens: Sequence[str]
) -> np.ndarray:
    """Of tokens as what comes next, for each dose of each vector."""
    edits = [
        [actserve.Add(SITE, vector.astype(np.float32), dose, positions=slice(1, None))]
        for dose in DOSES
        for vector in vectors
    ]
    runs = client.fetch(
        [prompt] * len(edits),
        predictions=actserve.Predict(positions="last", token_ids=list(tokens)),
        intervene=edits,
        progress=False,
    )
    told = [run.predictions["final_norm"].token_logprobs[0] for run in runs]
    return np.array(told).reshape(len(DOSES), len(vectors), len(tokens))


def draw(found: Found, path: Path) -> None:
    """Log probability against dose."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "actserve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.5, 2.8), layout="constrained")
        said, noticed = figure.subplots(1, 2)
        said.plot(DOSES, found.own, marker="o", ms=3, label="the thought's word")
        said.plot(DOSES, found.elsewhere, marker="o", ms=3, label="the same, not asked for")
        said.plot(DOSES, found.others, color="0.4", ls="--", label="other words")
        said.plot(DOSES, found.random, color="0.6", ls=":", label="random directions")
        said.set_ylabel("log probability")
        noticed.plot(DOSES, found.noticed, marker="o", ms=3, label="a thought")
        low, high = (found.noticed_random + side * found.spread for side in (-2, 2))
        noticed.fill_between(DOSES, low, high, color="0.9", label="random directions, 2 s.d.")
        noticed.set_ylabel("yes rather than no, less unrelated")
        for axes in (said, noticed):
            axes.set_xlabel("dose, of the length of a row")
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument("--picture", type=Path, help="draw doses into this file")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served)
    print(found)
    if asked.picture:
        draw(found, asked.picture)
    found.check()
