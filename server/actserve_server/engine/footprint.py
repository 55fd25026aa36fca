"""What a run takes beside its rows and vectors: of the model's device in a step, and of the
server's memory until its caller has read everything.

A step has at most so many tokens, whatever runs they are of. So what runs take of the device
together is not the sum of what each may take: the costliest tokens fill the step.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from actserve_server.domain.attention_rows import PatternRows, ReceivedWeights
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Spans
from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.runs import (
    Capture,
    Intervention,
    Run,
    Sampling,
    Unembed,
    conditions_of,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.forms import outputs_form

CAPTURE_TABLE_BYTES = 32
"""For each captured row where it is in the batch, of which run and position it is, and which token
comes next: int64 each."""

EDIT_TABLE_BYTES = 96
"""For each row that an edit changes, whatever its sites: where it is, and its receipt on the
device, on the host, and as it is sent."""
EDIT_SITE_BYTES = 48
"""And at each of its sites at most: where its vector begins, the row, its receipt, four scalars."""
HEAD_BYTES = 24
"""And there for each head."""
SCORE_BYTES = 160
"""For each row that a condition scores: tables, bounds, and scores in float64."""

RECEIPT_BYTES = 64
"""In the server, until the run is over, for each row that an edit changes: edit, position and
change as they came, and position and change once they were checked."""
RANGE_BYTES = 400
"""For each range of positions that is captured or changed: two numbers in a tuple, in the server,
on the way and in the worker."""
TOKEN_BYTES = 448
"""Of a generated token that nobody has read: its id, its text twice, and what holds them."""
LOGPROB_BYTES = 192
"""Of each log probability that comes with it."""
ENGINE_TOKEN_BYTES = 512
"""More of a token whose log probabilities come in the engine's own form: the table they are in."""
ENGINE_LOGPROB_BYTES = 288
"""Of each in that form, of which the token's own is one besides."""

Need = tuple[tuple[int, int], ...]
"""What a run may take in a step: (tokens, bytes for each), the costliest first. So many of its
tokens may be in one step, but no more than a step has."""


def step_need(run: Run, info: ModelInfo) -> Need:
    """What a run may take of the model's device in a step. What is there for a moment only, a block
    of rows at a time, is not counted: docs/performance.md says how much that is."""
    end = len(run.token_ids) + run.sampling.max_tokens - 1
    parts = Counter[int]()
    for capture in run.captures:
        parts[capture.spans.count(end)] += captured_bytes(capture, info)
        if isinstance(capture.derived, PatternRows):
            parts[_queries(capture).count(end)] += _query_bytes(capture, info)
        if isinstance(capture.derived, ReceivedWeights):
            # Of all keys at once, with the last query.
            parts[1] += capture.derived.end * info.row_bytes(capture)
    for change in run.interventions:
        parts[change.selection.spans.count(end)] += _edited_bytes(change)
    if scored := len(conditions_of(run.interventions)):
        parts[end] += scored * SCORE_BYTES
    need: list[tuple[int, int]] = []
    reached, row_bytes = 0, sum(parts.values())
    for tokens, each in sorted(parts.items()):
        if tokens > reached:
            need.append((tokens - reached, row_bytes))
            reached = tokens
        row_bytes -= each
    return tuple(need)


def _queries(capture: Capture) -> Spans:
    """Whose attention is looked at."""
    derived = capture.derived
    return derived.queries if isinstance(derived, ReceivedWeights) else capture.spans


def _query_bytes(capture: Capture, info: ModelInfo) -> int:
    """Of a query row, which is kept until the keys of its layer are there too: so of one layer at
    a time."""
    return max(info.at(site).width for site in capture.sites) * info.element_type.itemsize


