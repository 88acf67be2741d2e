"""The four curves of a training, as matplotlib figures (no window, no global state)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from tasks.model import metrics
from tasks.model.ranking import auc
from tasks.training.quality import equal_count_bins, expected_calibration_error
from tasks.training.records import EpochRecord

Array = npt.NDArray[np.floating]

_INK, _MUTED, _BLUE, _ORANGE = "#1f2933", "#9aa5b1", "#1f6fb2", "#d9730d"


def loss_figure(history: tuple[EpochRecord, ...], best_epoch: int) -> Figure:
    """Training and tuning loss by epoch, the kept epoch marked."""
    figure, axes = _canvas("Loss by epoch", "epoch", "log loss (nats)")
    epochs = [item.epoch for item in history]
    axes.plot(
        epochs,
        [item.train_loss for item in history],
        "o-",
        color=_BLUE,
        label="fit rows (with dropout)",
        ms=4,
    )
    axes.plot(epochs, [item.tuning_loss for item in history], "o-", color=_ORANGE, label="tuning rows", ms=4)
    axes.axvline(best_epoch, color=_MUTED, ls="--", lw=1, label=f"kept: epoch {best_epoch}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def roc_figure(scores: Array, labels: Array) -> Figure:
    """ROC curve over the validation days."""
    figure, axes = _canvas(
        f"ROC, validation days (AUC {auc(labels, scores):.3f})", "false positive rate", "true positive rate"
    )
    false_rate, true_rate = metrics.roc_points(labels, np.asarray(scores, np.float64))
    axes.plot([0, 1], [0, 1], color=_MUTED, ls="--", lw=1)
    axes.plot(false_rate, true_rate, color=_BLUE, lw=2)
    axes.fill_between(false_rate, true_rate, alpha=0.08, color=_BLUE, lw=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure


def precision_recall_figure(scores: Array, labels: Array) -> Figure:
    """Precision-recall curve over the validation days, with the label rate as floor."""
    exact = np.asarray(scores, np.float64)
    area = metrics.pr_auc(labels, exact)
    figure, axes = _canvas(f"Precision-recall, validation days (AP {area:.3f})", "recall", "precision")
    recall, precision = metrics.pr_points(labels, exact)
    rate = float(np.mean(labels))
    axes.axhline(rate, color=_MUTED, ls="--", lw=1, label=f"label rate {rate:.3f}")
    axes.plot(recall, precision, color=_BLUE, lw=2)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def calibration_figure(scores: Array, labels: Array) -> Figure:
    """Reliability diagram over equal-count bins, with the distribution of scores below."""
    ece = expected_calibration_error(scores, labels)
    figure = Figure(figsize=(6.4, 6.0), layout="constrained", dpi=110)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = equal_count_bins(scores)
    means = np.array([scores[part].mean() for part in bins])
    rates = np.array([labels[part].mean() for part in bins])
    counts = np.array([len(part) for part in bins])
    error = 1.96 * np.sqrt(rates * (1 - rates) / counts)
    top = float(min(1.0, 1.1 * max(means.max(), (rates + error).max())))
    axes.plot([0, 1], [0, 1], color=_MUTED, ls="--", lw=1, label="perfect")
    axes.errorbar(
        means, rates, yerr=error, fmt="o-", color=_BLUE, ms=4, lw=1.5, capsize=2, label="model, 95 % interval"
    )
    axes.set(xlim=(0, top), ylim=(0, top), ylabel="observed rate")
    axes.set_title(f"Calibration, validation days (ECE {ece:.3f})", loc="left", color=_INK, fontsize=12)
    axes.legend(frameon=False, loc="upper left")
    below.hist(scores, bins=np.linspace(0, top, 50), color=_BLUE, alpha=0.7)
    below.set(xlabel="predicted probability", ylabel="rows")
    for part in (axes, below):
        _quiet(part)
    return figure


def _canvas(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.8), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=_INK, fontsize=12)
    axes.set(xlabel=x, ylabel=y)
    _quiet(axes)
    return figure, axes


def _quiet(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_INK)
    axes.grid(alpha=0.2)
