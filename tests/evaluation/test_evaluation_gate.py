"""The gate refuses each planted bad model, says why, and never lets the undecided pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from checks_support import sound_checks
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import PipelineSpec, Verdict
from tasks.core.intervals import holm
from tasks.evaluation import Evaluation, judge
from tasks.evaluation.behaviour import sanity
from tasks.evaluation.distribution import measure_shape
from tasks.evaluation.evidence import measure
from tasks.evaluation.gate import claim
from tasks.evaluation.records import Interval, SliceMetrics
from tasks.evaluation.resampling import draw_days
from tasks.evaluation.scoring import ScoredDays
from tasks.evaluation.slice_rules import slice_findings, slice_regressions


def gated(toy: PipelineSpec, **changes: object) -> PipelineSpec:
    gates = {
        "min_auc": 0.6,
        "max_ece": 0.05,
        "auc_margin_baseline": 0.0,
        "slices": ("group",),
        "slice_min_rows": 200,
        "bootstrap_samples": 200,
        **changes,
    }
    return toy.model_copy(update={"gates": toy.gates.model_copy(update=gates)})


def scored(seed: int = 0, days: int = 20, per_day: int = 200) -> ScoredDays:
    """A world where the candidate knows the truth, the baseline a blurred truth, and the champion nearly all."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), per_day)
    logit = rng.normal(-0.8, 1.2, len(day)) + rng.normal(0, 0.1, days)[day]
    truth = 1 / (1 + np.exp(-logit))
    labels = (rng.random(len(day)) < truth).astype(np.int8)

    def blurred(noise: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(logit + rng.normal(0, noise, len(day)))))

    return ScoredDays(
        days=tuple(date(2024, 1, 1 + index) for index in range(days)),
        day=day,
        labels=labels,
        scores={
            "candidate": truth,
            "champion": blurred(0.1),
            "baseline": blurred(1.0),
            "constant": np.full(len(day), labels.mean()),
        },
        slices={"group": np.where(rng.random(len(day)) < 0.25, "small", "large").astype(object)},
        alone={name: logit + rng.normal(0, 2.0, len(day)) for name in ("price", "visits", "city", "device")},
    )


def with_candidate(world: ScoredDays, scores: np.ndarray) -> ScoredDays:
    return replace(world, scores={**world.scores, "candidate": scores})


def verdict_on(spec: PipelineSpec, world: ScoredDays, *, champion: str | None = "c" * 64) -> Verdict:
    return judge(spec, evidence(spec, world, champion=champion))


def evidence(spec: PipelineSpec, world: ScoredDays, *, champion: str | None = "c" * 64) -> Evaluation:
    found = measure(spec, world, checks=sanity(world.scores["candidate"]))
    return replace(found, candidate_digest="a" * 64, champion_digest=champion, model_checks=sound_checks())


def statuses(verdict: Verdict) -> dict[str, str]:
    return {finding.name: finding.status for finding in verdict.findings}


def test_a_good_model_passes_with_every_rule_named(toy: PipelineSpec) -> None:
    verdict = verdict_on(gated(toy), scored())
    assert verdict.outcome == "pass", verdict.reasons()
    assert {
        "data",
        "min_auc",
        "better_than_baseline",
        "no_worse_than_champion",
        "calibration",
        "slices",
    } <= set(statuses(verdict))
    assert all(
        finding.value is not None and finding.limit is not None
        for finding in verdict.findings
        if finding.name
        in ("min_auc", "better_than_baseline", "no_worse_than_champion", "calibration", "slices")
    )


def test_without_a_champion_the_comparison_is_skipped_and_says_so(toy: PipelineSpec) -> None:
    verdict = verdict_on(gated(toy), scored(), champion=None)
    assert verdict.passed
    assert any("no champion" in finding.detail for finding in verdict.findings)


def test_a_constant_model_fails(toy: PipelineSpec) -> None:
    world = scored()
    verdict = verdict_on(gated(toy), with_candidate(world, np.full(len(world.labels), 0.3)))
    assert verdict.outcome == "fail"
    found = statuses(verdict)
    assert found["min_auc"] == found["behaviour: not constant"] == found["better_than_baseline"] == "fail"


