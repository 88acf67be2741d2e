"""Why was this prediction made: explanation and provenance of every prediction (docs/audit.md).

The door is lazy: importing it loads neither pyarrow nor Delta.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.audit.archive import ArchivedDate, archived_dates
    from tasks.audit.lookup import by_prediction, by_window
    from tasks.audit.query import AuditFilter, InvalidQuery
    from tasks.audit.reader import AuditReader
    from tasks.audit.record import AuditPage, AuditRecord
    from tasks.audit.retention import Retained, retain
    from tasks.audit.rows import audit_table
    from tasks.audit.window import window_table

_HOME = {
    "ArchivedDate": "archive",
    "AuditFilter": "query",
    "AuditPage": "record",
    "AuditReader": "reader",
    "AuditRecord": "record",
    "InvalidQuery": "query",
    "Retained": "retention",
    "archived_dates": "archive",
    "audit_table": "rows",
    "by_prediction": "lookup",
    "by_window": "lookup",
    "retain": "retention",
    "window_table": "window",
}

__all__ = [
    "ArchivedDate",
    "AuditFilter",
    "AuditPage",
    "AuditReader",
    "AuditRecord",
    "InvalidQuery",
    "Retained",
    "archived_dates",
    "audit_table",
    "by_prediction",
    "by_window",
    "retain",
    "window_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.audit.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
