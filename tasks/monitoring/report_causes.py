"""Parts of the monitor's pages: the most likely cause, slices, what changed and what was decided. HTML, escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tasks.monitoring.causes import (
    DEPLOYMENT,
    EXPOSURE,
    FEATURE_VERSION,
    HOLD_RELEASE,
    LOG,
    RUN_REPLACED,
    SCHEMA,
    TRAINING,
    UNKNOWN,
    WAIVER,
    Cause,
    Change,
)
from tasks.monitoring.decision import ALERT, ASK, HOLD, NOTE, NOTHING
from tasks.monitoring.slices import SliceGap, SlicePerformance

_CHANGES = {
    DEPLOYMENT: ("info", "model"),
    EXPOSURE: ("info", "exposure"),
    FEATURE_VERSION: ("info", "feature code"),
    SCHEMA: ("warn", "source columns"),
    TRAINING: ("skip", "training"),
    WAIVER: ("warn", "waiver"),
    HOLD_RELEASE: ("warn", "hold released"),
    RUN_REPLACED: ("info", "scored again"),
    LOG: ("skip", "deployment log"),
}
_ACTIONS = {
    NOTHING: ("pass", "nothing to do"),
    NOTE: ("skip", "noted"),
    ALERT: ("warn", "alerted"),
    HOLD: ("fail", "scoring held"),
    ASK: ("fail", "a person asked"),
    "roll_back": ("fail", "rolled back"),
    "answered": ("pass", "answered"),
    "released": ("pass", "hold released"),
}
_SLICES_SHOWN = 12


@dataclass(frozen=True)
class Decided:
    """A decision as the report lists it."""

    at: str
    """UTC, to the minute."""
    days: str
    verdict: str
    action: str
    actor: str
    reasons: tuple[str, ...]
    outcome: str = ""
    """A person's answer; empty for what the monitor decided or did, which `action` says."""


def causes_section(causes: Sequence[Cause]) -> str:
    """The most likely cause in full, the others behind it; nothing without a cause to look for."""
    if not causes:
        return ""
    first, rest = causes[0], causes[1:]
    others = "".join(f"<li>{escape(cause.what)}{_points(cause)}</li>" for cause in rest)
    more = (
        f"<details><summary>{len(rest)} other{'s' if len(rest) > 1 else ''}</summary><ul>{others}</ul></details>"
        if rest
        else ""
    )
    title = "Most likely cause" if first.kind != UNKNOWN else "The cause is not known"
    return (
        f'<section class="record {"warn" if first.kind == UNKNOWN else "fail"}"><h2>{title} '
        f'<span class="badge skip">{escape(first.kind)}</span></h2><p>{escape(first.what)}</p>'
        f"{_points(first)}{_facts(first)}{more}"
        '<p class="note">Causes are ordered by what speaks for them; none is proven. '
        "See &ldquo;The most likely cause&rdquo; in the monitoring guide for the rules.</p></section>"
    )


def slices_section(slices: SlicePerformance | None) -> str:
    """Realised beside expected AUC of each slice, most striking first."""
    if slices is None:
        return (
            "<h2>Slices</h2><p>Slices are compared when labels say that a day is worse than its scores promise. "
            "No day of this window is.</p>"
        )
    lead = f"<h2>Slices</h2><p>{escape(slices.statement)}</p>"
    if not slices.slices:
        return lead
    head = (
        '<thead><tr><th>Slice</th><th>Found</th><th class="num">Rows</th><th class="num">AUC</th>'
        '<th class="num">promised</th><th class="num">z</th><th class="num">Positive</th>'
        '<th class="num">promised</th><th class="num">z</th><th class="num">z apart</th></tr></thead>'
    )
    whole = (
        f'<tr><td>all rows</td><td></td><td class="num">{slices.rows:,}</td><td class="num">{_number(slices.auc)}</td>'
        f'<td class="num">{_number(slices.expected_auc)}</td><td class="num">{_signed(slices.auc_z)}</td>'
        '<td class="num"></td><td class="num"></td><td class="num"></td><td class="num"></td></tr>'
    )
    rows = [_slice_row(item) for item in slices.slices]
    table = _table(head, [whole, *rows[:_SLICES_SHOWN]])
    if len(rows) > _SLICES_SHOWN:
        left = len(rows) - _SLICES_SHOWN
        table += f"<details><summary>{left} more</summary>{_table(head, rows[_SLICES_SHOWN:])}</details>"
    return (
        f"{lead}{table}"
        '<p class="note">What is promised comes from the scores, corrected by how far each slice was off on the validation '
        "days. A slice is marked when its z is significant over all slices (Holm, 5 %), and <em>apart</em> when it also "
        "differs from the rows of slices without a finding (<em>z apart</em>). Intervals of AUCs are 95 %.</p>"
    )


