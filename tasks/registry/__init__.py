"""Which model is live, since when and why: an append-only log in SQL, shown in MLflow as aliases (I6, I7).

The log decides. MLflow's `champion` and `challenger` aliases follow it; when MLflow is down, promotion and
scoring go on, and `reconcile` brings the aliases up to date later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.metadata.records import DeploymentEvent, ModelVersion
    from tasks.registry.aliases import reconcile
    from tasks.registry.challengers import register_challenger
    from tasks.registry.deployment import Deployment
    from tasks.registry.exposure import Exposure, current_exposure, expose, require_exposed, withdraw
    from tasks.registry.promotion import (
        Check,
        bar,
        champion,
        history,
        live_at,
        promote,
        reject,
        rollback,
        rollback_targets,
        unbar,
        version,
        versions,
    )
    from tasks.registry.ramp import RampDecision, RampState, next_step

_HOME = {
    "Check": "tasks.registry.promotion",
    "Deployment": "tasks.registry.deployment",
    "DeploymentEvent": "tasks.metadata.records",
    "Exposure": "tasks.registry.exposure",
    "ModelVersion": "tasks.metadata.records",
    "RampDecision": "tasks.registry.ramp",
    "RampState": "tasks.registry.ramp",
    "bar": "tasks.registry.promotion",
    "champion": "tasks.registry.promotion",
    "current_exposure": "tasks.registry.exposure",
    "expose": "tasks.registry.exposure",
    "history": "tasks.registry.promotion",
    "live_at": "tasks.registry.promotion",
    "next_step": "tasks.registry.ramp",
    "promote": "tasks.registry.promotion",
    "reconcile": "tasks.registry.aliases",
    "register_challenger": "tasks.registry.challengers",
    "reject": "tasks.registry.promotion",
    "require_exposed": "tasks.registry.exposure",
    "rollback": "tasks.registry.promotion",
    "rollback_targets": "tasks.registry.promotion",
    "unbar": "tasks.registry.promotion",
    "version": "tasks.registry.promotion",
    "versions": "tasks.registry.promotion",
    "withdraw": "tasks.registry.exposure",
}

__all__ = [
    "Check",
    "Deployment",
    "DeploymentEvent",
    "Exposure",
    "ModelVersion",
    "RampDecision",
    "RampState",
    "bar",
    "champion",
    "current_exposure",
    "expose",
    "history",
    "live_at",
    "next_step",
    "promote",
    "reconcile",
    "register_challenger",
    "reject",
    "require_exposed",
    "rollback",
    "rollback_targets",
    "unbar",
    "version",
    "versions",
    "withdraw",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
