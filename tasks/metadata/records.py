"""What the metadata store gives back. Frozen and JSON-ready; every moment is timezone-aware UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple, Protocol

from tasks.core.records import JsonRecord, Verdict

POINTER_KINDS = ("promote", "rollback", "adopt")
"""Kinds of deployment event that move the champion."""
EXPOSURE_KINDS = ("expose", "withdraw")
"""Kinds that begin, change or end the exposure of a challenger; a move of the champion ends it as well."""
KINDS = (*POINTER_KINDS, *EXPOSURE_KINDS, "bar", "unbar", "revert", "reject")
"""All kinds; `revert`: an alias moved by hand in MLflow was put back; `reject`: a person refused a promotion."""


class Owner(Protocol):
    """Whose rows are meant: a `PipelineSpec`, or a `Scope` where only the names are known (I10)."""

    @property
    def name(self) -> str: ...

    @property
    def tenant(self) -> str: ...


class Scope(NamedTuple):
    """A pipeline by its names."""

    name: str
    tenant: str = "default"


UNDER_WAY = "under way"
"""Outcome of an attempt that has not said that it ended."""


@dataclass(frozen=True)
class DeploymentEvent(JsonRecord):
    """One line of a pipeline's deployment log. Lines are only ever added."""

    event_id: int
    """1, 2, 3, ... within the pipeline, in commit order."""
    kind: str
    """One of `KINDS`."""
    version: int
    bundle_digest: str
    feature_version: str
    expected_version: int | None
    """What the writer believed to be live: the compare of the compare-and-swap."""
    previous_version: int | None
    """What was live just before this event."""
    actor: str
    reason: str
    at_utc: datetime
    """Never before the event in front of it, whatever the writers' clocks say."""
    share: float | None = None
    """Of `expose`: the share of entities that get this version's predictions from now on."""


@dataclass(frozen=True)
class ModelVersion(JsonRecord):
    """A registered version; its number is also the version number in MLflow."""

    version: int
    bundle_digest: str
    """SHA-256 over the bundle's whole tree: what every load is checked against (I9)."""
    feature_version: str
    snapshot_id: str
    training_id: str
    mlflow_model_name: str
    mlflow_run_id: str | None
    mlflow_model_uri: str | None
    url: str
    """Page of this version in the MLflow UI, as of registration."""
    created_at_utc: datetime
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Projection(JsonRecord):
    """The last alias that Penstock itself set in MLflow: what tells a crash from a hand that moved it."""

    alias: str
    version: int | None
    """None: the alias was removed."""
    event_id: int
    """Head of the deployment log that the alias was set for; 0 for an empty log."""
    set_at_utc: datetime


@dataclass(frozen=True)
class CanaryStep(JsonRecord):
    """One look at an exposed challenger: what was seen, and what followed."""

    exposure: int
    """Event id of the `expose` that was looked at."""
    version: int
    champion_version: int
    share: float
    action: str
    """`hold`, `advance`, `withdraw` or `promote`."""
    reasons: tuple[str, ...]
    evidence: dict[str, Any]
    """Exposed days and rows, errors, the paired comparison: what the action was derived from."""
    dag_run: str | None = None
    step_id: int | None = None
    """1, 2, 3, ... over the installation; None before it is kept."""
    recorded_at_utc: datetime | None = None


@dataclass(frozen=True)
class StoredVerdict(JsonRecord):
    """A gate's verdict with where it came from."""

    verdict: Verdict
    dag_run: str | None
    recorded_at_utc: datetime


@dataclass(frozen=True)
class Training(JsonRecord):
    """A finished training; `record` is the whole TrainedModel."""

    training_id: str
    bundle_digest: str
    snapshot_id: str
    feature_version: str
    mlflow_run_id: str | None
    mlflow_model_uri: str | None
    dag_run: str | None
    record: dict[str, Any]
    recorded_at_utc: datetime


@dataclass(frozen=True)
class ScoringRun(JsonRecord):
    """Where a scoring run stands."""

    run_id: str
    status: str
    """`planned`, `scored`, `published` or `verified`; it never goes back."""
    snapshot_id: str | None
    model_version: int | None
    bundle_digest: str | None
    feature_version: str | None
    exposed_version: int | None
    """The challenger whose predictions a share of the entities got in this run."""
    first_day: date | None
    last_day: date | None
    rows: int | None
    shards: int | None
    dead_letters: int | None
    cpu_seconds: float | None
    gpu_seconds: float | None
    wall_s: float | None
    dag_run: str | None
    record: dict[str, Any]
    planned_at_utc: datetime
    updated_at_utc: datetime


@dataclass(frozen=True)
class Publication(JsonRecord):
    """A run whose predictions became visible."""

    run_id: str
    table_version: int
    rows: int
    files: int
    days: tuple[date, ...]
    record: dict[str, Any]
    published_at_utc: datetime


@dataclass(frozen=True)
class DagLink(JsonRecord):
    """One piece of evidence on the page of an Airflow DAG run."""

    dag_id: str
    dag_run_id: str
    task_id: str
    map_index: int
    kind: str
    url: str
    summary: dict[str, Any]
    recorded_at_utc: datetime


@dataclass(frozen=True)
class StoredSignals(JsonRecord):
    """What the monitor measured of one day of one scoring run."""

    day: date
    run_id: str
    model_version: int
    signals: dict[str, Any]
    measured_at_utc: datetime


@dataclass(frozen=True)
class StoredDecision(JsonRecord):
    """What the monitor decided, and why."""

    decision_id: int
    action: str
    verdict: str
    first_day: date | None
    last_day: date | None
    model_version: int | None
    reasons: tuple[str, ...]
    actor: str
    dag_run: str | None
    record: dict[str, Any]
    decided_at_utc: datetime


@dataclass(frozen=True)
class AuditAction(JsonRecord):
    """Something that happened to explanation data of one day: archived, expired, restored, erased."""

    kind: str
    day: date
    rows: int
    key: str
    actor: str
    reason: str
    record: dict[str, Any]
    at_utc: datetime


@dataclass(frozen=True)
class NewMetric(JsonRecord):
    """A measured value that is about to be kept. Its key: metric, model version, day, source."""

    metric: str
    model_version: int
    day: date
    """The day that it is about; of a window its last day."""
    value: float
    source: str
    """`training`, `evaluation`, `canary` or `monitor`."""
    source_run: str
    """What measured it: a training's id, a key of evidence, a scoring run."""
    low: float | None = None
    high: float | None = None
    """Ends of its interval, where one was measured."""
    rows: int | None = None
    """How many rows it stands on."""


@dataclass(frozen=True)
class MetricPoint(NewMetric):
    """A measured value as it is kept."""

    measurement: int = 1
    """1, 2, 3, ... within its key; the highest holds."""
    measured_at_utc: datetime | None = None
