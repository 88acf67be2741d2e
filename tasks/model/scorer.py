"""Scores and explains rows with one bundle; a plain class that knows nothing of Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from tasks.core.errors import ConfigError, DataError, DigestMismatch, PipelineCodeError
from tasks.model.attribution import EXPLAINER_VERSION, Attributions, Explainer, explained
from tasks.model.bundle import ENCODED_COLUMN, SCORE_COLUMN, Bundle
from tasks.model.encoder import Matrix
from tasks.model.execution import Execution, Floats, one_thread, outputs, predict, tuned
from tasks.model.network import CalibratedNetwork, build_network, output_names

GOLDEN_TOLERANCE = 1e-5
"""Largest move of a golden probability that still counts as the same model (other CPU, other BLAS)."""

BFLOAT16_TOLERANCE = 2e-2
"""The same where matrix products are computed in bfloat16, which has three digits."""


class Scorer:
    """Source rows to calibrated probabilities and attributions.

    A row's result does not depend on the batch that it comes in: rows pass the network in blocks of one fixed
    shape (padded), on one thread. On a CPU it is the same to the last bit.

    Args:
        bundle: A verified bundle.
        execution: Where and how the network runs. Default: on a CPU, in float32.
        compiled: Compile the network with `torch.compile` first.
        memory_share: On an accelerator, the part of its memory that scoring may take; the block size is then chosen
            by measuring. None keeps that of `execution`.

    Raises:
        PipelineCodeError: The bundle's features.py or model.py fails here, or does not fit its weights.
        DigestMismatch: A file of the bundle is damaged.
        ConfigError: The network cannot be compiled on this machine.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        execution: Execution | None = None,
        compiled: bool = False,
        memory_share: float | None = None,
    ) -> None:
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
        self.execution = execution or Execution()
        self._outcomes = self.spec.label.known_afterwards
        self._calibration = manifest.calibration
        origin = str(bundle.folder / "model.py")
        network = build_network(bundle.model_source, manifest.network, origin=origin)
        try:
            network.load_state_dict(bundle.state_dict())
        except RuntimeError as error:
            raise PipelineCodeError(
                f"build(spec) does not fit the trained weights: {error}", which=origin, fix="train again"
            ) from error
        network = network.eval().requires_grad_(False)
        self.output_names = output_names(network, self.encoder.width)
        self._network = network.to(self.execution.device)
        with one_thread():
            self._explainer = Explainer(self._network, self.encoder, device=self.execution.device)
        if memory_share is not None:
            self.execution = tuned(
                self._network, self.encoder.width, self.execution, memory_share=memory_share
            )
        # After the block size is known: each size would be compiled anew.
        self._forward = self._compiled(origin) if compiled else self._network

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
        return predict(self._forward, encoded, self._calibration, self.execution)

    def outputs(self, encoded: Matrix) -> Floats:
        """What the network's `outputs(x)` says of each row beside its score, float32 `[n, len(output_names)]`.

        Raises:
            DataError: `encoded` does not have this bundle's width.
        """
        self._check_width(encoded)
        return outputs(self._network, self.output_names, encoded, self.execution)

    def explain(self, encoded: Matrix) -> Attributions:
        """Attributions of each row, one column for each of `feature_names`, on the calibrated logit scale.

        Raises:
            DataError: `encoded` does not have this bundle's width.
        """
        self._check_width(encoded)
        return explained(self._explainer, encoded, self._calibration, self.execution)

    def check_golden(self) -> float:
        """Replay the golden rows from source row to probability; returns the largest difference.

        Raises:
            DigestMismatch: Features moved by more than `GOLDEN_TOLERANCE`, or predictions by more than the execution's
                tolerance: this environment does not compute what was trained.
        """
        tolerance = BFLOAT16_TOLERANCE if self.execution.bfloat16 else GOLDEN_TOLERANCE
        golden = self.bundle.golden
        wanted = np.asarray(golden[SCORE_COLUMN].to_numpy(), dtype=np.float32)
        matrix = self.golden_encoded()
        encoded = self.encode(self.features(golden.drop_columns([ENCODED_COLUMN, SCORE_COLUMN])))
        moved = np.abs(encoded - matrix).max(axis=0)
        columns = sorted(
            {self.encoder.column_features[index] for index in np.flatnonzero(~(moved <= GOLDEN_TOLERANCE))}
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

    def _compiled(self, origin: str) -> nn.Module:
        """The network as `torch.compile` makes it for blocks of one shape; compiled here and not at the first shard."""
        forward = torch.compile(self._network, dynamic=False)
        rows = np.zeros((1, self.encoder.width), np.float32)
        try:
            predict(forward, rows, self._calibration, self.execution)
        except Exception as error:  # a compiler's errors have no common class
            raise ConfigError(
                f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}",
                which=origin,
                fix="install a C++ compiler (on a GPU: Triton as well), or set inference.compile: false",
            ) from error
        return forward

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
