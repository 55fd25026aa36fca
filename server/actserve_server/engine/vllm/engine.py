"""The Engine on vLLM's `AsyncLLM`, in the server process."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress

import numpy as np
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import tensor_bytes
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import (
    Capture,
    Finished,
    InterventionReport,
    Rows,
    Run,
    RunEvent,
    Sampling,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
)
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.vllm import startup, wire
from actserve_server.engine.vllm.cache_salt import cache_salt
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.inbox import Block, Inbox
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.engine.vllm.placing import prompt_of
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.sampling import ending, sampling_params
from actserve_server.engine.vllm.tokenizer import PromptTokenizer
from actserve_server.engine.vllm.weight_reader import WeightReader

ARRIVAL_TIMEOUT_S = 30.0
"""How long after a run's last token its rows may take to arrive before they count as lost."""

_HEALTH_CHECK_S = 1.0
"""How often a run that waits for its last rows looks whether anyone is left to send them."""

SHUTDOWN_TIMEOUT_S = 30.0
"""How long vLLM's processes may take to end; killed ones leave their shared memory behind."""

_FLUSH_BYTES = 512 << 10
_LARGE_BYTES = 256 << 10
"""Of the vectors of a run's edits: more are hashed and encoded in a thread."""
_FLUSH_SECONDS = 0.1
"""Generated rows are handed on in batches of this size, or this old, whichever is first."""


