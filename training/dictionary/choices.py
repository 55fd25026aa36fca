"""What is trained, on how much of what."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The choices of one training run. The command line's options are made of these fields."""

    base: Annotated[str, "Name of the base model, as the dictionary is to say it"]
    layer: Annotated[int, "Block whose output, resid_post, is taken apart"]
    features: Annotated[int, "Features of the dictionary"] = 4096
    k: Annotated[int, "Features that are active at a row, on average"] = 32
    rows: Annotated[int, "Rows to learn from"] = 500_000
    epochs: Annotated[int, "How often each is seen"] = 4
    chunk_tokens: Annotated[int, "Tokens of a chunk of text, which is run alone"] = 128
    batch: Annotated[int, "Rows of a step"] = 1024
    rate: Annotated[float, "Highest learning rate"] = 1e-3
    held_out: Annotated[float, "Share of the documents that is held out"] = 0.1
    held_out_chunks: Annotated[int, "Chunks of held-out documents to measure with"] = 300
    seed: Annotated[int, "Of everything that is drawn"] = 0
