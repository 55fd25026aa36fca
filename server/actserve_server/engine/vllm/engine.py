"""The Engine on vLLM's `AsyncLLM`, in the server process."""

import asyncio
import gc
import itertools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import (
    Capture,
    Finished,
    Rows,
    Run,
    RunEvent,
    Sampling,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
)
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix
from actserve_server.engine.closing import CLOSE_S
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.forms import Vectors, vector_bytes
from actserve_server.engine.vllm import startup, wire
from actserve_server.engine.vllm.ask_workers import ask
from actserve_server.engine.vllm.block_names import block_names
from actserve_server.engine.vllm.cache_salt import cache_salt
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.inbox import Block, Inbox
from actserve_server.engine.vllm.lora_engine import load_adapters, lora_requests
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.engine.vllm.placing import prompt_of
from actserve_server.engine.vllm.records import MAX_ROW_BYTES
from actserve_server.engine.vllm.replaying import REPLAYED_ARG
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.row_cache import NOBODY, Filling, RowCache, Watch
from actserve_server.engine.vllm.sampling import VllmSampling, ending, sampling_params
from actserve_server.engine.vllm.scheduler import READABLE_ARG
from actserve_server.engine.vllm.speculation import GUESSED_ARG, is_greedy, may_guess
from actserve_server.engine.vllm.tokenizer import PromptTokenizer
from actserve_server.engine.vllm.vector_uploads import VectorUploads
from actserve_server.engine.vllm.weight_reader import WeightReader
from actserve_server.stages import Stage, stage

ARRIVAL_TIMEOUT_S = 30.0
"""How long after a run's last token its rows may take to arrive before they count as lost."""

LONG_PROMPT_TOKENS = 512
"""From so many on, what is made of a prompt that is captured would hold up the event loop."""

COPIED_OFF_LOOP_BYTES = 1 << 20
"""And from so many on the rows that are put aside for others."""

_HEALTH_CHECK_S = 1.0
"""How often a run that waits for its last rows looks whether anyone is left to send them."""


