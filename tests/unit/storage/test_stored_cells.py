"""Finished cells are there for equal sweeps of their tenant, for a while, if there is room."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from actserve_server.storage.database import Database
from actserve_server.storage.database_places import SqliteFile, place
from actserve_server.storage.stored_cells import ROW_BYTES, StoredCells, SweepKey
from actserve_server.storage.tables import sweep_cell_totals, sweep_cells

MINE, OTHERS = SweepKey("me", b"1" * 32), SweepKey("others", b"1" * 32)
ANOTHER = SweepKey("me", b"2" * 32)
PART = SweepKey("me/part", b"1" * 32)
SIZE = 1000
"""Bytes of a cell here, as they count."""
MESSAGE = b"m" * (SIZE - ROW_BYTES)


class Clock:
    now = 1e9

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
async def database(store: dict[str, str]) -> AsyncIterator[Database]:
    folder = store.get("data_dir")
    opened = Database(place(store.get("database_url"), Path(folder) if folder else None))
    yield opened
    opened.close()


def stored(database: Database, clock: Clock | None = None, **limits: Any) -> StoredCells:
    given = {"max_bytes": 10 * SIZE, "max_seconds": 60.0, **limits}
    return StoredCells(database, clock=clock or Clock(), **given)


async def taken(database: Database) -> dict[str, int]:
    """What accounts take as it is told; it is what their cells add up to."""
    size, who = sa.func.sum(sweep_cells.c.size_bytes), sweep_cells.c.account

    def read(connection: sa.Connection) -> list[dict[str, int]]:
        queries = sa.select(who, size).group_by(who), sa.select(sweep_cell_totals)
        return [{row[0]: row[1] for row in connection.execute(each)} for each in queries]

    summed, told = await database.read(read)
    assert told == summed
    return told


async def test_cells_are_there_for_their_sweep_and_tenant_alone(database: Database) -> None:
    cells = stored(database)
    assert await cells.write(MINE, {0: b"zero", 7: b"seven"})
    assert await cells.write(ANOTHER, {0: b"another"})
    assert await cells.numbers(MINE) == {0, 7}
    assert await cells.read(MINE, [0, 1, 7]) == {0: b"zero", 7: b"seven"}
    assert await cells.read(ANOTHER, [0]) == {0: b"another"}
    for key in (OTHERS, PART):
        assert await cells.numbers(key) == set()
        assert await cells.read(key, [0, 7]) == {}


async def test_a_cell_that_is_stored_anew_takes_the_place_of_the_old(database: Database) -> None:
    cells = stored(database)
    await cells.write(MINE, {0: b"old", 1: b"one"})
    await cells.write(MINE, {0: b"new"})
    assert await cells.read(MINE, [0, 1]) == {0: b"new", 1: b"one"}
    assert await taken(database) == {"me": 2 * (3 + ROW_BYTES)}


async def test_the_oldest_go_first(database: Database) -> None:
    cells = stored(database)
    for number in range(12):
        assert await cells.write(MINE, {number: MESSAGE})
    assert await cells.numbers(MINE) == set(range(2, 12))
    assert await taken(database) == {"me": 10 * SIZE}


async def test_a_tenant_pushes_out_its_own_before_others(database: Database) -> None:
    cells = stored(database, tenant_share=0.5)
    await cells.write(OTHERS, dict.fromkeys(range(5), MESSAGE))
    for number in range(9):
        await cells.write(MINE if number % 2 else PART, {number: MESSAGE})
    assert await cells.numbers(OTHERS) == set(range(5))
    # Its parts share what it has.
    assert await cells.numbers(MINE) | await cells.numbers(PART) == set(range(4, 9))
    assert await taken(database) == {"me": 5 * SIZE, "others": 5 * SIZE}


async def test_more_than_there_is_room_for_is_not_stored(database: Database) -> None:
    cells = stored(database)
    await cells.write(MINE, {0: b"zero"})
    assert not await cells.write(MINE, {1: b"m" * 10 * SIZE})
    assert await cells.numbers(MINE) == {0}
    assert not await stored(database, max_bytes=0).write(MINE, {2: b""})


async def test_time_runs_out(database: Database) -> None:
    clock = Clock()
    cells = stored(database, clock)
    await cells.write(MINE, dict.fromkeys(range(4), MESSAGE))
    clock.now += 50
    await cells.write(OTHERS, {0: MESSAGE})
    await cells.expire()
    assert await cells.numbers(MINE) == {0, 1, 2, 3}
    clock.now += 11
    assert await cells.numbers(MINE) == set()
    assert await cells.read(MINE, [0]) == {}
    assert await taken(database) == {"me": 4 * SIZE, "others": SIZE}
    await cells.expire()
    assert await taken(database) == {"others": SIZE}


async def test_a_database_that_cannot_be_reached_stores_nothing_and_says_so(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    lost = Database(SqliteFile(tmp_path / "file"))
    cells = stored(lost)
    assert not await cells.write(MINE, {0: b"zero"})
    assert await cells.numbers(MINE) == set()
    assert await cells.read(MINE, [0]) == {}
    await cells.expire()
    lost.close()
