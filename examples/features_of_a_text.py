"""What is a text about, by the features of a dictionary, and does the model use them?

    make serve ARGS="--dictionary smollm2-135m"       # in another terminal
    python examples/features_of_a_text.py             # or with the address of a server

Sentences are on four topics. The features of each topic are found on half of them, as those whose
largest activation in a sentence is highest above what they have elsewhere. On the other half we ask
whether they tell the topic, beside features that were found with shuffled topics; and how much less
likely a sentence is without the features of its topic, beside without as many others that are
active in it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import actserve

TOPICS = {
    "water": (
        "The river ran through the valley and met the sea.",
        "Waves broke over the harbour wall all night.",
        "They swam across the lake before the rain came.",
        "A boat drifted down the stream towards the ocean.",
        "The flood filled the canal and then the fields.",
        "Fish were jumping in the pond behind the mill.",
    ),
    "money": (
        "The bank raised the interest on every loan.",
        "She paid the bill and kept the change.",
        "Investors sold their shares when prices fell.",
        "He borrowed ten dollars and never paid them back.",
        "The company lost a million in profit this year.",
        "Taxes on wages were lower than the budget said.",
    ),
    "illness": (
        "The doctor gave the patient a new medicine.",
        "A fever kept the child in hospital for days.",
        "The nurse cleaned the wound before the surgery.",
        "Symptoms of the disease are pain and a cough.",
        "A vaccine protects most people from the virus.",
        "The treatment cured her infection within a week.",
    ),
    "music": (
        "The orchestra played the last symphony twice.",
        "She sang the melody while he played the guitar.",
        "Their new album has ten songs and a long solo.",
        "The pianist practised the concert for months.",
        "A drummer and a singer started the band.",
        "The choir learned a hymn for the opera.",
    ),
}
"""Features are found on the first half of each, and looked at on the second."""
FEATURES = 8
"""Of each topic."""
SHUFFLES, RANDOM_SETS = 20, 4


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured."""

    words: dict[str, tuple[str, ...]]
    """Of each new sentence of a topic the token at which a feature of the topic is largest."""
    activations: np.ndarray
    """Of the features of each topic in the sentences that they were not found on, their mean,
    [sentences, topics]."""
    told: float
    """Of those sentences, the part whose topic's features are the most active ones."""
    shuffled: float
    """The same of features that were found with shuffled topics, the mean."""
    lost: float
    """Nats a token that a sentence loses without the features of its topic."""
    others: tuple[float, ...]
    """The same without as many others that are active in it, as sets at random."""

    def check(self) -> None:
        """The features tell topics, and the model uses them. Raises `AssertionError`."""
        assert self.told > 0.7, f"{self.told:.0%} of the sentences are told"
        assert self.shuffled < 0.5, f"so are {self.shuffled:.0%} with shuffled topics"
        assert self.lost > 2 * max(self.others), f"{self.lost:.3f}, others {self.others}"

    def __str__(self) -> str:
        words = "\n".join(f"{topic}:{''.join(said)}" for topic, said in self.words.items())
        others = ", ".join(f"{each:.3f}" for each in self.others)
        return (
            f"{words}\n{self.told:.0%} of held-out sentences are told by their features, "
            f"{self.shuffled:.0%} where topics were shuffled\na token loses {self.lost:.3f} nats "
            f"without the features of its topic, without others {others}"
        )


