"""Scores and explains rows with one bundle; a plain class that knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from tasks.core.errors import DataError, DigestMismatch, PipelineCodeError
from tasks.model.attribution import EXPLAINER_VERSION, Attributions, Explainer
from tasks.model.bundle import ENCODED_COLUMN, SCORE_COLUMN, Bundle, Calibration
from tasks.model.encoder import Matrix
from tasks.model.network import CalibratedNetwork, build_network

CPU_BLOCK_ROWS = 1024
"""Rows that pass the network at a time on a CPU. Fixed, because a matrix product may round differently for
another shape: a row's score must not depend on the rows that happen to travel with it."""

GOLDEN_TOLERANCE = 1e-5
"""Largest move of a golden probability that still counts as the same model (other CPU, other BLAS)."""

Floats = npt.NDArray[np.float32]


class Scorer:
    """Source rows to calibrated probabilities and attributions.

    A row's result does not depend on the batch that it comes in: rows pass the network in blocks of one fixed
    shape (padded), on one thread. On a CPU it is the same to the last bit.

    Args:
        bundle: A verified bundle.
        device: `cpu`, or a torch device such as `cuda:0`.
        batch_rows: Block size on an accelerator; a CPU uses `CPU_BLOCK_ROWS`.

    Raises:
        PipelineCodeError: The bundle's features.py or model.py fails here, or does not fit its weights.
        DigestMismatch: A file of the bundle is damaged.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", batch_rows: int = 16_384) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.digest = bundle.digest
        self.spec = bundle.spec
        self.encoder = bundle.encoder
        self.feature_code = bundle.feature_code
        self.feature_version = self.feature_code.version
        self.feature_names = self.encoder.names
        self.background_id = manifest.background_id
        self.explainer_version = EXPLAINER_VERSION
        self._outcomes = {self.spec.label.column, *self.spec.label.outcome_columns}
        self._device = device
        self._block_rows = CPU_BLOCK_ROWS if device == "cpu" else batch_rows
        self._calibration = manifest.calibration
        origin = str(bundle.folder / "model.py")
        network = build_network(bundle.model_source, manifest.network, origin=origin)
        try:
            network.load_state_dict(bundle.state_dict())
        except RuntimeError as error:
            raise PipelineCodeError(
                f"build(spec) does not fit the trained weights: {error}", which=origin, fix="train again"
            ) from error
        self._network = network.eval().requires_grad_(False).to(device)
        with one_thread():
            self._explainer = Explainer(self._network, self.encoder, device=device)

    @property
    def explainer(self) -> str:
        """Name of the attribution method that this network gets."""
        return self._explainer.name

    def features(self, rows: pa.Table) -> pa.Table:
        """Features of source rows, by the bundle's own features.py, which never sees an outcome column."""
        visible = rows.select([name for name in rows.column_names if name not in self._outcomes])
        return self.feature_code.compute(visible, self.spec.features)

    def encode(self, features: pa.Table) -> Matrix:
        """The encoded matrix, float32 `[n, width]`; `tasks.model.encoder` describes its columns."""
        return self.encoder.encode(features)

    def predict(self, encoded: Matrix) -> Floats:
        """Calibrated probabilities, float32 `[n]`.

        Raises:
            DataError: `encoded` does not have this bundle's width.
        """
        self._check_width(encoded)
        return predict(
            self._network, encoded, self._calibration, device=self._device, block_rows=self._block_rows
        )

    def explain(self, encoded: Matrix) -> Attributions:
        """Attributions of each row, one column for each of `feature_names`, on the calibrated logit scale.

        Raises:
            DataError: `encoded` does not have this bundle's width.
        """
        self._check_width(encoded)
        slope, intercept = self._calibration.slope, self._calibration.intercept
        parts = np.empty((len(encoded), len(self.feature_names)), dtype=np.float32)
        residual = np.empty(len(encoded), dtype=np.float32)
        with one_thread():
            for rows, block in _blocks(encoded, self._block_rows, self._device):
                found, error = self._explainer.attribute(block)
                kept = rows.stop - rows.start
                parts[rows] = (found[:kept] * slope).cpu().numpy()
                residual[rows] = (error[:kept] * slope).cpu().numpy()
        return Attributions(parts, self._explainer.base_logit * slope + intercept, residual)

    def check_golden(self, *, tolerance: float = GOLDEN_TOLERANCE) -> float:
        """Replay the golden rows from source row to probability; returns the largest difference.

        Raises:
            DigestMismatch: Features or predictions moved by more than `tolerance`: this environment does not
                compute what was trained.
        """
        golden = self.bundle.golden
        wanted = np.asarray(golden[SCORE_COLUMN].to_numpy(), dtype=np.float32)
        matrix = self.golden_encoded()
        encoded = self.encode(self.features(golden.drop_columns([ENCODED_COLUMN, SCORE_COLUMN])))
        moved = np.abs(encoded - matrix).max(axis=0)
        columns = sorted(
            {self.encoder.column_features[index] for index in np.flatnonzero(~(moved <= tolerance))}
        )
        if columns:
            names = ", ".join(self.feature_names[index] for index in columns)
            raise self._not_as_trained(f"golden rows get other features than in training: {names}")
        difference = np.abs(self.predict(encoded) - wanted)
        bad = int((~(difference <= tolerance)).sum())
        if bad:
            raise self._not_as_trained(
                f"{bad} of {len(wanted)} golden predictions moved, by up to {float(np.nanmax(difference)):.3g}"
            )
        return float(difference.max(initial=0.0))

    def golden_encoded(self) -> Matrix:
        """The golden rows' encoded matrix, as training computed it."""
        column = self.bundle.golden[ENCODED_COLUMN].combine_chunks()
        flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
        return flat.reshape(len(column), self.encoder.width)

    def calibrated_network(self) -> nn.Module:
        """The network and its calibration as one module: encoded matrix in, probabilities `[n]` out."""
        return CalibratedNetwork(self._network, self._calibration.slope, self._calibration.intercept).eval()

    def _not_as_trained(self, what: str) -> DigestMismatch:
        trained = ", ".join(f"{name} {version}" for name, version in self.bundle.manifest.frameworks.items())
        return DigestMismatch(
            what,
            which=f"bundle {self.digest[:16]}",
            fix=f"nothing was scored; use the versions it was trained with ({trained}), or train again",
        )

    def _check_width(self, encoded: Matrix) -> None:
        if encoded.ndim != 2 or encoded.shape[1] != self.encoder.width:
            raise DataError(
                f"has shape {encoded.shape}, this model reads [n, {self.encoder.width}]",
                which="encoded matrix",
                fix="encode with the same bundle that predicts",
            )


def predict(
    network: nn.Module,
    encoded: Matrix,
    calibration: Calibration,
    *,
    device: str = "cpu",
    block_rows: int = CPU_BLOCK_ROWS,
) -> Floats:
    """Calibrated probabilities, float32 `[n]`, of a network in evaluation mode."""
    out = np.empty(len(encoded), dtype=np.float32)
    with one_thread(), torch.inference_mode():
        for rows, block in _blocks(encoded, block_rows, device):
            logits = network(block).float() * calibration.slope + calibration.intercept
            out[rows] = torch.sigmoid(logits)[: rows.stop - rows.start].cpu().numpy()
    return out


def _blocks(encoded: Matrix, block_rows: int, device: str) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges with their rows padded by zeros to `[block_rows, width]`; the buffer is reused."""
    block = np.zeros((block_rows, encoded.shape[1]), dtype=np.float32)
    for start in range(0, len(encoded), block_rows):
        rows = slice(start, min(start + block_rows, len(encoded)))
        block[: rows.stop - start] = encoded[rows]
        block[rows.stop - start :] = 0.0
        yield rows, torch.from_numpy(block).to(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for small matrix products: faster than sharing them, and always the same summation order."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