def test_a_model_trained_on_shuffled_labels_fails(toy: PipelineSpec) -> None:
    world = scored()
    shuffled = np.random.default_rng(1).permutation(world.scores["candidate"])
    verdict = verdict_on(gated(toy), with_candidate(world, shuffled))
    assert verdict.outcome == "fail"
    assert statuses(verdict)["min_auc"] == "fail"


def test_a_miscalibrated_model_fails_though_its_auc_is_perfect_for_the_gate(toy: PipelineSpec) -> None:
    world = scored()
    verdict = verdict_on(
        gated(toy, max_champion_distance=1.0), with_candidate(world, world.scores["candidate"] ** 0.4)
    )
    assert verdict.outcome == "fail"
    assert [name for name, status in statuses(verdict).items() if status == "fail"] == ["calibration"]


def test_a_model_that_is_bad_on_one_slice_fails_and_names_the_slice(toy: PipelineSpec) -> None:
    world = scored()
    small = world.slices["group"] == "small"
    turned = np.where(small, 0.6 - 0.6 * world.scores["candidate"], world.scores["candidate"])
    spec = gated(toy, max_ece=1.0, auc_margin_baseline=-1.0, noninferiority_margin_auc=1.0)
    verdict = verdict_on(spec, with_candidate(world, turned))
    assert verdict.outcome == "fail"
    assert statuses(verdict)["slice group=small"] == "fail"
    assert "slice group=large" not in statuses(verdict)


def test_a_model_worse_than_the_champion_fails(toy: PipelineSpec) -> None:
    world = scored()
    verdict = verdict_on(
        gated(toy, auc_margin_baseline=-1.0), with_candidate(world, world.scores["baseline"])
    )
    assert statuses(verdict)["no_worse_than_champion"] == "fail"


def test_a_model_equal_to_the_baseline_is_refused(toy: PipelineSpec) -> None:
    world = scored()
    verdict = verdict_on(gated(toy, max_ece=1.0), with_candidate(world, world.scores["baseline"]))
    assert statuses(verdict)["better_than_baseline"] == "fail"


def test_too_few_days_are_inconclusive_and_not_a_pass(toy: PipelineSpec) -> None:
    verdict = verdict_on(gated(toy, min_auc=0.75, slices=()), scored(days=3, per_day=60))
    assert verdict.outcome == "inconclusive"
    assert not verdict.passed


def test_no_data_is_a_fail(toy: PipelineSpec) -> None:
    found = evidence(gated(toy), scored())
    for empty in (
        replace(found, rows=0, positives=0),
        replace(found, positives=0),
        replace(found, positives=found.rows),
        replace(found, models={}),
    ):
        verdict = judge(gated(toy), empty)
        assert verdict.outcome == "fail"
        assert statuses(verdict) == {"data": "fail"}


def test_a_feature_that_alone_tells_the_label_fails_and_is_named_with_its_number(toy: PipelineSpec) -> None:
    world = scored()
    leaking = world.labels + np.random.default_rng(5).normal(0, 0.2, len(world.labels))
    verdict = verdict_on(gated(toy), replace(world, alone={**world.alone, "price": leaking}))
    found = next(item for item in verdict.findings if item.name == "leakage: price")
    assert found.status == "fail" and found.value is not None and found.value > 0.99
    assert [item.name for item in verdict.findings if item.status != "pass"] == ["leakage: price"]


def test_a_feature_above_the_limit_by_estimate_alone_is_inconclusive(toy: PipelineSpec) -> None:
    found = evidence(gated(toy), scored())
    first = replace(found.single_features[0], auc=Interval(0.86, 0.80, 0.92))
    verdict = judge(gated(toy), replace(found, single_features=(first, *found.single_features[1:])))
    assert statuses(verdict)[f"leakage: {first.feature}"] == "warn"
    assert verdict.outcome == "inconclusive"


