"""What follows the alerts of watched calls: webhooks, explanations, spans, metrics."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from actserve.v1 import alert_pb2
from actserve.v1 import generation_service_pb2 as generation_pb
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server import app
from actserve_server.config import ConfigError, Settings
from actserve_server.domain.principals import Role
from actserve_server.monitors.webhook_requests import signature
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    eventually,
    failure,
    generate,
    serving,
    write_tokens,
)
from tests.contract.monitors import create, full, probe
from tests.contract.nlas import SITE, Tiny
from tests.unit.monitors.webhook_receiver import Receiver, answering, receiving

KEY = "a key that nobody is told"
ALWAYS = -1e6
SECRET = "xyzzy-secret"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@asynccontextmanager
async def allowing(
    receiver: Receiver, folder: Path, *nlas: Any, **settings: Any
) -> AsyncIterator[Served]:
    """A server that may send alerts to the receiver."""
    path = folder / "webhooks.yaml"
    path.write_text(json.dumps([{"url": receiver.url, "key": KEY}]))
    async with serving(None, *nlas, webhooks=path, **settings) as served:
        yield served


async def alerts(served: Served, metadata: Any = None) -> list[alert_pb2.Alert]:
    listed = await served.monitors.ListAlerts(pb.ListAlertsRequest(), metadata=metadata)
    return list(listed.alerts)


async def alert(served: Served) -> alert_pb2.Alert:
    """The only one that there is."""
    (found,) = await alerts(served)
    return found


async def test_an_alert_comes_as_json_signed_and_is_told_as_delivered(
    receiver: Receiver, tmp_path: Path
) -> None:
    async with allowing(receiver, tmp_path) as served:
        upper = {"threshold": ALWAYS, "webhook": {"url": receiver.url}}
        await served.monitors.CreateMonitor(create("harm", upper=upper))
        request = generate(prompt={"text": SECRET}, end_user="user-7")
        events = await collect(served.generation.Generate(request, metadata=(TRACEPARENT,)))

        async def is_told() -> bool:
            return (await alert(served)).delivery.state == alert_pb2.WEBHOOK_STATE_DELIVERED

        await eventually(is_told, within_s=20)
        stored = await alert(served)
    (body,), (headers,) = receiver.bodies, receiver.headers
    sent = json_format.Parse(body, alert_pb2.Alert())
    assert sent.name == stored.name == headers["idempotency-key"]
    assert sent.monitor == full("harm")
    assert sent.watched_call_id == events[0].started.call_id
    assert (sent.end_user, sent.trace_id) == ("user-7", TRACE)
    assert sent.delivery.state == alert_pb2.WEBHOOK_STATE_WAITING
    seconds = int(headers["x-actserve-signature"].partition(",")[0].removeprefix("t="))
    assert headers["x-actserve-signature"] == signature(KEY.encode(), seconds, body)
    assert SECRET.encode() not in body


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", generation_pb.FINISH_REASON_MONITOR),
        ("proceed", generation_pb.FINISH_REASON_LENGTH),
    ],
)
async def test_the_answer_of_a_webhook_decides_about_a_paused_sample(
    receiver: Receiver, tmp_path: Path, word: str, reason: int
) -> None:
    receiver.behave = answering(200, json.dumps({"decision": word}).encode())
    async with allowing(receiver, tmp_path) as served:
        # By itself it would do the other thing.
        pause = {"time_limit": {"seconds": 60}, "proceed_after": word == "stop"}
        upper = {"threshold": ALWAYS, "pause": pause, "webhook": {"url": receiver.url}}
        await served.monitors.CreateMonitor(create(upper=upper))
        async with asyncio.timeout(20):
            events = await collect(served.generation.Generate(generate()))
        decided = (await alert(served)).decision
    (finished,) = [e.sample_finished for e in events if e.HasField("sample_finished")]
    assert finished.reason == reason
    assert alert_pb2.AlertDecision.Name(decided) == f"ALERT_DECISION_{word.upper()}"


async def test_an_address_that_the_operator_does_not_allow_is_refused(
    receiver: Receiver, tmp_path: Path
) -> None:
    async with allowing(receiver, tmp_path) as served:
        for url in (f"{receiver.url}/", receiver.url.replace("%2F", "/"), "http://127.0.0.1/"):
            upper = {"threshold": ALWAYS, "webhook": {"url": url}}
            refused = await failure(served.monitors.CreateMonitor(create(upper=upper)))
            assert refused.reason == "WEBHOOK_NOT_ALLOWED"


@pytest.mark.parametrize("nla", ["", "models/fake/nlas/tiny"])
async def test_the_row_that_raised_an_alert_is_explained(
    receiver: Receiver, tmp_path: Path, nla: str
) -> None:
    tiny = Tiny()
    async with allowing(receiver, tmp_path, tiny.loaded()) as served:
        upper = {"threshold": ALWAYS, "explain": {"nla": nla}}
        probes = [probe(SITE.layer or 0)]
        made = create(probes=probes, upper=upper, positions={"span": {"start": 3, "end": 4}})
        await served.monitors.CreateMonitor(made)
        await collect(served.generation.Generate(generate()))

        async def is_explained() -> bool:
            return bool((await alert(served)).explanation)

        await eventually(is_explained, within_s=20)
        found = await alert(served)
    assert found.position == 3
    assert REGISTRY.get_sample_value("actserve_alert_explanations_total", {"outcome": "done"})


async def test_with_no_budget_an_alert_stays_unexplained(
    receiver: Receiver, tmp_path: Path
) -> None:
    def dropped() -> float:
        labels = {"outcome": "dropped"}
        return REGISTRY.get_sample_value("actserve_alert_explanations_total", labels) or 0

    before = dropped()
    tiny = Tiny().loaded()
    async with allowing(receiver, tmp_path, tiny, alert_explanations_a_minute=0) as served:
        upper = {"threshold": ALWAYS, "explain": {}}
        await served.monitors.CreateMonitor(create(probes=[probe(SITE.layer or 0)], upper=upper))
        await collect(served.generation.Generate(generate()))
        assert (await alert(served)).explanation == ""
    assert dropped() == before + 1


async def test_an_alert_is_an_event_of_the_span_of_its_call(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    async with allowing(receiver, tmp_path) as served:
        upper = {"threshold": ALWAYS, "stop": {}}
        await served.monitors.CreateMonitor(create(upper=upper))
        request = generate(prompt={"text": SECRET})
        await collect(served.generation.Generate(request, metadata=(TRACEPARENT,)))

        def finished() -> list[Any]:
            return [s for s in exporter.get_finished_spans() if s.name.endswith("/Generate")]

        await eventually(lambda: bool(finished()))
        (span,) = finished()
        stored = await alert(served)
    assert f"{span.context.trace_id:032x}" == TRACE
    (event,) = span.events
    assert event.name == "alert"
    assert event.attributes["actserve.monitor"] == full("harm")
    assert event.attributes["actserve.alert"] == stored.name.rpartition("/")[2]
    assert event.attributes["actserve.action"] == "stop"
    assert SECRET not in span.to_json()
    provider.shutdown()


async def test_what_monitors_do_is_counted(receiver: Receiver, tmp_path: Path) -> None:
    monitor = full("counted")
    labels = {"monitor": monitor, "level": "upper", "action": "none"}
    async with allowing(receiver, tmp_path) as served:
        made = create("counted", upper={"threshold": ALWAYS}, positions={"prompt": {}})
        await served.monitors.CreateMonitor(made)
        for _ in range(2):
            await collect(served.generation.Generate(generate()))
    value = REGISTRY.get_sample_value
    assert value("actserve_monitor_tokens_total", {"monitor": monitor}) == 2 * 6
    assert value("actserve_monitor_scores_count", {"monitor": monitor}) == 2
    assert value("actserve_alerts_total", labels) == 2
    assert (value("actserve_monitor_seconds_total", {"monitor": monitor}) or 0) > 0


async def test_open_streams_of_alerts_are_counted(receiver: Receiver, tmp_path: Path) -> None:
    async with allowing(receiver, tmp_path) as served:
        before = REGISTRY.get_sample_value("actserve_alert_watchers") or 0
        stream = served.monitors.WatchAlerts(pb.WatchAlertsRequest())
        await stream.read()
        await eventually(lambda: REGISTRY.get_sample_value("actserve_alert_watchers") == before + 1)
        stream.cancel()
        await eventually(lambda: REGISTRY.get_sample_value("actserve_alert_watchers") == before)


async def test_the_delivery_of_a_tenant_is_nothing_to_others(
    receiver: Receiver, tmp_path: Path
) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("one", "vision", Role.EXPERIMENTER),
        ("two", "speech", Role.EXPERIMENTER),
    )
    async with allowing(receiver, tmp_path, token_file=tokens) as served:
        upper = {"threshold": ALWAYS, "webhook": {"url": receiver.url}}
        await served.monitors.CreateMonitor(create(upper=upper), metadata=bearing("one"))
        await collect(served.generation.Generate(generate(), metadata=bearing("one")))
        await collect(served.generation.Generate(generate(), metadata=bearing("two")))
        async with asyncio.timeout(20):
            await receiver.came.wait()
        assert len(await alerts(served, bearing("one"))) == 1
        assert await alerts(served, bearing("two")) == []
    assert len(receiver.bodies) == 1


def test_a_webhook_file_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.yaml"
    path.write_text(f"- {{url: nowhere, key: {KEY}}}")
    options: dict[str, Any] = {"model": "fake", "port": 0, "metrics_port": 0, "webhooks": path}
    settings = Settings(**options)
    with pytest.raises(ConfigError, match=r"webhooks: .*'nowhere' is no address") as refused:
        asyncio.run(app.serve(settings))
    assert KEY not in str(refused.value)
