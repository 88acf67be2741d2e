"""How much each feature moved a prediction away from the baseline, on the logit scale.

Three methods; which one a network gets depends on what it is, and is recorded as `explainer`:

| explainer | used for | completeness |
|---|---|---|
| `deeplift-rescale` | `TabularMLP` (Linear, ReLU and Dropout only) | exact up to rounding |
| `integrated-gradients-16` | any module with `embed`, `head` and `layout` | up to quadrature, see `residual` |
| `permutation-shapley-8` | every other module | exact up to rounding; sampling error remains |

The first two start from the average input of training: the mean of each numeric column, and of each
embedding weighted by training frequency. The last works on the encoded matrix, where codes cannot be
averaged: its baseline is the mean of each numeric column and the most frequent code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks.model.bundle import Calibration
from tasks.model.encoder import FeatureEncoder
from tasks.model.execution import Execution, blocks, undivided
from tasks.model.network import TabularMLP

EXPLAINER_VERSION = "1"
_STEPS = 16
_PERMUTATIONS = 8
_TINY = 1e-7

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Attributions:
    """Why a batch of predictions is what it is.

    `base_value + attributions[i].sum() + residual[i]` is the calibrated logit of row i, whose sigmoid is the
    prediction.
    """

    attributions: Floats
    """`[n, F]`, one column for each original feature; a null indicator's share is in its feature."""
    base_value: float
    """Calibrated logit of the baseline."""
    residual: Floats
    """`[n]`, completeness error: what the attributions leave unexplained."""


class _EmbedHead(Protocol):
    layout: tuple[tuple[int, int], ...]

    def embed(self, x: Tensor) -> Tensor: ...

    def head(self, embedded: Tensor) -> Tensor: ...


