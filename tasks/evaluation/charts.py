"""Small inline SVG charts in the classes of `tasks.core.report_style`; no script, no image files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from tasks.core.report_style import ticks
from tasks.model.metrics import FloatArray

WIDTH, HEIGHT = 440, 330
RIGHT, TOP, BOTTOM = 12, 12, 40


class Axes:
    """A plotting area with linear axes; add marks, then `svg()`."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        x_label: str,
        y_label: str,
        label: str,
        width: int = WIDTH,
        height: int = HEIGHT,
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        self._x, self._y = x, y
        self._width, self._height = width, height
        self._label = label
        self._marks: list[str] = []
        names = [f"{tick:g}".replace("-", "−") for tick in ticks(*y)]
        self._left = left = 26 + 7 * max(map(len, names))
        for tick, name in zip(ticks(*y), names, strict=True):
            at = self.y(tick)
            self._marks.append(
                f'<line class="grid" x1="{left}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            self.text(left - 6, at + 4, name, anchor="end")
        for tick, name in x_ticks if x_ticks is not None else [(tick, f"{tick:g}") for tick in ticks(*x)]:
            self.text(self.x(tick), height - BOTTOM + 16, name, anchor="middle")
        floor = height - BOTTOM
        self._marks.append(f'<line class="axis" x1="{left}" x2="{width - RIGHT}" y1="{floor}" y2="{floor}"/>')
        self.text((left + width - RIGHT) / 2, height - 6, x_label, anchor="middle")
        middle = (TOP + floor) / 2
        self._marks.append(
            f'<text x="11" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 11 {middle:.1f})">'
            f"{escape(y_label)}</text>"
        )

    def x(self, value: float) -> float:
        low, high = self._x
        return self._left + (value - low) / (high - low) * (self._width - self._left - RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return self._height - BOTTOM - (value - low) / (high - low) * (self._height - TOP - BOTTOM)

    def text(self, x: float, y: float, words: str, *, anchor: str = "start") -> None:
        """Words at pixel coordinates."""
        self._marks.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def path(self, x: FloatArray, y: FloatArray, style: str, *, dashed: bool = False) -> None:
        """A line through data points, thinned to what the eye can tell apart."""
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), 400)).astype(int))
        points = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x[keep], y[keep], strict=True))
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._marks.append(f'<polyline class="{style}" points="{points}"{dash}/>')

    def band(self, x: FloatArray, low: FloatArray, high: FloatArray) -> None:
        """The area between two lines."""
        there = [f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, high, strict=True)]
        back = [f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x[::-1], low[::-1], strict=True)]
        self._marks.append(f'<polygon class="band" points="{" ".join([*there, *back])}"/>')

    def whisker(self, x: float, low: float, high: float, style: str) -> None:
        """A vertical interval."""
        at = self.x(x)
        self._marks.append(
            f'<line class="{style}" x1="{at:.1f}" x2="{at:.1f}" y1="{self.y(low):.1f}" y2="{self.y(high):.1f}"/>'
        )

    def dot(self, x: float, y: float, style: str, title: str = "") -> None:
        """A point; `title` shows on hover."""
        hint = f"<title>{escape(title)}</title>" if title else ""
        self._marks.append(
            f'<circle class="{style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.5">{hint}</circle>'
        )

    def box(self, x: tuple[float, float], y: tuple[float, float], style: str, opacity: float = 1.0) -> None:
        """A filled rectangle in data coordinates."""
        left, right, top, bottom = self.x(x[0]), self.x(x[1]), self.y(y[1]), self.y(y[0])
        self._marks.append(
            f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 0.6, 0.4):.1f}" '
            f'height="{max(bottom - top, 0):.1f}" fill-opacity="{opacity:g}"/>'
        )

    def level(self, value: float, words: str) -> None:
        """A horizontal limit."""
        at = self.y(value)
        self._marks.append(
            f'<line class="limit" x1="{self._left}" x2="{self._width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        self.text(self._width - RIGHT, at - 4, words, anchor="end")

    def svg(self) -> str:
        return (
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{escape(self._label)}">'
            f"{''.join(self._marks)}</svg>"
        )


def forest(
    rows: Sequence[tuple[str, str, float | None, float | None, float | None, str]],
    *,
    limit: float,
    label: str,
    reference: float | None = None,
) -> str:
    """A forest plot: one line a row with its interval, a dashed line at `limit`.

    Args:
        rows: (name, words at the right, value, low, high, style class of the dot); style "" starts a group.
        limit: Where the floor is drawn.
        label: What a screen reader says.
        reference: Drawn as a solid line: the value over all rows.
    """
    known = [number for row in rows for number in row[2:5] if number is not None]
    low = min([*known, limit]) if known else 0.0
    high = max([*known, limit]) if known else 1.0
    margin = max((high - low) * 0.06, 0.01)
    low, high = max(low - margin, 0.0), min(high + margin, 1.0)
    left, right, row_height, top = 190, 780, 22, 8
    bottom = top + row_height * len(rows)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    marks = []
    for tick in ticks(low, high):
        x = at(tick)
        marks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        marks.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    marks.append(f'<line class="limit" x1="{at(limit):.1f}" x2="{at(limit):.1f}" y1="{top}" y2="{bottom}"/>')
    if reference is not None:
        x = at(reference)
        marks.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
    for position, (name, words, value, below, above, style) in enumerate(rows):
        y = top + row_height * (position + 0.5)
        if not style:
            marks.append(
                f'<text x="8" y="{y + 4:.1f}" style="font-weight:600;fill:var(--ink)">{escape(name)}</text>'
            )
            continue
        marks.append(f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        marks.append(f'<text x="{right + 12}" y="{y + 4:.1f}">{escape(words)}</text>')
        if below is not None and above is not None:
            stroke = {"good": "var(--s1)", "bad": "var(--fail)", "caution": "var(--warn)"}.get(
                style, "var(--faint)"
            )
            marks.append(
                f'<line x1="{at(below):.1f}" x2="{at(above):.1f}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:{stroke}"/>'
            )
        if value is not None:
            dot = {"good": "s1", "bad": "bad", "caution": "caution"}.get(style, "muted")
            fill = ' style="fill:var(--faint)"' if dot == "muted" else ""
            marks.append(
                f'<circle class="{dot}"{fill} cx="{at(value):.1f}" cy="{y:.1f}" r="4"><title>{escape(name)}: '
                f"{escape(words)}</title></circle>"
            )
    return f'<svg viewBox="0 0 1000 {bottom + 24}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'
