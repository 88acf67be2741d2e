"""The predictions table's rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tasks.core.columns import constant
from tasks.core.scored import ScoredRows
from tasks.core.spec import PipelineSpec

PREDICTION_COLUMNS = (
    "prediction_id",
    "event_time",
    "event_date",
    "day",
    "pipeline",
    "entity_id",
    "score",
    "model_version",
    "bundle_digest",
    "feature_version",
    "run_id",
    "shard",
    "source_snapshot",
    "scored_at",
)
"""Every predictions table has these; the entity key's columns come after `entity_id`, a model's outputs after `score`."""

PREDICTION_GROUP_ROWS = 16_384


OUTPUT_PREFIX = "output_"
"""How the columns of a model's outputs begin."""


def key_column(name: str) -> str:
    """The table's column for an entity key column: its own name, unless the table uses that itself."""
    return f"key_{name}" if name in PREDICTION_COLUMNS or name.startswith(OUTPUT_PREFIX) else name


def prediction_table(scored: ScoredRows, rows: pa.Table, spec: PipelineSpec) -> pa.Table:
    """Rows of the predictions table, without `event_date`, which the file's folder says.

    Args:
        scored: n rows in order of prediction id.
        rows: The entity key's columns of their source rows, same order; shape (n, columns).
        spec: Names the entity key.
    """
    n = len(scored.prediction_ids)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "prediction_id": scored.prediction_ids.texts(),
        "event_time": scored.event_times,
        "day": pa.repeat(pa.scalar(scored.day, pa.date32()), n),
        "pipeline": constant(scored.pipeline, pa.string(), n),
        "entity_id": scored.entity_ids,
        **{key_column(name): _plain(rows.column(name)) for name in spec.entity_key},
        "score": pa.array(scored.scores, pa.float32()),
        **_outputs(scored),
        "model_version": constant(scored.model_version, pa.int32(), n),
        "bundle_digest": constant(scored.bundle_digest, pa.string(), n),
        "feature_version": constant(scored.feature_version, pa.string(), n),
        "run_id": constant(scored.run_id, pa.string(), n),
        "shard": constant(scored.shard, pa.int32(), n),
        "source_snapshot": constant(scored.source_snapshot, pa.string(), n),
        "scored_at": constant(scored.scored_at, pa.timestamp("us", tz="UTC"), n),
    }
    return pa.table(columns)


def _outputs(scored: ScoredRows) -> dict[str, pa.Array]:
    """One float32 column for each output; null where it is not finite."""
    return {
        f"{OUTPUT_PREFIX}{name}": pa.array(values, pa.float32(), mask=~np.isfinite(values))
        for name, values in zip(scored.output_names, scored.outputs.T, strict=True)
    }


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A key column in a type that Delta has: every integer as int64, other unusual types as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return column.cast(pa.timestamp("us", tz="UTC"), safe=False)
    if pa.types.is_boolean(kind) or pa.types.is_date32(kind):
        return column
    return column.cast(pa.string())
