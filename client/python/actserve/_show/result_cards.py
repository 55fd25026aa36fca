"""What is shown of what a client reads, writes and explains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actserve._show.bounds import COLUMNS, ROWS, TOKENS_OF_TEXT, ends, left_out
from actserve._show.cards import GAP, Card, Cell, HeatMap, Line, Part, Table
from actserve._show.cells import grid, labels, number, share, token_cells, token_labels, word
from actserve._show.scales import magnitude, probability, surprise
from actserve._show.token_text import PROSE_CHARACTERS, prose, visible
from actserve.stored_vectors import Contrasted, VectorTerm, stored

if TYPE_CHECKING:
    from actserve.explanations import ExplainedText, Explanation
    from actserve.means import LabelMeans
    from actserve.models import Model
    from actserve.predictions import SitePredictions
    from actserve.results import Activations, Generation, Tokenized
    from actserve.steering_vectors import SteeringVector
    from actserve.stored_vectors import StoredVector

_LARGEST = 8
"""Elements of a vector that are shown, those furthest from zero."""


def activations_card(acts: "Activations") -> Card:
    parts: list[Part] = [Line("tokens", token_cells(acts.tokens))]
    notes = left_out(ends(len(acts.tokens), TOKENS_OF_TEXT), len(acts.tokens), "tokens")
    if there := _other_readouts(acts):
        parts.append(Table(("also there", "what"), tuple(there)))
    if len(acts) and len(acts.positions):
        heat, more = _norms(acts)
        parts.append(heat)
        notes += more
    elif not there:
        notes += ["Nothing was captured."]
    return Card("Activations", tuple(parts), tuple(notes))


def _norms(acts: "Activations") -> tuple[HeatMap, list[str]]:
    """The norm of each row, coloured by its logarithm: the first token's is often a hundred times
    that of others."""
    sites = [*acts]
    rows, columns = ends(len(sites), ROWS), ends(len(acts.positions), COLUMNS)
    some = [at for at in columns if at is not None]
    norms = {
        site: dict(
            zip(some, np.linalg.norm(acts[site][some].astype(np.float64), axis=-1), strict=True)
        )
        for site in (sites[row] for row in rows if row is not None)
    }
    logs = [np.log10(norm) for each in norms.values() for norm in each.values() if norm > 0]
    finite = [each for each in logs if np.isfinite(each)] or [0.0]
    scale = magnitude("log10 of the norm", round(min(finite), 1), round(max(finite), 1))

    def cell(row: int, at: int) -> Cell:
        norm = float(norms[sites[row]][at])
        color = scale.color(float(np.log10(norm))) if norm > 0 else None
        return Cell(number(norm), color, f"{sites[row]}: norm {norm:.6g}")

    shapes = [f"{site} {list(acts[site].shape)}" for site in sites]
    heat = HeatMap(
        "norm of each row",
        labels(rows, shapes),
        token_labels(columns, acts.tokens, acts.positions.tolist()),
        grid(rows, columns, cell),
        scale,
    )
    notes = left_out(columns, len(acts.positions), "positions")
    return heat, notes + left_out(rows, len(sites), "sites")


def _other_readouts(acts: "Activations") -> list[tuple[Cell, Cell]]:
    there = [(site, f"sparse {list(rows.values.shape)}") for site, rows in acts.sparse.items()]
    there += [(site, "predictions") for site in acts.predictions]
    there += [("attention", f"patterns of {len(acts.attention)} heads")] if acts.attention else []
    there += [(visible(name, 40), type(what).__name__) for name, what in acts.readouts.items()]
    there += [("kept", visible(acts.kept, 80))] if acts.kept else []
    return _named(there)


def generation_card(generation: "Generation") -> Card:
    prompt = Line("prompt", token_cells(generation.prompt_tokens))
    logprobs = generation.logprobs
    notes = left_out(
        ends(len(generation.prompt_tokens), TOKENS_OF_TEXT),
        len(generation.prompt_tokens),
        "prompt tokens",
    )
    if logprobs is None:
        text = Line("output", (Cell(prose(generation.text)),))
    else:
        scale = surprise()

        def cell(at: int) -> Cell:
            found = logprobs[at]
            title = f"log probability {found.logprob:.3f}" + "".join(
                f"\n{visible(top.token)} {np.exp(top.logprob):.3f}" for top in found.top[:_LARGEST]
            )
            return Cell(visible(generation.tokens[at]), scale.color(found.logprob), title)

        text = Line("output", token_cells(generation.tokens, cell), scale)
        count = len(generation.tokens)
        notes += left_out(ends(count, TOKENS_OF_TEXT), count, "output tokens")
    ended = visible(generation.finish_reason)
    if isinstance(generation.stopped_by, str):
        ended += f" {visible(generation.stopped_by)}"
    title = f"Generation: {len(generation.tokens)} tokens, ended by {ended}"
    return Card(title, (prompt, text), tuple(notes))


def tokenized_card(tokenized: "Tokenized") -> Card:
    def cell(at: int) -> Cell:
        # Two shades by turns, so that the borders show.
        shade = ("#dbe6f6", "#f6e3d0")[at % 2]
        title = f"position {at}, id {tokenized.token_ids[at]}"
        return Cell(visible(tokenized.tokens[at]), shade, title)

    count = len(tokenized.tokens)
    notes = left_out(ends(count, TOKENS_OF_TEXT), count, "tokens")
    return Card(f"{count} tokens", (Line("", token_cells(tokenized.tokens, cell)),), tuple(notes))


def predictions_card(predictions: "SitePredictions") -> Card:
    count, ranks = predictions.top_tokens.shape
    rows, columns = ends(len(predictions.positions), ROWS), ends(ranks, COLUMNS)
    scale = probability()

    def cell(row: int, rank: int) -> Cell:
        logprob = float(predictions.top_logprobs[row, rank])
        chance = float(np.exp(logprob))
        token = str(predictions.top_tokens[row, rank])
        title = f"{visible(token)} {chance:.3f}"
        return Cell(word(token), scale.color(chance), title, number=share(chance))

    heat = HeatMap(
        "the likeliest next tokens, by position and rank",
        labels(rows, [f"after position {at}" for at in predictions.positions.tolist()]),
        labels(columns, [str(rank + 1) for rank in range(ranks)]),
        grid(rows, columns, cell),
        scale,
    )
    notes = left_out(rows, count, "positions") + left_out(columns, ranks, "ranks")
    if asked := predictions.token_logprobs.shape[1]:
        notes.append(f"`token_logprobs` has the log probabilities of {asked} tokens asked about.")
    if predictions.next_token_logprobs is not None:
        total = float(np.nansum(predictions.next_token_logprobs, dtype=np.float64))
        notes.append(f"The log probabilities of the tokens that do come next sum to {total:.3f}.")
    return Card("Predictions", (heat,) if ranks and count else (), tuple(notes))


def explained_card(explained: "ExplainedText") -> Card:
    shown = ends(len(explained.explanations), ROWS)
    scored = any(each.score for each in explained.explanations)
    baseline = any(
        each.score and each.score.variance_explained is not None for each in explained.explanations
    )
    scale = probability()

    def scores(each: "Explanation") -> list[Cell]:
        if not scored:
            return []
        values = [each.score.cosine if each.score else None]
        values += [each.score.variance_explained if each.score else None] if baseline else []
        return [
            Cell("") if value is None else Cell(share(value), scale.color(value))
            for value in values
        ]

    def row(at: int) -> tuple[Cell, ...]:
        each = explained.explanations[at]
        position = explained.positions[each.row]
        token = Cell(visible(explained.tokens[position]), title=f"position {position}")
        flags = Cell(", ".join(visible(flag, 40) for flag in each.flags))
        text = Cell(prose(each.text, PROSE_CHARACTERS // 4))
        return (Cell(str(position)), token, text, *scores(each), flags)

    columns = ["position", "token", "explanation"]
    columns += ["cosine"] if scored else []
    columns += ["variance explained"] if baseline else []
    columns += ["flags"]
    gap = (GAP, *(Cell("") for _ in columns[1:]))
    rows = tuple(gap if at is None else row(at) for at in shown)
    notes = ["A model writes explanations and may be wrong in every detail."]
    notes += left_out(shown, len(explained.explanations), "explanations")
    return Card(
        f"{explained.site} in words, by {visible(explained.nla, 80)}",
        (Table(tuple(columns), rows),),
        tuple(notes),
    )


def means_card(means: "LabelMeans") -> Card:
    rows = tuple(
        (
            Cell(site),
            Cell(str(mean.size)),
            Cell(number(float(np.linalg.norm(mean.astype(np.float64))))),
        )
        for site, mean in means.items()
    )
    of = f" of {visible(means.label, 80)}" if means.label else ""
    return Card(
        f"Means{of} over {means.rows} rows", (Table(("site", "width", "norm of the mean"), rows),)
    )


def vector_card(vector: "SteeringVector") -> Card:
    largest = np.argsort(-np.abs(vector.values), kind="stable")[:_LARGEST].tolist()
    rows = [
        ("site", str(vector.site)),
        ("width", str(len(vector))),
        ("norm", number(vector.norm)),
        ("from", prose(vector.provenance, 400) or "not said"),
        ("largest elements", ", ".join(f"[{at}] {vector.values[at]:+.3g}" for at in largest)),
    ]
    return Card("Steering vector", (Table(("", ""), tuple(_named(rows))),))


def stored_card(vector: "StoredVector") -> Card:
    def optional(value: float | None) -> Cell:
        return Cell("" if value is None else number(value))

    shown = ends(len(vector.rows), ROWS)
    ranked = len(vector.rows) > 1 and vector.best.held_out_auroc is not None
    rows = tuple(
        (GAP,) * 6
        if at is None
        else (
            Cell(visible(row.site, 40)),
            Cell(number(row.norm)),
            optional(row.median_row_norm),
            optional(row.held_out_auroc),
            optional(row.half_cosine),
            Cell("best" if ranked and row is vector.best else ""),
        )
        for at in shown
        for row in [vector.rows[at or 0]]
    )
    columns = ("site", "norm", "median row norm", "held-out AUROC", "half cosine", "")
    about = [
        ("width", str(vector.width)),
        (
            "labels",
            ", ".join(f"{visible(k, 40)}={visible(v, 80)}" for k, v in vector.labels.items()),
        ),
        ("made", prose(_made(vector), 400)),
        ("of", visible(vector.model_path, 200)),
        ("stored", f"{vector.create_time:%Y-%m-%d %H:%M} UTC"),
    ]
    parts = (Table(("", ""), tuple(_named(about))), Table(columns, rows))
    notes = tuple(left_out(shown, len(vector.rows), "rows"))
    return Card(f"Stored vector {visible(vector.id, 63)}", parts, notes)


def _made(vector: "StoredVector") -> str:
    """Where it comes from, in a few words."""
    made = vector.provenance
    if made is None:
        return "stored as it was given"
    if isinstance(made, Contrasted):
        what = "prompts" if made.prompts else "rows"
        return f"{made.method} of {made.positives} positive and {made.negatives} negative {what}"
    told = " + ".join(f"{term.coefficient:g} {_term(term)}" for term in made.terms)
    if made.without:
        told += f", without {', '.join(map(_term, made.without))}"
    return told if made.norm is None else f"{told}, scaled to norm {made.norm:g}"


def _term(term: VectorTerm) -> str:
    name = stored(term.vector).name.rpartition("/")[2]
    return name if term.site is None else f"{name} at {term.site}"


def model_card(model: "Model") -> Card:
    about = [
        ("architecture", visible(model.architecture, 80)),
        ("weights", visible(model.path, 200)),
        ("layers", str(model.layer_count)),
        ("width", str(model.width)),
        ("vocabulary", f"{model.vocabulary_size:,} tokens"),
        ("computes in", model.element_type),
        ("longest sequence", f"{model.limits.max_sequence_tokens:,} tokens"),
        ("explained by", ", ".join(visible(nla.id, 40) for nla in model.nlas) or "nothing"),
        ("serves", ", ".join(model.features)),
    ]
    points = tuple(
        (
            Cell(name),
            Cell(str(how.width)),
            Cell(str(how.heads) if how.heads else ""),
            Cell(
                f"no: {prose(how.unserved_reason, 200)}"
                if how.unserved_reason
                else f"read; {prose(how.unchangeable_reason, 200)}"
                if how.unchangeable_reason
                else "read and changed"
            ),
        )
        for name, how in model.hook_points.items()
    )
    return Card(
        visible(model.id, 80),
        (
            Table(("", ""), tuple(_named(about))),
            Table(("hook point", "width", "heads", "can be"), points),
        ),
    )


def _named(rows: Sequence[tuple[str, str]]) -> list[tuple[Cell, Cell]]:
    return [(Cell(name), Cell(what)) for name, what in rows]
