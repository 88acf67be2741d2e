"""What several training tests call."""

from __future__ import annotations

from datetime import date
from typing import Any

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.model import FeatureCode, build_network
from tasks.training.dataset import TrainingData, load_training_data
from tasks.training.fit import Checkpoints, Fitted, fit_network

VALIDATION_FIRST_DAY = date(2024, 1, 29)


def fit_here(
    settings: Settings,
    spec: PipelineSpec,
    data: TrainingData,
    *,
    training_id: str,
    model_source: str,
    model_origin: str,
    after_epoch: Any = None,
) -> Fitted:
    """`fit_on_ray` without Ray: the same loop in this process."""
    import torch

    torch.manual_seed(spec.training.seed)
    network = build_network(model_source, data.network, origin=model_origin)
    checkpoints = Checkpoints(open_store(settings, prefix=spec.prefix), training_id)
    return fit_network(network, data.fit, data.tuning, spec.training, checkpoints, after_epoch=after_epoch)


def load(
    settings: Settings, spec: PipelineSpec, snapshot: Snapshot, first: date = VALIDATION_FIRST_DAY
) -> TrainingData:
    """`load_training_data` with the pipeline's own features.py."""
    code = FeatureCode.from_file(settings.pipelines_dir / spec.name / "features.py")
    store = open_store(settings, prefix=spec.prefix)
    return load_training_data(store, spec, snapshot, code, validation_first_day=first)


def model_source(settings: Settings) -> str:
    return (settings.pipelines_dir / "toy" / "model.py").read_text()
