"""The tables as this version of the server knows them; `migrations` says how they came to be.

What belongs to a tenant has its name in `tenant`, as `Principal.tenant`, empty on a server without
tokens; `account` is whom it counts for. Texts by which lists are ordered compare byte by byte,
whatever the language of the database.
"""

import sqlalchemy as sa

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def text(length: int | None = None) -> sa.types.TypeEngine[str]:
    """Text that is compared byte by byte."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


steering_vector_contents = sa.Table(
    "steering_vector_contents",
    METADATA,
    # SHA-256 of `elements`.
    sa.Column("sha256", sa.LargeBinary(32), primary_key=True),
    # float32, little-endian, [rows, width].
    sa.Column("elements", sa.LargeBinary, nullable=False),
)
"""Elements, equal ones once, whoever has stored them. One is there as long as a vector is."""

steering_vectors = sa.Table(
    "steering_vectors",
    METADATA,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("tenant", text(), nullable=False),
    sa.Column("account", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The last part of its name.
    sa.Column("id", text(63), nullable=False),
    sa.Column("content_sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    # 4 x rows x width: what counts against quotas.
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    # A list of what is known of each row, in the order of the elements.
    sa.Column("rows", sa.JSON, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("provenance", sa.JSON, nullable=False),
    sa.Column("model_path", sa.Text, nullable=False),
    # Microseconds since 1970 began, UTC.
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(32), nullable=False),
    # Of the request that made it, whose SHA-256 is beside it.
    sa.Column("request_id", text(), nullable=False),
    sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
    sa.ForeignKeyConstraint(["content_sha256"], ["steering_vector_contents.sha256"]),
    sa.UniqueConstraint("tenant", "model_id", "id"),
    sa.UniqueConstraint("tenant", "model_id", "request_id"),
    sa.Index(None, "content_sha256"),
    sa.Index(None, "account", "size_bytes"),
)
"""Vectors by tenant, model and id."""

steering_vector_labels = sa.Table(
    "steering_vector_labels",
    METADATA,
    sa.Column("vector", sa.Integer, nullable=False),
    sa.Column("key", text(), nullable=False),
    sa.Column("value", text(), nullable=False),
    sa.ForeignKeyConstraint(["vector"], ["steering_vectors.key"], ondelete="CASCADE"),
    sa.PrimaryKeyConstraint("vector", "key"),
    sa.Index(None, "key", "value"),
)
"""The labels again, to find vectors by."""

sweep_cells = sa.Table(
    "sweep_cells",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    # Of all that the cells of the sweep depend on.
    sa.Column("sweep_sha256", sa.LargeBinary(32), nullable=False),
    # Its number in the sweep.
    sa.Column("cell", sa.Integer, autoincrement=False, nullable=False),
    sa.Column("account", text(), nullable=False),
    # A serialized SweepCell.
    sa.Column("message", sa.LargeBinary, nullable=False),
    # What counts against quotas.
    sa.Column("size_bytes", sa.Integer, nullable=False),
    # Microseconds since 1970 began, UTC.
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "sweep_sha256", "cell"),
    sa.Index(None, "account", "create_time_us"),
    sa.Index(None, "create_time_us"),
)
"""Finished cells of sweeps."""

sweep_cell_totals = sa.Table(
    "sweep_cell_totals",
    METADATA,
    sa.Column("account", text(), primary_key=True),
    sa.Column("stored_bytes", sa.BigInteger, nullable=False),
)
"""What they take of each account, since adding it up anew takes long."""
