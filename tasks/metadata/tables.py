"""The tables as they are now; `migrations/` is how a database gets here.

Every row carries its tenant and pipeline, first in every key, so that one tenant's rows are one range (I10).
Names start with `penstock_`: MLflow, which may share the database, has a `model_versions` of its own.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    Double,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from tasks.metadata.column_types import BigId, JsonText, UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _owner(*, key: bool) -> list[Column[Any]]:
    return [
        Column("tenant", String(48), primary_key=key, nullable=False),
        Column("pipeline", String(48), primary_key=key, nullable=False),
    ]


trainings = Table(
    "penstock_trainings",
    metadata,
    *_owner(key=True),
    Column("training_id", String(64), primary_key=True),
    Column("bundle_digest", String(64), nullable=False),
    Column("snapshot_id", String(64), nullable=False),
    Column("feature_version", String(128), nullable=False),
    Column("mlflow_run_id", String(64)),
    Column("mlflow_model_uri", Text),
    Column("dag_run", String(250)),
    Column("record", JsonText, nullable=False),
    Column("recorded_at_utc", UtcDateTime, nullable=False),
    Index("ix_penstock_trainings_recent", "tenant", "pipeline", "recorded_at_utc"),
    Index("ix_penstock_trainings_bundle", "tenant", "pipeline", "bundle_digest"),
)

verdicts = Table(
    "penstock_verdicts",
    metadata,
    Column("id", BigId, primary_key=True),
    *_owner(key=False),
    Column("gate", String(32), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("decided_at_utc", UtcDateTime, nullable=False),
    Column("dag_run", String(250)),
    Column("record", JsonText, nullable=False),
    Column("record_digest", String(64), nullable=False),
    Column("recorded_at_utc", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_verdicts_record"),
    Index("ix_penstock_verdicts_subject", "tenant", "pipeline", "subject", "gate", "id"),
    Index("ix_penstock_verdicts_gate", "tenant", "pipeline", "gate", "id"),
    Index("ix_penstock_verdicts_dag_run", "tenant", "pipeline", "dag_run"),
)

scoring_runs = Table(
    "penstock_scoring_runs",
    metadata,
    *_owner(key=True),
    Column("run_id", String(64), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("snapshot_id", String(64)),
    Column("model_version", Integer),
    Column("bundle_digest", String(64)),
    Column("feature_version", String(128)),
    Column("exposed_version", Integer),
    Column("first_day", Date),
    Column("last_day", Date),
    Column("rows", BigId),
    Column("shards", Integer),
    Column("dead_letters", BigId),
    Column("cpu_seconds", Float),
    Column("gpu_seconds", Float),
    Column("wall_s", Float),
    Column("dag_run", String(250)),
    Column("record", JsonText, nullable=False),
    Column("planned_at_utc", UtcDateTime, nullable=False),
    Column("updated_at_utc", UtcDateTime, nullable=False),
    Index("ix_penstock_scoring_runs_recent", "tenant", "pipeline", "planned_at_utc"),
    Index("ix_penstock_scoring_runs_status", "tenant", "pipeline", "status", "planned_at_utc"),
)

publications = Table(
    "penstock_publications",
    metadata,
    *_owner(key=True),
    Column("run_id", String(64), primary_key=True),
    Column("table_version", BigId, nullable=False),
    Column("rows", BigId, nullable=False),
    Column("files", Integer, nullable=False),
    Column("days", JsonText, nullable=False),
    Column("record", JsonText, nullable=False),
    Column("published_at_utc", UtcDateTime, nullable=False),
    Index("ix_penstock_publications_recent", "tenant", "pipeline", "published_at_utc"),
)

publication_days = Table(
    "penstock_publication_days",
    metadata,
    *_owner(key=True),
    Column("day", Date, primary_key=True),
    Column("run_id", String(64), nullable=False),
    Column("table_version", BigId, nullable=False),
    Index("ix_penstock_publication_days_run", "tenant", "pipeline", "run_id"),
)

deployment_events = Table(
    "penstock_deployment_events",
    metadata,
    *_owner(key=True),
    # Numbered by the writer as head + 1: the primary key itself refuses a second event on the same head (I6).
    Column("event_id", BigId, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("moves_pointer", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("bundle_digest", String(64), nullable=False),
    Column("feature_version", String(128), nullable=False),
    Column("expected_version", Integer),
    Column("previous_version", Integer),
    Column("actor", String(250), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at_utc", UtcDateTime, nullable=False),
    Column("share", Double),
    Index("ix_penstock_deployment_events_latest", "tenant", "pipeline", "moves_pointer", "event_id"),
    Index(
        "ix_penstock_deployment_events_live_at", "tenant", "pipeline", "moves_pointer", "at_utc", "event_id"
    ),
    Index("ix_penstock_deployment_events_recent", "tenant", "pipeline", "at_utc"),
    Index("ix_penstock_deployment_events_all_recent", "at_utc"),
)

model_versions = Table(
    "penstock_model_versions",
    metadata,
    *_owner(key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("bundle_digest", String(64), nullable=False),
    Column("feature_version", String(128), nullable=False),
    Column("snapshot_id", String(64), nullable=False),
    Column("training_id", String(64), nullable=False),
    Column("mlflow_model_name", String(256), nullable=False),
    Column("mlflow_run_id", String(64)),
    Column("mlflow_model_uri", Text),
    Column("url", Text, nullable=False),
    Column("metrics", JsonText, nullable=False),
    Column("created_at_utc", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "pipeline", "bundle_digest", name="uq_penstock_model_versions_bundle"),
)

alias_projections = Table(
    "penstock_alias_projections",
    metadata,
    *_owner(key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer),
    Column("event_id", BigId, nullable=False),
    Column("set_at_utc", UtcDateTime, nullable=False),
)

dag_links = Table(
    "penstock_dag_links",
    metadata,
    *_owner(key=True),
    Column("dag_id", String(250), primary_key=True),
    Column("dag_run_id", String(250), primary_key=True),
    Column("task_id", String(250), primary_key=True),
    Column("map_index", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("summary", JsonText, nullable=False),
    Column("recorded_at_utc", UtcDateTime, nullable=False),
)

day_signals = Table(
    "penstock_day_signals",
    metadata,
    *_owner(key=True),
    Column("day", Date, primary_key=True),
    Column("run_id", String(64), primary_key=True),
    Column("model_version", Integer, nullable=False),
    Column("signals", JsonText, nullable=False),
    Column("measured_at_utc", UtcDateTime, nullable=False),
)

decisions = Table(
    "penstock_decisions",
    metadata,
    Column("id", BigId, primary_key=True),
    *_owner(key=False),
    Column("action", String(64), nullable=False),
    Column("verdict", String(64), nullable=False),
    Column("first_day", Date),
    Column("last_day", Date),
    Column("model_version", Integer),
    Column("reasons", JsonText, nullable=False),
    Column("actor", String(250), nullable=False),
    Column("dag_run", String(250)),
    Column("record", JsonText, nullable=False),
    Column("record_digest", String(64), nullable=False),
    Column("decided_at_utc", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_decisions_record"),
    Index("ix_penstock_decisions_recent", "tenant", "pipeline", "decided_at_utc"),
)

audit_actions = Table(
    "penstock_audit_actions",
    metadata,
    Column("id", BigId, primary_key=True),
    *_owner(key=False),
    Column("kind", String(32), nullable=False),
    Column("day", Date, nullable=False),
    Column("rows", BigId, nullable=False),
    Column("key", Text, nullable=False),
    Column("actor", String(250), nullable=False),
    Column("reason", Text, nullable=False),
    Column("record", JsonText, nullable=False),
    Column("record_digest", String(64), nullable=False),
    Column("at_utc", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_audit_actions_record"),
    Index("ix_penstock_audit_actions_day", "tenant", "pipeline", "day"),
    Index("ix_penstock_audit_actions_recent", "tenant", "pipeline", "at_utc"),
)

metrics = Table(
    "penstock_metrics",
    metadata,
    *_owner(key=True),
    Column("metric", String(250), primary_key=True),
    Column("model_version", Integer, primary_key=True, autoincrement=False),
    Column("day", Date, primary_key=True),
    Column("source", String(32), primary_key=True),
    Column("measurement", Integer, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    Column("low", Double),
    Column("high", Double),
    Column("rows", BigId),
    Column("source_run", String(250), nullable=False),
    Column("measured_at_utc", UtcDateTime, nullable=False),
    Index(
        "ix_penstock_metrics_by_day",
        *("tenant", "pipeline", "metric", "day", "model_version", "source", "measurement"),
    ),
)

canary_steps = Table(
    "penstock_canary_steps",
    metadata,
    Column("id", BigId, primary_key=True),
    *_owner(key=False),
    Column("exposure", BigId, nullable=False),
    Column("version", Integer, nullable=False),
    Column("champion_version", Integer, nullable=False),
    Column("share", Double, nullable=False),
    Column("action", String(16), nullable=False),
    Column("reasons", JsonText, nullable=False),
    Column("evidence", JsonText, nullable=False),
    Column("dag_run", String(250)),
    Column("record_digest", String(64), nullable=False),
    Column("recorded_at_utc", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "pipeline", "record_digest", name="uq_penstock_canary_steps_record"),
    Index("ix_penstock_canary_steps_version", "tenant", "pipeline", "version", "id"),
)

alerts = Table(
    "penstock_alerts",
    metadata,
    *_owner(key=True),
    Column("kind", String(64), primary_key=True),
    Column("incident", String(64), primary_key=True),
    Column("severity", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("headline", Text, nullable=False),
    Column("since", String(64), nullable=False),
    Column("opened_at_utc", UtcDateTime, nullable=False),
    Column("observed_at_utc", UtcDateTime, nullable=False),
    Column("resolved_at_utc", UtcDateTime),
    Column("record", JsonText, nullable=False),
    Index("ix_penstock_alerts_status", "tenant", "pipeline", "status", "observed_at_utc"),
)

alert_deliveries = Table(
    "penstock_alert_deliveries",
    metadata,
    *_owner(key=True),
    Column("kind", String(64), primary_key=True),
    Column("incident", String(64), primary_key=True),
    Column("channel", String(32), primary_key=True),
    Column("phase", String(32), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("due_at_utc", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("message_id", String(64)),
    Column("problem", Text),
    Column("tried_at_utc", UtcDateTime),
    Column("sent_at_utc", UtcDateTime),
    Index("ix_penstock_alert_deliveries_status", "tenant", "pipeline", "status", "due_at_utc"),
    Index("ix_penstock_alert_deliveries_sent", "sent_at_utc"),
)


def _made() -> list[Column[Any]]:
    """What the workers of an attempt have made."""
    return [
        Column("rows", BigId, nullable=False),
        Column("bytes_read", BigId),  # of rows of older releases nothing is known
        Column("bytes_written", BigId, nullable=False),
        Column("cpu_seconds", Double, nullable=False),
        Column("gpu_seconds", Double, nullable=False),
    ]


def _asked() -> list[Column[Any]]:
    """What an attempt asks for, and has."""
    return [
        Column("kind", String(16), nullable=False),
        Column("holder", String(64), nullable=False),
        Column("gpus", Double, nullable=False),
        Column("cpus", Double, nullable=False),
        Column("memory_gib", Double, nullable=False),
        Column("least", Integer, nullable=False),
        Column("most", Integer, nullable=False),
        Column("reclaimable", Boolean, nullable=False),
        Column("workers", Integer, nullable=False),
    ]


lease_requests = Table(
    "penstock_lease_requests",
    metadata,
    *_owner(key=True),
    Column("run_id", String(64), primary_key=True),
    *_asked(),
    Column("heard", BigId, nullable=False),
    Column("beat_s", Double, nullable=False),
    Column("pause_s", Double, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("ends_in_s", Double),
    Column("starts_in_s", Double),
    Column("reason", Text, nullable=False),
    Column("allocated_s", Double, nullable=False),
    Column("used_s", Double, nullable=False),
    Column("wasted_s", Double, nullable=False),
    *_made(),
    Column("asked_at_utc", UtcDateTime, nullable=False),
    Column("beat_at_utc", UtcDateTime, nullable=False),
)
"""What each run with workers, or that waits for some, says of itself; written by its own driver and without a lock that others wait for."""

leases = Table(
    "penstock_leases",
    metadata,
    *_owner(key=True),
    Column("run_id", String(64), primary_key=True),
    *_asked(),
    Column("priority", Integer, nullable=False),
    Column("since_s", Double, nullable=False),
    Column("beat_s", Double, nullable=False),
    Column("width", Integer, nullable=False),
    Column("over_since_s", Double),
    Column("granted", BigId, nullable=False, server_default="0"),
    Column("asked_at_utc", UtcDateTime, nullable=False),
    Column("beat_at_utc", UtcDateTime, nullable=False),
    Column("changed", BigId, nullable=False, server_default="0"),
    Index("ix_penstock_leases_changed", "changed"),
)
"""What each of them was granted, and on which request. Written by whoever settles the ledger; a tenant's own login only reads it.
The row of `CLOCK` holds the ledger's time and its last revision."""

