"""The card of a trained dictionary."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from training.dictionary.choices import Choices
from training.dictionary.measures import Measured


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dictionary comes from, beside its choices."""

    corpus: Sequence[str]
    """Names of what was read."""
    documents: int
    cpu_seconds: float
    """Of all stages together."""


def text(choices: Choices, measured: Measured, origin: Origin) -> str:
    """The card, in Markdown."""
    reconstructions = "\n".join(
        f"| {name} | {each.variance_explained:.3f} | {each.features_per_row:.1f} | "
        f"{each.dead_features} |"
        for name, each in measured.reconstructions.items()
    )
    splices = "\n".join(
        f"| {name} | {each.loss:.3f} | {each.recovered:.1%} |"
        for name, each in measured.splices.items()
    )
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in asdict(choices).items())
    return f"""# A sparse autoencoder for {choices.base}

{choices.features} features of `resid_post.{choices.layer}`, of the JumpReLU kind, in the folder
form of SAELens. It was made to show what a dictionary is: it has seen far less text than others,
and is small. Rows of its decoder have norm one, so a feature says how much of its direction is in
the row, in units of the row.

## Held-out measures

{measured.rows} rows of whole files of which nothing was trained on. Dead features are active at
none of them.

| what reconstructs | variance explained | active a row | dead |
|---|---|---|---|
{reconstructions}

The model's loss, in nats a token, where the rows of the site are replaced by what is named, over
{measured.spliced_tokens} tokens; recovered is 0% as with the mean row, and 100% as with the row
itself.

| in place of each row | loss | recovered |
|---|---|---|
{splices}

Rows of attention sinks, position 0 above all, were neither learned from nor measured nor replaced:
their norm is about a hundred times that of others, and what features say of them means nothing.

## How it was made

From {origin.documents} documents of {", ".join(origin.corpus)}, by
`python -m training.dictionary`, in {origin.cpu_seconds / 60:.0f} minutes of processor time
({os.cpu_count()} cores, {platform.machine()}), on rows in bfloat16.
The method is BatchTopK (Bussmann, Leask and Nanda, "BatchTopK Sparse Autoencoders", 2024), with
the threshold that it comes to and dead features revived as Gao et al. do ("Scaling and evaluating
sparse autoencoders", 2024). No other model was asked.

| choice | |
|---|---|
{rows}
"""
