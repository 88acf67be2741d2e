"""One SQL schema for everything that must be asked later: deployments, verdicts, runs, signals, decisions.

SQLite (one machine) or PostgreSQL (a team), by `PENSTOCK_METADATA_URL`. The records are plain and light;
`MetadataStore` brings SQLAlchemy in when it is first touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.metadata.records import (
    UNDER_WAY,
    AuditAction,
    CanaryStep,
    DagLink,
    DeploymentEvent,
    MetricPoint,
    ModelVersion,
    NewMetric,
    Projection,
    Publication,
    Scope,
    ScoringRun,
    StoredDecision,
    StoredSignals,
    StoredVerdict,
    Training,
)

if TYPE_CHECKING:
    from tasks.metadata.store import MetadataStore

__all__ = [
    "UNDER_WAY",
    "AuditAction",
    "CanaryStep",
    "DagLink",
    "DeploymentEvent",
    "MetadataStore",
    "MetricPoint",
    "ModelVersion",
    "NewMetric",
    "Projection",
    "Publication",
    "Scope",
    "ScoringRun",
    "StoredDecision",
    "StoredSignals",
    "StoredVerdict",
    "Training",
]


def __getattr__(name: str) -> Any:
    if name == "MetadataStore":
        from tasks.metadata.store import MetadataStore

        return MetadataStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