def measure(client: actserve.Client, dictionary: str = "smollm2-135m") -> Found:
    """Measures a served model by a dictionary of the server."""
    sae = client.dictionaries.get(dictionary)
    texts = [text for topic in TOPICS.values() for text in topic]
    topics = np.repeat(np.arange(len(TOPICS)), len(texts) // len(TOPICS))
    held_out = np.arange(len(texts)) % 6 >= 3
    active = np.zeros((len(texts), sae.features), np.float32)
    peaks = np.zeros(active.shape, int)
    for at, totals in enumerate(client.features.totals(texts, dictionary)):
        active[at, totals.indices], peaks[at, totals.indices] = totals.maxima, totals.peaks
    chosen = choose(active[~held_out], topics[~held_out])
    rng = np.random.default_rng(0)
    by_chance = [
        choose(active[~held_out], rng.permutation(topics[~held_out])) for _ in range(SHUFFLES)
    ]
    tested = active[held_out]
    means = strengths(tested, chosen)
    lost, *others = costs(client, sae, texts, held_out, chosen[topics], active, rng)
    words: dict[str, tuple[str, ...]] = dict.fromkeys(TOPICS, ())
    for at in np.flatnonzero(held_out).tolist():
        largest = chosen[topics[at]][active[at, chosen[topics[at]]].argmax()]
        name = [*TOPICS][topics[at]]
        words[name] += (client.tokenize(texts[at]).tokens[peaks[at, largest]],)
    return Found(
        words,
        means,
        told(means, topics[held_out]),
        float(np.mean([told(strengths(tested, each), topics[held_out]) for each in by_chance])),
        lost,
        tuple(others),
    )


def choose(active: np.ndarray, topics: np.ndarray) -> np.ndarray:
    """The features of each topic, [topics, FEATURES]: relative to how large each feature is, those
    that are highest above the other topics."""
    scaled = active / np.maximum(active.max(0), 1e-6)
    here = np.stack([scaled[topics == each].mean(0) for each in range(len(TOPICS))])
    elsewhere = np.stack([scaled[topics != each].mean(0) for each in range(len(TOPICS))])
    # By activation where several are never active elsewhere.
    size = np.stack([active[topics == each].mean(0) for each in range(len(TOPICS))])
    return np.argsort(-(here - elsewhere) * size, axis=1, kind="stable")[:, :FEATURES]


def strengths(active: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The mean of each topic's features in each sentence, [sentences, topics]."""
    return active[:, chosen].mean(-1)


def told(means: np.ndarray, topics: np.ndarray) -> float:
    return float((means.argmax(1) == topics).mean())


def costs(
    client: actserve.Client,
    sae: actserve.StoredDictionary,
    texts: list[str],
    held_out: np.ndarray,
    chosen: np.ndarray,
    active: np.ndarray,
    rng: np.random.Generator,
) -> list[float]:
    """Nats that a token of held-out sentences loses without some of its features: those of
    its topic, then others that are active."""
    at: list[int] = np.flatnonzero(held_out).tolist()
    sets: list[list[np.ndarray]] = [[chosen[each] for each in at]]
    for _ in range(RANDOM_SETS):
        drawn = [
            rng.choice(np.setdiff1d(np.flatnonzero(active[each]), chosen[each]), FEATURES, False)
            for each in at
        ]
        sets.append(drawn)
    spoken = [texts[each] for each in at]
    plain = client.score(spoken, progress=False)
    found = []
    for each in sets:
        edits = [[sae.ablate(features.tolist())] for features in each]
        without = client.score(spoken, intervene=edits, progress=False)
        lost = [a.mean - b.mean for a, b in zip(plain, without, strict=True)]
        found.append(float(np.mean(lost)))
    return found


def draw(found: Found, path: Path) -> None:
    """How active the features of each topic are in each sentence."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "actserve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5, 2.2), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(found.activations.T, cmap="Blues", aspect="auto")
        axes.set_yticks(range(len(TOPICS)), [f"features of {topic}" for topic in TOPICS])
        each = len(found.activations) // len(TOPICS)
        axes.set_xticks([each * at + (each - 1) / 2 for at in range(len(TOPICS))], list(TOPICS))
        axes.set_xlabel("three new sentences of each topic")
        figure.colorbar(image, label="mean activation")
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("server", nargs="?", default="localhost:50051")
    parser.add_argument("--dictionary", default="smollm2-135m")
    parser.add_argument("--picture", type=Path, help="draw activations into this file")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served, asked.dictionary)
    print(found)
    if asked.picture:
        draw(found, asked.picture)
    found.check()
