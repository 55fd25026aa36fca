"""What is shown of each study."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from actserve._show.bounds import COLUMNS, ROWS, TOKENS_OF_TEXT, ends, left_out
from actserve._show.cards import GAP, Card, Cell, HeatMap, Line, Panels, Part, Table
from actserve._show.cells import (
    MakeCell,
    grid,
    labels,
    share,
    token_cells,
    token_labels,
    token_title,
    word,
)
from actserve._show.scales import Scale, change, probability, surprise
from actserve._show.token_text import prose, visible

if TYPE_CHECKING:
    from actserve.studies import AttentionMap, Comparison, LogitLens, PatchGrid, TextScore

_ASKED = 4
"""Tokens asked about that have a heat map of their own."""
_HEADS = 12
"""Small heat maps of heads: as many as a small model has in a layer."""
_PATTERN_CELLS = 3000
"""Cells of all heads together, which keeps the HTML of a study under half a megabyte."""
_CANDIDATES = 5
"""Likely tokens that the title of a cell names."""
_LEAST_LIKELY = 5
"""Tokens of a text that are named with their numbers."""
_PATTERN_TOKENS = 40
"""Tokens of the pattern of one head."""
_PARTED = "▶"
"""Before the first word in which two texts differ."""


def lens_card(lens: "LogitLens") -> Card:
    rows, columns = ends(len(lens.sites), ROWS), ends(len(lens.positions), COLUMNS)
    scale = probability()

    def where(site: int, at: int) -> str:
        return f"{lens.sites[site]}, after {token_title(lens.tokens, lens.positions[at])}"

    def likeliest(site: int, at: int) -> Cell:
        found = zip(
            lens.top_tokens[site, at, :_CANDIDATES],
            lens.top_logprobs[site, at, :_CANDIDATES].tolist(),
            strict=True,
        )
        pairs = [(visible(str(token)), float(np.exp(logprob))) for token, logprob in found]
        title = "\n".join(f"{token} {chance:.3f}" for token, chance in pairs)
        return Cell(
            word(str(lens.top_tokens[site, at, 0])),
            scale.color(pairs[0][1]),
            f"{where(site, at)}\n{title}",
            number=share(pairs[0][1]),
        )

    def of_asked(which: int, site: int, at: int) -> Cell:
        logprob = float(lens.logprobs[site, at, which])
        chance = float(np.exp(logprob))
        title = f"{where(site, at)}\nlog probability {logprob:.3f}"
        return Cell(share(chance), scale.color(chance), title)

    def heat(label: str, cell: MakeCell) -> HeatMap:
        return HeatMap(
            label,
            labels(rows, lens.sites),
            token_labels(columns, lens.tokens, lens.positions.tolist()),
            grid(rows, columns, cell),
            scale,
        )

    maps = [heat("the likeliest next token", likeliest)] if lens.top_ids.shape[2] else []
    maps += [
        heat(f"probability of {visible(token)}", partial(of_asked, which))
        for which, token in enumerate(lens.asked[:_ASKED])
    ]
    panels = Panels(
        tuple(maps), True, "heat maps", len(maps), "ask about fewer tokens to see the others"
    )
    notes = left_out(columns, len(lens.positions), "positions")
    notes += left_out(rows, len(lens.sites), "sites")
    if (more := len(lens.asked) - _ASKED) > 0:
        notes += [f"{more} of the tokens asked about are left out; `logprobs` has them."]
    return Card("Logit lens: what comes next, by depth", (panels,), tuple(notes))


def attention_card(attention: "AttentionMap") -> Card:
    pairs = [
        (layer, head)
        for layer in range(len(attention.layers))
        for head in range(len(attention.heads))
    ]
    shown = pairs[:_HEADS]
    limit = min(_PATTERN_TOKENS, int((_PATTERN_CELLS / max(len(shown), 1)) ** 0.5))
    keys = ends(len(attention.tokens), limit)
    queries = ends(len(attention.queries), limit)
    scale = Scale("weight", 0.0, 1.0, probability().stops)

    def heat(layer: int, head: int) -> HeatMap:
        def weight(query: int, key: int) -> Cell:
            if key > attention.queries[query]:
                return Cell("")  # A later token, which no query sees.
            value = float(attention.weights[layer, head, query, key])
            title = (
                f"{visible(attention.tokens[attention.queries[query]])} to "
                f"{visible(attention.tokens[key])}: {value:.3f}"
            )
            return Cell(share(value), scale.color(value), title)

        return HeatMap(
            f"layer {attention.layers[layer]}, head {attention.heads[head]}",
            token_labels(queries, attention.tokens, attention.queries.tolist()),
            token_labels(keys, attention.tokens, range(len(attention.tokens))),
            grid(queries, keys, weight),
            scale,
        )

    notes = ["A row is a token that attends, a column one that it attends to."]
    notes += left_out(queries, len(attention.queries), "queries")
    notes += left_out(keys, len(attention.tokens), "keys")
    layers, heads = (each[-1] if each else 0 for each in (attention.layers, attention.heads))
    panels = Panels(
        tuple(heat(*pair) for pair in shown),
        False,
        "heads",
        len(pairs),
        f"name the layers and heads to see, as with layers=[{layers}], heads=[{heads}], or on the "
        f"command line --layers {layers} --heads {heads}",
    )
    return Card("Attention", (panels,), tuple(notes))


def patch_card(patched: "PatchGrid") -> Card:
    rows, columns = ends(len(patched.sites), ROWS), ends(len(patched.positions), COLUMNS)
    restored = patched.restored
    scale = change("restored", 1.0)
    measured = "log probability" if len(patched.answers) == 1 else "difference of log probabilities"

    def cell(site: int, at: int) -> Cell:
        back, value = float(restored[site, at]), float(patched.values[site, at])
        title = (
            f"{patched.sites[site]} at {token_title(patched.tokens, patched.positions[at])}\n"
            f"restored {back:.3f}\n{measured} {value:.3f}"
        )
        return Cell(share(back), scale.color(back), title)

    def label(column: int | None) -> Cell:
        if column is None:
            return GAP
        at = int(patched.positions[column])
        before, after = patched.clean_tokens[at], patched.tokens[at]
        same = before == after
        return Cell(
            word(after) if same else f"{word(after)} ({word(before)})",
            title=token_title(patched.tokens, at)
            + ("" if same else f", in the clean prompt {visible(before)}"),
        )

    answers = " less ".join(map(visible, map(str, patched.answers)))
    notes = [
        f"The {measured} of {answers}: {patched.clean:.3f} clean, {patched.corrupt:.3f} corrupt.",
        "In brackets: the token of the clean prompt, where it is another.",
    ]
    if np.isnan(restored).all():
        notes.append("The clean and the corrupt run do not differ, so nothing can be restored.")
    notes += left_out(columns, len(patched.positions), "positions")
    notes += left_out(rows, len(patched.sites), "sites")
    heat = HeatMap(
        "how far each row of the clean run brings its answer back",
        labels(rows, patched.sites),
        tuple(map(label, columns)),
        grid(rows, columns, cell),
        scale,
    )
    return Card("Activation patching", (heat,), tuple(notes))


def score_card(score: "TextScore") -> Card:
    scale = surprise()

    def cell(at: int) -> Cell:
        logprob = float(score.logprobs[at])
        if np.isnan(logprob):
            return Cell(visible(score.tokens[at]), title="nothing predicts it")
        title = f"log probability {logprob:.3f}, probability {np.exp(logprob):.3g}"
        return Cell(visible(score.tokens[at]), scale.color(logprob), title)

    summary = (
        f"Text score: log probability {score.total:.3f} in all, {score.mean:.3f} a token, "
        f"perplexity {score.perplexity:.4g}"
    )
    known = np.flatnonzero(~np.isnan(score.logprobs))
    least = known[np.argsort(score.logprobs[known], kind="stable")][:_LEAST_LIKELY].tolist()
    rows = tuple(
        (Cell(visible(score.tokens[at])), Cell(str(at)), Cell(f"{score.logprobs[at]:.3f}"))
        for at in least
    )
    parts: tuple[Part, ...] = (Line("", token_cells(score.tokens, cell), scale),)
    parts += (Table(("least likely", "position", "log probability"), rows),) if rows else ()
    notes = left_out(ends(len(score.tokens), TOKENS_OF_TEXT), len(score.tokens), "tokens")
    return Card(summary, parts, tuple(notes))


def _parted(one: str, other: str) -> tuple[str, str]:
    """Two texts, each with a mark before the first word in which they differ."""
    if one == other:
        return one, other
    pairs = enumerate(zip(one, other, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    at = same - len(one[:same].split(" ")[-1])  # Where that word begins.
    return f"{one[:at]}{_PARTED}{one[at:]}", f"{other[:at]}{_PARTED}{other[at:]}"


def comparison_card(comparison: "Comparison") -> Card:
    said = _parted(prose(comparison.plain.text), prose(comparison.steered.text))
    texts = Table(("plain", "steered"), (tuple(map(Cell, said)),))
    before, after = np.exp(comparison.plain_logprobs), np.exp(comparison.steered_logprobs)
    raised = comparison.steered_logprobs - comparison.plain_logprobs
    shown = ends(len(comparison.next_tokens), ROWS)
    rows = tuple(
        (GAP, *3 * (Cell(""),))
        if at is None
        else (
            Cell(visible(comparison.next_tokens[at]), title=f"id {comparison.next_ids[at]}"),
            Cell(share(float(before[at])), "#8a8f98", bar=float(before[at])),
            Cell(share(float(after[at])), "#2f7ad1", bar=float(after[at])),
            Cell(f"{raised[at]:+.2f}"),
        )
        for at in shown
    )
    likely = Table(("next token", "plain", "steered", "log probability raised by"), rows)
    prompt = Line("prompt", token_cells(comparison.tokens))
    parts: tuple[Part, ...] = (prompt, texts, likely)
    notes = left_out(shown, len(comparison.next_tokens), "next tokens")
    notes += left_out(
        ends(len(comparison.tokens), TOKENS_OF_TEXT), len(comparison.tokens), "tokens"
    )
    if comparison.parts_at is None:
        notes.append("Both say the same.")
    elif said[0] != said[1]:
        notes.append(f"{_PARTED} is where they part, at generated token {comparison.parts_at}.")
    return Card("Comparison: plain and steered", parts, tuple(notes))
