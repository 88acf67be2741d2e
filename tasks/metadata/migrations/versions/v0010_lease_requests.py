"""What runs ask for apart from what they are granted, so that a tenant's login changes nothing that others read.

Revision: 0010
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId, UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_SAID = ("ends_in_s", "starts_in_s", "reason")
_HAD = ("allocated_s", "used_s", "wasted_s", "rows", "bytes_read", "bytes_written")
_MEASURED = ("cpu_seconds", "gpu_seconds")
_BOTH = (
    *("tenant", "pipeline", "run_id", "kind", "holder", "gpus", "cpus", "memory_gib", "least", "most"),
    *("reclaimable", "workers", "beat_s", "asked_at_utc", "beat_at_utc"),
)


def upgrade() -> None:
    """Create the table, and move what runs say of themselves into it."""
    op.create_table(
        "penstock_lease_requests",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("gpus", sa.Double(), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory_gib", sa.Double(), nullable=False),
        sa.Column("least", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("reclaimable", sa.Boolean(), nullable=False),
        sa.Column("workers", sa.Integer(), nullable=False),
        sa.Column("heard", BigId, nullable=False),
        sa.Column("beat_s", sa.Double(), nullable=False),
        sa.Column("pause_s", sa.Double(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("ends_in_s", sa.Double(), nullable=True),
        sa.Column("starts_in_s", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("allocated_s", sa.Double(), nullable=False),
        sa.Column("used_s", sa.Double(), nullable=False),
        sa.Column("wasted_s", sa.Double(), nullable=False),
        sa.Column("rows", BigId, nullable=False),
        sa.Column("bytes_read", BigId, nullable=True),
        sa.Column("bytes_written", BigId, nullable=False),
        sa.Column("cpu_seconds", sa.Double(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("asked_at_utc", UtcDateTime(), nullable=False),
        sa.Column("beat_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "run_id", name=op.f("pk_penstock_lease_requests")),
    )
    moved = ", ".join((*_BOTH, *_SAID, *_HAD, *_MEASURED))
    no = "0" if op.get_bind().dialect.name == "sqlite" else "false"
    op.execute(
        f"INSERT INTO penstock_lease_requests ({moved}, heard, pause_s, ended) "
        f"SELECT {moved}, 0, 0, {no} FROM penstock_leases WHERE tenant <> '*'"
    )
    op.drop_index("ix_penstock_leases_beat", "penstock_leases")
    for name in (*_SAID, *_HAD, *_MEASURED):
        op.drop_column("penstock_leases", name)
    op.add_column("penstock_leases", sa.Column("over_since_s", sa.Double(), nullable=True))
    op.add_column("penstock_leases", sa.Column("granted", BigId, nullable=False, server_default="0"))
