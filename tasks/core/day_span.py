"""How a run of days is told, wherever it is."""

from __future__ import annotations

from datetime import date


def day_span(first: date | str, last: date | str) -> str:
    """`2024-01-02 to 2024-01-04`, both included; of one day that day alone."""
    return f"{first}" if first == last else f"{first} to {last}"
