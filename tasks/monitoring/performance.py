"""Tier 3: is the model still as good as its own scores say?

Calibrated scores imply an AUC and a Brier score before any label is known (CBPE). When labels come, the gap
between the realised and the implied AUC sees what no test of inputs can: a concept that flipped, an encoder
that changed. A change of the mix of easy and hard rows moves both and leaves the gap alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.spec import PipelineSpec
from tasks.model.ranking import auc_of_groups, auc_of_ranks, midranks
from tasks.monitoring.signals import DayPerformance, PerformanceSignal

FloatArray = npt.NDArray[np.float64]

UNREAD = "Labels could not be read"
CUSUM_K = 1.0
CUSUM_H = 4.0
Z_ALARM = 4.0
MIN_COVERAGE = 0.5
MIN_REFERENCE_DAYS = 7
_ERROR_OF_MEDIAN = 1.2533
"""Standard error of the median of n normal values, in their spread over the square root of n."""
_SMALLEST_CLASS = 10
_SETTLED_AFTER = timedelta(days=7)


def performance(
    spec: PipelineSpec,
    *,
    day: date,
    scored: pa.Table,
    labels: pa.Table | None,
    as_of: date,
) -> DayPerformance:
    """Join a day's labels to its predictions and measure. Pure.

    Labels that come twice and agree count once; labels of one prediction that disagree are left out and
    counted. A null label (no outcome) is not a label.

    Args:
        scored: Columns `prediction_id` and `prediction` of the day.
        labels: Columns `prediction_id` and `label` (0, 1 or null), of this day or of more; None: none came.
        as_of: The date on which it is asked; labels of `day` are due from `day + label.delay_days` on.

    Raises:
        DataError: A column is missing, or labels hold something else than 0, 1 and null.
    """
    rows = scored.num_rows
    due = spec.label.known_from(day)
    if as_of < due:
        return DayPerformance(day, "immature", f"Labels of {day} are due from {due}.", rows, 0)
    if labels is None or labels.num_rows == 0:
        return DayPerformance(day, "missing", _none_came(day, due, as_of), rows, 0)
    joined, duplicates, conflicting = labelled(scored, labels)
    values, truth = joined["prediction"].to_numpy(), joined["label"].to_numpy()
    conflicts = len(conflicting)
    n, positives = truth.size, int(truth.sum())

    against = ""
    if conflicts:
        against = f"; {conflicts:,} predictions with contradicting labels were left out, for example {conflicting[0]}"

    def unmeasured(state: str, statement: str) -> DayPerformance:
        return DayPerformance(day, state, statement, rows, n, positives, duplicates, conflicts)

    if n == 0 or n < MIN_COVERAGE * rows:
        return unmeasured(
            "missing", f"Only {n:,} of {rows:,} predictions have a label; due since {due}{against}."
        )
    if n < spec.drift.min_rows:
        return unmeasured(
            "too_few",
            f"{n:,} labelled rows are too few to judge (drift.min_rows is {spec.drift.min_rows:,}).",
        )
    if min(positives, n - positives) < _SMALLEST_CLASS:
        return unmeasured(
            "one_class", f"{positives:,} of {n:,} labels are 1: no AUC can be read from so one-sided a day."
        )
    auc, auc_se = auc_with_error(values, truth)
    implied = expected_auc(values)
    losses = (values - truth) ** 2
    extra = f"; {duplicates:,} labels came twice" if duplicates else ""
    return DayPerformance(
        day=day,
        state="measured",
        statement=f"{n:,} of {rows:,} predictions have a label{extra}{against}.",
        scored_rows=rows,
        labelled_rows=n,
        positives=positives,
        duplicate_labels=duplicates,
        conflicting_labels=conflicts,
        auc=auc,
        auc_se=auc_se,
        expected_auc=None if np.isnan(implied) else implied,
        brier=float(losses.mean()),
        brier_se=float(losses.std(ddof=1) / np.sqrt(n)),
        expected_brier=float((values * (1 - values)).mean()),
    )


def to_join_again(spec: PipelineSpec, before: DayPerformance | None, day: date, *, as_of: date) -> bool:
    """Whether labels of a day before the window are worth another look: they are due, and were not all there.

    A day with most of its labels is looked at again for a week after they were due, once a date; one without, as long as
    it is asked for. One that has all of them is settled.

    Args:
        before: What the newest look found; None: nobody looked.
    """
    due = spec.label.known_from(day)
    if as_of < due:
        return False
    if before is None:
        return True
    if before.as_of is not None and as_of < before.as_of:
        return False  # a look back in time must not undo what is known
    if before.state in ("immature", "missing"):
        return True
    return before.coverage < 1 and as_of - due <= _SETTLED_AFTER and before.as_of != as_of


def unread(
    spec: PipelineSpec, found: DayPerformance, before: DayPerformance | None, *, problem: str, as_of: date
) -> DayPerformance:
    """A due day whose labels' source gave an error; what an earlier look found of it stays.

    Args:
        found: The day without labels.
    """
    if before is not None and before.labelled_rows:
        return before
    if as_of < spec.label.known_from(found.day):
        return found
    return replace(found, state="missing", statement=f"{UNREAD} on {as_of}: {problem}")


def remembered(
    spec: PipelineSpec, found: DayPerformance, before: DayPerformance | None, *, as_of: date, later: bool
) -> DayPerformance:
    """`found` with when its labels were asked for and came, from what an earlier look left.

    Args:
        later: Whether this is the look of a later window.
    """
    asked = as_of if as_of >= spec.label.known_from(found.day) else None
    came = as_of if found.state not in ("immature", "missing") else None
    return replace(
        found,
        as_of=as_of,
        first_asked=(before and before.first_asked) or asked,
        labelled_on=(before and before.labelled_on) or came,
        taken_in_later=later or bool(before and before.taken_in_later),
    )


def still_missing(spec: PipelineSpec, before: DayPerformance, *, as_of: date) -> DayPerformance:
    """A day without any label, looked at again in vain; its predictions need not be read for that."""
    due = spec.label.known_from(before.day)
    return replace(before, state="missing", statement=_none_came(before.day, due, as_of))


def _none_came(day: date, due: date, as_of: date) -> str:
    return f"Labels of {day} were due on {due}; none has come by {as_of}."


def expected_auc(scores: npt.ArrayLike) -> float:
    """The AUC that calibrated scores imply: the chance that a positive outscores a negative; NaN if undefined.

    Source: NannyML's CBPE (confidence-based performance estimation), here in closed form.
    """
    p = np.sort(np.asarray(scores, dtype=np.float64))
    starts = np.flatnonzero(np.append(True, np.diff(p) > 0))
    positive = np.add.reduceat(p, starts)
    negative = np.add.reduceat(1 - p, starts)
    return auc_of_groups(positive, negative)


def judge_gaps(
    history: Sequence[DayPerformance], reference: Sequence[DayPerformance] = ()
) -> tuple[PerformanceSignal, ...]:
    """Standardise the AUC gap of every measured day and run the one-sided CUSUM over it. Pure.

    Args:
        history: Monitored days; days that are not `measured` are skipped.
        reference: Measured days of the model's validation window. They give the usual gap and its spread
            beyond sampling error; with fewer than seven the gap is expected to be 0 and the spread is taken
            as one sampling error more.

    Returns:
        Signals in day order. `alarm` is `once` for z < -4, `cusum` for a day below expectation while the
        CUSUM (k 1, h 4) is above h. A day counts in it with z -4 at most: beyond that it alarms by itself, and must not
        speak for the days after it. The sum stops at twice h, so that it comes back within days when the cause is gone.

    Sources: Page (1954), "Continuous inspection schemes"; Hawkins & Olwell (1998), "Cumulative sum charts and charting
    for quality improvement", on winsorised sums.
    """
    usual = [p for p in reference if p.state == "measured" and p.gap is not None]
    centre, spread, sure_to = 0.0, None, 1e-4
    if len(usual) >= MIN_REFERENCE_DAYS:
        gaps = np.array([p.gap for p in usual], dtype=np.float64)
        errors = np.array([p.auc_se for p in usual], dtype=np.float64)
        centre = float(np.median(gaps))
        mad = 1.4826 * float(np.median(np.abs(gaps - centre)))
        typical = float(np.median(errors))
        spread = float(np.sqrt(max(mad**2 - typical**2, 0.0)))
        sure_to = _ERROR_OF_MEDIAN * float(np.hypot(typical, spread)) / float(np.sqrt(len(usual)))
    signals: list[PerformanceSignal] = []
    cusum = 0.0
    for day in sorted(history, key=lambda p: p.day):
        if day.state != "measured" or day.gap is None or day.expected_auc is None:
            continue
        # Of a day with many more rows than those of validation, the usual gap is known less well than its own.
        error = max(day.auc_se or 0.0, sure_to)
        scale = float(np.hypot(error, error if spread is None else spread))
        z = (day.gap - centre) / scale
        cusum = min(max(0.0, cusum - max(z, -Z_ALARM) - CUSUM_K), 2 * CUSUM_H)
        middle = day.expected_auc + centre
        signals.append(
            PerformanceSignal(
                day=day.day,
                gap=day.gap,
                z=round(z, 4),
                cusum=round(cusum, 4),
                alarm="once" if z < -Z_ALARM else "cusum" if cusum > CUSUM_H and z < 0 else None,
                usual=round(centre, 4),
                band=(max(middle - 3 * scale, 0.0), min(middle + 3 * scale, 1.0)),
            )
        )
    return tuple(signals)


def labelled(scored: pa.Table, labels: pa.Table) -> tuple[pa.Table, int, pa.ChunkedArray]:
    """Predictions that have one clear label.

    Returns:
        (`scored` with a column `label`, both numbers as float64, in no order; agreeing duplicates; ids of predictions
        whose labels contradict each other).

    Raises:
        DataError: As `performance`.
    """
    for table, name, columns in (
        (scored, "scored rows", ("prediction_id", "prediction")),
        (labels, "labels", ("prediction_id", "label")),
    ):
        for column in columns:
            if column not in table.column_names:
                raise DataError(f"have no column {column!r}", which=name, fix=f"pass {' and '.join(columns)}")
    known = labels.select(["prediction_id", "label"]).drop_null()
    known = known.set_column(1, "label", pc.cast(known["label"], pa.float64()))
    known = known.filter(pc.is_in(known["prediction_id"], value_set=scored["prediction_id"].combine_chunks()))
    if known.num_rows == 0:
        empty = scored.slice(0, 0)
        return _numbers(empty.append_column("label", pa.array([], pa.float64()))), 0, known["prediction_id"]
    bounds = pc.min_max(known["label"]).as_py()
    if not np.isin(known["label"].to_numpy(), (0.0, 1.0)).all():
        raise DataError(
            f"hold values from {bounds['min']} to {bounds['max']}",
            which="labels",
            fix="labels are 0, 1 or null; map them in the source",
        )
    grouped = known.group_by("prediction_id").aggregate(
        [("label", "min"), ("label", "max"), ("label", "count")]
    )
    agree = pc.equal(grouped["label_min"], grouped["label_max"])
    clear = grouped.filter(agree)
    duplicates = clear.num_rows and int(pc.sum(clear["label_count"]).as_py()) - clear.num_rows
    unique = scored.filter(scored["prediction"].is_valid())
    truth = clear.select(["prediction_id", "label_min"]).rename_columns(["prediction_id", "label"])
    joined = unique.join(truth, "prediction_id", join_type="inner")
    return _numbers(joined), int(duplicates), grouped.filter(pc.invert(agree))["prediction_id"]


def _numbers(joined: pa.Table) -> pa.Table:
    for name in ("prediction", "label"):
        at = joined.column_names.index(name)
        joined = joined.set_column(at, name, joined[name].cast(pa.float64()))
    return joined


def auc_with_error(scores: FloatArray, labels: FloatArray) -> tuple[float, float]:
    """(AUC with ties counted half, its standard error).

    Source: Sun & Xu (2014), "Fast implementation of DeLong's algorithm for comparing the areas under
    correlated receiver operating characteristic curves".
    """
    positive, negative = scores[labels == 1], scores[labels == 0]
    m, n = positive.size, negative.size
    ranks = midranks(np.concatenate([positive, negative]))
    above = (ranks[:m] - midranks(positive)) / n
    below = 1 - (ranks[m:] - midranks(negative)) / m
    return auc_of_ranks(ranks[:m], n), float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
