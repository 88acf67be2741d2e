"""The reports a person reads: one HTML file each, nothing loaded from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tasks.core import Finding, PipelineSpec, Verdict
from tasks.core.day_span import day_span
from tasks.core.report_style import page
from tasks.evaluation.charts import Axes, forest
from tasks.evaluation.check_report import model_section
from tasks.evaluation.records import CanaryBound, CanaryDay, Evaluation, Interval, SliceMetrics
from tasks.evaluation.slice_rules import MIN_SLICE_DAYS
from tasks.evaluation.slices import MONTH, QUARTILE
from tasks.model import metrics

if TYPE_CHECKING:
    from tasks.evaluation.scoring import ScoredDays

NAMES = {
    "candidate": "Candidate",
    "champion": "Champion",
    "baseline": "Logistic regression",
    "constant": "Constant",
}
STYLE = {"candidate": "s1", "champion": "s5", "baseline": "s2"}
METRICS = {
    "auc": ("AUC", "higher is better"),
    "pr_auc": ("PR-AUC", "higher is better"),
    "log_loss": ("Log loss", "lower is better"),
    "brier": ("Brier score", "lower is better"),
    "ece": ("Calibration error (ECE)", "lower is better"),
    "calibration_gap": ("Mean prediction − label rate", "near 0 is better"),
}
RULES = {
    "data": "Enough data",
    "min_auc": "AUC above the floor",
    "better_than_baseline": "Better than logistic regression",
    "no_worse_than_champion": "No worse than the champion",
    "calibration": "Calibrated",
    "slices": "No weak slice",
    "slices against the champion": "No slice worse than with the champion",
    "leakage": "No feature that alone tells the label",
    "staleness": "Fresh data",
    "days": "Enough labelled days",
    "worse_than_champion": "Not worse than the champion",
    "no_worse_than_margin": "Within the margin",
    "outlook": "Outlook",
}
OUTCOME = {
    "pass": ("pass", "Passed"),
    "fail": ("fail", "Failed"),
    "inconclusive": ("warn", "Inconclusive"),
}


def render_evaluation(
    spec: PipelineSpec, evaluation: Evaluation, verdict: Verdict, scored: ScoredDays
) -> str:
    """The evaluation report; `scored` draws the curves."""
    body = "".join(
        [
            _verdict(verdict, _headline(verdict)),
            _cards(evaluation),
            "<h2>Gate</h2>",
            _findings(_rules(verdict.findings)),
            "<h2>Models on the same rows</h2>",
            _models(evaluation),
            "<h2>Curves</h2>",
            _legend(scored),
            '<div class="figures">',
            _roc(scored),
            _precision_recall(scored),
            _calibration(evaluation),
            _histogram(scored, spec.label.column),
            "</div>",
            _slices(spec, evaluation),
            "<h2>Behaviour</h2>",
            _behaviour(evaluation),
            model_section(evaluation.model_checks),
            "<h2>Provenance</h2>",
            _provenance(evaluation, verdict),
        ]
    )
    subtitle = (
        f"model {evaluation.candidate_digest[:12]} on {evaluation.validation_days} days, "
        f"{day_span(evaluation.validation_first_day, evaluation.validation_last_day)}"
    )
    return page(f"Evaluation of {spec.name}", body, subtitle)


def render_canary(
    spec: PipelineSpec,
    verdict: Verdict,
    days: Sequence[CanaryDay],
    bounds: Sequence[CanaryBound],
    champion_digest: str,
) -> str:
    """The canary report: the verdict, the confidence sequence and the days."""
    headline = {
        "pass": "Promote: the challenger is no worse than the champion",
        "fail": "Roll back: the challenger is worse than the champion",
        "inconclusive": "Hold: the champion stays",
    }[verdict.outcome]
    rows = "".join(
        f'<tr><td>{item.day}</td><td class="num">{item.rows:,}</td>'
        f'<td class="num">{item.challenger_brier:.5f}</td><td class="num">{item.champion_brier:.5f}</td>'
        f'<td class="num">{_minus(f"{item.difference:+.5f}")}</td></tr>'
        for item in days
    )
    table = (
        '<div class="scroll"><table><thead><tr><th>Day</th><th class="num">Rows</th>'
        '<th class="num">Brier challenger</th><th class="num">Brier champion</th>'
        f'<th class="num">Difference</th></tr></thead><tbody>{rows}</tbody></table></div>'
        if days
        else '<p class="note">No labelled day yet.</p>'
    )
    facts = {
        "Challenger": f"<code>{escape(verdict.subject)}</code>",
        "Champion": f"<code>{escape(champion_digest)}</code>",
        "Margin": f"{spec.canary.margin_brier:g} Brier",
        "Error rate": f"{spec.canary.alpha:g} on each side, at every day together",
        "Entities": f"{100 * spec.canary.slice_share:.0f} %, by hash",
        "Decided": escape(verdict.decided_at_utc),
    }
    body = "".join(
        [
            _verdict(verdict, headline),
            "<h2>Reasons</h2>",
            _findings(verdict.findings),
            "<h2>Evidence by day</h2>",
            sequence_figure(spec, days, bounds) if bounds else "",
            table,
            "<h2>Provenance</h2>",
            _facts(facts),
        ]
    )
    return page(
        f"Canary of {spec.name}", body, f"challenger {verdict.subject[:12]}, {len(days)} labelled days"
    )


def _headline(verdict: Verdict) -> str:
    return {
        "pass": "Passed: may be registered as challenger",
        "fail": "Failed: this model is refused",
        "inconclusive": "Inconclusive: not shown to be good enough, so not promoted",
    }[verdict.outcome]


def _verdict(verdict: Verdict, headline: str) -> str:
    bad = [finding for finding in verdict.findings if finding.status != "pass"]
    if bad:
        ordered = sorted(bad, key=lambda item: item.status != "fail")
        items = "".join(
            f"<li>{escape(_rule(item))}: {escape(_minus_numbers(item.shown))}</li>" for item in ordered
        )
        reasons = f"<ul>{items}</ul>"
    else:
        reasons = (
            f"<p>All {len(verdict.findings)} rules on the model hold. "
            "The gate asks besides that the data gate has passed its data.</p>"
        )
    return f'<div class="verdict {OUTCOME[verdict.outcome][0]}"><h2>{escape(headline)}</h2>{reasons}</div>'


def render_waived(report: str, verdict: Verdict) -> str:
    """The report of an evaluation with a notice above it: which findings a person lets pass, and the outcome with them."""
    opens = '<div class="verdict '
    notice = _verdict(
        replace(verdict, findings=verdict.waived),
        "Passed by waiver only: a person lets these findings pass"
        if verdict.passed
        else "Not passed, though a person lets these findings pass",
    )
    head, found, rest = report.partition(opens)
    return head + notice + found + rest if found else notice + report


def _cards(evaluation: Evaluation) -> str:
    found = evaluation.models["candidate"]
    cards = [
        ("AUC", _value(found["auc"]), _bounds(found["auc"])),
        ("Calibration error", _value(found["ece"]), _bounds(found["ece"])),
    ]
    for other, name in (("baseline", "AUC over baseline"), ("champion", "AUC over champion")):
        difference = evaluation.differences.get(f"candidate-{other}")
        if difference:
            cards.append(
                (name, _value(difference["auc"], signed=True), _bounds(difference["auc"], signed=True))
            )
    rate = evaluation.positives / evaluation.rows if evaluation.rows else 0.0
    cards.append(("Labelled rows", f"{evaluation.rows:,}", f"{_percent(rate)} positive"))
    inner = "".join(
        f'<div class="card"><span class="label">{escape(label)}</span><span class="value">{value}</span>'
        f'<span class="hint">{hint}</span></div>'
        for label, value, hint in cards
    )
    return f'<div class="cards">{inner}</div>'


def _findings(findings: Iterable[Finding]) -> str:
    words = {"pass": "pass", "warn": "inconclusive", "fail": "fail"}
    rows = []
    for item in findings:
        skipped = item.status == "pass" and item.detail.startswith("skipped")
        badge = ("skip", "skipped") if skipped else (item.status, words[item.status])
        rows.append(
            f'<tr class="{item.status}"><td>{escape(_rule(item))}</td>'
            f'<td><span class="badge {badge[0]}">{badge[1]}</span></td><td class="prose">{escape(_minus_numbers(item.detail))}</td>'
            f'<td class="num">{_number(item.value)}</td><td class="num">{_number(item.limit)}</td></tr>'
        )
    return (
        '<div class="scroll"><table><thead><tr><th>Rule</th><th>Result</th><th>What was found</th>'
        f'<th class="num">Judged value</th><th class="num">Limit</th></tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div>"
    )


def _rules(findings: Sequence[Finding]) -> list[Finding]:
    """The gate's own rules, and each behaviour that did not hold; the others are in their own section."""
    return [item for item in findings if not item.name.startswith("behaviour: ") or item.status != "pass"]


