"""The canary's confidence sequence: honest for few days, right in the long run, cautious when it cannot know."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import PipelineSpec
from tasks.core.errors import PipelineCodeError
from tasks.evaluation import CanaryDay, compare_canary
from tasks.evaluation.canary import (
    asymptotic_half_width,
    canary_bounds,
    days_to_decide,
    half_width,
    paired_day,
)
from tasks.evaluation.scoring import score_or_nan


def days_of(differences: list[float], rows: int = 500) -> list[CanaryDay]:
    return [
        CanaryDay(date(2024, 2, 5) + timedelta(days=index), rows, 0.2 + value, 0.2)
        for index, value in enumerate(differences)
    ]


def with_canary(toy: PipelineSpec, **changes: object) -> PipelineSpec:
    return toy.model_copy(update={"canary": toy.canary.model_copy(update=changes)})


def test_an_equal_challenger_with_quiet_days_is_promoted_within_a_week(toy: PipelineSpec) -> None:
    verdict = compare_canary(
        toy, days_of([0.0004, -0.0006, 0.0002, -0.0003, 0.0005, -0.0001, 0.0001]), subject="x"
    )
    assert verdict.outcome == "pass"
    assert verdict.gate == "canary"


def test_a_bad_challenger_is_rolled_back(toy: PipelineSpec) -> None:
    verdict = compare_canary(toy, days_of([0.02, 0.024, 0.018, 0.022, 0.021, 0.019, 0.02]), subject="x")
    assert verdict.outcome == "fail"


def test_a_challenger_surely_worse_within_the_margin_is_not_promoted(toy: PipelineSpec) -> None:
    verdict = compare_canary(toy, days_of([0.002, 0.0021, 0.0019, 0.002, 0.0021, 0.0019, 0.002]), subject="x")
    assert verdict.outcome == "fail"


def test_noisy_days_hold_and_say_how_long_a_decision_would_take(toy: PipelineSpec) -> None:
    verdict = compare_canary(toy, days_of([0.01, -0.012, 0.008, -0.009, 0.011, -0.01, 0.0]), subject="x")
    assert verdict.outcome == "inconclusive"
    assert any(finding.name == "outlook" and finding.value for finding in verdict.findings)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_days_always_hold(toy: PipelineSpec, count: int) -> None:
    verdict = compare_canary(toy, days_of([0.0] * count), subject="x")
    assert verdict.outcome == "inconclusive"
    assert any(finding.name == "days" and finding.status == "warn" for finding in verdict.findings)


def test_days_with_too_few_rows_do_not_count(toy: PipelineSpec) -> None:
    assert compare_canary(toy, days_of([0.0] * 7, rows=5), subject="x").outcome == "inconclusive"


def test_days_beyond_the_horizon_do_not_count(toy: PipelineSpec) -> None:
    quiet = [0.0001, -0.0001, 0.0002, -0.0002, 0.0001, 0.0, -0.0001]
    verdict = compare_canary(toy, days_of([*quiet, 0.5, 0.5]), subject="x")
    assert verdict.outcome == "pass"


def test_the_same_model_twice_is_no_worse_than_itself(toy: PipelineSpec) -> None:
    assert compare_canary(toy, days_of([0.0] * 7), subject="x").outcome == "pass"


def test_the_order_in_which_days_are_given_does_not_matter(toy: PipelineSpec) -> None:
    days = days_of([0.001, -0.002, 0.0005, 0.0])
    assert canary_bounds(toy, days) == canary_bounds(toy, days[::-1])


@given(spread=st.floats(1e-6, 1), alpha=st.floats(0.001, 0.2))
def test_the_width_shrinks_with_days_and_grows_with_confidence(spread: float, alpha: float) -> None:
    widths = [half_width(n, spread, alpha) for n in range(2, 200)]
    assert all(later <= sooner for sooner, later in pairwise(widths))
    assert half_width(30, spread, alpha / 2) > half_width(30, spread, alpha)


def test_the_width_scales_with_the_spread() -> None:
    assert half_width(9, 3.0, 0.025) == pytest.approx(3 * half_width(9, 1.0, 0.025))


def test_for_many_days_the_exact_sequence_is_the_asymptotic_mixture() -> None:
    """With r2 = 1 / c2 both integrate the same prior, so their ratio goes to 1."""
    alpha, c2 = 0.025, 0.1
    log_level = -2 * math.log(2 * alpha)
    planned = (log_level + math.log(log_level) + 1) * c2  # the horizon at which r2 is 1 / c2
    for days, tolerance in ((200, 0.1), (5000, 0.02)):
        ours = half_width(days, 1.0, alpha, precision=c2)
        grown = days / c2 + 1
        same_prior = math.sqrt(2 * grown / (days**2 / c2) * math.log(math.sqrt(grown) / (2 * alpha)))
        assert ours == pytest.approx(same_prior, rel=tolerance)
        assert planned > 0


def test_false_promotion_at_the_margin_stays_within_alpha_at_every_look() -> None:
    """A challenger exactly at the margin, looked at every day from day 3 to day 14, promoted at any look."""
    rng = np.random.default_rng(11)
    trials, horizon, alpha = 20_000, 14, 0.025
    exact = false_promotions(rng.normal(size=(trials, horizon)), lambda n: half_width(n, 1.0, alpha))
    assert exact <= alpha
    tails = rng.standard_t(5, size=(trials, horizon)) / math.sqrt(5 / 3)
    assert false_promotions(tails, lambda n: half_width(n, 1.0, alpha)) <= alpha + 0.005


def test_the_asymptotic_sequence_would_promote_too_often_in_a_fortnight() -> None:
    """Why the exact sequence is used: this is what it replaces."""
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(20_000, 14))
    assert false_promotions(noise, lambda n: asymptotic_half_width(n, 1.0, 0.025, 14)) > 0.05


def false_promotions(noise: np.ndarray, width) -> float:  # type: ignore[no-untyped-def]
    n = np.arange(1, noise.shape[1] + 1)
    mean = np.cumsum(noise, axis=1) / n
    squares = np.cumsum(noise**2, axis=1) - n * mean**2
    spread = np.sqrt(np.maximum(squares, 0) / np.maximum(n - 1, 1))
    widths = np.array([width(int(k)) if k >= 3 else math.inf for k in n])
    upper = mean[:, 2:] + spread[:, 2:] * widths[2:]
    return float(np.mean(np.any(upper < 0, axis=1)))


def test_a_healthy_challenger_is_rarely_rolled_back_and_mostly_promoted(toy: PipelineSpec) -> None:
    rng = np.random.default_rng(13)
    outcomes = [
        compare_canary(toy, days_of(list(rng.normal(0, 0.0015, 7))), subject="x").outcome for _ in range(300)
    ]
    assert outcomes.count("fail") / 300 <= 0.025
    assert outcomes.count("pass") / 300 >= 0.8


def test_days_to_decide_grow_with_the_noise_of_days() -> None:
    quiet = days_to_decide(0.0006, 0.005, 0.025)
    noisy = days_to_decide(0.005, 0.005, 0.025)
    assert quiet is not None and noisy is not None
    assert quiet <= 3 and 14 < noisy < 30
    assert days_to_decide(1.0, 0.005, 0.025) is None


def simulated(shock: float, seed: int, days: int = 7, rows: int = 2000) -> list[CanaryDay]:
    """Days of an equal challenger whose rows share a shift of `shock` standard deviation."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(days):
        champion = rng.uniform(0, 1, rows)
        challenger = champion + rng.normal(0, 0.05, rows) + (rng.normal(0, shock) if shock else 0.0)
        found.append(paired_day(date(2024, 2, 5) + timedelta(days=index), challenger, champion))
    return found


