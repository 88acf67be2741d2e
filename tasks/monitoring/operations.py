"""Signals about the operation around a model: labels that stop, days that grow old, scoring that grows dear, clocks.

None of them says anything of data or model, so none changes a verdict, holds scoring or asks about a rollback. They add
reasons to a decision and may raise its action to a note or an alert. All functions are pure: days, runs and the present
moment come in as records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import numpy as np

from tasks.core.day_span import every_day
from tasks.core.records import JsonRecord
from tasks.core.spec import PipelineSpec
from tasks.monitoring.performance import UNREAD
from tasks.monitoring.signals import DayPerformance, OperationFinding

LABELS = "labels late"
FRESHNESS = "freshness"
COST = "scoring cost"
CLOCK = "clock"
COLUMNS = "columns"
TAKEN_IN = "late labels taken in"
ABSENT = "days without predictions"

STATED = "nothing"
NOTED = "note"
ALERTED = "alert"

LATE_DAYS = 3
"""Newest due days without labels from which the feed of labels has stopped."""
RECENT_DAYS = 7
"""A hole is noted for so long after its labels were due."""
_KNOWN_LAGS = 5
"""Days whose lateness must be known before a usual one is allowed for."""

MIN_RUNS = 5
"""Earlier runs of similar size that a run's cost is compared with at least; at most four times as many are looked at."""
COST_FACTOR = 2.0
_SPREADS = 5.0
_SIMILAR = 2.0
_LEAST_CPU_S = 10.0
_LEAST_WALL_S = 60.0
"""A run that took less than this more than usual is no finding: of a run of seconds, twice is nothing."""
_SKEW = timedelta(minutes=5)

LATE_STEPS = (
    "Ask the owner of the labels' source; until they come nobody knows how the model does.",
    "Nothing has to be run when they come: the monitor takes in labels of the last 35 days by itself.",
)
COST_STEPS = (
    "Compare the run with one before on its page in Airflow: rows, shards, node, model version.",
    "A new version or new feature code may cost this; if not, look at the machines and at the store.",
)
ABSENT_STEPS = (
    "The first task of the scoring run names days without rows. Rows that come later are scored by the next run by itself.",
)
STALE_STEPS = (
    "Did the scoring DAG run, fail, or wait for a pool? Is scoring held for a data fault?",
    "If the source has no new day, ask its owner.",
)


@dataclass(frozen=True)
class RunCost(JsonRecord):
    """What a published scoring run took."""

    run_id: str
    rows: int
    cpu_s: float
    gpu_s: float
    wall_s: float
    model_version: int | None
    planned_at_utc: datetime
    """By the clock of the machine that planned it."""


def labels_late(
    spec: PipelineSpec, performances: Sequence[DayPerformance], *, as_of: date
) -> tuple[OperationFinding, ...]:
    """Whether labels that were due have not come: an alert from three days on, a note for a hole.

    A day whose labels came within their usual lateness is not late: a feed that always takes two days more alarms nobody.

    Args:
        performances: Of the last weeks' days, in any order; days not joined yet are left out.
        as_of: The date of the newest look at labels.
    """
    grace = timedelta(days=usual_lag(spec, performances) or 0)
    due = sorted(
        (p for p in performances if spec.label.known_from(p.day) + grace <= as_of), key=lambda p: p.day
    )
    missing = [p for p in due if p.state == "missing"]
    tail: list[DayPerformance] = []
    for found in reversed(due):
        if found.state != "missing":
            break
        tail.insert(0, found)
    broken = tail[-1].statement if tail and tail[-1].statement.startswith(UNREAD) else ""
    if len(tail) >= LATE_DAYS or broken:
        first, last = tail[0].day, tail[-1].day
        came = [p for p in due if p.state == "measured"]
        share = sum(p.labelled_rows for p in tail) / max(sum(p.scored_rows for p in tail), 1)
        before = (
            f"The newest day with labels is {came[-1].day}; labels of {_share(came)} of predictions came before"
            + (f", usually {_days(grace.days)} after they were due." if grace else ".")
            if came
            else "No day of the last weeks has any."
        )
        return (
            OperationFinding(
                kind=LABELS,
                severity=ALERTED,
                statement=(f"{broken} " if broken else "")
                + f"Labels are late: of the last {len(tail)} due days ({first} to {last}) "
                + (f"{share:.0%} of predictions have one. " if share else f"{_none(tail)}. ")
                + before,
                since=first,
                value=float(len(tail)),
                limit=float(LATE_DAYS),
                next_steps=LATE_STEPS,
            ),
        )
    recent = [p for p in missing if as_of - spec.label.known_from(p.day) <= timedelta(days=RECENT_DAYS)]
    if not recent:
        return ()
    return (
        OperationFinding(
            kind=LABELS,
            severity=NOTED,
            statement=f"Labels of {_listed([p.day for p in recent])} were due and "
            + (
                "have not come, or contradict each other."
                if any(p.conflicting_labels for p in recent)
                else "have not come."
            ),
            since=recent[0].day,
            value=float(len(recent)),
            limit=float(LATE_DAYS),
        ),
    )