def changes_section(changes: Sequence[Change]) -> str:
    """What changed from 14 days before the window on, newest first."""
    if not changes:
        return (
            "<h2>What changed</h2><p>Nothing that is recorded: no other model or feature code, no other columns, "
            "no training, waiver, release or repeated scoring in the window and the 14 days before it.</p>"
        )
    rows = []
    for change in reversed(changes):
        look, word = _CHANGES.get(change.kind, ("skip", change.kind))
        rows.append(
            f'<tr><td class="nowrap">{change.day}</td><td><span class="badge {look}">{escape(word)}</span></td>'
            f'<td class="prose">{escape(change.told)}<span class="note">{escape(change.id)}, '
            f"{escape(change.at_utc[:16].replace('T', ' '))} UTC</span></td></tr>"
        )
    head = "<thead><tr><th>From day</th><th>What</th><th>Change</th></tr></thead>"
    shown = _table(head, rows[:_SLICES_SHOWN], stacks=True)
    if len(rows) > _SLICES_SHOWN:
        left = len(rows) - _SLICES_SHOWN
        shown += f"<details><summary>{left} earlier</summary>{_table(head, rows[_SLICES_SHOWN:], stacks=True)}</details>"
    return (
        "<h2>What changed</h2><p>In the window and the 14 days before it. <em>From day</em> is the first day of data "
        f"that was scored after the change.</p>{shown}"
    )


def decided_table(decided: Sequence[Decided]) -> str:
    """The decisions that were kept about these days, newest first."""
    if not decided:
        return ""
    rows = []
    for item in decided:
        look, word = _ACTIONS.get(item.action, ("skip", item.action.replace("_", " ")))
        reasons = "<br>".join(escape(reason) for reason in item.reasons[:3])
        if len(item.reasons) > 3:
            reasons += f'<span class="note">and {len(item.reasons) - 3} more</span>'
        rows.append(
            f'<tr><td class="nowrap">{escape(item.at)}<span class="note">{escape(item.days)}</span></td>'
            f'<td><span class="badge {look}">{escape(item.outcome or word)}</span>'
            f'<span class="note">{escape(item.verdict)}<br>by {escape(item.actor)}</span></td>'
            f'<td class="prose">{reasons}</td></tr>'
        )
    head = "<thead><tr><th>At (UTC), on</th><th>Decision</th><th>Because</th></tr></thead>"
    return _table(head, rows, stacks=True)


def _points(cause: Cause) -> str:
    items = [f'<li><span class="badge skip">for</span> {escape(text)}</li>' for text in cause.speaks_for]
    items += [
        f'<li><span class="badge warn">against</span> {escape(text)}</li>' for text in cause.speaks_against
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _facts(cause: Cause) -> str:
    facts = [("Since", f"{cause.since}"), ("Look first", cause.look)]
    if cause.channels:
        facts.insert(1, ("Channels", ", ".join(cause.channels)))
    if cause.slices:
        facts.insert(1, ("Slices", ", ".join(cause.slices)))
    if cause.changes:
        facts.insert(-1, ("Changes", ", ".join(cause.changes)))
    inner = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f'<dl class="facts" style="margin:12px 0">{inner}</dl>'


def _slice_row(item: SliceGap) -> str:
    interval = "" if item.auc_se is None else f" ± {1.96 * item.auc_se:.3f}"
    if item.state == "too_few":
        found = '<span class="badge skip">too few rows</span>'
    elif item.found:
        found = f'<span class="badge fail">{escape(item.found)}</span>' + (
            ' <span class="badge fail">apart</span>' if item.apart else ""
        )
    elif item.state == "one_class":
        found = '<span class="badge skip">one class</span>'
    else:
        found = ""
    return (
        f'<tr class="{"fail" if item.apart else "warn" if item.found else ""}"><td class="nowrap">{escape(item.name)}</td>'
        f'<td class="nowrap">{found}</td><td class="num">{item.rows:,}</td><td class="num">{_number(item.auc)}{interval}</td>'
        f'<td class="num">{_number(item.promised_auc)}</td><td class="num">{_signed(item.auc_z)}</td>'
        f'<td class="num">{item.label_rate:.1%}</td><td class="num">{item.mean_score:.1%}</td>'
        f'<td class="num">{_signed(item.rate_z)}</td><td class="num">{_signed(item.apart_z)}</td></tr>'
    )


def _table(head: str, rows: Sequence[str], *, stacks: bool = False) -> str:
    """A table; where it stacks, a narrow window shows its cells below each other, without the head."""
    kind = ' class="stack"' if stacks else ""
    return f'<div class="scroll"><table{kind}>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
