"""Metric series of models; append-only as the other tables of history.

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE = "penstock_metrics"


def upgrade() -> None:
    """Create the table, its index and its triggers; PostgreSQL's trigger function is there since 0002."""
    op.create_table(
        TABLE,
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("metric", sa.String(length=250), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("measurement", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("rows", BigId, nullable=True),
        sa.Column("source_run", sa.String(length=250), nullable=False),
        sa.Column("measured_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant",
            "pipeline",
            "metric",
            "model_version",
            "day",
            "source",
            "measurement",
            name=op.f("pk_penstock_metrics"),
        ),
    )
    op.create_index(
        "ix_penstock_metrics_by_day",
        TABLE,
        ["tenant", "pipeline", "metric", "day", "model_version", "source", "measurement"],
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {TABLE}_no_{verb} BEFORE {verb.upper()} ON {TABLE} BEGIN "
                f"SELECT RAISE(ABORT, '{TABLE} is append-only, {verb} is refused'); END"
            )
        return
    op.execute(
        f"CREATE TRIGGER {TABLE}_no_change BEFORE UPDATE OR DELETE ON {TABLE} "
        "FOR EACH ROW EXECUTE FUNCTION penstock_append_only()"
    )
    op.execute(
        f"CREATE TRIGGER {TABLE}_no_truncate BEFORE TRUNCATE ON {TABLE} "
        "FOR EACH STATEMENT EXECUTE FUNCTION penstock_append_only()"
    )