def usual_lag(spec: PipelineSpec, performances: Sequence[DayPerformance]) -> int | None:
    """Days after which nine in ten late or timely days had their labels, counted from when they were due.

    Only of days that were looked at when their labels were due, for of others nobody knows when they came; None when
    fewer than five are.
    """
    lags = [
        (p.labelled_on - spec.label.known_from(p.day)).days
        for p in performances
        if p.labelled_on is not None
        and p.first_asked is not None
        and (p.first_asked - spec.label.known_from(p.day)).days <= 1
    ]
    return int(np.quantile(lags, 0.9, method="lower")) if len(lags) >= _KNOWN_LAGS else None


def label_evidence(spec: PipelineSpec, performances: Sequence[DayPerformance]) -> dict[str, float]:
    """Share of predictions of due days that have a label, and their usual lateness in days, as far as they are known."""
    due = [p for p in performances if p.state != "immature" and p.scored_rows]
    found = {}
    if due:
        found["label coverage"] = round(
            sum(p.labelled_rows for p in due) / sum(p.scored_rows for p in due), 4
        )
    if (lag := usual_lag(spec, performances)) is not None:
        found["label days late"] = float(lag)
    return found


def days_absent(published: Collection[date], *, first: date, last: date) -> OperationFinding | None:
    """A note of days without predictions inside a window, or between it and the newest published day before it, at most a week back.

    A day is left out when its weekday had none in four weeks either, as on weekends; of a pipeline's first week each is named.

    Args:
        published: Days that have predictions.
        first: Of the window.
        last: The same.
    """
    known = set(published)
    before = max((day for day in known if day < first), default=first - timedelta(days=1))
    start = max(before + timedelta(days=1), first - timedelta(days=RECENT_DAYS))
    young = last - min(known, default=last) < timedelta(days=RECENT_DAYS)
    absent = [
        day
        for day in every_day(start, last)
        if day not in known and (young or any(day - timedelta(weeks=n) in known for n in range(1, 5)))
    ]
    if not absent:
        return None
    return OperationFinding(
        kind=ABSENT,
        severity=NOTED,
        statement=f"No predictions are published of {_listed(absent)}: the source had no row of "
        f"{'it' if len(absent) == 1 else 'them'}, or {'it was' if len(absent) == 1 else 'they were'} not scored.",
        since=absent[0],
        value=float(len(absent)),
        next_steps=ABSENT_STEPS,
    )


def freshness(
    newest_day: date | None, *, now: datetime, objective_hours: float | None
) -> OperationFinding | None:
    """An alert when the newest published day ended longer ago than the objective; None without one: old data may be old."""
    if newest_day is None or not objective_hours:
        return None
    age_h = (now - end_of(newest_day)).total_seconds() / 3600
    if age_h <= objective_hours:
        return None
    return OperationFinding(
        kind=FRESHNESS,
        severity=ALERTED,
        statement=f"The newest published day, {newest_day}, ended {age_h:.0f} hours ago; the objective is {objective_hours:g}.",
        since=newest_day,
        value=round(age_h, 2),
        limit=objective_hours,
        next_steps=STALE_STEPS,
    )


def end_of(day: date) -> datetime:
    """The UTC midnight that ends a day."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def scoring_cost(runs: Sequence[RunCost]) -> tuple[OperationFinding, ...]:
    """Whether the last of `runs` took much more a row than earlier ones of similar size: a note, an alert the second time.

    More means: over twice their median, over the median by five of their spreads (MAD), and by at least 10 CPU-seconds or
    60 s of wall time in all. With fewer than five earlier runs of half to twice its rows it is not judged.

    Args:
        runs: Published runs by planning time, oldest first; the last one is judged.
    """
    found = []
    measures: tuple[tuple[str, str, float, Callable[[RunCost], float]], ...] = (
        ("CPU time", "CPU-seconds", _LEAST_CPU_S, lambda run: run.cpu_s),
        ("GPU time", "GPU-seconds", _LEAST_CPU_S, lambda run: run.gpu_s),
        ("Wall time", "seconds", _LEAST_WALL_S, lambda run: run.wall_s),
    )
    for name, unit, least, of in measures:
        ratio = _dearer(runs, of, least)
        if not ratio:
            continue
        again = bool(_dearer(runs[:-1], of, least))
        run = runs[-1]
        new = runs[-2].model_version != run.model_version
        found.append(
            OperationFinding(
                kind=COST,
                severity=ALERTED if again else NOTED,
                statement=f"Scoring got {'slower' if of(run) == run.wall_s else 'dearer'}: {name.lower()} of run {run.run_id[:12]} "
                f"({run.rows:,} rows, {of(run):,.0f} {unit}) is {ratio:.1f} times that of earlier runs, row by row"
                + ("; so was the run before it" if again else "")
                + (f". It is the first run of version {run.model_version}." if new else "."),
                value=round(ratio, 3),
                limit=COST_FACTOR,
                next_steps=COST_STEPS if again else (),
            )
        )
    return tuple(found)


def _dearer(runs: Sequence[RunCost], of: Callable[[RunCost], float], least: float) -> float:
    """How many times the usual the last run's cost a row is; 0 when that is usual, or cannot be judged."""
    if not runs or runs[-1].rows <= 0:
        return 0.0
    run = runs[-1]
    similar = [
        other for other in runs[:-1] if other.rows > 0 and 1 / _SIMILAR <= run.rows / other.rows <= _SIMILAR
    ]
    each = np.array([of(other) / other.rows for other in similar[-4 * MIN_RUNS :]], dtype=np.float64)
    if each.size < MIN_RUNS:
        return 0.0
    middle = float(np.median(each))
    spread = 1.4826 * float(np.median(np.abs(each - middle)))
    own = of(run) / run.rows
    over = own > COST_FACTOR * middle and own > middle + _SPREADS * spread
    return own / middle if over and middle > 0 and (own - middle) * run.rows >= least else 0.0


