"""Tier 3: realised against promised performance, and labels as they really come."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest
from decision_support import day as decision_day
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tasks.core.errors import DataError
from tasks.monitoring import DayPerformance, decide, expected_auc, judge_gaps, performance
from tasks.monitoring.performance import auc_with_error

DAY = date(2024, 5, 1)


def drawn(n: int = 1000, seed: int = 0, *, flip: float = 0.0) -> tuple[pa.Table, pa.Table]:
    rng = np.random.default_rng(seed)
    p = rng.beta(1.2, 3.0, n)
    y = rng.random(n) < p
    y = np.where(rng.random(n) < flip, ~y, y).astype(np.int8)
    ids = [f"p{seed}-{i}" for i in range(n)]
    return (
        pa.table({"prediction_id": ids, "prediction": pa.array(p, pa.float32())}),
        pa.table({"prediction_id": ids, "label": pa.array(y)}),
    )


def measure(
    scored: pa.Table, labels: pa.Table | None, *, as_of: date = DAY + timedelta(days=1)
) -> DayPerformance:
    return performance(shop.SPEC, day=DAY, scored=scored, labels=labels, as_of=as_of)


def test_a_calibrated_day_has_the_auc_and_brier_that_its_scores_promise():
    found = measure(*drawn(20_000))
    assert found.state == "measured" and found.coverage == 1.0
    assert found.gap == pytest.approx(0, abs=0.015)
    assert found.brier_gap == pytest.approx(0, abs=0.006)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), st.booleans()), min_size=4, max_size=80)
)
@hypothesis_settings(max_examples=80)
def test_auc_agrees_with_scikit_learn_ties_included(items):
    scores = np.array([s for s, _ in items])
    labels = np.array([float(y) for _, y in items])
    if 2 <= labels.sum() <= len(items) - 2:
        assert auc_with_error(scores, labels)[0] == pytest.approx(roc_auc_score(labels, scores))


def test_expected_auc_is_the_mean_over_label_draws():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, 400)
    drawn_aucs = [roc_auc_score(rng.random(400) < p, p) for _ in range(300)]
    assert expected_auc(p) == pytest.approx(np.mean(drawn_aucs), abs=0.006)


def test_labels_before_their_time_are_immature_and_say_from_when():
    found = measure(*drawn(), as_of=DAY)
    assert found.state == "immature" and "2024-05-02" in found.statement and found.auc is None


def test_labels_that_never_came_are_missing():
    scored, labels = drawn()
    assert measure(scored, None).state == "missing"
    assert measure(scored, labels.slice(0, 0)).state == "missing"
    some = measure(scored, labels.slice(0, 300))
    assert some.state == "missing" and "300 of 1,000" in some.statement


def test_labels_that_come_twice_count_once():
    scored, labels = drawn()
    once, twice = measure(scored, labels), measure(scored, pa.concat_tables([labels, labels]))
    assert twice.auc == pytest.approx(once.auc) and twice.labelled_rows == once.labelled_rows
    assert twice.duplicate_labels == 1000 and "came twice" in twice.statement


def test_contradicting_labels_are_left_out_and_counted():
    scored, labels = drawn()
    wrong = pa.table(
        {
            "prediction_id": labels["prediction_id"][:50],
            "label": pa.array(1 - labels["label"].to_numpy()[:50]),
        }
    )
    found = measure(scored, pa.concat_tables([labels, wrong]))
    assert found.conflicting_labels == 50 and found.labelled_rows == 950
    example = found.statement.split("for example ")[1].rstrip(".")
    assert example in wrong["prediction_id"].to_pylist()


def test_null_labels_are_no_labels_and_strangers_are_ignored():
    scored, labels = drawn()
    values = labels["label"].to_pylist()
    holes = labels.set_column(1, "label", pa.array([None] * 100 + values[100:], pa.int8()))
    stranger = pa.table({"prediction_id": ["x"], "label": pa.array([1], pa.int8())})
    assert measure(scored, pa.concat_tables([holes, stranger])).labelled_rows == 900


def test_one_class_and_few_rows_have_no_auc_and_say_why():
    scored, labels = drawn()
    zeros = labels.set_column(1, "label", pa.array([0] * 1000, pa.int8()))
    assert measure(scored, zeros).state == "one_class"
    assert measure(*drawn(50)).state == "too_few"
    assert judge_gaps([measure(scored, zeros)]) == ()


def test_labels_other_than_zero_and_one_are_refused():
    scored, labels = drawn()
    with pytest.raises(DataError, match="0, 1 or null"):
        measure(scored, labels.set_column(1, "label", pa.array([3] * 1000)))
    with pytest.raises(DataError, match="no column 'label'"):
        measure(scored, labels.drop_columns(["label"]))


def history(days: int, *, flip: float = 0.0, start: int = 0) -> list[DayPerformance]:
    found = []
    for i in range(start, start + days):
        scored, labels = drawn(800, seed=i, flip=flip)
        day = DAY + timedelta(days=i)
        found.append(
            performance(shop.SPEC, day=day, scored=scored, labels=labels, as_of=day + timedelta(days=1))
        )
    return found


def test_a_hundred_calibrated_days_raise_no_alarm():
    assert [g for g in judge_gaps(history(100), history(30, start=200)) if g.alarm] == []
    assert [g for g in judge_gaps(history(100)) if g.alarm] == []


@pytest.mark.parametrize(("flip", "within"), [(1.0, 1), (0.3, 4)])
def test_a_flipped_concept_is_seen_within_days(flip, within):
    days = history(20) + history(within, flip=flip, start=20)
    found = judge_gaps(days, history(30, start=200))
    assert not any(g.alarm for g in found[:20])
    assert found[-1].alarm


def days_off_by(*zs: float) -> list[DayPerformance]:
    """Labelled days whose AUC is so many errors from what the scores promise."""
    usual = measure(*drawn())
    return [
        replace(
            usual, day=DAY + timedelta(days=i), auc=0.7 + z * 0.02, auc_se=0.02 / 2**0.5, expected_auc=0.7
        )
        for i, z in enumerate(zs)
    ]


def test_a_single_bad_day_does_not_speak_for_the_days_after_it():
    found = judge_gaps(days_off_by(0.0, -6.5, -1.0, -0.5, 0.0))
    assert [g.alarm for g in found] == [None, "once", None, None, None]


@given(st.lists(st.integers(-96, 32).map(lambda n: n / 8 + 0.0137), min_size=1, max_size=40))
def test_whatever_bad_days_count_the_first_alarm_is_that_of_the_plain_sum(zs):
    found = judge_gaps(days_off_by(*zs))
    total, plain = 0.0, []  # the odd 0.0137 keeps sums off the limits, where rounding would decide
    for g in found:
        total = max(0.0, total - g.z - 1.0)
        plain.append(g.z < -4.0 or (total > 4.0 and g.z < 0))
    alarms = [g.alarm is not None for g in found]
    assert any(alarms) == any(plain)
    assert not any(alarms) or alarms.index(True) == plain.index(True)


def test_a_day_of_many_more_rows_is_judged_no_finer_than_the_usual_gap_is_known():
    """Seven validation days of few rows leave the usual gap uncertain by more than a large day's own error."""
    few = replace(measure(*drawn()), auc_se=0.08, expected_auc=0.74)
    usual = [
        replace(few, auc=0.74 + gap) for gap in (0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.18)
    ]  # 0.1 in the middle
    large = replace(few, scored_rows=200_000, labelled_rows=200_000, auc_se=0.002)
    (near, far, same) = judge_gaps(
        [
            replace(large, day=DAY, auc=0.80),
            replace(large, day=DAY + timedelta(days=1), auc=0.60),
            replace(few, day=DAY + timedelta(days=2), auc=0.80),
        ],
        usual,
    )
    assert near.alarm is None and near.z > -2 and near.usual == 0.1
    assert far.alarm == "once"
    assert same.z == pytest.approx((0.06 - 0.1) / np.hypot(0.08, 0.0), abs=0.001), (
        "the usual size is as it was"
    )
    words = decide(
        shop.SPEC,
        [decision_day(0)],
        gaps=[replace(near, alarm="cusum", cusum=5.0)],
    ).reasons
    assert any("0.060 above what the scores promise, but 0.040 less than usual" in reason for reason in words)


