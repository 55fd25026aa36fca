"""Stored steering vectors."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "steering_vector_contents",
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("elements", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_steering_vector_contents"),
    )
    op.create_table(
        "steering_vectors",
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("id", _text(63), nullable=False),
        sa.Column("content_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("model_path", sa.Text, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("request_id", _text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_steering_vectors"),
        sa.ForeignKeyConstraint(
            ["content_sha256"],
            ["steering_vector_contents.sha256"],
            name="fk_steering_vectors_content_sha256",
        ),
        sa.UniqueConstraint(
            "tenant", "model_id", "id", name="uq_steering_vectors_tenant_model_id_id"
        ),
        sa.UniqueConstraint(
            "tenant",
            "model_id",
            "request_id",
            name="uq_steering_vectors_tenant_model_id_request_id",
        ),
    )
    op.create_index("ix_steering_vectors_content_sha256", "steering_vectors", ["content_sha256"])
    op.create_index(
        "ix_steering_vectors_account_size_bytes", "steering_vectors", ["account", "size_bytes"]
    )
    op.create_table(
        "steering_vector_labels",
        sa.Column("vector", sa.Integer, nullable=False),
        sa.Column("key", _text(), nullable=False),
        sa.Column("value", _text(), nullable=False),
        sa.PrimaryKeyConstraint("vector", "key", name="pk_steering_vector_labels"),
        sa.ForeignKeyConstraint(
            ["vector"],
            ["steering_vectors.key"],
            name="fk_steering_vector_labels_vector",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_steering_vector_labels_key_value", "steering_vector_labels", ["key", "value"]
    )
