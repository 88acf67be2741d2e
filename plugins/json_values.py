"""Values that JSON can hold: numbers that it has no word for become null or text."""

from __future__ import annotations

import math
from typing import Any


def jsonable(value: Any) -> Any:
    """`value` with NaN as null and the infinities as `"Infinity"` and `"-Infinity"`."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {name: jsonable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [jsonable(one) for one in value]
    return value
