"""What attempts have made, in leases and allocations; and what is reserved of a budget.

Revision: 0007
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, which say nothing of what was before, and create the table."""
    for table in ("penstock_leases", "penstock_allocations"):
        op.add_column(
            table, sa.Column("kind", sa.String(length=16), nullable=False, server_default="scoring")
        )
        for name, kind in (("rows", BigId), ("bytes_written", BigId)):
            op.add_column(table, sa.Column(name, kind, nullable=False, server_default="0"))
        for name in ("cpu_seconds", "gpu_seconds"):
            op.add_column(table, sa.Column(name, sa.Double(), nullable=False, server_default="0"))
    op.add_column("penstock_leases", sa.Column("starts_in_s", sa.Double(), nullable=True))
    op.create_table(
        "penstock_reservations",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("cost", sa.Double(), nullable=True),
        sa.Column("until_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "pipeline", "kind", "subject", name=op.f("pk_penstock_reservations")
        ),
    )
