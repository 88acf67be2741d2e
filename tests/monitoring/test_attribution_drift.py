"""The channel `attributions`: whether the model leans on other features than it did, where no input channel sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest

from tasks.core.spec import ExplanationSpec, PipelineSpec
from tasks.model.attribution_sums import ExplainedRows, selection_of
from tasks.model.profile import Profile
from tasks.monitoring import (
    DayPerformance,
    DaySignals,
    Monitor,
    decide,
    measure_day,
    measure_days,
    render_report,
)
from tasks.monitoring.leaning import LEAST_EXPLAINED

Reasons = Callable[[pa.Table], np.ndarray]


def reasons(table: pa.Table) -> np.ndarray:
    """Attributions of a model with a product in it, shape (n, 5): price, visits, wind, city, device."""
    price = np.nan_to_num(table["price"].to_numpy(zero_copy_only=False), nan=20.0) - 20
    visits = table["visits"].to_numpy(zero_copy_only=False) - 3
    chur = np.array([city == "Chur" for city in table["city"].to_pylist()])
    both = 0.03 * price * visits / 2
    return np.stack(
        [
            -0.01 * price + both,
            0.1 * visits + both,
            0.02 * (table["wind"].to_numpy() - 8),
            1.5 * chur,
            np.full(table.num_rows, 0.05),
        ],
        axis=1,
    )


def swapped(table: pa.Table) -> np.ndarray:
    """What an encoder does that puts wind where visits belong: inputs as they were, reasons elsewhere."""
    found = reasons(table)
    found[:, [1, 2]] = np.stack([0.3 * found[:, 2], 2 * found[:, 1]], axis=1)
    return found


def together(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Price and visits rise together; each column holds the values that it held."""
    price = table["price"].to_numpy(zero_copy_only=False)
    order = np.argsort(np.nan_to_num(price, nan=20.0), kind="stable")
    visits = np.empty(table.num_rows)
    visits[order] = np.sort(table["visits"].to_numpy())
    return shop.with_column(table, "visits", visits)


def explained(
    day: date,
    *,
    most: int | None = None,
    change: shop.Change | None = None,
    why: Reasons = reasons,
    selection: str = "any",
) -> Profile:
    table = shop.rows(day, change=change)
    mask = np.arange(table.num_rows) < (most or table.num_rows)
    rows = ExplainedRows(mask, why(table)[mask].astype(np.float32), selection)
    return Profile.of(shop.GRID, table, shop.probabilities(table), rows)


REFERENCE = {day: explained(day, most=400) for day in shop.REFERENCE}
MONITOR = Monitor.of(shop.SPEC, shop.GRID, REFERENCE)


def days(count: int, **last: object) -> dict[date, Profile]:
    """Explained monitored days; `last` changes the last one."""
    found = {
        shop.MONITORED + timedelta(days=i): explained(shop.MONITORED + timedelta(days=i))
        for i in range(count - 1)
    }
    day = shop.MONITORED + timedelta(days=count - 1)
    return {**found, day: explained(day, **last)}  # type: ignore[arg-type]


def measured(
    profiles: dict[date, Profile], monitor: Monitor = MONITOR, spec: PipelineSpec = shop.SPEC
) -> tuple[DaySignals, ...]:
    return measure_days(spec, monitor, profiles=profiles, first_day=min(profiles), last_day=max(profiles))


def alarms(signals: DaySignals) -> set[str]:
    return {channel.channel for channel in signals.alarms}


def test_four_weeks_of_normal_days_are_judged_and_raise_no_attribution_alarm():
    found = measured(days(28))
    assert all(any(c.channel == "attributions" for c in s.drift) for s in found)
    assert not any("attributions" in alarms(s) for s in found)
    assert not any("Attribution" in text for s in found for text in s.statements)


def test_two_features_swapped_by_an_encoder_are_seen_by_this_channel_alone_and_named():
    found = measured(days(10, why=swapped))[-1]
    assert alarms(found) == {"attributions"} and found.faults == ()
    (channel,) = found.alarms
    assert channel.kind == "attribution"
    assert channel.detail.startswith("the model reads values of ") and "wind (z" in channel.detail


def test_a_feature_with_one_value_a_day_has_only_a_sign_and_its_turning_alarms_nobody():
    def by_phone(turned: float) -> tuple[shop.Change, Reasons]:
        def why(table: pa.Table) -> np.ndarray:
            found = reasons(table)
            noise = np.random.default_rng(table.num_rows).normal(0, 0.5, table.num_rows)
            found[:, 4] = noise - noise.mean() + turned
            return found

        return lambda table, _: shop.with_column(table, "device", ["phone"] * table.num_rows), why

    change, why = by_phone(0.01)
    turned, other = by_phone(-0.01)
    monitor = Monitor.of(
        shop.SPEC, shop.GRID, {day: explained(day, change=change, why=why) for day in shop.REFERENCE}
    )
    span = [shop.MONITORED + timedelta(days=i) for i in range(10)]
    profiles = {day: explained(day, change=change, why=why) for day in span[:-1]}
    profiles[span[-1]] = explained(span[-1], change=turned, why=other)
    found = measured(profiles, monitor)[-1]
    assert any(c.channel == "attributions" for c in found.drift)
    assert "attributions" not in alarms(found)


