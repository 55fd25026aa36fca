"""Finished cells of sweeps."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _text() -> sa.types.TypeEngine[str]:
    return sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sweep_cells",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("sweep_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("cell", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "sweep_sha256", "cell", name="pk_sweep_cells"),
    )
    op.create_index(
        "ix_sweep_cells_account_create_time_us", "sweep_cells", ["account", "create_time_us"]
    )
    op.create_index("ix_sweep_cells_create_time_us", "sweep_cells", ["create_time_us"])
    op.create_table(
        "sweep_cell_totals",
        sa.Column("account", _text(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("account", name="pk_sweep_cell_totals"),
    )