def _rule(item: Finding) -> str:
    if item.name.startswith("behaviour: "):
        return item.name.removeprefix("behaviour: ").capitalize()
    if item.name == "better_than_baseline" and item.limit is not None and item.limit < 0:
        return "Not far behind logistic regression"
    return RULES.get(item.name, item.name[:1].upper() + item.name[1:])


def _models(evaluation: Evaluation) -> str:
    models = [name for name in NAMES if name in evaluation.models]
    others = [name for name in ("champion", "baseline") if f"candidate-{name}" in evaluation.differences]
    percent = f"{100 * evaluation.confidence:.0f} %"
    plain = f" Before that it is {evaluation.ece_plugin:.4f}." if evaluation.ece_plugin is not None else ""
    columns = []
    for name in models:
        columns.append((NAMES[name], evaluation.models[name], False))
        if name in others:
            columns.append(("Candidate − this", evaluation.differences[f"candidate-{name}"], True))
    return (
        _metric_table(columns)
        + f'<p class="note">{percent} intervals from {evaluation.bootstrap_samples:,} resamples of whole days: '
        "rows of one day share shocks, so days and not rows are the unit of evidence. Differences are paired: "
        "every model is measured on the same resamples. ECE is given less its estimated bias."
        f"{plain} The constant predicts the train days' label rate.</p>"
    )


