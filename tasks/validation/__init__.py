"""The data gate: Great Expectations that fails closed, row quarantine, and the evidence kept by snapshot.

The door is lazy: Great Expectations takes seconds to import and only `validate` needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.validation.gate import ValidationResult, require, validate

__all__ = ["ValidationResult", "require", "validate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tasks.validation import gate

    return getattr(gate, name)
