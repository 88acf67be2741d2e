"""The training loop: plain torch, on one process or as one of several.

It is resumable and repeatable. Every random draw is seeded by (seed, epoch, rank), the state after each epoch
goes to the store, and a run that continues from a checkpoint ends with the weights of a run that was never
interrupted: to the last bit on a CPU, and on a GPU with operations that torch has in a repeatable form.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tasks.core.errors import NotFound, TerminalError, TransientError
from tasks.core.object_store import ObjectStore
from tasks.core.spec import TrainingSpec
from tasks.model.execution import one_thread
from tasks.model.ranking import auc
from tasks.training.dataset import Part
from tasks.training.records import EpochRecord

logger = logging.getLogger(__name__)

_EVALUATION_ROWS = 8192


class Peers(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def mean(self, value: float) -> float:
        """The mean of every process's value, in each of them."""
        ...

    def agree(self, value: bool) -> bool:
        """The decision of rank 0, in every process."""
        ...


@dataclass(frozen=True)
class Alone:
    """A single process."""

    rank: int = 0
    size: int = 1

    def mean(self, value: float) -> float:
        return value

    def agree(self, value: bool) -> bool:
        return value


@dataclass(frozen=True)
class Fitted:
    """The final weights, those they were tuned with, and the story of all epochs."""

    state_dict: dict[str, Tensor]
    """Of the network that is kept: fitted on all training days when `training.refit`, else `tuned`."""
    tuned: dict[str, Tensor]
    """The best epoch's weights, which have not seen the tuning days: what calibration is fitted on."""
    history: tuple[EpochRecord, ...]
    """Of the fit with early stopping."""

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept, from 1: the lowest tuning loss, the earliest of equals."""
        return _best(self.history)


class Checkpoints:
    """State after the last finished epoch, in the store; replaced atomically, so it is always whole."""

    def __init__(self, store: ObjectStore, training_id: str) -> None:
        self.store = store
        self.training_id = training_id
        self._latest = f"training/{training_id}/checkpoint.pt"
        self._refit = f"training/{training_id}/refit.pt"
        self._fitted = f"training/{training_id}/fitted.pt"

    def save(self, state: dict[str, Any]) -> None:
        self.store.put(self._latest, _dump(state))

    def load(self) -> dict[str, Any] | None:
        return self._read(self._latest)

    def save_refit(self, state: dict[str, Any]) -> None:
        self.store.put(self._refit, _dump(state))

    def load_refit(self) -> dict[str, Any] | None:
        return self._read(self._refit)

    def worked_s(self) -> float:
        """Wall seconds of all epochs that are kept."""
        fitted, latest, refit = self._read(self._fitted), self.load() or {}, self.load_refit() or {}
        history = (fitted or latest).get("history", ())
        return float(sum(item["wall_s"] for item in history) + refit.get("wall_s", 0.0))

    def save_fitted(self, fitted: Fitted) -> None:
        history = [item.to_json() for item in fitted.history]
        state = {"weights": fitted.state_dict, "tuned": fitted.tuned, "history": history}
        self.store.put(self._fitted, _dump(state))

    def load_fitted(self) -> Fitted | None:
        found = self._read(self._fitted)
        if found is None:
            return None
        history = tuple(EpochRecord.from_json(item) for item in found["history"])
        return Fitted(found["weights"], found["tuned"], history)

    def clear(self) -> None:
        """Remove what a finished training does not need any more."""
        for key in (self._latest, self._refit, self._fitted):
            self.store.delete(key)

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            data = self.store.get(key)
        except NotFound:
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            logger.warning("%s is damaged and is ignored: %s", self.store.url(key), error)
            return None
        return state


def fit_network(
    network: nn.Module,
    fit: Part,
    tuning: Part,
    training: TrainingSpec,
    checkpoints: Checkpoints,
    *,
    peers: Peers = Alone(),
    device: str = "cpu",
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    after_epoch: Callable[[EpochRecord], None] | None = None,
) -> Fitted:
    """Train with AdamW and early stopping on the tuning loss; continues from a checkpoint if there is one.

    With `training.refit` the network then starts anew and sees fit and tuning rows together, for as many epochs
    as were best: the newest days are the likest to those that will be scored.

    Args:
        network: Freshly built; on a resume its weights are replaced.
        wrap: Makes the module that trains, such as DistributedDataParallel; weights stay those of `network`.
        after_epoch: Called once the epoch's checkpoint is stored.

    Raises:
        TerminalError: The loss is not finite.
    """
    with one_thread(), repeatable(device):
        return _fit(network, fit, tuning, training, checkpoints, peers, device, wrap, after_epoch)


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """On a GPU, kernels that add in the same order each time; those of embeddings do not by themselves.

    What a user's network computes that torch has no such kernel for goes on, with torch's warning.
    """
    if not device.startswith("cuda"):
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS promises nothing
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _fit(
    network: nn.Module,
    fit: Part,
    tuning: Part,
    training: TrainingSpec,
    checkpoints: Checkpoints,
    peers: Peers,
    device: str,
    wrap: Callable[[nn.Module], nn.Module],
    after_epoch: Callable[[EpochRecord], None] | None,
) -> Fitted:
    network.to(device)
    initial = _copy(network)
    optimizer = _optimizer(network, training)
    history: list[EpochRecord] = []
    best: dict[str, Tensor] = {}
    state = checkpoints.load()
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        best = state["best"]
        history = [EpochRecord.from_json(item) for item in state["history"]]
        if peers.rank == 0:
            logger.info("continuing after epoch %d of an interrupted training", len(history))
    if peers.mean(len(history)) != len(history):  # a dying predecessor saved while we were loading
        raise TransientError(
            "the workers loaded checkpoints of different epochs",
            which=f"training {checkpoints.training_id}",
            fix="run it again: it continues from its last epoch",
        )
    model = wrap(network)
    x, y = torch.from_numpy(fit.x).to(device), torch.from_numpy(fit.y).to(device)
    while len(history) < training.epochs and not _out_of_patience(history, training.patience):
        epoch = len(history) + 1
        started = time.monotonic()
        train_loss = peers.mean(_train_epoch(model, x, y, optimizer, training, epoch, peers))
        tuning_loss, tuning_auc = _evaluate(network, tuning, device)
        tuning_loss = peers.mean(tuning_loss)
        if not (math.isfinite(train_loss) and math.isfinite(tuning_loss)):
            raise TerminalError(
                f"the loss is not finite in epoch {epoch} (train {train_loss}, tuning {tuning_loss})",
                which=f"training {checkpoints.training_id}",
                fix="lower training.learning_rate in pipeline.yaml, or look for infinities in model.py",
            )
        record = EpochRecord(epoch, train_loss, tuning_loss, tuning_auc, time.monotonic() - started)
        history.append(record)
        if _best(history) == epoch:
            best = _copy(network)
        if peers.rank == 0:
            _say(record, training, is_best=_best(history) == epoch)
            checkpoints.save(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "history": [item.to_json() for item in history],
                }
            )
        if after_epoch is not None:
            after_epoch(record)
        if peers.agree(_out_of_patience(history, training.patience)):
            break
    if not training.refit:
        return Fitted(best, best, tuple(history))
    network.load_state_dict(initial)
    whole = Part(np.concatenate([fit.x, tuning.x]), np.concatenate([fit.y, tuning.y]))
    _refit(network, model, whole, training, _best(history), checkpoints, peers, device)
    return Fitted(_copy(network), best, tuple(history))


def _refit(
    network: nn.Module,
    model: nn.Module,
    whole: Part,
    training: TrainingSpec,
    epochs: int,
    checkpoints: Checkpoints,
    peers: Peers,
    device: str,
) -> None:
    """Train `network`, fresh, for `epochs` epochs on all training rows; continues from its own checkpoint."""
    optimizer = _optimizer(network, training)
    done, spent_s = 0, 0.0
    state = checkpoints.load_refit()
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done, spent_s = int(state["epochs"]), float(state["wall_s"])
    if peers.mean(done) != done:
        raise TransientError(
            "the workers loaded checkpoints of different epochs",
            which=f"training {checkpoints.training_id}",
            fix="run it again: it continues from its last epoch",
        )
    started = time.monotonic()
    x, y = torch.from_numpy(whole.x).to(device), torch.from_numpy(whole.y).to(device)
    for epoch in range(done + 1, epochs + 1):
        loss = peers.mean(_train_epoch(model, x, y, optimizer, training, epoch, peers))
        if not math.isfinite(loss):
            raise TerminalError(
                f"the loss is not finite in epoch {epoch} of the refit on all training days",
                which=f"training {checkpoints.training_id}",
                fix="lower training.learning_rate in pipeline.yaml",
            )
        if peers.rank == 0:
            checkpoints.save_refit(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epochs": epoch,
                    "wall_s": spent_s + time.monotonic() - started,
                }
            )
    if peers.rank == 0:
        logger.info(
            "fitted again on all %d training rows for %d epochs, %.1f s",
            len(y),
            epochs,
            time.monotonic() - started,
        )


def _optimizer(network: nn.Module, training: TrainingSpec) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _train_epoch(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    training: TrainingSpec,
    epoch: int,
    peers: Peers,
) -> float:
    """One pass over the rows; this process takes every `size`-th row of each batch. Returns its mean loss."""
    torch.manual_seed(training.seed * 1_000_003 + epoch * 1_009 + peers.rank)
    order = torch.from_numpy(np.random.default_rng([training.seed, epoch]).permutation(len(y))).to(x.device)
    model.train()
    # On the device until the end of the epoch: fetching the loss of each batch would wait for it.
    total, rows = torch.zeros((), dtype=torch.float64, device=x.device), 0
    for start in range(0, len(order), training.batch_rows):
        batch = order[start : start + training.batch_rows]
        batch = batch[: len(batch) // peers.size * peers.size][peers.rank :: peers.size]
        if len(batch) < 2:  # a layer that normalises over the batch cannot take one row
            continue
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.binary_cross_entropy_with_logits(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        total += loss.detach().double() * len(batch)
        rows += len(batch)
    return float(total) / rows if rows else float("nan")


def _evaluate(network: nn.Module, part: Part, device: str) -> tuple[float, float]:
    """Mean log loss and AUC of the uncalibrated network; NaN when a logit is not finite."""
    logits = logits_of(network, part.x, device=device)
    if not np.isfinite(logits).all():
        return float("nan"), float("nan")
    loss = float(np.mean(np.logaddexp(0.0, logits) - part.y * logits))
    return loss, auc(part.y, logits)


def logits_of(network: nn.Module, x: np.ndarray[Any, Any], *, device: str = "cpu") -> np.ndarray[Any, Any]:
    """Raw logits, float64 `[n]`, in evaluation mode."""
    network.eval()
    with one_thread(), torch.inference_mode():
        parts = [
            network(torch.from_numpy(x[start : start + _EVALUATION_ROWS]).to(device)).double().cpu().numpy()
            for start in range(0, len(x), _EVALUATION_ROWS)
        ]
    return np.concatenate(parts)


def _best(history: Sequence[EpochRecord]) -> int:
    return min(history, key=lambda item: (item.tuning_loss, item.epoch)).epoch


def _out_of_patience(history: Sequence[EpochRecord], patience: int) -> bool:
    return bool(history) and len(history) - _best(history) >= patience


def _say(record: EpochRecord, training: TrainingSpec, *, is_best: bool) -> None:
    logger.info(
        "epoch %2d/%d  train loss %.4f  tuning loss %.4f  tuning AUC %.4f  %.1f s%s",
        *(record.epoch, training.epochs, record.train_loss, record.tuning_loss, record.tuning_auc),
        *(record.wall_s, "  best so far" if is_best else ""),
    )


def _dump(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
