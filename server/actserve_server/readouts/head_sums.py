"""How heads attend over a corpus: sums over queries, added sequence by sequence, and their means.

The scores of a head are those of `attention_summary.py`, and besides how much it attends to earlier
occurrences of the query's token, how far its keys scatter, and which tokens give and receive its
attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from actserve_server.domain.attention_patterns import pattern_blocks
from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.ranking import largest
from actserve_server.readouts.attention_summary import repeated_queries
from actserve_server.readouts.statistics import Memory

SUM_BYTES = 8
MAX_TOKEN_BYTES = 256 << 20
"""Of one call: the sums by token of all its heads."""
_FEWEST_TOKENS = 1024
"""Room for sums by token that is made first."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LayerSums:
    """Of all heads of one layer, over some queries of one sequence."""

    queries: int
    previous_token_queries: int
    """Those that have a previous token."""
    induction_queries: int
    """Those whose token is at an earlier position as well."""
    sums: np.ndarray
    """Of `QueryMeasures`, float64 [heads, numbers]."""
    token_ids: np.ndarray
    """Of every position up to the last query, int64 [T]."""
    given: np.ndarray | None = None
    """Where it is told by token: what the query at each position gives to keys other than position
    zero, float64 [heads, T], zero where none was selected."""
    received: np.ndarray | None = None
    """What the key at each position receives, zero at position zero; float64 [heads, T]."""

    def told_by_token(
        self, given: np.ndarray, received: np.ndarray, queries: np.ndarray
    ) -> "LayerSums":
        """The same with what each query gives, [heads, queries], and each key receives, [heads,
        T]."""
        every = np.zeros(received.shape)
        every[:, queries] = given
        received = received.astype(np.float64)
        received[:, 0] = 0
        return replace(self, given=every, received=received)


def sums_of(sums: np.ndarray, queries: np.ndarray, token_ids: np.ndarray) -> LayerSums:
    """Of queries at these positions, with the tokens up to the last of them."""
    return LayerSums(
        queries=len(queries),
        previous_token_queries=int((queries > 0).sum()),
        induction_queries=repeated_queries(queries, token_ids),
        sums=sums,
        token_ids=token_ids,
    )


def layer_sums(
    rule: AttentionRule,
    q: np.ndarray,
    k: np.ndarray,
    positions: np.ndarray,
    token_ids: np.ndarray,
    *,
    by_token: bool,
) -> LayerSums:
    """Of queries and keys as `pattern` takes them, and the token of each key, int64 [T]."""
    measures = QueryMeasures(rule.heads)
    sums = np.zeros((rule.heads, measures.numbers))
    given = np.zeros((rule.heads, len(q)))
    received = np.zeros((rule.heads, len(k)))
    for head in range(rule.heads):
        for rows, block in pattern_blocks(rule, q, k, head, positions):
            weights = block.astype(np.float64)
            measured = measures.of_head(weights, positions[rows], token_ids)
            sums[head] += measured.sum(axis=0)
            given[head, rows] = measures.beyond_first(measured)
            received[head] += weights.sum(axis=0)
    found = sums_of(sums, positions, token_ids)
    return found.told_by_token(given, received, positions) if by_token and len(k) else found


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TopTokens:
    """Of each head of a layer the tokens by which most attention passes, most first. A weight of
    zero stands for none."""

    token_ids: np.ndarray
    """int64 [heads, tokens]."""
    weights: np.ndarray
    """Means over all queries, float32 [heads, tokens]."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadMeans:
    """How every head of one layer attends over a corpus. Means are float32 [heads], and NaN over no
    query."""

    queries: int
    previous_token_queries: int
    induction_queries: int
    previous_token: np.ndarray
    """These and `entropy` and `distance` are as `AttentionSummary` has them."""
    current_token: np.ndarray
    first_token: np.ndarray
    induction: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    distance_variance: np.ndarray
    """The sum of w times the square of how many tokens the key is further than `distance` of the
    query, in tokens squared; over `queries`."""
    duplicate_token: np.ndarray
    """The weight of all earlier occurrences of the query's token; over `induction_queries`."""
    query_tokens: TopTokens
    """By what their queries give to keys other than position zero."""
    key_tokens: TopTokens
    """By what their keys other than position zero receive."""


