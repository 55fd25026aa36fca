"""What a run holds in the engine while `PatternRows` are made of it: the keys of every position so
far, which later queries look at, and what they have received.

It lies in the bank of vectors, and counts in its budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.runs import Capture, Run
from actserve_server.domain.sites import HookPoint, Site

NUMBER_BYTES = 4
"""Of what the bank counts in."""


@dataclass(frozen=True, slots=True)
class PatternMemory:
    """Of one run."""

    layers: tuple[int, ...]
    """Whose keys are held."""
    tokens: int
    """Of which they are: those at the positions below."""
    received: int
    """Sums of what keys receive."""

    def numbers(self, key_bytes: int) -> int:
        """What it takes of the bank, where the key row of a layer has so many bytes."""
        return len(self.layers) * self.tokens * key_numbers(key_bytes) + self.received


def key_numbers(key_bytes: int) -> int:
    """What a key row takes of the bank."""
    return -(-key_bytes // NUMBER_BYTES)


def pattern_memory(run: Run) -> PatternMemory | None:
    """Of a run; None if nothing is made of its patterns."""
    return memory_of(run.captures, len(run.token_ids) + run.sampling.max_tokens - 1)


def memory_of(captures: Iterable[Capture], run_tokens: int) -> PatternMemory | None:
    """Of these captures in a run of so many tokens."""
    layers: set[int] = set()
    tokens = received = 0
    for each in captures:
        if not isinstance(each.derived, QueryMeasures | LargestWeights | ReceivedWeights):
            continue
        layers.update(site.layer for site in each.sites if site.layer is not None)
        tokens = max([tokens, *(min(end, run_tokens) for _, end in each.spans.ranges[-1:])])
        if isinstance(each.derived, ReceivedWeights):
            received += len(each.sites) * each.derived.end * each.derived.width
    return PatternMemory(tuple(sorted(layers)), tokens, received) if tokens else None


def pattern_bytes(memory: PatternMemory | None, info: ModelInfo) -> int:
    """What it takes of the bank."""
    if memory is None:
        return 0
    key_bytes = info.at(Site(HookPoint.K, 0)).width * info.element_type.itemsize
    return NUMBER_BYTES * memory.numbers(key_bytes)
