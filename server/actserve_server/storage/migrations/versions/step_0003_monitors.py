"""Monitors, their alerts, and how their scores are distributed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    _monitors()
    _alerts()
    _scores()


def _monitors() -> None:
    op.create_table(
        "monitors",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("id", _text(63), nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.Column("resolved", sa.LargeBinary, nullable=False),
        sa.Column("parts", sa.JSON, nullable=False),
        sa.Column("fit", sa.LargeBinary, nullable=False),
        sa.Column("edges", sa.LargeBinary, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("model_path", sa.Text, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("update_time_us", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("request_id", _text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model_id", "id", name="pk_monitors"),
        sa.UniqueConstraint(
            "tenant", "model_id", "request_id", name="uq_monitors_tenant_model_id_request_id"
        ),
    )
    op.create_index("ix_monitors_account_size_bytes", "monitors", ["account", "size_bytes"])
    op.create_index("ix_monitors_model_id", "monitors", ["model_id"])
    op.create_table(
        "monitor_versions",
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_monitor_versions"),
    )


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("sequence", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("id", _text(63), nullable=False),
        sa.Column("account", _text(), nullable=False),
        sa.Column("monitor", _text(63), nullable=False),
        sa.Column("monitor_etag", sa.String(32), nullable=False),
        sa.Column("level", sa.SmallInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("call_id", _text(), nullable=False),
        sa.Column("sample_index", sa.Integer, nullable=False),
        sa.Column("end_user", _text(), nullable=False),
        sa.Column("trace_id", _text(), nullable=False),
        sa.Column("raise_time_us", sa.BigInteger, nullable=False),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("decide_by_us", sa.BigInteger, nullable=False),
        sa.Column("proceed_after", sa.Boolean, nullable=False),
        sa.Column("decision", sa.SmallInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("explanation", sa.Text, nullable=False),
        sa.Column("webhook", _text(), nullable=False),
        sa.Column("delivery_state", sa.SmallInteger, nullable=False),
        sa.Column("delivery_attempts", sa.Integer, nullable=False),
        sa.Column("delivery_error", sa.Text, nullable=False),
        sa.Column("delivery_due_us", sa.BigInteger, nullable=False),
        sa.Column("delivery_lease", _text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model_id", "sequence", name="pk_alerts"),
        sa.UniqueConstraint("tenant", "model_id", "id", name="uq_alerts_tenant_model_id_id"),
    )
    op.create_index("ix_alerts_account_raise_time_us", "alerts", ["account", "raise_time_us"])
    op.create_index("ix_alerts_raise_time_us", "alerts", ["raise_time_us"])
    op.create_index(
        "ix_alerts_delivery_state_webhook_delivery_due_us",
        "alerts",
        ["delivery_state", "webhook", "delivery_due_us"],
    )
    op.create_table(
        "alert_sequences",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("before_first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("forgotten", sa.BigInteger, nullable=False),
        sa.Column("last_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model_id", name="pk_alert_sequences"),
    )
    op.create_table(
        "alerts_gone",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("monitor", _text(63), nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model_id", "monitor", name="pk_alerts_gone"),
    )
    op.create_table(
        "alert_totals",
        sa.Column("account", _text(), nullable=False),
        sa.Column("alerts", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("account", name="pk_alert_totals"),
    )


def _scores() -> None:
    op.create_table(
        "score_hours",
        sa.Column("tenant", _text(), nullable=False),
        sa.Column("model_id", _text(), nullable=False),
        sa.Column("monitor", _text(63), nullable=False),
        sa.Column("hour", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("monitor_etag", sa.String(32), nullable=False),
        sa.Column("edges", sa.LargeBinary, nullable=False),
        sa.Column("counts", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "model_id", "monitor", "hour", "monitor_etag", name="pk_score_hours"
        ),
    )
    op.create_index("ix_score_hours_hour", "score_hours", ["hour"])
