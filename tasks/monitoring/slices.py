"""Which rows are worse: realised beside expected performance, slice by slice.

When a day ranks worse than its scores promise, the next question is whether all rows do or some. A slice is compared
with two things: with what the model's own scores promise for it (corrected by how far it was off that on the
validation days, for calibration is never perfect in every slice), and with the other rows of the same days, which saw
the same storm. With many slices one looks bad by chance, so both answers are corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.intervals import holm
from tasks.core.records import JsonRecord
from tasks.monitoring.performance import FloatArray, auc_with_error, expected_auc

ALPHA = 0.05
"""Family-wise error over all slices of all columns; an answer about AUC and one about the rate of each."""
SMALLEST_CLASS = 10
"""Rows of either class that the AUC of a slice needs."""
MIN_SLICE_ROWS = 50
"""Rows that a slice needs to be judged at all."""
HELD = -3.0
"""The other rows are as good as promised when their z is above."""
LEAST_REST = 0.2
"""Share of the rows that must be without a finding, for a slice to be told apart from them."""

RANKS, RATE = "ranks worse", "other rate"


@dataclass(frozen=True)
class SliceGap(JsonRecord):
    """One slice of the labelled rows of some days."""

    column: str
    value: str
    rows: int
    positives: int
    state: str
    """`judged`, `too_few` (rows) or `one_class` (only the rate is judged)."""
    mean_score: float
    """What the scores promise for the share of positive labels."""
    label_rate: float
    auc: float | None = None
    auc_se: float | None = None
    """Standard error (DeLong)."""
    expected_auc: float | None = None
    usual_gap: float = 0.0
    """Realised less expected AUC of this slice on the model's validation days."""
    auc_z: float | None = None
    """(gap - usual gap) in its standard error; negative means worse than promised."""
    rate_z: float | None = None
    """The same of label rate less mean score; either sign is wrong."""
    rest_z: float | None = None
    """`auc_z` (or `rate_z`, by what was found) of the other rows: those of the column's slices without a finding."""
    apart_z: float | None = None
    """How far the slice is from the other rows."""
    found: str = ""
    """`ranks worse`, `other rate` or nothing; significant over all slices (Holm, 5 %)."""
    apart: bool = False
    """Whether it also differs from the other rows, and those are as promised: the slice, and not all, is the matter."""

    @property
    def name(self) -> str:
        return _name(self.column, self.value)

    @property
    def promised_auc(self) -> float | None:
        """What the scores imply, corrected by how far the slice was off that on the validation days."""
        return None if self.expected_auc is None else self.expected_auc + self.usual_gap


@dataclass(frozen=True)
class SlicePerformance(JsonRecord):
    """The slices of some days, most striking first."""

    days: tuple[date, ...]
    rows: int
    """Labelled rows of these days."""
    columns: tuple[str, ...]
    slices: tuple[SliceGap, ...]
    statement: str
    """What was compared and what was not, in a sentence."""
    auc: float | None = None
    """Of all rows of these days together."""
    expected_auc: float | None = None
    auc_z: float | None = None

    @property
    def judged(self) -> tuple[SliceGap, ...]:
        return tuple(item for item in self.slices if item.state != "too_few")

    @property
    def apart(self) -> tuple[SliceGap, ...]:
        """Slices that are worse than promised and than the other rows."""
        return tuple(item for item in self.slices if item.apart)


@dataclass(frozen=True)
class UsualGap(JsonRecord):
    """How far a slice was off its promise on the validation days."""

    auc_gap: float | None
    auc_se: float
    rate_gap: float
    rate_se: float


@dataclass(frozen=True)
class SliceReference(JsonRecord):
    """The validation days of a model, by `column = value`; `''` is all rows."""

    usual: dict[str, UsualGap]
    auc_spread: float = 1.0
    """How much wider than sampling alone the AUC gaps of slices spread from day to day; 1 or more."""
    rate_spread: float = 1.0
    days: int = 0


