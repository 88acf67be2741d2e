"""What follows for an exposed challenger: a pure function over what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.core.intervals import share_at_least
from tasks.core.records import JsonRecord
from tasks.core.report_style import percent
from tasks.core.spec import PipelineSpec

Action = Literal["hold", "advance", "withdraw", "promote"]


@dataclass(frozen=True)
class RampState(JsonRecord):
    """What was seen of an exposed challenger until now."""

    share: float
    days_at_share: int
    """Published days of runs at this share."""
    judged_days: int
    """Published days of the whole exposure whose labels are known and were compared."""
    rows: int
    """Published rows of the challenger."""
    errors: int
    """Rows of the slice that only the champion could score."""
    error_example: str = ""
    verdict: str | None = None
    """Of the paired comparison on the exposed days: `pass`, `fail`, `inconclusive`; None without a labelled day."""
    because: str = ""
    """Of a `fail`, its reasons."""
    low: float | None = None
    high: float | None = None
    """Bounds of the difference in Brier loss, challenger - champion."""
    latency_ratio: float | None = None
    """Seconds a row, challenger over champion, on the rows of the comparison."""
    trouble: str = ""
    """Why the days cannot be trusted, such as an open data fault."""


@dataclass(frozen=True)
class RampDecision(JsonRecord):
    """What to do now, and why."""

    action: Action
    share: float | None
    """The next share of an `advance`."""
    reasons: tuple[str, ...]


def next_step(spec: PipelineSpec, state: RampState) -> RampDecision:
    """Withdraw what is harmful, hold what is not known, go on with what is. Pure.

    Harm comes first, whatever else is seen: errors above `canary.max_error_share` with confidence, a challenger surely
    worse, or slower by more than `canary.max_latency_ratio`. Each step then needs `canary.ramp_days` published at its
    share and as many labelled days more than the step before; the last one needs the comparison's `pass`.
    """
    canary = spec.canary
    harm = _harm(spec, state)
    if harm:
        return RampDecision("withdraw", None, tuple(harm))
    if state.trouble:
        return RampDecision("hold", None, (state.trouble,))
    later = [share for share in canary.ramp if share > state.share]
    done = len(canary.ramp) - len(later)
    missing = []
    if state.days_at_share < canary.ramp_days:
        missing.append(
            f"{state.days_at_share} of {canary.ramp_days} days are published at {percent(state.share)}"
        )
    wanted = canary.ramp_days * max(1, done)
    if state.judged_days < wanted:
        missing.append(f"{state.judged_days} of {wanted} exposed days have labels")
    if not missing and not later and state.verdict != "pass":
        missing.append(
            f"not shown to be within the margin {canary.margin_brier:g} yet: {_bounds(state)} after "
            f"{state.judged_days} labelled days"
        )
    if missing:
        return RampDecision("hold", None, tuple(missing))
    seen = f"{state.rows:,} rows, {state.errors} errors, {_bounds(state)} after {state.judged_days} labelled days"
    if later:
        return RampDecision("advance", later[0], (f"{percent(state.share)} to {percent(later[0])}: {seen}",))
    return RampDecision("promote", None, (f"{percent(state.share)} to all: {seen}",))


def _harm(spec: PipelineSpec, state: RampState) -> list[str]:
    canary, found = spec.canary, []
    tried = state.rows + state.errors
    if share_at_least(state.errors, tried, canary.alpha) > canary.max_error_share:
        example = f", for example {state.error_example}" if state.error_example else ""
        found.append(
            f"{state.errors:,} of {tried:,} rows could be scored by the champion only, above "
            f"canary.max_error_share {canary.max_error_share:g}{example}"
        )
    if state.verdict == "fail":
        found.append(
            f"the comparison on {state.judged_days} labelled days refuses it: {state.because or _bounds(state)}"
        )
    if state.latency_ratio is not None and state.latency_ratio > canary.max_latency_ratio:
        found.append(
            f"{state.latency_ratio:.1f} times as slow as the champion on the same rows, above "
            f"canary.max_latency_ratio {canary.max_latency_ratio:g}"
        )
    return found


def _bounds(state: RampState) -> str:
    low = "-inf" if state.low is None else f"{state.low:+.5f}"
    high = "inf" if state.high is None else f"{state.high:+.5f}"
    return f"Brier challenger - champion between {low} and {high}"
