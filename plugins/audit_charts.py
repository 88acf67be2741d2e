"""Drawings of the audit page: a waterfall of attributions, and a feature's training distribution with its value.

Inline SVG in the classes of `tasks.core.report_style`. Colour never says anything alone: every bar is an arrow that points
its way and carries a signed number, so a grey print reads the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from tasks.core.report_style import ticks

if TYPE_CHECKING:
    from tasks.audit import AuditRecord
    from tasks.wiring.audit_pages import FeatureDistribution

_WIDTH, _LEFT, _RIGHT = 980, 260, 70
_TOP, _ROW, _BOTTOM = 62, 30, 62
_TICKS = (
    *(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
)
_SMALL_W, _SMALL_H = 190, 44
_BARS = 24
_SHOWN_CATEGORIES = 12


@dataclass(frozen=True)
class Step:
    """One bar of a waterfall, on the logit scale."""

    label: str
    start: float
    end: float
    rest: bool = False
    """Whether it stands for everything that has no bar of its own."""

    @property
    def shift(self) -> float:
        return self.end - self.start


def waterfall_steps(record: AuditRecord, k: int = 12) -> list[Step]:
    """From the base value to the prediction's logit: smallest shift first, the k largest with a bar each.

    What has no bar of its own, with the residual, is one bar, so that the bars add up exactly.
    Source: Lundberg & Lee (2017), "A unified approach to interpreting model predictions"; the form is that of shap's
    waterfall plot.
    """
    attributions = record.attributions
    assert attributions is not None
    assert record.base_value is not None
    largest = sorted(attributions, key=lambda name: -abs(attributions[name]))[:k]
    others = len(record.features) - len(largest)
    rest = sum(shift for name, shift in attributions.items() if name not in largest) + (
        record.residual or 0.0
    )
    at = record.base_value
    steps = []
    if others > 0 or abs(rest) > 5e-4:
        words = f"{others} other feature{'s' * (others != 1)} + residual" if others > 0 else "residual"
        steps.append(Step(words, at, at + rest, rest=True))
        at += rest
    for name in reversed(largest):
        steps.append(Step(_named(name, record.features.get(name)), at, at + attributions[name]))
        at += attributions[name]
    return steps


def _named(name: str, value: Any) -> str:
    """A feature with its value, short enough to stand beside a bar where that is possible."""
    return f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value_text(value)}"


def waterfall(record: AuditRecord, k: int = 12) -> str:
    """The waterfall plot of an explained record, largest shift on top, as an SVG element."""
    steps = waterfall_steps(record, k)
    assert record.base_value is not None
    base = record.base_value
    final = steps[-1].end if steps else base
    ends = [base, final, *(step.end for step in steps)]
    low, high = min(ends), max(ends)
    air = max((high - low) * 0.06, 0.05)
    low, high = low - air, high + air
    height = _TOP + _ROW * len(steps) + _BOTTOM
    floor = height - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    marks = [*_axes(low, high, x, floor)]
    marks.append(_level(x(base), _TOP, floor + 6))
    marks.append(_level(x(final), _TOP - 6, floor))
    for place, step in enumerate(reversed(steps)):
        y = _TOP + _ROW * place
        marks += _bar(step, x, y)
        if place + 1 < len(steps):
            marks.append(
                f'<line class="grid" x1="{x(step.start):.1f}" x2="{x(step.start):.1f}" y1="{y + 25}" y2="{y + _ROW + 5}"/>'
            )
    marks.append(_end_label(x(final), 16, f"prediction {probability(final)} (logit {signed(final)})"))
    marks.append(_end_label(x(base), height - 8, f"base value {probability(base)} (logit {signed(base)})"))
    words = ", ".join(f"{step.label}: {signed(step.shift)}" for step in reversed(steps))
    return (
        f'<svg class="waterfall" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="wf-t wf-d">'
        f'<title id="wf-t">What moved the prediction from {probability(base)} to {probability(final)}</title>'
        f'<desc id="wf-d">Shifts of the logit, from {signed(base)} to {signed(final)}: {escape(words)}</desc>'
        f"{''.join(marks)}</svg>"
    )


def distribution_chart(distribution: FeatureDistribution, value: Any) -> str:
    """A feature's training distribution, with a mark where the value lies; empty without training rows."""
    if not sum(distribution.counts):
        return ""
    if distribution.kind == "numeric":
        return _numeric_chart(distribution, value if isinstance(value, int | float) else None)
    return _category_chart(distribution, None if value is None else str(value))