@dataclass(frozen=True)
class _Gap:
    """Both gaps of a set of rows."""

    rows: int
    positives: int
    mean_score: float
    auc: float | None
    auc_se: float
    expected: float | None
    rate_se: float

    @property
    def auc_gap(self) -> float | None:
        return None if self.auc is None or self.expected is None else self.auc - self.expected

    @property
    def rate_gap(self) -> float:
        return self.positives / self.rows - self.mean_score


def slice_reference(days: Sequence[pa.Table], columns: Sequence[str]) -> SliceReference:
    """What is usual of each slice, from the model's validation days. Pure.

    Args:
        days: Of each day its rows: `prediction`, `label` (0 or 1) and the slice columns as text.
        columns: The slice columns.
    """
    filled = [day for day in days if day.num_rows]
    if not filled:
        return SliceReference({})
    usual = {}
    for name, found in _gaps(pa.concat_tables(filled), columns).items():
        usual[name] = UsualGap(found.auc_gap, found.auc_se, found.rate_gap, found.rate_se)
    auc, rate = [], []
    for day in filled:
        of_day = _gaps(day, columns)
        # A common bad day is no spread of slices: what counts is how far they are from the day as a whole.
        whole = of_day[""]
        for name, found in of_day.items():
            if not name or found.rows < MIN_SLICE_ROWS:
                continue
            rate.append(
                ((found.rate_gap - whole.rate_gap) - (usual[name].rate_gap - usual[""].rate_gap))
                / found.rate_se
            )
            expected = (usual[name].auc_gap, usual[""].auc_gap)
            if None not in (found.auc_gap, whole.auc_gap, *expected):
                moved = (found.auc_gap or 0.0) - (whole.auc_gap or 0.0)
                auc.append((moved - ((expected[0] or 0.0) - (expected[1] or 0.0))) / found.auc_se)
    return SliceReference(usual, _spread(auc), _spread(rate), len(filled))


def slice_performance(
    rows: pa.Table,
    columns: Sequence[str],
    *,
    days: Sequence[date],
    reference: SliceReference | None = None,
) -> SlicePerformance:
    """Realised and expected performance of each slice of the labelled rows of some days. Pure.

    The AUC gap of a slice is tested one-sided (worse than promised), the gap between label rate and mean score
    two-sided, with Holm's correction over both tests of all slices at 5 %. What is found is compared with the rows of
    the same column's slices without a finding (at least a fifth of all), at 5 % divided by the number of judged slices.

    Args:
        rows: `prediction` (probability), `label` (0 or 1) and the slice columns as text.
        columns: The slice columns; empty: nothing is compared, and it says so.
        days: Which days these rows are of.
        reference: What is usual of each slice; None: the scores are taken at their word.
    """
    ordered = tuple(sorted(days))
    if not rows.num_rows:
        return SlicePerformance(ordered, 0, tuple(columns), (), "No labelled row: no slice can be compared.")
    if not columns:
        return SlicePerformance(
            ordered,
            rows.num_rows,
            (),
            (),
            "No column to compare by: gates.slices names none, and no categorical feature has few categories.",
        )
    known = reference or SliceReference({})
    gaps = _gaps(rows, columns)
    whole = gaps.pop("")
    names = [(column, value) for column in columns for value in _values(rows, column)]
    made = [
        _slice(column, value, gaps[_name(column, value)], known)
        for column, value in names
        if _name(column, value) in gaps
    ]
    made = _found(rows, made, gaps, known)
    made.sort(
        key=lambda item: (
            not item.apart,
            not item.found,
            -abs(item.apart_z or 0.0),
            item.auc_z or 0.0,
            item.name,
        )
    )
    total = _z(whole, known.usual.get(""), known)
    statement = f"slices of {', '.join(columns)} on {whole.rows:,} labelled rows of {_span(ordered)}"
    return SlicePerformance(
        ordered,
        whole.rows,
        tuple(columns),
        tuple(made),
        _statement(statement, made, known),
        auc=whole.auc,
        expected_auc=whole.expected,
        auc_z=_round(total[0]),
    )


