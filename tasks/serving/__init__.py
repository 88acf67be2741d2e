"""Predictions on request: a bounded queue, a micro-batching model server, a traffic split and its metrics.

The door is lazy: `from tasks.serving import BoundedQueue` imports nothing but the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.serving.bounded_queue import BoundedQueue

_HOME = {
    "BoundedQueue": "bounded_queue",
}

__all__ = ["BoundedQueue"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.serving.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
