"""Fits a network in this process, without Ray: the same loop on the same seed as a worker's."""

from __future__ import annotations

import torch

from tasks.core.object_store import open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.model.network import build_network
from tasks.training.dataset import TrainingData
from tasks.training.fit import Checkpoints, Fitted, fit_network


def fit_in_process(
    settings: Settings,
    spec: PipelineSpec,
    data: TrainingData,
    *,
    training_id: str,
    model_source: str,
    model_origin: str,
) -> Fitted:
    """What `fit_on_ray` does with one worker. Checkpoints lie in the pipeline's store."""
    torch.manual_seed(spec.training.seed)
    network = build_network(model_source, data.network, origin=model_origin)
    checkpoints = Checkpoints(open_store(settings, prefix=spec.prefix), training_id)
    return fit_network(network, data.fit, data.tuning, spec.training, checkpoints)
