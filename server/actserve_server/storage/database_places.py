"""Where the database is: a file in the server's data folder, or a PostgreSQL server by URL.

A URL holds a password. It is never told: who describes a place says `str(place)`, which has none.
"""

import os
import ssl
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

CONNECTIONS = 4
"""To the database, and threads that use them. It is quick work; more would wait for each other."""
BUSY_TIMEOUT_S = 10
"""How long to wait until others have written, and how long one statement may take."""
NETWORK_TIMEOUT_S = 15
"""How long to wait for PostgreSQL to say anything: longer than it may work on a statement."""
FILE = "actserve.db"
MIGRATION_LOCK_S = 600
"""How long to wait for another server on the same folder that migrates."""

IDLE_S = 0.5
"""Unused for how long a connection to PostgreSQL is asked whether it is still there. Less than
what is waited after a failure, so that one that failed is asked."""
_USED = "actserve_used"
_OPENED = "actserve_opened"
"""Which file a connection to SQLite has open."""

_ENGINE = {
    "pool_size": CONNECTIONS,
    "max_overflow": 0,
    # Errors would come with what callers have sent.
    "hide_parameters": True,
}

WRITES = "actserve_writes"
"""The execution option of a connection that will write."""
_WRITE_LOCK = 0x61637473_00000001
"""Of PostgreSQL's advisory locks, the one of whoever writes."""
_MIGRATION_LOCK = 0x61637473_00000002
"""And the one of whoever migrates."""

_SCHEMES = ("postgresql", "postgres", "postgresql+pg8000")
_TLS_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")
_TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
_OPTIONS = (*_TLS_OPTIONS, "unix_sock", "application_name")
_LOCAL = ("localhost", "127.0.0.1", "::1")


