"""Batch inference that loses nothing and repeats nothing: plan, score, commit, publish, verify (docs/inference.md).

The door is lazy: importing it loads neither pyarrow nor Delta nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.inference.engine import run_plan
    from tasks.inference.erasing import KEPT_OF_PREDICTIONS, TombstonedFiles, let_go_files, tombstone
    from tasks.inference.maintenance import Swept, Vacuumed, sweep_orphans, vacuum
    from tasks.inference.optimizing import Optimized, optimize
    from tasks.inference.planning import plan
    from tasks.inference.publishing import (
        publish,
        published_days,
        published_records,
        read_predictions,
        superseding_runs,
        visible_rows,
    )
    from tasks.inference.records import Exposed, Plan, Published, RunExposure, RunReport, ShardRecord
    from tasks.inference.replaying import Replayed, replay
    from tasks.inference.verification import RunStatus, Verification, status, verify
    from tasks.inference.width import Demand, Width

_HOME = {
    "KEPT_OF_PREDICTIONS": "erasing",
    "TombstonedFiles": "erasing",
    "let_go_files": "erasing",
    "tombstone": "erasing",
    "Demand": "width",
    "Exposed": "records",
    "Optimized": "optimizing",
    "Plan": "records",
    "Published": "records",
    "Replayed": "replaying",
    "RunExposure": "records",
    "RunReport": "records",
    "RunStatus": "verification",
    "ShardRecord": "records",
    "Swept": "maintenance",
    "Vacuumed": "maintenance",
    "Verification": "verification",
    "Width": "width",
    "optimize": "optimizing",
    "plan": "planning",
    "publish": "publishing",
    "published_days": "publishing",
    "published_records": "publishing",
    "read_predictions": "publishing",
    "replay": "replaying",
    "run_plan": "engine",
    "status": "verification",
    "sweep_orphans": "maintenance",
    "vacuum": "maintenance",
    "verify": "verification",
    "superseding_runs": "publishing",
    "visible_rows": "publishing",
}

__all__ = [
    "KEPT_OF_PREDICTIONS",
    "Demand",
    "Exposed",
    "Optimized",
    "Plan",
    "Published",
    "Replayed",
    "RunExposure",
    "RunReport",
    "RunStatus",
    "ShardRecord",
    "Swept",
    "TombstonedFiles",
    "Vacuumed",
    "Verification",
    "Width",
    "let_go_files",
    "optimize",
    "plan",
    "publish",
    "published_days",
    "published_records",
    "read_predictions",
    "replay",
    "run_plan",
    "status",
    "superseding_runs",
    "sweep_orphans",
    "tombstone",
    "vacuum",
    "verify",
    "visible_rows",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.inference.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
