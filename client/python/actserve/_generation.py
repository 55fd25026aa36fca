"""A generation: its call, and its samples while they arrive."""

from actserve._capture import Capture
from actserve._captured import Captured
from actserve._monitor_scores import scores_of_sample
from actserve._readers import (
    finish_reason,
    logprobs,
    monitor_interventions,
    prompt_run,
    stopped_by,
)
from actserve._whole_answers import EventOrder, check_complete
from actserve.alerts import Alert, alert_from_proto
from actserve.errors import BadResponse
from actserve.events import Event, Finished, SampleFinished, Started, Tokens
from actserve.monitors import MonitorScore
from actserve.read_rows import ReadRows
from actserve.results import (
    Activations,
    Generation,
    MonitorInterventions,
    Tokenized,
    TokenLogprobs,
    Usage,
)
from actserve.v1 import alert_pb2
from actserve.v1 import generation_service_pb2 as pb


class GenerateCall:
    """The samples of one prompt. Without `collect`, what is captured is yielded but not in the
    result."""

    method = "Generate"

    def __init__(self, request: pb.GenerateRequest, capture: Capture, *, collect: bool) -> None:
        self.request = request
        self._capture = capture
        self._collect = collect
        self._started: Started | None = None
        self._open: dict[int, _Sample] = {}
        self._done: dict[int, _Sample] = {}
        self._usage: Usage | None = None
        self._order = EventOrder()

    @property
    def _sample_count(self) -> int:
        sampling = self.request.sampling
        return sampling.samples if sampling.HasField("samples") else 1

    def read(self, response: pb.GenerateResponse) -> Event | None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                return self._start(response.started)
            case "tokens":
                return self._opened(response.tokens.sample_index).add_tokens(response.tokens)
            case (
                "activations"
                | "predictions"
                | "attention"
                | "attention_summary"
                | "logit_attribution"
            ) as kind:
                chunk = getattr(response, kind)
                return self._opened(chunk.sequence_index).captured.add(chunk)
            case "alert":
                return self._opened(response.alert.sample_index).add_alert(response.alert)
            case "sample_finished":
                index = response.sample_finished.sample_index
                finished = self._opened(index).finish(response.sample_finished)
                self._done[index] = self._open.pop(index)
                return finished
            case "finished":
                usage = response.finished.usage
                self._usage = Usage(
                    usage.prompt_tokens, usage.output_tokens, usage.activation_bytes
                )
                return Finished(self._usage)
            case _:  # An event of a newer server; the contract says to skip it.
                return None

    def _start(self, started: pb.GenerateStarted) -> Started:
        prompt = prompt_run(started.prompt)
        self._open = {
            index: _Sample(
                prompt,
                Captured(self._capture, started.readouts, collect=self._collect),
                self.request,
            )
            for index in range(self._sample_count)
        }
        self._started = Started(started.call_id, prompt.token_ids, prompt.tokens, prompt.sources)
        return self._started

    def _opened(self, index: int) -> "_Sample":
        if index not in self._open:
            raise BadResponse(f"the server sent an event of sample {index}, which is not open")
        return self._open[index]

    def result(self) -> list[Generation]:
        check_complete(self._usage is not None, self._done, self._sample_count, "sample")
        assert self._started is not None  # Samples were open.
        assert self._usage is not None
        return [
            self._done[index].generation(
                self._started, self._usage, self.request.sampling.HasField("logprobs")
            )
            for index in range(self._sample_count)
        ]


class _Sample:
    """One sample while it arrives."""

    def __init__(self, prompt: Tokenized, captured: Captured, request: pb.GenerateRequest) -> None:
        self.captured = captured
        self._prompt = prompt
        self._request = request
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._tokens: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish_reason = ""
        self._stopped_by: int | str | None = None
        self._activations: Activations | None = None
        self._alerts: list[Alert] = []
        self._scores: dict[str, MonitorScore] = {}
        self._changed: tuple[MonitorInterventions, ...] = ()

    def add_alert(self, alert: alert_pb2.Alert) -> Alert:
        event = alert_from_proto(alert)
        self._alerts.append(event)
        return event

    def add_tokens(self, chunk: pb.TokenChunk) -> Tokens:
        expected = len(self._prompt) + len(self._token_ids)
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
            logprobs=tuple(logprobs(each) for each in chunk.logprobs),
        )
        self._text.append(event.text)
        self._token_ids.extend(event.token_ids)
        self._tokens.extend(event.tokens)
        self._logprobs.extend(event.logprobs)
        return event

    def finish(self, finished: pb.SampleFinished) -> SampleFinished:
        self._finish_reason = finish_reason(finished.reason)
        self._stopped_by = stopped_by(finished)
        self._scores = scores_of_sample(finished.monitor_scores, self._request)
        self._changed = monitor_interventions(finished)
        self._activations = self.captured.finish(
            finished,
            finished.positions,
            self._prompt,
            len(self._request.interventions),
            self._token_ids,
            self._tokens,
        )
        return SampleFinished(
            sample=finished.sample_index,
            finish_reason=self._finish_reason,
            stopped_by=self._stopped_by,
            positions=self._activations.positions,
            interventions=self._activations.interventions,
            kept=self._activations.kept,
            kept_readouts={
                name: read.kept
                for name, read in self._activations.readouts.items()
                if isinstance(read, ReadRows) and read.kept
            },
            monitor_scores=self._scores,
            monitor_interventions=self._changed,
        )

    def generation(self, started: Started, usage: Usage, with_logprobs: bool) -> Generation:
        assert self._activations is not None  # Only finished samples come here.
        return Generation(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            tokens=tuple(self._tokens),
            finish_reason=self._finish_reason,
            stopped_by=self._stopped_by,
            prompt_token_ids=started.prompt_token_ids,
            prompt_tokens=started.prompt_tokens,
            prompt_sources=started.prompt_sources,
            logprobs=tuple(self._logprobs) if with_logprobs else None,
            activations=self._activations,
            interventions=self._activations.interventions,
            usage=usage,
            request_id=started.request_id,
            alerts=tuple(self._alerts),
            monitor_scores=self._scores,
            monitor_interventions=self._changed,
        )
