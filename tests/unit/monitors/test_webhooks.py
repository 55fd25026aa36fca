"""Deliveries of stored alerts to webhooks, in each database."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.stored_alerts import (
    AlertFilter,
    DeliveryState,
    NewAlert,
    StoredAlert,
)
from actserve_server.monitors.stored_deliveries import StoredDeliveries
from actserve_server.monitors.watched import (
    Crossing,
    Decision,
    Level,
    LevelName,
    Pause,
    WatchedCall,
)
from actserve_server.monitors.webhook_addresses import Address
from actserve_server.monitors.webhook_requests import WebhookClient
from actserve_server.monitors.webhooks import AT_ONCE, Delivery, Webhooks
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import place
from tests.unit.monitors.watchers import watcher
from tests.unit.monitors.webhook_receiver import Receiver, answering, hanging, receiving

KEY = b"a key that nobody is told"
ATTEMPTS = 3
TENANT = "vision"
SECRET = "xyzzy-secret"


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Bench:
    """A server's part that delivers, over a database that it may share. Its clock stands still."""

    def __init__(self, store: Mapping[str, str], *urls: str) -> None:
        folder = Path(store["data_dir"]) if "data_dir" in store else None
        self.database = Database(place(store.get("database_url"), folder))
        self.now = 1_800_000_000.0
        self.alerts = AlertStore(
            self.database,
            "fake",
            max_alerts=1000,
            max_seconds=1e6,
            clock=lambda: self.now,
        )
        self.deliveries = StoredDeliveries(
            self.database, "fake", self.alerts, self.alerts.decide, to_json
        )
        addresses = {url: Address(url, KEY) for url in urls}
        self.client = WebhookClient(addresses, 5.0)
        self.webhooks = Webhooks(
            self.deliveries,
            self.client,
            urls,
            timeout_s=5.0,
            max_attempts=ATTEMPTS,
            clock=lambda: self.now,
            chance=lambda: 0.5,
        )

    async def raised(
        self, alert: str, url: str | None, *, pauses: bool = False, tenant: str = TENANT
    ) -> None:
        action = Pause(3600.0, proceed_after=False) if pauses else None
        level = Level(LevelName.UPPER, 1.0, action, webhook=url)
        crossing = Crossing(watcher("models/fake/monitors/m", level), level, 2.5, 7, 0, SECRET)
        call = WatchedCall(tenant, "fake", "c1")
        new = NewAlert(id=alert, call=call, crossing=crossing, raised_at_us=self.alerts.now_us())
        await self.alerts.add([new])

    async def deliver(self) -> None:
        """Makes the attempts that are due now."""
        await self.webhooks.step()
        await self.webhooks.idle()

    async def state(self, alert: str = "a") -> tuple[DeliveryState, int, str]:
        found = await self.alerts.get(TENANT, alert)
        return found.delivery, found.delivery_attempts, found.delivery_error

    async def close(self) -> None:
        await self.client.close()
        self.database.close()


def to_json(alert: StoredAlert, tenant: str) -> bytes:
    return json.dumps({"name": alert.id}).encode()


@asynccontextmanager
async def delivering(store: Mapping[str, str], *urls: str) -> AsyncIterator[Bench]:
    bench = Bench(store, *urls)
    try:
        yield bench
    finally:
        await bench.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


async def test_an_alert_is_delivered_once(store: dict[str, str], receiver: Receiver) -> None:
    before = counted("actserve_webhook_deliveries_total", state="delivered")
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", receiver.url)
        assert await bench.deliveries.waiting() == 1
        for _ in range(2):
            await bench.deliver()
            bench.now += 3600
        assert receiver.bodies == [b'{"name": "a"}']
        assert receiver.headers[0]["idempotency-key"] == "models/fake/alerts/a"
        assert await bench.state() == (DeliveryState.DELIVERED, 1, "")
        assert await bench.deliveries.waiting() == 0
    assert counted("actserve_webhook_deliveries_total", state="delivered") == before + 1


