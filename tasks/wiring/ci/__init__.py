"""`penstock ci`: what must hold before a change of a pipeline is merged, tried on a sample in a place of its own.

Nothing here writes to the installation. Store, metadata store and cache are a temporary folder; MLflow is left out;
the production metadata store is only read, to know the champion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.wiring.ci.path import run_ci
    from tasks.wiring.ci.render import junit, markdown

_HOME = {"run_ci": "path", "junit": "render", "markdown": "render"}

__all__ = ["junit", "markdown", "run_ci"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tasks.wiring.ci.{_HOME[name]}"), name)