def _metric_table(columns: Sequence[tuple[str, dict[str, Interval], bool]]) -> str:
    """Metrics down, models across; the flag says whether numbers carry their sign."""
    head = "".join(f'<th class="num">{escape(name)}</th>' for name, _, _ in columns)
    rows = []
    for metric, (name, direction) in METRICS.items():
        cells = "".join(_cell(found.get(metric), signed=signed) for _, found, signed in columns)
        rows.append(f'<tr><td>{name}<span class="note">{direction}</span></td>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th>Metric</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _legend(scored: ScoredDays) -> str:
    items = "".join(
        f'<span><i class="{style}"></i>{NAMES[name]}</span>'
        for name, style in STYLE.items()
        if name in scored.scores
    )
    return f'<div class="legend">{items}</div>'


def _roc(scored: ScoredDays) -> str:
    axes = Axes(
        (0, 1), (0, 1), x_label="False positive rate", y_label="True positive rate", label="ROC curves"
    )
    axes.path(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "axis", dashed=True)
    for name, style in reversed(STYLE.items()):
        if name in scored.scores:
            axes.path(*metrics.roc_points(scored.labels, scored.scores[name]), style)
    return _figure(axes.svg(), "The dashed diagonal is a coin toss.", "ROC")


def _precision_recall(scored: ScoredDays) -> str:
    rate = float(scored.labels.mean())
    axes = Axes((0, 1), (0, 1), x_label="Recall", y_label="Precision", label="Precision-recall curves")
    axes.path(np.array([0.0, 1.0]), np.array([rate, rate]), "axis", dashed=True)
    for name, style in reversed(STYLE.items()):
        if name in scored.scores:
            recall, precision = metrics.pr_points(scored.labels, scored.scores[name])
            steady = recall >= 0.005
            axes.path(recall[steady], precision[steady], style)
    return _figure(
        axes.svg(), f"The dashed line is the label rate, {_percent(rate)}.", "Precision and recall"
    )


def _calibration(evaluation: Evaluation) -> str:
    bins = evaluation.calibration
    top = max([0.05, *(bin.mean_score for bin in bins), *(bin.high or bin.label_rate for bin in bins)])
    top = min(1.0, top * 1.05)
    axes = Axes((0, top), (0, top), x_label="Mean prediction", y_label="Label rate", label="Calibration")
    axes.path(np.array([0.0, top]), np.array([0.0, top]), "axis", dashed=True)
    for bin in bins:
        if bin.low is not None and bin.high is not None:
            axes.whisker(bin.mean_score, bin.low, bin.high, "s1")
        axes.dot(
            bin.mean_score,
            bin.label_rate,
            "s1",
            f"{bin.rows:,} rows: predicted {bin.mean_score:.3f}, happened {bin.label_rate:.3f}",
        )
    return _figure(
        axes.svg(),
        f"The candidate in {len(bins)} bins of equal counts, intervals by resampling days. "
        "On the dashed line, predictions come true as often as they say.",
        "Calibration",
    )


def _histogram(scored: ScoredDays, label: str) -> str:
    scores, labels = scored.scores["candidate"], scored.labels == 1
    top = float(min(1.0, max(np.max(scores) * 1.02, 0.05)))
    edges = np.linspace(0, top, 41)
    counts = {
        style: np.histogram(scores[chosen], edges)[0] / max(int(chosen.sum()), 1)
        for style, chosen in (("s4", ~labels), ("s5", labels))
    }
    high = max(float(value.max()) for value in counts.values()) * 1.08
    axes = Axes((0, top), (0, high), x_label="Prediction", y_label="Share of rows", label="Score histograms")
    for style, shares in counts.items():
        for left, right, share in zip(edges, edges[1:], shares, strict=False):
            if share:
                axes.box((float(left), float(right)), (0, float(share)), style, 0.55)
    legend = (
        f'<div class="legend"><span><i class="s4"></i>{escape(label)} = 0</span>'
        f'<span><i class="s5"></i>{escape(label)} = 1</span></div>'
    )
    return _figure(
        legend + axes.svg(), "The candidate, each outcome scaled to its own total.", "Predictions by outcome"
    )


def _slices(spec: PipelineSpec, evaluation: Evaluation) -> str:
    if not evaluation.slices:
        return ""
    gates = spec.gates
    rows: list[tuple[str, str, float | None, float | None, float | None, str]] = []
    table = []
    column = None
    for item in sorted(evaluation.slices, key=lambda item: _order(spec, item)):
        if item.column != column:
            column = item.column
            rows.append((column, "", None, None, None, ""))
        judged = item.rows >= gates.slice_min_rows and item.days >= MIN_SLICE_DAYS
        low, high = item.auc.low, item.auc.high
        style = "muted" if not judged else "good"
        if judged and item.auc.value is not None and item.auc.value < gates.slice_min_auc:
            style = "bad" if high is not None and high < gates.slice_min_auc else "caution"
        if judged or item.rows >= gates.slice_min_rows // 4:
            words = f"{item.rows:,} rows" if judged else f"{item.rows:,} rows, not judged"
            rows.append((item.value[:26], words, item.auc.value, low, high, style))
        against = _cell(item.champion_auc) + _cell(item.champion_difference, signed=True)
        against = against if evaluation.champion_digest else ""
        table.append(
            f"<tr><td>{escape(item.name)}</td>"
            f'<td class="num">{item.rows:,}</td><td class="num">{item.days}</td>'
            f'<td class="num">{_percent(item.positives / item.rows)}</td>{_cell(item.auc)}'
            f"{against}{_cell(item.baseline_auc)}"
            f"{_cell(item.calibration_gap, signed=True)}</tr>"
        )
    plot = forest(
        rows,
        limit=gates.slice_min_auc,
        label="AUC by slice",
        reference=evaluation.models["candidate"]["auc"].value,
    )
    heads = '<th class="num">Champion AUC</th><th class="num">AUC − champion</th>'
    champion_head = heads if evaluation.champion_digest else ""
    head = (
        '<tr><th>Slice</th><th class="num">Rows</th><th class="num">Days</th><th class="num">Positive</th>'
        f'<th class="num">AUC</th>{champion_head}<th class="num">Logistic AUC</th>'
        '<th class="num">Prediction − label rate</th></tr>'
    )
    return (
        "<h2>Slices</h2>"
        + _figure(
            plot,
            f"AUC of the candidate by slice with {100 * evaluation.confidence:.0f} % intervals. Dashed: the floor, "
            f"{gates.slice_min_auc:g}. Solid: all rows. Slices under {gates.slice_min_rows:,} rows or "
            f"{MIN_SLICE_DAYS} days are shown but not judged; the tiniest are in the table only.",
        )
        + f"<details><summary>All {len(evaluation.slices)} slices as a table</summary>"
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(table)}</tbody></table></div></details>'
    )


