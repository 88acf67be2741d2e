"""Data tiers: injected faults are seen, normal days stay quiet, and what cannot be judged is said."""

from __future__ import annotations

import json
from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest

from tasks.core.errors import DataError
from tasks.core.sampling import CountedRows
from tasks.model.profile import PairCounts, PairGrid, Profile, ProfileSpec
from tasks.monitoring import DaySignals, Monitor, measure_day, measure_days
from tasks.monitoring.contract import _empty
from tasks.monitoring.drift import (
    added_by_sampling,
    association,
    calibrate,
    channel_distances,
    js_distance,
    same_weekdays,
)

MONITOR = Monitor.of(shop.SPEC, shop.GRID, shop.REFERENCE)


def measured(profiles: dict[date, Profile]) -> tuple[DaySignals, ...]:
    return measure_days(
        shop.SPEC, MONITOR, profiles=profiles, first_day=min(profiles), last_day=max(profiles)
    )


def signals_of(change: shop.Change, *, day: int = 9) -> DaySignals:
    return measured(shop.window(day + 1, faulty={day: change}))[-1]


def checks(signals: DaySignals, severity: str = "fault") -> set[tuple[str, str]]:
    return {(f.check, f.channel) for f in signals.findings if f.severity == severity}


def test_js_distance_is_zero_for_equal_shares_and_one_for_disjoint_ones():
    assert js_distance([1, 2, 3], [10, 20, 30]) == pytest.approx(0, abs=1e-7)
    assert js_distance([1, 0], [0, 5]) == pytest.approx(1)
    assert js_distance([3, 1], [1, 3]) == pytest.approx(js_distance([1, 3], [3, 1]))


def test_four_weeks_of_normal_days_raise_no_fault_and_hardly_an_alarm():
    found = measured(shop.window(28))
    assert len(found) == 28 and all(s.judged for s in found)
    assert sum(bool(s.faults) for s in found) == 0
    assert sum(bool(s.alarms) for s in found) <= 1


