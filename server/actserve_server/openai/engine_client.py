"""Our engine as vLLM's serving classes call one.

They render prompts, say how to sample, and make answers of tokens; between, every sample goes the
way of a call to Generate: admission, interventions, readouts and monitors.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, cast

from vllm.config import ModelConfig, VllmConfig
from vllm.engine.protocol import EngineClient
from vllm.inputs import EngineInput
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers import BaseRenderer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.prompts import TokenizedPrompt, TokenPrompt
from actserve_server.domain.runs import Sampling, TokenLogprobs, Tokens
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.vllm.sampling import VllmSampling
from actserve_server.openai.asked import MONITOR_FINISH, Asked, current_asked
from actserve_server.openai.sample_answers import SampleAnswer
from actserve_server.rpc.generations import Generations
from actserve_server.rpc.requests import prompt_fields
from actserve_server.rpc.requests.sampling_fields import SamplingRequest
from actserve_server.rpc.responses.call_results import Event
from actserve_server.rpc.transport import statuses

_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_REPETITION: "repetition",
    pb.FINISH_REASON_MONITOR: MONITOR_FINISH,
}


class Vllm(Protocol):
    """What serving classes take from vLLM beside an engine."""

    vllm_config: VllmConfig
    model_config: ModelConfig
    renderer: BaseRenderer
    input_processor: InputProcessor


def _unasked(name: str) -> Callable[..., Any]:
    def unasked(*_: object, **__: object) -> Any:
        raise NotImplementedError(f"the OpenAI door never calls {name}")

    return unasked


if TYPE_CHECKING:
    _Client = EngineClient
else:
    _Client = type(
        "_Client",
        (EngineClient,),
        {each: _unasked(each) for each in EngineClient.__abstractmethods__},
    )


class DoorClient(_Client):
    """Runs what the current request asks for. Of what an `EngineClient` can do, the serving classes
    that are mounted here call no more than this."""

    def __init__(self, vllm: Vllm, engine: AdmittedEngine, generations: Generations) -> None:
        self.vllm_config = vllm.vllm_config
        self.model_config = vllm.model_config
        self.renderer = vllm.renderer
        self.input_processor = vllm.input_processor
        self._engine = engine
        self._generations = generations
        self._end_token = vllm.renderer.get_eos_token_id()

    @property
    def errored(self) -> bool:
        """Never: a dead engine refuses the request itself, and says when to try again."""
        return False

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: EngineInput,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
        **_: object,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one prompt of the current request."""
        asked = current_asked()
        number, asked.prompts = asked.prompts, asked.prompts + 1
        reasoning = {
            "reasoning_ended": reasoning_ended,
            "reasoning_parser_kwargs": reasoning_parser_kwargs,
        }
        sampled = sampling_request(sampling_params, reasoning)
        outputs = self._outputs(asked, number, prompt, sampled, request_id)
        return asked.running(outputs)

    async def _outputs(
        self,
        asked: Asked,
        number: int,
        prompt: EngineInput,
        sampled: SamplingRequest,
        request_id: str,
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            ids = _token_ids(prompt)
            tokenized = await self._tokenized(asked, number, ids)
            first = number * sampled.samples
            begun = await self._generations.begin(asked.wanted, tokenized, sampled, first)
            params = _params(sampled)
            answers = [
                SampleAnswer(asked, first + index, params) for index in range(sampled.samples)
            ]
            said = {"prompt": cast("dict[str, Any]", prompt).get("prompt"), "prompt_token_ids": ids}
            streams = params.output_kind is not RequestOutputKind.FINAL_ONLY
            whole: dict[int, CompletionOutput] = {}
            left = sampled.samples
            async with aclosing(begun.events) as events:
                async for index, event in events:
                    part = self._part(answers[index], index, event)
                    if part is None:
                        continue
                    left -= part.finished()
                    if not streams:
                        _append(whole.setdefault(index, part), part)
                        if left:
                            continue
                    outputs = [part] if streams else [whole[each] for each in sorted(whole)]
                    yield RequestOutput(
                        request_id=request_id,
                        prompt_logprobs=None,
                        outputs=outputs,
                        finished=not left,
                        **said,
                    )
        except ActserveError as error:
            # vLLM's classes know nothing of these, and would tell less of them.
            asked.error = error
            raise
        except Exception as error:
            asked.error = statuses.foreseen(error)
            # Without its cause, whose message vLLM would log.
            raise asked.error from None

    def _part(
        self, answer: SampleAnswer, index: int, event: Event | Tokens
    ) -> CompletionOutput | None:
        """What an event adds to the output of a sample, if it does."""
        if isinstance(event, Tokens):
            tokens = answer.add(event)
            return None if tokens is None else _completion(index, tokens, answer.params)
        finished = answer.read(event)
        if finished is None:
            return None
        part = _completion(index, answer.last, answer.params)
        part.finish_reason = _FINISH_REASONS[finished.reason]
        part.stop_reason = self._stop_reason(finished, answer.params)
        return part

    def _stop_reason(self, finished: pb.SampleFinished, params: SamplingParams) -> int | str | None:
        """As vLLM has it, which does not name the model's main end token."""
        match finished.WhichOneof("stopped_by"):
            case "stop_string":
                return finished.stop_string
            case "monitor":
                return finished.monitor
            case "end_token_id":
                main = finished.end_token_id == self._end_token and not params.ignore_eos
                return None if main else finished.end_token_id
            case _:
                repeats = finished.reason == pb.FINISH_REASON_REPETITION
                return "repetition_detected" if repeats else None

    async def _tokenized(self, asked: Asked, number: int, ids: Sequence[int]) -> TokenizedPrompt:
        """The prompt, with where its tokens come from, where that is needed and can be told."""
        written = asked.written(number) if asked.wanted.looks_inside else None
        if written is not None:
            try:
                prompt = await prompt_fields.tokenize(self._engine, written, ("prompt",))
            except ActserveError:
                prompt = None  # vLLM has rendered it all the same, such as with fields of its own.
            if prompt is not None and prompt.ids == tuple(ids):
                return prompt
        return await self._engine.tokenize(TokenPrompt(tuple(ids)))


def sampling_request(params: SamplingParams, reasoning: Mapping[str, Any]) -> SamplingRequest:
    """vLLM's own way to sample, with what others than vLLM's engine need to know of it."""
    stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
    base = Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k if params.top_k > 0 else None,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        max_tokens=params.max_tokens or 1,
        min_tokens=params.min_tokens,
        seed=params.seed,
        stop=tuple(stop),
        include_stop=params.include_stop_str_in_output,
        stop_token_ids=tuple(params.stop_token_ids or ()),
        ignore_eos=params.ignore_eos,
        skip_special_tokens=params.skip_special_tokens,
        logprobs=params.num_logprobs,  # Also where they are named by token.
        as_engine=VllmSampling(params=params, generate=reasoning),
    )
    return SamplingRequest(base, params.n)


