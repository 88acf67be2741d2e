"""The canary: challenger and champion on the same labelled days after the validation window.

The unit of evidence is a day: d = mean Brier loss of the challenger - mean Brier loss of the champion over the
day's rows (rows of a day share shocks, days are taken as independent). A confidence sequence for the mean of d
holds at every number of days at once, so the answer may be looked at each morning and stopped at any time.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np

from tasks.core import Clock, Finding, PipelineSpec, Settings, Snapshot, Verdict, iso_utc, open_store, utc_now
from tasks.core.errors import DataError
from tasks.core.ids import canonical_json, digest_json
from tasks.core.intervals import share_at_least
from tasks.evaluation.records import CanaryBound, CanaryDay
from tasks.model import metrics

log = logging.getLogger(__name__)

MIN_DAY_ROWS = 30
"""A day with fewer paired rows says too little to count as much as the others."""
MIN_DAYS = 3
PRIOR_PRECISION = 0.1
"""c^2 of the mixture: prior variance of the standardised mean is 1 / c^2. Chosen for 3 to 14 days."""


def half_width(days: int, spread: float, alpha: float, *, precision: float = PRIOR_PRECISION) -> float:
    """Half width of a one-sided level-`alpha` confidence sequence for a mean, after `days` values; may be inf.

    Robbins' normal mixture with the unknown spread integrated out. The t statistic's mixture likelihood ratio

        M = sqrt(c2 / (n + c2)) * ((1 + t^2 / (n - 1)) / (1 + t^2 / (n - 1) * c2 / (n + c2))) ** (n / 2)

    is a martingale under a normal mean of 0 whatever the variance, so by Ville's inequality it ever exceeds
    1 / (2 alpha) with probability at most 2 alpha, both sides together. Solving M = 1 / (2 alpha) for t gives the
    width. For many days it agrees with the mixture with a running variance; for few it is wider, because a spread
    estimated from five days is itself uncertain.

    Args:
        days: n >= 0.
        spread: Standard deviation of the values, n - 1 in the denominator.
        alpha: Error of one side.
        precision: c2 > 0.

    Source: Lai (1976), "On confidence sequences"; Wang & Ramdas (2024), "Anytime-valid t-tests and confidence
    sequences for Gaussian means with unknown variance".
    """
    if days < 2:
        return math.inf
    shrink = precision / (days + precision)
    level = math.exp((2 * math.log(1 / (2 * alpha)) - math.log(shrink)) / days)
    if level * shrink >= 1:
        return math.inf
    t_squared = (days - 1) * (level - 1) / (1 - level * shrink)
    return spread * math.sqrt(t_squared / days)


def asymptotic_half_width(days: int, spread: float, alpha: float, planned_days: int) -> float:
    """Robbins' mixture with the running spread plugged in, tightest at `planned_days`.

    It is the limit of `half_width` for many days and too narrow for few (docs/evaluation.md has the simulation),
    so it decides nothing here; it is kept as the reference that tests compare with.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024), "Time-uniform central limit theory and
    asymptotic confidence sequences", Annals of Statistics.
    """
    log_level = -2 * math.log(2 * alpha)
    r2 = (log_level + math.log(log_level) + 1) / planned_days
    grown = days * r2 + 1
    return spread * math.sqrt(2 * grown / (days**2 * r2) * math.log(1 + math.sqrt(grown) / (2 * alpha)))


def sequence(differences: Sequence[float], alpha: float) -> list[tuple[float, float]]:
    """(mean, half width) after each value."""
    values = np.asarray(differences, dtype=np.float64)
    found = []
    for n in range(1, len(values) + 1):
        spread = float(np.std(values[:n], ddof=1)) if n > 1 else math.inf
        width = half_width(n, spread, alpha) if n >= MIN_DAYS else math.inf
        found.append((float(np.mean(values[:n])), width))
    return found


def compare_canary(
    spec: PipelineSpec, days: Sequence[CanaryDay], *, subject: str, clock: Clock = utc_now
) -> Verdict:
    """Promote (`pass`), roll back (`fail`) or hold (`inconclusive`: the champion stays) on these days.

    With the sequence [low, high] for challenger - champion after the last day: roll back when low > 0 (surely
    worse, even by less than the margin), promote when high < `spec.canary.margin_brier`, else hold.

    Args:
        spec: The pipeline; its `canary` section holds margin, alpha and horizon.
        days: Paired losses by day, in any order; days with fewer than 30 rows are left out. Only the first
            `spec.canary.days` count.
        subject: Bundle digest of the challenger.
        clock: Stamps the verdict, decides nothing.
    """
    canary = spec.canary
    ordered = sorted(days, key=lambda item: item.day)
    usable = [item for item in ordered if item.rows >= MIN_DAY_ROWS][: canary.days]
    findings = [_days_finding(ordered, usable, canary.days)]
    bounds = canary_bounds(spec, days)
    outcome = "inconclusive"
    if bounds:
        last = bounds[-1]
        low = "-inf" if last.low is None else f"{last.low:+.5f}"
        high = "inf" if last.high is None else f"{last.high:+.5f}"
        shown = (
            f"Brier challenger - champion {last.mean:+.5f}, between {low} and {high} after {last.days} days"
        )
        outcome = decide(last.low, last.high, canary.margin_brier)
        worse, fine = outcome == "fail", outcome == "pass"
        findings.append(
            Finding(
                "worse_than_champion",
                "fail" if worse else "pass",
                f"{shown}: {'surely worse, roll back' if worse else 'not shown to be worse'}",
                value=last.low,
                limit=0.0,
            )
        )
        findings.append(
            Finding(
                "no_worse_than_margin",
                "pass" if fine else "fail" if worse else "warn",
                f"{shown}: the upper bound is {'below' if fine else 'not below'} the margin "
                f"{canary.margin_brier:g}" + ("" if fine or worse else ", hold: the champion stays"),
                value=last.high,
                limit=canary.margin_brier,
            )
        )
        if not fine and not worse:
            findings.append(_outlook(spec, usable))
        findings.extend(_day_shocks(spec, usable, outcome))
    unscored = _unscored(spec, usable)
    findings.extend(unscored)
    if any(item.status == "fail" for item in unscored):
        outcome = "fail"
    return Verdict(
        gate="canary",
        pipeline=spec.name,
        subject=subject,
        outcome=outcome,
        findings=tuple(findings),
        decided_at_utc=iso_utc(clock()),
    )


def decide(low: float | None, high: float | None, margin: float) -> str:
    """`fail`, `pass` or `inconclusive` for these bounds: surely worse comes before good enough."""
    if low is not None and low > 0:
        return "fail"
    return "pass" if high is not None and high < margin else "inconclusive"


def canary_bounds(spec: PipelineSpec, days: Sequence[CanaryDay]) -> tuple[CanaryBound, ...]:
    """The confidence sequence day by day, over the days that `compare_canary` uses."""
    usable = [item for item in sorted(days, key=lambda item: item.day) if item.rows >= MIN_DAY_ROWS]
    usable = usable[: spec.canary.days]
    steps = sequence([item.difference for item in usable], spec.canary.alpha)
    return tuple(
        CanaryBound(
            day=item.day,
            days=n,
            mean=mean,
            low=mean - width if math.isfinite(width) else None,
            high=mean + width if math.isfinite(width) else None,
        )
        for n, (item, (mean, width)) in enumerate(zip(usable, steps, strict=True), start=1)
    )


def days_to_decide(spread: float, margin: float, alpha: float, *, most: int = 365) -> int | None:
    """Days until an equal challenger is promoted when days vary by `spread`; None beyond `most`."""
    for days in range(MIN_DAYS, most + 1):
        if half_width(days, spread, alpha) < margin:
            return days
    return None


def _days_finding(ordered: Sequence[CanaryDay], usable: Sequence[CanaryDay], horizon: int) -> Finding:
    small = sum(item.rows < MIN_DAY_ROWS for item in ordered)
    detail = (
        f"{len(usable)} of {horizon} days with matured labels, {sum(i.rows for i in usable):,} paired rows"
    )
    if small:
        detail += f"; {small} days with fewer than {MIN_DAY_ROWS} rows left out"
    if len(usable) < MIN_DAYS:
        detail += f": at least {MIN_DAYS} are needed, hold: the champion stays"
    return Finding(
        "days",
        "pass" if len(usable) >= MIN_DAYS else "warn",
        detail,
        value=float(len(usable)),
        limit=float(MIN_DAYS),
    )


def _unscored(spec: PipelineSpec, usable: Sequence[CanaryDay]) -> list[Finding]:
    """Rows that the challenger could not score: surely more than `canary.max_error_share` of them are a refusal."""
    errors, rows = sum(item.challenger_errors for item in usable), sum(item.rows for item in usable)
    if not errors:
        return []
    limit = spec.canary.max_error_share
    surely = share_at_least(errors, rows, spec.canary.alpha)
    example = next(item.error_example for item in usable if item.challenger_errors)
    return [
        Finding(
            "unscored_rows",
            "fail" if surely > limit else "warn",
            f"the challenger could not score {errors:,} of {rows:,} rows, for example: {example or 'no number'}; each "
            "counts as its worst prediction",
            value=errors / rows,
            limit=limit,
        )
    ]


def _day_shocks(spec: PipelineSpec, usable: Sequence[CanaryDay], outcome: str) -> list[Finding]:
    """How much more days vary than their rows explain. Told, never judged: the sequence on day means holds anyway.

    Nothing for fewer than three days, and for days of earlier releases, whose spread of rows was not kept.
    """
    spreads = [item.row_spread for item in usable if item.row_spread is not None]
    if len(usable) < MIN_DAYS or len(spreads) < len(usable):
        return []
    rows = np.array([item.rows for item in usable], dtype=np.float64)
    means = np.array([item.difference for item in usable])
    within = np.array(spreads) ** 2
    explained = float(np.mean(within / rows))
    if explained == 0:
        return []
    ratio = float(np.var(means, ddof=1)) / explained
    total = rows.sum()
    center = float(rows @ means / total)
    squares = (rows - 1) @ within + rows @ (means - center) ** 2
    width = half_width(int(total), math.sqrt(squares / (total - 1)), spec.canary.alpha)
    by_rows = decide(center - width, center + width, spec.canary.margin_brier)
    words = {"pass": "promoted", "fail": "rolled back", "inconclusive": "held"}
    detail = f"the means of {len(usable)} days vary {ratio:.1f} times as much (variance) as independent rows would let them"
    if by_rows != outcome:
        detail += (
            f"; counted as independent, {int(total):,} rows would have {words[by_rows]} the challenger: "
        )
        detail += "days decide, because rows of a day can share a shock"
    return [Finding("day_shocks", "pass" if by_rows == outcome else "warn", detail, value=ratio, limit=1.0)]


def _outlook(spec: PipelineSpec, usable: Sequence[CanaryDay]) -> Finding:
    """What to expect next, for the person who reads "hold"."""
    canary = spec.canary
    if len(usable) < MIN_DAYS:
        return Finding("outlook", "warn", "too few days to say how long a decision will take")
    spread = float(np.std([item.difference for item in usable], ddof=1))
    needed = days_to_decide(spread, canary.margin_brier, canary.alpha)
    if needed is None:
        detail = (
            "an equally good challenger would not be decided within a year at this noise: widen margin_brier"
        )
    else:
        detail = f"an equally good challenger is decided after about {needed} days at this noise"
        if needed > canary.days:
            detail += f": raise canary.days above {canary.days}, or widen margin_brier"
    return Finding("outlook", "warn", f"days vary by {spread:.5f} (sd); {detail}", value=needed)


def run_canary(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    *,
    challenger_digest: str,
    champion_digest: str,
    clock: Clock = utc_now,
) -> Verdict:
    """Score the labelled days of `snapshot` with both models and compare them.

    Args:
        settings: This installation.
        spec: The pipeline.
        snapshot: A training-kind snapshot (it holds labels) of days after the validation window. Rows with a null
            label and entities outside `spec.canary.slice_share` are left out.
        challenger_digest: Bundle digest of the challenger.
        champion_digest: Bundle digest of the champion.
        clock: Stamps the verdict, decides nothing.

    Raises:
        DataError: The snapshot holds no labels.
        DigestMismatch, NotFound, PipelineCodeError: A bundle cannot be loaded or cannot score.
    """
    from tasks.core.partitions import read_partition
    from tasks.core.rows import entity_column
    from tasks.core.sampling import in_slice
    from tasks.evaluation.scoring import labels_of, load_scorer, score_or_nan

    if spec.label.column not in dict(snapshot.schema):
        raise DataError(
            f"has no column {spec.label.column}",
            which=f"snapshot {snapshot.snapshot_id} ({snapshot.kind})",
            fix="run the canary on a snapshot of kind training: it carries the labels",
        )
    store = open_store(settings, prefix=spec.prefix)
    folder = f"evaluation/{challenger_digest[:16]}-{snapshot.snapshot_id}"
    identity = digest_json(
        [challenger_digest, champion_digest, snapshot.snapshot_id, spec.canary.model_dump()]
    )
    key = f"{folder}/canary-{identity[:12]}.json"
    report_key = f"{folder}/canary-{identity[:12]}.html"
    if store.exists(key):
        log.info("canary: this comparison was made before, evidence %s", key)
        return Verdict.from_json(json.loads(store.get(key))["verdict"])

    challenger = load_scorer(settings, spec, challenger_digest)
    champion = load_scorer(settings, spec, champion_digest)
    days: list[CanaryDay] = []
    for partition in snapshot.partitions:
        if sum(item.rows >= MIN_DAY_ROWS for item in days) == spec.canary.days:
            break
        rows = read_partition(store, partition)
        labels, known = labels_of(rows, spec)
        known &= in_slice(spec.name, entity_column(rows, spec), spec.canary.slice_share)
        if not known.any():
            log.info("canary: %s has no labelled row in the slice", partition.day)
            continue
        if not days:  # what a first call costs once is no part of the seconds
            for scorer in (challenger, champion):
                score_or_nan(scorer, rows.slice(0, MIN_DAY_ROWS), spec)
        losses, seconds, failed, reasons = [], [], [], []
        for scorer in (challenger, champion):
            started = time.process_time()
            scores, reason = score_or_nan(scorer, rows, spec)
            seconds.append(time.process_time() - started)
            failed.append(int((~np.isfinite(scores[known])).sum()))
            losses.append(_losses(labels[known], scores[known]))
            reasons.append(reason)
        found = replace(
            paired_day(partition.day, *losses),
            challenger_seconds=round(seconds[0], 5) if not any(failed) else None,
            champion_seconds=round(seconds[1], 5) if not any(failed) else None,
            positives=int(labels[known].sum()),
            challenger_errors=failed[0],
            error_example=reasons[0],
        )
        days.append(found)
        log.info(
            "canary: %s %s rows, Brier challenger %.5f, champion %.5f, difference %+.5f",
            found.day, f"{found.rows:,}", found.challenger_brier, found.champion_brier, found.difference,
        )  # fmt: skip
    verdict = compare_canary(spec, days, subject=challenger_digest, clock=clock)
    return _keep(settings, spec, verdict, days, champion_digest, snapshot, key, report_key)


def _losses(labels: metrics.IntArray, scores: metrics.FloatArray) -> metrics.FloatArray:
    """Brier loss of each row, where a prediction that is not finite costs as much as the worst one."""
    return metrics.brier_losses(labels, np.where(np.isfinite(scores), scores, 1 - labels))


def paired_day(day: date, challenger: metrics.FloatArray, champion: metrics.FloatArray) -> CanaryDay:
    """The losses of both models on the same rows of one day, at least one."""
    return CanaryDay(
        day=day,
        rows=len(challenger),
        challenger_brier=float(np.mean(challenger)),
        champion_brier=float(np.mean(champion)),
        row_spread=float(np.std(challenger - champion, ddof=1)) if len(challenger) > 1 else None,
    )


def _keep(
    settings: Settings,
    spec: PipelineSpec,
    verdict: Verdict,
    days: Sequence[CanaryDay],
    champion_digest: str,
    snapshot: Snapshot,
    key: str,
    report_key: str,
) -> Verdict:
    """Report first, evidence last by exclusive create; a concurrent winner's verdict is adopted."""
    from tasks.core.object_store import AlreadyExists
    from tasks.evaluation.report import render_canary

    store = open_store(settings, prefix=spec.prefix)
    verdict = replace(verdict, evidence_key=key, report_key=report_key)
    bounds = canary_bounds(spec, days)
    store.put(report_key, render_canary(spec, verdict, days, bounds, champion_digest).encode())
    evidence = {
        "verdict": verdict.to_json(),
        "champion_digest": champion_digest,
        "snapshot_id": snapshot.snapshot_id,
        "canary": spec.canary.model_dump(),
        "days": [item.to_json() for item in days],
        "sequence": [item.to_json() for item in bounds],
    }
    try:
        store.put_exclusive(key, canonical_json(evidence))
    except AlreadyExists:
        return Verdict.from_json(json.loads(store.get(key))["verdict"])
    log.info("canary: %s, report %s", verdict.outcome, store.url(report_key))
    return verdict
