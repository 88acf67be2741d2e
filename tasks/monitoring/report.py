"""The monitor's report: one self-contained page for a window of days, the verdict in words first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from itertools import pairwise

import numpy as np

from tasks.core.day_span import day_span
from tasks.core.report_style import page
from tasks.core.spec import PipelineSpec
from tasks.model.profile import FloatArray, IntArray, Profile
from tasks.monitoring.causes import DEPLOYMENT, FEATURE_VERSION, RUN_REPLACED, SCHEMA, Cause, Change
from tasks.monitoring.charts import Format, Point, heatmap, line_chart, paired_bars
from tasks.monitoring.decision import (
    ALERT,
    ASK,
    BLIND,
    DAMAGE,
    DRIFT,
    HEALTHY,
    HOLD,
    MUST_DECIDE,
    NOISE,
    NOTE,
    NOTHING,
)
from tasks.monitoring.decision import FAULT as FAULT_VERDICT
from tasks.monitoring.leaning import CHANNEL
from tasks.monitoring.measure import Monitor
from tasks.monitoring.report_causes import (
    Decided,
    causes_section,
    changes_section,
    decided_table,
    slices_section,
)
from tasks.monitoring.signals import (
    FAULT,
    ChannelDrift,
    DayPerformance,
    DaySignals,
    Decision,
    PerformanceSignal,
)
from tasks.monitoring.slices import SlicePerformance

_LOOK = {
    HEALTHY: ("pass", "Healthy"),
    NOISE: ("pass", "Healthy, with noise"),
    BLIND: ("warn", "Cannot judge"),
    DRIFT: ("warn", "Drift, no damage seen"),
    FAULT_VERDICT: ("fail", "Data fault"),
    DAMAGE: ("fail", "Performance damage"),
}
_ACTIONS = {
    NOTHING: "Nothing is done.",
    NOTE: "It is noted here; nobody is disturbed.",
    ALERT: "The owner is alerted.",
    HOLD: "Scoring and promotions are held until the data is repaired, or a person answers; the model stays.",
    ASK: "The champion is compared with the version before: within its limits it is rolled back, else a person is asked.",
}
_OF_A_DAY = {**_ACTIONS, HOLD: "A reason to hold scoring until the data is repaired; the model stays."}
_STATES = {
    "measured": "pass",
    "immature": "skip",
    "missing": "warn",
    "too_few": "skip",
    "one_class": "skip",
}
_SHOWN_REASONS = 6


def render_report(
    spec: PipelineSpec,
    *,
    decision: Decision,
    signals: Sequence[DaySignals],
    before: Sequence[DaySignals] = (),
    performances: Sequence[DayPerformance] = (),
    gaps: Sequence[PerformanceSignal] = (),
    profiles: Mapping[date, Profile] | None = None,
    monitor: Monitor | None = None,
    model: str = "",
    causes: Sequence[Cause] = (),
    slices: SlicePerformance | None = None,
    changes: Sequence[Change] = (),
    decided: Sequence[Decided] = (),
) -> str:
    """The whole HTML document; works offline, in light and dark.

    Args:
        before: Of days before the window: they are in the charts, where one day alone says little, and in nothing else.
        performances: Of all of these days; so are the gaps.
        profiles: Profiles by day of the window and of the days it was compared with; with `monitor`, whose
            reference days are added, they make the pictures of what moved.
        model: What scored the days, for example `version 3 (4f2a...)`.
        causes: `suspect` of the decision, most likely first.
        slices: Performance by slice of the days with damage; None: no day is worse than promised.
        changes: What changed from 14 days before the window on; those that bear on scores are drawn into the charts.
        decided: The decisions that were kept about these days, newest first.
    """
    ordered = sorted(signals, key=lambda s: s.day)
    drawn = [*sorted(before, key=lambda s: s.day), *ordered]
    by_day = {p.day: p for p in performances}
    gap_by_day = {g.day: g for g in gaps}
    known = {**(monitor.baseline.days if monitor else {}), **(profiles or {})}
    body = "\n".join(
        [
            _verdict(decision),
            causes_section(causes),
            _cards(ordered, by_day, gap_by_day),
            _series(drawn, by_day, gap_by_day, _marks(changes), since=ordered[0].day if before else None),
            _drift(spec, ordered, drawn),
            _moved(spec, ordered, known),
            _contract(ordered),
            _performance(ordered, by_day, gap_by_day),
            slices_section(slices),
            changes_section(changes),
            _decided(decision, decided),
            _method(spec, monitor, model, ordered),
        ]
    )
    return page(
        f"Monitoring of {spec.name}",
        body,
        day_span(decision.first_day, decision.last_day) + (f" · {model}" if model else ""),
    )


def _verdict(decision: Decision) -> str:
    look, title = _LOOK[decision.verdict]
    items = [f"<li>{escape(reason)}</li>" for reason in decision.reasons]
    shown = f"<ul>{''.join(items[:_SHOWN_REASONS])}</ul>" if items else ""
    if len(items) > _SHOWN_REASONS:
        shown += (
            f"<details><summary>{len(items) - _SHOWN_REASONS} more</summary>"
            f"<ul>{''.join(items[_SHOWN_REASONS:])}</ul></details>"
        )
    steps = "".join(f"<li>{escape(step)}</li>" for step in decision.next_steps)
    only = (
        f"<p>{escape(decision.next_steps[0])}</p>" if len(decision.next_steps) == 1 else f"<ol>{steps}</ol>"
    )
    advice = f"<h3>What to do</h3>{only}" if steps else ""
    # What the monitor does about damage, it decides after this page: whether a person has to is said by the action.
    headline = decision.headline.replace(f" {MUST_DECIDE}", "")
    return (
        f'<div class="verdict {look}"><h2>{title}</h2><p>{escape(headline)} '
        f"<strong>{_ACTIONS[decision.action]}</strong></p>{shown}</div>{advice}"
    )


def _cards(
    signals: Sequence[DaySignals],
    performances: Mapping[date, DayPerformance],
    gaps: Mapping[date, PerformanceSignal],
) -> str:
    measured = [p for s in signals if (p := performances.get(s.day)) and p.state == "measured"]
    auc = np.mean([p.auc for p in measured if p.auc is not None]) if measured else None
    promised = np.mean([p.expected_auc for p in measured if p.expected_auc is not None]) if measured else None
    weak = sum(1 for s in signals if (g := gaps.get(s.day)) and g.alarm)
    cards = [
        ("Days", f"{len(signals)}", f"{sum(s.judged for s in signals)} judged for drift"),
        ("Rows scored", f"{sum(s.rows for s in signals):,}", "counted in profiles, not reread"),
        ("Days with a data fault", f"{sum(bool(s.faults) for s in signals)}", "tier 1, the contract"),
        ("Days with channels in alarm", f"{sum(bool(s.alarms) for s in signals)}", "tier 2, drift"),
        ("Days below the promised AUC", f"{weak}", f"of {len(measured)} with labels, tier 3"),
        (
            "Mean daily AUC",
            "no labels yet" if auc is None else f"{auc:.3f}",
            "" if promised is None else f"scores promise {promised:.3f}",
        ),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><span class="label">{escape(label)}</span><span class="value">{escape(value)}</span>'
            f'<span class="hint">{escape(hint)}</span></div>'
            for label, value, hint in cards
        )
        + "</div>"
    )


def _series(
    signals: Sequence[DaySignals],
    performances: Mapping[date, DayPerformance],
    gaps: Mapping[date, PerformanceSignal],
    marks: Mapping[date, str],
    *,
    since: date | None,
) -> str:
    days = [s.day for s in signals]
    scores = [
        Point(
            s.score_mean,
            s.score_band,
            mark="bad" if any(c.channel == "score" for c in s.alarms) else "",
            title=f"{s.day:%a} {s.day}: mean score {s.score_mean:.3f}" if s.score_mean is not None else "",
        )
        for s in signals
    ]
    volume = [
        Point(
            float(s.rows),
            expected=s.expected_rows,
            mark=_mark(s, "volume", "rows", "repeat"),
            title=f"{s.day:%a} {s.day}: {s.rows:,} rows",
        )
        for s in signals
    ]
    quality = []
    for s in signals:
        measured, gap = performances.get(s.day), gaps.get(s.day)
        value, title = None, ""
        if measured and measured.auc is not None:
            value = measured.auc
            title = f"{s.day:%a} {s.day}: AUC {value:.3f} on {measured.labelled_rows:,} labels"
        quality.append(
            Point(
                value,
                gap.band if gap else None,
                expected=s.expected_auc,
                mark="bad" if gap and gap.alarm else "",
                title=title,
            )
        )
    lines = []
    if since:
        lines.append("Right of the full line: the days of this report; left of it, those before.")
    if any(day in marks for day in days):
        lines.append("Dashed lines: something changed with this day; see &ldquo;What changed&rdquo;.")
    lead = f'<p class="note">{" ".join(lines)}</p>' if lines else ""

    def chart(points: Sequence[Point], label: str, fmt: Format, height: int = 190) -> str:
        return line_chart(days, points, label=label, fmt=fmt, height=height, marks=marks, since=since)

    return (
        f"<h2>Scores, volume, performance</h2>{lead}"
        + _by_day(
            chart(scores, "Mean score by day", lambda v: f"{v:.2f}"),
            "Nine normal days in ten fall into the band around the last four same weekdays; "
            "a red dot is a score histogram in alarm.",
            "Mean score by day",
        )
        + _by_day(
            chart(volume, "Rows by day", lambda v: f"{v:,.0f}", 150),
            "Dotted: the median of the last four same weekdays.",
            "Rows by day",
        )
        + _by_day(
            chart(quality, "AUC by day", lambda v: f"{v:.2f}"),
            "Dotted: the AUC that the scores imply before labels come; the band is three "
            "usual gaps around it. Red dots are days in alarm.",
            "AUC by day, once labels are known",
        )
    )


def _marks(changes: Sequence[Change]) -> dict[date, str]:
    """By day, what began to act on it and bears on scores."""
    found: dict[date, str] = {}
    for change in changes:
        if change.kind in (DEPLOYMENT, FEATURE_VERSION, SCHEMA, RUN_REPLACED):
            found[change.day] = (
                f"{found[change.day]}; {change.words}" if change.day in found else change.words
            )
    return found


def _mark(signal: DaySignals, *checks: str) -> str:
    found = {f.severity for f in signal.findings if f.check in checks}
    return "bad" if FAULT in found else "caution" if found else ""


def _drift(spec: PipelineSpec, signals: Sequence[DaySignals], drawn: Sequence[DaySignals]) -> str:
    judged = [s for s in signals if s.drift]
    if not judged:
        said = sorted({statement for s in signals for statement in s.statements})
        return "<h2>Drift by channel</h2>" + "".join(f'<p class="note">{escape(text)}</p>' for text in said)
    z = {s.day: {c.channel: c.z for c in s.drift} for s in drawn}
    channels = [c.channel for c in judged[0].drift]
    channels.sort(key=lambda name: -max(z[s.day][name] for s in judged))
    rows = [(name, [z[s.day].get(name) for s in drawn]) for name in channels]
    legend = (
        '<div class="legend"><span><i></i>as on reference days</span>'
        f'<span><i class="caution"></i>z above {spec.drift.z_persistent:g}: counts on two of three days</span>'
        f'<span><i class="bad"></i>z above {spec.drift.z_alarm:g}: alarm</span>'
        '<span><i class="muted"></i>not judged</span></div>'
    )
    picture = heatmap(
        [s.day for s in drawn],
        rows,
        watch=spec.drift.z_persistent,
        alarm=spec.drift.z_alarm,
        since=signals[0].day if len(drawn) > len(signals) else None,
    )
    return (
        "<h2>Drift by channel</h2>"
        + legend
        + _figure(
            picture,
            "How far each channel's histogram is from the last four same weekdays, or its mean from what the other features "
            "suggest, in units of how far it is on normal days. Largest at the top"
            f"{', by the days of this report' if len(drawn) > len(signals) else ''}.",
        )
    )


def _moved(spec: PipelineSpec, signals: Sequence[DaySignals], known: Mapping[date, Profile]) -> str:
    peaks: dict[str, tuple[DaySignals, ChannelDrift]] = {}
    for signal in signals:
        for channel in signal.drift:
            if channel.channel not in peaks or channel.z > peaks[channel.channel][1].z:
                peaks[channel.channel] = (signal, channel)
    shown = sorted(peaks.values(), key=lambda item: -item[1].z)
    loud = [item for item in shown if item[1].z > spec.drift.z_persistent]
    figures = []
    for signal, channel in (loud or shown[:2])[:6]:
        pool = [known[day] for day in signal.compared_with if day in known]
        if signal.day not in known or not pool:
            continue
        names, before, now = _shares(channel.channel, known[signal.day], Profile.merged(pool[0].spec, pool))
        if not names:
            continue
        picture = paired_bars(names, before, now, label=f"{channel.channel} on {signal.day}")
        figures.append(
            _figure(
                f"<h3>{escape(channel.channel)}</h3>{picture}",
                f"{signal.day:%A} {signal.day}: z {channel.z:.1f}, distance {channel.distance:.3f} "
                f"(normal {channel.expected:.3f}).",
            )
        )
    if not figures:
        return ""
    lead = (
        "Each channel on the day it was farthest."
        if loud
        else "No channel left its usual range; these came closest."
    )
    legend = (
        '<div class="legend"><span><i style="opacity:.4"></i>last four same weekdays</span>'
        '<span><i class="s2"></i>the day</span></div>'
    )
    return f"<h2>What moved most</h2><p>{lead}</p>{legend}<div class='figures'>{''.join(figures)}</div>"


def _shares(channel: str, day: Profile, pooled: Profile) -> tuple[list[str], list[float], list[float]]:
    now, before = day.histogram(channel).astype(float), pooled.histogram(channel).astype(float)
    now, before = now / max(now.sum(), 1), before / max(before.sum(), 1)
    if channel in day.numeric:
        edges = day.numeric[channel].grid.edges
        names, groups = _numeric_groups(edges, before + now)
        return names, [float(before[g].sum()) for g in groups], [float(now[g].sum()) for g in groups]
    if channel == "score":
        groups = [np.arange(i, i + 5) for i in range(0, 50, 5)]
        names = [f"{i / 50:.1f}+" for i in range(0, 50, 5)]
        return names, [float(before[g].sum()) for g in groups], [float(now[g].sum()) for g in groups]
    if channel == CHANNEL:
        labels = list(day.spec.features)
    elif channel in day.categorical:
        labels = [*day.categorical[channel].grid.categories, "unseen", "null"]
    else:
        pair = day.pairs[channel].grid
        first = day.categorical[pair.first].grid.categories
        second = day.categorical[pair.second].grid.categories
        labels = [f"{first[c // len(second)]}·{second[c % len(second)]}" for c in pair.cells]
        labels += ["new pair", "unseen"]
    # Half by size, half by movement: what matters and what changed.
    top = list(np.argsort(-(before + now))[:6])
    top += [i for i in np.argsort(-np.abs(before - now)) if i not in top][:6]
    top = [i for i in top if before[i] + now[i] > 0]
    return [labels[i] for i in top], [float(before[i]) for i in top], [float(now[i]) for i in top]


def _numeric_groups(edges: Sequence[float], weight: FloatArray) -> tuple[list[str], list[IntArray]]:
    """About ten neighbouring groups of bins and one for nulls; names are their lower edges."""
    bins = len(edges) + 1
    bounds = np.unique(np.linspace(1, bins - 1, 11).round().astype(int)) if bins > 2 else np.array([0, bins])
    names, groups = [], []
    if bins > 2 and weight[0] > 0:
        names.append("below")
        groups.append(np.array([0]))
    for a, b in pairwise(bounds):
        names.append(f"{edges[a - 1]:.3g}" if bins > 2 else "all")
        groups.append(np.arange(a, b))
    if bins > 2 and weight[bins - 1] > 0:
        names.append("above")
        groups.append(np.array([bins - 1]))
    if weight[-1] > 0:
        names.append("null")
        groups.append(np.array([bins]))
    return names, groups


def _contract(signals: Sequence[DaySignals]) -> str:
    rows = [
        f'<tr class="{"fail" if f.severity == FAULT else "warn"}"><td class="nowrap">{s.day}</td>'
        f'<td><span class="badge {"fail" if f.severity == FAULT else "warn"}">{f.severity}</span></td>'
        f"<td>{escape(f.check)}</td><td class='prose'>{escape(f.detail)}</td></tr>"
        for s in signals
        for f in s.findings
    ]
    if not rows:
        return (
            "<h2>Contract with training</h2><p>No finding: nulls, unseen categories, pairs, ranges, frozen or "
            "repeated feeds and volume stayed within what the reference days do.</p>"
        )
    return (
        '<h2>Contract with training</h2><div class="scroll"><table class="stack"><thead><tr><th>Day</th><th>Severity</th>'
        f"<th>Check</th><th>Finding</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _performance(
    signals: Sequence[DaySignals],
    performances: Mapping[date, DayPerformance],
    gaps: Mapping[date, PerformanceSignal],
) -> str:
    rows = []
    for s in signals:
        p, g = performances.get(s.day), gaps.get(s.day)
        if p is None:
            rows.append(
                f'<tr><td class="nowrap">{s.day}</td><td><span class="badge skip">no labels</span></td>'
                '<td class="num"></td><td class="num"></td>'
                f'<td class="num">{_number(s.expected_auc)}</td><td class="num"></td><td class="num"></td>'
                f'<td class="num"></td><td class="num">{_number(s.expected_brier)}</td></tr>'
            )
            continue
        alarm = ' <span class="badge fail">alarm</span>' if g and g.alarm else ""
        interval = "" if p.auc_se is None else f" ± {1.96 * p.auc_se:.3f}"
        detail = "" if p.state == "measured" else f'<span class="note">{escape(p.statement)}</span>'
        rows.append(
            f'<tr class="{"fail" if alarm else ""}"><td class="nowrap">{s.day}</td>'
            f'<td><span class="badge {_STATES[p.state]}">{p.state.replace("_", " ")}</span>{alarm}{detail}</td>'
            f'<td class="num">{100 * p.coverage:.0f} %</td><td class="num">{_number(p.auc)}{interval}</td>'
            f'<td class="num">{_number(p.expected_auc if p.auc is not None else s.expected_auc)}</td>'
            f'<td class="num">{"" if g is None else f"{g.z:+.1f}"}</td><td class="num">{"" if g is None else f"{g.cusum:.1f}"}</td>'
            f'<td class="num">{_number(p.brier)}</td><td class="num">{_number(p.expected_brier)}</td></tr>'
        )
    table = (
        '<div class="scroll"><table><thead><tr><th>Day</th><th>Labels</th><th class="num">Coverage</th>'
        '<th class="num">AUC</th><th class="num">implied</th><th class="num">z of gap</th><th class="num">CUSUM</th>'
        '<th class="num">Brier</th><th class="num">implied</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    if len(rows) > 10:
        table = f"<details><summary>All {len(rows)} days</summary>{table}</details>"
    return (
        "<h2>Performance when labels arrive</h2><p>Calibrated scores imply an AUC and a Brier score. What counts is "
        "the gap to what labels say: a storm makes days harder and lowers both; damage opens the gap. Intervals "
        "are 95 %.</p>" + table
    )


def _decided(decision: Decision, decided: Sequence[Decided]) -> str:
    rows = [
        f'<tr><td class="nowrap">{d.day}</td><td><span class="badge {_LOOK[d.verdict][0]}">{escape(_LOOK[d.verdict][1])}</span></td>'
        f"<td class='prose'>{escape(_OF_A_DAY[d.action])}"
        + (
            f'<span class="note">same incident as {d.incident}</span>'
            if d.incident and d.incident != d.day
            else ""
        )
        + f"</td><td class='prose'>{'<br>'.join(escape(reason) for reason in d.reasons)}</td></tr>"
        for d in decision.days
        if d.verdict != HEALTHY
    ]
    quiet = sum(d.verdict == HEALTHY for d in decision.days)
    parts = ["<h2>What was decided, and why</h2>"]
    if len(decision.days) > 1:
        parts.append(f"<p>{quiet} of {len(decision.days)} days were healthy and asked for nothing.</p>")
    elif quiet:
        parts.append("<p>The day was healthy and asked for nothing.</p>")
    if rows:
        parts.append(
            '<h3>Day by day</h3><div class="scroll"><table class="stack"><thead><tr><th>Day</th><th>Verdict</th><th>Action</th>'
            f"<th>Because</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    if decided:
        parts.append(f"<h3>On record</h3>{decided_table(decided)}")
    if any(d.verdict == DAMAGE for d in decision.days):
        parts.append(
            '<p class="note">A model is rolled back without asking only when the version before is shown to be better on the '
            "same labelled rows; else damage asks a person.</p>"
        )
    return "".join(parts)


def _method(spec: PipelineSpec, monitor: Monitor | None, model: str, signals: Sequence[DaySignals]) -> str:
    facts = [
        ("Pipeline", spec.name),
        ("Owner", spec.owner),
        ("Model", model or "not named"),
        ("Calibrated on", monitor.baseline.method if monitor else "not given"),
        (
            "Drift alarm",
            f"z above {spec.drift.z_alarm:g} once, or above {spec.drift.z_persistent:g} on two of three days",
        ),
        ("Performance alarm", "z of the AUC gap below −4, or CUSUM (k 1, h 4)"),
        ("Volume", f"within {100 * spec.drift.volume_tolerance:.0f} % of the last four same weekdays"),
        ("Fewest rows judged", f"{spec.drift.min_rows:,}"),
        ("Profile grid", signals[-1].grid if signals else ""),
    ]
    return (
        "<h2>How this was measured</h2><dl class='facts'>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
        + "</dl>"
        + _stated(signals)
    )


def _stated(signals: Sequence[DaySignals]) -> str:
    """What is to be known of days that were judged: what keeps a day from being judged is a reason of the decision."""
    items = [
        f"<li>{s.day}: {escape(statement)}</li>" for s in signals if s.judged for statement in s.statements
    ]
    listed = f"<ul>{''.join(items)}</ul>"
    if len(items) > _SHOWN_REASONS:
        listed = f"<details><summary>Said of {len(items)} days</summary>{listed}</details>"
    return listed if items else ""


def _figure(picture: str, caption: str, title: str = "") -> str:
    return f"<figure>{_inside(picture, caption, title)}</figure>"


def _by_day(picture: str, caption: str, title: str) -> str:
    """A figure of which a narrow screen shows the newest days first."""
    return f'<figure class="days">{_inside(picture, caption, title)}</figure>'


def _inside(picture: str, caption: str, title: str) -> str:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f"{head}{picture}<figcaption>{escape(caption)}</figcaption>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
