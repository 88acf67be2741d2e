"""Why was this prediction made: explanation and provenance of every prediction (docs/audit.md).

The door is lazy: importing it loads neither pyarrow nor Delta.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.audit.archive import ArchivedDate, archived_dates
    from tasks.audit.erasure import KEPT_OF_AUDIT, Erased, complete_erasures, erase
    from tasks.audit.lookup import by_prediction, by_window
    from tasks.audit.query import AuditFilter, InvalidQuery
    from tasks.audit.record import AuditPage, AuditRecord
    from tasks.audit.restore import Restored, restore_dates
    from tasks.audit.retention import Retained, retain
    from tasks.audit.rows import audit_table

_HOME = {
    "ArchivedDate": "archive",
    "AuditFilter": "query",
    "AuditPage": "record",
    "AuditRecord": "record",
    "InvalidQuery": "query",
    "Erased": "erasure",
    "KEPT_OF_AUDIT": "erasure",
    "Restored": "restore",
    "Retained": "retention",
    "archived_dates": "archive",
    "audit_table": "rows",
    "by_prediction": "lookup",
    "by_window": "lookup",
    "complete_erasures": "erasure",
    "erase": "erasure",
    "restore_dates": "restore",
    "retain": "retention",
}

__all__ = [
    "KEPT_OF_AUDIT",
    "ArchivedDate",
    "AuditFilter",
    "AuditPage",
    "AuditRecord",
    "Erased",
    "InvalidQuery",
    "Restored",
    "Retained",
    "archived_dates",
    "audit_table",
    "by_prediction",
    "by_window",
    "complete_erasures",
    "erase",
    "restore_dates",
    "retain",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.audit.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
