"""Reports of interventions: one for each of the request, however many of the run it took."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actserve.v1 import intervention_pb2 as pb
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.runs import InterventionReport
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.transport import metrics


def to_wire(
    edits: Sequence[InterventionRequest], reports: Sequence[InterventionReport]
) -> list[pb.InterventionReport]:
    """The report of every intervention of the request, in order."""
    rest = iter(reports)
    return [_merged([next(rest) for _ in edit.parts]) for edit in edits]


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


def _merged(reports: Sequence[InterventionReport]) -> pb.InterventionReport:
    changes = [
        (report.mean_relative_change, report.rows - report.reused_rows)
        for report in reports
        if report.mean_relative_change is not None
    ]
    computed = sum(rows for _, rows in changes)
    return pb.InterventionReport(
        rows=sum(report.rows for report in reports),
        changed_rows=sum(report.changed_rows for report in reports),
        reused_rows=sum(report.reused_rows for report in reports),
        mean_relative_change=sum(change * rows for change, rows in changes) / computed
        if computed
        else None,
    )
