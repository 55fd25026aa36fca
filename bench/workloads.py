"""What the engines are asked to do: fresh random tokens, so that no prefix is ever cached."""

import random
from dataclasses import dataclass

ORDINARY_IDS = (1000, 40000)
"""Tokens in the vocabulary of every model that is not made here."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence: a prompt and how many tokens follow it."""

    token_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` sequences at once; a rate counts their prompt or their generated tokens."""

    name: str
    count: int
    prompt_tokens: int
    max_tokens: int
    ids: tuple[int, int] = ORDINARY_IDS
    """Half-open range of the tokens that prompts are made of."""

    def requests(self, seed: int) -> list[Request]:
        rng = random.Random(f"{self.name} {seed}")
        return [
            Request(
                tuple(rng.randrange(*self.ids) for _ in range(self.prompt_tokens)),
                self.max_tokens,
            )
            for _ in range(self.count)
        ]


WORKLOADS = [
    Workload("decode", count=64, prompt_tokens=16, max_tokens=48),
    Workload("prefill", count=32, prompt_tokens=256, max_tokens=1),
]