def distribution_words(distribution: FeatureDistribution, value: Any) -> tuple[str, bool]:
    """(how usual the value was in training, whether training never saw it)."""
    share = distribution.nulls / distribution.rows if distribution.rows else 0.0
    if value is None:
        return (
            (f"null, as {percent(share)} of training rows", False)
            if share
            else ("null: unseen in training", True)
        )
    if distribution.kind == "categorical":
        if str(value) not in distribution.categories:
            return "unseen in training", True
        rank = distribution.categories.index(str(value))
        of_rows = distribution.counts[rank] / distribution.rows if distribution.rows else 0.0
        return (
            f"{percent(of_rows)} of training rows, rank {rank + 1} of {len(distribution.categories)}",
            False,
        )
    if not isinstance(value, int | float) or distribution.low is None or distribution.high is None:
        return "", False
    if not distribution.low <= value <= distribution.high:
        side = "below" if value < distribution.low else "above"
        end = distribution.low if value < distribution.low else distribution.high
        return f"{side} all training values (unseen; {side} {value_text(end)})", True
    below, above = distribution.shares_beside(value)
    return f"above {below:.0%}, below {above:.0%} of training values", False


def value_text(value: Any) -> str:
    """A feature's value for a reader; a long text is cut."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def signed(value: float) -> str:
    """A number with its sign, to three decimals."""
    return f"{value:+.3f}".replace("-", "−")


def probability(logit: float) -> str:
    """The probability of a logit in percent."""
    share = 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
    return percent(share)


def percent(share: float) -> str:
    """A share in percent, with more digits near 0."""
    return f"{share:.2%}" if 0 < share < 0.01 or 0.99 < share < 1 else f"{share:.1%}"


def _axes(low: float, high: float, x: Any, floor: int) -> list[str]:
    marks = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>',
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_TOP - 8}" y2="{_TOP - 8}"/>',
        f'<text x="{_LEFT - 14}" y="{floor + 17}" text-anchor="end">logit</text>',
        f'<text x="{_LEFT - 14}" y="{_TOP - 14}" text-anchor="end">probability</text>',
    ]
    for tick in ticks(low, high, 7):
        marks.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP - 8}" y2="{floor}"/>'
        )
        words = f"{tick:g}".replace("-", "−")
        marks.append(f'<text x="{x(tick):.1f}" y="{floor + 17}" text-anchor="middle">{words}</text>')
    last = -math.inf
    for share in _TICKS:
        at = math.log(share / (1 - share))
        if low <= at <= high and x(at) - last > 44:
            last = x(at)
            marks.append(
                f'<line class="axis" x1="{last:.1f}" x2="{last:.1f}" y1="{_TOP - 12}" y2="{_TOP - 8}"/>'
            )
            marks.append(f'<text x="{last:.1f}" y="{_TOP - 17}" text-anchor="middle">{share * 100:g}%</text>')
    return marks


def _bar(step: Step, x: Any, y: int) -> list[str]:
    """An arrow from the bar's start to its end, its name at the left, its signed shift beside it."""
    left, right = sorted((x(step.start), x(step.end)))
    head = min(7.0, right - left)
    top, middle, bottom = y + 5, y + 15, y + 25
    if step.shift >= 0:
        points = [(left, top), (right - head, top), (right, middle), (right - head, bottom), (left, bottom)]
    else:
        points = [(right, top), (left + head, top), (left, middle), (left + head, bottom), (right, bottom)]
    style = "rest" if step.rest else "up" if step.shift >= 0 else "down"
    shape = " ".join(f"{a:.1f},{b}" for a, b in points)
    label = step.label if len(step.label) <= 36 else f"{step.label[:35]}…"
    beside = (
        f'<text class="shift" x="{right + 7:.1f}" y="{middle + 4}">{signed(step.shift)}</text>'
        if right + 60 <= _WIDTH
        else f'<text class="shift" x="{left - 7:.1f}" y="{middle + 4}" text-anchor="end">{signed(step.shift)}</text>'
    )
    return [
        f'<text class="name" x="{_LEFT - 14}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>',
        f'<polygon class="{style}" points="{shape}"><title>{escape(step.label)}: {signed(step.shift)}</title></polygon>',
        beside,
    ]


