"""Attribution graphs, and what they consist of."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "attribution_graphs",
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("id", _text(63), nullable=False),
        sa.Column("prompt", sa.LargeBinary, nullable=False),
        sa.Column("settings", sa.LargeBinary, nullable=False),
        sa.Column("dictionaries", sa.JSON, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("steps_done", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("error", sa.LargeBinary, nullable=False),
        sa.Column("seen_time_us", sa.BigInteger, nullable=False),
        sa.Column("nodes", sa.Integer, nullable=False),
        sa.Column("edges", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("expire_time_us", sa.BigInteger, nullable=False),
        sa.Column("request_id", _text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_attribution_graphs"),
        sa.UniqueConstraint(
            "tenant", "model_id", "id", name="uq_attribution_graphs_tenant_model_id_id"
        ),
        sa.UniqueConstraint(
            "tenant",
            "model_id",
            "request_id",
            name="uq_attribution_graphs_tenant_model_id_request_id",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_attribution_graphs_account_size_bytes", "attribution_graphs", ["account", "size_bytes"]
    )
    op.create_index(
        "ix_attribution_graphs_expire_time_us", "attribution_graphs", ["expire_time_us"]
    )
    op.create_table(
        "attribution_graph_parts",
        sa.Column("graph", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(
            ["graph"],
            ["attribution_graphs.key"],
            name="fk_attribution_graph_parts_graph",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("graph", "number", name="pk_attribution_graph_parts"),
    )
