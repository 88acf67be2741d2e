"""Alerts, and what of them was sent where.

Revision: 0005
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import JsonText, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _key() -> list[sa.Column[str]]:
    return [
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("incident", sa.String(length=64), nullable=False),
    ]


def upgrade() -> None:
    """Create both tables; their rows change as incidents go on, so that no trigger keeps them."""
    op.create_table(
        "penstock_alerts",
        *_key(),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("headline", sa.Text(), nullable=False),
        sa.Column("since", sa.String(length=64), nullable=False),
        sa.Column("opened_at_utc", UtcDateTime(), nullable=False),
        sa.Column("observed_at_utc", UtcDateTime(), nullable=False),
        sa.Column("resolved_at_utc", UtcDateTime(), nullable=True),
        sa.Column("record", JsonText(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "kind", "incident", name=op.f("pk_penstock_alerts")),
    )
    op.create_index(
        "ix_penstock_alerts_status", "penstock_alerts", ["tenant", "pipeline", "status", "observed_at_utc"]
    )
    op.create_table(
        "penstock_alert_deliveries",
        *_key(),
        sa.Column("channel", sa.String(length=32), nullable=False),
        sa.Column("phase", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("due_at_utc", UtcDateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("message_id", sa.String(length=64), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("tried_at_utc", UtcDateTime(), nullable=True),
        sa.Column("sent_at_utc", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint(
            "tenant",
            "pipeline",
            "kind",
            "incident",
            "channel",
            "phase",
            name=op.f("pk_penstock_alert_deliveries"),
        ),
    )
    op.create_index(
        "ix_penstock_alert_deliveries_status",
        "penstock_alert_deliveries",
        ["tenant", "pipeline", "status", "due_at_utc"],
    )
    op.create_index("ix_penstock_alert_deliveries_sent", "penstock_alert_deliveries", ["sent_at_utc"])
