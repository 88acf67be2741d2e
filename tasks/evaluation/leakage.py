"""Leakage: a feature that alone tells the label, and a feature that is newer than the prediction it serves.

A feature's own score is fitted on the train days and judged on the validation days, so that a category with
many values cannot look good by remembering. A number is scored by its rank or, where that tells more, by the label rate
of its bin; missing is a bin, because "missing exactly when the label is 0" is the commonest leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core import PipelineSpec
from tasks.core.errors import ConfigError
from tasks.evaluation import resampling
from tasks.evaluation.records import FeatureAuc, FeatureTimes, Interval
from tasks.model.metrics import FloatArray, IntArray
from tasks.model.ranking import auc

if TYPE_CHECKING:
    import numpy.typing as npt

    from tasks.model import FeatureEncoder

BINS = 50
SMOOTHING_ROWS = 10.0
"""A bin's label rate is drawn towards the overall rate by as much as this many rows would."""
WORTH_BINNING = 0.005
"""Bins are used where they raise the AUC on the train days by more than this: they are fitted, a rank is not."""
WITH_INTERVAL = 8
"""Only the highest get an interval: nothing is decided about the others."""


@dataclass(frozen=True)
class _Alone:
    name: str
    column: int
    indicator: int | None
    sign: float
    edges: FloatArray | None
    rates: FloatArray | None
    """Label rate of each bin or code, the last one for missing; None: scored by rank."""

    def score(self, encoded: npt.NDArray[np.float32]) -> FloatArray:
        values = encoded[:, self.column].astype(np.float64)
        if self.rates is None:
            return np.asarray(self.sign * values)
        if self.edges is None:
            index = values.astype(np.int64)
        else:
            index = np.searchsorted(self.edges, values, side="right")
            if self.indicator is not None:
                index = np.where(encoded[:, self.indicator] > 0.5, len(self.rates) - 1, index)
        return np.asarray(self.rates[index])


class SingleFeatures:
    """One score for each feature, from that feature alone."""

    def __init__(self, scorers: Sequence[_Alone]) -> None:
        self._scorers = tuple(scorers)

    @classmethod
    def fit(
        cls, encoded: npt.NDArray[np.float32], labels: IntArray, encoder: FeatureEncoder
    ) -> SingleFeatures:
        """Fit on the train days.

        Args:
            encoded: Shape (n, width), as `encoder` lays it out.
            labels: Shape (n,), both classes present.
            encoder: The candidate's.
        """
        places = {feature: len(encoder.numeric) + at for at, feature in enumerate(encoder.indicators)}
        numbers = [
            _fit_number(column.name, index, places.get(index), encoded, labels)
            for index, column in enumerate(encoder.numeric)
        ]
        categories = [
            _Alone(
                column.name,
                encoder.numeric_width + index,
                None,
                1.0,
                None,
                _rates(
                    encoded[:, encoder.numeric_width + index].astype(np.int64), labels, column.cardinality
                ),
            )
            for index, column in enumerate(encoder.categorical)
        ]
        return cls([*numbers, *categories])

    def scores(self, encoded: npt.NDArray[np.float32]) -> dict[str, FloatArray]:
        """Feature -> score of each row, shape (rows,); higher speaks for the positive class."""
        return {scorer.name: scorer.score(encoded) for scorer in self._scorers}


def measure_alone(
    labels: IntArray,
    alone: dict[str, FloatArray],
    day: IntArray,
    weights: FloatArray,
    confidence: float,
) -> tuple[FeatureAuc, ...]:
    """The AUC of each feature alone, highest first; the highest few with intervals by resampling days."""
    ranked = sorted(((auc(labels, scores), name) for name, scores in alone.items()), reverse=True)
    found = []
    for place, (value, name) in enumerate(ranked):
        bounds = Interval(float(value))
        if place < WITH_INTERVAL:
            estimate = resampling.auc_estimate(labels, alone[name], day, weights)
            bounds = resampling.interval(estimate, weights.shape[1], confidence)
        found.append(FeatureAuc(name, bounds))
    return tuple(found)


