"""Calls that explain: what is sent, and how the explanations are put together."""

from collections.abc import Sequence
from typing import TypeAlias

from actserve._readers import reports, tokenized
from actserve._selected import selected
from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import BadResponse
from actserve.events import ExplainEvent, ExplainFinished, ExplainStarted, PartialExplanation
from actserve.explaining import samples_of
from actserve.explanations import ExplainedText, Explanation, explanation_from_proto
from actserve.nlas import nla_id, same_resource
from actserve.positions import Positions
from actserve.results import Usage
from actserve.sites import site_name
from actserve.v1 import explanation_service_pb2 as pb

Request: TypeAlias = (
    pb.ExplainActivationsRequest | pb.CompareActivationsRequest | pb.ExplainTextRequest
)
Response: TypeAlias = (
    pb.ExplainActivationsResponse | pb.CompareActivationsResponse | pb.ExplainTextResponse
)


class _ExplainCall:
    """The explanations of some rows, collected by row and sample."""

    def __init__(self, method: str, request: Request, first_row: int = 0) -> None:
        """`first_row` is the caller's number of the call's first row."""
        self.method = method
        self.request = request
        self._first_row = first_row
        self._started: ExplainStarted | None = None
        self._explained: list[dict[int, Explanation]] = []
        self._finished: ExplainFinished | None = None
        self._order = EventOrder()

    def read(self, response: Response) -> ExplainEvent | None:
        event = response.event
        kind = event.WhichOneof("event")
        self._order.check(kind)
        match kind:
            case "started":
                self._started = self._start(event.started)
                self._explained = [{} for _ in range(self._started.rows)]
                return self._started
            case "partial":
                return self._partial(event.partial)
            case "explanation":
                return self._add(event.explanation)
            case "finished":
                self._finished = self._finish(event.finished)
                return self._finished
            case _:  # An event of a newer server; the contract says to skip it.
                return None

    def _start(self, started: pb.ExplainStarted) -> ExplainStarted:
        if self.request.nla and not same_resource(started.nla, self.request.nla):
            raise BadResponse(
                f"the server explains with {started.nla}, but {self.request.nla} was asked for"
            )
        return ExplainStarted(
            request_id=started.call_id,
            nla=nla_id(started.nla),
            site=site_name(started.site),
            rows=started.rows,
            prompt=tokenized(started.prompt) if started.HasField("prompt") else None,
            positions=tuple(started.positions),
        )

    def _partial(self, sent: pb.PartialExplanation) -> PartialExplanation:
        self._open(sent.row_index, sent.sample_index)
        if not self.request.spec.partial:
            raise BadResponse("the server sent unfinished text unasked")
        return PartialExplanation(self._first_row + sent.row_index, sent.sample_index, sent.text)

    def _add(self, sent: pb.Explanation) -> Explanation:
        samples = self._open(sent.row_index, sent.sample_index)
        row = self._first_row + sent.row_index
        if self.request.spec.best and samples:
            raise BadResponse(f"the server sent two explanations of row {row} as the best")
        explanation = explanation_from_proto(sent, row)
        position = self._positions[sent.row_index] if self._positions else None
        if explanation.position != position:
            raise BadResponse(
                f"the server sent an explanation of row {row} at position {explanation.position}, "
                f"not {position}"
            )
        samples[explanation.sample] = explanation
        return explanation

    @property
    def _positions(self) -> Sequence[int]:
        """The position of each row; empty where they are not known."""
        return self._started.positions if self._started else ()

    def _open(self, index: int, sample: int) -> dict[int, Explanation]:
        """The samples of a row so far, if this one may come next."""
        row, end = self._first_row + index, self._first_row + len(self._explained)
        if row >= end or sample >= samples_of(self.request.spec):
            raise BadResponse(
                f"the server sent text of row {row} and sample {sample}, but the call has rows "
                f"[{self._first_row}, {end}) and {samples_of(self.request.spec)} samples of each"
            )
        if sample in self._explained[index]:
            raise BadResponse(
                f"the server sent more of row {row} and sample {sample} after its explanation"
            )
        return self._explained[index]

    def _finish(self, finished: pb.ExplainFinished) -> ExplainFinished:
        usage = finished.usage
        asked = len(getattr(self.request, "interventions", ()))
        return ExplainFinished(
            Usage(usage.prompt_tokens, usage.output_tokens, usage.activation_bytes),
            reports(finished.interventions, asked),
        )

    def _complete(self) -> list[list[Explanation]]:
        """The explanations of each row by sample, if all are there."""
        count = 1 if self.request.spec.best else samples_of(self.request.spec)
        done = {row for row, samples in enumerate(self._explained) if len(samples) == count}
        check_complete(
            self._finished is not None,
            done,
            len(self._explained),
            "every explanation of row",
            self._first_row,
        )
        return [[samples[at] for at in sorted(samples)] for samples in self._explained]


class ExplainRowsCall(_ExplainCall):
    """The explanations of rows that are sent, or of their differences from others that are."""

    request: pb.ExplainActivationsRequest | pb.CompareActivationsRequest

    def _start(self, started: pb.ExplainStarted) -> ExplainStarted:
        rows = self.request.activations.shape[0]
        if started.rows != rows:
            raise BadResponse(f"the server explains {started.rows} rows, but {rows} were sent")
        return super()._start(started)

    @property
    def _positions(self) -> Sequence[int]:
        return getattr(self.request, "positions", ())

    def result(self) -> list[list[Explanation]]:
        explanations = self._complete()
        if self._started is None:
            raise BadResponse("the server finished without saying what it explains")
        return explanations


class ExplainTextCall(_ExplainCall):
    """What a model thinks at the tokens of a prompt."""

    def __init__(self, request: pb.ExplainTextRequest, positions: Positions) -> None:
        super().__init__("ExplainText", request)
        self._selector: Positions = positions

    def _start(self, started: pb.ExplainStarted) -> ExplainStarted:
        event = super()._start(started)
        if event.prompt is None:
            raise BadResponse("the server explains a prompt that it does not show")
        tokens, sent = event.prompt.token_ids, [*event.positions]
        asked = selected(self._selector, len(tokens), tokens)
        if asked is None:  # Only the server knows them.
            asked = sorted({at for at in sent if at < len(tokens)})
        if sent != asked or event.rows != len(asked):
            raise BadResponse(
                f"the server explains {event.rows} rows at positions {sent} of a prompt of "
                f"{len(tokens)} tokens, not those asked for, {asked}"
            )
        return event

    def result(self) -> ExplainedText:
        explanations = self._complete()
        if self._started is None or self._started.prompt is None or self._finished is None:
            raise BadResponse("the server finished without saying what it explains")
        prompt = self._started.prompt
        return ExplainedText(
            token_ids=prompt.token_ids,
            tokens=prompt.tokens,
            sources=prompt.sources,
            positions=self._started.positions,
            explanations=tuple(each for samples in explanations for each in samples),
            interventions=self._finished.interventions,
            nla=self._started.nla,
            site=self._started.site,
            usage=self._finished.usage,
            request_id=self._started.request_id,
        )
