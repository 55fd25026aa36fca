"""Calls: what is sent and how its answer is put together, the same for sync and asyncio.

A call is fed every response, in order, and then gives its result. Nothing here waits or touches
the network; `client` and `aio` only move messages.
"""

from collections.abc import Container
from typing import Any, Protocol, TypeVar

import numpy as np

from actserve._rows import SequenceRows
from actserve.errors import BadResponse, StreamCutShort
from actserve.events import Event, Finished, SampleFinished, Started, Tokens
from actserve.results import (
    Activations,
    Generation,
    Tokenized,
    TokenLogprobs,
    TopLogprob,
    Usage,
)
from actserve.sites import Site
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2, prompt_pb2

T = TypeVar("T", covariant=True)


class Call(Protocol[T]):
    """One RPC."""

    @property
    def method(self) -> str:
        """The stub's method."""
        ...

    @property
    def request(self) -> Any:
        """What is sent."""
        ...

    def read(self, response: Any) -> Event | None:
        """Takes one response, and returns the event it is for the caller, if it is one."""
        ...

    def result(self) -> T:
        """The complete answer, once the stream has ended. Raises `StreamCutShort` if it is not."""
        ...


class FetchCall:
    """The activations of some prompts."""

    method = "FetchActivations"

    def __init__(self, request: pb.FetchActivationsRequest, sites: tuple[Site, ...]) -> None:
        self.request = request
        self._sites = sites
        self._started: pb.FetchStarted | None = None
        self._open: dict[int, tuple[pb.PromptStarted, SequenceRows]] = {}
        self._done: dict[int, Activations] = {}
        self._finished = False

    def read(self, response: pb.FetchActivationsResponse) -> None:
        match response.WhichOneof("event"):
            case "started":
                self._started = response.started
            case "prompt_started":
                opened = response.prompt_started
                widths = self._started.widths if self._started else ()
                self._open[opened.prompt_index] = opened, SequenceRows(self._sites, widths)
            case "activations":
                _, rows = self._opened(response.activations.sequence_index)
                rows.add(response.activations)
            case "prompt_finished":
                index = response.prompt_finished.prompt_index
                opened, rows = self._opened(index)
                self._done[index] = rows.finish(
                    opened.positions, opened.prompt.ids, opened.prompt.texts
                )
                del self._open[index]
            case "finished":
                self._finished = True
            case _:  # An event of a newer server; the contract says to skip it.
                pass

    def _opened(self, index: int) -> tuple[pb.PromptStarted, SequenceRows]:
        if index not in self._open:
            raise BadResponse(f"the server sent an event of prompt {index}, which is not open")
        return self._open[index]

    def result(self) -> list[Activations]:
        count = len(self.request.prompts)
        _check_complete(self._finished, self._done, count, "prompt")
        return [self._done[index] for index in range(count)]


class GenerateCall:
    """The samples of one prompt. With `keep_rows` unset, rows are yielded but not in the result."""

    method = "Generate"

    def __init__(
        self, request: pb.GenerateRequest, sites: tuple[Site, ...], *, keep_rows: bool = True
    ) -> None:
        self.request = request
        self._sites = sites
        self._keep_rows = keep_rows
        self._started: Started | None = None
        self._open: dict[int, _Sample] = {}
        self._done: dict[int, _Sample] = {}
        self._usage: Usage | None = None

    @property
    def _sample_count(self) -> int:
        sampling = self.request.sampling
        return sampling.samples if sampling.HasField("samples") else 1

    def read(self, response: pb.GenerateResponse) -> Event | None:
        match response.WhichOneof("event"):
            case "started":
                return self._start(response.started)
            case "tokens":
                return self._opened(response.tokens.sample_index).add_tokens(response.tokens)
            case "activations":
                return self._opened(response.activations.sequence_index).rows.add(
                    response.activations
                )
            case "sample_finished":
                index = response.sample_finished.sample_index
                event = self._opened(index).finish(response.sample_finished)
                self._done[index] = self._open.pop(index)
                return event
            case "finished":
                usage = response.finished.usage
                self._usage = Usage(
                    usage.prompt_tokens, usage.output_tokens, usage.activation_bytes
                )
                return Finished(self._usage)
            case _:  # An event of a newer server; the contract says to skip it.
                return None

    def _start(self, started: pb.GenerateStarted) -> Started:
        self._open = {
            index: _Sample(
                started.prompt, SequenceRows(self._sites, started.widths, keep=self._keep_rows)
            )
            for index in range(self._sample_count)
        }
        self._started = Started(
            started.request_id, tuple(started.prompt.ids), tuple(started.prompt.texts)
        )
        return self._started

    def _opened(self, index: int) -> "_Sample":
        if index not in self._open:
            raise BadResponse(f"the server sent an event of sample {index}, which is not open")
        return self._open[index]

    def result(self) -> list[Generation]:
        _check_complete(self._usage is not None, self._done, self._sample_count, "sample")
        assert self._started is not None  # Samples were open.
        assert self._usage is not None
        return [
            self._done[index].generation(
                self._started, self._usage, self.request.sampling.HasField("logprobs")
            )
            for index in range(self._sample_count)
        ]


