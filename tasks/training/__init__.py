"""Trains a pipeline's network on Ray Train and turns it into a model bundle and an MLflow run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.training.records import TrainedModel

if TYPE_CHECKING:
    from tasks.training.trainer import train

__all__ = ["TrainedModel", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # torch, Ray and MLflow load only when something is trained
        from tasks.training.trainer import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
