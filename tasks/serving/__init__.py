"""Predictions on request: a bounded queue, a micro-batching model server, a traffic split and its metrics.

The door is lazy: `from tasks.serving import BoundedQueue` imports nothing but the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.serving.app import PredictionApp
    from tasks.serving.bounded_queue import BoundedQueue
    from tasks.serving.exposure import Deployed, Exposure, goes_to_challenger
    from tasks.serving.limits import ServingLimits
    from tasks.serving.models import (
        Answered,
        Journal,
        Loader,
        Quality,
        Recorded,
        RowFailure,
        Scores,
        ServedModel,
        Source,
    )
    from tasks.serving.ray_serve import RayServe
    from tasks.serving.running import Running, listen
    from tasks.serving.scaling import Scale
    from tasks.serving.server import ModelServer
    from tasks.serving.signature import Signature

_HOME = {
    "Answered": "models",
    "BoundedQueue": "bounded_queue",
    "Deployed": "exposure",
    "Exposure": "exposure",
    "Journal": "models",
    "Loader": "models",
    "ModelServer": "server",
    "PredictionApp": "app",
    "Quality": "models",
    "RayServe": "ray_serve",
    "Recorded": "models",
    "RowFailure": "models",
    "Running": "running",
    "Scale": "scaling",
    "Scores": "models",
    "ServedModel": "models",
    "ServingLimits": "limits",
    "Signature": "signature",
    "Source": "models",
    "goes_to_challenger": "exposure",
    "listen": "running",
}

__all__ = [
    "Answered",
    "BoundedQueue",
    "Deployed",
    "Exposure",
    "Journal",
    "Loader",
    "ModelServer",
    "PredictionApp",
    "Quality",
    "RayServe",
    "Recorded",
    "RowFailure",
    "Running",
    "Scale",
    "Scores",
    "ServedModel",
    "ServingLimits",
    "Signature",
    "Source",
    "goes_to_challenger",
    "listen",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.serving.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
