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

monitors = sa.Table(
    "monitors",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The last part of its name.
    sa.Column("id", text(63), nullable=False),
    sa.Column("account", text(), nullable=False),
    # A serialized Monitor as it was sent, tensors without their data.
    sa.Column("message", sa.LargeBinary, nullable=False),
    # The same with all that its sources name as tensors; empty while it has no probe yet.
    sa.Column("resolved", sa.LargeBinary, nullable=False),
    # By level, of how many interventions there each one of `message` consists.
    sa.Column("parts", sa.JSON, nullable=False),
    # A serialized MonitorFit; empty for a monitor that was not fitted.
    sa.Column("fit", sa.LargeBinary, nullable=False),
    # float32, ascending, little-endian: between which scores are counted.
    sa.Column("edges", sa.LargeBinary, nullable=False),
    # A digest of all that scores depend on; another one where they cannot be compared.
    sa.Column("scored_by", sa.String(32), nullable=False, server_default=""),
    # Bytes of its numbers: what counts against quotas.
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("model_path", sa.Text, nullable=False),
    # Microseconds since 1970 began, UTC.
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("update_time_us", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(32), nullable=False),
    # Of the request that made it, whose SHA-256 is beside it.
    sa.Column("request_id", text(), nullable=False),
    sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "id"),
    sa.UniqueConstraint("tenant", "model_id", "request_id"),
    sa.Index(None, "account", "size_bytes"),
    sa.Index(None, "model_id"),
)
"""Monitors by tenant, model and id."""

monitor_versions = sa.Table(
    "monitor_versions",
    METADATA,
    sa.Column("model_id", text(), primary_key=True),
    # One more with every change of any monitor of the model.
    sa.Column("version", sa.BigInteger, nullable=False),
)
"""What tells replicas that monitors have changed."""

