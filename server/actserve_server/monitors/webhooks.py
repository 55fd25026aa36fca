"""Delivers alerts to webhooks: at least once each, and again after a while where that fails.

What is to be delivered is in the database, so that it outlives the server, and any replica may
deliver it. One claims it by a lease, and if that replica dies another one has it when the lease is
over. Each address has so many places of its own: one that is slow or dead holds up no other. Those
who send to the same one take turns.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from actserve_server import logs
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import account
from actserve_server.monitors import measures
from actserve_server.monitors.measures import DeliveryEnd
from actserve_server.monitors.watched import Decision
from actserve_server.monitors.webhook_requests import Answer, DeliveryFailed

AT_ONCE = 4
"""Deliveries under way to one address, by one replica."""
POLL_S = 1.0
"""How late a delivery may be of which nobody here has told: one that is tried again, or whose
replica has died."""
COUNT_S = 10.0
"""How late the metric may be of those that wait."""
FIRST_DELAY_S = 5.0
"""After the first failure. Each later one takes twice as long, so that eight attempts are made
within eleven minutes."""
MAX_DELAY_S = 3600.0
JITTER = 0.25
"""How much longer or shorter a delay may be, so that what failed together does not come again
together."""
MAX_ERROR = 200
"""Characters."""

Sending = tuple[str, str]
"""An address, and the account whose alerts are sent there."""
_LEASE_MARGIN_S = 20.0
"""What a lease has beyond the time of an attempt, to write down what came of it."""

log = structlog.get_logger("actserve.webhooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An attempt that this server has claimed."""

    tenant: str
    alert: str
    """Its id."""
    name: str
    """Its resource name."""
    url: str
    attempts: int
    """This one included."""
    lease: str
    """What tells this claim from a later one."""
    body: bytes = field(repr=False)
    """The alert as JSON."""
    awaits_decision: bool = False


class Deliveries(Protocol):
    """What is to be delivered, as all replicas store it. Methods raise STORE_UNREACHABLE."""

    async def claim(
        self,
        places: Mapping[str, int],
        others: int,
        lease_s: float,
        under_way: Mapping[Sending, int],
    ) -> Sequence[Delivery]:
        """Of each of these addresses as many deliveries as it has places, and so many to any other
        address. For so long nobody else is given them. A place goes to the account that has fewest
        under way to the address, and of those to the one that is due longest."""
        ...

    async def delivered(self, delivery: Delivery) -> None:
        """It is over, unless somebody else has claimed it since."""
        ...

    async def failed(self, delivery: Delivery, error: str, again_after_s: float | None) -> None:
        """It is tried again after so long, or given up if None; unless somebody else has claimed it
        since."""
        ...

    async def decide(self, delivery: Delivery, decision: Decision) -> None:
        """What the address said of the sample. The first decision holds; a later one is none."""
        ...

    async def waiting(self) -> int:
        """How many are not over, to whatever address."""
        ...


class Client(Protocol):
    """What makes an attempt; `WebhookClient`."""

    async def post(
        self, url: str, name: str, body: bytes, *, now_s: float, awaits_decision: bool
    ) -> Answer: ...

    async def close(self) -> None: ...


class Webhooks:
    """Delivers what is due, for as long as `run` does. `clock` tells seconds since 1970."""

    def __init__(
        self,
        deliveries: Deliveries,
        client: Client,
        urls: Sequence[str],
        *,
        timeout_s: float,
        max_attempts: int,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` gives numbers in [0, 1)."""
        self._deliveries = deliveries
        self._client = client
        self._urls = tuple(urls)
        self._lease_s = timeout_s + _LEASE_MARGIN_S
        self._max_attempts = max_attempts
        self._clock = clock
        self._chance = chance
        self._under_way: Counter[Sending] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._counted = 0.0

    def wake(self) -> None:
        """There is something to deliver now."""
        self._woken.set()

    async def run(self) -> None:
        """Delivers until it is cancelled. What is under way then is cut off, and made again by
        whoever comes next."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self.step()
                    await self._count()
                except Exception as error:
                    _tell(error)
                await self._wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._client.close()

    async def step(self) -> None:
        """Begins what is due and has a place."""
        places = dict.fromkeys(self._urls, AT_ONCE)
        for (url, _), count in self._under_way.items():
            if url in places:
                places[url] -= count
        under_way = dict(self._under_way)
        for delivery in await self._deliveries.claim(places, AT_ONCE, self._lease_s, under_way):
            self._under_way[delivery.url, account(delivery.tenant)] += 1
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _count(self) -> None:
        now = self._clock()
        if now - self._counted >= COUNT_S:
            measures.deliveries_waiting(await self._deliveries.waiting())
            self._counted = now

    async def idle(self) -> None:
        """Returns once nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._woken.wait()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._attempt(delivery)
        except Exception as error:
            # What came of it is not written down: it is made again once the lease is over.
            _tell(error)
        finally:
            sending = delivery.url, account(delivery.tenant)
            self._under_way[sending] -= 1
            if not self._under_way[sending]:
                del self._under_way[sending]
            self.wake()  # Its place is free.

    async def _attempt(self, delivery: Delivery) -> None:
        if delivery.url not in self._urls:
            # Tried again, since another replica may be told of it already, or still.
            await self._failed(delivery, "the server's operator does not allow the address")
            return
        try:
            answer = await self._client.post(
                delivery.url,
                delivery.name,
                delivery.body,
                now_s=self._clock(),
                awaits_decision=delivery.awaits_decision,
            )
        except DeliveryFailed as failure:
            await self._failed(delivery, str(failure)[:MAX_ERROR])
            return
        # First, since a sample waits for it, and since it would be lost with the server otherwise.
        if answer.decision is not None:
            await self._deliveries.decide(delivery, answer.decision)
        await self._deliveries.delivered(delivery)
        measures.delivery_ended(DeliveryEnd.DELIVERED)

    async def _failed(self, delivery: Delivery, error: str) -> None:
        measures.delivery_failed()
        if delivery.attempts < self._max_attempts:
            await self._deliveries.failed(delivery, error, self._delay_s(delivery.attempts))
            return
        await self._deliveries.failed(delivery, error, None)
        measures.delivery_ended(DeliveryEnd.DEAD)
        log.error(
            "webhook given up",
            alert=delivery.name,
            url=delivery.url,
            attempts=delivery.attempts,
            reason=error,
        )

    def _delay_s(self, attempts: int) -> float:
        delay = min(FIRST_DELAY_S * 2 ** (attempts - 1), MAX_DELAY_S)
        return delay * (1 + JITTER * (2 * self._chance() - 1))


def _tell(error: Exception) -> None:
    # That the database cannot be reached it has said itself.
    if not isinstance(error, ActserveError) or error.reason is not Reason.STORE_UNREACHABLE:
        log.error("webhooks", **logs.described(error))