class TokenizeCall:
    """A prompt as the model would see it."""

    method = "Tokenize"

    def __init__(self, request: model_service_pb2.TokenizeRequest) -> None:
        self.request = request
        self._prompt = prompt_pb2.TokenizedPrompt()

    def read(self, response: model_service_pb2.TokenizeResponse) -> None:
        self._prompt = response.prompt

    def result(self) -> Tokenized:
        return Tokenized(tuple(self._prompt.ids), tuple(self._prompt.texts))


class _Sample:
    """One sample while it arrives."""

    def __init__(self, prompt: prompt_pb2.TokenizedPrompt, rows: SequenceRows) -> None:
        self.rows = rows
        self._prompt = prompt
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._tokens: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish_reason = ""
        self._activations: Activations | None = None

    def add_tokens(self, chunk: pb.TokenChunk) -> Tokens:
        expected = len(self._prompt.ids) + len(self._token_ids)
        if chunk.position != expected or len(chunk.ids) != len(chunk.texts):
            raise BadResponse(
                f"the server sent {len(chunk.ids)} token ids and {len(chunk.texts)} texts at "
                f"position {chunk.position}, but the next position is {expected}"
            )
        event = Tokens(
            sample=chunk.sample_index,
            position=chunk.position,
            token_ids=tuple(chunk.ids),
            tokens=tuple(chunk.texts),
            text=chunk.text,
            logprobs=tuple(_logprobs(each) for each in chunk.logprobs),
        )
        self._text.append(event.text)
        self._token_ids.extend(event.token_ids)
        self._tokens.extend(event.tokens)
        self._logprobs.extend(event.logprobs)
        return event

    def finish(self, finished: pb.SampleFinished) -> SampleFinished:
        self._finish_reason = _finish_reason(finished.reason)
        self._activations = self.rows.finish(
            finished.captured_positions,
            [*self._prompt.ids, *self._token_ids],
            [*self._prompt.texts, *self._tokens],
        )
        return SampleFinished(
            sample=finished.sample_index,
            finish_reason=self._finish_reason,
            positions=np.array(finished.captured_positions, np.int64),
        )

    def generation(self, started: Started, usage: Usage, with_logprobs: bool) -> Generation:
        assert self._activations is not None  # Only finished samples come here.
        return Generation(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            tokens=tuple(self._tokens),
            finish_reason=self._finish_reason,
            prompt_token_ids=started.prompt_token_ids,
            prompt_tokens=started.prompt_tokens,
            logprobs=tuple(self._logprobs) if with_logprobs else None,
            activations=self._activations,
            usage=usage,
            request_id=started.request_id,
        )


def _logprobs(token: pb.TokenLogprobs) -> TokenLogprobs:
    top = tuple(TopLogprob(each.id, each.text, each.logprob) for each in token.top)
    return TokenLogprobs(token.logprob, top)


def _finish_reason(value: int) -> str:
    name = {number: name for name, number in pb.FinishReason.items()}.get(value, str(value))
    return name.removeprefix("FINISH_REASON_").lower()


def _check_complete(finished: bool, done: Container[int], count: int, what: str) -> None:
    if not finished:
        raise StreamCutShort(
            "the stream ended before the server said it was finished, so the answer may be "
            "incomplete; try again"
        )
    if missing := [index for index in range(count) if index not in done]:
        raise BadResponse(f"the server finished without {what} {missing[0]} of {count}")
