"""Why was this prediction made: explanation and provenance of every prediction (docs/audit.md).

The door is lazy: importing it loads neither pyarrow nor Delta.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.audit.lookup import AuditPage, AuditRecord, InvalidQuery, by_prediction, by_window
    from tasks.audit.retention import Retained, retain
    from tasks.audit.rows import audit_table

_HOME = {
    "AuditPage": "lookup",
    "AuditRecord": "lookup",
    "InvalidQuery": "lookup",
    "Retained": "retention",
    "audit_table": "rows",
    "by_prediction": "lookup",
    "by_window": "lookup",
    "retain": "retention",
}

__all__ = [
    "AuditPage",
    "AuditRecord",
    "InvalidQuery",
    "Retained",
    "audit_table",
    "by_prediction",
    "by_window",
    "retain",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.audit.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
