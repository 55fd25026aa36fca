"""A small decoder in numpy that does all that the server's self-test relies on.

It is what `engine/fake.py` is not: a network, in which streams are the sums of what layers add and
every row is computed from those before it. As in a real engine, runs that arrive together share one
batch, their tokens one after the other. What happens at a hook point can be replaced, to see
whether anybody notices.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import numpy as np

from actserve_server.domain.attention_rows import (
    LargestWeights,
    PatternRows,
    QueryMeasures,
    ReceivedWeights,
)
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.model import HookPointInfo, Limits, ModelInfo
from actserve_server.domain.operations import Operation
from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.prompts import (
    Prompt,
    Spellings,
    TextPrompt,
    TokenizedPrompt,
    TokenPrompt,
)
from actserve_server.domain.runs import (
    Finished,
    FinishReason,
    Rows,
    Run,
    RunEvent,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
    Unembed,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.domain.weights import (
    ALL_WEIGHTS,
    HeadMatrix,
    LogitDirections,
    LogitTarget,
    TokenMatrix,
)
from actserve_server.engine.fake_model import predict

WIDTH, HEADS, KEY_VALUE_HEADS, HEAD_WIDTH, MLP_WIDTH = 16, 4, 2, 4, 24
SHAPES = {
    HookPoint.Q: (HEADS * HEAD_WIDTH, HEADS),
    HookPoint.K: (KEY_VALUE_HEADS * HEAD_WIDTH, KEY_VALUE_HEADS),
    HookPoint.V: (KEY_VALUE_HEADS * HEAD_WIDTH, KEY_VALUE_HEADS),
    HookPoint.Z: (HEADS * HEAD_WIDTH, HEADS),
    HookPoint.MLP_ACT: (MLP_WIDTH, 0),
}
"""(width, heads) of rows that are not `WIDTH` wide."""
RULE = AttentionRule(
    heads=HEADS, key_value_heads=KEY_VALUE_HEADS, head_dim=HEAD_WIDTH, scale=HEAD_WIDTH**-0.5
)
"""By which every layer attends."""
READ_ONLY = "logits are read only"
EPSILON = 1e-6
"""Of the norms."""
NOISE = {ElementType.F32: 2**-25, ElementType.F16: 2**-12, ElementType.BF16: 2**-9}
"""How much an element changes from batch to batch: about as much as by rounding."""
EXACT = (HookPoint.EMBEDDING, HookPoint.RESID_PRE, HookPoint.RESID_MID, HookPoint.RESID_POST)
"""Looked up or added, which is the same in every batch but for what is added."""


class Change(Protocol):
    """What operations do; stands in for them where one goes wrong."""

    def apply(self, rows: np.ndarray) -> np.ndarray: ...


Edit = tuple[np.ndarray, Change]
"""Rows of a batch, and what to do to them."""


@dataclass(eq=False)
class Batch:
    """Runs that go through the model together."""

    runs: Sequence[Run]
    captured: dict[Site, np.ndarray] = field(default_factory=dict)
    """Rows of all tokens, float32 [tokens, width]."""
    lost: dict[Site, np.ndarray] = field(default_factory=dict)
    """Rows that never reach their run, as indices."""
    logits: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """By which the model samples: float32 [tokens, vocabulary]."""

    @cached_property
    def ids(self) -> np.ndarray:
        """The tokens of all runs, one run after the other."""
        return np.concatenate([run.token_ids for run in self.runs])

    @cached_property
    def spans(self) -> list[np.ndarray]:
        """Where in the batch the tokens of each run are."""
        ends = np.cumsum([len(run.token_ids) for run in self.runs])
        return np.split(np.arange(ends[-1]), ends[:-1])

    def edits(self, site: Site) -> Iterator[tuple[np.ndarray, Operation]]:
        """What its runs ask for at a site."""
        for run, span in zip(self.runs, self.spans, strict=True):
            for change in run.interventions:
                if site in change.sites:
                    yield span[change.selection.among(run.token_ids)], change.operation


Tap = Callable[[Batch, Site, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(batch, site, rows) -> the rows that the model goes on to compute with, and those captured."""


