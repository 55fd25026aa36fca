"""Which versions of a monitor have scores that can be compared."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for table, version in (("monitors", "etag"), ("score_hours", "monitor_etag")):
        op.add_column(
            table, sa.Column("scored_by", sa.String(32), nullable=False, server_default="")
        )
        # What is there is comparable within a version, which is all that is known of it.
        op.execute(f"UPDATE {table} SET scored_by = {version}")
