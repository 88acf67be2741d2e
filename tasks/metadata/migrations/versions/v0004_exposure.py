"""Exposure of challengers: its share in the deployment log, the exposed version of a run, and the canary's steps.

Revision: 0004
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId, JsonText, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE = "penstock_canary_steps"


def upgrade() -> None:
    """Add both columns, create the table, its index and its triggers."""
    op.add_column("penstock_deployment_events", sa.Column("share", sa.Double(), nullable=True))
    op.add_column("penstock_scoring_runs", sa.Column("exposed_version", sa.Integer(), nullable=True))
    op.create_table(
        TABLE,
        sa.Column("id", BigId, nullable=False),
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("exposure", BigId, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("champion_version", sa.Integer(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("reasons", JsonText(), nullable=False),
        sa.Column("evidence", JsonText(), nullable=False),
        sa.Column("dag_run", sa.String(length=250), nullable=True),
        sa.Column("record_digest", sa.String(length=64), nullable=False),
        sa.Column("recorded_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_penstock_canary_steps")),
        sa.UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_canary_steps_record"),
    )
    op.create_index("ix_penstock_canary_steps_version", TABLE, ["tenant", "pipeline", "version", "id"])
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