lease_ends = Table(
    "penstock_lease_ends",
    metadata,
    *_owner(key=True),
    Column("run_id", String(64), primary_key=True),
    Column("changed", BigId, nullable=False),
    Column("ended_s", Double, nullable=False),
    Index("ix_penstock_lease_ends_changed", "changed"),
)
"""Which leases have ended, by revision, for those who have the rest in memory; kept for an hour."""

CLOCK = {"tenant": "*", "pipeline": "*", "run_id": "*"}

allocations = Table(
    "penstock_allocations",
    metadata,
    *_owner(key=True),
    Column("run_id", String(64), primary_key=True),
    Column("holder", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("gpus", Double, nullable=False),
    Column("cpus", Double, nullable=False),
    Column("allocated_s", Double, nullable=False),
    Column("used_s", Double, nullable=False),
    Column("idle_s", Double, nullable=False),
    Column("wasted_s", Double, nullable=False),
    *_made(),
    Column("outcome", String(16), nullable=False),
    Column("from_utc", UtcDateTime, nullable=False),
    Column("until_utc", UtcDateTime, nullable=False),
    Index("ix_penstock_allocations_recent", "tenant", "until_utc"),
)

reservations = Table(
    "penstock_reservations",
    metadata,
    *_owner(key=True),
    Column("kind", String(16), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("cost", Double),
    Column("until_utc", UtcDateTime, nullable=False),
)
"""What has been begun under a budget and is not in the ledger of costs yet; no cost: it cannot be foreseen."""

stored = Table(
    "penstock_stored",
    metadata,
    *_owner(key=True),
    Column("day", Date, primary_key=True),
    Column("part", String(32), primary_key=True),
    Column("bytes", BigId, nullable=False),
)
"""What a pipeline held in the store when it was looked at, a day at most once."""

HISTORY = (
    "penstock_deployment_events",
    "penstock_model_versions",
    "penstock_trainings",
    "penstock_verdicts",
    "penstock_decisions",
    "penstock_audit_actions",
    "penstock_metrics",
    "penstock_canary_steps",
)
"""Tables that refuse UPDATE and DELETE by trigger."""
