"""Named points in the commit protocols at which a process may die, so that tests can make it die there.

The protocols call `reached(name)`; it does nothing unless an observer was installed. docs/inference.md walks
through every point.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "before-data-file",
    "after-data-file",
    "after-audit-file",
    "before-record",
    "after-record",
    "before-audit-commit",
    "after-audit-commit",
    "before-delta-commit",
    "after-delta-commit",
    "after-published-marker",
    "before-replay-record",
    "after-replay-record",
    "after-optimize-file",
    "before-optimize-record",
    "after-optimize-record",
    "before-optimize-commit",
    "after-optimize-commit",
    "before-archive-file",
    "after-archive-file",
    "after-archive-record",
    "before-archive-delete",
    "after-archive-delete",
    "after-expired-record",
    "after-erasure-request",
    "after-erase-file",
    "before-erase-record",
    "after-erase-record",
    "before-erase-commit",
    "after-erase-commit",
    "after-erase-cold-file",
    "after-erase-cold-record",
    "before-erasure-done",
    "before-restore-file",
    "after-restore-file",
    "after-restore-record",
    "before-restore-commit",
    "after-restore-commit",
    "before-returned-record",
    "before-append-commit",
    "after-append-commit",
    "after-segment-seal",
    "before-fold-file",
    "after-fold-file",
    "after-fold-record",
    "before-fold-commit",
    "after-fold-commit",
    "before-segment-delete",
    "during-segment-delete",
)

_observer: Callable[[str], None] | None = None


def observe(observer: Callable[[str], None] | None) -> None:
    """Call `observer(name)` at every point of this process from now on; None ends it."""
    global _observer
    _observer = observer


def reached(name: str) -> None:
    """Say that the point `name`, one of `POINTS`, was reached."""
    if _observer is not None:
        if name not in POINTS:
            raise ValueError(f"{name!r} is not in crash_points.POINTS")
        _observer(name)