def times_of(rows: pa.Table, features: pa.Table, spec: PipelineSpec) -> tuple[FeatureTimes, ...]:
    """For each feature of `gates.known_at`: rows in which its value is newer than the prediction, or undated.

    Args:
        rows: Source rows, with the event time and the columns that `gates.known_at` names.
        features: Their features; where one is null there is nothing to be known.
        spec: The pipeline.

    Raises:
        ConfigError: A column is missing or holds no timestamps.
    """
    if not spec.gates.known_at:
        return ()
    asked = _micros(rows, spec.event_time, spec, "event_time") - spec.gates.prediction_lead_minutes * 60e6
    found = []
    for feature, column in spec.gates.known_at.items():
        known = _micros(rows, column, spec, f"gates.known_at.{feature}")
        given = pc.is_valid(features[feature]).to_numpy(zero_copy_only=False)
        late_by = np.where(given & np.isfinite(known), (known - asked) / 1e6, 0.0)
        found.append(
            FeatureTimes(
                feature=feature,
                column=column,
                rows=int(given.sum()),
                late_rows=int((late_by > 0).sum()),
                undated_rows=int((given & ~np.isfinite(known)).sum()),
                largest_lateness_s=float(late_by.max(initial=0.0)),
            )
        )
    return tuple(found)


def add_times(parts: Sequence[tuple[FeatureTimes, ...]]) -> tuple[FeatureTimes, ...]:
    """The counts of several partitions as one for each feature."""
    return tuple(
        FeatureTimes(
            feature=items[0].feature,
            column=items[0].column,
            rows=sum(item.rows for item in items),
            late_rows=sum(item.late_rows for item in items),
            undated_rows=sum(item.undated_rows for item in items),
            largest_lateness_s=max(item.largest_lateness_s for item in items),
        )
        for items in zip(*parts, strict=True)
    )


def _fit_number(
    name: str,
    column: int,
    indicator: int | None,
    encoded: npt.NDArray[np.float32],
    labels: IntArray,
) -> _Alone:
    values = encoded[:, column].astype(np.float64)
    ranked = auc(labels, values)
    by_rank = _Alone(name, column, indicator, 1.0 if ranked >= 0.5 else -1.0, None, None)
    known = np.ones(len(values), dtype=bool) if indicator is None else encoded[:, indicator] <= 0.5
    if not known.any():
        return by_rank
    edges = np.unique(np.quantile(values[known], np.arange(1, BINS) / BINS))
    index = np.where(known, np.searchsorted(edges, values, side="right"), len(edges) + 1)
    by_bin = _Alone(name, column, indicator, 1.0, edges, _rates(index, labels, len(edges) + 2))
    gain = auc(labels, by_bin.score(encoded)) - max(ranked, 1 - ranked)
    return by_bin if gain > WORTH_BINNING else by_rank


def _rates(index: IntArray, labels: IntArray, size: int) -> FloatArray:
    rows = np.bincount(index, minlength=size)
    positives = np.bincount(index, weights=labels, minlength=size)
    return np.asarray((positives + SMOOTHING_ROWS * labels.mean()) / (rows + SMOOTHING_ROWS))


def _micros(rows: pa.Table, column: str, spec: PipelineSpec, field: str) -> FloatArray:
    """Microseconds since 1970 UTC, NaN for null; times without a zone are in the source's."""
    which = f"pipelines/{spec.name}/pipeline.yaml: {field}: {column}"
    if column not in rows.column_names:
        raise ConfigError(
            "is not a source column", which=which, fix=f"use one of: {', '.join(sorted(rows.column_names))}"
        )
    values = rows[column]
    if not pa.types.is_timestamp(values.type):
        raise ConfigError(
            f"is {values.type}, not a timestamp",
            which=which,
            fix="let source.py give a timestamp column: a date does not say whether it was before the prediction",
        )
    if values.type.tz is None:
        values = pc.assume_timezone(values, spec.source.time_zone, ambiguous="latest", nonexistent="latest")
    micros = (
        values.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False)
    )
    return np.asarray(pc.fill_null(micros, float("nan")).to_numpy(), dtype=np.float64)
