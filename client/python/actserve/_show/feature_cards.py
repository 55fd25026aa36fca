"""What is shown of features, of dictionaries, and of a look at one row."""

from typing import TYPE_CHECKING

from actserve._show.bounds import ROWS, TOKENS_OF_TEXT, ends, left_out
from actserve._show.cards import GAP, Card, Cell, Line, Part, Table
from actserve._show.cells import number, share, token_cells, token_title
from actserve._show.scales import magnitude
from actserve._show.token_text import cut, prose, visible

if TYPE_CHECKING:
    from actserve.dictionaries import StoredDictionary
    from actserve.features import ActiveFeature, ChosenFeatures, FeatureTotals, TopFeatures
    from actserve.looks import Look

_NAMED = 4
"""Features of a token that are named beside it."""
_LABEL = 40
"""Characters of a label in a table."""


def top_features_card(top: "TopFeatures") -> Card:
    shown = ends(len(top.positions), ROWS)
    rows = tuple(
        (GAP, Cell(""))
        if at is None
        else (
            Cell(token_title(top.tokens, int(top.positions[at]))),
            Cell(", ".join(map(_short, top.at(int(top.positions[at]))[:_NAMED])) or "none"),
        )
        for at in shown
    )
    notes = left_out(shown, len(top.positions), "positions")
    if len(top.positions) and top.positions[0] == 0:
        notes.append("In most models position 0 is an attention sink, whose features say little.")
    return Card(
        f"Features of {visible(top.dictionary, _LABEL)} at {visible(top.site, _LABEL)}",
        (Table(("token", "largest features"), rows),),
        tuple(notes),
    )


def chosen_features_card(chosen: "ChosenFeatures") -> Card:
    parts: list[Part] = []
    places = {int(position): row for row, position in enumerate(chosen.positions)}
    for column, feature in enumerate(chosen.features[:ROWS]):
        values = chosen.values[:, column]
        scale = magnitude("feature", 0.0, float(values.max(initial=0)) or 1.0)

        def cell(at: int, values=values, scale=scale) -> Cell:  # type: ignore[no-untyped-def]
            if at not in places or not values[places[at]] > 0:
                return Cell(visible(chosen.tokens[at]))
            value = float(values[places[at]])
            return Cell(visible(chosen.tokens[at]), scale.color(value), number(value))

        label = chosen.labels.get(feature, "")
        name = f"{feature} {visible(label, _LABEL)}" if label else str(feature)
        parts.append(Line(name, token_cells(chosen.tokens, cell), scale))
    notes = left_out(ends(len(chosen.tokens), TOKENS_OF_TEXT), len(chosen.tokens), "tokens")
    return Card(f"Features of {visible(chosen.dictionary, _LABEL)}", tuple(parts), tuple(notes))


def totals_card(totals: "FeatureTotals") -> Card:
    rows = tuple(
        (
            Cell(str(each.index)),
            Cell(number(each.sum)),
            Cell(number(each.maximum)),
            Cell(str(each.count)),
            Cell(token_title(totals.tokens, each.position)),
            Cell(visible(each.label, _LABEL) if each.label else ""),
        )
        for each in totals.top(ROWS)
    )
    head = ("feature", "sum", "largest", "tokens", "where", "label")
    title = f"{len(totals.indices)} active features of {visible(totals.dictionary, _LABEL)}"
    return Card(title, (Table(head, rows),), ())


def dictionary_card(dictionary: "StoredDictionary") -> Card:
    told = {
        "kind": dictionary.kind,
        "reads": dictionary.site,
        "writes": ", ".join(dictionary.targets),
        "features": str(dictionary.features),
        "activation": dictionary.activation + (f" of {dictionary.k}" if dictionary.k else ""),
        "bytes": f"{dictionary.size_bytes:,}",
        "from": "the server's operator" if dictionary.of_server else "an upload",
    }
    if check := dictionary.check:
        told["explained"] = (
            f"{check.explained:.3f} of the variance of {check.tokens} rows; "
            f"{check.shuffled_explained:.3f} of shuffled ones"
        )
        told["active"] = f"{check.active_features:.1f} features a token"
    rows = tuple((Cell(name), Cell(visible(text, 80))) for name, text in told.items())
    return Card(f"Dictionary {visible(dictionary.id, 80)}", (Table(("", ""), rows),), ())


def look_card(look: "Look") -> Card:
    parts: list[Part] = [Line("prompt", token_cells(look.tokens))]
    if look.explanation:
        parts.append(Line("in words", (Cell(prose(look.explanation.text)),)))
    if look.features:
        raised = {each.feature: each.top_tokens[:_NAMED] for each in look.effects}
        rows = tuple(
            (
                Cell(str(each.index)),
                Cell(number(each.value)),
                Cell(visible(each.label, _LABEL) if each.label else ""),
                Cell(" ".join(visible(token) for token in raised.get(each.index, ()))),
            )
            for each in look.features[:ROWS]
        )
        parts.append(Table(("feature", "value", "label", "raises"), rows))
    count = max(len(look.lens), len(look.final))
    likely = tuple(
        tuple(
            Cell(f"{visible(told[at].token)} {share(told[at].probability)}")
            if at < len(told)
            else Cell("")
            for told in (look.lens, look.final)
        )
        for at in range(min(count, ROWS))
    )
    parts.append(Table(("next, at this depth", "next, in the end"), likely))
    title = f"{token_title(look.tokens, look.position)} at {visible(look.site, _LABEL)}"
    notes = (*look.disagreements, *look.missing)
    return Card(title, tuple(parts), tuple(prose(each) for each in notes))


def _short(feature: "ActiveFeature") -> str:
    label = f" {cut(visible(feature.label), _LABEL)}" if feature.label else ""
    return f"{feature.index}{label} {number(feature.value)}"
