"""Online predictions: durable before they are acknowledged, then folded into the audit table (docs/audit.md).

The door is lazy: a machine without online predictions loads neither SQLite nor Delta for asking.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tasks.audit.rows import AUDIT_SCHEMA
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

if TYPE_CHECKING:
    from tasks.audit.hot.folding import Folded, fold
    from tasks.audit.hot.group_commit import Appended
    from tasks.audit.hot.log import HotLimits, HotLog
    from tasks.audit.hot.reading import HotStatus, hot_status
    from tasks.audit.hot.rows import OnlineModel, OnlineRow, OnlineRows

_HOME = {
    "Appended": "group_commit",
    "Folded": "folding",
    "HotLimits": "log",
    "HotLog": "log",
    "HotStatus": "reading",
    "OnlineModel": "rows",
    "OnlineRow": "rows",
    "OnlineRows": "rows",
    "fold": "folding",
    "hot_status": "reading",
}

__all__ = [
    "Appended",
    "Folded",
    "HotLimits",
    "HotLog",
    "HotStatus",
    "OnlineModel",
    "OnlineRow",
    "OnlineRows",
    "fold",
    "hot_rows",
    "hot_status",
]


def hot_rows(settings: Settings, spec: PipelineSpec, low: str, high: str) -> pa.Table:
    """This machine's online rows that are not folded yet, with low <= prediction_id <= high as texts.

    Ask here first and open the audit table after: a row that is folded in between is then in both answers, and the
    other way round it would be in neither. Copies of one row agree in `prediction_id`, `run_id`,
    `source_key` and `model_version`.

    Returns:
        `AUDIT_SCHEMA`, in order of prediction id.

    Raises:
        AccessDenied, StoreUnavailable: A segment cannot be read now, or the store when a feature set is new.
    """
    if not os.path.isdir(settings.home / "hot" / spec.prefix):  # noqa: PTH112  # asked on every look-up
        return AUDIT_SCHEMA.empty_table()
    from tasks.audit.hot.reading import read_hot

    return read_hot(settings, spec, low, high)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.audit.hot.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
