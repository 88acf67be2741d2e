"""Features to numbers: the fixed transformation between `features.py` and the network.

Layout of the encoded matrix, float32 `[n, width]`:

| columns | content |
|---|---|
| one for each numeric feature, in order | `(value - mean) / std` of training, clipped to +-10; missing: 0 |
| one for each numeric feature that had missing values in training, in order | 1 missing, 0 not |
| one for each categorical feature, in order | code as float; 0: null or unseen, then the vocabulary sorted |

Missing is null, NaN or infinite. A feature that was never missing in training has no indicator, because a
weight for it could not have been learnt: there a missing value reads as the mean. The contract checks of the
monitor see it instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.records import JsonRecord
from tasks.core.spec import FeatureSpec

CLIP = 10.0
"""Standardised values are clipped to +- this many standard deviations."""

_LARGEST = 1e100

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NumericColumn(JsonRecord):
    """How one numeric feature is standardised."""

    name: str
    mean: float
    std: float
    """1 when the feature is constant."""
    indicator: bool
    """Whether a null indicator column exists."""
    encoded_mean: float
    """Mean of the encoded column over training: the attribution baseline."""
    missing_share: float
    """Share of training rows without a value; the baseline of the indicator."""


@dataclass(frozen=True)
class CategoricalColumn(JsonRecord):
    """The vocabulary of one categorical feature; code `i + 1` is `values[i]`."""

    name: str
    values: tuple[str, ...]
    frequencies: tuple[float, ...]
    """Share of training rows by code, code 0 first; sums to 1."""

    @property
    def cardinality(self) -> int:
        return len(self.values) + 1


@dataclass(frozen=True)
class FeatureEncoder(JsonRecord):
    """A fitted encoder. Build it with `fit`, or from its JSON."""

    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]

    @classmethod
    def fit(cls, features: pa.Table, spec: FeatureSpec) -> FeatureEncoder:
        """Learn means, deviations and vocabularies from training features.

        Args:
            features: What `FeatureCode.compute` returned for the training rows, n >= 1.
            spec: The same pipeline's features.

        Raises:
            DataError: No rows, or a numeric feature is missing in every row.
        """
        if features.num_rows == 0:
            raise DataError(
                "no training rows to learn an encoding from", which="features", fix="widen the window"
            )
        return cls(
            tuple(_fit_numeric(name, features[name]) for name in spec.numeric),
            tuple(
                _fit_categorical(name, features[name], column.min_count)
                for name, column in spec.categorical.items()
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Original features: numeric, then categorical; the columns of attributions."""
        return (*(column.name for column in self.numeric), *(column.name for column in self.categorical))

    @property
    def indicators(self) -> tuple[int, ...]:
        """Indices of the numeric features that have a null indicator."""
        return tuple(index for index, column in enumerate(self.numeric) if column.indicator)

    @property
    def numeric_width(self) -> int:
        """Numeric columns of the encoded matrix, null indicators included."""
        return len(self.numeric) + len(self.indicators)

    @property
    def width(self) -> int:
        """Columns of the encoded matrix."""
        return self.numeric_width + len(self.categorical)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes of each categorical feature, the code 0 included."""
        return tuple(column.cardinality for column in self.categorical)

    @property
    def column_features(self) -> tuple[int, ...]:
        """For each encoded column, the index into `names` of the feature that it belongs to."""
        first = len(self.numeric)
        return (*range(first), *self.indicators, *range(first, first + len(self.categorical)))

    @property
    def baseline_numeric(self) -> tuple[float, ...]:
        """Training mean of each numeric encoded column, indicators included."""
        means = tuple(column.encoded_mean for column in self.numeric)
        return (*means, *(self.numeric[index].missing_share for index in self.indicators))

    def encode(self, features: pa.Table) -> Matrix:
        """The encoded matrix, float32 `[n, width]`, each row from that row alone.

        Raises:
            DataError: A feature's column is missing.
        """
        missing = [name for name in self.names if name not in features.column_names]
        if missing:
            raise DataError(
                f"features {', '.join(missing)} are missing",
                which="features",
                fix="compute them with FeatureCode",
            )
        out = np.empty((features.num_rows, self.width), dtype=np.float32)
        position = len(self.numeric)
        for index, number in enumerate(self.numeric):
            values, present = _floats(features[number.name])
            out[:, index] = _standardise(values, present, number.mean, number.std)
            if number.indicator:
                out[:, position] = 0.0 if present is None else ~present
                position += 1
        for category in self.categorical:
            out[:, position] = _codes(features[category.name], category.values)
            position += 1
        return out


def _floats(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_] | None]:
    """Values, and where there is one, or None when every row has one.

    Values beyond +-1e100 are cut off, so that squares stay finite; a missing one is NaN.
    """
    values = np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(), dtype=np.float64)
    if (np.abs(values) <= _LARGEST).all():
        return values, None
    present = np.isfinite(values)
    return np.where(present, np.clip(values, -_LARGEST, _LARGEST), np.nan), present


def _standardise(
    values: npt.NDArray[np.float64], present: npt.NDArray[np.bool_] | None, mean: float, std: float
) -> npt.NDArray[np.float64]:
    scaled = values - mean
    scaled /= std
    np.clip(scaled, -CLIP, CLIP, out=scaled)
    if present is not None:
        scaled[~present] = 0.0
    return scaled


def _codes(column: pa.ChunkedArray, values: tuple[str, ...]) -> npt.NDArray[np.int32]:
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(values, pa.string()), skip_nulls=True)
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int32) + 1


def _fit_numeric(name: str, column: pa.ChunkedArray) -> NumericColumn:
    values, present = _floats(column)
    kept = values if present is None else values[present]
    if not len(kept):
        raise DataError(
            "has no value in any training row", which=f"feature {name}", fix="correct features.py or drop it"
        )
    mean, std = float(kept.mean()), float(kept.std())
    # A spread below rounding is a constant: dividing by it would turn noise into signal.
    if std <= 1e-12 * max(1.0, abs(mean)):
        std = 1.0
    missing = 1.0 - len(kept) / len(values)
    encoded = _standardise(values, present, mean, std)
    return NumericColumn(name, mean, std, missing > 0.0, float(encoded.mean()), missing)


def _fit_categorical(name: str, column: pa.ChunkedArray, min_count: int) -> CategoricalColumn:
    counts = {
        item["values"]: item["counts"]
        for item in pc.value_counts(column.cast(pa.string())).to_pylist()
        if item["values"] is not None
    }
    values = sorted(value for value, count in counts.items() if count >= min_count)
    rows = len(column)
    known = [counts[value] / rows for value in values]
    return CategoricalColumn(name, tuple(values), (max(0.0, 1.0 - sum(known)), *known))