def _level(at: float, top: float, bottom: float) -> str:
    return f'<line class="level" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>'


def _end_label(at: float, y: float, words: str) -> str:
    """Words at one end of the waterfall, kept inside the picture."""
    half = len(words) * 3.9
    x = min(max(at, half + 4), _WIDTH - half - 4)
    return f'<text class="end" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(words)}</text>'


def _numeric_chart(distribution: FeatureDistribution, value: float | None) -> str:
    low, high = _quantile(distribution, 0.01), _quantile(distribution, 0.99)
    if high <= low:
        low, high = distribution.low or 0.0, distribution.high or 0.0
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = (high - low) / _BARS
    cut = [low + step * place for place in range(_BARS + 1)]
    below = [distribution.share_below(at) for at in cut]
    shares = [b - a for a, b in itertools.pairwise(below)]
    shares[-1] += max(0.0, distribution.share_below(math.nextafter(high, math.inf)) - below[-1])
    marks = _bars(shares, [False] * _BARS)
    if value is not None and math.isfinite(value):
        place = min(max((value - low) / (high - low), 0.0), 1.0)
        marks.append(_marker(4 + place * (_SMALL_W - 8)))
    bounds = f"{value_text(float(low))} to {value_text(float(high))}"
    words = f"{distribution.name}: training values, the middle 98 %: {bounds}; this one: {value_text(value)}"
    return _small(words, marks)


def _category_chart(distribution: FeatureDistribution, value: str | None) -> str:
    total = max(distribution.rows, 1)
    names = list(distribution.categories[:_SHOWN_CATEGORIES])
    if value in distribution.categories and value not in names:
        names[-1] = str(value)
    shares = [distribution.counts[distribution.categories.index(name)] / total for name in names]
    marks = _bars(shares, [name == value for name in names])
    if value in names:
        width = (_SMALL_W - 8) / len(names)
        marks.append(_marker(4 + width * (names.index(str(value)) + 0.5)))
    words = f"{distribution.name}: shares of the most frequent training values; this one: {value_text(value)}"
    return _small(words, marks)


def _bars(shares: Sequence[float], chosen: Sequence[bool]) -> list[str]:
    top = max([*shares, 1e-12])
    width = (_SMALL_W - 8) / max(len(shares), 1)
    base = _SMALL_H - 2
    marks = []
    for place, (share, own) in enumerate(zip(shares, chosen, strict=True)):
        tall = max(share / top * (_SMALL_H - 14), 0.6 if share > 0 else 0.0)
        marks.append(
            f'<rect class="{"s1" if own else "past"}" x="{4 + place * width:.1f}" y="{base - tall:.1f}" '
            f'width="{max(width - 1, 0.6):.1f}" height="{tall:.1f}"/>'
        )
    marks.append(f'<line class="axis" x1="2" x2="{_SMALL_W - 2}" y1="{base}" y2="{base}"/>')
    return marks


def _marker(at: float) -> str:
    return (
        f'<line class="here" x1="{at:.1f}" x2="{at:.1f}" y1="8" y2="{_SMALL_H - 2}"/>'
        f'<polygon class="here" points="{at - 4.5:.1f},2 {at + 4.5:.1f},2 {at:.1f},9"/>'
    )


def _small(words: str, marks: list[str]) -> str:
    return (
        f'<svg class="small" viewBox="0 0 {_SMALL_W} {_SMALL_H}" role="img" aria-label="{escape(words, quote=True)}">'
        f"<title>{escape(words)}</title>{''.join(marks)}</svg>"
    )


def _quantile(distribution: FeatureDistribution, share: float) -> float:
    """The value below which that share of the training values lies, within a bin in proportion."""
    edges, counts = distribution.edges, distribution.counts
    wanted = share * sum(counts)
    seen = counts[0]
    for at in range(1, len(edges)):
        if seen + counts[at] >= wanted and counts[at]:
            inside = min(max((wanted - seen) / counts[at], 0.0), 1.0)
            return edges[at - 1] + inside * (edges[at] - edges[at - 1])
        seen += counts[at]
    return edges[-1] if edges else 0.0