def test_days_of_independent_rows_vary_as_much_as_their_rows_explain(toy: PipelineSpec) -> None:
    ratios = []
    for seed in range(40):
        verdict = compare_canary(toy, simulated(0.0, seed), subject="x")
        ratios += [finding.value for finding in verdict.findings if finding.name == "day_shocks"]
    assert len(ratios) == 40
    assert 0.7 < np.mean(ratios) < 1.3


def test_shocks_shared_by_a_day_are_told_and_days_decide_where_rows_would_err(toy: PipelineSpec) -> None:
    spec = with_canary(toy, margin_brier=0.002)
    misled = 0
    for seed in range(20):
        days = simulated(0.02, seed)
        verdict = compare_canary(spec, days, subject="x")
        (told,) = [finding for finding in verdict.findings if finding.name == "day_shocks"]
        assert told.value is not None and told.value > 20
        bare = [CanaryDay(item.day, item.rows, item.challenger_brier, item.champion_brier) for item in days]
        assert compare_canary(spec, bare, subject="x").outcome == verdict.outcome
        if told.status == "warn":
            assert "rows would have" in told.detail
            misled += 1
    assert misled >= 10


def test_days_of_earlier_evidence_say_nothing_about_shocks(toy: PipelineSpec) -> None:
    old = {"day": "2024-02-05", "rows": 500, "challenger_brier": 0.2, "champion_brier": 0.2}
    assert CanaryDay.from_json(old).row_spread is None
    verdict = compare_canary(toy, days_of([0.0] * 7), subject="x")
    assert all(finding.name != "day_shocks" for finding in verdict.findings)


@pytest.mark.parametrize(
    ("errors", "outcome", "status"), [(0, "pass", None), (2, "pass", "warn"), (40, "fail", "fail")]
)
def test_rows_that_the_challenger_cannot_score_are_named_and_surely_too_many_refuse_it(
    toy: PipelineSpec, errors: int, outcome: str, status: str | None
) -> None:
    quiet = days_of([0.0] * 7)
    quiet[2] = replace(quiet[2], challenger_errors=errors, error_example="no entry for WN")
    verdict = compare_canary(toy, quiet, subject="c")
    found = [item for item in verdict.findings if item.name == "unscored_rows"]
    assert (verdict.outcome, [item.status for item in found]) == (outcome, [status] if status else [])
    assert all("no entry for WN" in item.detail for item in found)


def test_rows_that_a_model_cannot_score_are_found_and_the_others_keep_their_scores(toy: PipelineSpec) -> None:
    class Stumbling:
        asked = 0

        def features(self, rows: pa.Table) -> pa.Table:
            self.asked += 1
            if not set(rows["visits"].to_pylist()).isdisjoint(self.unknown):
                raise PipelineCodeError("no entry", which="features.py", fix="add it")
            return rows

        def encode(self, features: pa.Table) -> np.ndarray:
            return features["visits"].to_numpy()

        def predict(self, encoded: np.ndarray) -> np.ndarray:
            return encoded / 10_000

    rows = pa.table({"visits": list(range(4_000))})
    scorer = Stumbling()
    scorer.unknown = {7, 8, 3_999}  # type: ignore[attr-defined]
    scores, reason = score_or_nan(scorer, rows, toy)  # type: ignore[arg-type]
    assert np.flatnonzero(np.isnan(scores)).tolist() == [7, 8, 3_999] and "no entry" in reason
    assert np.nanmax(np.abs(scores - np.arange(4_000) / 10_000)) == 0
    scorer.unknown, scorer.asked = set(range(4_000)), 0  # type: ignore[attr-defined]
    scores, _ = score_or_nan(scorer, rows, toy)  # type: ignore[arg-type]
    assert np.isnan(scores).all() and scorer.asked < 1_000, "what fails altogether is given up"
