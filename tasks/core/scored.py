"""What a scoring shard hands to the audit table's builder: the rows it scored, with everything about them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core.prediction_ids import PredictionIds

COMPLETENESS_TOLERANCE = 0.05
"""Logits. Attributions that leave more than this unexplained are counted and logged: the sum of them misses the
probability by 1.25 points at most at this bound, which is where a bar of a waterfall plot begins to mislead."""


@dataclass(frozen=True)
class ScoredRows:
    """Scored rows of one shard, in order of prediction id. n rows, F features."""

    pipeline: str
    run_id: str
    shard: int
    day: date
    model_version: int
    bundle_digest: str
    feature_version: str
    source_snapshot: str | None
    """None for rows of requests, which are in no snapshot."""
    source_key: str
    """Key of the partition file that the rows were read from."""
    scored_at: datetime
    prediction_ids: PredictionIds
    event_times: pa.Array
    """timestamp[us, tz=UTC], shape (n,)."""
    entity_ids: pa.Array
    """string, shape (n,)."""
    source_rows: npt.NDArray[np.int64]
    """Row number in the partition file, shape (n,)."""
    scores: npt.NDArray[np.float32]
    """Shape (n,)."""
    output_names: tuple[str, ...]
    """The O things that the model says of a row beside its score."""
    outputs: npt.NDArray[np.float32]
    """Shape (n, O); not finite where the model had nothing to say."""
    features: pa.Table
    """The F columns of `spec.features.names`, in order: float64 and string. Without rows when nobody asked for them."""
    explained: npt.NDArray[np.bool_]
    """Shape (n,); which rows have attributions."""
    attributions: npt.NDArray[np.float32]
    """Shape (k, F), logit scale: of the k explained rows, in their order."""
    base_value: float
    """Logit of the baseline; NaN when no row was explained."""
    residual: npt.NDArray[np.float32]
    """Shape (n,): logit - base value - sum of attributions; NaN in rows that were not explained."""
    explainer: str
    explainer_version: str
    background_id: str
