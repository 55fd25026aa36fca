"""The fits that FitMonitor begins: what is done of one, from its texts to the monitor that is
stored."""

from dataclasses import replace

import numpy as np

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors.fit_data import Examples, group_numbers
from actserve_server.monitors.fit_quality import Quality, Scored, quality
from actserve_server.monitors.fit_request import FitReport, FitRequest
from actserve_server.monitors.fit_texts import Texts
from actserve_server.monitors.fit_work import FitJob
from actserve_server.monitors.fitting import Fitted, fit
from actserve_server.monitors.stored_monitors import Definition
from actserve_server.rpc.requests import fit_fields, monitor_definitions
from actserve_server.rpc.requests.monitor_definitions import World
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import fit_messages
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call


class MonitorFit:
    """One fit. Implements `actserve_server.monitors.fit_work.Fit`."""

    def __init__(
        self,
        wire: pb.FitMonitorRequest,
        asked: FitRequest,
        engine: AdmittedEngine,
        world: World,
        own: Sources,
        call: Call,
    ) -> None:
        """Keeps nothing of `wire` but what the monitor tells, since it may be large."""
        self._asked = asked
        self._engine = engine
        self._world = world
        self._own = own
        self._call = call
        how, counted = asked.recipe.aggregator, fit_fields.counted(wire)
        self._monitor = fit_messages.unfitted(wire, how, counted)
        self._fit = fit_messages.begun(wire, asked.steps)

    @property
    def begun(self) -> Definition:
        """The monitor before anything is done."""
        return self._without_probe(self._fit)

    async def make(self, job: FitJob) -> Definition:
        asked = self._asked
        texts = Texts(self._engine, asked.info, f"fit-{self._call.id}", job)
        fitted = await self._fitted(texts, job)
        network, how = fitted.network, asked.recipe.aggregator
        benign = await texts.highest_scores(asked.benign, network, how)
        longer = await texts.highest_scores(asked.longer, network, how)
        of_longer = await job.in_thread(self._quality_of_longer, longer)
        report = FitReport.of(asked, fitted, benign, of_longer)
        made = await monitor_definitions.created(
            fit_messages.fitted(self._monitor, report, asked.info), self._world, self._own
        )
        return replace(made, fit=fit_messages.done(self._fit, report).SerializeToString())

    def failed(self, job: FitJob, error: Exception) -> Definition:
        foreseen = statuses.foreseen(error)
        return self._without_probe(
            fit_messages.failed(self._fit, job.progress, foreseen, self._call)
        )

    async def _fitted(self, texts: Texts, job: FitJob) -> Fitted:
        """In a function of its own, so that the rows are gone once they are fitted to."""
        asked = self._asked
        rows = await texts.rows(asked.examples, asked.recipe.sites)
        examples = Examples(
            rows,
            np.array([each.label.positive for each in asked.examples]),
            asked.split.groups,
            asked.info.element_type,
        )
        return await job.in_thread(fit, examples, asked.split, asked.recipe, job)

    def _quality_of_longer(self, scores: np.ndarray) -> Quality | None:
        if not len(scores):
            return None
        labels = [each.label for each in self._asked.longer]
        is_positive = np.array([each.positive for each in labels])
        return quality(Scored(scores, is_positive, group_numbers(labels)))

    def _without_probe(self, told: pb.MonitorFit) -> Definition:
        return Definition(
            message=self._monitor.SerializeToString(deterministic=True),
            fit=told.SerializeToString(),
        )
