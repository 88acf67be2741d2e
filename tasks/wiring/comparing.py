"""Two models on the same labelled days, for whoever has to choose between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from tasks.core import PipelineSpec, Verdict
from tasks.wiring.context import Context, window

if TYPE_CHECKING:
    from tasks.evaluation.records import CanaryDay


def compare_days(
    context: Context, days: Sequence[date], *, challenger_digest: str, champion_digest: str
) -> Verdict:
    """The paired comparison of the canary on all labelled rows of these days, as many days as there are.

    Args:
        days: At least one, ascending; days between the first and the last count as well.

    Raises:
        DataGateFailed: The days' data is not what the suite says.
    """
    from tasks.data import take_snapshot
    from tasks.evaluation import run_canary
    from tasks.validation import require, validate

    snapshot = take_snapshot(
        context.settings, context.spec, kind="training", window=window(days[0], days[-1])
    )
    validated = validate(context.settings, context.spec, snapshot)
    require(validated)
    return run_canary(
        context.settings,
        _without_horizon(context.spec, len(snapshot.days)),
        context.snapshot(validated.clean_snapshot_id),
        challenger_digest=challenger_digest,
        champion_digest=champion_digest,
    )


def bounds_of(verdict: Verdict) -> tuple[int, float | None, float | None]:
    """(days that counted, low, high) of challenger - champion in Brier loss; None while a bound is infinite."""
    found = {finding.name: finding for finding in verdict.findings}
    low, high = found.get("worse_than_champion"), found.get("no_worse_than_margin")
    return int(found["days"].value or 0), low.value if low else None, high.value if high else None


def days_of(context: Context, verdict: Verdict) -> list[CanaryDay]:
    """The days that a comparison looked at, from its evidence."""
    from tasks.evaluation.records import CanaryDay

    if verdict.evidence_key is None:
        return []
    return [CanaryDay.from_json(day) for day in json.loads(context.store.get(verdict.evidence_key))["days"]]


def challengers_skill(days: Sequence[CanaryDay]) -> float | None:
    """Brier skill score of the challenger: 1 is perfect, 0 is as good as always saying the share of positive labels.

    None where the evidence does not say how many labels were positive, or all were the same.
    """
    counted = [day for day in days if day.positives is not None]
    rows = sum(day.rows for day in counted)
    share = sum(day.positives or 0 for day in counted) / rows if rows else 0.0
    constant = share * (1 - share)
    if not constant:
        return None
    return 1 - sum(day.challenger_brier * day.rows for day in counted) / rows / constant


def _without_horizon(spec: PipelineSpec, days: int) -> PipelineSpec:
    """The sequence holds at every number of days, so that it may be looked at for as long as it takes."""
    canary = spec.canary.model_copy(update={"days": max(days, spec.canary.days)})
    return spec.model_copy(update={"canary": canary})
