"""Reports of interventions: one for each of the request, however many of the run it took."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from actserve.v1 import intervention_pb2 as pb
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.runs import InterventionReport
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.calls import current_call


def to_wire(
    edits: Sequence[InterventionRequest], reports: Sequence[InterventionReport]
) -> list[pb.InterventionReport]:
    """The report of every intervention of the request, in order."""
    rest = iter(reports)
    merged = [InterventionReport.merged([next(rest) for _ in edit.parts]) for edit in edits]
    if (changes := current_call().changes) is not None:
        for edit, each in zip(edits, merged, strict=True):
            receipt = changes.receipt(edit.change)
            receipt.add(each.rows, each.changed_rows, each.reused_rows, each.mean_relative_change)
    return [
        report(replace(each, dose_factor=edit.dose_factor))
        for each, edit in zip(merged, edits, strict=True)
    ]


def note(edits: Sequence[InterventionRequest]) -> None:
    """Notes for the audit log that these change the call, before there are reports of them."""
    if (changes := current_call().changes) is not None:
        for edit in edits:
            changes.receipt(edit.change)


def count(edits: Sequence[InterventionRequest]) -> None:
    """Counts the interventions of a run that finished."""
    for edit in edits:
        metrics.INTERVENTIONS.labels(edit.kind).inc()


@contextmanager
def numbered_as_sent(edits: Sequence[InterventionRequest]) -> Iterator[None]:
    """Makes errors about an intervention of a run name the one of the request."""
    try:
        yield
    except ActserveError as error:
        match error.field:
            case ("interventions", int(number), *rest):
                sent = [edit for edit in edits for _ in edit.parts][number]
                error.field = (*sent.field, *rest)
        raise


def report(merged: InterventionReport) -> pb.InterventionReport:
    """One report as a message."""
    return pb.InterventionReport(
        rows=merged.rows,
        changed_rows=merged.changed_rows,
        reused_rows=merged.reused_rows,
        mean_relative_change=merged.mean_relative_change,
        dose_factor=merged.dose_factor,
    )