def test_evidence_that_lacks_a_new_measurement_fails(toy: PipelineSpec) -> None:
    found = evidence(gated(toy), scored())
    for lacking, rule in (
        (replace(found, single_features=()), "leakage"),
        (replace(found, single_features=found.single_features[1:]), "leakage"),
        (replace(found, shape=None), "distribution"),
        (replace(found, model_checks=None), "model checks"),
    ):
        verdict = judge(gated(toy), lacking)
        assert verdict.outcome == "fail" and statuses(verdict)[rule] == "fail"
    dated = gated(toy, known_at={"price": "seen_at"})
    assert statuses(judge(dated, found))["known in time: price"] == "fail"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda s: np.where(np.arange(len(s)) % 20 > 0, 0.3, s), "distribution: nearly constant"),
        (lambda s: np.where(np.arange(len(s)) % 10 == 0, 1e-9, s), "distribution: extremes"),
        (lambda s: 0.3 * s, "distribution: level"),
        (lambda s: 0.8 + 0.2 * s, "distribution: distance to the champion"),
    ],
)
def test_a_distribution_that_is_wrong_in_one_way_is_refused_for_it(
    toy: PipelineSpec, change: Callable[[np.ndarray], np.ndarray], rule: str
) -> None:
    world = scored()
    verdict = verdict_on(gated(toy), with_candidate(world, change(world.scores["candidate"])))
    assert statuses(verdict)[rule] == "fail"


def test_small_predictions_of_a_rare_event_are_not_extreme() -> None:
    rng = np.random.default_rng(2)
    day = np.repeat(np.arange(10), 2000)
    truth = np.exp(rng.normal(-7.5, 0.8, len(day)))
    labels = (rng.random(len(day)) < truth).astype(np.int8)
    found = measure_shape(labels, truth, None, day, draw_days(10, 100), 0.95)
    assert labels.sum() > 0 and found.extreme_share == 0


def test_data_is_stale_by_the_day_of_the_verdict_and_not_by_that_of_the_evidence(toy: PipelineSpec) -> None:
    found, spec = evidence(gated(toy), scored()), gated(toy, max_staleness_days=7)
    newest = found.validation_last_day
    for days, status in ((7, "pass"), (8, "fail"), (-1, "fail")):
        verdict = judge(spec, found, as_of=newest + timedelta(days=days))
        assert statuses(verdict)["staleness"] == status
    assert "staleness" not in statuses(judge(gated(toy), found))


def test_evidence_without_behavioural_checks_fails(toy: PipelineSpec) -> None:
    assert judge(gated(toy), replace(evidence(gated(toy), scored()), checks=())).outcome == "fail"


def test_slices_asked_for_and_not_measured_fail(toy: PipelineSpec) -> None:
    assert judge(gated(toy), replace(evidence(gated(toy), scored()), slices=())).outcome == "fail"


def test_slices_that_are_all_too_small_are_inconclusive(toy: PipelineSpec) -> None:
    verdict = verdict_on(gated(toy, slice_min_rows=100_000), scored())
    assert statuses(verdict)["slices"] == "warn"
    assert verdict.outcome == "inconclusive"


def test_a_champion_that_cannot_score_is_inconclusive(toy: PipelineSpec) -> None:
    found = replace(evidence(gated(toy), scored()), champion_error="features.py: column gone")
    verdict = judge(gated(toy), found)
    assert verdict.outcome == "inconclusive"
    assert any("column gone" in finding.detail for finding in verdict.findings)


def test_the_verdict_is_a_function_of_the_evidence(toy: PipelineSpec) -> None:
    found = evidence(gated(toy), scored())
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    first = judge(gated(toy), found, clock=lambda: moment)
    again = judge(gated(toy), Evaluation.from_json(found.to_json()), clock=lambda: moment)
    assert first == again


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.2, -0.1])
def test_predictions_that_are_no_probabilities_fail_the_behavioural_check(bad: float) -> None:
    scores = np.linspace(0, 1, 50)
    assert all(check.passed for check in sanity(scores))
    scores[7] = bad
    assert not all(check.passed for check in sanity(scores))


def test_a_model_that_is_better_overall_and_worse_on_one_slice_fails_for_that_slice(
    toy: PipelineSpec,
) -> None:
    world = scored(per_day=400)
    rng = np.random.default_rng(8)
    small, logit = world.slices["group"] == "small", np.log(1 / (1 / world.scores["candidate"] - 1))
    champion = 1 / (1 + np.exp(-logit - rng.normal(0, 0.7, len(logit))))
    subtle = np.where(
        small, 1 / (1 + np.exp(-logit - rng.normal(0, 1.5, len(logit)))), world.scores["candidate"]
    )
    spec = gated(toy, max_ece=1.0, auc_margin_baseline=-1.0)
    worse = replace(world, scores={**world.scores, "champion": champion, "candidate": subtle})
    verdict = verdict_on(spec, worse)
    found = statuses(verdict)
    assert found["no_worse_than_champion"] == "pass"
    assert [name for name, status in found.items() if status == "fail"] == [
        "slice group=small against the champion"
    ]
    allowed = verdict_on(
        gated(toy, max_ece=1.0, auc_margin_baseline=-1.0, slice_noninferiority_margin_auc=0.5), worse
    )
    assert allowed.passed, allowed.reasons()
    better = verdict_on(spec, with_candidate(worse, world.scores["candidate"]))
    assert better.passed and statuses(better)["slices against the champion"] == "pass"


