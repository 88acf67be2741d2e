"""The trend page: the verdict first, a mark for each day, and nothing in it that runs."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.metadata import MetadataStore, NewMetric
from tasks.metadata.deployments import NewEvent
from tasks.monitoring import DayDecision, DaySignals, Decision
from tasks.monitoring.charts import Point, line_chart

FIRST = date(2024, 2, 1)
EVIL = "<script>alert(1)</script>"


def signals(day: date, number: int) -> DaySignals:
    return DaySignals(
        day=day,
        rows=900 + 40 * (number % 7),
        expected_rows=1000.0,
        findings=(),
        drift=(),
        statements=(),
        compared_with=(),
        score_mean=0.3 + 0.01 * (number % 5) + (0.2 if number == 11 else 0),
        score_band=(0.27, 0.36),
        expected_auc=0.74,
        expected_brier=0.2,
        grid="g",
    )


def populate(settings: Settings, count: int = 40) -> None:
    """A pipeline of `count` published days, the last of which has a data fault; version 2 came in between."""
    clock = datetime(2024, 4, 1, tzinfo=UTC)
    spec, store = load_pipeline(settings, "toy"), MetadataStore.open(settings, clock=lambda: clock)
    for version in (1, 2):
        event = NewEvent(
            "promote", version, f"{version:064x}", "1", version - 1 or None, "ada", f"better {EVIL}"
        )
        store.append_events(spec, lambda _, event=event: [event])  # type: ignore[misc]
    decided = []
    for number in range(count):
        day, run = FIRST + timedelta(days=number), f"r{number}"
        version = 1 if number < count // 2 else 2
        store.record_run(
            spec, run, status="published", model_version=version, rows=1000, dead_letters=int(number == 9)
        )
        store.record_publication(spec, run, table_version=number, rows=1000, files=1, days=[day])
        store.record_signals(
            spec, day=day, run_id=run, model_version=version, signals=signals(day, number).to_json()
        )
        if number < count - 3:
            auc = 0.74 + 0.01 * (number % 3 - 1)
            store.record_metrics(
                spec, [NewMetric("auc", version, day, auc, "monitor", run, auc - 0.03, auc + 0.03)]
            )
        said = "data fault" if number == count - 1 else "drift, no damage seen" if number == 11 else "healthy"
        decided.append(DayDecision(day, said, "nothing", ()))
    last = FIRST + timedelta(days=count - 1)
    decision = Decision(
        pipeline="toy",
        first_day=FIRST,
        last_day=last,
        verdict="data fault",
        action="hold_scoring",
        headline=f"The data of {last} breaks the training contract (still open). {EVIL}",
        reasons=(f"Nulls of amount: 9 % {EVIL}",),
        next_steps=("Ask the owner of the feed.",),
        days=tuple(decided),
        evidence={},
    )
    store.record_decision(
        spec,
        action=decision.action,
        verdict=decision.verdict,
        reasons=decision.reasons,
        first_day=FIRST,
        last_day=last,
        record=decision.to_json(),
    )


def test_the_verdict_comes_first_then_each_day_then_what_was_deployed(settings: Settings) -> None:
    populate(settings)
    html = wiring.trend_page(settings, "toy", days=90)
    order = [
        "Data fault</h2>",
        "What to do",
        "Decisions by day",
        "Mean score by day",
        "AUC by day",
        "Rows by day",
        "What was deployed when",
    ]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    assert html.count(": healthy</title>") == 38 and html.count(": data fault</title>") == 1
    assert "version 1, 2024-02-01 to 2024-02-20" in html and "version 2, 2024-02-21 to 2024-03-11" in html
    assert EVIL not in html and "&lt;script&gt;" in html


def test_a_day_that_was_scored_again_keeps_its_performance(settings: Settings) -> None:
    populate(settings, count=10)
    spec, store = load_pipeline(settings, "toy"), MetadataStore.open(settings)
    before = wiring.trend_page(settings, "toy", days=90)
    assert "mean of 7 labelled days" in before
    store.record_run(spec, "again", status="published", model_version=1, rows=1000, dead_letters=0)
    store.record_publication(spec, "again", table_version=99, rows=1000, files=1, days=[FIRST])
    measured = signals(FIRST, 0).to_json()
    store.record_signals(spec, day=FIRST, run_id="again", model_version=1, signals=measured)
    found = next(point for point in store.series(spec, "auc", source="monitor") if point.day == FIRST)
    point = NewMetric("auc", 1, FIRST, found.value, "monitor", "again", found.low, found.high)
    assert store.record_metrics(spec, [point]) == 0, "the same value adds no point"
    assert "mean of 7 labelled days" in wiring.trend_page(settings, "toy", days=90)


def test_the_window_ends_with_the_newest_published_day(settings: Settings) -> None:
    populate(settings)
    html = wiring.trend_page(settings, "toy", days=5)
    assert "5 days shown" in html and html.count(": healthy</title>") == 4


def test_a_pipeline_that_did_nothing_yet_says_so(settings: Settings) -> None:
    html = wiring.trend_page(settings, "toy")
    assert "Not judged yet" in html and "No day is published" in html


def test_the_page_is_a_file_as_well(settings: Settings) -> None:
    populate(settings, 8)
    written: dict[str, Any] = wiring.step("trend_report")(settings, "toy", days=30)
    spec = load_pipeline(settings, "toy")
    html = open_store(settings, prefix=spec.prefix).get(written["report_key"]).decode()
    assert html.startswith("<!doctype html>") and "<script" not in html
    assert wiring.read_report(settings, "toy", written["report_key"]).decode() == html


def test_a_count_has_whole_numbers_at_its_axis_and_each_once() -> None:
    days = [FIRST + timedelta(days=i) for i in range(4)]
    for highest, wanted in ((1, ["0", "1"]), (2, ["0", "1", "2"]), (7, ["0", "5", "10"])):
        points = [Point(0.0), Point(float(highest)), Point(0.0), Point(0.0)]
        chart = line_chart(days, points, label="Channels", fmt=lambda value: f"{value:,.0f}")
        assert re.findall(r'text-anchor="end">([^<]*)</text>', chart) == wanted
    shares = [Point(0.0), Point(0.04), Point(0.0), Point(0.0)]
    chart = line_chart(days, shares, label="Share", fmt=lambda value: f"{value:.2f}")
    assert len(set(re.findall(r'text-anchor="end">([^<]*)</text>', chart))) >= 3
