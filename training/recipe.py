"""What is trained, on how much of what."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The choices of one training run. The command line's options are made of these fields."""

    base: Annotated[str, "Name of the base model, as the pair is to say it"]
    layer: Annotated[int, "Block whose output, resid_post, is explained"]
    marker: Annotated[
        str, "One token of the base's tokenizer that stands for the row in the AV's prompt"
    ]
    chunk_tokens: Annotated[int, "Tokens of a chunk of text, which is run alone"] = 96
    chunk_rows: Annotated[int, "Rows taken of a chunk"] = 12
    earliest: Annotated[int, "First position in a chunk that rows are taken of"] = 10
    held_out: Annotated[float, "Share of the documents that is held out"] = 0.1
    held_out_rows: Annotated[int, "Rows to evaluate with, of held-out documents"] = 512
    av_examples: Annotated[int, "Rows that the AV learns to write the target text of"] = 28_000
    ar_examples: Annotated[int, "Target texts, of these rows, that the AR learns to read"] = 4_000
    rounds: Annotated[int, "Rounds of expert iteration"] = 2
    round_rows: Annotated[int, "Rows of a round, seen in no other"] = 1_024
    samples: Annotated[int, "Explanations sampled of each row in a round"] = 8
    temperature: Annotated[float, "Of these samples"] = 0.8
    max_tokens: Annotated[int, "Of an explanation, its end included"] = 56
    av_rank: Annotated[int, "Rank of the AV's adapter"] = 16
    ar_rank: Annotated[int, "Rank of the AR's adapter"] = 8
    batch: Annotated[int, "Examples of a step"] = 32
    rate: Annotated[float, "Highest learning rate of the adapters; a third of it in rounds"] = 1e-3
    head_rate: Annotated[float, "That of the value head, which starts as the identity"] = 1e-4
    seed: Annotated[int, "Of everything that is drawn"] = 0

    @property
    def training_rows(self) -> int:
        return self.av_examples + self.rounds * self.round_rows

    def round_slice(self, number: int) -> slice:
        """Which training rows are those of a round, zero-based; the first are the AV's."""
        start = self.av_examples + number * self.round_rows
        return slice(start, start + self.round_rows)
