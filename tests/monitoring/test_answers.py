"""What people's answers teach: the policy stays silent where it was answered, and speaks where it was not."""

from __future__ import annotations

from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest
from decision_support import FIRST, day, gap, labels

from tasks.monitoring import DaySignals, Monitor, decide, measure_days
from tasks.monitoring.answers import Answered, Confirmed, excluded_days
from tasks.monitoring.decision import DAMAGE, DRIFT, FAULT

CHANNELS = frozenset({"drift:price"})


def on(*indices: int) -> tuple[date, ...]:
    return tuple(FIRST + timedelta(days=index) for index in indices)


def answered(
    kind: str,
    days: tuple[date, ...],
    signals: frozenset[str],
    answer: str = "accept",
    until: date | None = None,
) -> Answered:
    return Answered(kind, days, signals, answer, f"Case c: ada answered {answer}: known", until)


def moved(*indices: int) -> list[DaySignals]:
    """Six days; on those of the indices `price` is in alarm."""
    return [day(index, alarms=("price",) if index in indices else ()) for index in range(6)]


def test_drift_that_was_answered_alerts_no_more_and_keeps_its_verdict() -> None:
    signals = moved(4, 5)
    assert decide(shop.SPEC, signals).action == "alert"
    known = [answered(DRIFT, on(3), CHANNELS)]
    decision = decide(shop.SPEC, signals, answered=known)
    assert (decision.verdict, decision.action) == (DRIFT, "note")
    assert "answered" in decision.headline
    assert decision.days[-1].reasons[-1] == "Case c: ada answered accept: known."


@pytest.mark.parametrize(
    ("days", "signals"),
    [(on(4), frozenset({"drift:visits"})), ((FIRST - timedelta(days=9),), CHANNELS), (on(5), CHANNELS)],
    ids=["another channel", "an incident that ended more than a week before", "a later incident"],
)
def test_drift_that_was_not_answered_still_alerts(days: tuple[date, ...], signals: frozenset[str]) -> None:
    decision = decide(shop.SPEC, moved(3, 4), answered=[answered(DRIFT, days, signals)])
    assert decision.action == "alert"


@pytest.mark.parametrize("answer", ["accept", "new_normal", "mute"])
def test_a_fault_is_answered_for_its_days_only(answer: str) -> None:
    broken = [day(0), day(1, fault="half of price is null"), day(2)]
    until = on(1)[0] if answer == "mute" else None
    known = [answered(FAULT, on(1), frozenset({"nulls:price"}), answer, until)]
    assert decide(shop.SPEC, broken).action == "hold_scoring"
    assert decide(shop.SPEC, broken, answered=known).action == "note"
    again = [*broken, day(3, fault="half of price is null")]
    assert decide(shop.SPEC, again, answered=known).action == "hold_scoring"


def test_a_marked_incident_of_a_feed_keeps_scoring_held() -> None:
    known = [answered(FAULT, on(1), frozenset({"nulls:price"}), "incident")]
    assert decide(shop.SPEC, [day(0), day(1, fault="x")], answered=known).action == "hold_scoring"


def test_damage_that_was_answered_asks_nobody_again_while_it_lasts() -> None:
    signals = [day(index) for index in range(3)]
    performances, gaps = [labels(index) for index in range(3)], [gap(0), gap(1), gap(2, alarm="once")]
    assert decide(shop.SPEC, signals, performances, gaps).action == "ask_person"
    known = [answered(DAMAGE, on(1), frozenset({"performance"}), "retrain")]
    decision = decide(shop.SPEC, signals, performances, gaps, answered=known)
    assert (decision.verdict, decision.action) == (DAMAGE, "note")
    assert "A person must decide" not in decision.headline
    before = [answered(DAMAGE, (FIRST - timedelta(days=8),), frozenset({"performance"}), "retrain")]
    assert decide(shop.SPEC, signals, performances, gaps, answered=before).action == "ask_person"


def test_a_mute_covers_its_signal_up_to_its_day_and_nothing_beside_it() -> None:
    known = [answered(FAULT, on(0), frozenset({"nulls:price"}), "mute", on(3)[0])]

    def action(*days: DaySignals) -> str:
        return decide(shop.SPEC, list(days), answered=known).action

    silent = decide(shop.SPEC, [day(2), day(3, fault="x")], answered=known)
    assert (silent.verdict, silent.action) == ("noise", "note")
    assert "nulls:price: Case c: ada answered mute: known." in silent.days[-1].reasons
    assert action(day(3), day(4, fault="x")) == "hold_scoring", "the mute is over"
    assert action(day(2, alarms=("price", "visits")), day(3, alarms=("price", "visits"))) == "alert"


def test_muted_performance_is_named_and_does_not_ask() -> None:
    known = [answered(DAMAGE, on(0), frozenset({"performance"}), "mute", on(1)[0])]
    signals, performances = [day(0), day(1)], [labels(0), labels(1)]
    decision = decide(shop.SPEC, signals, performances, [gap(0), gap(1, alarm="once")], answered=known)
    assert decision.action == "note" and decision.days[-1].reasons == (
        "performance: Case c: ada answered mute: known.",
    )


