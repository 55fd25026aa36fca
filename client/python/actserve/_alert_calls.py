"""Alert calls: alerts as they are raised, through as many connections as it takes."""

from dataclasses import replace
from typing import NoReturn

from actserve._whole_answers import EventOrder
from actserve.alerts import Alert, alert_from_proto
from actserve.errors import StreamCutShort
from actserve.v1 import monitor_service_pb2 as pb


class WatchCall:
    """Alerts, each once, which go on after the last one that came where a connection breaks."""

    method = "WatchAlerts"

    def __init__(self, request: pb.WatchAlertsRequest) -> None:
        self._request = request
        self._order = EventOrder()
        self._lost = 0

    def begin(self) -> pb.WatchAlertsRequest:
        """What is sent in a new connection."""
        self._order = EventOrder()
        self._lost = 0  # What was not told yet is told again.
        return self._request

    def read(self, response: pb.WatchAlertsResponse) -> Alert | None:
        """Takes one response; an alert is for the caller."""
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._go_on_from(response.started.resume_token)
            case "alert":
                self._go_on_from(response.alert.resume_token)
                alert: Alert = replace(alert_from_proto(response.alert), lost_before=self._lost)
                self._lost = 0
                return alert
            case "lost":
                self._lost += response.lost.alerts
            case _:  # An event of a newer server; the contract says to skip it.
                pass
        return None

    def result(self) -> NoReturn:
        """It has no end of its own, so that one is a connection that broke."""
        raise StreamCutShort("the server ended the stream of alerts, which has no end; try again")

    def _go_on_from(self, token: bytes) -> None:
        # Without one the first token would be lost, and with it what came between.
        if token:
            request = pb.WatchAlertsRequest()
            request.CopyFrom(self._request)
            request.resume_token = token
            request.ClearField("from_oldest")
            self._request = request