def test_signals_survive_json():
    found = measured(shop.window(2))[-1]
    assert DaySignals.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_a_null_burst_of_five_percent_is_a_fault_on_the_first_day():
    def burst(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        visits = table["visits"].to_numpy().copy()
        visits[rng.random(visits.size) < 0.05] = np.nan
        return shop.with_column(table, "visits", visits)

    assert checks(signals_of(burst)) == {("nulls", "visits")}


def test_a_small_rise_of_nulls_is_a_warning_first_and_a_fault_when_it_stays():
    def rise(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        visits = table["visits"].to_numpy().copy()
        visits[rng.permutation(visits.size)[: int(0.022 * visits.size)]] = np.nan
        return shop.with_column(table, "visits", visits)

    first, second = measured(shop.window(10, faulty={8: rise, 9: rise}))[-2:]
    assert checks(first) == set() and ("nulls", "visits") in checks(first, "warn")
    assert checks(second) == {("nulls", "visits")}


def test_a_remap_of_a_fifth_of_the_categories_breaks_the_joint_map():
    def remap(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        turn = {"Basel": "Bern", "Bern": "Chur", "Chur": "Genf", "Genf": "Basel"}
        city = [turn[c] if rng.random() < 0.2 else c for c in table["city"].to_pylist()]
        return shop.with_column(table, "city", city)

    found = signals_of(remap)
    assert {f.channel for f in found.findings} | {c.channel for c in found.alarms} & {"city", "city x device"}
    assert ("pairs", "city x device") in checks(found) | checks(found, "warn")


def test_unseen_categories_are_a_fault_that_names_them():
    def rename(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        city = ["Zug" if c == "Genf" else c for c in table["city"].to_pylist()]
        return shop.with_column(table, "city", city)

    found = signals_of(rename)
    assert ("unseen", "city") in checks(found)
    assert any("Zug" in f.detail for f in found.faults)


def test_a_change_of_units_is_a_fault_and_a_slow_shift_is_drift():
    times = signals_of(lambda table, rng: shop.with_column(table, "wind", table["wind"].to_numpy() * 60))
    assert ("range", "wind") in checks(times)
    shift = signals_of(lambda table, rng: shop.with_column(table, "price", table["price"].to_numpy() * 1.5))
    assert shift.faults == () and "price" in {c.channel for c in shift.alarms}


def test_a_frozen_feed_is_a_fault():
    frozen = signals_of(
        lambda table, rng: shop.with_column(table, "wind", np.full(table.num_rows, 7.5)), day=3
    )
    assert ("frozen", "wind") in checks(frozen)


def test_yesterdays_values_joined_to_todays_rows_are_noticed():
    day = shop.MONITORED + timedelta(days=9)
    old = shop.rows(day - timedelta(days=1))["wind"].to_numpy()
    found = signals_of(lambda table, rng: shop.with_column(table, "wind", rng.choice(old, table.num_rows)))
    assert ("stale", "wind") in checks(found, "warn")


def test_the_previous_batch_again_is_a_fault_that_names_the_day():
    profiles = shop.window(9)
    days = sorted(profiles)
    profiles[days[8]] = profiles[days[7]]
    found = measured(profiles)[-1]
    assert ("repeat", "") in checks(found)
    assert any(str(days[7]) in f.detail for f in found.faults)


@pytest.mark.parametrize(("factor", "severity"), [(0.6, "fault"), (0.72, "warn"), (1.6, "fault")])
def test_volume_is_judged_against_the_last_four_same_weekdays(factor, severity):
    day = shop.MONITORED + timedelta(days=2)
    profiles = shop.window(2) | {day: shop.profile(day, n=int(800 * factor))}
    assert ("volume", "") in checks(measured(profiles)[-1], severity)


def test_a_saturday_is_not_a_volume_fault_because_saturdays_are_small():
    saturdays = [s for s in measured(shop.window(14)) if s.day.weekday() == 5]
    assert saturdays and all(s.faults == () and (s.expected_rows or 0) < 600 for s in saturdays)


def test_no_rows_is_a_fault_and_drift_says_that_it_is_not_judged():
    day = shop.MONITORED
    found = measure_day(shop.SPEC, MONITOR, day=day, profile=Profile.empty(shop.GRID), history={})
    assert checks(found) == {("rows", "")} and found.drift == ()
    assert "too few to judge" in found.statements[0]
    json.dumps(found.to_json(), allow_nan=False)


def test_ten_rows_of_a_small_pipeline_are_too_few_to_judge_and_raise_nothing():
    small = {day: shop.profile(day, n=15) for day in list(shop.REFERENCE)[:40]}
    monitor = Monitor.of(shop.SPEC, shop.GRID, small)
    found = measure_day(
        shop.SPEC, monitor, day=shop.MONITORED, profile=shop.profile(shop.MONITORED, n=15), history={}
    )
    assert found.findings == () and found.alarms == () and not found.judged
    assert any("too few" in text for text in found.statements)


def test_a_day_of_nulls_only_is_a_fault_and_not_a_crash():
    def erase(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        return pa.table({n: pa.nulls(table.num_rows, table.schema.field(n).type) for n in table.column_names})

    found = signals_of(erase)
    assert {("nulls", "price"), ("nulls", "city")} <= checks(found)


def test_a_day_of_one_category_is_seen():
    found = signals_of(lambda table, rng: shop.with_column(table, "city", ["Bern"] * table.num_rows))
    assert "city" in {c.channel for c in found.alarms}


def test_fewer_than_four_reference_weekdays_are_stated_and_raise_no_alarm():
    short = {day: shop.REFERENCE[day] for day in list(shop.REFERENCE)[-17:]}
    monitor = Monitor.of(shop.SPEC, shop.GRID, short)
    shifted = shop.profile(
        shop.MONITORED,
        change=lambda table, rng: shop.with_column(table, "price", table["price"].to_numpy() * 1.5),
    )
    found = measure_day(shop.SPEC, monitor, day=shop.MONITORED, profile=shifted, history={})
    assert not found.judged and found.alarms == ()
    assert any("not judged" in text for text in found.statements)


def test_no_reference_at_all_is_stated():
    monitor = Monitor.of(shop.SPEC, shop.GRID, {})
    found = measure_day(
        shop.SPEC, monitor, day=shop.MONITORED, profile=shop.REFERENCE[shop.FIRST], history={}
    )
    assert found.findings == () and "only 0 reference days" in found.statements[0]


def test_a_short_reference_is_calibrated_on_both_sides_and_says_so():
    short = {day: shop.REFERENCE[day] for day in list(shop.REFERENCE)[-35:]}
    baseline = calibrate(shop.SPEC, shop.GRID, short)
    assert "short reference" in baseline.method and baseline.normal


def test_a_profile_of_another_grid_is_refused():
    other = ProfileSpec.fit(shop.rows(shop.FIRST), None, shop.SPEC)
    with pytest.raises(DataError, match="grid"):
        measure_day(shop.SPEC, MONITOR, day=shop.MONITORED, profile=Profile.empty(other), history={})


def test_a_fault_that_lasts_does_not_become_the_reference():
    def rename(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        return shop.with_column(
            table, "city", ["Zug" if c == "Genf" else c for c in table["city"].to_pylist()]
        )

    found = measured(shop.window(42, faulty=dict.fromkeys(range(42), rename)))
    assert all(("unseen", "city") in checks(s) for s in found)
    assert all("city" in {c.channel for c in s.alarms} for s in found[-7:])


def test_an_effect_too_small_to_matter_raises_no_alarm():
    def nudge(table: pa.Table, rng: np.random.Generator) -> pa.Table:
        return shop.with_column(
            table, "visits", table["visits"].to_numpy() + (rng.random(table.num_rows) < 0.002)
        )

    assert "visits" not in {c.channel for c in signals_of(nudge).alarms}


def test_a_moderate_shift_alarms_when_it_persists():
    found = measured(shop.window(4))[-1]
    spec = shop.SPEC.model_copy(
        update={"drift": shop.SPEC.drift.model_copy(update={"z_alarm": 99.0, "z_persistent": 2.0})}
    )
    shift = shop.window(
        4,
        faulty=dict.fromkeys(
            (2, 3), lambda table, rng: shop.with_column(table, "price", table["price"].to_numpy() * 1.5)
        ),
    )
    first, second = measure_days(
        spec, MONITOR, profiles=shift, first_day=found.day - timedelta(days=1), last_day=found.day
    )
    assert "price" not in {c.channel for c in first.alarms}
    assert ("price", "persistent") in {(c.channel, c.alarm) for c in second.alarms}


def test_dead_letters_past_the_pipelines_limit_are_a_fault():
    day = shop.MONITORED
    found = measure_day(shop.SPEC, MONITOR, day=day, profile=shop.profile(day), history={}, dead_letters=40)
    assert ("dead_letters", "") in checks(found)


def test_same_weekdays_are_the_last_four_before_the_day():
    day = shop.MONITORED
    pool = same_weekdays(day, shop.REFERENCE, min_rows=1)
    assert pool == tuple(day - timedelta(days=7 * k) for k in (4, 3, 2, 1))


def test_values_of_days_ago_under_todays_date_are_a_fault_that_names_the_day():
    old_day = shop.MONITORED + timedelta(days=6)
    old = shop.rows(old_day)["price"].to_numpy()
    found = signals_of(lambda table, rng: shop.with_column(table, "price", rng.choice(old, table.num_rows)))
    (stale,) = (f for f in found.faults if f.check == "stale")
    assert stale.channel == "price" and str(old_day) in stale.detail


def test_new_values_are_no_old_ones_however_many_rows_there_are():
    days = [shop.MONITORED + timedelta(days=i) for i in range(2)]
    last = measured({day: shop.profile(day, n=60_000) for day in days})[-1]
    assert "stale" not in {f.check for f in last.findings}


PAIRED_CITIES = {"Basel": 0.9, "Bern": 0.8, "Chur": 0.2, "Genf": 0.1}
"""Share of phones: every combination occurs, and the city says much about the device."""


def paired_rows(day: date, *, shuffled: float = 0.0, without: str = "") -> pa.Table:
    rng = np.random.default_rng(day.toordinal())
    table = shop.rows(day)
    city = np.array(table["city"].to_pylist())
    phone = rng.random(city.size) < np.array([PAIRED_CITIES[c] for c in city])
    hit = np.flatnonzero(rng.random(city.size) < shuffled)
    phone[hit] = phone[rng.permutation(hit)]
    table = shop.with_column(table, "device", np.where(phone, "phone", "desktop"))
    return table.filter(pa.array((city != without) | (rng.random(city.size) < 0.5)))


def paired_day(day: date, **change: object) -> DaySignals:
    days = [shop.FIRST + timedelta(days=i) for i in range(shop.REFERENCE_DAYS)]
    grid = ProfileSpec.fit(pa.concat_tables([paired_rows(d) for d in days[:28]]), None, shop.SPEC)
    reference = {d: Profile.of(grid, t, shop.probabilities(t)) for d in days for t in (paired_rows(d),)}
    table = paired_rows(day, **change)
    monitor = Monitor.of(shop.SPEC, grid, reference)
    profile = Profile.of(grid, table, shop.probabilities(table))
    return measure_day(shop.SPEC, monitor, day=day, profile=profile, history={})


def test_a_pair_whose_columns_were_shuffled_is_a_fault_though_every_combination_is_known():
    assert checks(paired_day(shop.MONITORED)) == set()
    found = paired_day(shop.MONITORED, shuffled=0.4)
    assert checks(found) == {("pairs", "city x device")}
    assert {c.channel for c in found.alarms} & {"city", "device"} == set()


def test_another_mix_of_cities_does_not_break_the_pair():
    found = paired_day(shop.MONITORED, without="Genf")
    assert "pairs" not in {f.check for f in found.findings}


def test_association_is_zero_for_independent_columns_and_whole_for_equal_ones():
    def bits(counts: list[int]) -> float:
        grid = PairGrid("a", "b", (0, 1, 2, 3))
        return association(PairCounts(grid, np.array(counts), 0, 0), 2)

    assert bits([500, 0, 0, 500]) == pytest.approx(1, abs=0.002)
    assert bits([250, 250, 250, 250]) == 0
    assert bits([0, 0, 0, 0]) == 0

    assert association(
        PairCounts(PairGrid("a", "b", (0, 1, 2, 3)), 64 * np.array([5, 4, 3, 6]), 0, 0), 2, each=64
    ) == bits([5, 4, 3, 6])


def sample_of(table: pa.Table, scores: np.ndarray, one_of: int) -> Profile:
    return Profile.of(shop.GRID, table, scores, counted=CountedRows.among(table, one_of))


def test_a_day_of_which_a_sample_was_counted_is_judged_as_one_of_so_many_rows_and_says_so():
    table = shop.rows(shop.MONITORED, n=40_000)
    scores = shop.probabilities(table)
    whole, sampled = (sample_of(table, scores, one_of) for one_of in (1, 16))
    assert sampled.rows == whole.rows and sampled.counted == whole.rows // 16
    found = [
        measure_day(shop.SPEC, MONITOR, day=shop.MONITORED, profile=profile, history={})
        for profile in (whole, sampled)
    ]
    assert [day.rows for day in found] == [whole.rows] * 2
    assert checks(found[0]) == checks(found[1])
    assert found[1].statements[0] == (
        f"Of {whole.rows:,} rows {sampled.counted:,} were counted, a sample spread over all of them."
    )
    assert found[0].statements == found[1].statements[1:]


def test_what_chance_may_do_to_a_share_follows_from_the_rows_counted():
    day = shop.MONITORED

    def limit(one_of: int) -> float:
        table = shop.rows(
            day, n=40_000, change=lambda t, _: shop.with_column(t, "city", ["Ulm"] * t.num_rows)
        )
        profile = sample_of(table, shop.probabilities(table), one_of)
        found = measure_day(shop.SPEC, MONITOR, day=day, profile=profile, history={}).findings
        return next(item.limit for item in found if item.check == "unseen")

    assert limit(1) == pytest.approx(0.005 + 3 / 40_000, rel=0.02)
    assert limit(64) == pytest.approx(0.005 + 3 * 64 / 40_000, rel=0.02)


def test_what_sampling_adds_to_a_distance_is_what_is_taken_out_before_the_smallest_effect():
    days = [shop.MONITORED + timedelta(days=i) for i in range(30)]
    pooled = [shop.profile(day, n=20_000) for day in days[:4]]
    before = Profile.merged(shop.GRID, pooled)
    added, found = [], []
    for day in days:
        table = shop.rows(day, n=20_000)
        whole, sampled = (sample_of(table, shop.probabilities(table), one_of) for one_of in (1, 16))
        assert added_by_sampling(whole, before, "price") == 0
        moved = [channel_distances(profile, before)["price"] ** 2 for profile in (whole, sampled)]
        found.append(moved[1] - moved[0])
        added.append(added_by_sampling(sampled, before, "price"))
    assert np.mean(found) == pytest.approx(np.mean(added), rel=0.2)


def test_a_sampled_day_without_any_value_is_seen_as_empty_though_its_last_rows_stand_for_nobody():
    table = shop.rows(shop.MONITORED, n=40_000)
    table = table.slice(0, table.num_rows // 16 * 16 - 3)
    scores = shop.probabilities(table)
    nothing = shop.with_column(table, "price", np.full(table.num_rows, np.nan))
    whole, sampled = (sample_of(nothing, scores, one_of) for one_of in (1, 16))
    assert sampled.numeric["price"].nulls < sampled.rows == whole.rows
    assert _empty(sampled, "price") and _empty(whole, "price")
    assert not _empty(sampled, "visits")
