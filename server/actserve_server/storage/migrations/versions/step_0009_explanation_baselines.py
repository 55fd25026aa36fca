"""Baselines of natural language autoencoders."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "explanation_baselines",
        sa.Column("shared", sa.Boolean, nullable=False),
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("nla", _text(63), nullable=False),
        sa.Column("id", _text(63), nullable=False),
        sa.Column("site", _text(), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("variance", sa.Double, nullable=False),
        sa.Column("median_norm", sa.Double, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("mean", sa.LargeBinary, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "model_id", "nla", "shared", "tenant", "id", name="pk_explanation_baselines"
        ),
    )
    op.create_index(
        "ix_explanation_baselines_model_id_nla_account",
        "explanation_baselines",
        ["model_id", "nla", "account"],
    )