def _order(spec: PipelineSpec, item: SliceMetrics) -> tuple[int, int, str]:
    """Columns as the pipeline lists them; months and quartiles in their own order, other values by size."""
    column = spec.gates.slices.index(item.column) if item.column in spec.gates.slices else -1
    ranked = item.column == MONTH or QUARTILE.match(item.value) is not None
    return column, -(10**12) if ranked else -item.rows, item.value


def _behaviour(evaluation: Evaluation) -> str:
    rows = "".join(
        f'<tr class="{"pass" if check.passed else "fail"}"><td>{escape(check.name.capitalize())}</td>'
        f'<td><span class="badge {"pass" if check.passed else "fail"}">{"pass" if check.passed else "fail"}'
        f"</span></td><td>{escape(check.detail)}</td></tr>"
        for check in evaluation.checks
    )
    speed = "; ".join(
        f"{item.batch_rows:,} row{'s' if item.batch_rows > 1 else ''} in {item.median_ms:.1f} ms "
        f"({item.rows_per_s:,.0f} rows/s)"
        for item in evaluation.latency
    )
    note = f'<p class="note">Latency on the machine that evaluated, features to prediction: {speed}. Not judged; what is judged was measured in a clean process.</p>'
    return (
        '<div class="scroll"><table><thead><tr><th>Check</th><th>Result</th><th>What was found</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note if speed else ''}"
    )


