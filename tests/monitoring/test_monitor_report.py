"""The report: one offline page that says the verdict first and shows what moved."""

from __future__ import annotations

import re
from datetime import date, timedelta
from html.parser import HTMLParser

import monitored_shop as shop
import numpy as np
import pyarrow as pa

from tasks.monitoring import DaySignals, Monitor, decide, judge_gaps, measure_days, performance, render_report

MONITOR = Monitor.of(shop.SPEC, shop.GRID, shop.REFERENCE)
VOID = {"meta", "link", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def render(profiles, *, labelled: bool = True, monitor: Monitor = MONITOR) -> str:
    signals = measure_days(
        shop.SPEC, monitor, profiles=profiles, first_day=min(profiles), last_day=max(profiles)
    )
    performances = [label_day(s, max(profiles)) for s in signals] if labelled else []
    gaps = judge_gaps(performances)
    html = render_report(
        shop.SPEC,
        decision=decide(shop.SPEC, signals, performances, gaps),
        signals=signals,
        performances=performances,
        gaps=gaps,
        profiles=profiles,
        monitor=monitor,
        model="version 1",
    )
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)|url\(|@import|<script", html)
    return html


def label_day(signal: DaySignals, as_of: date):
    table = shop.rows(signal.day)
    p = shop.probabilities(table)
    ids = [f"{signal.day}-{i}" for i in range(len(p))]
    y = (np.random.default_rng(1).random(len(p)) < p).astype(np.int8)
    return performance(
        shop.SPEC,
        day=signal.day,
        scored=pa.table({"prediction_id": ids, "prediction": p}),
        labels=pa.table({"prediction_id": ids, "label": y}),
        as_of=as_of,
    )


def test_a_quiet_window_reads_healthy_before_anything_else():
    html = render(shop.window(14))
    assert html.index("Healthy") < html.index("<svg")
    assert "Labels of" in html and "immature" in html


def test_a_shift_is_drawn_with_its_histogram_and_named():
    html = render(
        shop.window(9, faulty={8: lambda t, rng: shop.with_column(t, "price", t["price"].to_numpy() * 1.6)})
    )
    assert "<h3>price</h3>" in html and "What moved most" in html
    assert str(shop.MONITORED + timedelta(days=8)) in html


def test_values_from_data_are_escaped():
    evil = "<script>alert(1)</script>"
    html = render(
        shop.window(
            5,
            faulty={
                4: lambda t, rng: shop.with_column(
                    t, "city", [evil if c == "Genf" else c for c in t["city"].to_pylist()]
                )
            },
        )
    )
    assert evil not in html and "&lt;script&gt;" in html


def test_a_window_without_reference_labels_or_rows_still_reads_well():
    empty = Monitor.of(shop.SPEC, shop.GRID, {})
    html = render(shop.window(2), labelled=False, monitor=empty)
    assert "Cannot judge" in html and "not judged" in html
    nothing = {shop.MONITORED: shop.profile(shop.MONITORED).empty(shop.GRID)}
    assert "no rows at all" in render(nothing, labelled=False)


def test_the_report_says_what_is_done_about_a_fault():
    html = render(
        shop.window(3, faulty={2: lambda t, rng: shop.with_column(t, "wind", np.full(t.num_rows, 7.0))})
    )
    assert "Scoring and promotions are held until" in html
    assert f"run {shop.SPEC.name}.score for exactly these days" in html


def test_the_charts_of_one_day_have_the_days_before_it_and_nothing_else_counts_them():
    profiles = shop.window(15)
    signals = measure_days(
        shop.SPEC, MONITOR, profiles=profiles, first_day=min(profiles), last_day=max(profiles)
    )
    last = signals[-1]
    decision = decide(shop.SPEC, [last])

    def drawn(**more):
        return render_report(shop.SPEC, decision=decision, signals=[last], monitor=MONITOR, **more)

    alone, beside = drawn(), drawn(before=signals[:-1])
    assert "Right of the full line" in beside and "Right of the full line" not in alone
    for title, each in (("Rows by day", 1), ("z of every channel on every day", len(last.drift))):
        picture = re.search(f'aria-label="{title}".*?</svg>', beside, re.S).group()
        assert sum(f"{signal.day}:" in picture for signal in signals) == 15
        assert picture.count("<title>") == 15 * each
        assert picture.count('class="axis" style="stroke-width:2"') == 1
    assert beside.count('<figure class="days">') == 3, "a phone shows their newest days first"
    assert 'Days</span><span class="value">1<' in beside
    assert str(signals[0].day) not in beside.partition("Contract with training")[2]
