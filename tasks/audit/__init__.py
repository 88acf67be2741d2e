"""Why was this prediction made: explanation and provenance of every prediction (docs/audit.md).

The door is lazy: importing it loads neither pyarrow nor Delta.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.audit.archive import ArchivedDate, archive_history, archived_dates
    from tasks.audit.costs import Costs, measure_costs
    from tasks.audit.erasure import KEPT_OF_AUDIT, Erased, complete_erasures, erase
    from tasks.audit.explaining import explain
    from tasks.audit.lookup import by_prediction, by_window
    from tasks.audit.query import AuditFilter, InvalidQuery
    from tasks.audit.reader import AuditReader
    from tasks.audit.record import AuditPage, AuditRecord
    from tasks.audit.reproducing import Reproduction, reproduce
    from tasks.audit.restore import Restored, restore_dates, restores
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
    "Costs": "costs",
    "Erased": "erasure",
    "KEPT_OF_AUDIT": "erasure",
    "Restored": "restore",
    "Reproduction": "reproducing",
    "Retained": "retention",
    "archive_history": "archive",
    "archived_dates": "archive",
    "audit_table": "rows",
    "by_prediction": "lookup",
    "by_window": "lookup",
    "complete_erasures": "erasure",
    "erase": "erasure",
    "measure_costs": "costs",
    "restore_dates": "restore",
    "restores": "restore",
    "explain": "explaining",
    "reproduce": "reproducing",
    "retain": "retention",
    "window_table": "window",
}

__all__ = [
    "KEPT_OF_AUDIT",
    "ArchivedDate",
    "AuditFilter",
    "AuditPage",
    "AuditReader",
    "AuditRecord",
    "Costs",
    "Erased",
    "InvalidQuery",
    "Reproduction",
    "Restored",
    "Retained",
    "archive_history",
    "archived_dates",
    "audit_table",
    "by_prediction",
    "by_window",
    "complete_erasures",
    "erase",
    "explain",
    "measure_costs",
    "reproduce",
    "restore_dates",
    "restores",
    "retain",
    "window_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.audit.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
