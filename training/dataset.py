"""Rows and what should be said of them, kept in two files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training import corpus
from training.models import decode
from training.recipe import Recipe
from training.targets import NEXT_TOKENS, Vocabulary, describe
from training.vectors import extract


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows, in random order, and a text for each."""

    rows: torch.Tensor
    """bfloat16 [examples, width]."""
    texts: list[str]
    """Target explanations."""
    tokens: list[str]
    """The token that each row is of, as text: what an explanation has to beat."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    training: Examples
    held_out: Examples

    def save(self, folder: Path) -> None:
        """The texts last: where they are, the rows are too."""
        parts = {"training": self.training, "held_out": self.held_out}
        save_file({name: each.rows.contiguous() for name, each in parts.items()}, folder / _ROWS)
        texts = {name: [each.texts, each.tokens] for name, each in parts.items()}
        (folder / _TEXTS).write_text(json.dumps(texts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Dataset | None":
        if not (folder / _TEXTS).is_file():
            return None
        rows = load_file(folder / _ROWS)
        texts = json.loads((folder / _TEXTS).read_text(encoding="utf-8"))
        return cls(**{name: Examples(rows[name], *texts[name]) for name in rows})


_ROWS, _TEXTS = "rows.safetensors", "texts.json"


def make(
    documents: Sequence[corpus.Document],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> Dataset:
    """Raises ValueError if the documents do not have as many rows as the recipe asks for."""
    parts = corpus.split(documents, recipe.held_out, recipe.seed)
    vocabulary = Vocabulary(parts.training)
    return Dataset(
        training=_examples(
            parts.training, recipe.training_rows, model, tokenizer, vocabulary, recipe
        ),
        held_out=_examples(
            parts.held_out, recipe.held_out_rows, model, tokenizer, vocabulary, recipe
        ),
    )


def _examples(
    documents: Sequence[str],
    count: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    recipe: Recipe,
) -> Examples:
    generator = torch.Generator().manual_seed(recipe.seed)
    chunks = corpus.chunks(documents, tokenizer, recipe.chunk_tokens)
    needed = -(-count // recipe.chunk_rows)
    if len(chunks) < needed:
        raise ValueError(
            f"the documents make {len(chunks)} chunks of {recipe.chunk_tokens} tokens, but "
            f"{count} rows, {recipe.chunk_rows} a chunk, need {needed}; give more text, or ask "
            "for fewer examples"
        )
    chosen = torch.randperm(len(chunks), generator=generator)[:needed].tolist()
    chunks = [chunks[index] for index in chosen]
    vectors = extract(
        model,
        chunks,
        recipe.layer,
        each=recipe.chunk_rows,
        earliest=recipe.earliest,
        top=NEXT_TOKENS,
        seed=recipe.seed,
    )
    order = torch.randperm(len(vectors.rows), generator=generator)[:count]
    contexts = [
        chunks[chunk][: position + 1]
        for chunk, position in zip(
            vectors.chunk[order].tolist(), vectors.position[order].tolist(), strict=True
        )
    ]
    return Examples(
        rows=vectors.rows[order],
        texts=[
            describe(ids, next_ids, tokenizer, vocabulary)
            for ids, next_ids in zip(contexts, vectors.next_ids[order].tolist(), strict=True)
        ],
        tokens=[decode(tokenizer, ids[-1:]) for ids in contexts],
    )
