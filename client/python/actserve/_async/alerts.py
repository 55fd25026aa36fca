"""Alerts: what monitors have found, as it is raised, looked up, and decided about."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from actserve import _monitor_requests as requests
from actserve._alert_calls import WatchCall
from actserve._checks import described, finite
from actserve._names import named
from actserve._retries import Reconnects
from actserve.alerts import Alert, AlertDecision, AlertLevel, alert_from_proto, decision_to_proto
from actserve.errors import ActserveError, InvalidRequest
from actserve.monitors import Monitor
from actserve.v1 import monitor_service_pb2 as pb

_ALERTS = "alerts"


class AsyncAlerts:
    """The alerts of a model's monitors, which belong to the tenant of the client's token.

    Those that are wanted are told by `monitors`, one or several; `level`, "lower" or "upper"; and
    `end_user`, for whom the call was made. All that is given has to fit.
    """

    def __init__(self, transport: Any, resolved: Any, model: str) -> None:
        self._transport = transport
        self._resolved = resolved
        self._model = model

    async def watch(
        self,
        monitors: str | Monitor | Iterable[str | Monitor] = (),
        *,
        level: AlertLevel | None = None,
        end_user: str | None = None,
        resume_from: Alert | bytes | None = None,
        from_oldest: bool = False,
        give_up_after: float | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Alert, None]:
        """Alerts as they are raised, on whatever replica of the server, each once; it has no end. A
        connection that is lost is made again, for as long as it takes, such as while a server
        starts again. None is missed that is still stored: those that are not are counted in
        `Alert.lost_before` of the next one. A first connection is tried as often as any call.

        - `resume_from`: the last alert that you have, or its `resume_token`, to get those since.
        - `from_oldest`: in its place, begin with the oldest that is stored; only new ones else.
        - `give_up_after`: seconds without a server after which it raises `Unavailable`; never when
          None. Until then the logger "actserve" warns that the server is gone and is back.
        - `timeout`: seconds for all of it; no limit when None.

            for alert in client.alerts.watch("toxicity", level="upper"):
                page_somebody(alert.request_id, alert.score)
        """
        request = pb.WatchAlertsRequest(
            model=self._model,
            filter=await self._filter(monitors, level, end_user, timeout=timeout),
            resume_token=_resume_token(resume_from),
            from_oldest=from_oldest,
        )
        call, reconnects = WatchCall(request), Reconnects(timeout, _patience(give_up_after))
        while True:
            begun = False
            responses = self._transport.messages(
                call.method, call.begin(), reconnects.left(), retries=reconnects
            )
            try:
                async with aclosing(responses):
                    async for response in responses:
                        alert = call.read(response)
                        if not begun:
                            begun = True
                            reconnects.connected()
                        if alert is not None:
                            reconnects.good()
                            yield alert
                call.result()  # It has no end, so that one is a connection that broke.
            except ActserveError as error:
                # Before the first response it was tried again already.
                pause = reconnects.pause(error) if begun else None
                if pause is None:
                    raise
            await self._transport.sleep(pause)

    async def get(self, alert: str | Alert, *, timeout: float | None = None) -> Alert:
        """One alert as it is now, by its id, its name or as it was."""
        request = pb.GetAlertRequest(name=await self._whole(alert, timeout))
        answer = await self._transport.response("GetAlert", request, timeout)
        return alert_from_proto(answer.alert)

    async def decide(
        self, alert: str | Alert, decision: AlertDecision, *, timeout: float | None = None
    ) -> Alert:
        """Says what becomes of a sample that is paused: "proceed" or "stop". The first decision
        holds: another raises `NotServed` with the reason `ALERT_DECIDED`, as does any about an
        alert that waits for none.

            for alert in client.alerts.watch():
                if alert.action == "pause":
                    client.alerts.decide(alert, "stop" if is_bad(alert.text) else "proceed")
        """
        request = pb.DecideAlertRequest(
            name=await self._whole(alert, timeout), decision=decision_to_proto(decision)
        )
        answer = await self._transport.response("DecideAlert", request, timeout)
        return alert_from_proto(answer.alert)

    async def delete(
        self,
        monitors: str | Monitor | Iterable[str | Monitor] = (),
        *,
        level: AlertLevel | None = None,
        end_user: str | None = None,
        undecided: bool = False,
        before: datetime | None = None,
        everything: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Deletes alerts, wherever they are stored, and returns how many. Those of a sample that is
        paused stay until it is decided. Raises `InvalidRequest` where nothing says which, unless
        `everything` says all.

            client.alerts.delete(end_user="user-7")
        """
        chosen = await self._filter(
            monitors, level, end_user, undecided=undecided, before=before, timeout=timeout
        )
        if everything == bool(chosen.ListFields()):
            raise InvalidRequest(
                "everything is to be deleted, and something says which; leave out one of the two"
                if everything
                else "nothing says which alerts to delete; name a monitor, a level, an end user or "
                "a time, or give everything=True",
                reason="FIELD_REQUIRED",
            )
        request = pb.DeleteAlertsRequest(model=self._model, filter=chosen)
        return (await self._transport.response("DeleteAlerts", request, timeout)).alerts

    # Last: below it `list` is this method.
    async def list(
        self,
        monitors: str | Monitor | Iterable[str | Monitor] = (),
        *,
        level: AlertLevel | None = None,
        end_user: str | None = None,
        undecided: bool = False,
        before: datetime | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Alert, None]:
        """The alerts that are stored, the newest first. Pages are asked for as they are needed.

        - `undecided`: only those about which something is to be decided, and is not yet.
        - `before`: only those raised before this time, which has a time zone.

            from itertools import islice

            newest = list(islice(client.alerts.list(), 10))
        """
        request = pb.ListAlertsRequest(
            model=self._model,
            filter=await self._filter(
                monitors, level, end_user, undecided=undecided, before=before, timeout=timeout
            ),
        )
        async for page in self._transport.pages("ListAlerts", request, timeout):
            for alert in page.alerts:
                yield alert_from_proto(alert)

    async def _filter(
        self,
        monitors: Any,
        level: Any,
        end_user: Any,
        *,
        undecided: bool = False,
        before: Any = None,
        timeout: float | None,
    ) -> pb.AlertFilter:
        asked = {"monitors": requests.monitors_named(monitors)}
        asked = await self._resolved(asked, timeout)
        return requests.alert_filter(
            asked["monitors"], level, end_user, undecided=undecided, before=before
        )

    async def _whole(self, alert: Any, timeout: float | None) -> str:
        """The whole name of an alert."""
        if isinstance(alert, Alert) and not alert.name:
            raise InvalidRequest(
                "the alert is one that an answer told of, which has no name; find it by "
                "client.alerts.list() and its request_id",
                reason="FIELD_REQUIRED",
                path=("alert",),
            )
        asked = await self._resolved({"alert": named(_ALERTS, alert)}, timeout)
        return asked["alert"].name


def _resume_token(given: Any) -> bytes:
    token = given.resume_token if isinstance(given, Alert) else given
    if token is None:
        return b""
    if not isinstance(token, bytes) or not token:
        raise InvalidRequest(
            f"resume_from is {described(given)}; give an alert that client.alerts returned, or its "
            "resume_token",
            reason="FIELD_INVALID",
            path=("resume_from",),
        )
    return token


def _patience(given: Any) -> float | None:
    """Seconds without a server. Raises `InvalidRequest`."""
    if given is not None and finite(given, "give_up_after") <= 0:
        raise InvalidRequest(
            f"give_up_after is {given} seconds; it must be above 0, or None for never",
            reason="FIELD_INVALID",
            path=("give_up_after",),
        )
    return given
