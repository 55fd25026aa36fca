"""Monitor fits: how far the work has come that makes a monitor."""

from __future__ import annotations

from typing import Any

from actserve._progress import reaching
from actserve._retries import Retries
from actserve.errors import DeadlineExceeded
from actserve.monitor_fits import FitReport, Work
from actserve.monitors import Monitor, monitor_from_proto
from actserve.v1 import monitor_service_pb2 as pb

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
"""Between two looks at how far it has come."""


class MonitorFit:
    """A monitor that is being fitted on the server. The work goes on whether or not anybody waits
    for it; `client.monitors.fitting(name)` finds it again."""

    def __init__(self, transport: Any, monitor: Monitor) -> None:
        self._transport = transport
        self.monitor = monitor
        """The monitor as it was last seen."""

    @property
    def report(self) -> FitReport:
        """How it does, as it was last seen."""
        return self.monitor.report

    @property
    def work(self) -> Work:
        """How far it had come when it was last seen."""
        return self.report.work

    def look(self, *, timeout: float | None = None) -> Work:
        """How far it has come now. Raises `NotFound` of a monitor that was deleted."""
        request = pb.GetMonitorRequest(name=self.monitor.name)
        answer = self._transport.response("GetMonitor", request, timeout)
        self.monitor = monitor_from_proto(answer.monitor)
        return self.work

    def wait(self, *, timeout: float | None = None, progress: bool | None = None) -> Monitor:
        """The monitor, once the work is done; it is paused still. Raises what the work failed with,
        and `DeadlineExceeded` after `timeout` seconds, after which the work goes on all the same.

        - `progress`: a bar on standard error; by default on a terminal, with rich.

            client.monitors.fit("toxicity", rows).wait().report.show()
        """
        left, pause = Retries(timeout), _FIRST_PAUSE_S
        with reaching(f"fit {self.monitor.id}", progress) as reach:
            while not self.work.is_over:
                remaining = left.left()
                if remaining == 0:
                    raise DeadlineExceeded(
                        f"{self.monitor.id} is {self.work.state} after {timeout} seconds; the work "
                        f"goes on, and client.monitors.fitting({self.monitor.id!r}) finds it"
                    )
                self._transport.sleep(pause if remaining is None else min(pause, remaining))
                pause = min(1.5 * pause, _LONGEST_PAUSE_S)
                work = self.look()
                reach(work.steps_done, work.steps)
        if self.work.error:
            raise self.work.error
        return self.monitor

    def cancel(self, *, timeout: float | None = None) -> None:
        """Ends the work, if it is not over, by deleting the monitor."""
        request = pb.DeleteMonitorRequest(name=self.monitor.name)
        self._transport.response("DeleteMonitor", request, timeout)

    def __repr__(self) -> str:
        work = self.work
        of = f" of {work.steps}" if work.steps else ""
        return (
            f"{type(self).__name__}({self.monitor.id!r}, {work.state}, {work.steps_done}{of} steps)"
        )
