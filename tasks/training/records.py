"""What training leaves behind, and its identity."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from tasks.core.ids import digest_json
from tasks.core.records import JsonRecord
from tasks.core.spec import PipelineSpec

TRAINING_VERSION = "1"
"""Moves when Penstock's own training changes results, so that old results are not taken for new ones."""


@dataclass(frozen=True)
class TrainedModel(JsonRecord):
    """A finished training: its bundle is in the store and its run in MLflow."""

    training_id: str
    pipeline: str
    bundle_digest: str
    mlflow_run_id: str
    mlflow_experiment_id: str
    mlflow_model_uri: str
    feature_version: str
    snapshot_id: str
    validation_first_day: date
    metrics: dict[str, float]
    """`validation_*` over the validation days, `tuning_*` over the days that chose the epoch, row counts."""
    epochs: int
    """Epochs run."""
    best_epoch: int
    """The epoch whose weights were kept, from 1."""
    train_s: float
    """Wall seconds of all epochs."""
    workers: int = 1
    gpus_per_worker: float = 0.0


@dataclass(frozen=True)
class EpochRecord(JsonRecord):
    """One epoch of training; losses are mean log losses in nats."""

    epoch: int
    train_loss: float
    tuning_loss: float
    tuning_auc: float
    wall_s: float


def training_id(
    spec: PipelineSpec,
    *,
    snapshot_id: str,
    feature_version: str,
    model_source: str,
    validation_first_day: date,
) -> str:
    """The identity of a training, 16 hex digits: equal inputs give the same model, so they are one training."""
    return digest_json(
        {
            "training_version": TRAINING_VERSION,
            "pipeline": spec.name,
            "snapshot_id": snapshot_id,
            "feature_version": feature_version,
            "model_source": model_source,
            "validation_first_day": validation_first_day.isoformat(),
            "label": spec.label.model_dump(mode="json"),
            "features": spec.features.model_dump(mode="json"),
            "feature_order": list(spec.features.names),
            "training": spec.training.model_dump(mode="json"),
            "watched_pairs": [list(pair) for pair in spec.drift.pairs],
            **(
                {"null_when": spec.drift.model_dump(mode="json")["null_when"]} if spec.drift.null_when else {}
            ),
        }
    )[:16]