def test_slices_measured_without_the_paired_difference_fail(toy: PipelineSpec) -> None:
    found = evidence(gated(toy), scored())
    lacking = replace(found, slices=tuple(replace(item, champion_difference=None) for item in found.slices))
    assert statuses(judge(gated(toy), lacking))["slices against the champion"] == "fail"


def in_slices(differences: list[float], *, se: float, auc: float = 0.8) -> tuple[SliceMetrics, ...]:
    return tuple(
        SliceMetrics(
            "g", str(number), 500, 30, 100, Interval(auc, None, None, 0.02), Interval(0.0),
            champion_difference=Interval(difference, None, None, se),
        )
        for number, difference in enumerate(differences)
    )  # fmt: skip


def test_a_slice_that_is_worse_by_an_amount_that_is_not_shown_is_inconclusive(toy: PipelineSpec) -> None:
    found = replace(evidence(gated(toy), scored()), slices=in_slices([0.0, 0.0, -0.035], se=0.01))
    verdict = judge(gated(toy), found)
    assert verdict.outcome == "inconclusive"
    assert statuses(verdict)["slice g=2 against the champion"] == "warn"
    noisy = replace(found, slices=in_slices([0.0, 0.0, -0.035], se=0.03))
    assert judge(gated(toy), noisy).passed, "an estimate beyond the margin alone says nothing"


def test_thirty_slices_equal_to_the_champion_rarely_keep_a_model_from_passing(toy: PipelineSpec) -> None:
    rng, found = np.random.default_rng(4), evidence(gated(toy), scored())
    kept = 0
    for _ in range(200):
        slices = in_slices(list(rng.normal(0, 0.02, 30)), se=0.02)
        kept += any(
            item.status != "pass" for item in slice_regressions(gated(toy), replace(found, slices=slices))
        )
    assert kept / 200 <= 0.05


def test_thirty_equal_slices_are_rarely_refused_by_chance(toy: PipelineSpec) -> None:
    """Slices whose true AUC is the floor: without correction half of the worlds would lose one."""
    rng = np.random.default_rng(3)
    spec = gated(toy, slice_min_auc=0.6)
    refused, kept = 0, 0
    for _ in range(200):
        slices = tuple(
            SliceMetrics("g", str(i), 500, 30, 100, Interval(float(rng.normal(0.6, 0.02)), None, None, 0.02),
                         Interval(0.0))
            for i in range(30)
        )  # fmt: skip
        found = {item.status for item in slice_findings(spec, slices)}
        refused += "fail" in found
        kept += found != {"pass"}
    assert refused / 200 <= 0.06
    assert kept / 200 <= 0.17


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=20), alpha=st.floats(0.001, 0.2))
def test_holm_rejects_between_bonferroni_and_no_correction(p: list[float], alpha: float) -> None:
    rejected = holm(p, alpha)
    for value, out in zip(p, rejected, strict=True):
        assert not out or value <= alpha
        assert out or value > alpha / len(p)


def test_holm_matches_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([math.nan, 0.001], 0.05) == [False, True]


@pytest.mark.parametrize(
    ("low", "value", "high", "status"),
    [(0.61, 0.7, 0.8, "pass"), (0.59, 0.7, 0.8, "warn"), (0.4, 0.55, 0.7, "warn"), (0.4, 0.5, 0.6, "fail"),
     (None, 0.9, None, "warn"), (None, None, None, "fail")],
)  # fmt: skip
def test_a_claim_needs_its_whole_interval_above_the_limit(
    low: float | None, value: float | None, high: float | None, status: str
) -> None:
    assert claim("min_auc", "AUC", Interval(value, low, high), 0.6).status == status
