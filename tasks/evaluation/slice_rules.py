"""What the gate says about slices: a floor for each, and no slice that gets worse than with the champion.

With many slices one looks bad by chance, so every answer is corrected for their number by Holm's procedure, at
alpha = (1 - confidence) / 2 in each family:

- Floor, hypothesis "the AUC is at least the floor": rejected at alpha is a fail; rejected at `SUSPICION` is inconclusive.
- Champion, hypothesis "the paired difference is at least minus the margin": rejected is a fail. "The difference is at least 0"
  rejected, with an estimate beyond the margin, is inconclusive: the slice got worse, by how much is not shown.

An estimate below the limit alone is no finding: models that are good have one often (benchmarks/gate_false_alarms.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.core import Finding, PipelineSpec
from tasks.core.intervals import holm
from tasks.evaluation.records import Evaluation, Interval, SliceMetrics

MIN_SLICE_DAYS = 3
"""A slice seen on fewer days has no usable interval and is not judged."""
SUSPICION = 0.1
"""Family-wise error at which a slice below its floor keeps a model from passing without failing it."""


def slice_findings(spec: PipelineSpec, slices: Sequence[SliceMetrics]) -> Iterable[Finding]:
    """One finding for each slice below the floor, and one that says what was judged."""
    if not slices:
        if spec.gates.slices:
            columns = ", ".join(spec.gates.slices)
            yield Finding("slices", "fail", f"no slice of {columns} was measured")
        return
    floor = spec.gates.slice_min_auc
    judged = _judged(spec, slices)
    skipped = len(slices) - len(judged)
    apart = f"; {skipped} too small to judge" if skipped else ""
    if not judged:
        yield Finding(
            "slices",
            "warn",
            f"none of {len(slices)} slices has {spec.gates.slice_min_rows:,} rows on {MIN_SLICE_DAYS} days "
            "and both classes",
            value=0.0,
            limit=1.0,
        )
        return
    p_values = [below(item.auc, item.days, floor) for item in judged]
    failed = holm(p_values, _alpha(spec))
    suspected = holm(p_values, max(SUSPICION, _alpha(spec)))
    for item, significant, suspicious in zip(judged, failed, suspected, strict=True):
        if suspicious:
            yield Finding(
                f"slice {item.name}",
                "fail" if significant else "warn",
                f"AUC {item.auc.text} of {item.rows:,} rows is below {floor:g}"
                + (
                    " (significant after Holm's correction)"
                    if significant
                    else f": likely, at {100 * SUSPICION:g} % after Holm's correction, and not shown"
                ),
                value=item.auc.value,
                limit=floor,
            )
    if not any(suspected):
        worst = min(judged, key=lambda item: item.auc.value or 0.0)
        yield Finding(
            "slices",
            "pass",
            f"none of {len(judged)} slices is shown or likely to be below {floor:g}; lowest {worst.name} with "
            f"AUC {worst.auc.text}{apart}",
            value=worst.auc.value,
            limit=floor,
        )


def slice_regressions(spec: PipelineSpec, evaluation: Evaluation) -> Iterable[Finding]:
    """One finding for each slice that the candidate ranks worse than the champion, and one that says what was compared.

    Nothing without a champion to compare with (`no_worse_than_champion` says why there is none) or without slices
    that are large enough (`slices` says so).
    """
    name = "slices against the champion"
    margin = -spec.gates.slice_noninferiority_margin_auc
    if "champion" not in evaluation.models or evaluation.champion_digest == evaluation.candidate_digest:
        return
    judged = _judged(spec, evaluation.slices)
    compared = [
        (item, item.champion_difference)
        for item in judged
        if item.champion_difference is not None
        and item.champion_difference.value is not None
        and item.champion_difference.se is not None
    ]
    if not compared:
        if judged:
            yield Finding(name, "fail", "not measured: evaluate the model again", limit=margin)
        return
    failed = holm([below(found, item.days, margin) for item, found in compared], _alpha(spec))
    worse = holm([below(found, item.days, 0.0) for item, found in compared], _alpha(spec))
    bad = False
    for (item, found), beyond, shown in zip(compared, failed, worse, strict=True):
        assert found.value is not None
        if not beyond and not (shown and found.value < margin):
            continue
        bad = True
        yield Finding(
            f"slice {item.name} against the champion",
            "fail" if beyond else "warn",
            f"AUC minus AUC of the champion {found.text} of {item.rows:,} rows is below {margin:g}"
            + (
                " (significant after Holm's correction)"
                if beyond
                else "; that it is below 0 is significant after Holm's correction, that it is below the margin is not"
            ),
            value=found.value,
            limit=margin,
        )
    if not bad:
        item, lowest = min(compared, key=lambda pair: pair[1].value or 0.0)
        yield Finding(
            name,
            "pass",
            f"none of {len(compared)} slices is shown to be worse; lowest {item.name} with {lowest.text}",
            value=lowest.value,
            limit=margin,
        )


def _judged(spec: PipelineSpec, slices: Sequence[SliceMetrics]) -> list[SliceMetrics]:
    return [
        item
        for item in slices
        if item.rows >= spec.gates.slice_min_rows
        and item.days >= MIN_SLICE_DAYS
        and item.auc.value is not None
        and item.auc.se is not None
    ]


def _alpha(spec: PipelineSpec) -> float:
    return (1 - spec.gates.confidence) / 2


def below(found: Interval, days: int, limit: float) -> float:
    """One-sided p value of "the true value is at least `limit`": t with days - 1 degrees of freedom."""
    from scipy import stats

    assert found.value is not None and found.se is not None
    distance = found.value - limit
    if found.se <= 0:
        return 0.0 if distance < 0 else 1.0
    return float(stats.t.cdf(distance / found.se, max(days - 1, 1)))
