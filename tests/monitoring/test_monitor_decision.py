"""The policy: data fault holds scoring, damage asks a person, drift alerts once, noise disturbs nobody."""

from __future__ import annotations

import json
from datetime import timedelta

import monitored_shop as shop
import pytest
from decision_support import FIRST, day, gap, labels

from tasks.monitoring import (
    DayPerformance,
    DaySignals,
    Decision,
    PerformanceSignal,
    decide,
)


def decided(
    days: list[DaySignals],
    performances: list[DayPerformance] | None = None,
    gaps: list[PerformanceSignal] | None = None,
) -> Decision:
    return decide(shop.SPEC, days, performances or [], gaps or [])


def test_a_quiet_window_is_healthy_and_nothing_is_done():
    found = decided([day(i) for i in range(7)], [labels(i) for i in range(7)])
    assert (found.verdict, found.action) == ("healthy", "nothing")
    assert "labels of 7 days agree" in found.headline
    one = decided([day(0)], [labels(0)], [gap(0)])
    assert one.headline == "The judged day looks like the reference; labels of 1 day agree with the scores."


def test_quiet_inputs_without_labels_say_that_no_labels_came():
    found = decided([day(i) for i in range(3)], [labels(i, "immature") for i in range(3)])
    assert found.verdict == "healthy" and "no labels have come yet" in found.headline
    assert any("due later" in reason for reason in found.reasons)


def test_one_channel_on_one_day_with_good_labels_is_noise():
    found = decided(
        [day(0), day(1, alarms=("price",)), day(2), day(3), day(4)], [labels(i) for i in range(5)]
    )
    assert (found.verdict, found.action) == ("noise", "note")


def test_the_same_blip_before_labels_come_is_drift_that_alerts():
    found = decided([day(0), day(1, alarms=("price",))], [labels(1, "immature")])
    assert (found.verdict, found.action) == ("drift, no damage seen", "alert")
    assert "unknown until labels come" in found.headline


@pytest.mark.parametrize("alarms", [("price", "visits"), ("score",)])
def test_several_channels_or_the_score_are_drift_even_for_a_day(alarms):
    found = decided([day(0), day(1, alarms=alarms)], [labels(0), labels(1)])
    assert (found.verdict, found.action) == ("drift, no damage seen", "alert")


def test_drift_alerts_once_for_an_incident_and_again_after_a_quiet_week():
    days = [day(i, alarms=("price", "visits") if i in (0, 1, 5, 20) else ()) for i in range(21)]
    found = {d.day: d for d in decided(days, [labels(i) for i in range(21)]).days}
    actions = [found[FIRST + timedelta(days=i)].action for i in (0, 1, 5, 20)]
    assert actions == ["alert", "note", "note", "alert"]


def test_a_data_fault_holds_scoring_and_names_no_model_change():
    found = decided([day(0), day(1, fault="12% of price is null")], [labels(0)])
    assert (found.verdict, found.action) == ("data fault", "hold_scoring")
    assert any("12% of price is null" in reason for reason in found.reasons)
    assert any("do not change the model" in step for step in found.next_steps)
    assert any("Answer the case with Accept" in step for step in found.next_steps)


def test_a_data_fault_explains_worse_performance_so_nobody_is_asked_to_roll_back():
    found = decided([day(0), day(1, fault="units changed")], [labels(1)], [gap(1, "once")])
    assert found.days[1].verdict == "data fault" and found.action == "hold_scoring"
    same = decided([day(3, fault="half of price is null")], [labels(3)], [gap(3, "once")])
    assert "the model ranked worse than its scores promise too, which the data may explain" in same.headline
    assert "not the cause" not in same.headline


def test_a_fault_that_is_over_alerts_but_does_not_hold_scoring():
    found = decided([day(0, fault="12% of price is null"), *[day(i) for i in range(1, 8)]])
    assert (found.verdict, found.action) == ("data fault", "alert")
    assert "over by the end" in found.headline


def test_damage_asks_a_person_and_never_rolls_back_by_itself():
    found = decided([day(i) for i in range(4)], [labels(i) for i in range(4)], [gap(2), gap(3, "cusum")])
    assert (found.verdict, found.action) == ("performance damage", "ask_person")
    assert "A person must decide" in found.headline
    assert any("roll back if it is better" in step for step in found.next_steps)
    assert not any("roll_back" in d.action for d in found.days)


def test_damage_seen_on_the_newest_labelled_day_stays_open_while_labels_lag():
    found = decided([day(i) for i in range(8)], [labels(0)], [gap(0, "cusum")])
    assert found.action == "ask_person"


def test_a_window_that_could_not_be_judged_says_so():
    found = decided([day(i, judged=False) for i in range(3)])
    assert (found.verdict, found.action) == ("cannot judge", "note")
    assert any("not judged" in reason for reason in found.reasons)


def test_warnings_alone_are_noise():
    assert decided([day(0, warn="1.4% of city is new")]).verdict == "noise"


def test_the_decision_does_not_depend_on_the_order_of_its_input():
    days = [day(i, alarms=("score",) if i == 3 else ()) for i in range(6)]
    assert decided(days) == decided(days[::-1])


def test_a_decision_survives_json():
    found = decided([day(0, fault="x"), day(1)], [labels(0)], [gap(0)])
    assert Decision.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_no_day_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one day"):
        decided([])
