"""Metrics agree with scikit-learn, and day resampling with resampling the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from tasks.evaluation import resampling
from tasks.model import metrics
from tasks.model.ranking import auc


def sample(seed: int, rows: int = 400, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random(rows)
    if ties:
        scores = np.round(scores, 1)
    labels = (rng.random(rows) < 0.2 + 0.5 * scores).astype(np.int8)
    labels[:2] = [0, 1]
    return labels, scores


@pytest.mark.parametrize("ties", [False, True])
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 300))
def test_metrics_equal_scikit_learn(ties: bool, seed: int, rows: int) -> None:
    labels, scores = sample(seed, rows, ties)
    assert metrics.pr_auc(labels, scores) == pytest.approx(reference.average_precision_score(labels, scores))
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    assert metrics.log_loss(labels, clipped) == pytest.approx(reference.log_loss(labels, clipped))
    assert metrics.brier(labels, scores) == pytest.approx(reference.brier_score_loss(labels, scores))


def test_roc_and_precision_recall_points_equal_scikit_learn() -> None:
    labels, scores = sample(3, ties=True)
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(metrics.roc_points(labels, scores), (fpr, tpr))
    precision, recall, _ = reference.precision_recall_curve(labels, scores)
    ours = metrics.pr_points(labels, scores)
    assert np.allclose(ours[0][::-1], recall[:-1])
    assert np.allclose(ours[1][::-1], precision[:-1])


def test_equal_mass_bins_hold_equal_counts_and_never_split_ties() -> None:
    scores = np.random.default_rng(0).random(1500)
    assert set(np.bincount(metrics.equal_mass_bins(scores, 15))) == {100}
    tied = np.repeat([0.1, 0.2, 0.9], 100)
    for value in (0.1, 0.2, 0.9):
        assert len(set(metrics.equal_mass_bins(tied, 15)[tied == value])) == 1


def test_ece_sees_the_size_of_a_miscalibration() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.2, 0.6, 200_000)
    labels = (rng.random(len(truth)) < truth).astype(np.int8)
    assert metrics.ece(labels, truth) < 0.01
    assert metrics.ece(labels, truth + 0.1) == pytest.approx(0.1, abs=0.01)


def clustered(seed: int, days: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    day = rng.integers(0, days, 600)
    labels, scores = sample(seed, 600, ties=True)
    return labels, scores, day


@given(seed=st.integers(0, 10_000))
def test_day_sums_give_what_copying_the_resampled_rows_gives(seed: int) -> None:
    labels, scores, day = clustered(seed)
    weights = resampling.draw_days(12, 3, seed)
    found = resampling.measure(labels, scores, day, weights)
    for number, row in enumerate(weights):
        copies = np.repeat(np.arange(len(day)), row[day].astype(int))
        drawn_labels, drawn = labels[copies], scores[copies]
        expected = {
            "auc": reference.roc_auc_score(drawn_labels, drawn),
            "pr_auc": reference.average_precision_score(drawn_labels, drawn),
            "log_loss": metrics.log_loss(drawn_labels, drawn),
            "brier": metrics.brier(drawn_labels, drawn),
            "calibration_gap": float(np.mean(drawn - drawn_labels)),
        }
        for name, value in expected.items():
            assert found[name].replicates[number] == pytest.approx(value), name


def test_estimates_on_all_rows_are_the_plain_metrics() -> None:
    labels, scores, day = clustered(5)
    found = resampling.measure(labels, scores, day, resampling.draw_days(12, 50))
    assert found["auc"].value == auc(labels, scores)
    assert found["pr_auc"].value == pytest.approx(metrics.pr_auc(labels, scores))
    assert found["brier"].value == pytest.approx(metrics.brier(labels, scores))
    assert found["ece"].value <= metrics.ece(labels, scores)


@given(seed=st.integers(0, 10_000))
def test_the_paired_difference_of_equal_models_is_exactly_zero(seed: int) -> None:
    labels, scores, day = clustered(seed)
    weights = resampling.draw_days(12, 20, seed)
    first = resampling.measure(labels, scores, day, weights)
    second = resampling.measure(labels, scores.copy(), day, weights)
    for name in first:
        bounds = resampling.interval(first[name] - second[name], 12, 0.95)
        assert (bounds.value, bounds.low, bounds.high) == (0, 0, 0)


def test_resamples_are_seeded() -> None:
    assert np.array_equal(resampling.draw_days(9, 30), resampling.draw_days(9, 30))
    assert not np.array_equal(resampling.draw_days(9, 30), resampling.draw_days(9, 30, seed=1))


def test_an_interval_contains_its_estimate_and_one_day_has_none() -> None:
    labels, scores, day = clustered(8)
    estimate = resampling.auc_estimate(labels, scores, day, resampling.draw_days(12, 200))
    bounds = resampling.interval(estimate, 12, 0.95)
    assert bounds.low is not None and bounds.high is not None and bounds.value is not None
    assert bounds.low < bounds.value < bounds.high
    assert resampling.interval(estimate, 1, 0.95).low is None


def test_shared_shocks_of_days_widen_the_interval_that_rows_alone_would_give() -> None:
    rng = np.random.default_rng(4)
    days, per_day = 20, 200
    day = np.repeat(np.arange(days), per_day)
    shock = rng.normal(0, 0.15, days)[day]
    scores = np.full(days * per_day, 0.4)
    labels = (rng.random(len(day)) < 0.4 + shock).astype(np.int8)
    by_day = resampling.mean_estimate(scores - labels, day, resampling.draw_days(days, 300))
    naive = float(np.std(scores - labels)) / np.sqrt(len(day))
    assert float(np.std(by_day.replicates)) > 2 * naive


def test_intervals_of_few_days_cover_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(6)
    covered, trials, days = 0, 300, 7
    for trial in range(trials):
        day = np.repeat(np.arange(days), 20)
        values = rng.normal(0, 1, days)[day] + rng.normal(0, 0.5, len(day))
        estimate = resampling.mean_estimate(values, day, resampling.draw_days(days, 400, trial))
        bounds = resampling.interval(estimate, days, 0.95)
        assert bounds.low is not None and bounds.high is not None
        covered += bounds.low <= 0 <= bounds.high
    assert covered / trials > 0.9  # the plain percentile interval covers 0.86 here


def test_debiased_ece_is_closer_to_the_truth_than_the_plug_in() -> None:
    rng = np.random.default_rng(2)
    plugin, debiased = [], []
    for trial in range(40):
        truth = rng.uniform(0.1, 0.6, 600)
        labels = (rng.random(600) < truth).astype(np.int8)
        day = np.repeat(np.arange(12), 50)
        plugin.append(metrics.ece(labels, truth))
        debiased.append(
            resampling.ece_estimate(labels, truth, day, resampling.draw_days(12, 200, trial)).value
        )
    assert 0 <= np.mean(debiased) < 0.75 * np.mean(plugin)


def test_intervals_are_wider_by_the_student_factor_of_few_days() -> None:
    """A normal bootstrap distribution of 7 days: half width t(0.975, 6) * sqrt(7 / 6) = 2.64 standard errors."""
    normal = resampling.Estimate(0.0, np.random.default_rng(0).normal(size=200_000))
    bounds = resampling.interval(normal, 7, 0.95)
    assert bounds.high == pytest.approx(2.643, abs=0.06)
    assert bounds.se == pytest.approx(np.sqrt(7 / 6), rel=0.01)
