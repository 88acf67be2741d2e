"""Days as they should not be: each is stated in the decision and the report, none is a crash, and none a false alarm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest

from tasks.core.errors import DataError
from tasks.model.attribution_sums import ExplainedRows
from tasks.model.profile import PROFILE_VERSION, Profile, ProfileSpec
from tasks.monitoring import (
    DaySignals,
    Decision,
    Monitor,
    decide,
    measure_days,
    performance,
    render_report,
    unjudged_day,
)
from tasks.monitoring.operations import labels_late, other_columns

MONITOR = Monitor.of(shop.SPEC, shop.GRID, shop.REFERENCE)
DAY = shop.MONITORED + timedelta(days=9)


def answered(
    last: Profile | DaySignals, *, monitor: Monitor = MONITOR, profiles: Mapping[date, Profile] | None = None
) -> tuple[Decision, str]:
    """The decision on nine normal days and `last`, and the report's text."""
    known = dict(profiles or shop.window(9))
    signals = []
    if isinstance(last, Profile):
        known[DAY] = last
    else:
        signals = [last]
    signals = [
        *measure_days(shop.SPEC, monitor, profiles=known, first_day=min(known), last_day=max(known)),
        *signals,
    ]
    json.dumps([s.to_json() for s in signals], allow_nan=False)
    found = decide(shop.SPEC, signals)
    html = render_report(shop.SPEC, decision=found, signals=signals, profiles=known, monitor=monitor)
    return found, html


def profiled(table: pa.Table, grid: ProfileSpec = shop.GRID) -> Profile:
    n = table.num_rows
    rows = ExplainedRows(np.ones(n, dtype=bool), np.ones((n, 5), np.float32))
    return Profile.of(grid, table, np.full(n, 0.3), rows)


def test_no_rows_are_a_fault_that_says_how_many_were_expected():
    found, html = answered(Profile.empty(shop.GRID))
    assert (found.verdict, found.action) == ("data fault", "hold_scoring")
    assert any("no rows at all; about" in reason for reason in found.reasons)
    assert "no rows at all" in html


def test_ten_rows_of_a_pipeline_that_has_ten_rows_are_not_judged_and_alarm_nobody():
    few = {
        day: shop.profile(day, n=12)
        for day in [*shop.REFERENCE, *(shop.MONITORED + timedelta(i) for i in range(9))]
    }
    monitor = Monitor.of(shop.SPEC, shop.GRID, {day: few[day] for day in shop.REFERENCE})
    found, html = answered(
        shop.profile(DAY, n=12),
        monitor=monitor,
        profiles={d: p for d, p in few.items() if d >= shop.MONITORED},
    )
    assert (found.verdict, found.action) == ("cannot judge", "note")
    assert any("too few to judge drift" in reason for reason in found.reasons)
    assert "Cannot judge" in html


def test_all_nulls_are_a_fault_of_each_feature():
    table = shop.rows(DAY)
    nothing = pa.table({n: pa.nulls(table.num_rows, table.schema.field(n).type) for n in table.column_names})
    found, html = answered(profiled(nothing))
    assert (found.verdict, found.action) == ("data fault", "hold_scoring")
    assert any("100.0% of price is null" in reason for reason in found.reasons)
    assert "100.0% of city is null" in html


def test_one_category_moves_its_channel_and_is_named():
    found, html = answered(
        shop.profile(DAY, change=lambda t, _: shop.with_column(t, "city", ["Basel"] * t.num_rows))
    )
    assert found.action in ("alert", "hold_scoring")
    assert any("city" in reason for reason in found.reasons) and "city" in html


def test_features_that_never_say_anything_in_training_alarm_nobody_while_they_stay_so():
    def dull(table: pa.Table) -> pa.Table:
        table = shop.with_column(table, "city", ["Bern"] * table.num_rows)
        return table.set_column(0, "price", pa.nulls(table.num_rows, pa.float64()))

    grid = ProfileSpec.fit(dull(shop.rows(shop.FIRST)), None, shop.SPEC)
    every = {day: profiled(dull(shop.rows(day)), grid) for day in shop.REFERENCE}
    monitor = Monitor.of(shop.SPEC, grid, every)
    normal = {
        shop.MONITORED + timedelta(days=i): profiled(
            dull(shop.rows(shop.MONITORED + timedelta(days=i))), grid
        )
        for i in range(9)
    }
    found, _ = answered(profiled(dull(shop.rows(DAY)), grid), monitor=monitor, profiles=normal)
    assert (found.verdict, found.action) == ("healthy", "nothing")


