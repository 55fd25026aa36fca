"""What is done with many alerts takes as much longer as there are more of them: work is counted, in
steps of SQLite's virtual machine."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.stored_alerts import AlertFilter, NewAlert
from actserve_server.monitors.stored_deliveries import StoredDeliveries
from actserve_server.monitors.watched import Crossing, Level, LevelName, WatchedCall
from actserve_server.monitors.webhooks import Delivery
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import place
from actserve_server.storage.tables import alert_sequences, alert_totals, alerts
from tests.unit.monitors.watchers import watcher

CALL = WatchedCall(tenant="vision", model_id="fake", call_id="call")
ADDRESS = "https://b.test/alerts"
LEVEL = Level(LevelName.UPPER, 1.0, webhook=ADDRESS)
CROSSING = Crossing(watcher("harm", LEVEL), LEVEL, 2.0, position=3, sample_index=0)
FEW, MANY = 2_000, 12_000


async def filled(folder: Path, count: int) -> tuple[Database, AlertStore]:
    """A database with so many alerts of one tenant, one of every other end user."""
    database = Database(place(None, folder))
    store = AlertStore(database, "fake", max_alerts=MANY * 2, max_seconds=1e9)
    new = NewAlert(id="first", call=CALL, crossing=CROSSING, raised_at_us=store.now_us())
    await store.add([new])

    def fill(connection: sa.Connection) -> None:
        row = dict(connection.execute(sa.select(alerts)).mappings().one())
        first = row["sequence"]
        connection.execute(
            alerts.insert(),
            [
                {**row, "id": f"more-{n}", "sequence": first + n, "end_user": str(n % 2)}
                for n in range(1, count)
            ],
        )
        connection.execute(alert_sequences.update().values(last=first + count - 1))
        connection.execute(alert_totals.update().values(alerts=count))

    await database.write(fill)
    return database, store


async def steps(database: Database, work: Callable[[], Awaitable[Any]]) -> int:
    """How many hundred steps it takes."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    database._engine.dispose()  # What connects from now on counts.
    event.listen(database._engine, "connect", lambda raw, _: raw.set_progress_handler(count, 100))
    await work()
    return taken


async def test_deleting_more_alerts_takes_as_much_longer(tmp_path: Path) -> None:
    for number, which in enumerate((AlertFilter(), AlertFilter(end_user="1"))):
        taken = []
        for count in (FEW, MANY):
            database, store = await filled(tmp_path / f"{number}-{count}", count)
            taken.append(await steps(database, partial(store.delete, "vision", which)))
            assert await store.count() == (0 if number == 0 else count - count // 2)
            database.close()
        assert taken[1] < 1.5 * taken[0] * MANY / FEW


async def test_deliveries_that_wait_make_it_no_longer_to_find_those_that_are_due(
    tmp_path: Path,
) -> None:
    taken = []
    for count in (FEW, MANY):
        database, store = await filled(tmp_path / f"{count}", count)
        allowed = {"https://a.test/": 4, ADDRESS: 4, "https://c.test/": 4}
        later = alerts.update().values(delivery_due_us=store.now_us() + 10**12)
        await database.write(lambda connection, later=later: connection.execute(later).rowcount)
        deliveries = StoredDeliveries(database, "fake", store, store.decide, lambda *_: b"{}")
        taken.append(await steps(database, partial(deliveries.claim, allowed, 4, 30.0, {})))
        database.close()
    assert taken[1] <= taken[0] + 1


async def test_a_backlog_makes_it_no_longer_to_find_whose_turn_it_is(tmp_path: Path) -> None:
    taken = []
    for count in (FEW, MANY):
        database, store = await filled(tmp_path / f"{count}", count)
        call = replace(CALL, tenant="zoe")
        now = store.now_us()
        await store.add([NewAlert(id="other", call=call, crossing=CROSSING, raised_at_us=now)])
        deliveries = StoredDeliveries(database, "fake", store, store.decide, lambda *_: b"{}")
        found: list[Delivery] = []

        async def claim(of: StoredDeliveries = deliveries, into: list[Delivery] = found) -> None:
            into += await of.claim({ADDRESS: 4}, 4, 30.0, {})

        taken.append(await steps(database, claim))
        assert sorted(each.tenant for each in found) == ["vision", "vision", "vision", "zoe"]
        database.close()
    assert taken[1] <= taken[0] + 2


async def test_what_waits_for_addresses_that_are_not_allowed_any_more_is_found(
    tmp_path: Path,
) -> None:
    database, store = await filled(tmp_path, 4)
    deliveries = StoredDeliveries(database, "fake", store, store.decide, lambda *_: b"{}")
    at = ADDRESS
    for allowed in ((), ("https://a.test/",), ("https://c.test/",), (f"{at}/", f"{at[:-1]}")):
        found = await deliveries.claim(dict.fromkeys(allowed, 4), 1, 30.0, {})
        assert [each.url for each in found] == [at]
    assert await deliveries.claim({at: 0}, 4, 30.0, {}) == ()
    database.close()