class VllmEngine:
    """Start one with `await VllmEngine.start(options)`; see `Engine` for what it promises."""

    def __init__(
        self,
        llm: AsyncLLM,
        info: ModelInfo,
        collector: Collector,
        weights: WeightReader,
        rows: RowCache,
        graphs: Mapping[str, frozenset[HookPoint]],
        adapters: Mapping[str, LoRARequest],
        *,
        share_plain_prefixes: bool = False,
        speculates: bool = False,
    ) -> None:
        self._llm = llm
        self._adapters = adapters
        self._rows = rows
        self._graphs = graphs
        self._share_plain_prefixes = share_plain_prefixes
        self._speculates = speculates
        self._info = info
        self._collector = collector
        self._weights = weights
        self._uploads = VectorUploads(llm)
        self._tokenizer = PromptTokenizer(llm.get_tokenizer(), info.vocabulary_size)
        self._defaults = llm.model_config.get_diff_sampling_param()
        self._keys = itertools.count(1)

    @classmethod
    async def start(
        cls,
        options: EngineOptions,
        watch: Watch = NOBODY,
        ring_filled: Callable[[float], None] = lambda part: None,
    ) -> "VllmEngine":
        """Loads the model and starts the worker. Takes a minute or two when vLLM compiles the
        model for the first time. `watch` is told of the rows that are cached, `ring_filled`
        how full the ring was whenever it is emptied. Raises `ValueError` for a model that cannot be
        served."""
        reader = RingReader()
        try:
            llm = await startup.start(options, reader.folder)
            try:
                await load_adapters(llm, options.adapters)
                info, norm, graphs = await startup.describe(llm, options)
            except BaseException:
                await _shut_down(llm)
                raise
        except BaseException:
            reader.close()
            reader.release()
            raise
        reader.detach_folder()
        collector = Collector(reader, asyncio.get_running_loop(), ring_filled)
        weights = WeightReader(llm, info, norm)
        cached = llm.vllm_config.cache_config
        # Without vLLM's cache every row is computed anyway.
        room = options.row_cache_bytes if cached.enable_prefix_caching else 0
        rows = RowCache(room, cached.block_size, watch)
        adapters = lora_requests(options.adapters)
        engine = cls(
            llm,
            info,
            collector,
            weights,
            rows,
            graphs,
            adapters,
            share_plain_prefixes=options.share_plain_prefixes,
            speculates=bool(options.speculative_tokens),
        )
        # What PyTorch and vLLM have made by now stays. To look through it for garbage would hold up
        # the event loop for up to a second again and again, the sooner the more rows come.
        gc.collect()
        gc.freeze()
        return engine

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def vllm(self) -> AsyncLLM:
        """vLLM's own engine, for benchmarks and tests that compare with it."""
        return self._llm

    @property
    def rows(self) -> RowCache:
        """Rows of prompts that runs have captured, for benchmarks and tests."""
        return self._rows

    @property
    def uploaded_bytes(self) -> int:
        """Of vectors that runs have in common in the workers."""
        return self._uploads.held_bytes

    @property
    def open_inboxes(self) -> int:
        """Runs that hold or await rows or receipts."""
        return self._collector.open_inboxes

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        return await self._tokenizer.tokenize(prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        return await self._tokenizer.spell(words)

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        return self._tokenizer.ended_text(self._params(run), run.token_ids, generated)

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

    @property
    def graphs(self) -> Mapping[str, frozenset[HookPoint]]:
        return self._graphs

    async def drop_graph(self, name: str) -> None:
        with _telling_death():
            await ask(self._llm, "drop_graph", name)
        self._graphs = {each: points for each, points in self._graphs.items() if each != name}

    async def check_health(self) -> None:
        try:
            self._collector.check()
        except RuntimeError as error:
            raise _engine_dead() from error
        if self._llm.errored:
            raise _engine_dead()

    async def close(self) -> None:
        try:
            await _shut_down(self._llm)
        finally:
            # Shutting down cancels the task that would tell the runs in flight, so that they would
            # wait for ever: where it was us who found the engine dead, or were quicker than vLLM.
            self._llm.output_processor.propagate_error(EngineDeadError())
            self._collector.close()
            self._tokenizer.close()
            self._rows.close()

    def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        # One generator between vLLM's and the caller: every token passes through each of them.
        if run.captures or run.interventions:
            return self._run_tapped(run)
        return self._run_plain(run)

    @asynccontextmanager
    async def _generating(self, run: Run) -> AsyncGenerator["_Generating", None]:
        """A run that vLLM has begun, until the block is left, however it is."""
        self._check_tokens_known(run)
        self._check_rows_fit(run)
        model = self._llm.model_config
        if run.placements and not model.enable_prompt_embeds:
            raise ActserveError(
                Reason.FEATURE_DISABLED, "this engine was not started to place embeddings"
            )
        prepared = await self._open(run)
        try:
            async with self._uploads.held(prepared.uploads):
                asked = run.sampling.as_engine
                more = asked.generate if isinstance(asked, VllmSampling) else {}
                outputs = self._llm.generate(
                    prepared.prompt,  # type: ignore[arg-type]
                    prepared.params,
                    run.id,
                    lora_request=self._adapter(run),
                    **more,
                )
                # vLLM aborts a request when its outputs are closed, and they can only be closed
                # when nobody waits for the next one.
                async with aclosing(outputs):
                    yield _Generating(outputs, prepared.inbox, prepared.filling)
        except VLLMClientError as error:
            # What vLLM refuses and the edge did not know of.
            raise ActserveError(Reason.FIELD_INVALID, f"vLLM refuses this: {error}") from error
        except EngineDeadError as error:
            raise _engine_dead() from error
        finally:
            self._collector.close_inbox(prepared.key)
            if prepared.filling:
                prepared.filling.drop()

    async def _open(self, run: Run) -> "_Prepared":
        large = sum(vector_bytes(run.interventions, run.captures).values()) > wire.INLINE_BYTES
        large |= len(run.token_ids) >= LONG_PROMPT_TOKENS and bool(run.captures)
        while True:
            failures = self._collector.failures
            prepared = (
                await off_loop(self._prepare, run, failures)
                if large
                else self._prepare(run, failures)
            )
            inbox = prepared.inbox
            if inbox is None or self._collector.open(prepared.key, inbox, failures):
                return prepared

    def _prepare(self, run: Run, failures: int) -> "_Prepared":
        key = next(self._keys)
        taps = wire.taps_of(run, key)
        salt = cache_salt(
            taps,
            run.tenant,
            share_plain_prefixes=self._share_plain_prefixes,
            failures=failures,
        )
        prompt = prompt_of(run, salt, self._info.width, self._llm.model_config.dtype)
        if taps is None:
            return _Prepared(key, prompt, self._params(run))
        inbox = Inbox(
            [reading.spans for reading in taps.captures],
            taps.edits,
            salt if taps.edits else None,
            at_once=run.rows_at_once,
        )
        uploads = tuple(taps.vectors.values()) if taps.uploads else ()
        if taps.remembers:
            # A score that depends on earlier tokens needs them all to be computed.
            return _Prepared(key, prompt, self._params(run, taps, readable=0), inbox, uploads)
        if not taps.captures:
            return _Prepared(key, prompt, self._params(run, taps), inbox, uploads)
        names: Sequence[bytes] = ()
        if self._rows.max_bytes and not run.computes_all:
            names = block_names(prompt, self._rows.block_tokens, self._adapter(run))
        found = self._rows.find(names, taps.captures, len(run.token_ids))
        for number, block in found.rows:
            inbox.put_rows(number, block)
        filling = self._rows.filling(names, taps.captures) if names else None
        # Where some of the rows of patterns are missing, all of the prompt is computed.
        sent = taps.without_patterns() if found.end else taps
        params = self._params(run, sent, readable=found.end)
        return _Prepared(key, prompt, params, inbox, uploads, filling)

    def _adapter(self, run: Run) -> LoRARequest | None:
        return self._adapters[run.adapter] if run.adapter else None

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

    def _check_rows_fit(self, run: Run) -> None:
        # A step that cannot send its rows fails all the runs that have a part in it.
        for capture in run.captures:
            wanted = self._info.row_bytes(capture)
            if wanted > MAX_ROW_BYTES:
                raise ActserveError(
                    Reason.CAPTURE_TOO_LARGE,
                    f"{len(capture.sites)} sites would be read at the same positions, with "
                    f"{wanted} bytes for each position, but one position may have at most "
                    f"{MAX_ROW_BYTES}; read some of the sites in another call",
                    field=("readouts",),
                    metadata={"bytes": wanted, "limit": MAX_ROW_BYTES},
                )

    async def _run_plain(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        count = 0
        async with self._generating(run) as generating:
            async for output in generating.outputs:
                completion = output.outputs[0]
                if tokens := self._tokens(run, count, completion):
                    count += len(tokens.ids)
                    yield tokens
                if output.finished:
                    reason, stopped_by = ending(completion)
                    yield Finished(reason, count, stopped_by=stopped_by)

    async def _run_tapped(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        captured = [
            _Captured(number, capture, self._info.row_type(capture))
            for number, capture in enumerate(run.captures)
        ]
        prompt_tokens, count = len(run.token_ids), 0
        ids = list(run.token_ids)
        async with self._generating(run) as generating:
            inbox, filling = generating.inbox, generating.filling
            assert inbox is not None
            output = None
            async with aclosing(_until_first(generating.outputs, inbox)) as arrivals:
                async for output in arrivals:
                    if output is None:
                        taken = await _take(inbox, prompt_tokens, filling, run.token_ids)
                        for event in _rows(captured, taken, ids):
                            yield event
            while output is not None:
                completion = output.outputs[0]
                reason, stopped_by = ending(completion) if output.finished else (None, None)
                tokens = self._tokens(run, count, completion)
                if tokens:
                    count += len(tokens.ids)
                    ids += tokens.ids
                self._collector.collect()
                # The last sampled token is not run, or is about to be; it has no row yet.
                end = prompt_tokens + max(count, 1) - 1
                if reason:
                    with stage(Stage.ARRIVAL):
                        await self._await_rest(inbox, end)
                if tokens:
                    yield tokens
                if reason or inbox.due():
                    taken = await _take(inbox, end, filling, run.token_ids)
                    for event in _rows(captured, taken, ids):
                        yield event
                if reason:
                    reports = inbox.reports(ids[:end])
                    _check_used(run, ids[:end])
                    positions = tuple(each.positions() for each in captured)
                    yield Finished(reason, count, positions, reports, stopped_by)
                output = await anext(generating.outputs, None)

    async def _await_rest(self, inbox: Inbox, end: int) -> None:
        """Waits until all is there below position `end`; it is, or is in the ring."""
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while True:
            inbox.expect()
            self._collector.collect(now=True)
            if inbox.complete(end):
                return
            if time.monotonic() > deadline:
                raise ActserveError(
                    Reason.CAPTURE_INCOMPLETE,
                    f"rows or interventions below position {end} were not reported within "
                    f"{ARRIVAL_TIMEOUT_S:.0f} s of the last token; the answer is withheld",
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(inbox.arrival(), _HEALTH_CHECK_S)
            await self.check_health()

    def _params(
        self, run: Run, taps: wire.RunTaps | None = None, readable: int | None = None
    ) -> SamplingParams:
        """`readable` is how many tokens may come from the prefix cache, any if None."""
        args: dict[str, Any] = {wire.EXTRA_ARG: wire.encode(taps)} if taps else {}
        if readable:
            args[READABLE_ARG] = readable
        if run.replayed:
            args[REPLAYED_ARG] = [*run.replayed]
        params = sampling_params(
            run.sampling,
            self._defaults,
            extra_args=args or None,
            skip_reading_prefix_cache=readable == 0,
        )
        if self._speculates and is_greedy(params):
            params.extra_args = {**args, GUESSED_ARG: may_guess(run, taps)}
        return params

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
            ends=completion.finished(),
        )

    def _logprobs(
        self, sampling: Sampling, completion: CompletionOutput
    ) -> tuple[TokenLogprobs, ...]:
        result = []
        for token, candidates in zip(completion.token_ids, completion.logprobs or (), strict=True):
            assert candidates is not None  # Only prompt logprobs have holes.
            if isinstance(sampling.as_engine, VllmSampling):
                own = candidates.get(token)
                logprob = math.nan if own is None else own.logprob
                result.append(TokenLogprobs(logprob, (), candidates))
                continue
            ranked = sorted(candidates.items(), key=lambda item: item[1].rank or 0)
            top = tuple(
                TokenLogprob(other, self._tokenizer.texts((other,))[0], candidate.logprob)
                for other, candidate in ranked[: sampling.logprobs]
            )
            result.append(TokenLogprobs(candidates[token].logprob, top))
        return tuple(result)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A run as vLLM and the worker are told of it."""

    key: int
    prompt: Mapping[str, Any]
    params: SamplingParams
    inbox: Inbox | None = None
    """None if it is plain."""
    uploads: Sequence[Vectors] = ()
    """What the workers must hold before it begins."""
    filling: Filling | None = None
    """Where its rows are put aside for others, if they are."""


@dataclass(frozen=True, slots=True, eq=False)
class _Generating:
    """A run that vLLM has begun."""

    outputs: AsyncGenerator[RequestOutput, None]
    inbox: Inbox | None
    filling: Filling | None


async def _until_first(
    outputs: AsyncIterator[RequestOutput], inbox: Inbox
) -> AsyncGenerator[RequestOutput | None, None]:
    """The first output, and before it None whenever something has arrived, so that the rows of a
    long prompt go out while it is still being computed."""
    first = asyncio.ensure_future(anext(outputs))
    inbox.expect()
    try:
        while not first.done():
            arrival = asyncio.ensure_future(inbox.arrival())
            try:
                await asyncio.wait((first, arrival), return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrival.cancel()
            if not first.done():
                inbox.expect()
                yield None
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        raise
    yield first.result()


class _Captured:
    """What one capture has read so far."""

    def __init__(self, number: int, capture: Capture, element_type: ElementType) -> None:
        self._number = number
        self._selection = capture.selection
        self._storage = element_type.storage
        self._sent: list[np.ndarray] = []

    def rows(self, blocks: Sequence[Block], ids: Sequence[int]) -> list[Rows]:
        """The rows in these blocks; `ids` are the tokens of the run as far as they go."""
        if self._selection.token_ids is not None:
            # Which generated tokens match is known here, after the worker has read them all.
            selected = self._selection.among(ids)
            blocks = [block.part(np.isin(block.positions, selected)) for block in blocks]
        blocks = [block for block in blocks if len(block.positions)]
        if not blocks:
            return []
        block = Block.together(blocks)
        self._sent.append(block.positions)
        return [
            Rows(self._number, site, block.positions, bits.view(self._storage))
            for site, bits in enumerate(block.sites())
        ]

    def positions(self) -> np.ndarray:
        """Every position so far."""
        return np.concatenate(self._sent) if self._sent else np.empty(0, np.int64)


async def _take(
    inbox: Inbox, end: int, filling: Filling | None, prompt: Sequence[int]
) -> list[list[Block]]:
    """What the inbox has below position `end`, put aside for others on the way."""
    if filling is None or not filling.open:
        return inbox.take(end)
    # Before taking, so that nothing is missing if it is; and what came after a step that failed is
    # refused below.
    complete = end >= len(prompt) and inbox.complete(len(prompt))
    taken = inbox.take(end)
    if sum(block.data.nbytes for blocks in taken for block in blocks) < COPIED_OFF_LOOP_BYTES:
        filling.add(taken)
    else:
        await off_loop(filling.add, taken)
    if complete:
        inbox.reports(prompt)  # Raises if an edit was not made as the blocks' names say.
        filling.commit()
    return taken


def _rows(
    captured: Sequence[_Captured], taken: Sequence[Sequence[Block]], ids: Sequence[int]
) -> Iterator[Rows]:
    for each, blocks in zip(captured, taken, strict=True):
        yield from each.rows(blocks, ids)


def _check_used(run: Run, ids: Sequence[int]) -> None:
    for number, change in enumerate(run.interventions):
        # A condition that was never met is an answer, and no mistake of the selection.
        if not change.allow_unused and not len(change.selection.among(ids)):
            raise ActserveError(
                Reason.INTERVENTION_UNUSED,
                "the intervention changed no row: no token that it selects was run; select others, "
                "generate more, or set allow_unused",
                field=("interventions", number),
            )


async def _shut_down(llm: AsyncLLM) -> None:
    """Ends vLLM's processes, for which it waits, so in a thread."""
    if handler := llm.output_handler:
        # It would see its engine die and report that as an error.
        handler.cancel()
        await asyncio.gather(handler, return_exceptions=True)
    await asyncio.to_thread(llm.shutdown, CLOSE_S)


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
