"""The evaluation gate: a pure function from evidence to a verdict with reasons.

A claim ("AUC is above the floor", "better than the baseline", "no worse than the champion") must be shown: the
whole interval has to lie on the right side. On the wrong side it is a fail; across the limit it is inconclusive,
and an inconclusive model is never promoted. A guard (calibration, slices, behaviour) refuses what is shown or
seen to be bad. No data is a fail.

Finding statuses: `pass`; `warn` makes the verdict inconclusive; `fail` makes it fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

from tasks.core import Clock, Finding, PipelineSpec, Verdict, iso_utc, utc_now
from tasks.core.records import outcome_of
from tasks.evaluation.check_findings import model_findings
from tasks.evaluation.records import Evaluation, Interval
from tasks.evaluation.slice_rules import slice_findings, slice_regressions


def judge(
    spec: PipelineSpec,
    evaluation: Evaluation,
    *,
    clock: Clock = utc_now,
    as_of: date | None = None,
    further: Sequence[Finding] = (),
) -> Verdict:
    """The verdict of the gates in `spec.gates` on this evidence; `clock` stamps it.

    `as_of` is the day on which the age of the data is counted; default: that of `clock`. `further` are findings
    about what the evidence does not hold.
    `outcome` is `pass`, `fail` or `inconclusive`; `findings` name every rule with its value and limit.
    """
    findings = (*_findings(spec, evaluation, as_of or clock().date()), *further)
    return Verdict(
        gate="evaluation",
        pipeline=evaluation.pipeline,
        subject=evaluation.candidate_digest,
        outcome=outcome_of(findings),
        findings=findings,
        decided_at_utc=iso_utc(clock()),
        evidence_key=evaluation.evidence_key,
        report_key=evaluation.report_key,
    )


def _findings(spec: PipelineSpec, evaluation: Evaluation, as_of: date) -> Iterable[Finding]:
    data = _data(evaluation)
    yield data
    if data.status == "fail":
        return
    yield _min_auc(spec, evaluation)
    yield _baseline(spec, evaluation)
    yield _champion(spec, evaluation)
    yield _calibration(spec, evaluation)
    yield from slice_findings(spec, evaluation.slices)
    yield from slice_regressions(spec, evaluation)
    yield from _leakage(spec, evaluation)
    yield from _feature_times(spec, evaluation)
    yield from _distribution(spec, evaluation)
    if spec.gates.max_staleness_days is not None:
        yield _staleness(spec.gates.max_staleness_days, evaluation, as_of)
    yield from _behaviour(evaluation)
    yield from model_findings(spec, evaluation)


def _data(evaluation: Evaluation) -> Finding:
    rows, positives = evaluation.rows, evaluation.positives
    detail = f"{rows:,} labelled rows of {evaluation.validation_days} days, {positives:,} positive"
    if evaluation.pipeline and rows > 0 and 0 < positives < rows and "candidate" in evaluation.models:
        return Finding("data", "pass", detail, value=float(rows))
    return Finding(
        "data", "fail", f"{detail}: nothing can be shown without both classes", value=float(rows), limit=1.0
    )


def claim(name: str, what: str, bounds: Interval | None, limit: float) -> Finding:
    """A finding that passes when the whole interval is above `limit`, fails when it is below."""
    if bounds is None or bounds.value is None:
        return Finding(name, "fail", f"{what} is not defined on this evidence", limit=limit)
    shown = f"{what} {bounds.text}"
    if bounds.low is None or bounds.high is None:
        return Finding(
            name, "warn", f"{shown} has no interval (too few days)", value=bounds.value, limit=limit
        )
    if bounds.low > limit:
        return Finding(name, "pass", f"{shown} is above {limit:g}", value=bounds.low, limit=limit)
    if bounds.high <= limit:
        return Finding(name, "fail", f"{shown} is not above {limit:g}", value=bounds.low, limit=limit)
    return Finding(
        name, "warn", f"{shown} straddles {limit:g}: not shown either way", value=bounds.low, limit=limit
    )


def _min_auc(spec: PipelineSpec, evaluation: Evaluation) -> Finding:
    return claim("min_auc", "AUC", evaluation.models["candidate"].get("auc"), spec.gates.min_auc)


def _baseline(spec: PipelineSpec, evaluation: Evaluation) -> Finding:
    difference = evaluation.differences.get("candidate-baseline", {}).get("auc")
    return claim(
        "better_than_baseline",
        "AUC minus AUC of logistic regression",
        difference,
        spec.gates.auc_margin_baseline,
    )


def _champion(spec: PipelineSpec, evaluation: Evaluation) -> Finding:
    name = "no_worse_than_champion"
    if evaluation.champion_digest is None:
        return Finding(name, "pass", "skipped: there is no champion yet")
    if evaluation.champion_error:
        return Finding(name, "warn", f"the champion could not score these rows: {evaluation.champion_error}")
    difference = evaluation.differences.get("candidate-champion", {}).get("auc")
    margin = -spec.gates.noninferiority_margin_auc
    if evaluation.champion_digest == evaluation.candidate_digest:
        return Finding(name, "pass", "the candidate is the champion", value=0.0, limit=margin)
    return claim(name, "AUC minus AUC of the champion", difference, margin)


def _calibration(spec: PipelineSpec, evaluation: Evaluation) -> Finding:
    limit = spec.gates.max_ece
    bounds = evaluation.models["candidate"].get("ece")
    if bounds is None or bounds.value is None:
        return Finding("calibration", "fail", "ECE is not defined on this evidence", limit=limit)
    shown = f"calibration error (ECE) {bounds.text}"
    if bounds.value <= limit:
        return Finding("calibration", "pass", f"{shown} is within {limit:g}", value=bounds.value, limit=limit)
    if bounds.low is not None and bounds.low > limit:
        return Finding("calibration", "fail", f"{shown} is above {limit:g}", value=bounds.value, limit=limit)
    return Finding(
        "calibration",
        "warn",
        f"{shown} is above {limit:g}, though its interval is not",
        value=bounds.value,
        limit=limit,
    )


def _leakage(spec: PipelineSpec, evaluation: Evaluation) -> Iterable[Finding]:
    limit = spec.gates.max_single_feature_auc
    found = evaluation.single_features
    missing = sorted(
        set(spec.features.names) - {item.feature for item in found if item.auc.value is not None}
    )
    if missing:
        yield Finding(
            "leakage",
            "fail",
            f"not measured for {', '.join(missing)}: evaluate the model again, on rows of both classes",
            limit=limit,
        )
        return
    suspects = [item for item in found if (item.auc.value or 0.0) > limit]
    for item in suspects:
        shown = item.auc.low is not None and item.auc.low > limit
        yield Finding(
            f"leakage: {item.feature}",
            "fail" if shown else "warn",
            f"this feature alone predicts the label with AUC {item.auc.text}, above {limit:g}"
            + ("" if shown else ", though its interval is not")
            + ": its value probably comes from the outcome. Find out when it is known and drop it from features.py; "
            "if it is known when a prediction is made, raise gates.max_single_feature_auc",
            value=item.auc.value,
            limit=limit,
        )
    if not suspects:
        top = found[0]
        yield Finding(
            "leakage",
            "pass",
            f"none of {len(found)} features alone predicts the label with an AUC above {limit:g}; highest "
            f"{top.feature} with {top.auc.text}",
            value=top.auc.value,
            limit=limit,
        )


def _feature_times(spec: PipelineSpec, evaluation: Evaluation) -> Iterable[Finding]:
    found = {item.feature: item for item in evaluation.feature_times}
    for feature, column in spec.gates.known_at.items():
        name, item = f"known in time: {feature}", found.get(feature)
        if item is None or not item.rows:
            detail = f"not shown: no row has both the feature and {column}; correct gates.known_at"
            yield Finding(name, "fail", detail, limit=0.0)
        elif item.late_rows or item.undated_rows:
            parts = []
            if item.late_rows:
                parts.append(
                    f"{item.late_rows:,} of {item.rows:,} values are newer than their prediction ({column}), by up to "
                    f"{_duration(item.largest_lateness_s)}: leave later values out in source.py or features.py"
                )
            if item.undated_rows:
                parts.append(
                    f"{item.undated_rows:,} of {item.rows:,} values have no time in {column}: let source.py give one, "
                    "or leave the value null as well"
                )
            bad = float(item.late_rows + item.undated_rows)
            yield Finding(name, "fail", "; ".join(parts), value=bad, limit=0.0)
        else:
            detail = f"all {item.rows:,} values were known when their predictions were made ({column})"
            yield Finding(name, "pass", detail, value=0.0, limit=0.0)


def _distribution(spec: PipelineSpec, evaluation: Evaluation) -> Iterable[Finding]:
    shape, gates = evaluation.shape, spec.gates
    if shape is None:
        yield Finding(
            "distribution", "fail", "the predictions' distribution was not measured: evaluate again"
        )
        return
    yield _at_most(
        "distribution: nearly constant",
        f"{_share(shape.repeated_share)} of the rows get one prediction, {shape.most_common:.4g}",
        "look whether features reach the network, or whether training ended at once; if most rows are that alike, "
        "raise gates.max_repeated_share",
        shape.repeated_share,
        gates.max_repeated_share,
    )
    yield _at_most(
        "distribution: extremes",
        f"{_share(shape.extreme_share)} of the predictions have odds beyond a thousand times the label rate's",
        "a logit has run away: look for a feature of another unit, and for leakage; if such rows are that certain, "
        "raise gates.max_extreme_share",
        shape.extreme_share,
        gates.max_extreme_share,
    )
    yield _level(shape.mean_ratio, gates.max_mean_ratio)
    name = "distribution: distance to the champion"
    if shape.champion_distance is not None:
        yield _at_most(
            name,
            f"Kolmogorov-Smirnov distance {shape.champion_distance:.3f} to the champion's predictions of these rows",
            "whoever compares scores with a threshold meets another share of rows; tell them, then raise "
            "gates.max_champion_distance",
            shape.champion_distance,
            gates.max_champion_distance,
        )
    elif evaluation.champion_digest is None:
        yield Finding(name, "pass", "skipped: there is no champion yet")
    else:
        yield Finding(name, "warn", "the champion could not score these rows, so nothing is known of it")


def _level(ratio: Interval, limit: float) -> Finding:
    name = "distribution: level"
    if ratio.value is None:
        return Finding(name, "fail", "mean prediction over label rate is not defined here", limit=limit)
    shown = f"mean prediction over label rate {ratio.text}"
    if 1 / limit <= ratio.value <= limit:
        return Finding(
            name, "pass", f"{shown} is within a factor of {limit:g}", value=ratio.value, limit=limit
        )
    beyond = (
        ratio.low is not None and ratio.high is not None and (ratio.low > limit or ratio.high < 1 / limit)
    )
    return Finding(
        name,
        "fail" if beyond else "warn",
        f"{shown} is off by more than a factor of {limit:g}"
        + ("" if beyond else ", though its interval is not")
        + ": calibrate on newer days, or look whether the label's meaning changed",
        value=ratio.value,
        limit=limit,
    )


def _at_most(name: str, what: str, advice: str, value: float, limit: float) -> Finding:
    if value <= limit:
        return Finding(name, "pass", f"{what}; at most {limit:g}", value=value, limit=limit)
    return Finding(name, "fail", f"{what}, above {limit:g}: {advice}", value=value, limit=limit)


def _staleness(limit: int, evaluation: Evaluation, as_of: date) -> Finding:
    newest = evaluation.validation_last_day
    age = (as_of - newest).days
    shown = f"the newest labelled day {newest} is {age} days old on {as_of}"
    if age < 0:
        detail = f"the newest labelled day {newest} is after {as_of}: correct the clock or the source's days"
        return Finding("staleness", "fail", detail, value=float(age), limit=float(limit))
    if age <= limit:
        return Finding("staleness", "pass", f"{shown}; at most {limit}", value=float(age), limit=float(limit))
    return Finding(
        "staleness",
        "fail",
        f"{shown}, above {limit}: let the source deliver newer days and their labels, and train again",
        value=float(age),
        limit=float(limit),
    )


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


def _behaviour(evaluation: Evaluation) -> Iterable[Finding]:
    if not evaluation.checks:
        yield Finding("behaviour", "fail", "no behavioural check was run")
    for check in evaluation.checks:
        yield Finding(
            f"behaviour: {check.name}",
            "pass" if check.passed else "fail",
            check.detail,
            value=check.value,
            limit=check.limit,
        )