def test_the_cusum_comes_back_when_the_cause_is_gone():
    days = history(10, flip=0.6) + history(12, start=10)
    assert judge_gaps(days)[-1].alarm is None


def test_scores_that_are_all_zero_promise_nothing_and_still_serialise():
    scored, labels = drawn()
    zeros = scored.set_column(1, "prediction", pa.array(np.zeros(1000)))
    found = measure(zeros, labels)
    assert found.auc == pytest.approx(0.5) and found.expected_auc is None
    json.dumps(found.to_json(), allow_nan=False)
    assert judge_gaps([found]) == ()


def test_performance_survives_json():
    found = measure(*drawn())
    assert DayPerformance.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("rows", "steps", "auc", "auc_se", "promised"),
    [
        (40, 7, 0.6262626262626263, 0.09061811903992452, 0.8387214898514335),
        (1000, 101, 0.6702969696969697, 0.017031783855418595, 0.8333458271158012),
        (20011, 4093, 0.6685196573190062, 0.0038091958213130827, 0.8333585319227322),
    ],
)
def test_days_measured_again_by_a_later_release_have_the_numbers_stored_by_an_earlier_one(
    rows, steps, auc, auc_se, promised
):
    """Counted by the first release's own mid-ranks; without a random draw, so that no library moves them."""
    i = np.arange(rows)
    scores = (i * 7919 % steps) / steps
    labels = (i * 104729 % 1013) / 1013 < 0.2 + 0.5 * scores
    found = auc_with_error(scores, labels.astype(np.float64))
    assert found[0] == auc
    assert found[1] == pytest.approx(auc_se, rel=1e-12)
    assert expected_auc(scores) == pytest.approx(promised, rel=1e-12)
