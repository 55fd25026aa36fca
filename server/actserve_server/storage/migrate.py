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
    from alembic.runtime.migration import MigrationContext

    known, heads = _steps()
    with _MIGRATING, place.migrating(), engine.connect() as connection:
        connection = connection.execution_options(**{WRITES: True})
        with connection.begin():
            place.begin_migration(connection)
            options = {"version_table": VERSION_TABLE}
            here = MigrationContext.configure(connection, opts=options).get_current_heads()
            if unknown := sorted(set(here) - known):
                raise StoreConfigError(
                    f"the database {place} was migrated by a newer version of the server, to "
                    f"{unknown[0]}, which this one does not know; run the newer version, or "
                    "restore a backup of before"
                )
            if set(here) == heads:
                return
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            now = MigrationContext.configure(connection, opts=options).get_current_heads()
    if now != here:
        log.info("store", migrated_from=list(here), to=list(now), database=str(place))


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
