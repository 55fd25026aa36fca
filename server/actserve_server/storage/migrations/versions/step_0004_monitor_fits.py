"""How far fits of monitors have come."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "monitor_fits",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("monitor", _text(63), nullable=False),
        sa.Column("monitor_etag", sa.String(32), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("steps_done", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("seen_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "model_id", "monitor", "monitor_etag", name="pk_monitor_fits"
        ),
    )
