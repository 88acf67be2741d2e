"""The trend page of a pipeline: the verdict in words first, then what happened day by day, and what was deployed when.

Pure: days come in as records, HTML comes out; one look with the monitor's report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from html import escape

from tasks.monitoring.causes import Cause
from tasks.monitoring.charts import Format, Point, line_chart
from tasks.monitoring.decision import BLIND, DAMAGE, DRIFT, FAULT, HEALTHY, NOISE
from tasks.monitoring.report_causes import Decided, causes_section, decided_table

_LOOK = {HEALTHY: "pass", NOISE: "pass", BLIND: "warn", DRIFT: "warn", FAULT: "fail", DAMAGE: "fail"}
_COLOUR = {HEALTHY: "good", NOISE: "good", BLIND: "muted", DRIFT: "caution", FAULT: "bad", DAMAGE: "bad"}
_LETTER = {HEALTHY: "", NOISE: "n", BLIND: "?", DRIFT: "d", FAULT: "F", DAMAGE: "P"}
_WIDTH, _LEFT, _RIGHT = 980, 56, 14


@dataclass(frozen=True)
class TrendDay:
    """One day; None where nothing is known."""

    day: date
    version: int | None = None
    verdict: str | None = None
    rows: int | None = None
    expected_rows: float | None = None
    dead_letter_share: float | None = None
    """Of the run that holds the day."""
    drift_alarms: int | None = None
    score_mean: float | None = None
    score_band: tuple[float, ...] | None = None
    expected_auc: float | None = None
    auc: float | None = None
    auc_interval: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TrendEvent:
    """A line of the deployment log."""

    at: str
    what: str
    version: int
    actor: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The newest verdict."""

    verdict: str
    headline: str
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]
    decided: str
    causes: tuple[Cause, ...] = ()
    settled: str = ""
    """Who has answered it since, and what, or why nobody need; empty while it waits."""


def render_trend(
    days: Sequence[TrendDay],
    events: Sequence[TrendEvent],
    newest: Verdict | None,
    *,
    live: int | None,
    decided: Sequence[Decided] = (),
) -> str:
    """The body of the page, as HTML.

    Args:
        days: In day order.
        events: Newest first.
        newest: None before the monitor ran.
        decided: What was decided and done where something was wrong, newest first.
    """
    parts = [_verdict(newest), causes_section(newest.causes if newest else ()), _cards(days, live)]
    if days:
        parts += [_decisions(days), _charts(days)]
    else:
        parts.append('<p class="note">No day is published in this time.</p>')
    if decided:
        parts.append(f"<h2>What was decided</h2>{decided_table(decided)}")
    return "\n".join([*parts, _events(events)])


def _verdict(newest: Verdict | None) -> str:
    if newest is None:
        return (
            '<div class="verdict warn"><h2>Not judged yet</h2>'
            "<p>The monitor has decided nothing so far: run its DAG once a day is published.</p></div>"
        )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in newest.reasons[:5])
    steps = "".join(f"<li>{escape(step)}</li>" for step in newest.next_steps)
    return (
        f'<div class="verdict {_LOOK.get(newest.verdict, "warn")}"><h2>{escape(newest.verdict.capitalize())}</h2>'
        f"<p>{escape(newest.headline)}</p>{f'<p>{escape(newest.settled)}</p>' if newest.settled else ''}"
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
        f'<p class="note">Decided {escape(newest.decided)} UTC.</p>'
        + (f"<h3>What to do</h3><ol>{steps}</ol>" if steps else "")
    )


