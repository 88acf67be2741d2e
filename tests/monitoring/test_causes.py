"""The suspected causes: each rule finds what it is for, says what speaks against it, and the rest is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.monitoring import (
    Cause,
    Change,
    ChannelDrift,
    ContractFinding,
    DayPerformance,
    DaySignals,
    PerformanceSignal,
    decide,
    suspect,
)
from tasks.monitoring.causes import damage_since
from tasks.monitoring.slices import SlicePerformance, slice_performance

FIRST = date(2024, 5, 1)
COLUMNS = ("price", "visits", "city", "device")
CITIES = ("Basel", "Bern", "Chur", "Genf")


def at(index: int) -> date:
    return FIRST + timedelta(days=index)


def day(index: int, *, moved: tuple[str, ...] = (), faults: tuple[tuple[str, str], ...] = ()) -> DaySignals:
    kinds = {"score": "score", "city x device": "pair", "city": "categorical"}
    drift = tuple(
        ChannelDrift(name, kinds.get(name, "numeric"), 0.2, 0.1, 6.0, "once" if name in moved else None)
        for name in ("price", "visits", "city", "city x device", "score", "delay_mean")
    )
    findings = tuple(
        ContractFinding(check, "fault", channel, f"{check} of {channel or 'the day'} is off.")
        for check, channel in faults
    )
    return DaySignals(at(index), 800, 800.0, findings, drift, (), (), 0.2, None, 0.75, 0.1, "g")


def measured(index: int, *, auc: float = 0.75, conflicts: int = 0) -> DayPerformance:
    return DayPerformance(
        at(index), "measured", "all", 800, 800, 200, 0, conflicts, auc, 0.02, 0.75, 0.1, 0.01, 0.1
    )


def gap(index: int, *, z: float = 0.0, cusum: float = 0.0, alarm: str | None = None) -> PerformanceSignal:
    return PerformanceSignal(at(index), z / 50, z, cusum, alarm, (0.7, 0.8))


BAD = (gap(0), gap(1), gap(2), gap(3, z=-6, cusum=5, alarm="once"), gap(4, z=-6, cusum=8, alarm="once"))


def change(kind: str, index: int, words: str = "version 2 scores from then on") -> Change:
    return Change(f"{kind} 1", kind, at(index), f"{at(index)}T06:00:00+00:00", words)


def causes(signals, *, performances=(), gaps=(), slices=None, changes=(), spec=None) -> tuple[Cause, ...]:
    import monitored_shop as shop

    decision = decide(shop.SPEC, signals, performances, gaps)
    return suspect(
        decision,
        signals,
        slices,
        changes,
        performances=performances,
        gaps=gaps,
        source_columns=COLUMNS,
    )


def damaged(*, moved: tuple[str, ...] = (), **given) -> tuple[Cause, ...]:
    signals = [day(i, moved=moved if i >= 3 else ()) for i in range(5)]
    given.setdefault("performances", [measured(i, auc=0.75 if i < 3 else 0.6) for i in range(5)])
    return causes(signals, gaps=BAD, **given)


def labelled(flip, n: int = 4000, days: int = 2) -> SlicePerformance:
    """Rows whose labels are drawn from their scores; `flip(city, device)` says where they are turned round."""
    rng = np.random.default_rng(5)
    p = rng.beta(1.2, 2.4, n)
    y = (rng.random(n) < p).astype(float)
    city, device = rng.choice(CITIES, n), rng.choice(["phone", "desktop"], n)
    turned = np.array([flip(c, d) for c, d in zip(city, device, strict=True)])
    rows = pa.table({"prediction": p, "label": np.where(turned, 1 - y, y), "city": city, "device": device})
    return slice_performance(rows, ("city", "device"), days=[at(3 + i) for i in range(days)])


def test_a_quiet_window_has_no_cause():
    assert causes([day(i) for i in range(5)]) == ()


def test_a_fault_without_a_change_of_ours_is_the_feed_with_channel_and_start():
    first, *_ = causes([day(0), day(1), day(2, faults=(("nulls", "price"),)), day(3)])
    assert (first.kind, first.since, first.channels) == ("feed", at(2), ("price",))
    assert first.what.startswith("Most likely the feed")
    assert any("neither the model nor its feature code changed" in text for text in first.speaks_for)


def test_a_fault_that_began_before_the_window_is_dated_to_its_first_day():
    import monitored_shop as shop

    signals = [day(i, faults=(("nulls", "price"),) if i >= 2 else ()) for i in range(5)]
    decision = decide(shop.SPEC, signals[4:])
    assert suspect(decision, signals)[0].since == at(2)


def test_columns_of_the_source_that_changed_on_that_day_are_named():
    schema = change("snapshot_schema", 2, "the source delivers its rows without price_chf")
    first, *_ = causes([day(1), day(2, faults=(("nulls", "price"),))], changes=[schema])
    assert first.kind == "feed" and first.changes == ("snapshot_schema 1",)
    assert any("without price_chf" in text for text in first.speaks_for)


def test_a_fault_in_computed_features_that_begins_with_other_feature_code_is_that_code():
    changes = [
        change("deployment", 2),
        change("feature_version", 2, "features are computed by version b from then on"),
    ]
    first, *rest = causes([day(1), day(2, faults=(("nulls", "delay_mean"),))], changes=changes)
    assert (first.kind, first.changes) == ("feature code", ("feature_version 1",))
    assert first.weight > max((cause.weight for cause in rest), default=0)


def test_the_same_batch_again_is_the_feed_even_where_a_model_changed_on_that_day():
    first, *_ = causes([day(1), day(2, faults=(("repeat", ""),))], changes=[change("deployment", 2)])
    assert first.kind == "feed" and any("only a delivery" in text for text in first.speaks_for)
    assert first.speaks_against


def test_rows_that_could_not_be_scored_are_the_platform_or_the_new_model():
    days = [day(1), day(2, faults=(("dead_letters", ""),))]
    assert causes(days)[0].kind == "platform"
    assert causes(days, changes=[change("deployment", 2)])[0].kind == "model"


def test_damage_that_starts_with_another_champion_is_that_model():
    first, *_ = damaged(changes=[change("deployment", 3)], slices=labelled(lambda c, d: True))
    assert (first.kind, first.since, first.changes) == ("model", at(3), ("deployment 1",))
    assert any("no input moved" in text for text in first.speaks_for)


def bad_before(z: float) -> list[PerformanceSignal]:
    """Another model's damage on the three days before that of `BAD`."""
    return [gap(i, z=z, cusum=5 + i, alarm="cusum") for i in range(3)] + list(BAD[3:])


