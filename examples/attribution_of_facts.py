"""Attribution graphs of ten facts, against controls.

    python examples/attribution_of_facts.py --server localhost:50051

Of each fact the graph of the next token is made in the basis of MLP neurons, and three sets of
neurons are ablated in the model as it is: the most influential of the graph, as many neurons that
are active at random places, and the most active ones of all. If the graph says where the answer
comes from, the first set costs the answer more log probability than the others do.

The first neurons of a prompt are often those of an attention sink at position 0; they are left out
of all three sets, and their share of the influence is told apart.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import actserve
from actserve import AttributionGraph, GraphNode, Predict, Project

FACTS = (
    ("The capital of France is", " Paris"),
    ("The capital of Italy is", " Rome"),
    ("The capital of Japan is", " Tokyo"),
    ("The capital of Germany is", " Berlin"),
    ("The opposite of hot is", " cold"),
    ("The color of the sky is", " blue"),
    ("The first president of the United States was George", " Washington"),
    ("Two plus two equals", " four"),
    ("The Eiffel Tower is in the city of", " Paris"),
    ("Water is made of hydrogen and", " oxygen"),
)
COUNT = 20
"""Neurons that are ablated."""
RANDOM_SETS = 5

Place = tuple[int, int, int]
"""Layer, position and index of a neuron."""


@dataclass(frozen=True)
class Fact:
    """What was found of one fact. Log probabilities are of the answer."""

    prompt: str
    answer: str
    nodes: int
    by_token: list[float]
    """Shares of influence."""
    before: float
    top: float
    """After ablating the most influential neurons."""
    random: float
    """After ablating active ones at random; the mean over some sets."""
    active: float
    """After ablating the most active ones."""
    correlation: float
    """Of the change of the traced tokens' logits that the graph says with what was measured."""


def unit_rows(indices: list[int], width: int) -> np.ndarray:
    """A direction for each of some neurons."""
    rows = np.zeros((len(indices), width), np.float32)
    rows[np.arange(len(indices)), indices] = 1
    return rows


def ablations(places: list[Place], width: int) -> list[Project]:
    """What sets neurons to zero."""
    by_row: dict[tuple[int, int], list[int]] = {}
    for layer, position, index in places:
        by_row.setdefault((layer, position), []).append(index)
    return [
        Project(f"mlp_act.{layer}", unit_rows(indices, width), away=True, positions=[position])
        for (layer, position), indices in sorted(by_row.items())
    ]


def place(node: GraphNode) -> Place:
    assert node.layer is not None
    assert node.neuron is not None
    return node.layer, node.position, node.neuron


def look(client: actserve.Client, prompt: str, answer: str, nodes: int) -> Fact:
    """One fact: its graph, and what three sets of neurons do to the answer."""
    graph: AttributionGraph = client.graphs.create(prompt, max_nodes=nodes).wait()
    top = [node for node in graph.neurons if node.position > 0][:COUNT]
    rows = client.fetch(prompt, "mlp_act.*")
    # [layers, positions, neurons], without position 0.
    activations = np.stack([rows[f"mlp_act.{layer}"] for layer in range(len(rows))])[:, 1:]
    width = activations.shape[2]

    def places(flat: np.ndarray) -> list[Place]:
        layers, positions, indices = np.unravel_index(flat, activations.shape)
        return [
            (int(layer), int(position) + 1, int(index))
            for layer, position, index in zip(layers, positions, indices, strict=True)
        ]

    size = np.abs(activations).ravel()
    most_active = places(np.argsort(-size)[:COUNT])
    # Active: above the median, so that they are not ones that do nothing anyway.
    active = np.flatnonzero(size > np.median(size))
    numbers = np.random.default_rng(0)
    randoms = [places(numbers.choice(active, COUNT, replace=False)) for _ in range(RANDOM_SETS)]
    sets = [[], [place(node) for node in top], most_active, *randoms]
    runs = client.fetch(
        [prompt] * len(sets),
        predictions=Predict(positions="last", token_ids=[answer]),
        intervene=[ablations(each, width) for each in sets],
        progress=False,
    )
    before, after_top, after_active, *after_random = (
        float(run.predictions["final_norm"].token_logprobs[0, 0]) for run in runs
    )
    return Fact(
        prompt=prompt,
        answer=answer,
        nodes=len(graph.nodes),
        by_token=[round(float(each), 3) for each in graph.influence_by_token()],
        before=before,
        top=after_top,
        random=float(np.mean(after_random)),
        active=after_active,
        correlation=client.graphs.test(graph, top).correlation,
    )


@dataclass(frozen=True)
class Found:
    """What was found of all facts."""

    facts: tuple[Fact, ...]

    def drop(self, name: str) -> float:
        """How much log probability answers lose without a set of neurons, the mean."""
        return float(np.mean([fact.before - getattr(fact, name) for fact in self.facts]))

    def check(self) -> None:
        """What the graph names matters more than the controls. Raises `AssertionError`."""
        top, random, active = (self.drop(name) for name in ("top", "random", "active"))
        assert top > max(random, active), f"lost {top:.2f}, random {random:.2f}, {active:.2f}"

    def __str__(self) -> str:
        lines = ["answer          before     top  random  active  correlation  share of position 0"]
        lines += [
            f"{fact.answer:14} {fact.before:7.2f} {fact.top:7.2f} {fact.random:7.2f} "
            f"{fact.active:7.2f} {fact.correlation:12.2f} {fact.by_token[0]:20.0%}"
            for fact in self.facts
        ]
        drops = ", ".join(f"{name} {self.drop(name):.2f}" for name in ("top", "random", "active"))
        return "\n".join([*lines, f"mean drop: {drops}"])


def measure(
    client: actserve.Client, facts: Sequence[tuple[str, str]] = FACTS, nodes: int = 300
) -> Found:
    """Measures a served model."""
    return Found(tuple(look(client, prompt, answer, nodes) for prompt, answer in facts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--nodes", type=int, default=300, help="neurons of a graph at most")
    parser.add_argument("--facts", type=int, default=len(FACTS), help="how many to look at")
    parser.add_argument("--out", type=Path, help="where to write what was found, as JSON")
    asked = parser.parse_args()
    with actserve.Client(asked.server) as served:
        found = measure(served, FACTS[: asked.facts], asked.nodes)
    print(found)
    if asked.out:
        asked.out.write_text(json.dumps([asdict(fact) for fact in found.facts], indent=1))
    found.check()