class Explainer:
    """Attributions of one network's logits; see the module's table for the method."""

    def __init__(self, network: nn.Module, encoder: FeatureEncoder, *, device: str = "cpu") -> None:
        self.network = network
        self.features = len(encoder.names)
        self._device = device
        owner = torch.tensor(encoder.column_features, device=device)
        if _splits(network, encoder, device):
            split = cast(_EmbedHead, network)
            columns = torch.tensor(
                [index for index, (start, stop) in enumerate(split.layout) for _ in range(start, stop)],
                device=device,
            )
            self._owner = owner[columns]
            self._baseline = self._mean_embedding(encoder)
            exact = type(network).head is TabularMLP.head and _only_linear_and_relu(network)
            self.name = "deeplift-rescale" if exact else f"integrated-gradients-{_STEPS}"
            self._attribute: Callable[[Tensor], tuple[Tensor, Tensor]] = (
                self._deeplift if exact else self._integrated_gradients
            )
        else:
            self._owner = owner
            self._baseline = self._typical_row(encoder)
            self.name = f"permutation-shapley-{_PERMUTATIONS}"
            self._attribute = self._shapley

        self._rounds = columns_in_rounds(self._owner)
        with torch.inference_mode():
            split = cast(_EmbedHead, network)
            logit = (
                network(self._baseline) if self._attribute == self._shapley else split.head(self._baseline)
            )
        self.base_logit = float(logit)
        """Raw logit of the baseline."""

    def attribute(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attributions `[n, F]` of the raw logit, and the completeness error `[n]` against `base_logit`."""
        return self._attribute(x)

    def _mean_embedding(self, encoder: FeatureEncoder) -> Tensor:
        """Training average of `embed(x)`, `[1, D]`: linear in the numeric columns, a lookup in each code."""
        split = cast(_EmbedHead, self.network)
        first = encoder.numeric_width
        with torch.inference_mode():
            row = torch.zeros(1, encoder.width, device=self._device)
            row[0, :first] = torch.tensor(encoder.baseline_numeric, device=self._device)
            mean = split.embed(row).clone()
            for index, column in enumerate(encoder.categorical):
                start, stop = split.layout[first + index]
                codes = row.repeat(column.cardinality, 1)
                codes[:, first + index] = torch.arange(column.cardinality, device=self._device)
                share = torch.tensor(column.frequencies, device=self._device, dtype=torch.float32)
                mean[0, start:stop] = share @ split.embed(codes)[:, start:stop]
        return mean.clone()

    def _typical_row(self, encoder: FeatureEncoder) -> Tensor:
        codes = [float(np.argmax(column.frequencies)) for column in encoder.categorical]
        return torch.tensor([[*encoder.baseline_numeric, *codes]], device=self._device)

    def _by_feature(self, parts: Tensor) -> Tensor:
        """The sum of each feature's columns, in their order, so with the same bits each time."""
        if parts.device.type == "cpu":
            return torch.zeros(parts.shape[0], self.features).index_add_(1, self._owner, parts)
        return added_in_rounds(parts, self._rounds, self.features)

    def _deeplift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """DeepLIFT's rescale rule in closed form (Shrikumar, Greenside & Kundaje 2017)."""
        network = cast(TabularMLP, self.network)
        with torch.inference_mode():
            actual, reference = network.embed(x), self._baseline
            linear_path: Tensor | float = 0.0 if network.wide is None else network.wide(actual)
            delta = actual - reference
            passed: list[tuple[nn.Linear | None, Tensor | None]] = []
            for layer in network.layers:
                if isinstance(layer, nn.Linear):
                    actual, reference = layer(actual), layer(reference)
                    passed.append((layer, None))
                elif isinstance(layer, nn.ReLU):
                    below = actual - reference
                    slope = (actual > 0).float()
                    actual, reference = actual.relu(), reference.relu()
                    slope = torch.where(below.abs() > _TINY, (actual - reference) / below, slope)
                    passed.append((None, slope))
            multiplier = torch.ones_like(actual)
            for linear, slope_or_none in reversed(passed):
                if linear is not None:
                    multiplier = multiplier @ linear.weight
                elif slope_or_none is not None:
                    multiplier = multiplier * slope_or_none
            if network.wide is not None:
                multiplier = multiplier + network.wide.weight
            logits = (actual + linear_path).squeeze(-1)
            parts = self._by_feature(multiplier * delta)
            return parts, logits - self.base_logit - parts.sum(1)

    def _integrated_gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre path integral from the mean embedding (Sundararajan, Taly & Yan 2017)."""
        split = cast(_EmbedHead, self.network)
        nodes, weights = np.polynomial.legendre.leggauss(_STEPS)
        with torch.no_grad():
            actual = split.embed(x)
            reference = self._baseline
            delta = actual - reference
            logits = split.head(actual)
        total = torch.zeros_like(delta)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            with torch.enable_grad():
                point = (reference + float(node) * delta).requires_grad_(True)
                (gradient,) = torch.autograd.grad(split.head(point).sum(), point)
            total += float(weight) * gradient
        parts = self._by_feature(total * delta)
        return parts, logits - self.base_logit - parts.sum(1)

    def _shapley(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Antithetic permutation sampling (Mitchell et al. 2022), the same permutations for every row."""
        rng = np.random.default_rng(0)
        drawn = [rng.permutation(self.features) for _ in range(_PERMUTATIONS // 2)]
        orders = [order for one in drawn for order in (one, one[::-1])]
        out = torch.zeros(x.shape[0], self.features, device=x.device)
        with torch.inference_mode():
            logits = self.network(x)
            for order in orders:
                point = self._baseline.repeat(x.shape[0], 1)
                before = torch.full_like(logits, self.base_logit)
                for feature in order:
                    columns = self._owner == int(feature)
                    point[:, columns] = x[:, columns]
                    after = self.network(point)
                    out[:, int(feature)] += after - before
                    before = after
            out /= len(orders)
            return out, logits - self.base_logit - out.sum(1)


def explained(
    explainer: Explainer, encoded: Floats, calibration: Calibration, execution: Execution | None = None
) -> Attributions:
    """Attributions of encoded rows, float32 `[n, width]`, on the calibrated logit scale.

    Like predictions, rows pass in blocks of one shape on one thread: a row's result does not depend on its neighbours.
    """
    how = execution or Execution()
    parts = torch.empty((len(encoded), explainer.features), device=how.device)
    residual = torch.empty(len(encoded), device=how.device)
    with undivided(how):
        for rows, block in blocks(encoded, how):
            found, error = explainer.attribute(block)
            kept = rows.stop - rows.start
            parts[rows] = found[:kept] * calibration.slope
            residual[rows] = error[:kept] * calibration.slope
    base_value = explainer.base_logit * calibration.slope + calibration.intercept
    return Attributions(parts.cpu().numpy(), base_value, residual.cpu().numpy())


def columns_in_rounds(owner: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(features, columns) of each round: the first columns of all features, then the second ones, and so on."""
    rounds: list[tuple[list[int], list[int]]] = []
    seen: Counter[int] = Counter()
    for column, feature in enumerate(owner.tolist()):
        if seen[feature] == len(rounds):
            rounds.append(([], []))
        features, columns = rounds[seen[feature]]
        features.append(feature)
        columns.append(column)
        seen[feature] += 1
    return [
        (torch.tensor(features, device=owner.device), torch.tensor(columns, device=owner.device))
        for features, columns in rounds
    ]


def added_in_rounds(parts: Tensor, rounds: list[tuple[Tensor, Tensor]], features: int) -> Tensor:
    """What `index_add_` does on a CPU, for a GPU, where it adds in any order: each round adds one column to a feature."""
    out = torch.zeros(parts.shape[0], features, device=parts.device)
    for to, columns in rounds:
        out.index_copy_(1, to, out.index_select(1, to) + parts.index_select(1, columns))
    return out


def _splits(network: nn.Module, encoder: FeatureEncoder, device: str) -> bool:
    """Whether `forward` really is `head(embed(x))` with one embedding range for each encoded column."""
    if not all(hasattr(network, name) for name in ("embed", "head", "layout")):
        return False
    split = cast(_EmbedHead, network)
    x = torch.randn(8, encoder.width, generator=torch.Generator().manual_seed(0))
    x[:, encoder.numeric_width :] = 0.0
    x = x.to(device)
    with torch.inference_mode():
        same = torch.allclose(network(x), split.head(split.embed(x)), atol=1e-6)
    return same and len(split.layout) == encoder.width


def _only_linear_and_relu(network: nn.Module) -> bool:
    layers: Any = getattr(network, "layers", ())
    seen = [layer for layer in layers if isinstance(layer, nn.ReLU | nn.Linear)]
    known = all(type(layer) in (nn.Linear, nn.ReLU, nn.Dropout, nn.Identity) for layer in layers)
    return bool(seen) and known and isinstance(layers, nn.Sequential)
