"""Leases of workers, and what each of them was allocated and used.

Revision: 0006
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _key() -> list[sa.Column[str]]:
    return [
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
    ]


def upgrade() -> None:
    """Create both tables; a lease's row changes with each beat, so that no trigger keeps it."""
    op.create_table(
        "penstock_leases",
        *_key(),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("gpus", sa.Double(), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory_gib", sa.Double(), nullable=False),
        sa.Column("least", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("reclaimable", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("since_s", sa.Double(), nullable=False),
        sa.Column("beat_s", sa.Double(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("workers", sa.Integer(), nullable=False),
        sa.Column("ends_in_s", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("allocated_s", sa.Double(), nullable=False),
        sa.Column("used_s", sa.Double(), nullable=False),
        sa.Column("wasted_s", sa.Double(), nullable=False),
        sa.Column("asked_at_utc", UtcDateTime(), nullable=False),
        sa.Column("beat_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "run_id", name=op.f("pk_penstock_leases")),
    )
    op.create_table(
        "penstock_allocations",
        *_key(),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("gpus", sa.Double(), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("allocated_s", sa.Double(), nullable=False),
        sa.Column("used_s", sa.Double(), nullable=False),
        sa.Column("idle_s", sa.Double(), nullable=False),
        sa.Column("wasted_s", sa.Double(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("from_utc", UtcDateTime(), nullable=False),
        sa.Column("until_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "pipeline", "run_id", "holder", name=op.f("pk_penstock_allocations")
        ),
    )
    op.create_index("ix_penstock_allocations_recent", "penstock_allocations", ["tenant", "until_utc"])
