"""Drawing of the deployments page: which version was live when, and what else was decided.

Inline SVG in the classes of `tasks.core.report_style`. Colour never says anything alone: each bar carries its version, each
mark its kind as a title and a letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.metadata import DeploymentEvent
    from tasks.wiring.deployment_pages import Span

_WIDTH, _LEFT, _RIGHT = 980, 14, 14
_TOP, _BAR, _MARKS, _AXIS = 16, 40, 34, 30
_LEAST = 3.0
"""Narrowest bar in pixels: a version that was live for a minute of a year is still seen."""
_LETTER = 11.0
_COLOURS = ("s1", "s2", "s3", "s4", "s5")
_LETTERS = {"expose": "E", "withdraw": "W", "bar": "B", "unbar": "U", "revert": "A", "reject": "R"}


def timeline(spans: Sequence[Span], marks: Sequence[DeploymentEvent], now: datetime) -> str:
    """An SVG of the live versions, oldest at the left, with the events that moved nothing below them.

    Args:
        spans: Oldest first, at least one.
        marks: Oldest first.
        now: Right end.
    """
    start = spans[0].start
    length = max((now - start).total_seconds(), 60.0)
    width = _WIDTH - _LEFT - _RIGHT

    def x(moment: datetime) -> float:
        return _LEFT + width * min(max((moment - start).total_seconds() / length, 0.0), 1.0)

    height = _TOP + _BAR + _MARKS + _AXIS
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" class="timeline" role="img" '
        f'aria-label="Live versions since {start:%Y-%m-%d}">'
    ]
    for span in spans:
        end = span.end or now
        left, right = x(span.start), x(end)
        wide = max(right - left, _LEAST)
        left = min(left, _WIDTH - _RIGHT - wide)
        until = f"{span.end:%Y-%m-%d %H:%M}" if span.end else "now"
        words = (
            f"version {span.version}, {span.start:%Y-%m-%d %H:%M} to {until} UTC, {span.kind} by {span.actor}"
        )
        colour = _COLOURS[span.version % len(_COLOURS)]
        parts.append(
            f'<g class="span"><title>{escape(words)}</title>'
            f'<rect x="{left:.1f}" y="{_TOP}" width="{wide:.1f}" height="{_BAR}" rx="4" class="{colour} '
            f'{"live" if span.end is None else ""}"/>'
        )
        if wide > 26:
            parts.append(
                f'<text x="{left + wide / 2:.1f}" y="{_TOP + _BAR / 2 + 4:.1f}" text-anchor="middle" '
                f'class="version">v{span.version}</text>'
            )
        parts.append("</g>")
    floor = _TOP + _BAR
    letter = 0.0
    for mark in marks:
        at = x(mark.at_utc)
        letter = max(at, letter + _LETTER)  # of one moment side by side
        words = f"{mark.kind} of version {mark.version}, {mark.at_utc:%Y-%m-%d %H:%M} UTC, by {mark.actor}: {mark.reason}"
        parts.append(
            f'<g class="mark"><title>{escape(words)}</title>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{floor + 2}" y2="{floor + 12}" class="axis"/>'
            f'<text x="{letter:.1f}" y="{floor + 25}" text-anchor="middle">'
            f"{escape(_LETTERS.get(mark.kind, mark.kind[:1].upper()))}</text></g>"
        )
    base = height - _AXIS + 6
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}" class="axis"/>')
    for moment, anchor in _ticks(start, now):
        parts.append(
            f'<text x="{x(moment):.1f}" y="{base + 16}" text-anchor="{anchor}">{_stamp(moment, length)}</text>'
        )
    return "".join([*parts, "</svg>"])


def legend(marks: Sequence[DeploymentEvent]) -> str:
    """What the letters below the bars mean, of those that are there."""
    kinds = dict.fromkeys(mark.kind for mark in marks)
    return ", ".join(f"{_LETTERS.get(kind, kind[:1].upper())} {kind}" for kind in kinds)


def _ticks(start: datetime, now: datetime) -> list[tuple[datetime, str]]:
    middle = start + (now - start) / 2
    return [(start, "start"), (middle, "middle"), (now, "end")]


def _stamp(moment: datetime, length: float) -> str:
    short = length < timedelta(days=3).total_seconds()
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}" if short else f"{moment.astimezone(UTC):%Y-%m-%d}"
