"""What the engines are asked to do: fresh random tokens, so that no prefix is ever cached."""

import random
from dataclasses import dataclass

_ID_RANGE = (1000, 40000)
"""Ordinary tokens in every vocabulary this runs on."""


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

    def requests(self, seed: int) -> list[Request]:
        rng = random.Random(f"{self.name} {seed}")
        return [
            Request(
                tuple(rng.randrange(*_ID_RANGE) for _ in range(self.prompt_tokens)),
                self.max_tokens,
            )
            for _ in range(self.count)
        ]


WORKLOADS = [
    Workload("decode", count=64, prompt_tokens=16, max_tokens=48),
    Workload("prefill", count=32, prompt_tokens=256, max_tokens=1),
]
