"""What is shown of attribution graphs."""

from typing import TYPE_CHECKING

from actserve._show.cards import Card, Cell, Line, Part, Table
from actserve._show.cells import number, share
from actserve._show.scales import magnitude
from actserve._show.token_text import caption, visible

if TYPE_CHECKING:
    from actserve.graphs import AttributionGraph, GraphNode, GraphTest

_NEURONS = 15
_LOGITS = 10
_TARGETS = 2
"""What a neuron leads to, as far as it is told."""


def graph_card(graph: "AttributionGraph") -> Card:
    """Where the influence is, by token; what is predicted; and the most influential neurons."""
    influence = graph.influence_by_token()
    scale = magnitude("share of influence", 0.0, float(max(influence, default=0.0)) or 1.0)
    line = Line(
        "",
        tuple(
            Cell(visible(token), scale.color(float(part)), f"position {at}: {float(part):.1%}")
            for at, (token, part) in enumerate(zip(graph.tokens, influence, strict=True))
        ),
        scale,
    )
    predicted = Table(
        ("predicted", "probability"),
        tuple(
            (
                Cell(caption(node.label)),
                Cell(share(node.probability or 0.0), bar=node.probability),
            )
            for node in graph.logits[:_LOGITS]
        ),
    )
    parts: list[Part] = [line, predicted]
    shown = graph.units[:_NEURONS]
    if shown:
        parts.append(
            Table(
                ("unit", "at", "token", "activation", "influence", "adds most to"),
                tuple(_neuron(graph, node) for node in shown),
            )
        )
    notes = [f"{len(graph.nodes)} nodes and {len(graph.weights)} edges."]
    if len(shown) < len(graph.units):
        notes.append(f"{len(shown)} of {len(graph.units)} units are shown; see graph.units.")
    return Card(f"Attribution graph {caption(graph.id)}", tuple(parts), tuple(notes))


def ablation_card(test: "GraphTest") -> Card:
    """Of each predicted token what the graph said, and what happened."""
    rows = tuple(
        (
            Cell(caption(node.label)),
            Cell(number(float(predicted))),
            Cell(number(float(measured))),
            Cell(number(float(before))),
            Cell(number(float(after))),
        )
        for node, predicted, measured, before, after in zip(
            test.graph.logits,
            test.predicted,
            test.measured,
            test.logprobs_before,
            test.logprobs_after,
            strict=True,
        )
    )
    columns = ("predicted", "change said", "change measured", "log prob before", "after")
    note = (
        f"Correlation {test.correlation:.3f}. Changes are of logits less their mean over these "
        "tokens."
    )
    return Card(
        f"{len(test.nodes)} {test.nodes[0].kind}s ablated", (Table(columns, rows),), (note,)
    )


def _neuron(graph: "AttributionGraph", node: "GraphNode") -> tuple[Cell, ...]:
    leads = [
        f"{each.label} {'+' if weight > 0 else '−'}{abs(weight):.2g}"
        for each, weight in graph.out_of(node)[:_TARGETS]
    ]
    return (
        Cell(node.label),
        Cell(str(node.position)),
        Cell(visible(graph.tokens[node.position])),
        Cell(number(node.activation or 0.0)),
        Cell(number(node.influence)),
        Cell(caption(", ".join(leads), 80)),
    )
