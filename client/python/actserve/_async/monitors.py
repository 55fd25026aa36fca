"""Monitors: what a server watches generation by, how that is fitted and tried, and its alerts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from typing_extensions import Unpack

from actserve import _monitor_requests as requests
from actserve._async.alerts import AsyncAlerts
from actserve._async.base import AsyncBase
from actserve._async.monitor_fits import AsyncMonitorFit
from actserve._checks import given
from actserve._names import named, short
from actserve._replay_jobs import replay_job
from actserve._signatures import spelled_out
from actserve.aggregators import AggregatorLike
from actserve.errors import InvalidRequest
from actserve.fit_examples import Example, examples_of
from actserve.monitor_fits import FitMethod
from actserve.monitors import (
    MONITORS,
    Level,
    Monitor,
    MonitorChanges,
    Watch,
    monitor_from_proto,
)
from actserve.positions import Positions
from actserve.probe_networks import ProbeNetwork
from actserve.probes import Probe
from actserve.prompts import Prompt
from actserve.qualities import Quality, measured
from actserve.replays import Replay
from actserve.score_histories import ScoreHistory, history_from_proto
from actserve.sites import SiteLike, parse_sites
from actserve.v1 import monitor_service_pb2 as pb


class AsyncMonitors:
    """The monitors of a model, which belong to the tenant of the client's token.

    A monitor is named by its id or by its whole name, or is what a method here returned. What makes
    a monitor is safe to try again: it is never made twice. Raises `NotFound` for a name that is not
    there, and `AlreadyExists` for one that is taken.
    """

    def __init__(self, transport: Any, resolved: Any, model: str) -> None:
        self._transport = transport
        self._resolved = resolved
        self._model = model

    async def create(
        self,
        name: str,
        *,
        probe: Probe | Sequence[Probe] | ProbeNetwork,
        aggregator: AggregatorLike | None = None,
        positions: Positions | None = None,
        lower: Level | None = None,
        upper: Level | None = None,
        watch: Watch | None = None,
        labels: Mapping[str, str] | None = None,
        paused: bool = False,
        timeout: float | None = None,
    ) -> Monitor:
        """Stores a monitor, which watches from then on.

        - `name`: 1 to 63 lower-case letters, digits and hyphens, from a letter on.
        - `probe`: what gives a number for each token: a `Probe`, several at different sites, whose
          numbers are added, or a `ProbeNetwork`.
        - `aggregator`: how the numbers become the score as of a token; see `actserve.aggregators`.
          When None, as the one `Probe` says itself, or the newest number.
        - `positions`: which tokens count, of the prompt and of what is generated; all when None.
        - `lower`, `upper`: at least one `Level`. The lower one is for what deserves a second look,
          the upper one for what must not go on.
        - `watch`: which calls it watches besides those that name it; all of the tenant when None.
        - `labels`: what it is, for people.
        - `paused`: whether it watches nothing for now.

            client.monitors.create(
                "toxicity",
                probe=Probe("resid_post.12", "toxic"),
                aggregator="rolling_mean_max(10)",
                lower=Level(0.5, flag=True),
                upper=Level(0.9, Stop()),
            )
        """
        asked = given(
            probe=probe,
            aggregator=aggregator,
            positions=positions,
            lower=lower,
            upper=upper,
            watch=watch,
            labels=labels,
            paused=paused,
        )
        asked = {name: each for name, each in asked.items() if each is not None}
        asked = await self._resolved(asked, timeout)
        request = requests.create(self._model, name, asked)
        answer = await self._transport.response("CreateMonitor", request, timeout)
        return monitor_from_proto(answer.monitor)

    async def get(self, name: str | Monitor, *, timeout: float | None = None) -> Monitor:
        """One monitor as it is now.

        client.monitors.get("toxicity").show()
        """
        request = pb.GetMonitorRequest(name=await self._whole(name, timeout))
        answer = await self._transport.response("GetMonitor", request, timeout)
        return monitor_from_proto(answer.monitor)

    @spelled_out(MonitorChanges)
    async def update(
        self,
        name: str | Monitor,
        *,
        etag: str | None = None,
        timeout: float | None = None,
        **changes: Unpack[MonitorChanges],
    ) -> Monitor:
        """Replaces what is given, each as a whole, and leaves the rest as it is; None takes away.
        With `etag` only if nobody has changed the monitor since: else it raises `Conflict`. Samples
        that are watched already are watched as they began.

            client.monitors.update("toxicity", upper=Level(0.95, Stop()), lower=None)
            client.monitors.update("toxicity", paused=True)
        """
        asked = await self._resolved(given(**changes), timeout)
        request = requests.update(await self._whole(name, timeout), asked, etag)
        answer = await self._transport.response("UpdateMonitor", request, timeout)
        return monitor_from_proto(answer.monitor)

    async def delete(
        self, name: str | Monitor, *, etag: str | None = None, timeout: float | None = None
    ) -> None:
        """Deletes a monitor, and ends the work that fits it; its alerts stay. `etag` is as for
        `update`."""
        whole = await self._whole(name, timeout)
        request = pb.DeleteMonitorRequest(name=whole, etag=etag or "")
        await self._transport.response("DeleteMonitor", request, timeout)

    async def fit(
        self,
        name: str,
        examples: Iterable[Example | Mapping[str, Any]] | None = None,
        *,
        positive: Iterable[Prompt | Example] | None = None,
        negative: Iterable[Prompt | Example] | None = None,
        sites: SiteLike | Iterable[SiteLike] = "resid_post.*",
        method: FitMethod | None = None,
        benign: Iterable[Prompt | Example] = (),
        longer: Iterable[Example | Mapping[str, Any]] = (),
        all_sites: bool = False,
        aggregator: AggregatorLike | None = None,
        positions: Positions | None = None,
        hidden_units: int | None = None,
        heads: int | None = None,
        lower_false_positives: float | None = None,
        upper_false_positives: float | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncMonitorFit:
        """Makes a monitor of labelled examples, on the server; returns at once, with what tells how
        far that has come. The monitor is paused until `update` says otherwise.

        - `examples`: `Example`s, or rows of a data set or data frame such as
          `{"text": ..., "label": True, "group": ..., "span": ...}`; `Example.of` reads them. Or
          in their place `positive` and `negative` prompts. At least four of each kind; a quarter is
          held out to measure.
        - `sites`: the sites to probe, 64 at most, of which the one that does best is chosen; or
          with `all_sites` all of them side by side.
        - `method`: "logistic" when None, "mean_difference", "streamed", "mlp" or "attention".
        - `benign`: texts like those that will be watched, nearly all of which are harmless:
          thresholds are set by these, and by the negative examples held out.
        - `longer`: longer examples, to see whether the probe finds what it looks for there.
        - `aggregator`: as for `create`; what suits the method when None.
        - `positions`: which tokens count, as for `create`; an example's own are used to fit.
        - `hidden_units`: of "mlp", 64 when None. `heads`: of "attention", 10 when None.
        - `upper_false_positives`: the share of harmless texts that may come above the upper level,
          0.001 when None. `lower_false_positives`: the same of the lower; no such level when None.

            fit = client.monitors.fit("toxicity", positive=rude, negative=polite)
            fit.wait().report.plot("toxicity.png")
            client.monitors.update("toxicity", upper=Level(2.5, Stop()), paused=False)
        """
        asked = given(
            sites=parse_sites(sites),
            all_sites=all_sites,
            method=method,
            aggregator=aggregator,
            positions=positions,
            hidden_units=hidden_units,
            heads=heads,
            lower_false_positives=lower_false_positives,
            upper_false_positives=upper_false_positives,
            labels=labels,
        )
        asked = await self._resolved(asked, timeout)
        request = requests.fit(
            self._model,
            name,
            asked,
            positive=positive,
            negative=negative,
            examples=examples,
            benign=benign,
            longer=longer,
        )
        answer = await self._transport.response("FitMonitor", request, timeout)
        return AsyncMonitorFit(self._transport, monitor_from_proto(answer.monitor))

    async def fitting(
        self, name: str | Monitor, *, timeout: float | None = None
    ) -> AsyncMonitorFit:
        """What tells how far a fit has come that was begun before, here or elsewhere. Raises
        `ValueError` of a monitor that was not fitted.

            client.monitors.fitting("toxicity").wait(progress=True)
        """
        monitor = await self.get(name, timeout=timeout)
        assert monitor.report  # Raises what it says.
        return AsyncMonitorFit(self._transport, monitor)

    async def scores(self, name: str | Monitor, *, timeout: float | None = None) -> ScoreHistory:
        """How the scores of a monitor are distributed, hour by hour, and how far that has drifted.

        client.monitors.scores("toxicity").drift
        """
        whole = await self._whole(name, timeout)
        request = pb.GetMonitorScoresRequest(name=whole)
        answer = await self._transport.response("GetMonitorScores", request, timeout)
        return history_from_proto(answer, short(whole))

    async def replay(
        self,
        prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
        monitors: str | Monitor | Sequence[str | Monitor],
        *,
        intervene: Any = (),
        positions: Any = None,
        adapter: str | None = None,
        each_token: bool = False,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Replay:
        """What monitors score in prompts, such as recorded conversations, without acting and
        without alerts: to try a monitor before it watches.

        - `prompts`: one, several, or several by keys.
        - `monitors`: one, or several, 8 at most.
        - `intervene`, `positions`, `adapter`: as for `fetch`; `positions` in place of the monitor's
          own.
        - `each_token`: whether to tell the score as of each token too.
        - `timeout`: seconds that each call may take; a list is many calls.

        A prompt that fails has its `error`, and the others go on.

            replay = client.monitors.replay(conversations, ["new", "old"])
            for each in replay.disagreements("new", "old"):
                print(each.item.key, each.one.highest, each.other.highest)
        """
        names = await self._resolved({"monitors": requests.monitors_named(monitors)}, timeout)
        asked = await self._resolved(given(intervene=intervene, positions=positions), timeout)
        job = replay_job(
            prompts,
            names["monitors"],
            adapter=adapter,
            each_token=each_token,
            in_flight=self._transport.connection.fetch_jobs.in_flight,
            **asked,
        )
        return await self._transport.run(job, timeout, progress)

    async def test(
        self,
        name: str | Monitor,
        examples: Iterable[Example | Mapping[str, Any]],
        *,
        positions: Positions | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Quality:
        """How well a monitor tells labelled examples apart, each by its highest score at any token
        that counts: what raises alerts. Examples are as for `fit`. Where one has positions, those
        count in place of the monitor's own, else `positions` if they are given: a monitor of what
        is generated scores no token of a text. Raises what a prompt that fails did.

            client.monitors.test("toxicity", rows).recall_at_1_percent
        """
        found = examples_of(examples, "examples")
        counted: list[Any] = [
            positions if each.positions is None else each.positions for each in found
        ]
        replay = await self.replay(
            [each.prompt for each in found],
            name,
            positions=counted if any(each is not None for each in counted) else None,
            timeout=timeout,
            progress=progress,
        )
        for item in replay.failed:
            assert item.error
            item.error.path = ("examples", item.index, *item.error.path)
            raise item.error
        (monitor,) = replay.monitors
        scores = replay.highest(monitor).tolist()
        missing = [index for index, score in enumerate(scores) if score != score]
        if missing:
            raise InvalidRequest(
                f"no token of example {missing[0]} counts, so that it has no score; give it other "
                "positions, or leave it out",
                reason="FIELD_INVALID",
                path=("examples", missing[0]),
            )
        kinds, groups = [each.positive for each in found], [each.group for each in found]
        return measured(scores, kinds, groups)

    # Last: below it `list` is this method.
    async def list(self, *, timeout: float | None = None) -> AsyncGenerator[Monitor, None]:
        """The monitors, by name. Pages are asked for as they are needed.

        for monitor in client.monitors.list():
            print(monitor.id, monitor.upper)
        """
        request = pb.ListMonitorsRequest(model=self._model)
        async for page in self._transport.pages("ListMonitors", request, timeout):
            for monitor in page.monitors:
                yield monitor_from_proto(monitor)

    async def _whole(self, name: Any, timeout: float | None) -> str:
        """The whole name of a monitor."""
        asked = await self._resolved({"monitor": named(MONITORS, name)}, timeout)
        return asked["monitor"].name


class AsyncMonitoring(AsyncBase):
    """Monitors and their alerts."""

    @cached_property
    def monitors(self) -> AsyncMonitors:
        """What the server watches generation by.

        client.monitors.create("rude", probe=probe, upper=Level(0.9, Stop()))
        client.generate("I think", monitors="rude").finish_reason
        """
        return AsyncMonitors(self._transport, self._resolved, self._connection.model)

    @cached_property
    def alerts(self) -> AsyncAlerts:
        """What monitors have found.

        for alert in client.alerts.watch(level="upper"):
            print(alert.monitor, alert.score, alert.request_id)
        """
        return AsyncAlerts(self._transport, self._resolved, self._connection.model)