alerts = sa.Table(
    "alerts",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The order in which those of a tenant were stored, without a gap.
    sa.Column("sequence", sa.BigInteger, autoincrement=False, nullable=False),
    # The last part of its name.
    sa.Column("id", text(63), nullable=False),
    sa.Column("account", text(), nullable=False),
    # The last part of its monitor's name.
    sa.Column("monitor", text(63), nullable=False),
    sa.Column("monitor_etag", sa.String(32), nullable=False),
    # As AlertLevel.
    sa.Column("level", sa.SmallInteger, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("call_id", text(), nullable=False),
    sa.Column("sample_index", sa.Integer, nullable=False),
    sa.Column("end_user", text(), nullable=False),
    sa.Column("trace_id", text(), nullable=False),
    # Microseconds since 1970 began, UTC.
    sa.Column("raise_time_us", sa.BigInteger, nullable=False),
    # As AlertAction.
    sa.Column("action", sa.SmallInteger, nullable=False),
    # Of a sample that is paused: when it decides for itself, and whether it goes on then.
    sa.Column("decide_by_us", sa.BigInteger, nullable=False),
    sa.Column("proceed_after", sa.Boolean, nullable=False),
    # As AlertDecision.
    sa.Column("decision", sa.SmallInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("explanation", sa.Text, nullable=False),
    # The address that it is delivered to; empty for none. Beside it how far that has come.
    sa.Column("webhook", text(), nullable=False),
    # As WebhookState.
    sa.Column("delivery_state", sa.SmallInteger, nullable=False),
    sa.Column("delivery_attempts", sa.Integer, nullable=False),
    sa.Column("delivery_error", sa.Text, nullable=False),
    # Before this nobody tries; who does puts it off, and leaves a mark of its own.
    sa.Column("delivery_due_us", sa.BigInteger, nullable=False),
    sa.Column("delivery_lease", text(), nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "sequence"),
    sa.UniqueConstraint("tenant", "model_id", "id"),
    sa.Index(None, "account", "raise_time_us"),
    sa.Index(None, "raise_time_us"),
    sa.Index(None, "delivery_state", "webhook", "delivery_due_us"),
    sa.Index(None, "delivery_state", "webhook", "account", "delivery_due_us"),
)
"""Alerts by tenant, model and sequence."""

alert_sequences = sa.Table(
    "alert_sequences",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # Before the first alert of all, and of the newest one. It begins with the microseconds since
    # 1970, so that no number comes twice where a row was deleted and made again.
    sa.Column("before_first", sa.BigInteger, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False),
    # Up to here it is not known of which monitors alerts are gone.
    sa.Column("forgotten", sa.BigInteger, nullable=False),
    # When the newest one was stored.
    sa.Column("last_time_us", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id"),
)
"""How far the alerts of a tenant have come."""

alerts_gone = sa.Table(
    "alerts_gone",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    sa.Column("monitor", text(63), nullable=False),
    # Of the newest alert of the monitor that is not stored any more.
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "monitor"),
)
"""Of which monitors alerts are gone, so that who reads those of others is not told."""

alert_totals = sa.Table(
    "alert_totals",
    METADATA,
    sa.Column("account", text(), primary_key=True),
    sa.Column("alerts", sa.BigInteger, nullable=False),
)
"""How many each account has, since counting them anew takes long."""

score_hours = sa.Table(
    "score_hours",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    sa.Column("monitor", text(63), nullable=False),
    # Hours since 1970 began, UTC.
    sa.Column("hour", sa.Integer, autoincrement=False, nullable=False),
    sa.Column("monitor_etag", sa.String(32), nullable=False),
    # As of the monitor.
    sa.Column("scored_by", sa.String(32), nullable=False, server_default=""),
    # float32, ascending, little-endian, and uint64 counts of scores, one more than edges.
    sa.Column("edges", sa.LargeBinary, nullable=False),
    sa.Column("counts", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "monitor", "hour", "monitor_etag"),
    sa.Index(None, "hour"),
)
"""How the scores of samples are distributed, by hour and version of a monitor."""

monitor_fits = sa.Table(
    "monitor_fits",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    sa.Column("monitor", text(63), nullable=False),
    # Of the monitor while it has no probe yet, so that one of the same name made later is another.
    sa.Column("monitor_etag", sa.String(32), nullable=False),
    # As WorkState.
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("steps_done", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    # When the server that does it last said so. Microseconds since 1970 began, UTC.
    sa.Column("seen_time_us", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "monitor", "monitor_etag"),
)
"""Fits that are being done, by whatever server."""

dictionaries = sa.Table(
    "dictionaries",
    METADATA,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("tenant", text(), nullable=False),
    sa.Column("account", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The last part of its name.
    sa.Column("id", text(63), nullable=False),
    # The last part of the name of its upload.
    sa.Column("upload", text(63), nullable=False),
    # What it is: kind, sites, features, width, activation.
    sa.Column("description", sa.JSON, nullable=False),
    # Of each matrix its role, site index, element type and shape, in the order of the upload.
    sa.Column("matrices", sa.JSON, nullable=False),
    # How many bytes of each have come, from its beginning and without a gap.
    sa.Column("received_bytes", sa.JSON, nullable=False),
    # Whether it is there, and no upload any more.
    sa.Column("finished", sa.Boolean, nullable=False),
    # Of all matrices as they are sent: what counts against quotas.
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    # SHA-256 of their bytes, one after the other; empty while it is uploaded.
    sa.Column("content_sha256", sa.LargeBinary(32), nullable=False),
    # How well it reconstructs, if that was measured.
    sa.Column("reconstruction", sa.JSON, nullable=True),
    # Microseconds since 1970 began, UTC; of an upload, until when it waits for its next chunk.
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("expire_time_us", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(32), nullable=False),
    # Of the request that began it, whose SHA-256 is beside it.
    sa.Column("request_id", text(), nullable=False),
    sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
    sa.UniqueConstraint("tenant", "model_id", "id"),
    sa.UniqueConstraint("tenant", "model_id", "request_id"),
    sa.Index(None, "account", "size_bytes"),
    sa.Index(None, "finished", "expire_time_us"),
)
"""Dictionaries, and those that are being uploaded, by tenant, model and id."""

dictionary_pieces = sa.Table(
    "dictionary_pieces",
    METADATA,
    sa.Column("dictionary", sa.Integer, nullable=False),
    # Which of its matrices.
    sa.Column("matrix", sa.SmallInteger, nullable=False),
    # Which piece of it: all but the last are equally long.
    sa.Column("piece", sa.Integer, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["dictionary"], ["dictionaries.key"], ondelete="CASCADE"),
    sa.PrimaryKeyConstraint("dictionary", "matrix", "piece"),
)
"""The bytes of matrices, as they were sent."""

dictionary_labels = sa.Table(
    "dictionary_labels",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The last part of the dictionary's name. It may be one that the operator has loaded.
    sa.Column("dictionary", text(63), nullable=False),
    sa.Column("feature", sa.Integer, autoincrement=False, nullable=False),
    sa.Column("account", text(), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "dictionary", "feature"),
    sa.Index(None, "account"),
)
"""What features stand for, as each tenant has it."""

dictionary_label_versions = sa.Table(
    "dictionary_label_versions",
    METADATA,
    sa.Column("tenant", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    sa.Column("dictionary", text(63), nullable=False),
    # Changes with the labels, and is part of the dictionary's etag.
    sa.Column("version", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("tenant", "model_id", "dictionary"),
)
"""What tells that labels have changed."""

attribution_graphs = sa.Table(
    "attribution_graphs",
    METADATA,
    # Never that of another, also once it was deleted.
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("tenant", text(), nullable=False),
    sa.Column("account", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The last part of its name.
    sa.Column("id", text(63), nullable=False),
    # A serialized TokenizedPrompt, and serialized AttributionSettings.
    sa.Column("prompt", sa.LargeBinary, nullable=False),
    sa.Column("settings", sa.LargeBinary, nullable=False),
    # A list of the ids of its transcoders.
    sa.Column("dictionaries", sa.JSON, nullable=False),
    # As WorkState.
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("steps_done", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    # A serialized google.rpc.Status of work that failed; empty otherwise.
    sa.Column("error", sa.LargeBinary, nullable=False),
    # When the server that does the work last said so. Microseconds since 1970 began, UTC.
    sa.Column("seen_time_us", sa.BigInteger, nullable=False),
    sa.Column("nodes", sa.Integer, nullable=False),
    sa.Column("edges", sa.Integer, nullable=False),
    # Of its prompt and its parts: what counts against quotas.
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("expire_time_us", sa.BigInteger, nullable=False),
    # Of the request that made it, whose SHA-256 is beside it.
    sa.Column("request_id", text(), nullable=False),
    sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
    sa.UniqueConstraint("tenant", "model_id", "id"),
    sa.UniqueConstraint("tenant", "model_id", "request_id"),
    sa.Index(None, "account", "size_bytes"),
    sa.Index(None, "expire_time_us"),
    sqlite_autoincrement=True,
)
"""Attribution graphs by tenant, model and id."""

attribution_graph_parts = sa.Table(
    "attribution_graph_parts",
    METADATA,
    sa.Column("graph", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
    # A serialized WatchAttributionGraphResponse of some nodes or edges.
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["graph"], ["attribution_graphs.key"], ondelete="CASCADE"),
    sa.PrimaryKeyConstraint("graph", "number"),
)
"""Their nodes and edges, in the order in which they are told."""

explanation_baselines = sa.Table(
    "explanation_baselines",
    METADATA,
    # Whether it is for every tenant that has none of its name; then `tenant` is empty.
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("tenant", text(), nullable=False),
    sa.Column("account", text(), nullable=False),
    sa.Column("model_id", text(), nullable=False),
    # The last part of the name of its NLA.
    sa.Column("nla", text(63), nullable=False),
    # The last part of its own name.
    sa.Column("id", text(63), nullable=False),
    # Where its rows came from, and how wide they were.
    sa.Column("site", text(), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("variance", sa.Double, nullable=False),
    sa.Column("median_norm", sa.Double, nullable=False),
    # How many there were.
    sa.Column("rows", sa.Integer, nullable=False),
    # The mean row: float32, little-endian.
    sa.Column("mean", sa.LargeBinary, nullable=False),
    # Microseconds since 1970 began, UTC.
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "nla", "shared", "tenant", "id"),
    sa.Index(None, "model_id", "nla", "account"),
)
"""What scores of explanations are relative to, by NLA, tenant and short name."""
