"""The loop: repeatable, resumable, and honest about a loss that is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from children import die, killed
from sklearn import metrics as reference
from training_support import fit_here, load, model_source

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.core.errors import TerminalError
from tasks.core.spec import TrainingSpec
from tasks.model import NetworkSpec, TabularMLP
from tasks.training.dataset import Part
from tasks.training.fit import Checkpoints, Fitted, fit_network, repeatable
from tasks.training.quality import equal_count_bins, expected_calibration_error, headline, platt


def fit(settings: Settings, spec: PipelineSpec, snapshot: Snapshot, name: str, **more: Any) -> Fitted:
    data = load(settings, spec, snapshot)
    return fit_here(
        settings,
        spec,
        data,
        training_id=name,
        model_source=model_source(settings),
        model_origin="model.py",
        **more,
    )


def same(first: Fitted, second: Fitted) -> bool:
    def story(fitted: Fitted) -> list[tuple[float, ...]]:
        return [(item.train_loss, item.tuning_loss, item.tuning_auc) for item in fitted.history]

    return story(first) == story(second) and all(
        torch.equal(mine[name], theirs[name])
        for mine, theirs in ((first.state_dict, second.state_dict), (first.tuned, second.tuned))
        for name in mine
    )


def _die_after_two(settings: Settings, spec: PipelineSpec, snapshot: Snapshot) -> None:
    def die_after_the_second(record: Any) -> None:
        if record.epoch == 2:
            die()

    fit(settings, spec, snapshot, "killed", after_epoch=die_after_the_second)


def test_a_killed_training_resumes_and_ends_with_the_very_same_weights(settings, toy, snapshot) -> None:
    whole = fit(settings, toy, snapshot, "whole")
    killed(lambda: _die_after_two(settings, toy, snapshot), patience_s=600)
    epochs: list[int] = []
    resumed = fit(settings, toy, snapshot, "killed", after_epoch=lambda record: epochs.append(record.epoch))
    assert epochs == list(range(3, len(whole.history) + 1)) and len(whole.history) > 2
    assert same(whole, resumed)


def _die_in_the_refit(settings: Settings, spec: PipelineSpec, snapshot: Snapshot) -> None:
    save = Checkpoints.save_refit

    def save_and_die(self: Checkpoints, state: dict[str, Any]) -> None:
        save(self, state)
        if state["epochs"] == 1:
            die()

    Checkpoints.save_refit = save_and_die  # type: ignore[method-assign]
    fit(settings, spec, snapshot, "killed")


def test_a_training_killed_in_its_refit_ends_with_the_very_same_weights(settings, toy, snapshot) -> None:
    whole = fit(settings, toy, snapshot, "whole")
    killed(lambda: _die_in_the_refit(settings, toy, snapshot), patience_s=600)
    left = Checkpoints(open_store(settings, prefix=toy.prefix), "killed").load_refit()
    assert left is not None and left["epochs"] == 1 < whole.best_epoch
    assert same(whole, fit(settings, toy, snapshot, "killed"))


def test_without_a_refit_the_tuned_weights_are_kept(settings, toy, snapshot) -> None:
    once = toy.model_copy(update={"training": toy.training.model_copy(update={"refit": False})})
    found, refitted = fit(settings, once, snapshot, "once"), fit(settings, toy, snapshot, "twice")
    assert all(torch.equal(found.state_dict[name], found.tuned[name]) for name in found.tuned)
    assert all(torch.equal(found.tuned[name], refitted.tuned[name]) for name in found.tuned)
    assert not same(found, refitted)


def test_two_trainings_of_one_seed_are_equal_and_of_two_seeds_are_not(settings, toy, snapshot) -> None:
    first = fit(settings, toy, snapshot, "a")
    other = toy.model_copy(update={"training": toy.training.model_copy(update={"seed": 8})})
    assert same(first, fit(settings, toy, snapshot, "b"))
    assert not same(first, fit(settings, other, snapshot, "c"))


def test_training_learns_and_keeps_the_best_epoch(settings, toy, snapshot) -> None:
    found = fit(settings, toy, snapshot, "x")
    losses = [item.tuning_loss for item in found.history]
    assert found.best_epoch == int(np.argmin(losses)) + 1
    assert min(losses) < losses[0] and max(item.tuning_auc for item in found.history) > 0.7


def test_it_stops_when_the_tuning_loss_has_not_improved_for_patience_epochs(settings, toy, snapshot) -> None:
    wild = toy.training.model_copy(update={"learning_rate": 0.5, "epochs": 60, "patience": 2})
    found = fit(settings, toy.model_copy(update={"training": wild}), snapshot, "x")
    assert len(found.history) == found.best_epoch + 2 < 60


def test_a_damaged_checkpoint_is_ignored_with_a_warning(settings, toy, snapshot, caplog) -> None:
    store = open_store(settings, prefix=toy.prefix)
    whole = fit(settings, toy, snapshot, "x")
    store.put("training/x/checkpoint.pt", store.get("training/x/checkpoint.pt")[:1000])
    assert same(whole, fit(settings, toy, snapshot, "x"))
    assert "checkpoint.pt is damaged and is ignored" in caplog.text


def test_a_fitted_network_survives_the_store(settings, toy, snapshot) -> None:
    found, checkpoints = fit(settings, toy, snapshot, "x"), Checkpoints(open_store(settings), "y")
    assert checkpoints.load_fitted() is None
    checkpoints.save_fitted(found)
    again = checkpoints.load_fitted()
    assert again is not None and same(found, again) and again.history == found.history


def test_a_loss_that_is_not_finite_ends_with_a_terminal_error_that_names_the_fix(
    settings, toy, snapshot
) -> None:
    source = model_source(settings).replace(
        "return TabularMLP(spec)",
        "m = TabularMLP(spec); m.layers[0].weight.data.fill_(float('nan')); return m",
    )
    data = load(settings, toy, snapshot)
    with pytest.raises(TerminalError, match="not finite in epoch 1") as caught:
        fit_here(settings, toy, data, training_id="n", model_source=source, model_origin="model.py")
    assert "learning_rate" in caught.value.fix


def test_platt_scaling_recovers_a_known_distortion() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 200_000)
    labels = (rng.random(len(logits)) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(float)
    found = platt(logits, labels)
    assert abs(found.slope - 0.5) < 0.02 and abs(found.intercept + 1) < 0.02


def test_platt_scaling_stays_finite_on_separable_labels() -> None:
    logits = np.linspace(-50, 50, 100)
    found = platt(logits, (logits > 0).astype(float))
    assert np.isfinite([found.slope, found.intercept]).all() and found.slope > 0


def test_calibration_error_is_zero_when_perfect_and_the_gap_when_not() -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.2, 0.6, 300_000)
    labels = (rng.random(len(scores)) < scores).astype(float)
    assert expected_calibration_error(scores, labels) < 0.01
    assert abs(expected_calibration_error(scores + 0.2, labels) - 0.2) < 0.01


@pytest.mark.parametrize("rows", [1, 14, 15, 16, 301])
def test_every_row_lies_in_one_of_the_bins_of_equal_counts_and_no_bin_is_empty(rows: int) -> None:
    scores = np.round(np.random.default_rng(2).random(rows), 1)
    bins = equal_count_bins(scores)
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(rows))
    assert len(bins) == min(rows, 15) and np.ptp([len(part) for part in bins]) <= 1
    assert (np.diff(scores[np.concatenate(bins)]) >= 0).all()


def test_a_fit_on_a_gpu_asks_for_kernels_that_repeat_and_gives_the_settings_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with repeatable("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()
    with repeatable("cuda:0"):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_fits_the_same_weights_each_time_in_large_batches_too(settings, toy) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(20_000, 3)), rng.integers(0, 9, (20_000, 2))], 1).astype(np.float32)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-x[:, 0]))).astype(np.float32)
    training = TrainingSpec(epochs=2, batch_rows=8192)
    store = open_store(settings, prefix=toy.prefix)

    def once(name: str) -> Fitted:
        torch.manual_seed(0)
        network = TabularMLP(NetworkSpec(3, (9, 9), (3, 2), (64, 32), 0.1))
        parts = Part(x[:16_000], y[:16_000]), Part(x[16_000:], y[16_000:])
        return fit_network(network, *parts, training, Checkpoints(store, name), device="cuda:0")

    assert same(once("first"), once("second"))


def test_the_headline_is_what_scikit_learn_says() -> None:
    rng = np.random.default_rng(3)
    scores = rng.choice(np.array([0.0, 0.2, 0.4, 0.7, 1.0], np.float32), 500)  # with ties, and certain ones
    labels = (rng.random(500) < 0.2 + 0.6 * scores).astype(np.float32)
    clipped = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    found = headline(scores, labels, prefix="validation")
    assert found["validation_auc"] == pytest.approx(reference.roc_auc_score(labels, clipped))
    assert found["validation_pr_auc"] == pytest.approx(reference.average_precision_score(labels, clipped))
    assert found["validation_log_loss"] == pytest.approx(reference.log_loss(labels, clipped))
    assert found["validation_brier"] == pytest.approx(reference.brier_score_loss(labels, clipped))
