"""Signals beside the data: labels that stop, days that grow old, scoring that grows dear, clocks that differ."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import monitored_shop as shop
import pytest
from decision_support import FIRST, day, gap, labels

from tasks.metadata import StoredDecision
from tasks.monitoring import (
    DayPerformance,
    Decision,
    OperationFinding,
    decide,
    remembered,
    still_missing,
    to_join_again,
)
from tasks.monitoring.alert_sources import of_decision, of_freshness
from tasks.monitoring.alerts import Alert, fold
from tasks.monitoring.operations import (
    RunCost,
    clock_skew,
    days_absent,
    freshness,
    label_evidence,
    labels_late,
    scoring_cost,
    taken_in,
    usual_lag,
)

NOW = datetime(2024, 5, 20, 12, tzinfo=UTC)
ONE_DAY = timedelta(days=1)


def came(index: int, *, lag: int = 0, first_asked: int = 0) -> DayPerformance:
    """A measured day whose labels were first looked at `first_asked` days after they were due."""
    found = labels(index)
    due = found.day + ONE_DAY
    return replace(
        found,
        first_asked=due + first_asked * ONE_DAY,
        labelled_on=due + lag * ONE_DAY,
        as_of=due + lag * ONE_DAY,
    )


def missing(index: int) -> DayPerformance:
    when = FIRST + timedelta(days=index)
    return DayPerformance(when, "missing", f"Labels of {when} were due; none has come.", 800, 0)


def at(index: int) -> date:
    return FIRST + timedelta(days=index)


def found(performances: list[DayPerformance], as_of: int) -> tuple[OperationFinding, ...]:
    return labels_late(shop.SPEC, performances, as_of=at(as_of))


def test_three_due_days_without_labels_are_an_alert_that_says_since_when_and_what_came_before():
    (late,) = found([*(came(i) for i in range(5)), *(missing(i) for i in range(5, 8))], 8)
    assert (late.kind, late.severity, late.since) == ("labels late", "alert", at(5))
    assert "of the last 3 due days (2024-05-06 to 2024-05-08) none has come" in late.statement
    assert "newest day with labels is 2024-05-05" in late.statement and "100%" in late.statement
    assert late.next_steps


def test_labels_that_never_came_are_late_too_and_not_just_not_there_yet():
    (late,) = found([missing(i) for i in range(4)], 4)
    assert late.severity == "alert" and "No day of the last weeks has any." in late.statement


def test_days_that_are_not_due_are_not_late():
    assert found([*(came(i) for i in range(3)), labels(3, "immature"), labels(4, "immature")], 3) == ()


def test_one_or_two_days_or_a_hole_are_a_note_for_a_week():
    days = [came(0), missing(1), *(came(i) for i in range(2, 6))]
    (hole,) = found(days, 6)
    assert hole.severity == "note" and "2024-05-02" in hole.statement
    assert found([*days, *(came(i) for i in range(6, 12))], 12) == ()


def test_a_feed_that_is_always_two_days_late_alarms_nobody_until_it_is_later_than_that():
    usual = [came(i, lag=2) for i in range(8)]
    assert usual_lag(shop.SPEC, usual) == 2
    tail = [missing(i) for i in range(8, 13)]
    assert [f.severity for f in found([*usual, *tail[:2]], 10)] == []
    (late,) = found([*usual, *tail], 13)
    assert late.severity == "alert" and "usually 2 days after they were due" in late.statement


def test_when_labels_came_is_unknown_of_days_that_nobody_looked_at_in_time():
    assert usual_lag(shop.SPEC, [came(i, lag=40, first_asked=40) for i in range(9)]) is None
    evidence = label_evidence(shop.SPEC, [came(i) for i in range(6)] + [missing(6)])
    assert evidence == {"label coverage": round(6 / 7, 4), "label days late": 0.0}


def test_freshness_needs_an_objective_so_old_data_is_never_stale():
    old = date(2013, 5, 31)
    assert freshness(old, now=NOW, objective_hours=None) is None
    assert freshness(None, now=NOW, objective_hours=36) is None
    assert freshness(NOW.date() - ONE_DAY, now=NOW, objective_hours=36) is None
    stale = freshness(NOW.date() - 3 * ONE_DAY, now=NOW, objective_hours=36)
    assert stale is not None and stale.severity == "alert" and "ended 60 hours ago" in stale.statement


def run(
    number: int, *, rows: int = 100_000, cpu_s: float = 100.0, wall_s: float = 60.0, version: int = 1
) -> RunCost:
    return RunCost(f"run{number}", rows, cpu_s, 0.0, wall_s, version, NOW - timedelta(days=30 - number))


def test_a_run_that_is_twice_as_dear_is_noted_and_alerted_about_the_second_time():
    usual = [run(i, cpu_s=100 + 3 * (i % 4)) for i in range(8)]
    assert scoring_cost(usual) == ()
    once = [*usual, run(8, cpu_s=260)]
    (noted,) = scoring_cost(once)
    assert (noted.kind, noted.severity) == ("scoring cost", "note") and "2.5 times" in noted.statement
    (alerted,) = scoring_cost([*once, run(9, cpu_s=270)])
    assert alerted.severity == "alert" and "so was the run before it" in alerted.statement
    assert scoring_cost([*once, run(9, cpu_s=104)]) == ()


def test_slower_and_first_run_of_a_version_are_said():
    runs = [*(run(i) for i in range(8)), run(8, wall_s=300, version=2)]
    (slower,) = scoring_cost(runs)
    assert slower.statement.startswith("Scoring got slower") and "first run of version 2" in slower.statement


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [run(0, cpu_s=900)],
        [*(run(i) for i in range(4)), run(4, cpu_s=900)],  # too few to compare with
        [*(run(i, rows=1000, cpu_s=1) for i in range(8)), run(8, rows=1000, cpu_s=4)],  # seconds
        [*(run(i, rows=1_000_000, cpu_s=900) for i in range(8)), run(8, rows=10_000, cpu_s=90)],  # other size
        [*(run(i, cpu_s=60 + 60 * (i % 3)) for i in range(9)), run(9, cpu_s=250)],  # it varies as much
        [*(run(i) for i in range(8)), run(8, rows=0, cpu_s=900)],
        [*(run(i, cpu_s=0.0) for i in range(8)), run(8, cpu_s=0.0)],
    ],
)
def test_what_cannot_be_compared_or_is_usual_is_no_finding(runs):
    assert scoring_cost(runs) == ()


def test_clocks_that_differ_are_noted_and_predictions_about_tomorrow_are_not():
    today = NOW.date()
    assert clock_skew([today - ONE_DAY, today, today + ONE_DAY], [run(0)], now=NOW) == ()
    (ahead,) = clock_skew([today, today + 300 * ONE_DAY], [], now=NOW)
    assert ahead.severity == "note" and "in the future of this clock" in ahead.statement
    (skew,) = clock_skew([], [replace(run(0), planned_at_utc=NOW + timedelta(hours=1))], now=NOW)
    assert "60 minutes after now" in skew.statement


def test_findings_add_reasons_and_raise_the_action_but_change_no_verdict():
    late = OperationFinding("labels late", "alert", "Labels are late: none.", next_steps=("Ask.",))
    noted = OperationFinding("clock", "note", "Two clocks differ.")
    quiet = [day(i) for i in range(3)]
    calm = decide(shop.SPEC, quiet, operations=[noted])
    assert (calm.verdict, calm.action, calm.data_action) == ("healthy", "note", "nothing")
    alerted = decide(shop.SPEC, quiet, operations=[noted, late])
    assert (alerted.verdict, alerted.action, alerted.data_action) == ("healthy", "alert", "nothing")
    assert alerted.headline.endswith("Labels are late: none.") and "Ask." in alerted.next_steps
    assert alerted.reasons[:2] == ("Two clocks differ.", "Labels are late: none.")
    assert Decision.from_json(json.loads(json.dumps(alerted.to_json(), allow_nan=False))) == alerted


def test_findings_never_hide_or_weaken_what_data_and_labels_say():
    late = OperationFinding("labels late", "alert", "Labels are late: none.")
    held = decide(shop.SPEC, [day(0), day(1, fault="12% of price is null")], operations=[late])
    assert (held.verdict, held.action) == ("data fault", "hold_scoring")
    assert "12% of price is null" in held.reasons[0] and held.reasons[-1] == late.statement
    asked = decide(shop.SPEC, [day(0)], [labels(0)], [gap(0, "once")], operations=[late])
    assert (asked.verdict, asked.action) == ("performance damage", "ask_person")


def test_damage_that_late_labels_of_days_before_the_window_show_is_open():
    window = [day(9), day(10)]
    asked = decide(shop.SPEC, window, [labels(9, "immature")], [gap(3), gap(4, "cusum")])
    assert (asked.verdict, asked.action) == ("performance damage", "ask_person")
    assert "2024-05-05" in asked.headline and asked.reasons[0].startswith(
        "2024-05-05, the newest day with labels"
    )
    over = decide(shop.SPEC, window, [], [gap(4, "cusum"), gap(5)])
    assert over.action == "nothing"
    ages_ago = decide(shop.SPEC, window, [], [gap(-30, "cusum")])
    assert ages_ago.action == "nothing"


def test_verdicts_that_late_labels_changed_are_listed():
    assert taken_in([]) is None
    note = taken_in([(at(1), "drift, no damage seen", "noise")])
    assert note is not None and note.statement.endswith("2024-05-02: drift, no damage seen -> noise.")


def stored(number: int, decision: Decision) -> StoredDecision:
    at_utc = NOW + timedelta(hours=number)
    return StoredDecision(
        number, decision.action, decision.verdict, decision.first_day, decision.last_day, 1,
        decision.reasons, "monitor", None, decision.to_json(), at_utc,
    )  # fmt: skip


def folded(*decisions: StoredDecision, known: tuple[Alert, ...] = ()) -> list[Alert]:
    return fold("default", "shop", known, [one for item in decisions for one in of_decision(item, {})])


def test_late_labels_open_an_alert_of_their_own_which_labels_resolve_and_drift_does_not():
    late = OperationFinding(
        "labels late", "alert", "Labels are late: none.", since=at(0), next_steps=("Ask.",)
    )
    (alert,) = folded(stored(1, decide(shop.SPEC, [day(3)], operations=[late])))
    assert (alert.kind, alert.severity, alert.status) == ("labels late", "warn", "open")
    assert alert.record["links"]["playbook"] == "docs/playbook.md#labels-late"
    both = folded(
        stored(2, decide(shop.SPEC, [day(4, alarms=("score",))], operations=[late])), known=(alert,)
    )
    assert {(item.kind, item.status) for item in both} == {
        ("labels late", "open"),
        ("drift, no damage seen", "open"),
    }
    assert {item.incident for item in both if item.kind == "labels late"} == {"decision 1"}
    over = folded(stored(3, decide(shop.SPEC, [day(5)])), known=tuple(both))
    assert {item.status for item in over} == {"resolved"}


def test_an_alert_about_labels_alone_opens_no_drift_and_one_of_an_earlier_release_resolves_no_labels():
    late = OperationFinding("labels late", "alert", "Labels are late: none.")
    open_ = folded(stored(1, decide(shop.SPEC, [day(3)], operations=[late])))
    old = replace(stored(2, decide(shop.SPEC, [day(4)])), record={})
    assert folded(old, known=tuple(open_)) == []
    blind = decide(shop.SPEC, [day(3, judged=False)], operations=[late])
    assert [alert.kind for alert in folded(stored(1, blind))] == ["labels late"]


def test_a_day_older_than_promised_opens_one_alert_that_a_new_day_resolves():
    arguments: dict[str, Any] = {"objective_hours": 36, "links": {"trend": "t"}}

    def seen(newest: date, now: datetime, known: list[Alert]) -> list[Alert]:
        one = of_freshness(newest, now=now, **arguments)
        return fold("default", "shop", known, [one])

    stale = NOW.date() - 3 * ONE_DAY
    (alert,) = seen(stale, NOW, [])
    assert (alert.kind, alert.severity) == ("freshness", "warn")
    assert alert.record["links"] == {"trend": "t", "playbook": "docs/playbook.md#freshness"}
    assert seen(stale, NOW + timedelta(minutes=5), [alert]) == []
    (later,) = seen(stale, NOW + timedelta(hours=1), [alert])
    assert later.key == alert.key and "61 hours" in later.headline
    (over,) = seen(NOW.date() - ONE_DAY, NOW + timedelta(hours=2), [later])
    assert over.status == "resolved"
    promised_no_more = of_freshness(stale, now=NOW + timedelta(hours=2), objective_hours=None, links={})
    assert fold("default", "shop", [later], [promised_no_more])[0].status == "resolved"


def test_days_are_looked_at_again_until_their_labels_are_all_there_or_a_week_has_passed():
    def again(before: DayPerformance | None, as_of: int) -> bool:
        return to_join_again(shop.SPEC, before, at(0), as_of=at(as_of))

    assert not again(None, 0) and again(None, 1)
    assert again(labels(0, "immature"), 1) and again(missing(0), 30)
    whole, part = came(0), replace(came(0), labelled_rows=700)
    assert not again(whole, 2)
    assert again(part, 2) and not again(part, 1) and not again(part, 9)
    assert not again(replace(missing(0), as_of=at(20)), 10), "a look back in time undoes nothing"


def test_when_labels_came_is_kept_from_look_to_look():
    early = remembered(shop.SPEC, labels(0, "immature"), None, as_of=at(0), later=False)
    assert (early.first_asked, early.labelled_on) == (None, None)
    vain = remembered(shop.SPEC, missing(0), early, as_of=at(1), later=False)
    still = remembered(shop.SPEC, still_missing(shop.SPEC, vain, as_of=at(2)), vain, as_of=at(2), later=True)
    assert still.statement.endswith("none has come by 2024-05-03.")
    there = remembered(shop.SPEC, labels(0), still, as_of=at(4), later=False)
    assert (there.first_asked, there.labelled_on, there.as_of) == (at(1), at(4), at(4))
    assert there.taken_in_later
    assert usual_lag(shop.SPEC, [there] * 5) == 3


def test_a_day_without_predictions_is_noted_unless_its_weekday_never_has_any() -> None:
    first = date(2024, 1, 1)  # a Monday
    every = [first + timedelta(days=n) for n in range(42)]
    workdays = [day for day in every if day.weekday() < 5]
    window = {"first": date(2024, 2, 5), "last": date(2024, 2, 9)}
    assert days_absent(workdays, **window) is None, "it has no weekends"
    assert days_absent(every, **window) is None
    inside = days_absent([day for day in every if day != date(2024, 2, 7)], **window)
    before = days_absent([day for day in workdays if day != date(2024, 2, 2)], **window)
    assert (
        inside
        and before
        and (inside.severity, inside.since, before.since)
        == (
            "note",
            date(2024, 2, 7),
            date(2024, 2, 2),
        )
    )
    assert "No predictions are published of 2024-02-02: the source had no row of it" in before.statement
    assert days_absent(every[:1] + every[2:5], first=every[2], last=every[4]) is not None
    long_ago = days_absent([*every[:14], *every[35:]], **window)
    assert long_ago is not None and long_ago.value == 7.0, "a week back at most"