def captured_bytes(capture: Capture, info: ModelInfo) -> int:
    """What a capture holds of the device for each row from its tap to the end of the step."""
    if isinstance(capture.derived, ReceivedWeights):
        return CAPTURE_TABLE_BYTES
    if isinstance(capture.derived, ProbeOutputs):
        products = sum(matrix.count for matrix in outputs_form(capture.derived).matrices)
        return CAPTURE_TABLE_BYTES + 4 * (products + 2 * capture.derived.width)
    held = info.row_bytes(capture)
    if isinstance(capture.derived, Unembed):
        held += _read_bytes(capture.sites, info)
    elif Site(HookPoint.LOGITS) in capture.sites:
        held += _read_bytes([Site(HookPoint.FINAL_NORM)], info)
    return CAPTURE_TABLE_BYTES + held


def _read_bytes(sites: Iterable[Site], info: ModelInfo) -> int:
    """Of whole rows that are kept until the pass is over."""
    return sum(info.at(site).width for site in sites) * info.element_type.itemsize


def _edited_bytes(change: Intervention) -> int:
    at_site = EDIT_SITE_BYTES + HEAD_BYTES * len(change.heads)
    return EDIT_TABLE_BYTES + at_site * len(change.sites)


def report_bytes_of(run: Run) -> int:
    """What the server holds of a run beside its rows until its caller has read everything: receipts
    of its edits, positions, tokens, and their log probabilities."""
    end = len(run.token_ids) + run.sampling.max_tokens - 1
    spans = [each.spans for each in run.captures]
    spans += [each.selection.spans for each in run.interventions]
    receipts = sum(each.selection.spans.count(end) for each in run.interventions)
    return (
        RECEIPT_BYTES * receipts
        + RANGE_BYTES * sum(len(each.ranges) for each in spans)
        + _token_bytes(run.sampling) * run.sampling.max_tokens
    )


def _token_bytes(sampling: Sampling) -> int:
    if sampling.logprobs is None:
        return TOKEN_BYTES
    if sampling.as_engine is None:
        return TOKEN_BYTES + LOGPROB_BYTES * sampling.logprobs
    return TOKEN_BYTES + ENGINE_TOKEN_BYTES + ENGINE_LOGPROB_BYTES * (sampling.logprobs + 1)


class Workspace:
    """What steps may take of the device with the runs in flight, by caller."""

    def __init__(self) -> None:
        self._of: dict[str, Counter[Need]] = {}
        self._sums: Counter[str] = Counter()
        """Of each caller, of everything, as if a step had no end."""

    def add(self, caller: str, need: Need) -> None:
        if need:
            self._of.setdefault(caller, Counter())[need] += 1
            self._sums[caller] += _sum(need)

    def remove(self, caller: str, need: Need) -> None:
        if not need:
            return
        held = self._of[caller]
        held[need] -= 1
        self._sums[caller] -= _sum(need)
        if not held[need]:
            del held[need]
        if not held:
            del self._of[caller], self._sums[caller]

    def holds(self, caller: str) -> bool:
        """Whether any run of the caller takes anything."""
        return caller in self._of

    def fits(self, need: Need, step_tokens: int, limit: float, caller: str | None = None) -> bool:
        """Whether no step of so many tokens takes more with one run more, of all or of one
        caller."""
        held = self._sums.total() if caller is None else self._sums[caller]
        if not need or held + _sum(need) <= limit:
            return True
        runs = self._of.values() if caller is None else [self._of.get(caller, Counter[Need]())]
        return most_bytes([Counter([need]), *runs], step_tokens) <= limit

    def most_bytes(self, step_tokens: int) -> int:
        """The most that a step of so many tokens takes."""
        return most_bytes(self._of.values(), step_tokens)


def _sum(need: Need) -> int:
    return sum(tokens * row_bytes for tokens, row_bytes in need)


def most_bytes(needs: Iterable[Mapping[Need, int]], step_tokens: int) -> int:
    """The most that a step of so many tokens takes: of runs by need, how many of each."""
    total, left = 0, step_tokens
    for row_bytes, tokens in sorted(_parts(needs), reverse=True):
        fitting = min(left, tokens)
        total += fitting * row_bytes
        left -= fitting
        if not left:
            break
    return total


def _parts(needs: Iterable[Mapping[Need, int]]) -> Iterator[tuple[int, int]]:
    for each in needs:
        for need, runs in each.items():
            for tokens, row_bytes in need:
                yield row_bytes, runs * tokens
