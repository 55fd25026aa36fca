"""The model card of a trained pair."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.evaluate import Evaluation
from training.prompts import AR_TEMPLATE, AV_TEMPLATE
from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a pair comes from, beside its recipe."""

    corpus: Sequence[str]
    """Names of what was read."""
    documents: int
    seconds: float
    """Of all stages together."""


def write(path: Path, recipe: Recipe, evaluation: Evaluation, origin: Origin) -> None:
    path.write_text(text(recipe, evaluation, origin), encoding="utf-8")


def text(recipe: Recipe, evaluation: Evaluation, origin: Origin) -> str:
    """The card, in Markdown."""
    results = "\n".join(
        f"| {name} | {each.variance_explained:.3f} | {each.cosine:.3f} | "
        f"{each.centered_cosine:.3f} | {each.retrieval:.1%} |"
        for name, each in evaluation.results.items()
    )
    rows = next(iter(evaluation.results.values())).rows
    samples = "\n".join(
        f"| {_cell(each['target'])} | {_cell(each['explanation'])} |" for each in evaluation.samples
    )
    choices = "\n".join(
        f"| `{name}` | {_cell(str(value))} |" for name, value in asdict(recipe).items()
    )
    return f"""# A natural language autoencoder for {recipe.base}

It explains rows of `resid_post.{recipe.layer}` in words (`av/`, the activation verbalizer) and
makes rows of words (`ar/`, the activation reconstructor), after Fraser-Taliente, Kantamneni, Ong
et al., "Natural Language Autoencoders Produce Unsupervised Explanations of LLM Activations", 2026.
Both are LoRA adapters of the base, to show the method at work; they are far too small to rely on.
Explanations name a topic, likely next tokens, and the latest words. The latest word and the topic
are right more often than anything else, and any detail may be made up.

## Held-out scores

{rows} rows of whole files of which nothing was trained on; {evaluation.parsed:.1%} of the
explanations have the form. FVE is the fraction of variance explained, with the variance of the
training rows; retrieval is among groups of 256 by centred cosine, {evaluation.chance:.1%} by
chance.

| what the AR reads | FVE | cosine | centred cosine | retrieval |
|---|---|---|---|---|
{results}

A best of n is the one of the highest cosine, as servers choose; "of another row" are the controls.
"target text" is made from the context itself, which an explanation cannot see; "the mean row" is
not read by the AR at all.

| target text | greedy explanation |
|---|---|
{samples}

## How it was made

From {origin.documents} documents of {", ".join(origin.corpus)},
by `python -m training`, in {origin.seconds / 60:.0f} minutes
on {os.cpu_count()} CPU cores ({platform.machine()}), in bfloat16.

1. Rows and predictions of the base at random positions of chunks of text.
2. A target text for each, of context and predictions alone; no other model was asked.
3. The AV learns to write the target texts, the AR to read them. The AV is asked
   `{AV_TEMPLATE}`; the AR reads `{AR_TEMPLATE}`, and the state of the last token
   goes through the value head.
4. Rounds of expert iteration: the AV writes several explanations of new rows; the AR learns to read
   all of them, and the AV to write those from which the AR reconstructs a row best.

| choice | |
|---|---|
{choices}
"""


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ").replace("<", "\\<")
