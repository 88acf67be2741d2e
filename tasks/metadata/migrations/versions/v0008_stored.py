"""Bytes that attempts have read, and what pipelines hold in the store.

Revision: 0008
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, which stays empty for what was before, and create the table."""
    for table in ("penstock_leases", "penstock_allocations"):
        op.add_column(table, sa.Column("bytes_read", BigId, nullable=True))
    op.create_table(
        "penstock_stored",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("part", sa.String(length=32), nullable=False),
        sa.Column("bytes", BigId, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "day", "part", name=op.f("pk_penstock_stored")),
    )
