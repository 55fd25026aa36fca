"""A deterministic engine without a model, for tests and for trying a client offline.

A row is a pure function of the tokens up to its position and of the site, plus every addition made
at that position at the same site or an earlier one. The next token is read off the last site's
row, so additions show in rows (exactly) and, when large, in the text. Tokens are bytes, so a
character may be split over several of them, as with real tokenizers.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import Limits, ModelInfo
from actserve_server.domain.prompts import Conversation, Prompt, TextPrompt, TokenizedPrompt
from actserve_server.domain.runs import (
    Capture,
    Finished,
    FinishReason,
    Intervention,
    Rows,
    Run,
    RunEvent,
    Sampling,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert

BYTES = 256
BOS, EOS, ROLE, END_OF_TURN = range(BYTES, BYTES + 4)
SPECIAL_TEXTS = {BOS: "<bos>", EOS: "<eos>", ROLE: "<|role|>", END_OF_TURN: "<|end|>"}
VOCABULARY_SIZE = BYTES + len(SPECIAL_TEXTS)
ROLES = ("system", "user", "assistant")

GENERATED = np.arange(32, 127)
"""The ids it generates: printable ASCII."""

_ORDER = {
    HookPoint.EMBEDDING: -1,
    HookPoint.RESID_PRE: 0,
    HookPoint.ATTN_OUT: 1,
    HookPoint.RESID_MID: 2,
    HookPoint.MLP_OUT: 3,
    HookPoint.RESID_POST: 4,
}


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


class FakeEngine:
    """Implements `actserve_server.engine.api.Engine`."""

    def __init__(
        self,
        *,
        model_id: str = "fake",
        layer_count: int = 4,
        width: int = 16,
        element_type: ElementType = ElementType.F32,
        limits: Limits | None = None,
        unserved: Mapping[HookPoint, str] | None = None,
        token_delay_s: float = 0.0,
        rows_per_event: int = 8,
    ) -> None:
        self._info = ModelInfo(
            id=model_id,
            path="fake",
            architecture="FakeForCausalLM",
            layer_count=layer_count,
            width=width,
            vocabulary_size=VOCABULARY_SIZE,
            element_type=element_type,
            limits=limits or Limits(max_sequence_tokens=2048),
            unserved=unserved or {},
        )
        self._delay_s = token_delay_s
        self._rows_per_event = rows_per_event
        self._unembedding = np.random.default_rng(0).standard_normal((len(GENERATED), width))
        self.faults = Faults()
        self.counters = Counters()
        self.closed = False

    @property
    def info(self) -> ModelInfo:
        return self._info

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        ids = self._ids(prompt)
        return TokenizedPrompt(tuple(ids), tuple(decode([token]) for token in ids))

    def _ids(self, prompt: Prompt) -> list[int]:
        match prompt:
            case TextPrompt(text):
                return [BOS, *text.encode()]
            case Conversation(turns, add_generation_prompt):
                ids = [BOS]
                for turn in turns:
                    if turn.role not in ROLES:
                        raise ActserveError(
                            Reason.PROMPT_NOT_RENDERABLE,
                            f"the chat template knows no role of that name; use one of {ROLES}",
                        )
                    ids += [ROLE, *turn.role.encode(), *b"\n"]
                    ids += [*turn.content.encode(), END_OF_TURN]
                return ids + ([ROLE, *b"assistant\n"] if add_generation_prompt else [])
            case _:
                for token in prompt.ids:
                    if token >= VOCABULARY_SIZE:
                        raise ActserveError(
                            Reason.TOKEN_OUT_OF_RANGE,
                            f"token id {token} is not below {VOCABULARY_SIZE}",
                        )
                return list(prompt.ids)

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
            async for event in self._run(run):
                yield event
        finally:
            counters.running.discard(run.id)

    async def _run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        ids = list(run.token_ids)
        text = _TextStream(run.sampling)
        rows = self._captured(run.capture, ids, run.interventions, 0, len(ids))
        generated = 0
        reason = None
        while reason is None:
            for event in rows:
                await self._step(0)
                yield event
            await self._step(self._delay_s)
            token, logprobs = self._next_token(run, ids)
            ids.append(token)
            generated += 1
            reason = _finish_reason(run.sampling, token, generated)
            added = text.add(token, generated, last=reason is not None)
            if text.stopped:
                reason = FinishReason.STOP
            yield Tokens(len(ids) - 1, (token,), (decode([token]),), added, logprobs)
            # The token just sampled is run, and so has rows, only if another one follows.
            if reason is None:
                rows = self._captured(run.capture, ids, run.interventions, len(ids) - 1, len(ids))
        captured = np.empty(0, np.int64)
        if run.capture is not None:
            captured = run.capture.spans.within(0, len(ids) - 1)
            if self.faults.incomplete:
                raise ActserveError(
                    Reason.CAPTURE_INCOMPLETE, "1 row of the capture was lost; try again"
                )
        yield Finished(reason, generated, captured)

    async def _step(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self.check_health()
        if self.faults.unexpected is not None:
            raise RuntimeError(self.faults.unexpected)

    def row(
        self, site: Site, ids: Sequence[int], interventions: Sequence[Intervention] = ()
    ) -> np.ndarray:
        """The activation at the last of `ids`, float32 [width]."""
        key = f"{site}|{','.join(map(str, ids))}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
        row = np.random.default_rng(seed).standard_normal(self._info.width, dtype=np.float32)
        position = len(ids) - 1
        for edit in interventions:
            here = edit.spans.within(position, position + 1).size > 0
            if here and _depth(edit.site) <= _depth(site):
                row = row + np.float32(edit.coefficient) * edit.vector
        return row

    def _captured(
        self,
        capture: Capture | None,
        ids: list[int],
        interventions: Sequence[Intervention],
        start: int,
        end: int,
    ) -> Iterator[Rows]:
        """The wanted rows of positions [start, end), a few positions at a time."""
        if capture is None:
            return
        positions = capture.spans.within(start, end)
        for low in range(0, len(positions), self._rows_per_event):
            part = positions[low : low + self._rows_per_event]
            for index, site in enumerate(capture.sites):
                values = [self.row(site, ids[: p + 1], interventions) for p in part]
                bits = convert(np.stack(values), ElementType.F32, self._info.element_type)
                self.counters.rows += len(part)
                yield Rows(index, part, bits)

    def _next_token(self, run: Run, ids: list[int]) -> tuple[int, tuple[TokenLogprobs, ...]]:
        last = Site(HookPoint.RESID_POST, self._info.layer_count - 1)
        logits = self._unembedding @ self.row(last, ids, run.interventions)
        sampling = run.sampling
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        choice = logits
        if temperature > 0:
            seed = abs(hash(run.id)) if sampling.seed is None else sampling.seed % (1 << 63)
            noise = np.random.default_rng([seed, len(ids)]).gumbel(size=len(GENERATED))
            choice = logits / temperature + noise
        index = int(np.argmax(choice))
        if sampling.logprobs is None:
            return int(GENERATED[index]), ()
        logprob = logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
        best = np.argsort(-logprob)[: sampling.logprobs]
        top = tuple(
            TokenLogprob(int(GENERATED[i]), decode([int(GENERATED[i])]), float(logprob[i]))
            for i in best
        )
        return int(GENERATED[index]), (TokenLogprobs(float(logprob[index]), top),)


def decode(ids: Sequence[int]) -> str:
    """The text of tokens; incomplete characters become U+FFFD."""
    data = b"".join(
        bytes([token]) if token < BYTES else SPECIAL_TEXTS[token].encode() for token in ids
    )
    return data.decode(errors="replace")


def _depth(site: Site) -> tuple[int, int]:
    return (-1 if site.layer is None else site.layer, _ORDER[site.hook_point])


def _finish_reason(sampling: Sampling, token: int, generated: int) -> FinishReason | None:
    ends = token in sampling.stop_token_ids or (token == EOS and not sampling.ignore_eos)
    if ends and generated >= sampling.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if generated >= sampling.max_tokens else None


class _TextStream:
    """The text of generated tokens, holding back what may begin a stop string."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._held = ""
        self.stopped = False

    def add(self, token: int, generated: int, *, last: bool) -> str:
        self._held += decode([token])
        stops = self._sampling.stop
        if generated >= self._sampling.min_tokens:
            found = [self._held.index(stop) for stop in stops if stop in self._held]
            if found:
                self.stopped = True
                return self._held[: min(found)]
        hold = 0 if last else max((_overlap(self._held, stop) for stop in stops), default=0)
        cut = len(self._held) - hold
        released, self._held = self._held[:cut], self._held[cut:]
        return released


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
