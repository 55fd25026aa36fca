"""Everything that watches calls, put together: monitors, fits, alerts, and what follows alerts.

Servicers use its `parts`. Beside them it keeps the tasks that go on for as long as the server does:
what other replicas have changed is looked for, what is too old deleted, scores are stored, webhooks
sent to and rows explained.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import Context
from functools import partial

from actserve_server.background import EXPIRE_S, end, going_on
from actserve_server.config import ConfigError, Settings
from actserve_server.domain.tenant_rules import RulesOf
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors import measures, webhook_addresses
from actserve_server.monitors.alert_explanations import AlertExplanations, ExplanationBudget
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.alert_streams import AlertStreams
from actserve_server.monitors.alerts import StoredAlerts
from actserve_server.monitors.drift import FLUSH_S, ScoreHours
from actserve_server.monitors.fit_work import FitWork
from actserve_server.monitors.followups import FollowUps
from actserve_server.monitors.live import LiveMonitors
from actserve_server.monitors.monitor_registry import MonitorQuota, MonitorRegistry
from actserve_server.monitors.stored_deliveries import StoredDeliveries
from actserve_server.monitors.stored_fits import StoredFits
from actserve_server.monitors.webhook_addresses import Address
from actserve_server.monitors.webhook_requests import WebhookClient
from actserve_server.monitors.webhooks import Webhooks
from actserve_server.readouts.kept import KeptStore
from actserve_server.rpc.explanations.alert_explainer import AlertExplainer
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.monitor_definitions import prepared
from actserve_server.rpc.responses import alert_messages
from actserve_server.rpc.watching_parts import WatchingParts
from actserve_server.storage.database import Database


class Monitoring:
    """Of one model. `start`, `drain` and `close` are called in this order, or `close` alone."""

    def __init__(
        self,
        engine: AdmittedEngine,
        autoencoders: Nlas,
        kept: KeptStore,
        database: Database,
        settings: Settings,
        rules: RulesOf,
    ) -> None:
        """Raises ConfigError for a file of webhooks that cannot be used."""
        model_id = engine.info.id
        addresses = allowed_webhooks(settings)
        registry = MonitorRegistry(
            database,
            model_id,
            MonitorQuota(
                max_monitors=settings.max_monitors,
                max_bytes=settings.max_monitor_bytes,
                tenant_share=settings.tenant_share,
                rules=rules,
            ),
        )
        store = AlertStore(
            database,
            model_id,
            max_alerts=settings.max_alerts,
            max_seconds=settings.max_alert_seconds,
            tenant_share=settings.tenant_share,
        )
        streams = AlertStreams(store)
        self.parts = WatchingParts(
            registry=registry,
            live=LiveMonitors(
                registry,
                lambda: engine.info.path,
                # On behalf of no call: whichever came first would lend it its tenant's rules.
                lambda stored: Context().run(prepared, stored, engine.info, KeptCache(kept.copies)),
            ),
            scores=ScoreHours(database, model_id),
            alerts=StoredAlerts(store, streams),
            alert_store=store,
            alert_streams=streams,
            alert_text_tokens=settings.alert_text_tokens,
            fits=FitWork(
                registry,
                StoredFits(database, model_id),
                max_bytes=settings.max_fit_bytes,
                tenant_share=settings.tenant_share,
            ),
            webhooks=addresses,
        )
        self._webhooks = Webhooks(
            StoredDeliveries(
                database,
                model_id,
                store,
                self.parts.alerts.decide,
                partial(alert_messages.to_json, model_id=model_id),
            ),
            WebhookClient(addresses, settings.webhook_timeout_s),
            tuple(addresses),
            timeout_s=settings.webhook_timeout_s,
            max_attempts=settings.max_webhook_attempts,
        )
        self._explanations = AlertExplanations(
            engine,
            AlertExplainer(autoencoders, engine.info),
            store.explain,
            ExplanationBudget(
                at_once=settings.alert_explanations_at_once,
                a_minute=settings.alert_explanations_a_minute,
                share=settings.tenant_share,
            ),
        )
        follow_ups = FollowUps(webhooks=self._webhooks, explanations=self._explanations)
        self.parts.alerts.listen(follow_ups.stored)
        self._looking: Sequence[asyncio.Task[None]] = ()
        self._following_up: Sequence[asyncio.Task[None]] = ()

    def start(self) -> None:
        """Begins what goes on beside the calls."""
        looking = (self.parts.live.follow(), self._expire(), self._count())
        self._looking = [asyncio.create_task(each) for each in looking]
        follow_ups = (self._webhooks.run(), self._explanations.run())
        self._following_up = [asyncio.create_task(each) for each in follow_ups]

    async def drain(self) -> None:
        """Ends what would go on for ever or for hours: streams of alerts and fits. Calls that are
        watched go on raising alerts, and what follows those goes on."""
        await end(self._looking)
        self.parts.alert_streams.drain()
        # Their callers see that they have to be begun again.
        await self.parts.fits.close()

    async def close(self) -> None:
        """Ends whatever is left, once no call is."""
        await end((*self._looking, *self._following_up))
        await self.parts.alert_streams.close()
        await self.parts.alerts.close()
        await self.parts.scores.flush()
        await self.parts.fits.close()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            for each in (self.parts.alert_store, self.parts.scores):
                with going_on():
                    await each.expire()

    async def _count(self) -> None:
        while True:
            with going_on():
                measures.alerts_stored(await self.parts.alert_store.count())
            await asyncio.sleep(FLUSH_S)
            with going_on():
                await self.parts.scores.flush()


def allowed_webhooks(settings: Settings) -> Mapping[str, Address]:
    """The addresses that alerts may be sent to. Raises ConfigError."""
    try:
        return webhook_addresses.read(settings.webhooks) if settings.webhooks else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"webhooks: {error}") from None
