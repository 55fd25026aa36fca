"""The monitors of the made-up model: a registry in memory that says how it was asked, which raises
the alerts that a test puts into it."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from google.rpc import status_pb2

from actserve.v1 import alert_pb2, work_pb2
from actserve.v1 import generation_service_pb2 as generation_pb2
from actserve.v1 import monitor_service_pb2 as pb

from .fake_prompts import tokenized
from .fake_readouts import tensor

MODEL = "models/big"
STEPS = 3
"""Of the work of a fit: each look at the monitor does one."""
THRESHOLDS = (2.0, 4.0)
"""Of monitors that are replayed: a score is how many tokens there are so far."""
GONE = "gone"
"""A text that cannot be scored."""


def whole(monitor: str) -> str:
    return f"{MODEL}/monitors/{monitor}"


def alert(number: int, monitor: str = "rude", **fields: Any) -> alert_pb2.Alert:
    made = alert_pb2.Alert(
        name=f"{MODEL}/alerts/a{number}",
        monitor=whole(monitor),
        monitor_etag="e",
        level=alert_pb2.ALERT_LEVEL_UPPER,
        score=0.5,
        position=number,
        watched_call_id=f"call{number}",
        resume_token=str(number).encode(),
        **fields,
    )
    made.raise_time.FromSeconds(1_000_000_000 + number)
    return made


class Monitors:
    """What is stored, by name, and the alerts that were raised."""

    def __init__(self) -> None:
        self.stored: dict[str, pb.Monitor] = {}
        self.made_by: dict[str, pb.Monitor] = {}
        self.alerts: list[alert_pb2.Alert] = []
        self.lost = 0
        """Alerts that are no longer there, told before the next one."""
        self.fails = False
        """Whether the work of fits fails."""
        self.cut_after: int | None = None
        """After how many alerts the stream of a watcher ends."""
        self.raised = threading.Condition()
        self.replay = self.honest_replay

    def raise_alert(self, alert: alert_pb2.Alert) -> None:
        with self.raised:
            self.alerts.append(alert)
            self.raised.notify_all()

    def answer(self, request: Any, context: Any) -> Any:
        match request:
            case pb.CreateMonitorRequest():
                return pb.CreateMonitorResponse(
                    monitor=self._made(request, request.monitor, context)
                )
            case pb.FitMonitorRequest():
                monitor = self._made(request, pb.Monitor(paused=True), context)
                if not monitor.HasField("fit"):
                    monitor.fit.method = request.method or pb.FIT_METHOD_LOGISTIC
                    monitor.fit.work.state = work_pb2.WORK_STATE_WAITING
                    monitor.fit.tried.extend(
                        pb.FittedSites(sites=[site], auroc=0.75) for site in request.sites
                    )
                return pb.FitMonitorResponse(monitor=monitor)
            case pb.GetMonitorRequest():
                return pb.GetMonitorResponse(monitor=self._worked(self._found(request, context)))
            case pb.ListMonitorsRequest():
                # One a page, so that a client that stops at the first page is noticed.
                names = [name for name in sorted(self.stored) if name > request.page_token]
                return pb.ListMonitorsResponse(
                    monitors=[self.stored[name] for name in names[:1]],
                    next_page_token=names[0] if len(names) > 1 else "",
                )
            case pb.UpdateMonitorRequest():
                monitor = self._unchanged(request.monitor, context)
                for path in request.update_mask.paths:
                    part = pb.Monitor()
                    part.CopyFrom(request.monitor)
                    for field in pb.Monitor.DESCRIPTOR.fields:
                        if field.name != path:
                            part.ClearField(field.name)
                    monitor.ClearField(path)
                    monitor.MergeFrom(part)
                monitor.etag += "'"
                return pb.UpdateMonitorResponse(monitor=monitor)
            case pb.DeleteMonitorRequest():
                del self.stored[self._unchanged(request, context).name]
                return pb.DeleteMonitorResponse()
            case pb.GetMonitorScoresRequest():
                self._found(request, context)
                hour = pb.ScoreHour(monitor_etag="e", counts=[7, 2, 1])
                hour.start_time.FromSeconds(1_000_000_800)
                return pb.GetMonitorScoresResponse(edges=[0, 1], hours=[hour], drift=0.25)
            case _:
                return self._alerts(request, context)

    def _made(self, request: Any, given: pb.Monitor, context: Any) -> pb.Monitor:
        if request.request_id in self.made_by:
            return self.made_by[request.request_id]
        name = whole(request.monitor_id)
        if name in self.stored:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{name} is taken")
        monitor = pb.Monitor()
        monitor.CopyFrom(given)
        monitor.name, monitor.etag, monitor.model_path = name, "e", "org/checkpoint"
        monitor.create_time.FromSeconds(1_000_000_000)
        monitor.update_time.FromSeconds(1_000_000_000)
        for each in monitor.probes:
            each.direction.tensor.ClearField("data")
        self.stored[name] = self.made_by[request.request_id] = monitor
        return monitor

    def _worked(self, monitor: pb.Monitor) -> pb.Monitor:
        work = monitor.fit.work
        if not monitor.HasField("fit") or work.state >= work_pb2.WORK_STATE_SUCCEEDED:
            return monitor
        work.state, work.steps, work.steps_done = (
            work_pb2.WORK_STATE_RUNNING,
            STEPS,
            work.steps_done + 1,
        )
        if self.fails:
            work.state = work_pb2.WORK_STATE_FAILED
            code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            work.error.CopyFrom(status_pb2.Status(code=code, message="too few examples"))
        elif work.steps_done == STEPS:
            work.state = work_pb2.WORK_STATE_SUCCEEDED
            for name, auroc in (("held_out", 1.0), ("shuffled", 0.5)):
                getattr(monitor.fit, name).CopyFrom(
                    pb.FitQuality(
                        positives=2,
                        negatives=3,
                        auroc=auroc,
                        auroc_low=auroc - 0.25,
                        auroc_high=auroc,
                        log_auroc=auroc,
                        positive_scores=[2, 3],
                        negative_scores=[-1, 0, 1],
                    )
                )
            monitor.fit.calibration_texts = 3
            monitor.probes.add(site=monitor.fit.tried[0].sites[0])
            monitor.upper.threshold = 1
        return monitor

    def _found(self, request: Any, context: Any) -> pb.Monitor:
        if request.name not in self.stored:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.name} is not stored")
        return self.stored[request.name]

    def _unchanged(self, request: Any, context: Any) -> pb.Monitor:
        monitor = self._found(request, context)
        if request.etag not in ("", monitor.etag):
            context.abort(grpc.StatusCode.ABORTED, f"{request.name} has changed")
        return monitor

    def _alerts(self, request: Any, context: Any) -> Any:
        match request:
            case pb.ListAlertsRequest():
                chosen = self._fitting(request.filter)[::-1]
                first = int(request.page_token or 0)
                return pb.ListAlertsResponse(
                    alerts=chosen[first : first + 1],
                    next_page_token=str(first + 1) if len(chosen) > first + 1 else "",
                )
            case pb.DeleteAlertsRequest():
                chosen = self._fitting(request.filter)
                self.alerts = [each for each in self.alerts if each not in chosen]
                return pb.DeleteAlertsResponse(alerts=len(chosen))
            case _:
                found = next((each for each in self.alerts if each.name == request.name), None)
                if found is None:
                    context.abort(grpc.StatusCode.NOT_FOUND, f"{request.name} is not stored")
                assert found is not None  # Else the call was aborted.
                if isinstance(request, pb.GetAlertRequest):
                    return pb.GetAlertResponse(alert=found)
                if found.decision:
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it is decided")
                found.decision = request.decision
                return pb.DecideAlertResponse(alert=found)

    def _fitting(self, chosen: pb.AlertFilter) -> list[alert_pb2.Alert]:
        return [
            each
            for each in self.alerts
            if (not chosen.monitors or each.monitor in chosen.monitors)
            and chosen.level in (0, each.level)
            and chosen.end_user in ("", each.end_user)
            and not (chosen.undecided and each.decision)
        ]

    def watch(self, request: pb.WatchAlertsRequest, context: Any) -> Iterator[Any]:
        """Those after the resume token, or new ones; until it is cut or the caller goes."""
        with self.raised:
            now = max((each.position for each in self.alerts), default=0)
        last = int(request.resume_token) if request.resume_token else now
        last = -1 if request.from_oldest else last
        token = str(last).encode()
        yield pb.WatchAlertsResponse(started=pb.AlertsStarted(call_id="r5", resume_token=token))
        for count in itertools.count():
            with self.raised:
                while not (new := [each for each in self.alerts if each.position > last]):
                    self.raised.wait(0.05)
                    if not context.is_active():
                        return
            if count == self.cut_after:
                return
            if self.lost:
                yield pb.WatchAlertsResponse(lost=pb.AlertsLost(alerts=self.lost))
                self.lost = 0
            last = new[0].position
            yield pb.WatchAlertsResponse(alert=new[0])

    def honest_replay(self, request: pb.ReplayMonitorsRequest) -> Iterator[Any]:
        """The score as of each token is how many there are, and half of that for a monitor whose
        name ends in `old`. The last item comes first."""
        yield pb.ReplayMonitorsResponse(started=pb.ReplayStarted(call_id="r6"))
        for index, item in reversed([*enumerate(request.items)]):
            told = pb.ReplayedItem(item_index=index, key=item.key)
            if item.prompt.text == GONE:
                told.status.code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
                told.status.message = "it is gone"
            else:
                tokens = len(tokenized(item.prompt).ids)
                told.scores.extend(
                    scored(name, tokens, each_token=request.each_token) for name in request.monitors
                )
            yield pb.ReplayMonitorsResponse(item=told)
        usage = generation_pb2.Usage(prompt_tokens=len(request.items))
        yield pb.ReplayMonitorsResponse(finished=pb.ReplayFinished(usage=usage))


def scored(name: str, tokens: int, *, each_token: bool) -> generation_pb2.MonitorScore:
    scores = np.arange(1, tokens + 1, dtype=np.float32) / (2 if name.endswith("old") else 1)
    level = sum(bool(scores.max() > threshold) for threshold in THRESHOLDS)
    made = generation_pb2.MonitorScore(
        monitor=name,
        tokens=tokens,
        score=scores[-1],
        highest_score=scores[-1],
        highest_position=tokens - 1,
        level=level,  # pyright: ignore[reportArgumentType]
    )
    if each_token:
        made.positions.extend(range(tokens))
        made.token_scores.CopyFrom(tensor(scores))
    return made