def _statement(of: str, made: Sequence[SliceGap], known: SliceReference) -> str:
    """What was compared, what was not, and what came out."""
    judged, off, apart = (
        sum(item.state != "too_few" for item in made),
        sum(bool(item.found) for item in made),
        sum(item.apart for item in made),
    )
    said = f"{judged} {of}"
    if skipped := len(made) - judged:
        said += f"; {skipped} more with fewer than {MIN_SLICE_ROWS} rows are not judged"
    if apart:
        said += f": {apart} differ{'s' if apart == 1 else ''} from the other rows, which are as the scores promise."
    elif off:
        said += f": {off} {'is' if off == 1 else 'are'} off what the scores promise, none apart from the other rows."
    else:
        said += ": none is shown to be off what the scores promise." if judged else "."
    if not known.usual:
        said += " The validation days are not known: the scores were taken at their word."
    return said


def _slice(column: str, value: str, gap: _Gap, known: SliceReference) -> SliceGap:
    usual = known.usual.get(_name(column, value))
    auc_z, rate_z = _z(gap, usual, known)
    few = gap.rows < MIN_SLICE_ROWS
    return SliceGap(
        column=column,
        value=value,
        rows=gap.rows,
        positives=gap.positives,
        state="too_few" if few else "one_class" if gap.auc is None else "judged",
        mean_score=gap.mean_score,
        label_rate=gap.positives / gap.rows,
        auc=gap.auc,
        auc_se=None if gap.auc is None else gap.auc_se,
        expected_auc=gap.expected,
        usual_gap=usual.auc_gap or 0.0 if usual else 0.0,
        auc_z=None if few else _round(auc_z),
        rate_z=None if few else _round(rate_z),
    )


def _found(
    rows: pa.Table, made: Sequence[SliceGap], gaps: Mapping[str, _Gap], known: SliceReference
) -> list[SliceGap]:
    """The same slices with what is significant about them, and how they compare with the other rows."""
    judged = [item for item in made if item.state != "too_few"]
    tests = [(item.name, RANKS, _below(item.auc_z)) for item in judged if item.auc_z is not None]
    tests += [(item.name, RATE, 2 * _below(-abs(item.rate_z or 0.0))) for item in judged]
    rejected = holm([p for _, _, p in tests], ALPHA)
    significant = {(name, what) for (name, what, _), bad in zip(tests, rejected, strict=True) if bad}
    what = dict(
        sorted(significant, key=lambda pair: pair[1] == RANKS)
    )  # of both, the ranking is what is told
    result = []
    for item in made:
        if item.name not in what:
            result.append(item)
            continue
        # Beside rows of which nothing was found: another bad slice would make a good one look apart.
        off = pa.array([one.value for one in made if one.column == item.column and one.name in what])
        rest = rows.filter(pc.invert(pc.is_in(rows[item.column], value_set=off)))
        beside = _gap(rest) if rest.num_rows >= LEAST_REST * rows.num_rows else None
        result.append(_beside(item, what[item.name], gaps[item.name], beside, known, len(judged)))
    return result


def _beside(
    item: SliceGap, what: str, gap: _Gap, rest: _Gap | None, known: SliceReference, judged: int
) -> SliceGap:
    """A slice of which something was found, beside the other rows of the same days."""
    fields = {**item.__dict__, "found": what}
    if rest is None or (what == RANKS and rest.auc_gap is None):
        return SliceGap(**fields)
    whole, usual = known.usual.get(""), known.usual.get(item.name)
    rest_z = _z(rest, whole, known)[0 if what == RANKS else 1]
    if what == RANKS:
        moved = (gap.auc_gap or 0.0) - (rest.auc_gap or 0.0)
        centre = (usual.auc_gap or 0.0) - (whole.auc_gap or 0.0) if usual and whole else 0.0
        error = known.auc_spread * math.hypot(gap.auc_se, rest.auc_se, usual.auc_se if usual else 0.0)
    else:
        moved = gap.rate_gap - rest.rate_gap
        centre = usual.rate_gap - whole.rate_gap if usual and whole else 0.0
        error = known.rate_spread * math.hypot(gap.rate_se, rest.rate_se, usual.rate_se if usual else 0.0)
    apart_z = (moved - centre) / error
    p = _below(apart_z) if what == RANKS else 2 * _below(-abs(apart_z))
    held = rest_z is not None and (rest_z > HELD if what == RANKS else abs(rest_z) < -HELD)
    fields |= {
        "rest_z": _round(rest_z),
        "apart_z": _round(apart_z),
        "apart": held and p <= ALPHA / max(judged, 1),
    }
    return SliceGap(**fields)


