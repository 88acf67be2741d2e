"""The report's drawings: inline SVG by hand, coloured by the classes of `tasks.core.report_style`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape

Format = Callable[[float], str]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 980, 56, 14, 10, 24


@dataclass(frozen=True)
class Point:
    """One day of a line chart; None leaves a gap."""

    value: float | None
    band: tuple[float, ...] | None = None
    """(low, high) that was expected."""
    expected: float | None = None
    mark: str = ""
    """`bad` or `caution` draws a larger dot."""
    title: str = ""


def line_chart(
    days: Sequence[date],
    points: Sequence[Point],
    *,
    label: str,
    fmt: Format,
    height: int = 190,
    marks: Mapping[date, str] | None = None,
    since: date | None = None,
) -> str:
    """A line of daily values over its calibrated band; `label` is read out by screen readers.

    Args:
        marks: Days before which something changed, with what it was: a dashed line with a title.
        since: The day that a full line stands before.
    """
    known = [v for p in points for v in (p.value, p.expected, *(p.band or ())) if v is not None]
    if not known:
        return f'<p class="note">{escape(label)}: nothing to draw.</p>'
    low, high, ticks = _axis(min(known), max(known), whole="." not in fmt(0.0))

    def x(index: int) -> float:
        usable = _WIDTH - _LEFT - _RIGHT
        return _LEFT + usable * (index + 0.5) / max(len(days), 1)

    def y(value: float) -> float:
        return _TOP + (height - _TOP - _BOTTOM) * (high - value) / (high - low)

    parts = [_open(height, label)]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{escape(fmt(tick))}</text>'
        )
    parts += [_day_label(x(i), height, day) for i, day in _label_days(days)]
    for i, day in enumerate(days):
        if marks and day in marks:
            at = x(i) - (_WIDTH - _LEFT - _RIGHT) / len(days) / 2
            parts.append(
                f'<line class="axis" style="stroke-dasharray:5 3" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" '
                f'y2="{height - _BOTTOM}"><title>{escape(marks[day])}</title></line>'
            )
        if day == since:
            parts.append(_border(_LEFT + (_WIDTH - _LEFT - _RIGHT) * i / len(days), _TOP, height - _BOTTOM))
    for run in _runs([p.band for p in points]):
        top = [f"{x(i):.1f},{y(points[i].band[1]):.1f}" for i in run]  # type: ignore[index]
        bottom = [f"{x(i):.1f},{y(points[i].band[0]):.1f}" for i in reversed(run)]  # type: ignore[index]
        if len(run) == 1:
            a, b = points[run[0]].band  # type: ignore[misc]
            parts.append(
                f'<rect class="band" x="{x(run[0]) - 4:.1f}" y="{y(b):.1f}" width="8" height="{max(y(a) - y(b), 1):.1f}"/>'
            )
        else:
            parts.append(f'<polygon class="band" points="{" ".join(top + bottom)}"/>')
    for run in _runs([p.expected for p in points]):
        line = " ".join(f"{x(i):.1f},{y(points[i].expected or 0.0):.1f}" for i in run)
        parts.append(f'<polyline class="s1" style="stroke-dasharray:2 4;opacity:.8" points="{line}"/>')
    for run in _runs([p.value for p in points]):
        line = " ".join(f"{x(i):.1f},{y(points[i].value or 0.0):.1f}" for i in run)
        parts.append(f'<polyline class="s1" points="{line}"/>')
    for i, point in enumerate(points):
        if point.value is not None:
            radius = 4.5 if point.mark else 2.4
            shown = point.title or f"{days[i]}: {fmt(point.value)}"
            parts.append(
                f'<circle class="{point.mark or "s1"}" cx="{x(i):.1f}" cy="{y(point.value):.1f}" r="{radius}">'
                f"<title>{escape(shown)}</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts)


def heatmap(
    days: Sequence[date],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    *,
    watch: float,
    alarm: float,
    since: date | None = None,
) -> str:
    """Channels by days: pale below `watch`, ochre from there, red from `alarm` on; grey where not judged.

    Args:
        since: The day that a full line stands before.
    """
    left, cell_h = 196, 18
    width = (_WIDTH - left - _RIGHT) / max(len(days), 1)
    height = _TOP + cell_h * len(rows) + _BOTTOM
    parts = [_open(height, "z of every channel on every day")]
    for r, (name, values) in enumerate(rows):
        top = _TOP + r * cell_h
        parts.append(
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(_short(name, 30))}</text>'
        )
        for c, value in enumerate(values):
            place = f'x="{left + c * width:.1f}" y="{top}" width="{max(width - 1, 1):.1f}" height="{cell_h - 1}" rx="2"'
            if value is None:
                parts.append(f'<rect class="muted" fill-opacity=".35" {place}/>')
                continue
            if value >= alarm:
                style, opacity = "bad", min(0.65 + 0.035 * (value - alarm), 1.0)
            elif value >= watch:
                style, opacity = "caution", 0.75
            else:
                style, opacity = "s1", 0.05 + 0.35 * max(value, 0.0) / watch
            parts.append(
                f'<rect class="{style}" fill-opacity="{opacity:.2f}" {place}>'
                f"<title>{escape(name)}, {days[c]}: z {value:.1f}</title></rect>"
            )
    parts += [
        _border(left + i * width - 0.5, _TOP, height - _BOTTOM) for i, day in enumerate(days) if day == since
    ]
    parts += [_day_label(left + (i + 0.5) * width, height, day) for i, day in _label_days(days)]
    parts.append("</svg>")
    return "".join(parts)


def paired_bars(
    names: Sequence[str], reference: Sequence[float], current: Sequence[float], *, label: str
) -> str:
    """Two shares a name, side by side: reference pale, the day in colour."""
    width, height, bottom = 480, 200, 58
    top_value = max([*reference, *current, 1e-9])
    step = (width - 44) / max(len(names), 1)
    bar = min(step * 0.38, 22)

    def y(value: float) -> float:
        return 8 + (height - 8 - bottom) * (1 - value / top_value)

    base = height - bottom
    parts = [_open(height, label, width)]
    for share in (0.0, top_value / 2, top_value):
        parts.append(f'<line class="grid" x1="40" x2="{width}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="34" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    longest = max((min(len(name), 12) for name in names), default=0)
    crowded = step < 6.2 * longest
    for i, name in enumerate(names):
        middle = 44 + (i + 0.5) * step
        for style, value, start in (
            ('s1" fill-opacity=".4', reference[i], middle - bar),
            ("s2", current[i], middle),
        ):
            parts.append(
                f'<rect class="{style}" x="{start:.1f}" y="{y(value):.1f}" width="{bar:.1f}" '
                f'height="{max(base - y(value), 0):.1f}"><title>{escape(name)}: {value:.1%}</title></rect>'
            )
        turn = f' transform="rotate(-38 {middle:.1f} {base + 12})"' if crowded else ""
        anchor = "end" if crowded else "middle"
        parts.append(
            f'<text x="{middle:.1f}" y="{base + 14}" text-anchor="{anchor}"{turn}>{escape(_short(name, 12))}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _open(height: float, label: str, width: int = _WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">'


def _border(x: float, top: float, bottom: float) -> str:
    return (
        f'<line class="axis" style="stroke-width:2" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom:.0f}"/>'
    )


def _short(name: str, size: int) -> str:
    return name if len(name) <= size else name[: size - 1] + "…"


def _day_label(x: float, height: float, day: date) -> str:
    return f'<text x="{x:.1f}" y="{height - 6:.0f}" text-anchor="middle">{day.day} {day:%b}</text>'


def _label_days(days: Sequence[date]) -> list[tuple[int, date]]:
    step = max(1, math.ceil(len(days) / 16))
    if len(days) > 10:
        step = 7 * math.ceil(step / 7)
    return [(i, day) for i, day in enumerate(days) if i % step == 0]


def _runs(values: Sequence[object]) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for i, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(i)
    return [run for run in runs if run]


def _axis(low: float, high: float, *, whole: bool = False) -> tuple[float, float, list[float]]:
    """(low, high, about four round ticks) with some air around the values.

    Args:
        whole: The labels show whole numbers: a tick at 0.5 would be a second 0.
    """
    if low == high == 0:  # a count of nothing: there is no less
        high = 2.0
    if high - low < 1e-12:
        low, high = low - max(abs(low) * 0.1, 0.05), high + max(abs(high) * 0.1, 0.05)
    rough = max((high - low) / 3, 1.0 if whole else 0.0)
    power = 10 ** math.floor(math.log10(rough))
    sizes = (m * power for m in (1, 2, 2.5, 5, 10))
    step = next(size for size in sizes if size >= rough and not (whole and size % 1))
    start, end = math.floor(low / step) * step, math.ceil(high / step) * step
    return start, end, [start + i * step for i in range(round((end - start) / step) + 1)]
