"""Steps about online predictions that wait on this machine to be folded into the audit table."""

from __future__ import annotations

from typing import Any

from tasks.core import PipelineSpec, Settings
from tasks.core.errors import TransientError
from tasks.wiring.context import open_context

_FOLD_WAIT_S = 60.0


def fold_online(settings: Settings, pipeline: str, *, seal: bool = False) -> dict[str, Any]:
    """Bring this machine's online predictions into the audit table; with `seal`, also those of segments that are open."""
    from tasks.audit.hot import fold

    spec = open_context(settings, pipeline).spec
    return fold(settings, spec, seal=seal, wait_s=_FOLD_WAIT_S).to_json()


def hot_online(settings: Settings, pipeline: str) -> dict[str, Any]:
    """What of a pipeline is not folded yet on this machine."""
    from tasks.audit.hot import hot_status

    return hot_status(settings, open_context(settings, pipeline).spec).to_json()


def fold_for_upkeep(settings: Settings, spec: PipelineSpec) -> dict[str, Any]:
    """The part of upkeep that folds; what may pass by itself is told, it is no failure: the next fold goes on."""
    from tasks.audit.hot import fold

    try:
        folded = fold(settings, spec)
    except TransientError as error:
        return {"folded_rows": 0, "fold": f"not finished, the next one goes on: {error.which}: {error.what}"}
    return {"folded_rows": folded.rows, "damaged_segments": list(folded.damaged)}