def _cards(days: Sequence[TrendDay], live: int | None) -> str:
    judged = [day for day in days if day.verdict]
    quiet = sum(day.verdict in (HEALTHY, NOISE) for day in judged)
    gaps = [
        day.auc - day.expected_auc for day in days if day.auc is not None and day.expected_auc is not None
    ]
    cards = [
        ("Live", f"version {live}" if live else "nothing yet", ""),
        ("Newest published day", f"{days[-1].day}" if days else "none", f"{len(days)} days shown"),
        ("Quiet days", f"{quiet} of {len(judged)}", "healthy, or noise only"),
        ("Rows", f"{sum(day.rows or 0 for day in days):,}", "published on the days shown"),
        (
            "Realised less expected AUC",
            f"{round(sum(gaps) / len(gaps), 3) + 0.0:+.3f}" if gaps else "no labels yet",
            f"mean of {len(gaps)} labelled days" if gaps else "",
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


def _decisions(days: Sequence[TrendDay]) -> str:
    """A band of the verdict by day, over a band of the version that scored it."""
    step = (_WIDTH - _LEFT - _RIGHT) / len(days)
    parts = [f'<svg viewBox="0 0 {_WIDTH} 92" role="img" aria-label="Verdict and model by day">']
    parts += [
        f'<text x="{_LEFT - 8}" y="{y}" text-anchor="end">{label}</text>'
        for label, y in (("verdict", 26), ("model", 58))
    ]
    for number, day in enumerate(days):
        x = _LEFT + number * step
        said = day.verdict or "not judged"
        parts.append(
            f'<rect class="{_COLOUR.get(said, "muted")}" x="{x:.1f}" y="8" width="{max(step - 1, 1):.1f}" height="28" '
            f'rx="2"><title>{day.day:%a} {day.day}: {escape(said)}</title></rect>'
        )
        if step > 11 and _LETTER.get(said):
            parts.append(
                f'<text x="{x + step / 2:.1f}" y="26" text-anchor="middle" style="fill:var(--paper);font-weight:650">'
                f"{_LETTER[said]}</text>"
            )
    start = 0
    for number in range(1, len(days) + 1):
        if number < len(days) and days[number].version == days[start].version:
            continue
        version, x, wide = days[start].version, _LEFT + start * step, (number - start) * step
        if version is not None:
            parts.append(
                f'<rect class="s{version % 5 + 1}" fill-opacity=".45" x="{x:.1f}" y="42" width="{max(wide - 1, 1):.1f}" '
                f'height="24" rx="2"><title>version {version}, {days[start].day} to {days[number - 1].day}</title></rect>'
            )
            if wide > 24:
                parts.append(f'<text x="{x + wide / 2:.1f}" y="58" text-anchor="middle">v{version}</text>')
        start = number
    every = max(1, -(-len(days) // 14))
    parts += [
        f'<text x="{_LEFT + (number + 0.5) * step:.1f}" y="84" text-anchor="middle">{day.day.day} {day.day:%b}</text>'
        for number, day in enumerate(days)
        if number % every == 0
    ]
    legend = (
        '<div class="legend"><span><i class="good"></i>healthy, n noise</span><span><i class="caution"></i>d drift, no '
        'damage seen</span><span><i class="bad"></i>F data fault, P performance damage</span>'
        '<span><i class="muted"></i>? cannot judge, or not judged</span></div>'
    )
    return f"<h2>Decisions by day</h2>{legend}" + _figure(
        "".join([*parts, "</svg>"]), "The newest decision about each day, and the version that scored it."
    )


def _charts(days: Sequence[TrendDay]) -> str:
    dates = [day.day for day in days]
    score = [Point(day.score_mean, day.score_band, mark="caution" if _outside(day) else "") for day in days]
    quality = [
        Point(
            day.auc,
            day.auc_interval,
            expected=day.expected_auc,
            mark="bad" if day.verdict == DAMAGE else "",
        )
        for day in days
    ]
    alarms = [
        Point(
            None if day.drift_alarms is None else float(day.drift_alarms),
            mark="caution" if day.drift_alarms else "",
        )
        for day in days
    ]
    volume = [
        Point(None if day.rows is None else float(day.rows), expected=day.expected_rows) for day in days
    ]
    dead = [Point(day.dead_letter_share, mark="bad" if day.dead_letter_share else "") for day in days]
    charts = [
        (
            "Mean score",
            score,
            2,
            "Nine such days in ten fall into the band; a large dot is outside of it, which alone says nothing.",
        ),
        (
            "AUC",
            quality,
            3,
            "Full: on labels, with its 95 % interval. Dotted: what the scores imply before labels come.",
        ),
        (
            "Channels in drift alarm",
            alarms,
            0,
            "Features, pairs and the score; days that were not judged are left out.",
        ),
        ("Rows", volume, 0, "Dotted: the median of the last four same weekdays."),
    ]
    if any(day.dead_letter_share for day in days):
        said = "Of the run that holds the day: rows that could not be scored."
        charts.append(("Share of dead letters", dead, 4, said))

    return "".join(
        f"<h2>{title} by day</h2>"
        + _figure(
            line_chart(
                dates,
                points,
                label=f"{title} by day",
                fmt=_format(digits),
                height=170,
            ),
            caption,
        )
        for title, points, digits, caption in charts
    ) + ("" if len(charts) == 5 else '<p class="note">No dead letters: every row could be scored.</p>')


def _format(digits: int) -> Format:
    return lambda value: f"{value:,.{digits}f}"


def _outside(day: TrendDay) -> bool:
    if day.score_mean is None or not day.score_band:
        return False
    return not day.score_band[0] <= day.score_mean <= day.score_band[-1]


def _events(events: Sequence[TrendEvent]) -> str:
    if not events:
        return '<h2>What was deployed when</h2><p class="note">Nothing in this time.</p>'
    rows = "".join(
        f'<tr><td class="nowrap">{escape(event.at)}</td><td>{escape(event.what)}</td><td class="num">{event.version}</td>'
        f'<td>{escape(event.actor)}</td><td class="prose">{escape(event.reason)}</td></tr>'
        for event in events
    )
    return (
        '<h2>What was deployed when</h2><div class="scroll"><table><thead><tr><th>At (UTC)</th><th>What</th>'
        f'<th class="num">Version</th><th>By</th><th>Reason</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _figure(picture: str, caption: str) -> str:
    return f'<figure class="days">{picture}<figcaption>{caption}</figcaption></figure>'