def test_damage_of_the_model_before_does_not_date_that_of_a_worse_one_back():
    signals = [day(i) for i in range(5)]
    performances = [measured(i, auc=0.7 if i < 3 else 0.3) for i in range(5)]
    first, *_ = causes(
        signals, performances=performances, gaps=bad_before(-2.0), changes=[change("deployment", 3)]
    )
    assert (first.kind, first.since, first.changes) == ("model", at(3), ("deployment 1",))
    assert any("performance fell exactly with it" in text for text in first.speaks_for)


def test_a_model_that_took_over_from_one_as_bad_is_not_what_is_suspected():
    signals = [day(i) for i in range(5)]
    performances = [measured(i, auc=0.6) for i in range(5)]
    first, *rest = causes(
        signals,
        performances=performances,
        gaps=bad_before(-6.0),
        slices=labelled(lambda c, d: True),
        changes=[change("deployment", 3)],
    )
    assert first.kind == "labels"
    assert f"the model before {at(3)} ranked worse than it promised too" in first.speaks_for
    assert all("fell exactly with it" not in text for cause in rest for text in cause.speaks_for)


def test_a_waived_finding_of_that_model_speaks_for_it():
    changes = [change("waiver", 0, "ada let 'slices' pass"), change("deployment", 3)]
    first, *_ = damaged(changes=changes)
    assert first.changes == ("deployment 1", "waiver 1")