def _z(gap: _Gap, usual: UsualGap | None, known: SliceReference) -> tuple[float | None, float]:
    """(z of the AUC gap, z of the rate gap)."""
    rate_centre, rate_error = (usual.rate_gap, usual.rate_se) if usual else (0.0, 0.0)
    rate = (gap.rate_gap - rate_centre) / (known.rate_spread * math.hypot(gap.rate_se, rate_error))
    if gap.auc_gap is None:
        return None, rate
    centre, error = (usual.auc_gap, usual.auc_se) if usual and usual.auc_gap is not None else (0.0, 0.0)
    return (gap.auc_gap - centre) / (known.auc_spread * math.hypot(gap.auc_se, error)), rate


def _gaps(rows: pa.Table, columns: Sequence[str]) -> dict[str, _Gap]:
    """By `column = value`, and `''` for all rows."""
    found = {"": _gap(rows)}
    scores, labels = _numbers(rows)
    for column in columns:
        codes, values = _codes(rows, column)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(values) + 1))
        for code, value in enumerate(values):
            mine = order[bounds[code] : bounds[code + 1]]
            found[_name(column, value)] = _gap_of(scores[mine], labels[mine])
    return {name: gap for name, gap in found.items() if gap is not None}


def _gap(rows: pa.Table) -> _Gap | None:
    return _gap_of(*_numbers(rows))


def _gap_of(scores: FloatArray, labels: FloatArray) -> _Gap | None:
    n, positives = len(labels), int(labels.sum())
    if not n:
        return None
    auc = expected = None
    error = 0.0
    if min(positives, n - positives) >= SMALLEST_CLASS:
        auc, error = auc_with_error(scores, labels)
        implied = expected_auc(scores)
        expected = None if math.isnan(implied) else implied
    rate_se = math.sqrt(float((scores * (1 - scores)).sum())) / n
    return _Gap(
        n, positives, float(scores.mean()), auc, max(error, 1e-4), expected, max(rate_se, 0.5 / n, 1e-4)
    )


def _numbers(rows: pa.Table) -> tuple[FloatArray, FloatArray]:
    return (
        np.asarray(rows["prediction"].to_numpy(), dtype=np.float64),
        np.asarray(rows["label"].to_numpy(), dtype=np.float64),
    )


def _codes(rows: pa.Table, column: str) -> tuple[np.ndarray, list[str]]:
    encoded = rows[column].combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def _values(rows: pa.Table, column: str) -> list[str]:
    return sorted(pc.unique(rows[column]).to_pylist())


def _span(days: Sequence[date]) -> str:
    if not days:
        return "no day"
    return f"{days[0]}" if len(days) == 1 else f"{len(days)} days from {days[0]} to {days[-1]}"


def _name(column: str, value: str) -> str:
    return f"{column} = {value}"


def _spread(zs: Sequence[float]) -> float:
    """Spread of standardised values, at least 1; few of them say nothing and count as 1."""
    if len(zs) < 10:
        return 1.0
    middle = float(np.median(zs))
    return max(1.0, 1.4826 * float(np.median(np.abs(np.asarray(zs) - middle))))


def _below(z: float | None) -> float:
    """P(Z <= z)."""
    return 1.0 if z is None else 0.5 * math.erfc(-z / math.sqrt(2))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