async def test_an_alert_of_a_level_without_a_webhook_goes_nowhere(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", None)
        await bench.deliver()
        assert await bench.state() == (DeliveryState.NONE, 0, "")
    assert receiver.bodies == []


async def test_a_failure_is_tried_again_later_and_later(
    store: dict[str, str], receiver: Receiver
) -> None:
    receiver.behave = answering(503)
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", receiver.url)
        await bench.deliver()
        assert await bench.state() == (DeliveryState.WAITING, 1, "it answered 503")
        for wait, attempts in ((4.9, 1), (0.2, 2), (9.8, 2)):
            bench.now += wait
            await bench.deliver()
            assert len(receiver.bodies) == attempts
        receiver.behave = answering(200)
        bench.now += 0.3
        await bench.deliver()
        assert await bench.state() == (DeliveryState.DELIVERED, 3, "")
    assert len({each["idempotency-key"] for each in receiver.headers}) == 1


async def test_an_alert_is_given_up_after_so_many_attempts_and_can_still_be_read(
    store: dict[str, str], receiver: Receiver
) -> None:
    receiver.behave = answering(500)
    dead = counted("actserve_webhook_deliveries_total", state="dead")
    failures = counted("actserve_webhook_failures_total")
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", receiver.url)
        with capture_logs() as lines:
            for _ in range(ATTEMPTS + 2):
                await bench.deliver()
                bench.now += 3600
        assert len(receiver.bodies) == ATTEMPTS
        assert await bench.state() == (DeliveryState.DEAD, ATTEMPTS, "it answered 500")
        (found,) = await bench.alerts.list(TENANT, None, 10, AlertFilter())
        assert found.delivery is DeliveryState.DEAD
        assert await bench.deliveries.waiting() == 0
    (line,) = lines
    assert (line["event"], line["reason"]) == ("webhook given up", "it answered 500")
    assert not {SECRET, KEY.decode()} & {str(value) for value in line.values()}
    assert counted("actserve_webhook_deliveries_total", state="dead") == dead + 1
    assert counted("actserve_webhook_failures_total") == failures + ATTEMPTS


async def test_the_last_of_eight_attempts_comes_within_eleven_minutes() -> None:
    bench = Webhooks.__new__(Webhooks)
    bench._chance = lambda: 0.5
    assert 540 <= sum(bench._delay_s(attempts) for attempts in range(1, 8)) <= 660
    bench._chance = lambda: 0.0
    low = bench._delay_s(3)
    bench._chance = lambda: 0.999
    assert (low, bench._delay_s(3)) == (15.0, pytest.approx(25.0, rel=0.01))


async def test_what_is_to_be_delivered_outlives_the_server(
    store: dict[str, str], receiver: Receiver
) -> None:
    receiver.behave = answering(503)
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", receiver.url)
        await bench.deliver()
    receiver.behave = answering(200)
    async with delivering(store, receiver.url) as later:
        later.now += 60
        await later.deliver()
        assert await later.state() == (DeliveryState.DELIVERED, 2, "")


async def test_what_a_dead_replica_had_claimed_is_delivered_by_another(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench, delivering(store, receiver.url) as other:
        await bench.raised("a", receiver.url)
        (claimed,) = await bench.deliveries.claim({receiver.url: 1}, 0, 30.0, {})
        await other.deliver()
        assert receiver.bodies == []
        other.now += 31
        await other.deliver()
        assert await other.state() == (DeliveryState.DELIVERED, 2, "")
        # It was not dead, but slow: what it says is old.
        await bench.deliveries.failed(claimed, "it answered 503", None)
        assert await other.state() == (DeliveryState.DELIVERED, 2, "")


async def test_replicas_share_the_work_and_do_none_of_it_twice(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench, delivering(store, receiver.url) as other:
        for number in range(2 * AT_ONCE):
            await bench.raised(f"a{number}", receiver.url)
        await asyncio.gather(bench.webhooks.step(), other.webhooks.step())
        await bench.webhooks.idle()
        await other.webhooks.idle()
        assert await bench.deliveries.waiting() == 0
    assert len(receiver.bodies) == 2 * AT_ONCE == len({*receiver.bodies})


async def test_a_slow_address_holds_up_no_other_and_gets_only_so_many_at_once(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with receiving(hanging) as slow, delivering(store, slow.url, receiver.url) as bench:
        for number in range(AT_ONCE + 3):
            await bench.raised(f"slow{number}", slow.url)
        await bench.webhooks.step()
        await bench.raised("a", receiver.url)
        await bench.webhooks.step()
        await receiver.came.wait()
        assert len(slow.bodies) <= AT_ONCE
        running = asyncio.create_task(bench.webhooks.run())
        await asyncio.sleep(0)
        running.cancel()  # Ends those that hang.
        await asyncio.gather(running, return_exceptions=True)


async def test_those_who_send_to_one_address_take_turns(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench:
        for number in range(3 * AT_ONCE):
            await bench.raised(f"many{number}", receiver.url, tenant="flood/a")
            bench.now += 1
        for number in range(3):
            await bench.raised(f"few{number}", receiver.url, tenant="quiet")
            bench.now += 1

        async def claimed(places: int, **under_way: int) -> list[str]:
            running = {(receiver.url, whose): count for whose, count in under_way.items()}
            free = {receiver.url: places}
            found = await bench.deliveries.claim(free, AT_ONCE, 30.0, running)
            return [each.alert for each in found]

        # Of those who have as many under way, the one first that is due longest.
        assert await claimed(2) == ["many0", "few0"]
        assert await claimed(2, flood=3, quiet=1) == ["few1", "few2"]
        # Nobody is left who waits for a turn, so that one may have all places.
        assert await claimed(AT_ONCE, flood=1) == [f"many{each}" for each in range(1, AT_ONCE + 1)]


async def test_a_tenant_that_floods_an_address_leaves_others_their_places(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench:
        for number in range(5 * AT_ONCE):
            await bench.raised(f"many{number}", receiver.url, tenant="flood")
        bench.now += 1
        await bench.raised("one", receiver.url, tenant="quiet")
        await bench.deliver()
        told = [json.loads(each)["name"] for each in receiver.bodies]
        assert len(told) == AT_ONCE
        assert "one" in told


async def test_an_address_that_is_not_allowed_any_more_gets_nothing(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store) as bench:
        await bench.raised("a", receiver.url)
        for _ in range(ATTEMPTS):
            await bench.deliver()
            bench.now += 3600
        error = "the server's operator does not allow the address"
        assert await bench.state() == (DeliveryState.DEAD, ATTEMPTS, error)
    assert receiver.bodies == []


@pytest.mark.parametrize("word", ["proceed", "stop"])
async def test_the_answer_decides_about_a_paused_sample(
    store: dict[str, str], receiver: Receiver, word: str
) -> None:
    receiver.behave = answering(200, json.dumps({"decision": word}).encode())
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", receiver.url, pauses=True)
        await bench.deliver()
        decision = (await bench.alerts.get(TENANT, "a")).decision
        assert decision is Decision[word.upper()]
        assert (await bench.state())[0] is DeliveryState.DELIVERED


async def test_the_answer_decides_nothing_that_was_decided_already(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench:

        async def deciding(request: web.Request) -> web.StreamResponse:
            await bench.alerts.decide(TENANT, "a", Decision.STOP)
            return await answering(200, b'{"decision": "proceed"}')(request)

        receiver.behave = deciding
        await bench.raised("a", receiver.url, pauses=True)
        await bench.deliver()
        assert (await bench.alerts.get(TENANT, "a")).decision is Decision.STOP
        assert (await bench.state())[0] is DeliveryState.DELIVERED


async def test_an_alert_that_is_erased_meanwhile_is_not_delivered(
    store: dict[str, str], receiver: Receiver
) -> None:
    receiver.behave = answering(503)
    async with delivering(store, receiver.url) as bench:
        await bench.raised("a", receiver.url)
        await bench.deliver()
        assert await bench.alerts.delete(TENANT, AlertFilter()) == 1
        bench.now += 60
        await bench.deliver()
        assert await bench.deliveries.waiting() == 0
    assert len(receiver.bodies) == 1


async def test_a_new_alert_is_delivered_at_once_by_the_server_that_raised_it(
    store: dict[str, str], receiver: Receiver
) -> None:
    async with delivering(store, receiver.url) as bench:
        running = asyncio.create_task(bench.webhooks.run())
        await bench.raised("a", receiver.url)
        bench.webhooks.wake()
        await receiver.came.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_database_that_cannot_be_reached_ends_nothing(
    store: dict[str, str], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with delivering(store, receiver.url) as bench:
        claim, tried = bench.deliveries.claim, asyncio.Event()

        async def away(*_: object) -> object:
            tried.set()
            monkeypatch.setattr(bench.deliveries, "claim", claim)
            raise ActserveError(Reason.STORE_UNREACHABLE, "away")

        monkeypatch.setattr(bench.deliveries, "claim", away)
        await bench.raised("a", receiver.url)
        running = asyncio.create_task(bench.webhooks.run())
        with capture_logs() as lines:
            await tried.wait()
            bench.webhooks.wake()
            await receiver.came.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not [line for line in lines if line["event"] == "webhooks"]


def test_a_delivery_shows_nothing_of_its_alert() -> None:
    delivery = Delivery(
        tenant="", alert="a", name="n", url="u", attempts=1, lease="l", body=SECRET.encode()
    )
    assert SECRET not in repr(delivery)