def test_a_champion_that_changed_long_before_is_not_suspected():
    assert "model" not in {cause.kind for cause in damaged(changes=[change("deployment", -5)])}


def test_damage_in_all_slices_alike_with_inputs_unmoved_is_the_labels():
    slices = labelled(lambda c, d: True)
    assert slices.auc_z < -10
    first, *_ = damaged(slices=slices)
    assert first.kind == "labels" and first.slices == ()
    assert any("no slice stands out" in text for text in first.speaks_for)


def test_a_ranking_the_wrong_way_round_and_contradicting_labels_speak_for_labels():
    flipped = [measured(i, auc=0.75 if i < 3 else 0.3, conflicts=30) for i in range(5)]
    first, *_ = damaged(performances=flipped)
    assert first.kind == "labels"
    assert any("wrong way round" in text for text in first.speaks_for)
    assert any("contradict" in text for text in first.speaks_for)


def test_one_slice_that_is_worse_is_named_with_rows_and_auc():
    first, *rest = damaged(slices=labelled(lambda c, d: c == "Chur"))
    assert first.slices == ("city = Chur",) and first.kind == "labels"
    assert any("labelled rows) has AUC" in text for text in first.speaks_for)
    assert all(cause.weight < first.weight for cause in rest)


def test_one_slice_whose_inputs_moved_is_the_world_there():
    first, *_ = damaged(slices=labelled(lambda c, d: c == "Chur"), moved=("city x device",))
    assert (first.kind, first.slices, first.channels) == ("world", ("city = Chur",), ("city x device",))


def test_inputs_that_moved_while_the_model_got_worse_are_named():
    first, *_ = damaged(moved=("price", "visits"))
    assert first.kind == "world" and first.channels == ("price", "visits")


def test_faulty_days_come_before_everything_that_they_explain():
    signals = [day(i, faults=(("nulls", "price"),) if i >= 3 else ()) for i in range(5)]
    found = causes(signals, gaps=BAD, performances=[measured(i, auc=0.6) for i in range(5)])
    assert found[0].kind == "feed" and found[0].rank == 1
    assert any(cause.what.startswith("Besides") for cause in found)


def test_one_faulty_day_among_many_damaged_ones_explains_nothing():
    signals = [day(i, faults=(("nulls", "price"),) if i == 4 else ()) for i in range(5)]
    gaps = [gap(i, z=-6, cusum=5, alarm="once") for i in range(5)]
    performances = [measured(i, auc=0.6) for i in range(5)]
    found = causes(signals, performances=performances, gaps=gaps)
    assert "on the same days" not in " ".join(cause.what for cause in found)


def test_drift_that_begins_with_another_model_is_the_model_when_only_the_score_moved():
    signals = [day(0), day(1), day(2, moved=("score",)), day(3, moved=("score",))]
    assert causes(signals, changes=[change("deployment", 2)])[0].kind == "model"
    assert causes(signals)[0].kind == "world"


def test_several_inputs_that_move_without_a_change_of_ours_are_the_world():
    signals = [day(0), day(1), *(day(i, moved=("price", "visits")) for i in (2, 3))]
    first, *_ = causes(signals, performances=[measured(i) for i in range(4)])
    assert first.kind == "world" and any("labels of 2 of these days agree" in t for t in first.speaks_for)


def test_an_input_that_moves_without_those_it_usually_moves_with_is_the_feed():
    words = (
        "The mean of price is 0.84 standard deviations higher than the means of the other features suggest"
    )
    moved = [day(i, moved=("price", "visits")) for i in (2, 3)]
    alone = [
        replace(one, drift=tuple(replace(c, detail=words) if c.channel == "price" else c for c in one.drift))
        for one in moved
    ]
    found = causes([day(0), day(1), *alone], performances=[measured(i) for i in range(4)])
    assert [cause.kind for cause in found][:2] == ["feed", "world"]
    assert any(words in text for text in found[0].speaks_for)
    assert "what price usually moves with did not move in step" in found[1].speaks_against