class StoreConfigError(Exception):
    """The database cannot be used as it is configured; the message says why, without secrets."""


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/actserve`, or `~/.local/share/actserve`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "actserve"


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A file in a folder, which is made when it is first used, and is its owner's alone."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder / FILE)

    def engine(self) -> sa.Engine:
        """Opens nothing yet."""
        engine = sa.create_engine(
            URL.create("sqlite", database=str(self.folder / FILE)),
            **_ENGINE,
            connect_args={"timeout": BUSY_TIMEOUT_S},
        )
        event.listen(engine, "do_connect", self._check_there)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "connect", self._note_file)
        event.listen(engine, "checkout", self._check_in_place)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _check_there(self, *_: object) -> None:
        # SQLite would make an empty file, where a disk may only be away for a while.
        os.stat(self.folder / FILE)

    def _note_file(self, _: object, record: Any) -> None:
        record.info[_OPENED] = self._file()

    def _check_in_place(self, _: object, record: Any, __: object) -> None:
        # What is written to a file that was removed or moved away is gone with it, and SQLite would
        # say that it is stored.
        if record.info[_OPENED] != self._file():
            raise exc.DisconnectionError("the file of the database is another one")

    def _file(self) -> tuple[int, int]:
        """What tells it from another one in its place."""
        found = os.stat(self.folder / FILE)
        return found.st_dev, found.st_ino

    def make(self) -> None:
        """Makes the folder and the file if need be. Raises StoreConfigError."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.folder / FILE, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreConfigError(
                f"cannot keep what is stored in {self.folder}: {error.strerror}; name a folder "
                "that this server may write to with data_dir"
            ) from None

    def migrating(self) -> AbstractContextManager[object]:
        """Keeps other servers on the folder from migrating it at the same time."""
        return FileLock(self.folder / f"{FILE}.lock", timeout=MIGRATION_LOCK_S)

    def begin_migration(self, connection: sa.Connection) -> None:
        """To be called in the transaction that migrates."""

    def begin_write(self, connection: sa.Connection) -> None:
        """The transaction began by waiting for others who write."""


def _configure_sqlite(connection: Any, _: object) -> None:
    # The driver would begin transactions where it thinks fit; `_begin_sqlite` does.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        # Every commit is on the disk before it returns: in WAL mode less may lose the last ones.
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # Who reads first and then writes would fail if somebody else wrote in between.
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@dataclass(frozen=True, slots=True)
class Postgres:
    """A database on a PostgreSQL server, which several replicas may share."""

    url: URL = field(repr=False)
    """Without the options that the driver takes as arguments."""
    arguments: Mapping[str, Any] = field(repr=False)
    """Of the driver."""

    def __str__(self) -> str:
        return self.url.set(drivername="postgresql").render_as_string(hide_password=True)

    def engine(self) -> sa.Engine:
        """Connects to nothing yet."""
        engine = sa.create_engine(
            self.url,
            **_ENGINE,
            pool_recycle=1800,
            connect_args={"timeout": NETWORK_TIMEOUT_S, **self.arguments},
        )
        event.listen(engine, "connect", _configure_postgres)
        event.listen(engine, "begin", _begin_postgres)
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", _check_idle)
        return engine

    def make(self) -> None:
        """The database is made by whoever runs the server that holds it."""

    def migrating(self) -> AbstractContextManager[object]:
        """`begin_migration` does."""
        return nullcontext()

    def begin_migration(self, connection: sa.Connection) -> None:
        """Keeps other replicas from migrating until the transaction ends, and lets it last."""
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")

    def begin_write(self, connection: sa.Connection) -> None:
        """Waits for others who write, as SQLite does, so that what is read in the transaction (how
        much a tenant has stored, whether a name is free) still holds when it ends."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")


def _configure_postgres(connection: Any, _: object) -> None:
    milliseconds = BUSY_TIMEOUT_S * 1000
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {milliseconds}")
    # A server that was stopped in the middle of a write would hold up those of all others.
    cursor.execute(f"SET idle_in_transaction_session_timeout = {milliseconds}")
    cursor.close()
    connection.commit()
    # The driver would begin a transaction for whatever is read too, which takes two round trips
    # more, and whose statements would not see one state either; `_begin_postgres` does.
    connection.autocommit = True


def _begin_postgres(connection: sa.Connection) -> None:
    if connection.get_execution_options().get(WRITES, False):
        connection.exec_driver_sql("BEGIN")


def _note_use(connection: Any, record: Any) -> None:
    record.info[_USED] = time.monotonic()


def _check_idle(connection: Any, record: Any, _: object) -> None:
    """Has a connection replaced that was lost while nobody used it: the server was restarted, or a
    proxy forgot it. One that was used a moment ago is not asked, which would double what a read
    takes."""
    if time.monotonic() - record.info.get(_USED, 0.0) < IDLE_S:
        return
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
    except Exception as error:
        raise exc.DisconnectionError from error


Place = SqliteFile | Postgres


def place(database_url: str | None, data_dir: Path | None) -> Place:
    """Where to store: at the URL, else in the folder, else in the default one. Raises
    StoreConfigError for a URL that is none."""
    if not database_url:
        return SqliteFile(data_dir or default_data_dir())
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):
        # The driver's message may hold the URL.
        raise StoreConfigError(
            "database_url is no URL; write postgresql://user:password@host:5432/database, with "
            "special characters percent-encoded"
        ) from None
    if url.drivername not in _SCHEMES:
        raise StoreConfigError(
            f"database_url begins with {url.drivername}://, but only postgresql:// is served; use "
            "data_dir for SQLite"
        )
    if not url.username or not url.database:
        raise StoreConfigError(
            "database_url lacks the user or the database; write "
            "postgresql://user:password@host:5432/database"
        )
    options = {name: _one(name, value) for name, value in url.query.items()}
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise StoreConfigError(
            f"database_url has the option {unknown[0]}, which is unknown; use {', '.join(_OPTIONS)}"
        )
    arguments: dict[str, Any] = {"application_name": options.get("application_name", "actserve")}
    if "unix_sock" in options:
        arguments["unix_sock"] = options["unix_sock"]
    arguments["ssl_context"] = _tls(url, options)
    return Postgres(_for_driver(url), arguments)


def _for_driver(url: URL) -> URL:
    try:
        import pg8000  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise StoreConfigError(
            "database_url names PostgreSQL, but its driver is not installed; install "
            "actserve-server[postgres]"
        ) from None
    return url.set(drivername="postgresql+pg8000", query={})


def _one(name: str, value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise StoreConfigError(f"database_url has the option {name} twice; give it once")
    return value


def _tls(url: URL, options: Mapping[str, str]) -> ssl.SSLContext | bool:
    """What the driver takes for the options, which mean what they mean to libpq. False is without
    TLS. Unlike there the default is to be sure who answers, unless that is this machine."""
    local = "unix_sock" in options or (url.host or "localhost") in _LOCAL
    mode = options.get("sslmode", "disable" if local else "verify-full")
    if mode not in _TLS_MODES:
        raise StoreConfigError(
            f"database_url has the sslmode {mode[:32]!r}; use one of {', '.join(_TLS_MODES)}"
        )
    if mode == "disable":
        return False
    try:
        context = ssl.create_default_context(cafile=options.get("sslrootcert"))
        if "sslcert" in options:
            context.load_cert_chain(options["sslcert"], options.get("sslkey"))
    except (OSError, ssl.SSLError) as error:
        raise StoreConfigError(
            "database_url: sslrootcert, sslcert or sslkey cannot be read as PEM: "
            f"{error.strerror or error}"
        ) from None
    context.check_hostname = mode == "verify-full"
    if mode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context