def clock_skew(
    days: Sequence[date], runs: Sequence[RunCost], *, now: datetime
) -> tuple[OperationFinding, ...]:
    """A note about published days, or runs, that lie in the future of this clock.

    Events of tomorrow are usual: a prediction is made before what it is about. Later days mean that the source's clock or
    time zone is wrong, or this machine's.

    Args:
        days: Published days.
        runs: Newest scoring runs.
    """
    found = []
    ahead = sorted(day for day in days if day > now.date() + timedelta(days=1))
    if ahead:
        found.append(
            OperationFinding(
                kind=CLOCK,
                severity=NOTED,
                statement=f"{_listed(ahead)} {'is' if len(ahead) == 1 else 'are'} published and lies in the future of this clock "
                f"({now:%Y-%m-%d %H:%M} UTC): check event times and time zone of the source. Labels are not due before.",
                since=ahead[0],
                value=float(len(ahead)),
            )
        )
    late = [run for run in runs if run.planned_at_utc > now + _SKEW]
    if late:
        minutes = (max(run.planned_at_utc for run in late) - now).total_seconds() / 60
        found.append(
            OperationFinding(
                kind=CLOCK,
                severity=NOTED,
                statement=f"Run {late[-1].run_id[:12]} was planned {minutes:.0f} minutes after now by this machine's clock: "
                "the clocks of two machines differ, so ages and delays are off by as much.",
                value=round(minutes, 1),
                limit=_SKEW.total_seconds() / 60,
            )
        )
    return tuple(found)


def other_columns(
    trained: Sequence[tuple[str, str]], scored: Sequence[tuple[str, str]]
) -> OperationFinding | None:
    """A statement that the source has other columns than in training; what features need of them is checked elsewhere.

    Args:
        trained: (column, Arrow type) of the training snapshot, without label and outcome columns.
        scored: The same of the scored snapshot.
    """
    then, now = dict(trained), dict(scored)
    parts = [
        f"new: {', '.join(sorted(now.keys() - then.keys()))}" if now.keys() - then.keys() else "",
        f"gone: {', '.join(sorted(then.keys() - now.keys()))}" if then.keys() - now.keys() else "",
        *(
            f"{name} was {then[name]} and is {now[name]}"
            for name in sorted(then.keys() & now.keys())
            if then[name] != now[name]
        ),
    ]
    said = "; ".join(part for part in parts if part)
    if not said:
        return None
    return OperationFinding(
        kind=COLUMNS,
        severity=STATED,
        statement=f"The source has other columns than when the model was trained ({said}). Rows were scored: no feature needed "
        "what is gone, and none looks at what is new.",
    )


def taken_in(corrected: Sequence[tuple[date, str, str]]) -> OperationFinding | None:
    """A note of what late labels changed: (day, verdict before, verdict now)."""
    if not corrected:
        return None
    said = "; ".join(f"{day}: {before} -> {now}" for day, before, now in sorted(corrected)[:5])
    more = f"; and {len(corrected) - 5} more" if len(corrected) > 5 else ""
    return OperationFinding(
        kind=TAKEN_IN,
        severity=NOTED,
        statement=f"Labels that came late changed the verdict on earlier days: {said}{more}.",
        since=min(day for day, _, _ in corrected),
        value=float(len(corrected)),
    )


def _none(days: Sequence[DayPerformance]) -> str:
    against = sum(p.conflicting_labels for p in days)
    return (
        f"none is clear: those of {against:,} predictions contradict each other"
        if against
        else "none has come"
    )


def _share(days: Sequence[DayPerformance]) -> str:
    scored = sum(p.scored_rows for p in days)
    return f"{sum(p.labelled_rows for p in days) / max(scored, 1):.0%}"


def _days(count: int) -> str:
    return "one day" if count == 1 else f"{count} days"


def _listed(days: Sequence[date]) -> str:
    shown = ", ".join(str(day) for day in days[:4])
    return shown + (f" and {len(days) - 4} more" if len(days) > 4 else "")
