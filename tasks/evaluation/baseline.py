"""The model to beat: logistic regression on the candidate's own encoded features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.model.metrics import FloatArray, IntArray

MAX_TRAIN_ROWS = 200_000
"""More rows than this are thinned at random (seeded): the coefficients do not move, the time does."""

Matrix = npt.NDArray[np.float32]


class Baseline:
    """Logistic regression: numeric columns as they are (standardised), categorical codes one-hot.

    L2 penalty with C = 1, no other tuning; the columns are those of the bundle's encoder.
    """

    def __init__(self, model: Any, cardinalities: Sequence[int]) -> None:
        self._model = model
        self._cardinalities = tuple(cardinalities)

    @classmethod
    def fit(
        cls, encoded: Matrix, labels: IntArray, cardinalities: Sequence[int], *, seed: int = 0
    ) -> Baseline:
        """Fit on the train days.

        Args:
            encoded: Shape (n, width): numeric columns first, then one column of codes for each of `cardinalities`.
            labels: Shape (n,), both classes present.
            cardinalities: Codes of each categorical column.
            seed: For thinning beyond `MAX_TRAIN_ROWS`.
        """
        from sklearn.linear_model import LogisticRegression

        if len(labels) > MAX_TRAIN_ROWS:
            kept = np.random.default_rng(seed).choice(len(labels), MAX_TRAIN_ROWS, replace=False)
            encoded, labels = encoded[kept], labels[kept]
        model = LogisticRegression(C=1.0, max_iter=200, tol=1e-4)
        return cls(model.fit(_design(encoded, cardinalities), labels), cardinalities)

    def predict(self, encoded: Matrix) -> FloatArray:
        """Probabilities, shape (n,)."""
        found = self._model.predict_proba(_design(encoded, self._cardinalities))[:, 1]
        return np.asarray(found, dtype=np.float64)


def _design(encoded: Matrix, cardinalities: Sequence[int]) -> Any:
    """Sparse design matrix: dense numeric columns beside one indicator for each code."""
    from scipy import sparse

    rows = len(encoded)
    numeric = encoded.shape[1] - len(cardinalities)
    blocks = [sparse.csr_matrix(encoded[:, :numeric].astype(np.float64))]
    for position, codes in enumerate(cardinalities):
        values = encoded[:, numeric + position].astype(np.int64)
        blocks.append(sparse.csr_matrix((np.ones(rows), values, np.arange(rows + 1)), shape=(rows, codes)))
    return sparse.hstack(blocks, format="csr")
