"""From a source to immutable snapshots, and from matured days to labels.

The door is lazy: knowing that this room exists costs nothing, reading a source loads pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.core.partitions import load_snapshot
    from tasks.data.matured import labels
    from tasks.data.new_pipeline import scaffold
    from tasks.data.snapshot import take_snapshot
    from tasks.data.sources import source_days

_HOME = {
    "labels": "tasks.data.matured",
    "load_snapshot": "tasks.core.partitions",
    "scaffold": "tasks.data.new_pipeline",
    "source_days": "tasks.data.sources",
    "take_snapshot": "tasks.data.snapshot",
}

__all__ = ["labels", "load_snapshot", "scaffold", "source_days", "take_snapshot"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
