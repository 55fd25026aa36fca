"""Fits of monitors for the wire."""

import numpy as np

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import positions_pb2, probe_pb2, readout_pb2, source_pb2, work_pb2
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import Aggregator, Attention, Ema, RollingMean, ScoreReduction
from actserve_server.domain.work import WorkProgress, WorkState
from actserve_server.monitors.fit_quality import Quality
from actserve_server.monitors.fit_request import FitReport
from actserve_server.monitors.fit_work import ended
from actserve_server.rpc.requests import network_fields, site_fields, tensor_fields
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call

_REDUCTIONS = {
    ScoreReduction.NEWEST: readout_pb2.REDUCTION_LAST,
    ScoreReduction.MEAN: readout_pb2.REDUCTION_MEAN,
    ScoreReduction.MAX: readout_pb2.REDUCTION_MAX,
}


def unfitted(
    request: pb.FitMonitorRequest, how: Aggregator, positions: positions_pb2.PositionSelector
) -> pb.Monitor:
    """The monitor that a request makes, without its probe. It scores what the fit has scored."""
    return pb.Monitor(
        paused=True, aggregator=aggregator(how), positions=positions, labels=request.labels
    )


def fitted(wire: pb.Monitor, report: FitReport, info: ModelInfo) -> pb.Monitor:
    """The same with its probe and levels."""
    made = pb.Monitor()
    made.CopyFrom(wire)
    _put_network(made, report.network, info)
    if report.lower is not None:
        made.lower.threshold = report.lower
    made.upper.threshold = report.upper
    return made


def begun(request: pb.FitMonitorRequest, steps: int) -> pb.MonitorFit:
    """Of a fit that is not done."""
    return pb.MonitorFit(
        method=request.method, work=work_pb2.Work(state=work_pb2.WORK_STATE_WAITING, steps=steps)
    )


def done(fit: pb.MonitorFit, report: FitReport) -> pb.MonitorFit:
    """The same with all that was measured."""
    steps = fit.work.steps
    return pb.MonitorFit(
        method=fit.method,
        work=work_pb2.Work(state=work_pb2.WORK_STATE_SUCCEEDED, steps=steps, steps_done=steps),
        tried=[
            pb.FittedSites(sites=map(site_fields.to_wire, each.sites), auroc=each.auroc)
            for each in report.fitted.tried
        ],
        held_out=_quality(report.fitted.held_out),
        shuffled=_quality(report.fitted.shuffled),
        longer=None if report.longer is None else _quality(report.longer),
        calibration_texts=report.calibration_texts,
    )


def failed(
    fit: pb.MonitorFit, progress: WorkProgress | None, error: ActserveError, call: Call
) -> pb.MonitorFit:
    """A fit that has ended with an error."""
    made = pb.MonitorFit(method=fit.method)
    made.work.CopyFrom(_work(progress or WorkProgress(WorkState.FAILED, 0, fit.work.steps)))
    made.work.state = work_pb2.WORK_STATE_FAILED
    made.work.error.CopyFrom(statuses.to_status(error, call))
    return made


def is_over(fit: pb.MonitorFit) -> bool:
    """Whether nothing more comes of it."""
    return fit.work.state in (work_pb2.WORK_STATE_SUCCEEDED, work_pb2.WORK_STATE_FAILED)


def tell(fit: pb.MonitorFit, progress: WorkProgress | None, call: Call) -> None:
    """Makes of a fit that is not over how far it has come; None where its server has ended."""
    if progress is None:
        fit.CopyFrom(failed(fit, None, ended(), call))
    else:
        fit.work.CopyFrom(_work(progress))


def aggregator(how: Aggregator) -> probe_pb2.ScoreAggregator:
    """How numbers become a score, all of it said."""
    made = probe_pb2.ScoreAggregator(reduction=_REDUCTIONS[how.reduction])
    match how.smoothing:
        case None:
            pass
        case Ema(weight):
            made.ema.weight = weight
        case RollingMean(tokens):
            made.rolling_mean.tokens = tokens
        case Attention(tokens):
            made.attention.SetInParent()
            if tokens is not None:
                made.attention.tokens = tokens
    return made


def _work(progress: WorkProgress) -> work_pb2.Work:
    return work_pb2.Work(
        state=int(progress.state),  # pyright: ignore[reportArgumentType]
        steps_done=progress.steps_done,
        steps=progress.steps,
    )


def _put_network(monitor: pb.Monitor, made: ProbeNetwork, info: ModelInfo) -> None:
    if made.hidden is not None or made.queries is not None:
        monitor.network.CopyFrom(network_fields.to_wire(made))
        return
    # What is linear is told as linear probes, of those sites that say anything.
    ends = np.cumsum([info.at(site).width for site in made.sites])
    for site, direction in zip(made.sites, np.split(made.values[0], ends[:-1]), strict=True):
        if direction.any():
            source = source_pb2.VectorSource(tensor=tensor_fields.to_wire(direction))
            monitor.probes.add(site=site_fields.to_wire(site), direction=source)
    monitor.probes[0].bias = made.bias


def _quality(told: Quality) -> pb.FitQuality:
    return pb.FitQuality(
        positives=told.positives,
        negatives=told.negatives,
        auroc=told.auroc,
        auroc_low=told.auroc_low,
        auroc_high=told.auroc_high,
        log_auroc=told.log_auroc,
        recall_at_1_percent=told.recall_at_1_percent,
        recall_at_01_percent=told.recall_at_01_percent,
        positive_scores=told.positive_scores.tolist(),
        negative_scores=told.negative_scores.tolist(),
    )
