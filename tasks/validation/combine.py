"""From what an expectation said about each batch to one result. Pure: no evidence is a failure, never a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.core.records import Finding, JsonRecord
from tasks.validation.suite import Check
from tasks.validation.wording import number, percent, sentence

EXAMPLES = 8
"""Examples of unexpected values that a result keeps."""


@dataclass(frozen=True)
class Outcome:
    """What one expectation said about one batch."""

    index: int
    success: bool
    error: str | None = None
    """Set when the answer cannot be trusted, whatever `success` says."""
    per_row: bool = False
    """True: it judged row by row and counted; False: it judged one figure or set."""
    evaluated: int = 0
    """Rows, or non-null values, that the expectation has looked at."""
    missing: int = 0
    unexpected: int = 0
    observed: Any = None
    examples: tuple[str, ...] = ()
    rows: tuple[tuple[int, str], ...] = ()
    """(position in the batch, the value found) of each failing row; row-level checks only."""


@dataclass(frozen=True)
class CheckResult(JsonRecord):
    """One expectation, judged over the whole snapshot."""

    name: str
    type: str
    severity: str
    row_level: bool
    sentence: str
    notes: str
    kwargs: dict[str, Any]
    status: str
    """`pass`, `warn` or `fail`."""
    detail: str
    """What was found, in words."""
    trusted: bool
    """False: the expectation could not be evaluated, so its answer counts for nothing."""
    evaluated: int = 0
    missing: int = 0
    unexpected: int = 0
    observed: Any = None
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    """Bounds of a summary, for the report's picture."""
    examples: tuple[str, ...] = ()
    failed_batches: tuple[str, ...] = ()

    def finding(self) -> Finding:
        """The result as a reason on the verdict."""
        return Finding(
            name=self.name,
            status=self.status,
            detail=f"{self.sentence}: {self.detail}",
            value=self.value,
            limit=self.limit,
        )


def unusable(check: Check, why: str) -> CheckResult:
    """The result of a check that could not be evaluated: a failure, whatever its severity."""
    return replace(_blank(check), status="fail", detail=f"could not be evaluated: {why}", trusted=False)


def combine(check: Check, outcomes: Sequence[tuple[str, Outcome]]) -> CheckResult:
    """Judge `check` by its outcome on each batch, `(what the batch is, outcome)`.

    A check passes when it passed on every batch and has looked at something. An error in any batch makes it
    unusable. A row-level check fails only below an explicit `mostly`: its rows go to quarantine.
    """
    if not outcomes:
        return unusable(check, "it was run on no batch")
    errors = [f"{outcome.error} ({batch})" for batch, outcome in outcomes if outcome.error]
    if errors:
        return unusable(check, errors[0])

    evaluated = sum(outcome.evaluated for _, outcome in outcomes)
    unexpected = sum(outcome.unexpected for _, outcome in outcomes)
    observed = [outcome.observed for _, outcome in outcomes if outcome.observed is not None]
    summary = not any(outcome.per_row for _, outcome in outcomes)
    failed = tuple(batch for batch, outcome in outcomes if not outcome.success)
    share = unexpected / evaluated if evaluated and not summary else None
    result = replace(
        _blank(check),
        evaluated=evaluated,
        missing=sum(outcome.missing for _, outcome in outcomes),
        unexpected=unexpected,
        observed=observed[0] if len(observed) == 1 else (observed or None),
        value=_worst(check, observed) if summary else share,
        failed_batches=failed,
        examples=tuple(dict.fromkeys(text for _, outcome in outcomes for text in outcome.examples))[
            :EXAMPLES
        ],
    )
    if not evaluated or (summary and any(not outcome.evaluated for _, outcome in outcomes)):
        why = "it was evaluated on no value at all" if not evaluated else "a batch had no value to summarise"
        return replace(result, status=_bad(check), detail=f"{why}, which proves nothing")
    if check.row_level:
        return _row_level(check, result, share or 0.0)
    if summary:
        low, high = (_float(check.kwargs.get(name)) for name in ("min_value", "max_value"))
        result = replace(result, low=low, high=high, limit=_violated(result.value, low, high))
    else:
        result = replace(result, limit=round(1 - check.mostly, 9))
    result = replace(result, status=_bad(check) if failed else "pass")
    return replace(result, detail=_detail(result, len(outcomes)))