def test_where_no_rule_fits_that_is_said():
    unjudged = [replace(day(i), drift=()) for i in range(5)]
    found = causes(
        unjudged,
        gaps=BAD,
        performances=[],
        slices=labelled(lambda c, d: c == "Chur"),
        changes=[change("exposure", 2)],
    )
    named = [cause for cause in found if cause.kind != "unknown"]
    assert named and named[0].slices  # something fits: no one says that nothing does
    found = causes(unjudged, gaps=BAD, changes=[change("exposure", 2), change("training", 1)])
    assert [cause.kind for cause in found] == ["unknown"]
    assert found[0].what.startswith("The cause is not known") and found[0].weight == 0
    assert any("2 recorded changes" in text for text in found[0].speaks_against)


def test_causes_are_records_that_json_gives_back():
    for cause in damaged(changes=[change("deployment", 3)]):
        assert Cause.from_json(cause.to_json()) == cause


def test_damage_starts_where_the_cusum_last_was_at_zero():
    gaps = [gap(0), gap(1, cusum=1.0), gap(2), gap(3, cusum=1.5), gap(4, z=-2, cusum=4.5, alarm="cusum")]
    assert damage_since(gaps, at(9)) == (at(3), at(4))
    assert damage_since(gaps[:4], at(9)) == ()
    assert damage_since(gaps, at(9), {at(4)}) == (at(4),), "another model, another chart"
    apart = [*gaps, *(gap(i) for i in range(5, 14)), gap(14, z=-5, cusum=4, alarm="once")]
    assert damage_since(apart, at(20)) == (at(14),)


def test_a_day_that_alarms_by_itself_takes_no_day_with_it_that_chance_left_a_little_below():
    jump = gap(4, z=-20.9, cusum=4.1, alarm="once")
    near = [gap(i, z=-1.2, cusum=0.2) for i in range(4)]
    assert damage_since([*near, jump], at(9)) == (at(4),)
    half = [gap(2, z=-1.2, cusum=0.2), gap(3, z=-2.5, cusum=1.7)]
    assert damage_since([*half, jump], at(9)) == (at(3), at(4))


@given(
    faults=st.lists(st.booleans(), min_size=5, max_size=5),
    moved=st.lists(st.booleans(), min_size=5, max_size=5),
    bad=st.booleans(),
    kinds=st.lists(
        st.tuples(
            st.sampled_from(["deployment", "feature_version", "snapshot_schema", "run_replaced", "waiver"]),
            st.integers(-3, 5),
        ),
        max_size=4,
    ),
)
def test_whatever_is_wrong_gets_an_answer_and_what_is_not_gets_none(faults, moved, bad, kinds):
    signals = [
        day(
            i,
            faults=(("nulls", "price"),) if faults[i] else (),
            moved=("price", "score") if moved[i] else (),
        )
        for i in range(5)
    ]
    changes = [change(kind, index) for kind, index in kinds]
    found = causes(signals, gaps=BAD if bad else (), changes=changes)
    assert bool(found) == (any(faults) or any(moved) or bad)
    assert [cause.rank for cause in found] == list(range(1, len(found) + 1))
    known = {item.id for item in changes}
    assert all(set(cause.changes) <= known for cause in found)


@pytest.mark.parametrize("days", [0, 1])
def test_no_rows_or_no_columns_are_stated(days):
    empty = pa.table({"prediction": pa.array([], pa.float64()), "label": pa.array([], pa.float64())})
    found = slice_performance(empty, ("city",), days=[at(i) for i in range(days)])
    assert found.slices == () and "No labelled row" in found.statement
    rows = pa.table({"prediction": [0.1, 0.9], "label": [0.0, 1.0]})
    assert "No column to compare by" in slice_performance(rows, (), days=[at(0)]).statement


def test_other_feature_code_whose_inputs_moved_comes_before_the_model_that_brought_it():
    changes = [change("deployment", 3), change("feature_version", 3)]
    assert damaged(changes=changes, moved=("delay_mean",))[0].kind == "feature code"
    assert damaged(changes=changes)[0].kind == "model"