class VllmEngine:
    """Start one with `await VllmEngine.start(options)`; see `Engine` for what it promises."""

    def __init__(
        self,
        llm: AsyncLLM,
        info: ModelInfo,
        collector: Collector,
        weights: WeightReader,
        *,
        share_plain_prefixes: bool = False,
    ) -> None:
        self._llm = llm
        self._share_plain_prefixes = share_plain_prefixes
        self._info = info
        self._collector = collector
        self._weights = weights
        self._tokenizer = PromptTokenizer(llm.get_tokenizer(), info.vocabulary_size)
        self._defaults = llm.model_config.get_diff_sampling_param()
        self._keys = itertools.count(1)

    @classmethod
    async def start(cls, options: EngineOptions) -> "VllmEngine":
        """Loads the model and starts the worker. Takes a minute or two when vLLM compiles the
        model for the first time. Raises `ValueError` for a model that cannot be served."""
        reader = RingReader()
        try:
            llm = await startup.start(options, reader.folder)
            try:
                info, norm = await startup.describe(llm, options)
            except BaseException:
                llm.shutdown(SHUTDOWN_TIMEOUT_S)
                raise
        except BaseException:
            reader.close()
            reader.release()
            raise
        reader.detach_folder()
        collector = Collector(reader, asyncio.get_running_loop())
        weights = WeightReader(llm, info, norm)
        return cls(llm, info, collector, weights, share_plain_prefixes=options.share_plain_prefixes)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def vllm(self) -> AsyncLLM:
        """vLLM's own engine, for benchmarks and tests that compare with it."""
        return self._llm

    @property
    def open_inboxes(self) -> int:
        """Runs that hold or await rows or receipts."""
        return self._collector.open_inboxes

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        return await self._tokenizer.tokenize(prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        return await self._tokenizer.spell(words)

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        with _telling_death():
            return await self._weights.token_rows(matrix, token_ids)

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        with _telling_death():
            return await self._weights.head_rows(layer, head, matrix, rows)

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        with _telling_death():
            return await self._weights.logit_directions(targets, layers)

    async def check_health(self) -> None:
        try:
            self._collector.check()
        except RuntimeError as error:
            raise _engine_dead() from error
        if self._llm.errored:
            raise _engine_dead()

    async def close(self) -> None:
        try:
            if self._llm.errored:
                # What is left of a dead one may take its time, and the server goes on.
                await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_TIMEOUT_S)
            else:
                # On the loop, which has nothing else left to do: while a thread did it, vLLM's
                # output handler would see its engine die and report that as an error.
                self._llm.shutdown(SHUTDOWN_TIMEOUT_S)
        finally:
            self._collector.close()
            self._tokenizer.close()

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self._check_tokens_known(run)
        model = self._llm.model_config
        if run.placements and not model.enable_prompt_embeds:
            raise ActserveError(
                Reason.FEATURE_DISABLED, "this engine was not started to place embeddings"
            )
        if sum(tensor_bytes(each.operation) for each in run.interventions) > _LARGE_BYTES:
            taps, salt, params = await off_loop(self._prepare, run)
        else:
            taps, salt, params = self._prepare(run)
        prompt = prompt_of(run, salt, self._info.width, model.dtype)
        try:
            outputs = self._llm.generate(prompt, params, run.id)  # type: ignore[arg-type]
            events = self._run_tapped(run, outputs, taps) if taps else self._run_plain(run, outputs)
            # Closed from the inside out: vLLM aborts a request when its outputs are closed, and
            # they can only be closed when nobody waits for the next one.
            async with aclosing(outputs), aclosing(events):
                async for event in events:
                    yield event
        except VLLMClientError as error:
            # What vLLM refuses and the edge did not know of.
            raise ActserveError(Reason.FIELD_INVALID, f"vLLM refuses this: {error}") from error
        except EngineDeadError as error:
            raise _engine_dead() from error

    def _prepare(self, run: Run) -> tuple[wire.RunTaps | None, str | None, SamplingParams]:
        """What the worker is told of a run, what its cache is salted with, and how it is
        sampled."""
        taps = wire.taps_of(run, next(self._keys))
        salt = cache_salt(taps, run.tenant, share_plain_prefixes=self._share_plain_prefixes)
        return taps, salt, self._params(run, taps)

    def _check_tokens_known(self, run: Run) -> None:
        # With asynchronous scheduling the worker plans a step before it knows the last token.
        by_token = any(change.selection.token_ids is not None for change in run.interventions)
        if by_token and self._llm.vllm_config.scheduler_config.async_scheduling:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "generated tokens cannot be selected by id while vLLM schedules asynchronously; "
                "select positions of the prompt",
                field=("interventions",),
            )

    async def _run_plain(
        self, run: Run, outputs: AsyncIterator[RequestOutput]
    ) -> AsyncGenerator[RunEvent, None]:
        count = 0
        async for output in outputs:
            completion = output.outputs[0]
            if tokens := self._tokens(run, count, completion):
                count += len(tokens.ids)
                yield tokens
            if output.finished:
                reason, stopped_by = ending(completion)
                yield Finished(reason, count, stopped_by=stopped_by)

    async def _run_tapped(
        self, run: Run, outputs: AsyncIterator[RequestOutput], taps: wire.RunTaps
    ) -> AsyncGenerator[RunEvent, None]:
        inbox = Inbox([reading.spans for reading in taps.captures], taps.edits)
        self._collector.open(taps.key, inbox)
        try:
            async with aclosing(self._with_arrivals(outputs)) as steps:
                async for event in self._events(run, steps, inbox):
                    yield event
        finally:
            self._collector.close_inbox(taps.key)

    async def _events(
        self, run: Run, steps: AsyncIterator[RequestOutput | None], inbox: Inbox
    ) -> AsyncIterator[RunEvent]:
        buffers = [
            _RowBuffer(number, capture, self._info.row_type(capture))
            for number, capture in enumerate(run.captures)
        ]
        prompt_tokens, count = len(run.token_ids), 0
        ids = list(run.token_ids)
        async for output in steps:
            inbox.update()
            if output is None:
                for buffer, blocks in zip(buffers, inbox.take(prompt_tokens), strict=True):
                    buffer.add(blocks, ids)
                    for event in buffer.flush():
                        yield event
                continue
            completion = output.outputs[0]
            reason, stopped_by = ending(completion) if output.finished else (None, None)
            tokens = self._tokens(run, count, completion)
            if tokens:
                count += len(tokens.ids)
                ids += tokens.ids
            # The last sampled token is not run, or is about to be; it has no row yet.
            end = prompt_tokens + max(count, 1) - 1
            if reason:
                await self._await_rest(inbox, end)
            if tokens:
                yield tokens
            for buffer, blocks in zip(buffers, inbox.take(end), strict=True):
                buffer.add(blocks, ids)
                if reason or buffer.due():
                    for event in buffer.flush():
                        yield event
            if reason:
                reports = inbox.reports(ids[:end])
                _check_used(run, reports)
                captured = tuple(buffer.positions() for buffer in buffers)
                yield Finished(reason, count, captured, reports, stopped_by)

    async def _with_arrivals(
        self, outputs: AsyncIterator[RequestOutput]
    ) -> AsyncGenerator[RequestOutput | None, None]:
        """The outputs; before the first one, also None whenever something has arrived, so that the
        rows of a long prompt go out while it is still being computed."""
        first = asyncio.ensure_future(anext(outputs))
        try:
            while not first.done():
                arrival = asyncio.ensure_future(self._collector.arrival())
                try:
                    await asyncio.wait((first, arrival), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    arrival.cancel()
                if not first.done():
                    yield None
        except BaseException:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            raise
        yield first.result()
        async for output in outputs:
            yield output

    async def _await_rest(self, inbox: Inbox, end: int) -> None:
        """Waits until all is there below position `end`; it is, or is in the ring."""
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while True:
            # Taken first, so that what arrives during the update still wakes us.
            arrival = self._collector.arrival()
            inbox.update()
            if inbox.complete(end):
                arrival.close()
                return
            if time.monotonic() > deadline:
                arrival.close()
                raise ActserveError(
                    Reason.CAPTURE_INCOMPLETE,
                    f"rows or interventions below position {end} were not reported within "
                    f"{ARRIVAL_TIMEOUT_S:.0f} s of the last token; the answer is withheld",
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(arrival, _HEALTH_CHECK_S)
            await self.check_health()

    def _params(self, run: Run, taps: wire.RunTaps | None) -> SamplingParams:
        last = len(run.token_ids) - 1
        reads_prompt = any(len(capture.spans.within(0, last)) for capture in run.captures)
        return sampling_params(
            run.sampling,
            self._defaults,
            extra_args={wire.EXTRA_ARG: wire.encode(taps)} if taps else None,
            # A position served from the prefix cache is never computed, so has no row; only the
            # last prompt position and later ones are always computed.
            skip_reading_prefix_cache=reads_prompt,
        )

    def _tokens(self, run: Run, count: int, completion: CompletionOutput) -> Tokens | None:
        ids = tuple(completion.token_ids)
        if not ids and not completion.text:
            return None
        return Tokens(
            position=len(run.token_ids) + count,
            ids=ids,
            texts=self._tokenizer.texts(ids),
            text=completion.text,
            logprobs=self._logprobs(run.sampling, completion) if completion.logprobs else (),
        )

    def _logprobs(
        self, sampling: Sampling, completion: CompletionOutput
    ) -> tuple[TokenLogprobs, ...]:
        result = []
        for token, candidates in zip(completion.token_ids, completion.logprobs or (), strict=True):
            assert candidates is not None  # Only prompt logprobs have holes.
            ranked = sorted(candidates.items(), key=lambda item: item[1].rank or 0)
            top = tuple(
                TokenLogprob(other, self._tokenizer.texts((other,))[0], candidate.logprob)
                for other, candidate in ranked[: sampling.logprobs]
            )
            result.append(TokenLogprobs(candidates[token].logprob, top))
        return tuple(result)


class _RowBuffer:
    """Collects rows of one capture until they are worth sending."""

    def __init__(self, number: int, capture: Capture, element_type: ElementType) -> None:
        self._number = number
        self._capture = capture
        self._element_type = element_type
        self._blocks: list[Block] = []
        self._sent: list[np.ndarray] = []
        self._since = 0.0
        self._size = 0

    def add(self, blocks: list[Block], ids: Sequence[int]) -> None:
        """Takes rows; `ids` are the tokens of the run as far as these rows go."""
        if self._capture.selection.token_ids is not None:
            # Which generated tokens match is known here, after the worker has read them all.
            selected = self._capture.selection.among(ids)
            blocks = [_among(block, selected) for block in blocks]
        blocks = [block for block in blocks if len(block.positions)]
        if blocks and not self._blocks:
            self._since = time.monotonic()
        self._blocks += blocks
        self._size += sum(data.nbytes for block in blocks for data in block.data)

    def due(self) -> bool:
        return bool(self._blocks) and (
            self._size >= _FLUSH_BYTES or time.monotonic() - self._since >= _FLUSH_SECONDS
        )

    def flush(self) -> list[Rows]:
        if not self._blocks:
            return []
        positions = np.concatenate([block.positions for block in self._blocks])
        storage = self._element_type.storage
        data = zip(*(block.data for block in self._blocks), strict=True)
        events = [
            Rows(self._number, site, positions, np.concatenate(parts).view(storage))
            for site, parts in enumerate(data)
        ]
        self._sent.append(positions)
        self._blocks, self._size = [], 0
        return events

    def positions(self) -> np.ndarray:
        """Every position flushed so far."""
        return np.concatenate(self._sent) if self._sent else np.empty(0, np.int64)


def _among(block: Block, positions: np.ndarray) -> Block:
    kept = np.isin(block.positions, positions)
    return Block(block.positions[kept], tuple(each[kept] for each in block.data))


def _check_used(run: Run, reports: Sequence[InterventionReport]) -> None:
    for number, (change, report) in enumerate(zip(run.interventions, reports, strict=True)):
        if report.rows == 0 and not change.allow_unused:
            raise ActserveError(
                Reason.INTERVENTION_UNUSED,
                "the intervention changed no row: no token that it selects was run; select others, "
                "generate more, or set allow_unused",
                field=("interventions", number),
            )


@contextmanager
def _telling_death() -> Iterator[None]:
    try:
        yield
    except EngineDeadError as error:
        raise _engine_dead() from error


def _engine_dead() -> ActserveError:
    return ActserveError(
        Reason.ENGINE_DEAD,
        "the model's engine has died; try again in 30 s",
        retry_after_s=30.0,
    )
