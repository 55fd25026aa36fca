"""Readers: parts of the server's answers as values, checked where they could mislead."""

from collections.abc import Sequence

from actserve._names import short
from actserve.alerts import level_name
from actserve.errors import BadResponse
from actserve.results import (
    InterventionReport,
    MonitorInterventions,
    Tokenized,
    TokenLogprobs,
    TokenSource,
    TopLogprob,
)
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import intervention_pb2, prompt_pb2


def tokenized(prompt: prompt_pb2.TokenizedPrompt) -> Tokenized:
    """A prompt as the model sees it."""
    ids, texts, sources = len(prompt.ids), len(prompt.texts), len(prompt.sources)
    if texts != ids or sources not in (0, ids):
        raise BadResponse(
            f"the server sent {texts} texts and {sources} sources for a prompt of {ids} tokens"
        )
    return Tokenized(
        tuple(prompt.ids), tuple(prompt.texts), tuple(_source(each) for each in prompt.sources)
    )


def prompt_run(prompt: prompt_pb2.TokenizedPrompt) -> Tokenized:
    """A prompt that was run, which has tokens."""
    if not prompt.ids:
        raise BadResponse("the server did not send the prompt as the model saw it")
    return tokenized(prompt)


def _source(source: prompt_pb2.TokenSource) -> TokenSource:
    return TokenSource(
        start=source.start if source.HasField("start") else None,
        end=source.end if source.HasField("end") else None,
        turn=source.turn if source.HasField("turn") else None,
        role=source.role,
    )


def reports(
    answer: Sequence[intervention_pb2.InterventionReport], asked: int
) -> tuple[InterventionReport, ...]:
    """What each of the interventions asked for did."""
    if len(answer) != asked:
        raise BadResponse(
            f"the server reported on {len(answer)} interventions, not the {asked} asked"
        )
    return _reports(answer)


def monitor_interventions(finished: pb.SampleFinished) -> tuple[MonitorInterventions, ...]:
    """What monitors have changed in a sample."""
    return tuple(
        MonitorInterventions(
            monitor=short(each.monitor),
            level=level_name(each.level),
            first_position=each.first_position,
            interventions=_reports(each.interventions),
        )
        for each in finished.monitor_interventions
    )


def _reports(
    answer: Sequence[intervention_pb2.InterventionReport],
) -> tuple[InterventionReport, ...]:
    return tuple(
        InterventionReport(
            rows=report.rows,
            changed_rows=report.changed_rows,
            reused_rows=report.reused_rows,
            mean_relative_change=report.mean_relative_change
            if report.HasField("mean_relative_change")
            else None,
            dose_factor=report.dose_factor if report.HasField("dose_factor") else None,
        )
        for report in answer
    )


def logprobs(token: pb.TokenLogprobs) -> TokenLogprobs:
    """The log probabilities at one token."""
    top = tuple(TopLogprob(each.id, each.text, each.logprob) for each in token.top)
    return TokenLogprobs(token.logprob, top)


def finish_reason(value: int) -> str:
    """The name of a reason; its number if this client does not know it."""
    name = {number: name for name, number in pb.FinishReason.items()}.get(value, str(value))
    return name.removeprefix("FINISH_REASON_").lower()


def stopped_by(finished: pb.SampleFinished) -> int | str | None:
    """The end token, the stop string or the id of the monitor that ended a sample; None if nothing
    did."""
    what = finished.WhichOneof("stopped_by")
    if what == "monitor":
        return short(finished.monitor)
    return getattr(finished, what) if what else None