def _row_level(check: Check, result: CheckResult, share: float) -> CheckResult:
    allowed = 1 - check.mostly if "mostly" in check.kwargs else None
    status = "warn" if result.unexpected else "pass"
    if allowed is not None and share > allowed:
        status = _bad(check)
    detail = _rows_text(result)
    if result.unexpected:
        detail += f", quarantined{_found(result)}"
    return replace(result, status=status, detail=detail, limit=allowed)


def _detail(result: CheckResult, batches: int) -> str:
    text = (
        _rows_text(result) if result.observed is None and result.value is not None else _observed_text(result)
    )
    if result.failed_batches and batches > 1:
        text += (
            f"; failed in {len(result.failed_batches)} of {batches} batches, first {result.failed_batches[0]}"
        )
    return text + (_found(result) if result.status != "pass" else "")


def _found(result: CheckResult) -> str:
    return f"; found {', '.join(result.examples[:4])}" if result.examples else ""


def _rows_text(result: CheckResult) -> str:
    if not result.unexpected:
        return f"all {result.evaluated:,} values agree"
    verb = "does" if result.unexpected == 1 else "do"
    allowed = f", {percent(result.limit)} allowed" if result.limit else ""
    share = percent(result.unexpected / result.evaluated)
    return f"{result.unexpected:,} of {result.evaluated:,} values {verb} not ({share}{allowed})"


def _observed_text(result: CheckResult) -> str:
    observed = result.observed
    if isinstance(observed, dict) and "quantiles" in observed:
        pairs = zip(observed["quantiles"], observed["values"], strict=False)
        return "observed " + "; ".join(f"{percent(float(q))} at {_value(v)}" for q, v in pairs)
    if isinstance(observed, list) and observed and all(_float(item) is not None for item in observed):
        numbers = [float(item) for item in observed]
        return f"observed {number(min(numbers))} to {number(max(numbers))}"
    if isinstance(observed, list):
        flat = [str(item) for item in observed if not isinstance(item, list | dict)]
        return (
            f"observed {len(flat):,} values: {', '.join(flat[:8])}{', …' if len(flat) > 8 else ''}"
            if flat
            else "see the evidence"
        )
    if observed is None:
        return "holds" if not result.failed_batches else "does not hold"
    return f"observed {_value(observed)}"


def _value(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _worst(check: Check, observed: Sequence[Any]) -> float | None:
    """Of the batches' figures the one nearest to breaking a bound, or furthest beyond it."""
    numbers = [figure for item in observed if (figure := _float(item)) is not None]
    if not numbers:
        return None
    low, high = (_float(check.kwargs.get(name)) for name in ("min_value", "max_value"))

    def room(figure: float) -> float:
        return min(
            figure - low if low is not None else float("inf"),
            high - figure if high is not None else float("inf"),
        )

    return min(numbers, key=room)


def _violated(value: float | None, low: float | None, high: float | None) -> float | None:
    """The bound that `value` breaks; else the nearer one."""
    bounds = [bound for bound in (low, high) if bound is not None]
    if value is None or not bounds:
        return None
    if low is not None and value < low:
        return low
    if high is not None and value > high:
        return high
    return min(bounds, key=lambda bound: abs(value - bound))


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _bad(check: Check) -> str:
    return "fail" if check.severity == "critical" else "warn"


def _blank(check: Check) -> CheckResult:
    return CheckResult(
        name=check.name,
        type=check.type,
        severity=check.severity,
        row_level=check.row_level,
        sentence=sentence(check),
        notes=check.notes,
        kwargs=check.kwargs,
        status="fail",
        detail="",
        trusted=True,
    )
