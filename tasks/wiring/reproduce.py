"""The step that trains twice and compares."""

from __future__ import annotations

from datetime import date
from typing import Any

from tasks.core import Settings
from tasks.core.errors import GateFailed, NotFound
from tasks.wiring.context import Context, open_context, parse_day


def reproduce_training(
    settings: Settings,
    pipeline: str,
    *,
    snapshot_id: str | None = None,
    validation_first_day: str | None = None,
    sample_rows: int | None = None,
) -> dict[str, Any]:
    """Train twice with the same seed in clean processes and compare; by default on the newest training's snapshot.

    Raises:
        GateFailed: The two differ by more than `gates.reproducibility_tolerance`.
    """
    from tasks.training.reproducing import SAMPLE_ROWS, reproduce

    context = open_context(settings, pipeline)
    snapshot, first_day = _what(context, snapshot_id, parse_day(validation_first_day, "validation_first_day"))
    found = reproduce(
        settings,
        context.spec,
        context.snapshot(snapshot),
        validation_first_day=first_day,
        sample_rows=SAMPLE_ROWS if sample_rows is None else sample_rows,
    )
    if not found.reproducible:
        raise GateFailed(
            f"training does not reproduce: {found.detail}",
            which=f"{pipeline}, snapshot {found.snapshot_id}",
            fix="seed what is random with spec or training.seed; if it cannot be, raise gates.reproducibility_tolerance",
        )
    return {
        "reproducible": True,
        "same_weights": found.same_weights,
        "detail": found.detail,
        "auc_difference": found.auc_difference,
        **found.to_json(),
    }


def _what(context: Context, snapshot_id: str | None, first_day: date | None) -> tuple[str, date]:
    """The snapshot and its first validation day; what is not given is that of the newest training."""
    if snapshot_id is not None and first_day is not None:
        return snapshot_id, first_day
    for training in context.metadata.trainings(context.spec):
        record = training.record
        if snapshot_id is None or record["snapshot_id"] == snapshot_id:
            return str(record["snapshot_id"]), first_day or date.fromisoformat(record["validation_first_day"])
    raise NotFound(
        "was not trained yet, so there is no snapshot to train on again",
        which=context.spec.name + (f" on snapshot {snapshot_id}" if snapshot_id else ""),
        fix="train it, or pass --snapshot and --validation-first-day",
    )
