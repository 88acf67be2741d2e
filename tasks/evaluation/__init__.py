"""Is this model good enough: metrics with intervals, slices, behaviour, the gate's verdict, and the canary.

The door is lazy: `from tasks.evaluation import judge` imports neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.evaluation.canary import compare_canary, run_canary
    from tasks.evaluation.evidence import evaluate, load_evaluation
    from tasks.evaluation.gate import judge
    from tasks.evaluation.model_checks import FolderTests, run_folder_tests
    from tasks.evaluation.records import CanaryDay, Evaluation

_HOME = {
    "CanaryDay": "records",
    "Evaluation": "records",
    "FolderTests": "model_checks",
    "compare_canary": "canary",
    "evaluate": "evidence",
    "judge": "gate",
    "load_evaluation": "evidence",
    "run_canary": "canary",
    "run_folder_tests": "model_checks",
}

__all__ = [
    "CanaryDay",
    "Evaluation",
    "FolderTests",
    "compare_canary",
    "evaluate",
    "judge",
    "load_evaluation",
    "run_canary",
    "run_folder_tests",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.evaluation.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