def _provenance(evaluation: Evaluation, verdict: Verdict) -> str:
    champion = evaluation.champion_digest
    facts = {
        "Candidate": f"<code>{escape(evaluation.candidate_digest)}</code>",
        "Champion": f"<code>{escape(champion)}</code>" if champion else "none yet",
        "Snapshot": f"<code>{escape(evaluation.snapshot_id)}</code>",
        "Feature version": f"<code>{escape(evaluation.feature_version)}</code>",
        "Train days": f"{evaluation.train_first_day} to {evaluation.train_last_day}, "
        f"{evaluation.train_rows:,} labelled rows",
        "Validation days": f"{day_span(evaluation.validation_first_day, evaluation.validation_last_day)}, "
        f"{evaluation.rows:,} labelled rows; {evaluation.unlabelled_rows:,} without an outcome left out",
        "Bootstrap": f"{evaluation.bootstrap_samples:,} resamples of days, seed {evaluation.bootstrap_seed}",
        "Measured": escape(evaluation.created_at_utc),
        "Judged": escape(verdict.decided_at_utc),
        "Evidence": f"<code>{escape(evaluation.evidence_key or '')}</code>",
    }
    if evaluation.champion_error:
        facts["Champion"] += f" — could not score: {escape(evaluation.champion_error)}"
    return _facts(facts)


