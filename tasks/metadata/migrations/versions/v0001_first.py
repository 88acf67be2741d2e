"""The first schema: deployments, versions, trainings, verdicts, runs, signals, decisions.

Revision: 0001
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId, JsonText, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table of the first release."""
    op.create_table(
        "penstock_alias_projections",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("event_id", BigId, nullable=False),
        sa.Column("set_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "alias", name=op.f("pk_penstock_alias_projections")),
    )
    op.create_table(
        "penstock_audit_actions",
        sa.Column("id", BigId, nullable=False),
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("rows", BigId, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=250), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("record", JsonText(), nullable=False),
        sa.Column("record_digest", sa.String(length=64), nullable=False),
        sa.Column("at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_penstock_audit_actions")),
        sa.UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_audit_actions_record"),
    )
    op.create_index(
        "ix_penstock_audit_actions_day", "penstock_audit_actions", ["tenant", "pipeline", "day"], unique=False
    )
    op.create_index(
        "ix_penstock_audit_actions_recent",
        "penstock_audit_actions",
        ["tenant", "pipeline", "at_utc"],
        unique=False,
    )
    op.create_table(
        "penstock_dag_links",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("dag_id", sa.String(length=250), nullable=False),
        sa.Column("dag_run_id", sa.String(length=250), nullable=False),
        sa.Column("task_id", sa.String(length=250), nullable=False),
        sa.Column("map_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("summary", JsonText(), nullable=False),
        sa.Column("recorded_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant",
            "pipeline",
            "dag_id",
            "dag_run_id",
            "task_id",
            "map_index",
            "kind",
            name=op.f("pk_penstock_dag_links"),
        ),
    )
    op.create_table(
        "penstock_day_signals",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("signals", JsonText(), nullable=False),
        sa.Column("measured_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "day", "run_id", name=op.f("pk_penstock_day_signals")),
    )
    op.create_table(
        "penstock_decisions",
        sa.Column("id", BigId, nullable=False),
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=64), nullable=False),
        sa.Column("first_day", sa.Date(), nullable=True),
        sa.Column("last_day", sa.Date(), nullable=True),
        sa.Column("model_version", sa.Integer(), nullable=True),
        sa.Column("reasons", JsonText(), nullable=False),
        sa.Column("actor", sa.String(length=250), nullable=False),
        sa.Column("dag_run", sa.String(length=250), nullable=True),
        sa.Column("record", JsonText(), nullable=False),
        sa.Column("record_digest", sa.String(length=64), nullable=False),
        sa.Column("decided_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_penstock_decisions")),
        sa.UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_decisions_record"),
    )
    op.create_index(
        "ix_penstock_decisions_recent",
        "penstock_decisions",
        ["tenant", "pipeline", "decided_at_utc"],
        unique=False,
    )
    op.create_table(
        "penstock_deployment_events",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("event_id", BigId, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("moves_pointer", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("bundle_digest", sa.String(length=64), nullable=False),
        sa.Column("feature_version", sa.String(length=128), nullable=False),
        sa.Column("expected_version", sa.Integer(), nullable=True),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("actor", sa.String(length=250), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "event_id", name=op.f("pk_penstock_deployment_events")),
    )
    op.create_index(
        "ix_penstock_deployment_events_all_recent", "penstock_deployment_events", ["at_utc"], unique=False
    )
    op.create_index(
        "ix_penstock_deployment_events_latest",
        "penstock_deployment_events",
        ["tenant", "pipeline", "moves_pointer", "event_id"],
        unique=False,
    )
    op.create_index(
        "ix_penstock_deployment_events_live_at",
        "penstock_deployment_events",
        ["tenant", "pipeline", "moves_pointer", "at_utc", "event_id"],
        unique=False,
    )
    op.create_index(
        "ix_penstock_deployment_events_recent",
        "penstock_deployment_events",
        ["tenant", "pipeline", "at_utc"],
        unique=False,
    )
    op.create_table(
        "penstock_model_versions",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle_digest", sa.String(length=64), nullable=False),
        sa.Column("feature_version", sa.String(length=128), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("training_id", sa.String(length=64), nullable=False),
        sa.Column("mlflow_model_name", sa.String(length=256), nullable=False),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("mlflow_model_uri", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("metrics", JsonText(), nullable=False),
        sa.Column("created_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "version", name=op.f("pk_penstock_model_versions")),
        sa.UniqueConstraint("tenant", "pipeline", "bundle_digest", name="uq_penstock_model_versions_bundle"),
    )
    op.create_table(
        "penstock_publication_days",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("table_version", BigId, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "day", name=op.f("pk_penstock_publication_days")),
    )
    op.create_index(
        "ix_penstock_publication_days_run",
        "penstock_publication_days",
        ["tenant", "pipeline", "run_id"],
        unique=False,
    )
    op.create_table(
        "penstock_publications",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("table_version", BigId, nullable=False),
        sa.Column("rows", BigId, nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("days", JsonText(), nullable=False),
        sa.Column("record", JsonText(), nullable=False),
        sa.Column("published_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "run_id", name=op.f("pk_penstock_publications")),
    )
    op.create_index(
        "ix_penstock_publications_recent",
        "penstock_publications",
        ["tenant", "pipeline", "published_at_utc"],
        unique=False,
    )
    op.create_table(
        "penstock_scoring_runs",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("model_version", sa.Integer(), nullable=True),
        sa.Column("bundle_digest", sa.String(length=64), nullable=True),
        sa.Column("feature_version", sa.String(length=128), nullable=True),
        sa.Column("first_day", sa.Date(), nullable=True),
        sa.Column("last_day", sa.Date(), nullable=True),
        sa.Column("rows", BigId, nullable=True),
        sa.Column("shards", sa.Integer(), nullable=True),
        sa.Column("dead_letters", BigId, nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=True),
        sa.Column("gpu_seconds", sa.Float(), nullable=True),
        sa.Column("wall_s", sa.Float(), nullable=True),
        sa.Column("dag_run", sa.String(length=250), nullable=True),
        sa.Column("record", JsonText(), nullable=False),
        sa.Column("planned_at_utc", UtcDateTime(), nullable=False),
        sa.Column("updated_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "run_id", name=op.f("pk_penstock_scoring_runs")),
    )
    op.create_index(
        "ix_penstock_scoring_runs_recent",
        "penstock_scoring_runs",
        ["tenant", "pipeline", "planned_at_utc"],
        unique=False,
    )
    op.create_index(
        "ix_penstock_scoring_runs_status",
        "penstock_scoring_runs",
        ["tenant", "pipeline", "status", "planned_at_utc"],
        unique=False,
    )
    op.create_table(
        "penstock_trainings",
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("training_id", sa.String(length=64), nullable=False),
        sa.Column("bundle_digest", sa.String(length=64), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("feature_version", sa.String(length=128), nullable=False),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("mlflow_model_uri", sa.Text(), nullable=True),
        sa.Column("dag_run", sa.String(length=250), nullable=True),
        sa.Column("record", JsonText(), nullable=False),
        sa.Column("recorded_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "training_id", name=op.f("pk_penstock_trainings")),
    )
    op.create_index(
        "ix_penstock_trainings_bundle",
        "penstock_trainings",
        ["tenant", "pipeline", "bundle_digest"],
        unique=False,
    )
    op.create_index(
        "ix_penstock_trainings_recent",
        "penstock_trainings",
        ["tenant", "pipeline", "recorded_at_utc"],
        unique=False,
    )
    op.create_table(
        "penstock_verdicts",
        sa.Column("id", BigId, nullable=False),
        sa.Column("tenant", sa.String(length=48), nullable=False),
        sa.Column("pipeline", sa.String(length=48), nullable=False),
        sa.Column("gate", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("decided_at_utc", UtcDateTime(), nullable=False),
        sa.Column("dag_run", sa.String(length=250), nullable=True),
        sa.Column("record", JsonText(), nullable=False),
        sa.Column("record_digest", sa.String(length=64), nullable=False),
        sa.Column("recorded_at_utc", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_penstock_verdicts")),
        sa.UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_verdicts_record"),
    )
    op.create_index(
        "ix_penstock_verdicts_dag_run", "penstock_verdicts", ["tenant", "pipeline", "dag_run"], unique=False
    )
    op.create_index(
        "ix_penstock_verdicts_gate", "penstock_verdicts", ["tenant", "pipeline", "gate", "id"], unique=False
    )
    op.create_index(
        "ix_penstock_verdicts_subject",
        "penstock_verdicts",
        ["tenant", "pipeline", "subject", "gate", "id"],
        unique=False,
    )
