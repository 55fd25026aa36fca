"""A database that is a file or a PostgreSQL server: what is written is there, all or nothing."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import trustme
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import exc

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import (
    FILE,
    Postgres,
    SqliteFile,
    StoreConfigError,
    place,
)
from actserve_server.storage.migrate import VERSION_TABLE
from actserve_server.storage.store_failures import RETRY_AFTER_S
from actserve_server.storage.tables import METADATA, score_hours, steering_vector_contents
from tests.postgres_cluster import Cluster

ONE = {"sha256": b"1" * 32, "elements": b"1234"}


@pytest.fixture
async def database(store: dict[str, str]) -> AsyncIterator[Database]:
    opened = opening(store)
    yield opened
    opened.close()


def opening(store: dict[str, str]) -> Database:
    folder = store.get("data_dir")
    return Database(place(store.get("database_url"), Path(folder) if folder else None))


def count(connection: sa.Connection) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(steering_vector_contents)) or 0


def insert(connection: sa.Connection) -> None:
    connection.execute(steering_vector_contents.insert(), ONE)


async def test_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    await database.prepare()

    def differences(connection: sa.Connection) -> list[object]:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)

    assert await database.read(differences) == []


async def test_a_first_use_migrates_too(database: Database) -> None:
    assert await database.read(count) == 0


async def test_what_was_written_is_there_for_the_next_server(store: dict[str, str]) -> None:
    first = opening(store)
    await first.write(insert)
    first.close()
    second = opening(store)
    await second.prepare()
    assert await second.read(count) == 1
    second.close()


async def test_nothing_is_left_of_work_that_raises(database: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        insert(connection)
        raise ActserveError(Reason.STORE_QUOTA_EXCEEDED, "no room")

    with pytest.raises(ActserveError, match="no room"):
        await database.write(fail)
    assert await database.read(count) == 0


async def test_who_writes_sees_what_others_have_written(store: dict[str, str]) -> None:
    """Two servers that each count and then write: no count is ever out of date."""
    servers = [opening(store), opening(store)]
    await asyncio.gather(*(each.prepare() for each in servers))

    def add_up(connection: sa.Connection) -> None:
        number = count(connection)
        connection.execute(
            steering_vector_contents.insert(),
            {"sha256": number.to_bytes(32), "elements": b""},
        )

    await asyncio.gather(*(servers[index % 2].write(add_up) for index in range(40)))
    assert await servers[0].read(count) == 40
    for each in servers:
        each.close()


async def test_replicas_that_start_together_migrate_once(store: dict[str, str]) -> None:
    servers = [opening(store) for _ in range(4)]
    await asyncio.gather(*(each.prepare() for each in servers))
    assert [await each.read(count) for each in servers] == [0] * 4
    for each in servers:
        each.close()


async def test_scores_of_before_stay_comparable_within_their_version(store: dict[str, str]) -> None:
    hour = {"monitor": "m", "hour": 1, "monitor_etag": "v1", "edges": b"", "counts": b""}

    def go_back(connection: sa.Connection) -> None:
        """To the tables of before, with an hour of scores."""
        connection.execute(score_hours.insert(), {"tenant": "", "model_id": "fake", **hour})
        for statement in (
            "ALTER TABLE monitors DROP COLUMN scored_by",
            "ALTER TABLE score_hours DROP COLUMN scored_by",
            "DROP INDEX ix_alerts_delivery_state_webhook_account_delivery_due_us",
            "DROP TABLE dictionary_label_versions",
            "DROP TABLE dictionary_labels",
            "DROP TABLE dictionary_pieces",
            "DROP TABLE dictionaries",
            "DROP TABLE attribution_graph_parts",
            "DROP TABLE attribution_graphs",
            "DROP TABLE explanation_baselines",
            f"UPDATE {VERSION_TABLE} SET version_num='0004'",
        ):
            connection.execute(sa.text(statement))

    older = opening(store)
    await older.write(go_back)
    older.close()
    newer = opening(store)
    select = sa.select(score_hours.c.scored_by)
    assert await newer.read(lambda connection: connection.scalar(select)) == "v1"
    newer.close()


async def test_a_database_of_a_newer_version_is_refused(store: dict[str, str]) -> None:
    newer = opening(store)
    await newer.write(
        lambda connection: connection.execute(
            sa.text(f"UPDATE {VERSION_TABLE} SET version_num='9999'")
        )
    )
    newer.close()
    older = opening(store)
    with pytest.raises(StoreConfigError, match="newer version of the server, to 9999"):
        await older.prepare()
    with pytest.raises(ActserveError) as refused:
        await older.read(count)
    assert refused.value.reason is Reason.STORE_UNREACHABLE
    older.close()


async def test_a_statement_that_is_wrong_is_not_taken_for_a_lost_database(
    database: Database,
) -> None:
    with pytest.raises(exc.DBAPIError):
        await database.read(lambda connection: connection.execute(sa.text("SELECT nothing_such")))
    assert await database.read(count) == 0


async def test_a_lost_postgresql_is_told_and_used_again_when_it_is_back(
    postgres: Cluster, database_url: str
) -> None:
    database = opening({"database_url": database_url})
    await database.write(insert)
    postgres.stop()
    try:
        for _ in range(2):
            with pytest.raises(ActserveError) as refused:
                await database.read(count)
            assert refused.value.reason is Reason.STORE_UNREACHABLE
            assert refused.value.retry_after_s == RETRY_AFTER_S
            assert postgres.password not in str(refused.value)
    finally:
        postgres.start()
    await asyncio.sleep(RETRY_AFTER_S)
    assert await database.read(count) == 1
    database.close()


async def test_a_server_starts_without_its_postgresql(postgres: Cluster, database_url: str) -> None:
    postgres.stop()
    try:
        database = opening({"database_url": database_url})
        await database.prepare()
        with pytest.raises(ActserveError):
            await database.read(count)
    finally:
        postgres.start()
    await asyncio.sleep(RETRY_AFTER_S)
    assert await database.read(count) == 0
    database.close()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_postgresql_is_spoken_to_by_tls_if_asked(
    postgres: Cluster, database_url: str, mode: str, tmp_path: Path
) -> None:
    postgres.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    options = f"?sslmode={mode}&sslrootcert={tmp_path / 'ca.pem'}"
    database = opening({"database_url": database_url.replace("127.0.0.1", "localhost") + options})
    await database.prepare()
    told = sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert await database.read(lambda connection: connection.execute(told).scalar()) is True
    database.close()


@pytest.mark.parametrize(
    ("host", "authority", "mode"),
    [
        ("localhost", trustme.CA(), "verify-ca"),
        ("localhost", trustme.CA(), "verify-full"),
        ("127.0.0.1", None, "verify-full"),
    ],
    ids=["a stranger", "a stranger in full", "another name"],
)
async def test_a_postgresql_that_cannot_prove_who_it_is_gets_no_password(
    postgres: Cluster,
    database_url: str,
    host: str,
    authority: trustme.CA | None,
    mode: str,
    tmp_path: Path,
) -> None:
    (authority or postgres.authority).cert_pem.write_to_path(tmp_path / "ca.pem")
    options = f"?sslmode={mode}&sslrootcert={tmp_path / 'ca.pem'}"
    database = opening({"database_url": database_url.replace("127.0.0.1", host) + options})
    with pytest.raises(StoreConfigError, match="certificate verify failed"):
        await database.prepare()
    database.close()


@pytest.mark.parametrize("wrong", ["password", "database"])
async def test_what_can_never_work_is_said_without_the_password(
    postgres: Cluster, database_url: str, wrong: str
) -> None:
    url = postgres.url("no_such_database")
    if wrong == "password":
        url = database_url.replace(postgres.password, "wrong-secret")
    database = opening({"database_url": url})
    with pytest.raises(StoreConfigError) as refused:
        await database.prepare()
    assert "postgresql://actserve:***@127.0.0.1" in str(refused.value)
    assert "secret" not in str(refused.value)
    database.close()


async def test_the_folder_and_the_file_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    database = Database(SqliteFile(folder))
    await database.prepare()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    database.close()


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = Database(SqliteFile(tmp_path / "file"))
    with pytest.raises(StoreConfigError, match="data_dir"):
        await database.prepare()
    database.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else" * 1000)
    database = Database(SqliteFile(tmp_path))
    with pytest.raises(StoreConfigError, match="not a database"):
        await database.prepare()
    assert (tmp_path / FILE).read_bytes() == b"something else" * 1000
    database.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "no URL"),
        ("mysql://me:secret@host/db", "only postgresql://"),
        ("postgresql://host/db", "lacks the user"),
        ("postgresql://me:secret@host", "lacks the user or the database"),
        ("postgresql://me:secret@host/db?options=-csecret", "the option options"),
        ("postgresql://me:secret@host/db?sslmode=prefer", "sslmode 'prefer'"),
        ("postgresql://me:secret@host/db?sslmode=require&sslmode=disable", "twice"),
        ("postgresql://me:secret@host/db?sslrootcert=/no/such/secret.pem", "sslrootcert"),
        ("postgresql://me:secret@host:port/db", "no URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str, says: str) -> None:
    with pytest.raises(StoreConfigError) as refused:
        place(url, None)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "checks"),
    [
        ("postgresql://me:secret@db.example.com/db", "host"),
        ("postgresql://me:secret@db.example.com/db?sslmode=verify-full", "host"),
        ("postgresql://me:secret@db.example.com/db?sslmode=verify-ca", "authority"),
        ("postgresql://me:secret@db.example.com/db?sslmode=require", "nothing"),
        ("postgresql://me:secret@db.example.com/db?sslmode=disable", "no TLS"),
        ("postgresql://me:secret@127.0.0.1/db", "no TLS"),
        ("postgresql://me@/db?unix_sock=/run/postgresql/.s.PGSQL.5432", "no TLS"),
    ],
)
def test_tls_is_checked_unless_told_otherwise_or_on_this_machine(url: str, checks: str) -> None:
    where = place(url, None)
    assert isinstance(where, Postgres)
    context = where.arguments["ssl_context"]
    told = {
        (True, True): "host",
        (False, True): "authority",
        (False, False): "nothing",
    }
    found = "no TLS"
    if context:
        found = told[context.check_hostname, bool(context.verify_mode)]
    assert found == checks
    assert "secret" not in f"{where}{where!r}"
