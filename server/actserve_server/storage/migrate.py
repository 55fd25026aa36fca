"""Brings a database to the tables that this version of the server knows."""

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog

from actserve_server.storage.database_places import WRITES, Place, StoreConfigError

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger("actserve.storage")

VERSION_TABLE = "actserve_schema"
"""Where a database says how far it has come."""
_MIGRATING = threading.Lock()
"""Alembic knows of one migration at a time in a process."""
_STEPS = Path(__file__).parent / "migrations"


def migrate(engine: sa.Engine, place: Place) -> None:
    """Runs the steps that the database lacks, all or none, while no other server does. Raises
    StoreConfigError if a newer version has been here."""
    # Imported here because the command line needs none of it.
    from alembic import command

    with _MIGRATING, place.migrating(), engine.connect() as connection:
        connection = connection.execution_options(**{WRITES: True})
        with connection.begin():
            place.begin_migration(connection)
            here = _steps_done(connection, place)
            if here == _steps()[1]:
                return
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            now = _steps_done(connection, place)
    if now != here:
        log.info("store", migrated_from=sorted(here), to=sorted(now), database=str(place))


def is_current(engine: sa.Engine, place: Place) -> bool:
    """Whether it lacks no step; nothing is changed. Raises StoreConfigError if a newer version has
    been here."""
    with engine.connect() as connection:
        return _steps_done(connection, place) == _steps()[1]


def is_empty(engine: sa.Engine) -> bool:
    """Whether no server has ever used it."""
    return not sa.inspect(engine).has_table(VERSION_TABLE)


def _steps_done(connection: sa.Connection, place: Place) -> frozenset[str]:
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    done = frozenset(context.get_current_heads())
    if unknown := sorted(done - _steps()[0]):
        raise StoreConfigError(
            f"the database {place} was migrated by a newer version of the server, to "
            f"{unknown[0]}, which this one does not know; run the newer version, or "
            "restore a backup of before"
        )
    return done


@cache
def _steps() -> tuple[frozenset[str], frozenset[str]]:
    """All steps that there are, and the newest: they do not change while a server runs."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config())
    known = frozenset(step.revision for step in script.walk_revisions())
    return known, frozenset(script.get_heads())


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
    return config
