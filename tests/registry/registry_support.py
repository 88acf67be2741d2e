"""Records that the tests of the registry start from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.core import Finding, PipelineSpec, Settings, Verdict
from tasks.metadata import MetadataStore, ModelVersion

Trained = dict[str, Any]


def trained_record(letter: str) -> Trained:
    return {
        "training_id": f"t-{letter}",
        "bundle_digest": letter * 64,
        "mlflow_run_id": None,
        "mlflow_model_uri": None,
        "feature_version": f"1+{letter * 12}",
        "snapshot_id": "snapshot-1",
        "metrics": {"auc": 0.7123456, "brier": 0.1987},
        "epochs": 5,
    }


def passing(spec: PipelineSpec, letter: str, outcome: str = "pass") -> Verdict:
    findings = (
        Finding("auc", outcome, "0.712 [0.70, 0.72] must be above 0.6", 0.712, 0.6),
        Finding("slice | carrier", "warn", "<b>UA</b> has few rows", 12.0, 50.0),
    )
    return Verdict("evaluation", spec.name, letter * 64, outcome, findings, "2024-05-01T12:00:00.000Z")


def record_versions(settings: Settings, spec: PipelineSpec, count: int) -> MetadataStore:
    """Registered versions 1..count in the metadata store alone, as if MLflow had been up at registration."""
    store = MetadataStore.open(settings)
    for number in range(1, count + 1):
        store.record_model_version(
            spec,
            ModelVersion(
                version=number,
                bundle_digest=f"{number:064x}",
                feature_version="1+abc",
                snapshot_id="s",
                training_id=f"t{number}",
                mlflow_model_name=spec.model_name,
                mlflow_run_id=None,
                mlflow_model_uri=None,
                url="",
                created_at_utc=datetime(2024, 1, 1, tzinfo=UTC),
            ),
        )
    return store