def sequence_figure(spec: PipelineSpec, days: Sequence[CanaryDay], bounds: Sequence[CanaryBound]) -> str:
    """HTML of the confidence sequence by day, with the single days, the margin and zero."""
    margin = spec.canary.margin_brier
    reach = max([2 * margin, *(1.2 * abs(item.difference) for item in days)])
    ends = [abs(value) for item in bounds for value in (item.low, item.high) if value is not None]
    reach = min(max([reach, *(1.1 * value for value in ends)]), 2 * reach)
    last = max(len(bounds), 2)
    axes = Axes(
        (0.5, last + 0.5), (-reach, reach), x_label="Days with labels", y_label="Brier challenger − champion",
        label="Confidence sequence of the canary", width=900, height=320,
        x_ticks=[(item.days, f"{item.day:%d %b}") for item in bounds[:: max(1, len(bounds) // 12)]],
    )  # fmt: skip
    drawn = [item for item in bounds if item.low is not None and item.high is not None]
    if drawn:
        x = np.array([float(item.days) for item in drawn])
        low = np.clip([item.low or 0.0 for item in drawn], -reach, reach)
        high = np.clip([item.high or 0.0 for item in drawn], -reach, reach)
        axes.band(x, low, high)
    axes.path(np.array([0.5, last + 0.5]), np.zeros(2), "axis")
    axes.level(margin, f"margin {margin:g}")
    axes.path(np.array([float(item.days) for item in bounds]), np.array([item.mean for item in bounds]), "s1")
    difference = {item.day: item for item in days}
    for item in bounds:
        found = difference[item.day]
        axes.dot(
            item.days,
            float(np.clip(found.difference, -reach, reach)),
            "s2",
            f"{item.day}: {found.difference:+.5f}",
        )
    legend = (
        '<div class="legend"><span><i></i>mean so far</span><span><i class="s2"></i>single day</span></div>'
    )
    return _figure(
        legend + axes.svg(),
        "The shaded confidence sequence holds at all days together, so it may be read every morning. Promote "
        "when it lies below the margin; roll back when it lies above 0.",
    )


def _facts(facts: dict[str, str]) -> str:
    return f'<dl class="facts">{"".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in facts.items())}</dl>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _figure(inner: str, caption: str, title: str = "") -> str:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{head}{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def _cell(bounds: Interval | None, *, signed: bool = False) -> str:
    if bounds is None or bounds.value is None:
        return '<td class="num">–</td>'
    return (
        f'<td class="num">{_value(bounds, signed=signed)}<span class="note">{_bounds(bounds, signed=signed)}'
        "</span></td>"
    )


def _value(bounds: Interval, *, signed: bool = False) -> str:
    return "–" if bounds.value is None else _shown(bounds.value, signed)


def _bounds(bounds: Interval, *, signed: bool = False) -> str:
    if bounds.low is None or bounds.high is None:
        return "no interval"
    return f"{_shown(bounds.low, signed)} to {_shown(bounds.high, signed)}"


def _shown(value: float, signed: bool) -> str:
    rounded = value + 0.0 if abs(value) >= 5e-5 else 0.0
    return _minus(f"{rounded:+.4f}" if signed and rounded else f"{rounded:.4f}")


def _minus_numbers(text: str) -> str:
    """`text` with a minus sign before its negative numbers; hyphens in words and dates stay."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "−", text)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    return _minus(text)
