"""Revisions of the ledger of leases, so that a beat reads what has changed and not everything.

Revision: 0009
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and create the table; leases that are there count as older than any revision."""
    op.add_column("penstock_leases", sa.Column("changed", BigId, nullable=False, server_default="0"))
    op.create_index("ix_penstock_leases_changed", "penstock_leases", ["changed"])
    op.create_index("ix_penstock_leases_beat", "penstock_leases", ["beat_s"])
    op.create_table(
        "penstock_lease_ends",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("changed", BigId, nullable=False),
        sa.Column("ended_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "run_id", name=op.f("pk_penstock_lease_ends")),
    )
    op.create_index("ix_penstock_lease_ends_changed", "penstock_lease_ends", ["changed"])