def test_columns_that_the_grid_does_not_know_change_nothing():
    table = shop.rows(DAY)
    more = table.append_column("coupon", pa.array(["x"] * table.num_rows))
    assert profiled(more) == profiled(table)


def test_columns_of_the_source_that_differ_from_training_are_stated_and_ask_for_nothing():
    same = [("price", "double"), ("city", "string")]
    assert other_columns(same, same[::-1]) is None
    said = other_columns(same, [("price", "int64"), ("coupon", "string")])
    assert said is not None
    assert "new: coupon; gone: city; price was double and is int64" in said.statement
    found = decide(
        shop.SPEC,
        measure_days(shop.SPEC, MONITOR, profiles=shop.window(2), first_day=shop.MONITORED, last_day=DAY),
        operations=[said],
    )
    assert (found.verdict, found.action) == ("healthy", "nothing")
    assert said.statement in found.reasons


def test_a_sketch_of_a_newer_release_is_named_with_its_fix_and_the_other_days_are_judged():
    raw = shop.profile(DAY).to_json() | {"version": PROFILE_VERSION + 1}
    with pytest.raises(DataError) as refused:
        Profile.from_json(shop.GRID, raw)
    why = f"The profile of shard 0 {refused.value.what}: {refused.value.fix}."
    found, html = answered(unjudged_day(DAY, 800, why, grid=shop.GRID.digest))
    assert (found.verdict, found.action) == ("healthy", "note")
    assert any("this release reads up to" in reason and "upgrade" in reason for reason in found.reasons)
    assert "this release reads up to" in html


def test_a_sketch_of_an_older_release_is_read_and_judged():
    raw = shop.profile(DAY).to_json()
    assert "attributions" not in raw
    found, _ = answered(Profile.from_json(shop.GRID, raw))
    assert (found.verdict, found.action) == ("healthy", "nothing")


def test_labels_that_contradict_themselves_everywhere_are_no_labels_and_say_so():
    ids = [f"p{i}" for i in range(400)]
    scored = pa.table({"prediction_id": ids, "prediction": np.full(400, 0.4)})
    both = pa.table({"prediction_id": ids * 2, "label": pa.array([0] * 400 + [1] * 400, pa.int8())})
    found = performance(shop.SPEC, day=DAY, scored=scored, labels=both, as_of=DAY + timedelta(days=1))
    assert (found.state, found.labelled_rows, found.conflicting_labels) == ("missing", 0, 400)
    (late,) = labels_late(shop.SPEC, [found], as_of=DAY + timedelta(days=1))
    assert late.severity == "note" and late.statement.endswith("have not come, or contradict each other.")
    assert "400 predictions with contradicting labels were left out" in found.statement
    three = [replace(found, day=DAY + timedelta(days=n)) for n in range(3)]
    (late,) = labels_late(shop.SPEC, three, as_of=DAY + timedelta(days=3))
    assert "none is clear: those of 1,200 predictions contradict each other" in late.statement


def test_many_times_the_rows_are_told_as_a_multiple():
    found, _ = answered(shop.profile(DAY, n=100_000))
    assert found.action == "hold_scoring"
    assert any("rows, 122 times the 800 of the last" in reason for reason in found.reasons), found.reasons


def test_a_day_without_scored_rows_has_no_performance_and_no_crash():
    nothing = pa.table({"prediction_id": pa.array([], pa.string()), "prediction": pa.array([], pa.float64())})
    labels = pa.table({"prediction_id": ["x"], "label": pa.array([1], pa.int8())})
    found = performance(shop.SPEC, day=DAY, scored=nothing, labels=labels, as_of=DAY + timedelta(days=1))
    assert found.state == "missing" and found.coverage == 0.0
