"""From partitions to labels and probabilities, exactly as batch scoring computes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import DataError, PipelineCodeError
from tasks.model.metrics import FloatArray

if TYPE_CHECKING:
    from tasks.model import Scorer

BoolArray = npt.NDArray[np.bool_]

_BURIED = 200


def load_scorer(settings: Settings, spec: PipelineSpec, digest: str) -> Scorer:
    """The scorer of a bundle, fetched and checked against `digest`.

    Raises:
        NotFound, DigestMismatch, PipelineCodeError: The bundle is gone, damaged, or its code does not run.
    """
    from tasks.model import Scorer, fetch_bundle

    store = open_store(settings, prefix=spec.prefix)
    return Scorer(fetch_bundle(store, digest, settings.cache_dir))


def inputs_of(rows: pa.Table, spec: PipelineSpec) -> pa.Table:
    """The columns that exist when a prediction is made: no label, no outcome."""
    outcomes = spec.label.known_afterwards
    return rows.select([name for name in rows.column_names if name not in outcomes])


def score_inputs(scorer: Scorer, rows: pa.Table, spec: PipelineSpec) -> FloatArray:
    """Calibrated probabilities of source rows, shape (rows,)."""
    encoded = scorer.encode(scorer.features(inputs_of(rows, spec)))
    return np.asarray(scorer.predict(encoded), dtype=np.float64)


def score_or_nan(scorer: Scorer, rows: pa.Table, spec: PipelineSpec) -> tuple[FloatArray, str]:
    """Probabilities of source rows, NaN for those that the model cannot score, and why it could not score the first.

    Failing rows are found by bisection. Once `_BURIED` of them were, what fails is given up as a whole: more cost time
    and say nothing new.
    """
    scores = np.full(rows.num_rows, np.nan)
    waiting, buried, reason = [(0, rows.num_rows)], 0, ""
    while waiting:
        start, stop = waiting.pop()
        try:
            scores[start:stop] = score_inputs(scorer, rows.slice(start, stop - start), spec)
        except (PipelineCodeError, DataError) as error:
            where = error.which.rsplit("/", 1)[-1]  # of a path its file: the bundle's folder says nothing
            reason = reason or f"{where} {error.what}".strip().splitlines()[0]
            if stop - start == 1:
                buried += 1
            elif buried < _BURIED:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
    return scores, reason


def labels_of(rows: pa.Table, spec: PipelineSpec) -> tuple[npt.NDArray[np.int8], BoolArray]:
    """(labels, known): labels in {0, 1}, 0 where not known; both of shape (rows,).

    Raises:
        DataError: The label column is missing or holds something else than 0, 1 and null.
    """
    name = spec.label.column
    if name not in rows.column_names:
        raise DataError(
            "is missing",
            which=f"label column {name}",
            fix="evaluate on a snapshot of kind training, or correct label.column in pipeline.yaml",
        )
    try:
        values = rows[name].cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"is {rows[name].type}, not 0 / 1 / null",
            which=f"label column {name}",
            fix="store the label as an integer or a boolean",
        ) from error
    known = pc.is_valid(values).to_numpy()
    numbers = pc.fill_null(values, 0.0).to_numpy()
    known = known & ~np.isnan(numbers)
    bad = known & (numbers != 0) & (numbers != 1)
    if bad.any():
        raise DataError(
            f"holds {numbers[bad][0]:g}", which=f"label column {name}", fix="labels must be 0, 1 or null"
        )
    return np.where(known, numbers, 0).astype(np.int8), known


@dataclass(frozen=True)
class ScoredDays:
    """Labelled validation rows with every model's probability; arrays of shape (n,)."""

    days: tuple[date, ...]
    day: npt.NDArray[np.int64]
    """Index into `days`."""
    labels: npt.NDArray[np.int8]
    scores: dict[str, FloatArray]
    slices: dict[str, npt.NDArray[np.object_]]
    unlabelled_rows: int = 0
    alone: dict[str, FloatArray] = field(default_factory=dict)
    """What each feature alone says of a row (`leakage.SingleFeatures`)."""
