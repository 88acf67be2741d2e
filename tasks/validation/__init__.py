"""The data gate: Great Expectations that fails closed, row quarantine, and the evidence kept by snapshot.

The door is lazy: Great Expectations takes seconds to import and only `validate` needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.validation.gate import ValidationResult, require, validate
    from tasks.validation.suite import require_suite

_HOME = {"ValidationResult": "gate", "require": "gate", "require_suite": "suite", "validate": "gate"}

__all__ = ["ValidationResult", "require", "require_suite", "validate"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.validation.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
