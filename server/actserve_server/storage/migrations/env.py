"""Run by Alembic to migrate: in the transaction that `migrate` began."""

from alembic import context

from actserve_server.storage.migrate import VERSION_TABLE
from actserve_server.storage.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
context.run_migrations()