# -- what measuring takes in


def often_null(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    price = table["price"].to_numpy(zero_copy_only=False).copy()
    price[rng.random(len(price)) < 0.3] = np.nan
    return shop.with_column(table, "price", price)


def new_city(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    city = np.array(table["city"].to_pylist(), dtype=object)
    city[rng.random(len(city)) < 0.2] = "Zug"
    return shop.with_column(table, "city", city)


def faults(
    monitor: Monitor, faulty: dict[int, shop.Change], confirmed: tuple[Confirmed, ...] = ()
) -> list[str]:
    profiles = shop.window(12, faulty=faulty)
    found = measure_days(
        shop.SPEC,
        monitor,
        profiles=profiles,
        first_day=shop.MONITORED + timedelta(days=8),
        last_day=shop.MONITORED + timedelta(days=11),
        confirmed=confirmed,
    )
    return [f"{f.check}:{f.channel}" for signals in found for f in signals.faults]


@pytest.fixture(scope="module")
def monitor() -> Monitor:
    return Monitor.of(shop.SPEC, shop.GRID, shop.REFERENCE)


@pytest.mark.parametrize(
    ("change", "signal"), [(often_null, "nulls:price"), (new_city, "unseen:city")], ids=["nulls", "category"]
)
def test_a_confirmed_shift_is_normal_from_then_on_and_other_faults_are_not(
    monitor: Monitor, change: shop.Change, signal: str
) -> None:
    lasting = dict.fromkeys(range(5, 12), change)
    seen = tuple(shop.MONITORED + timedelta(days=i) for i in range(5, 8))
    confirmed = (Confirmed(seen, frozenset({signal})),)
    assert signal in faults(monitor, lasting)
    assert faults(monitor, lasting, confirmed) == []
    other = new_city if change is often_null else often_null
    assert faults(monitor, {**lasting, 11: other}, confirmed), "only its channel"


def test_one_confirmed_day_of_nulls_is_enough_for_the_days_like_it_and_not_for_a_worse_one(
    monitor: Monitor,
) -> None:
    lasting = dict.fromkeys(range(8, 12), often_null)
    confirmed = (Confirmed((shop.MONITORED + timedelta(days=8),), frozenset({"nulls:price"})),)
    assert faults(monitor, lasting).count("nulls:price") == 4
    assert faults(monitor, lasting, confirmed) == []

    def mostly_null(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        return often_null(often_null(table, rng), rng)

    assert faults(monitor, {**lasting, 11: mostly_null}, confirmed) == ["nulls:price"]


def test_a_confirmed_number_of_rows_is_no_fault_and_half_of_it_is(monitor: Monitor) -> None:
    first, last = (shop.MONITORED + timedelta(days=i) for i in (1, 2))
    confirmed = (Confirmed((first,), frozenset({"volume:"})),)

    def found(today: int, shifts: tuple[Confirmed, ...]) -> list[str]:
        profiles = shop.window(1) | {first: shop.profile(first, n=400), last: shop.profile(last, n=today)}
        (signals,) = measure_days(
            shop.SPEC, monitor, profiles=profiles, first_day=last, last_day=last, confirmed=shifts
        )
        return [f.check for f in signals.faults]

    assert found(400, ()) == ["volume"]
    assert found(400, confirmed) == []
    assert found(200, confirmed) == ["volume"]


def test_days_of_an_incident_are_no_reference_of_later_ones(monitor: Monitor) -> None:
    days = [shop.MONITORED + timedelta(days=7 * week) for week in range(6)]
    profiles = {when: shop.profile(when) for when in days}
    (found,) = measure_days(
        shop.SPEC,
        monitor,
        profiles=profiles,
        first_day=days[-1],
        last_day=days[-1],
        excluded=frozenset(days[2:4]),
    )
    assert not set(days[2:4]) & set(found.compared_with) and len(found.compared_with) == 4


def test_a_faulty_batch_that_comes_again_is_recognised_though_it_is_no_reference(monitor: Monitor) -> None:
    first, last = (shop.MONITORED + timedelta(days=i) for i in (1, 2))
    broken = shop.profile(first, change=often_null)
    found = measure_days(
        shop.SPEC,
        monitor,
        profiles=shop.window(1) | {first: broken, last: broken},
        first_day=first,
        last_day=last,
    )
    assert [f.check for f in found[0].faults] == ["nulls"]
    assert "repeat" in [f.check for f in found[1].faults]


def test_days_of_a_feeds_incident_serve_again_when_they_are_whole() -> None:
    known = [
        answered(FAULT, on(1), frozenset({"nulls:price"}), "incident"),
        answered(DRIFT, on(2), CHANNELS, "incident"),
    ]
    assert excluded_days(known, faults=FAULT) == frozenset(on(2))
