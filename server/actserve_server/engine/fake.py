"""A deterministic engine without a model, for tests and for trying a client offline.

`fake_tokenizer.py` makes tokens of bytes, and `fake_model.py` makes rows and next tokens up. The
rest is honest: interventions, captures and reports are what the contract says.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from actserve_server.domain.attention_rows import (
    LargestWeights,
    PatternRows,
    QueryMeasures,
    ReceivedWeights,
)
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.domain.model import Limits, ModelInfo
from actserve_server.domain.operations import relative_change
from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.probes import RunningScore
from actserve_server.domain.projection import Projected
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import (
    NEUTRAL,
    Capture,
    Finished,
    FinishReason,
    Intervention,
    InterventionReport,
    Rows,
    Run,
    RunEvent,
    Sampling,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
    Unembed,
    conditions_of,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.domain.weights import (
    ALL_WEIGHTS,
    HeadMatrix,
    LogitDirections,
    LogitTarget,
    TokenMatrix,
    WeightsInfo,
)
from actserve_server.engine.fake_model import (
    LOGITS,
    Change,
    FakeModel,
    Placed,
    Shape,
    attention_rules,
    describe,
    predict,
)
from actserve_server.engine.fake_sampling import Choice, TextStream, end_of
from actserve_server.engine.fake_tokenizer import (
    BOS,
    BYTES_AS_TOKENS,
    EOS,
    VOCABULARY_SIZE,
    Vocabulary,
    spell,
    tokenize,
)
from actserve_server.engine.fake_weights import FakeWeights

__all__ = ["BOS", "EOS", "VOCABULARY_SIZE", "Counters", "FakeEngine", "Faults", "Vocabulary"]


@dataclass(kw_only=True)
class Faults:
    """What goes wrong, settable at any time."""

    dead: bool = False
    """Every run fails with ENGINE_DEAD at its next step."""
    incomplete: bool = False
    """The last row of every capture is lost, so that captures fail with CAPTURE_INCOMPLETE."""
    unexpected: str | None = None
    """Every run fails with a RuntimeError of this message: a bug in the engine."""


@dataclass(kw_only=True)
class Counters:
    """What the engine did, for tests to look at."""

    running: set[str] = field(default_factory=set)
    """The ids of the runs in progress."""
    most_running: int = 0
    started: int = 0
    rows: int = 0
    """Rows handed out, counted per site."""
    weight_reads: int = 0
    """Pieces of weights handed out."""


class FakeEngine:
    """Implements `actserve_server.engine.api.Engine`."""

    def __init__(
        self,
        *,
        model_id: str = "fake",
        architecture: str = "FakeForCausalLM",
        layer_count: int = 4,
        width: int = 16,
        heads: int = 4,
        key_value_heads: int = 2,
        mlp_width: int | None = None,
        vocabulary: Vocabulary = BYTES_AS_TOKENS,
        element_type: ElementType = ElementType.F32,
        limits: Limits | None = None,
        unserved: Mapping[HookPoint, str] | None = None,
        attention_unserved: str = "",
        conditions_unserved: str = "",
        monitors_unserved: str = "",
        default_sampling: Sampling = NEUTRAL,
        weights: WeightsInfo = ALL_WEIGHTS,
        vector_bytes: int = 256 << 20,
        step_tokens: int = 2048,
        adapters: Sequence[LoraAdapter] = (),
        token_delay_s: float = 0.0,
        rows_per_event: int = 8,
    ) -> None:
        shape = Shape(
            layers=layer_count,
            width=width,
            heads=heads,
            key_value_heads=key_value_heads,
            mlp_width=mlp_width or width * 3 // 2,
            vocabulary_size=vocabulary.size,
        )
        self._info = ModelInfo(
            id=model_id,
            path="fake",
            architecture=architecture,
            layer_count=shape.layers,
            width=shape.width,
            vocabulary_size=shape.vocabulary_size,
            longest_token=vocabulary.longest,
            end_token_ids=(vocabulary.end,),
            element_type=element_type,
            vector_bytes=vector_bytes,
            encoder_type=element_type,
            step_tokens=step_tokens,
            limits=limits or Limits(max_sequence_tokens=2048),
            hook_points=describe(shape, unserved or {}),
            attention=() if attention_unserved else attention_rules(shape),
            attention_unserved=attention_unserved,
            pattern_rows_unserved="",
            conditions_unserved=conditions_unserved,
            monitors_unserved=monitors_unserved,
            default_sampling=default_sampling,
            weights=weights,
            adapters={each.id: each for each in adapters},
        )
        self._model = FakeModel(self._info.hook_points)
        self._weights = FakeWeights(self._model, shape)
        self._vocabulary = vocabulary
        self._delay_s = token_delay_s
        self._rows_per_event = rows_per_event
        self.faults = Faults()
        self.counters = Counters()
        self.closed = False

    @property
    def info(self) -> ModelInfo:
        return self._info

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        return tokenize(prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        return tuple(map(spell, words))

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        return self._told(self._weights.tokens(matrix, token_ids))

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        return self._told(self._weights.head(layer, head, matrix)[rows.start : rows.stop])

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        return self._weights.logit_directions(targets, layers)

    def _told(self, weights: np.ndarray) -> np.ndarray:
        self.counters.weight_reads += 1
        return convert(weights, ElementType.F32, self._info.element_type)

    def under(self, adapter: str) -> "FakeEngine":
        """The same engine with the model as it is under a LoRA adapter that it has."""
        if not adapter:
            return self
        other = copy(self)
        other._model = FakeModel(self._info.hook_points, self._info.adapters[adapter].id)
        return other

    def row(
        self, site: Site, ids: Sequence[int], interventions: Sequence[Intervention] = ()
    ) -> np.ndarray:
        """The activation at the last of `ids`, float32 [width of the site]."""
        done = _Pass(self._model, interventions)
        done.reach(ids, start=0 if done.scores else len(ids) - 1)
        return self._model.row(site, ids, done.changes[-1])

    def unembedding(self, token_id: int) -> np.ndarray:
        """What a row after the final norm is multiplied with for the score of a token, float32
        [width]."""
        return self._model.unembedding(token_id)

    @property
    def graphs(self) -> Mapping[str, frozenset[HookPoint]]:
        return {}

    async def drop_graph(self, name: str) -> None:
        raise NotImplementedError("it has no graphs")

    async def check_health(self) -> None:
        if self.faults.dead:
            raise ActserveError(Reason.ENGINE_DEAD, "the engine has stopped; restart the server")

    async def close(self) -> None:
        self.closed = True

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        counters = self.counters
        counters.started += 1
        counters.running.add(run.id)
        counters.most_running = max(counters.most_running, len(counters.running))
        try:
            async for event in self.under(run.adapter)._run(run):
                yield event
        finally:
            counters.running.discard(run.id)

    async def _run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        ids = list(run.token_ids)
        for placement in run.placements:
            ids[placement.position] = Placed.of(placement.vector)
        end_token = self._vocabulary.end
        choice = Choice(run.sampling, ids, abs(hash(run.id)), end_token)
        text = TextStream(run.sampling, self._vocabulary)
        done = _Pass(self._model, run.interventions)
        done.reach(ids)
        rows = self._captured(run, done, ids, 0)
        generated: list[int] = []
        reason: FinishReason | None = None
        stopped_by: int | str | None = None
        while reason is None:
            for event in rows:
                await self._step(0)
                yield event
            await self._step(self._delay_s)
            logits = self._model.row(LOGITS, ids, done.changes[-1])
            token = choice.next(logits, generated, len(ids))
            if len(generated) < len(run.replayed):
                token = run.replayed[len(generated)]
            ids.append(token)
            generated.append(token)
            reason, stopped_by = end_of(run.sampling, generated, end_token) or (None, None)
            added = text.add(token, len(generated), reason)
            if text.stop_string is not None:
                reason, stopped_by = FinishReason.STOP, text.stop_string
            logprobs = self._logprobs(logits, token, run.sampling.logprobs)
            spelled = self._vocabulary.decode([token])
            ends = reason is not None
            yield Tokens(len(ids) - 1, (token,), (spelled,), added, logprobs, ends)
            # The token just sampled is run, and so has rows, only if another one follows.
            if reason is None:
                done.reach(ids)
                rows = self._captured(run, done, ids, len(ids) - 1)
        if run.captures and self.faults.incomplete:
            raise ActserveError(
                Reason.CAPTURE_INCOMPLETE, "1 row of the capture was lost; try again"
            )
        captured = tuple(capture.selection.among(ids[:-1]) for capture in run.captures)
        yield Finished(reason, len(generated), captured, done.reports(ids[:-1]), stopped_by)

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        text = TextStream(run.sampling, self._vocabulary)
        last = len(generated)
        return "".join(
            text.add(token, number, FinishReason.LENGTH if number == last else None)
            for number, token in enumerate(generated, 1)
        )

    async def _step(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self.check_health()
        if self.faults.unexpected is not None:
            raise RuntimeError(self.faults.unexpected)

    def _captured(self, run: Run, done: "_Pass", ids: list[int], start: int) -> Iterator[Rows]:
        """The wanted rows from position `start` on, a few positions at a time."""
        for number, capture in enumerate(run.captures):
            positions = capture.selection.among(ids)
            positions = positions[positions >= start]
            for low in range(0, len(positions), self._rows_per_event):
                part = positions[low : low + self._rows_per_event]
                for index, values in enumerate(self._columns(run, capture, ids, done, part)):
                    bits = convert(values, ElementType.F32, self._info.row_type(capture))
                    self.counters.rows += len(part)
                    yield Rows(number, index, part, bits)

    def _logprobs(
        self, logits: np.ndarray, token: int, wanted: int | None
    ) -> tuple[TokenLogprobs, ...]:
        """Of the model itself, before anything that a caller asked for changed its scores."""
        if wanted is None:
            return ()
        logprob = logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
        top = tuple(
            TokenLogprob(int(i), self._vocabulary.decode([int(i)]), float(logprob[i]))
            for i in np.argsort(-logprob)[:wanted]
        )
        return (TokenLogprobs(float(logprob[token]), top),)

    def _columns(
        self, run: Run, capture: Capture, ids: list[int], done: "_Pass", positions: np.ndarray
    ) -> Iterator[np.ndarray]:
        """What is given at these positions, float32 [positions, width], by site index."""
        if isinstance(capture.derived, ProbeOutputs):
            # As a model has them.
            element_type = self._info.element_type
            rows = {
                site: np.stack([self._row(site, ids, done, int(p)) for p in positions])
                for site in capture.sites
            }
            held = {
                site: to_float32(convert(each, ElementType.F32, element_type), element_type)
                for site, each in rows.items()
            }
            yield capture.derived.apply(held)
            return
        if isinstance(capture.derived, QueryMeasures | LargestWeights | ReceivedWeights):
            for site in capture.sites:
                yield self._pattern_rows(site, capture.derived, ids, done, positions)
            return
        for site in capture.sites:
            yield np.stack([self._value(run, capture, site, ids, done, int(p)) for p in positions])

    def _pattern_rows(
        self,
        site: Site,
        derived: PatternRows,
        ids: list[int],
        done: "_Pass",
        positions: np.ndarray,
    ) -> np.ndarray:
        """Of the queries of a layer at these positions."""
        assert site.layer is not None
        rule = self._info.attention[site.layer]
        end = int(positions[-1]) + 1
        if isinstance(derived, ReceivedWeights):
            if (site, derived) not in done.received:
                q = self._held(site, ids, done, derived.end)
                k = self._held(Site(HookPoint.K, site.layer), ids, done, derived.end)
                done.received[site, derived] = derived.apply(rule, q, k)
            return done.received[site, derived][positions]
        q = self._held(site, ids, done, end)[positions]
        k = self._held(Site(HookPoint.K, site.layer), ids, done, end)
        return derived.apply(rule, q, k, positions, np.array(ids[:end], np.int64))

    def _held(self, site: Site, ids: list[int], done: "_Pass", end: int) -> np.ndarray:
        """The rows of a site below a position, as a model has them."""
        rows = done.rows.setdefault(site, [])
        for position in range(len(rows), end):
            bits = convert(
                self._row(site, ids, done, position), ElementType.F32, self._info.element_type
            )
            rows.append(to_float32(bits, self._info.element_type))
        return np.stack(rows[:end])

    def _row(self, site: Site, ids: list[int], done: "_Pass", position: int) -> np.ndarray:
        return self._model.row(site, ids[: position + 1], done.changes[position])

    def _value(
        self, run: Run, capture: Capture, site: Site, ids: list[int], done: "_Pass", position: int
    ) -> np.ndarray:
        """A row of one site, or what is made of it."""
        past, changes = ids[: position + 1], done.changes[position]
        match capture.derived:
            case Projected() as projected:
                return projected.apply(self._model.row(site, past, changes)[None])[0]
            case Unembed() as unembed:
                following = run.token_ids[position + 1 : position + 2]
                logits = self._model.logits(site, past, changes)
                return predict(unembed, logits, following[0] if following else None)
            case _:
                return self._model.row(site, past, changes)


class _Pass:
    """What interventions did to one run so far."""

    def __init__(self, model: FakeModel, interventions: Sequence[Intervention]) -> None:
        self._model = model
        self._interventions = interventions
        self.scores = {
            condition: RunningScore(condition.aggregator)
            for condition in conditions_of(interventions)
        }
        """So far, of every condition."""
        self.changes: list[list[Change]] = []
        """By position."""
        self.rows: dict[Site, list[np.ndarray]] = {}
        """By site and position, as patterns are made of them."""
        self.received: dict[tuple[Site, ReceivedWeights], np.ndarray] = {}

    def reach(self, ids: Sequence[int], start: int | None = None) -> None:
        """Runs the positions of `ids` that were not run yet, or those from `start` on."""
        for position in range(len(self.changes) if start is None else start, len(ids)):
            past = ids[: position + 1]
            self.changes.append(self._model.changes(past, self._interventions, self.scores))

    def reports(self, ids: Sequence[int]) -> tuple[InterventionReport, ...]:
        """Of the tokens that were run. Raises if an intervention that may not go unused did."""
        return tuple(self._report(index, ids) for index in range(len(self._interventions)))

    def _report(self, index: int, ids: Sequence[int]) -> InterventionReport:
        made = [c for changes in self.changes for c in changes if c.intervention == index]
        if not made:
            change = self._interventions[index]
            if not (change.allow_unused or len(change.selection.among(ids))):
                raise ActserveError(
                    Reason.INTERVENTION_UNUSED,
                    "the intervention changed no row: no token that it selects was run; select "
                    "others, generate more, or set allow_unused",
                    field=("interventions", index),
                )
            return InterventionReport(0, 0, 0, None)
        changed = sum(int((c.before != c.after).any(axis=1).sum()) for c in made)
        relative = np.concatenate([relative_change(c.before, c.after) for c in made])
        return InterventionReport(len(relative), changed, 0, float(relative.mean()))
