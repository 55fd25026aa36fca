"""Finds whose deliveries to an address are due without going through those of others."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_index(
        "ix_alerts_delivery_state_webhook_account_delivery_due_us",
        "alerts",
        ["delivery_state", "webhook", "account", "delivery_due_us"],
    )
