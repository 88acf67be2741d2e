"""The AUC: equal to scikit-learn's, rounded once, and the same number that was stored before."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from tasks.model.ranking import auc, auc_of_groups, auc_of_ranks, midranks


def sample(seed: int, rows: int = 400, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random(rows)
    if ties:
        scores = np.round(scores, 1)
    labels = (rng.random(rows) < 0.2 + 0.5 * scores).astype(np.int8)
    labels[:2] = [0, 1]
    return labels, scores


def share_of_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition, in whole numbers; a Fraction becomes the nearest float64."""
    high, low = scores[labels == 1][:, None], scores[labels == 0][None, :]
    halves = 2 * int(np.sum(high > low)) + int(np.sum(high == low))
    return float(Fraction(halves, 2 * high.size * low.size))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 300))
def test_auc_equals_scikit_learn(ties: bool, kind: type[np.floating], seed: int, rows: int) -> None:
    labels, scores = sample(seed, rows, ties)
    scores = scores.astype(kind)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), rel=0, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 300))
def test_auc_is_the_share_of_pairs_to_the_last_bit(ties: bool, seed: int, rows: int) -> None:
    labels, scores = sample(seed, rows, ties)
    assert auc(labels, scores) == share_of_pairs(labels, scores)
    assert auc(labels.astype(np.float32), scores) == share_of_pairs(labels, scores)


@given(seed=st.integers(0, 10_000))
def test_auc_does_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    labels, scores = sample(seed, ties=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    assert auc(labels[order], scores[order]) == auc(labels, scores)


@given(seed=st.integers(0, 10_000), power=st.sampled_from([0.5, 2.0, 3.0]))
def test_auc_does_not_change_under_a_monotone_transform(seed: int, power: float) -> None:
    labels, scores = sample(seed, ties=True)
    assert auc(labels, scores**power) == auc(labels, scores)


@given(seed=st.integers(0, 10_000))
def test_auc_of_reversed_scores_is_one_minus_auc(seed: int) -> None:
    labels, scores = sample(seed, ties=True)
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("labels", [np.ones(5, np.int8), np.zeros(5, np.int8), np.zeros(0, np.int8)])
def test_auc_of_one_class_or_of_no_rows_is_not_defined(labels: np.ndarray) -> None:
    assert np.isnan(auc(labels, np.linspace(0, 1, len(labels))))
    assert np.isnan(auc_of_groups(labels.astype(np.float64), np.zeros(len(labels))))


@given(values=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]), max_size=40))
def test_equal_values_share_the_mean_of_their_ranks(values: list[float]) -> None:
    assert midranks(np.array(values)).tolist() == rankdata(values, "average").tolist()


@given(seed=st.integers(0, 10_000))
def test_ranks_and_groups_of_equal_scores_give_the_same_auc(seed: int) -> None:
    labels, scores = sample(seed, ties=True)
    _, group = np.unique(scores, return_inverse=True)
    positives = np.bincount(group, weights=labels)
    negatives = np.bincount(group, weights=1 - labels)
    assert auc_of_groups(positives, negatives) == auc(labels, scores)
    assert auc_of_ranks(midranks(scores)[labels == 1], int(negatives.sum())) == auc(labels, scores)