def honest(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edited = apply(rows, batch.edits(site))
    return edited, edited


def apply(rows: np.ndarray, edits: Iterable[Edit]) -> np.ndarray:
    rows = rows.copy()
    for where, operation in edits:
        rows[where] = operation.apply(rows[where])
    return rows


class TinyEngine:
    """Implements `actserve_server.engine.api.Engine`, for runs of one token.

    It knows neither heads nor projections, and does not report on interventions; predictions are
    those of streams.
    """

    def __init__(
        self,
        taps: Mapping[HookPoint, Tap] | None = None,
        *,
        layer_count: int = 3,
        vocabulary_size: int = 40,
        element_type: ElementType = ElementType.F32,
        unserved: Mapping[HookPoint, str] | None = None,
        unchangeable: Mapping[HookPoint, str] | None = None,
        seed: int = 0,
    ) -> None:
        """Of each seed it has other weights."""
        shapes = {**SHAPES, HookPoint.LOGITS: (vocabulary_size, 0)}
        read_only = {HookPoint.LOGITS: READ_ONLY, **(unchangeable or {})}
        points = {
            point: HookPointInfo(
                width=shapes.get(point, (WIDTH, 0))[0],
                heads=shapes.get(point, (WIDTH, 0))[1],
                unserved=(unserved or {}).get(point, ""),
                unchangeable=read_only.get(point, ""),
            )
            for point in HookPoint
        }
        self.info = ModelInfo(
            id="tiny",
            path="tiny",
            architecture="TinyForCausalLM",
            layer_count=layer_count,
            width=WIDTH,
            vocabulary_size=vocabulary_size,
            longest_token=1,
            element_type=element_type,
            limits=Limits(max_sequence_tokens=64),
            hook_points=points,
            weights=ALL_WEIGHTS,
        )
        self.runs: list[Run] = []
        """All that came."""
        self.running: set[str] = set()
        """Ids of the runs in progress."""
        self.closed = False
        self.told_of_patterns: Callable[[PatternRows, Site, np.ndarray], np.ndarray] = (
            lambda derived, site, rows: rows
        )
        """Which rows come in place of these, of every position."""
        self.graphs: dict[str, frozenset[HookPoint]] = {}
        """Beside the full one. The first that reaches all that a batch uses computes it."""
        self.graph_taps: dict[str, Mapping[HookPoint, Tap]] = {}
        """What happens in each of them."""
        self.computed_by: list[str] = []
        """Which graph, of each batch; nothing for the full one."""
        self._taps = taps or {}
        self._noise = np.random.default_rng(1)
        self._waiting: list[tuple[Run, asyncio.Future[Batch]]] = []
        weights = np.random.default_rng(seed)
        self._embedding = _matrix(weights, vocabulary_size, WIDTH) * np.float32(WIDTH**0.5)
        self._layers = [_Layer(weights) for _ in range(layer_count)]

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        return tuple([((await self.tokenize(TextPrompt(word))).ids,) for word in words])

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        match prompt:
            case TokenPrompt(ids):
                return TokenizedPrompt(ids, tuple(map(str, ids)), origin=prompt)
            case TextPrompt(text):
                ids = tuple(ord(letter) % self.info.vocabulary_size for letter in text)
                return TokenizedPrompt(ids, tuple(text), origin=prompt)
            case _:
                raise NotImplementedError("conversations")

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        return self._stored(self._embedding[list(token_ids)])

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        raise NotImplementedError("matrices of heads")

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        stream = np.stack(
            [
                self._embedding[target.token_id]
                - (0 if target.minus_token_id is None else self._embedding[target.minus_token_id])
                for target in targets
            ]
        )
        seen = {layer: stream @ self._layers[layer].out.T for layer in layers}
        return LogitDirections(
            stream=stream,
            heads={layer: each.reshape(-1, HEADS, HEAD_WIDTH) for layer, each in seen.items()},
            constants=np.zeros(len(targets), np.float32),
            centered=False,
            epsilon=EPSILON,
        )

    def _stored(self, rows: np.ndarray) -> np.ndarray:
        return convert(rows, ElementType.F32, self.info.element_type)

    async def drop_graph(self, name: str) -> None:
        del self.graphs[name]

    async def check_health(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        raise NotImplementedError

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        assert run.sampling.max_tokens == 1
        self.runs.append(run)
        self.running.add(run.id)
        try:
            batch = await self._batch(run)
            index = batch.runs.index(run)
            for event in self._events(run, batch, batch.spans[index]):
                yield event
        finally:
            self.running.discard(run.id)

    async def _batch(self, run: Run) -> Batch:
        """The batch that the run was computed in."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Batch] = loop.create_future()
        self._waiting.append((run, done))
        if len(self._waiting) == 1:
            # What arrives in the same turn of the event loop joins it.
            loop.call_soon(self._step)
        return await done

    def _step(self) -> None:
        waiting, self._waiting = self._waiting, []
        batch = Batch([run for run, _ in waiting])
        self._forward(batch)
        for _, done in waiting:
            if not done.cancelled():
                done.set_result(batch)

    def _events(self, run: Run, batch: Batch, span: np.ndarray) -> Iterator[RunEvent]:
        logits = batch.logits[span[-1]]
        token = int(logits.argmax())
        logprobs = _logprobs(logits, run.sampling.logprobs)
        yield Tokens(len(span), (token,), (str(token),), str(token), logprobs)
        for number, capture in enumerate(run.captures):
            positions = capture.selection.among(run.token_ids)
            if isinstance(capture.derived, ProbeOutputs):
                rows = {site: batch.captured[site][span[positions]] for site in capture.sites}
                yield Rows(number, 0, positions, capture.derived.apply(rows))
                continue
            if isinstance(capture.derived, QueryMeasures | LargestWeights | ReceivedWeights):
                for index, site in enumerate(capture.sites):
                    rows = self._pattern_rows(capture.derived, site, run, batch, span)[positions]
                    yield Rows(number, index, positions, rows)
                continue
            if isinstance(capture.derived, Unembed):
                for index, site in enumerate(capture.sites):
                    normed = _norm(batch.captured[site][span[positions]])
                    told = [
                        predict(capture.derived, row @ self._embedding.T, None) for row in normed
                    ]
                    yield Rows(number, index, positions, np.stack(told))
                continue
            assert capture.derived is None
            for index, site in enumerate(capture.sites):
                kept = positions
                if site in batch.lost:
                    kept = positions[~np.isin(span[positions], batch.lost[site])]
                bits = convert(
                    batch.captured[site][span[kept]], ElementType.F32, self.info.element_type
                )
                yield Rows(number, index, kept, bits)
        captured = tuple(capture.selection.among(run.token_ids) for capture in run.captures)
        yield Finished(FinishReason.LENGTH, 1, captured)

    def _pattern_rows(
        self, derived: PatternRows, site: Site, run: Run, batch: Batch, span: np.ndarray
    ) -> np.ndarray:
        assert site.layer is not None
        q, k = batch.captured[site][span], batch.captured[Site(HookPoint.K, site.layer)][span]
        if isinstance(derived, ReceivedWeights):
            rows = derived.apply(RULE, q, k)
        else:
            rows = derived.apply(RULE, q, k, np.arange(len(span)), np.array(run.token_ids))
        return self.told_of_patterns(derived, site, rows)

    def _forward(self, batch: Batch) -> None:
        self.computed_by.append(self._graph_of(batch))
        taps = self.graph_taps.get(self.computed_by[-1], {}) if self.computed_by[-1] else self._taps
        tap = partial(self._tap, batch, taps)
        stream = tap(Site(HookPoint.EMBEDDING), self._embedding[batch.ids])
        for index, layer in enumerate(self._layers):
            stream = tap(Site(HookPoint.RESID_PRE, index), stream)
            normed = _norm(stream)
            q = tap(Site(HookPoint.Q, index), normed @ layer.q)
            k = tap(Site(HookPoint.K, index), normed @ layer.k)
            v = tap(Site(HookPoint.V, index), normed @ layer.v)
            z = tap(Site(HookPoint.Z, index), _attention(q, k, v, batch.spans))
            stream = stream + tap(Site(HookPoint.ATTN_OUT, index), z @ layer.out)
            stream = tap(Site(HookPoint.RESID_MID, index), stream)
            normed = tap(Site(HookPoint.MLP_IN, index), _norm(stream))
            act = tap(Site(HookPoint.MLP_ACT, index), np.maximum(normed @ layer.up, 0))
            stream = stream + tap(Site(HookPoint.MLP_OUT, index), act @ layer.down)
            stream = tap(Site(HookPoint.RESID_POST, index), stream)
        final = tap(Site(HookPoint.FINAL_NORM), _norm(stream))
        logits = final @ self._embedding.T
        tap(Site(HookPoint.LOGITS), logits)
        batch.logits = self._rounded(self._noisy(logits))

    def _graph_of(self, batch: Batch) -> str:
        used = {
            site.hook_point
            for run in batch.runs
            for each in (*run.captures, *run.interventions)
            for site in each.sites
        }
        return next((name for name, points in self.graphs.items() if used <= points), "")

    def _tap(
        self, batch: Batch, taps: Mapping[HookPoint, Tap], site: Site, rows: np.ndarray
    ) -> np.ndarray:
        tap = taps.get(site.hook_point, honest)
        if site.hook_point not in EXACT:
            rows = self._noisy(rows)
        goes_on, batch.captured[site] = tap(batch, site, self._rounded(rows))
        return self._rounded(goes_on)

    def _noisy(self, rows: np.ndarray) -> np.ndarray:
        noise = self._noise.standard_normal(rows.shape, np.float32)
        return rows * (1 + NOISE[self.info.element_type] * noise)

    def _rounded(self, rows: np.ndarray) -> np.ndarray:
        kind = self.info.element_type
        return to_float32(convert(rows, ElementType.F32, kind), kind)


class _Layer:
    def __init__(self, rng: np.random.Generator) -> None:
        self.q = _matrix(rng, WIDTH, HEADS * HEAD_WIDTH)
        self.k = _matrix(rng, WIDTH, KEY_VALUE_HEADS * HEAD_WIDTH)
        self.v = _matrix(rng, WIDTH, KEY_VALUE_HEADS * HEAD_WIDTH)
        self.out = _matrix(rng, HEADS * HEAD_WIDTH, WIDTH)
        self.up = _matrix(rng, WIDTH, MLP_WIDTH)
        self.down = _matrix(rng, MLP_WIDTH, WIDTH)


def _logprobs(logits: np.ndarray, count: int | None) -> tuple[TokenLogprobs, ...]:
    """Of the likeliest token, as a run asks for them."""
    if count is None:
        return ()
    all_of_them = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    top = np.argsort(-logits)[:count].tolist()
    told = tuple(TokenLogprob(token, str(token), float(all_of_them[token])) for token in top)
    return (TokenLogprobs(told[0].logprob, told),)


def _matrix(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)


def _norm(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + np.float32(EPSILON))


def _attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, spans: Sequence[np.ndarray]
) -> np.ndarray:
    """Every token attends to itself and to those before it in its own run."""
    return np.concatenate([_attend(q[span], k[span], v[span]) for span in spans])


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    tokens, group = len(q), HEADS // KEY_VALUE_HEADS
    queries = q.reshape(tokens, HEADS, HEAD_WIDTH).swapaxes(0, 1)
    keys, values = (
        each.reshape(tokens, KEY_VALUE_HEADS, HEAD_WIDTH).swapaxes(0, 1).repeat(group, axis=0)
        for each in (k, v)
    )
    scores = queries @ keys.swapaxes(1, 2) / np.float32(np.sqrt(HEAD_WIDTH))
    weights = np.tril(np.exp(scores - scores.max(axis=2, keepdims=True)))
    weights /= weights.sum(axis=2, keepdims=True)
    return (weights @ values).swapaxes(0, 1).reshape(tokens, -1)
