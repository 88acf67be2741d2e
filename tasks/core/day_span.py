"""Days from one to another: which these are, and how they are told, wherever it is."""

from __future__ import annotations

from datetime import date, timedelta


def day_span(first: date | str, last: date | str) -> str:
    """`2024-01-02 to 2024-01-04`, both included; of one day that day alone."""
    return f"{first}" if first == last else f"{first} to {last}"


def every_day(first: date, last: date) -> list[date]:
    """The days from the first to the last, both included; none where the last one is before the first."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]
