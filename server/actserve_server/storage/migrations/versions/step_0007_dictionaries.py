"""Uploaded dictionaries, and what their features stand for."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "dictionaries",
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("id", _text(63), nullable=False),
        sa.Column("upload", _text(63), nullable=False),
        sa.Column("description", sa.JSON, nullable=False),
        sa.Column("matrices", sa.JSON, nullable=False),
        sa.Column("received_bytes", sa.JSON, nullable=False),
        sa.Column("finished", sa.Boolean, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("content_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("reconstruction", sa.JSON, nullable=True),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("expire_time_us", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("request_id", _text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_dictionaries"),
        sa.UniqueConstraint("tenant", "model_id", "id", name="uq_dictionaries_tenant_model_id_id"),
        sa.UniqueConstraint(
            "tenant", "model_id", "request_id", name="uq_dictionaries_tenant_model_id_request_id"
        ),
    )
    op.create_index("ix_dictionaries_account_size_bytes", "dictionaries", ["account", "size_bytes"])
    op.create_index(
        "ix_dictionaries_finished_expire_time_us", "dictionaries", ["finished", "expire_time_us"]
    )
    op.create_table(
        "dictionary_pieces",
        sa.Column("dictionary", sa.Integer, nullable=False),
        sa.Column("matrix", sa.SmallInteger, nullable=False),
        sa.Column("piece", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(
            ["dictionary"],
            ["dictionaries.key"],
            name="fk_dictionary_pieces_dictionary",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dictionary", "matrix", "piece", name="pk_dictionary_pieces"),
    )
    op.create_table(
        "dictionary_labels",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("dictionary", _text(63), nullable=False),
        sa.Column("feature", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "model_id", "dictionary", "feature", name="pk_dictionary_labels"
        ),
    )
    op.create_index("ix_dictionary_labels_account", "dictionary_labels", ["account"])
    op.create_table(
        "dictionary_label_versions",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("dictionary", _text(63), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "model_id", "dictionary", name="pk_dictionary_label_versions"
        ),
    )