def test_inputs_that_begin_to_move_together_are_seen_though_none_of_them_moved():
    profiles = days(10, change=together)
    before = max(profiles) - timedelta(days=1)
    profiles[before] = explained(before, change=together)
    for found in measured(profiles)[-2:]:
        assert not {"price", "visits", "wind", "city", "device"} & alarms(found)
    assert "attributions" in alarms(found)
    (channel,) = (c for c in found.alarms if c.channel == "attributions")
    assert channel.alarm == "persistent" and "price" in channel.detail


def test_the_policy_is_that_of_every_channel_noise_with_good_labels_and_drift_before_they_come():
    found = measured(days(10, why=swapped))
    before = decide(shop.SPEC, found)
    assert (before.verdict, before.action) == ("drift, no damage seen", "alert")
    assert "order of columns, category codes" in before.next_steps[0]
    html = render_report(
        shop.SPEC, decision=before, signals=found, profiles=days(10, why=swapped), monitor=MONITOR
    )
    assert "<h3>attributions</h3>" in html and "of what the scores rest on" in html
    assert any("of what the scores rest on" in reason for reason in before.reasons)
    good = [
        DayPerformance(s.day, "measured", "", 800, 800, 200, auc=0.75, auc_se=0.02, expected_auc=0.75)
        for s in found
    ]
    after = decide(shop.SPEC, found, good)
    assert (after.verdict, after.action) == ("noise", "note")


def test_a_reference_without_explained_rows_is_monitored_as_before_and_says_why():
    old = Monitor.of(shop.SPEC, shop.GRID, shop.REFERENCE)
    found = measured(days(3, why=swapped), old)[-1]
    plain = measured(shop.window(3), old)[-1]
    assert found.drift == plain.drift and found.judged
    assert found.statements == (
        "Attribution drift is not judged: the model was trained before reference days were explained; "
        "the next model will be judged.",
    )
    assert plain.statements == ()


def test_a_day_without_explained_rows_is_judged_on_everything_else():
    found = measured(shop.window(3))[-1]
    assert found.judged and "attributions" not in {c.channel for c in found.drift}
    assert found.statements == ("Attribution drift is not judged: no row of this day was explained.",)


def test_too_few_explained_rows_are_stated_and_raise_nothing():
    found = measured(days(3, why=swapped, most=LEAST_EXPLAINED - 1))[-1]
    assert "attributions" not in alarms(found)
    assert any("199 rows were explained, 200 are needed" in text for text in found.statements)


@pytest.mark.parametrize("most", [200, 250])
def test_fewer_explained_rows_than_reference_days_had_raise_no_alarm_by_chance(most):
    profiles = {
        shop.MONITORED + timedelta(days=i): explained(shop.MONITORED + timedelta(days=i), most=most)
        for i in range(28)
    }
    found = measured(profiles)
    assert all(any(c.channel == "attributions" for c in s.drift) for s in found)
    assert not any("attributions" in alarms(s) for s in found)


def test_rows_that_are_chosen_otherwise_than_in_training_are_not_compared_with_them():
    found = measured(days(3, why=swapped, selection="bands"))[-1]
    assert "attributions" not in alarms(found)
    assert any("`explanations` chooses other rows" in text for text in found.statements)
    mixed = explained(shop.MONITORED).merge(explained(shop.MONITORED, selection="bands"))
    signals = measure_day(shop.SPEC, MONITOR, day=shop.MONITORED, profile=mixed, history={})
    assert "attributions" not in {c.channel for c in signals.drift}


def test_clauses_that_prefer_rows_have_a_selection_of_their_own_and_a_share_alone_has_none():
    def of(**policy: object) -> str:
        explanations = ExplanationSpec.model_validate(policy)
        return selection_of(shop.SPEC.model_copy(update={"explanations": explanations}))

    assert of(share=1.0) == of(share=0.1) == "any"
    banded = of(share=0.1, score_bands=[[0.4, 0.6]])
    assert len({of(share=0.1), banded, of(share=0.2, score_bands=[[0.4, 0.6]]), of(canary=True)}) == 4


def test_signals_with_the_channel_survive_json_and_those_of_an_earlier_release_are_read():
    found = measured(days(3, why=swapped))[-1]
    raw = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert DaySignals.from_json(raw) == found
    for channel in raw["drift"]:
        del channel["detail"]
    assert DaySignals.from_json(raw).day == found.day