class HeadSums:
    """Of all heads of some layers, over the sequences that were added."""

    def __init__(self, layers: Sequence[int], heads: int, top_tokens: int) -> None:
        self.layers = tuple(layers)
        self._heads = heads
        self._top = top_tokens
        self._sums = np.zeros((len(layers), heads, QueryMeasures(heads).numbers))
        self._counts = np.zeros((len(layers), 3), np.int64)
        self._by_token: _TokenSums | None = None

    @contextmanager
    def within(self, memory: Memory) -> Iterator["HeadSums"]:
        """Itself, with sums by token, if they are wanted, that take some of this memory."""
        with ExitStack() as held:
            if self._top:
                self._by_token = _TokenSums(len(self.layers) * self._heads, memory, held)
            yield self

    def add(self, layer: int, found: LayerSums) -> None:
        """Takes the sums of one layer of one sequence. Raises CAPTURE_TOO_LARGE or QUEUE_FULL where
        there is no room for the tokens that it brings."""
        index = self.layers.index(layer)
        if self._by_token is not None and found.given is not None:
            assert found.received is not None  # Both are told, or none.
            columns = slice(index * self._heads, (index + 1) * self._heads)
            self._by_token.add(columns, found.token_ids, found.given, found.received)
        self._sums[index] += found.sums
        counts = (found.queries, found.previous_token_queries, found.induction_queries)
        self._counts[index] += counts

    def means(self, layer: int) -> HeadMeans:
        """Of all that was added."""
        index = self.layers.index(layer)
        queries, previous, repeated = self._counts[index].tolist()
        sums = self._sums[index].T
        before, current, first, induction, entropy, distance, variance, duplicate, _ = sums
        columns = slice(index * self._heads, (index + 1) * self._heads)
        nothing = np.empty((self._heads, 0))
        none = TopTokens(token_ids=nothing.astype(np.int64), weights=nothing.astype(np.float32))
        given, received = none, none
        if self._by_token is not None and queries:
            given, received = self._by_token.top(columns, self._top, queries)
        return HeadMeans(
            queries=queries,
            previous_token_queries=previous,
            induction_queries=repeated,
            previous_token=_mean(before, previous),
            current_token=_mean(current, queries),
            first_token=_mean(first, queries),
            induction=_mean(induction, repeated),
            entropy=_mean(entropy, queries),
            distance=_mean(distance, queries),
            distance_variance=_mean(variance, queries),
            duplicate_token=_mean(duplicate, repeated),
            query_tokens=given,
            key_tokens=received,
        )


class _TokenSums:
    """What is given and received by token, head by head. Room grows with the tokens that come, and
    not with those that might."""

    def __init__(self, heads: int, memory: Memory, held: ExitStack) -> None:
        self._heads = heads
        self._memory = memory
        self._held = held
        self._rows: dict[int, int] = {}
        """Of each token that came."""
        self._sums = np.zeros((2, 0, heads))
        """Given and received, [2, tokens, heads]."""

    def add(
        self, columns: slice, token_ids: np.ndarray, given: np.ndarray, received: np.ndarray
    ) -> None:
        """Takes what is given and received at each position, [heads, T], of these heads."""
        tokens, inverse = np.unique(token_ids, return_inverse=True)
        new = [token for token in tokens.tolist() if token not in self._rows]
        self._make_room(len(self._rows) + len(new))
        for token in new:
            self._rows[token] = len(self._rows)
        rows = np.array([self._rows[token] for token in tokens.tolist()])
        for kind, values in enumerate((given, received)):
            added = np.zeros((len(tokens), len(values)))
            np.add.at(added, inverse, values.T)
            self._sums[kind, rows, columns] += added

    def top(self, columns: slice, count: int, queries: int) -> tuple[TopTokens, TopTokens]:
        """The tokens that give and receive most, over so many queries."""
        # By id, so that of equal tokens the same come first whichever sequence was faster.
        rows = np.array([self._rows[token] for token in sorted(self._rows)])
        ids = np.array(sorted(self._rows), np.int64)
        found: list[TopTokens] = []
        for kind in range(2):
            means = (self._sums[kind, rows, columns].T / queries).astype(np.float32)
            places, weights = largest(means, min(count, len(ids)))
            found.append(TopTokens(token_ids=ids[places], weights=weights))
        return found[0], found[1]

    def _make_room(self, tokens: int) -> None:
        had = self._sums.shape[1]
        if tokens <= had:
            return
        most = MAX_TOKEN_BYTES // (2 * SUM_BYTES * self._heads)
        if tokens > most:
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"the prompts have more than {most} different tokens, and the sums of "
                f"{self._heads} heads for each would take more than {MAX_TOKEN_BYTES} bytes; "
                "measure fewer layers or prompts at once, or leave top_tokens unset",
                field=("top_tokens",),
                metadata={"limit": MAX_TOKEN_BYTES},
            )
        room = min(most, max(tokens, 2 * had, _FEWEST_TOKENS))
        self._held.enter_context(self._memory.held((room - had) * 2 * SUM_BYTES * self._heads))
        grown = np.zeros((2, room, self._heads))
        grown[:, :had] = self._sums
        self._sums = grown


def _mean(sums: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (sums / count).astype(np.float32)