def _params(sampled: SamplingRequest) -> SamplingParams:
    assert isinstance(sampled.base.as_engine, VllmSampling)
    return sampled.base.as_engine.params


def _token_ids(prompt: EngineInput) -> list[int]:
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    if prompt.get("type") != "token" or ids is None:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "only text and token ids are run; leave out images, sounds and embeddings",
            field=("prompt",),
        )
    return cast("list[int]", ids)


def _completion(index: int, tokens: Tokens | None, params: SamplingParams) -> CompletionOutput:
    told = params.logprobs is not None or bool(params.logprob_token_ids)
    return CompletionOutput(
        index=index,
        text="" if tokens is None else tokens.text,
        token_ids=[] if tokens is None else list(tokens.ids),
        cumulative_logprob=None,
        logprobs=_logprobs(tokens) if told else None,
    )


def _logprobs(tokens: Tokens | None) -> list[dict[int, Logprob]]:
    if tokens is None:
        return []
    return [
        cast("dict[int, Logprob]", each.as_engine) if each.as_engine else _ranked(token, each)
        for token, each in zip(tokens.ids, tokens.logprobs, strict=True)
    ]


def _ranked(token: int, told: TokenLogprobs) -> dict[int, Logprob]:
    """Of an engine that knows only our form: the token's own first, as vLLM has them."""
    ranked = {each.id: (each, rank) for rank, each in enumerate(told.top, 1)}
    made = {each.id: Logprob(each.logprob, rank, each.text) for each, rank in ranked.values()}
    return {token: made.pop(token, Logprob(told.logprob)), **made}


def _append(whole: CompletionOutput, part: CompletionOutput) -> None:
    if whole is part:
        return
    whole.text += part.text
    cast("list[int]", whole.token_ids).extend(part.token_ids)
    if whole.logprobs is not None:
        cast("list[Any]", whole.logprobs).extend(part.logprobs or [])
    whole.finish_reason, whole.stop_reason = part.finish_reason, part.stop_reason
