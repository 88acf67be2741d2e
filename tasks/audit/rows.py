"""The audit table's rows: one for each prediction, with provenance always and attributions where explained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.core.columns import constant
from tasks.core.errors import DataError, NotFound
from tasks.core.ids import canonical_json, digest_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import JsonRecord
from tasks.core.scored import ScoredRows
from tasks.core.spec import PipelineSpec

AUDIT_TABLE = "tables/audit"

_UTC = pa.timestamp("us", tz="UTC")

AUDIT_SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("event_time", _UTC),
        ("pipeline", pa.string()),
        ("model_version", pa.int32()),
        ("bundle_digest", pa.string()),
        ("entity_id", pa.string()),
        ("run_id", pa.string()),
        ("shard_id", pa.int32()),
        ("prediction", pa.float32()),
        ("base_value", pa.float32()),
        ("attributions", pa.list_(pa.field("element", pa.float32()))),
        ("topk_idx", pa.list_(pa.field("element", pa.int16()))),
        ("residual", pa.float32()),
        ("explainer", pa.string()),
        ("explainer_version", pa.string()),
        ("background_id", pa.string()),
        ("feature_set_version", pa.string()),
        ("feature_computation_version", pa.string()),
        ("feature_asof", _UTC),
        ("source_snapshot", pa.string()),
        ("source_key", pa.string()),
        ("source_row", pa.int64()),
        ("feature_values", pa.list_(pa.field("element", pa.float32()))),
        ("feature_values_text", pa.map_(pa.string(), pa.string())),
        ("scored_at", _UTC),
    ]
)
"""Columns of a file; the table has `event_date` (UTC) besides, which the file's folder says."""


@dataclass(frozen=True)
class FeatureSet(JsonRecord):
    """What the positions in `attributions` and `feature_values` mean; stored once, not on every row."""

    feature_set_version: str
    """16 hex digits over all other fields."""
    pipeline: str
    names: tuple[str, ...]
    """Order of `attributions` and of `topk_idx`."""
    numeric: tuple[str, ...]
    """Order of `feature_values`; the others are in `feature_values_text` by name."""
    feature_computation_version: str
    bundle_digest: str
    """Its `encoder.json` holds the category maps, its `features.py` the code."""

    @classmethod
    def of(cls, scored: ScoredRows) -> FeatureSet:
        """The feature set of scored rows."""
        schema = scored.features.schema
        content: dict[str, Any] = {
            "pipeline": scored.pipeline,
            "names": tuple(schema.names),
            "numeric": tuple(field.name for field in schema if pa.types.is_floating(field.type)),
            "feature_computation_version": scored.feature_version,
            "bundle_digest": scored.bundle_digest,
        }
        return cls(feature_set_version=digest_json(content)[:16], **content)


def feature_set_key(version: str) -> str:
    return f"audit/feature_sets/{version}.json"


def audit_table(store: ObjectStore, spec: PipelineSpec, scored: ScoredRows) -> pa.Table:
    """Audit rows of scored rows, in their order; stores their feature set when it is new.

    Args:
        store: The pipeline's store.
        spec: `explanations.top_k` is read from it.
        scored: n rows, F features.

    Returns:
        n rows of `AUDIT_SCHEMA`, columns of one value dictionary-encoded. Rows that were not explained have null attributions, top-k, base value,
        residual and explainer.
    """
    features = FeatureSet.of(scored)
    with suppress(AlreadyExists):  # named by content: whoever stored it stored the same
        _store_once(store, features)
    n = len(scored.prediction_ids)
    explained = scored.explained

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return constant(value, kind, n)

    def where_explained(value: Any, kind: pa.DataType) -> pa.Array:
        return constant(value, kind, n, where=explained)

    columns = {
        "prediction_id": scored.prediction_ids.texts(),
        "event_time": scored.event_times,
        "pipeline": same(scored.pipeline, pa.string()),
        "model_version": same(scored.model_version, pa.int32()),
        "bundle_digest": same(scored.bundle_digest, pa.string()),
        "entity_id": scored.entity_ids,
        "run_id": same(scored.run_id, pa.string()),
        "shard_id": same(scored.shard, pa.int32()),
        "prediction": pa.array(scored.scores, pa.float32()),
        "base_value": where_explained(np.float32(scored.base_value), pa.float32()),
        "attributions": _lists(scored.attributions, explained, pa.float32()),
        "topk_idx": _lists(top_k(scored.attributions, spec.explanations.top_k), explained, pa.int16()),
        "residual": pa.array(scored.residual, pa.float32(), mask=~explained),
        "explainer": where_explained(scored.explainer, pa.string()),
        "explainer_version": where_explained(scored.explainer_version, pa.string()),
        "background_id": where_explained(scored.background_id, pa.string()),
        "feature_set_version": same(features.feature_set_version, pa.string()),
        "feature_computation_version": same(scored.feature_version, pa.string()),
        "feature_asof": scored.event_times,
        "source_snapshot": same(scored.source_snapshot, pa.string()),
        "source_key": same(scored.source_key, pa.string()),
        "source_row": pa.array(scored.source_rows, pa.int64()),
        "feature_values": _numbers(scored.features, features.numeric),
        "feature_values_text": _texts(scored.features, features),
        "scored_at": same(scored.scored_at, _UTC),
    }
    return pa.table({name: columns[name] for name in AUDIT_SCHEMA.names})


def top_k(attributions: np.ndarray[Any, np.dtype[np.float32]], k: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Indices of the k largest attributions by magnitude, largest first; ties in feature order. [n, min(k, F)]."""
    left = np.nan_to_num(np.abs(attributions), copy=False, nan=0.0)
    rows = np.arange(len(left))
    found = np.empty((len(left), min(k, attributions.shape[1])), np.int16)
    for place in range(found.shape[1]):
        found[:, place] = left.argmax(axis=1)  # the first of equals
        left[rows, found[:, place]] = -1.0
    return found


def read_feature_set(store: ObjectStore, version: str) -> FeatureSet:
    """The feature set of that version.

    Raises:
        NotFound: It is gone.
        DataError: It cannot be read.
    """
    key = feature_set_key(version)
    try:
        return FeatureSet.from_json(json.loads(store.get(key)))
    except NotFound as error:
        raise NotFound(
            "the feature set that audit rows refer to is gone",
            which=store.url(key),
            fix="restore the object from a backup: names of feature values are in it",
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"is not a readable feature set: {error}", which=store.url(key), fix="restore it from a backup"
        ) from error


@cache
def _stored() -> set[str]:
    """Feature sets that this process has stored already."""
    return set()


def _store_once(store: ObjectStore, features: FeatureSet) -> None:
    key = feature_set_key(features.feature_set_version)
    if store.url(key) in _stored():
        return
    if not store.exists(key):
        store.put_exclusive(key, canonical_json(features.to_json()))
    _stored().add(store.url(key))


def _lists(kept: np.ndarray[Any, Any], where: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    """A list column with the rows of `kept`, shape (k, width), at the k places where `where`, shape (n,); else null."""
    offsets = np.concatenate([[0], np.cumsum(where * kept.shape[1])]).astype(np.int32)
    kind_of = pa.list_(pa.field("element", kind))
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(kept.reshape(-1), kind), type=kind_of, mask=pa.array(~where)
    )


def _numbers(features: pa.Table, names: Sequence[str]) -> pa.Array:
    n = features.num_rows
    if not names:
        return pa.array([[]] * n, AUDIT_SCHEMA.field("feature_values").type)
    columns = [features.column(name).cast(pa.float32(), safe=False) for name in names]
    whole = np.stack([np.asarray(column.to_numpy(), dtype=np.float32) for column in columns], axis=1)
    flat = pa.array(whole.reshape(-1), pa.float32(), from_pandas=True)  # NaN stands for null
    offsets = pa.array(np.arange(0, n * len(names) + 1, len(names), dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, flat, type=AUDIT_SCHEMA.field("feature_values").type)


def _texts(features: pa.Table, known: FeatureSet) -> pa.Array:
    names = [name for name in known.names if name not in known.numeric]
    n, width = features.num_rows, len(names)
    kind = pa.map_(pa.string(), pa.string())
    if not width:
        return pa.array([[]] * n, kind)
    # Interleave: row after row, feature after feature.
    order = (np.arange(n)[:, None] + np.arange(width)[None, :] * n).reshape(-1)
    items = pa.concat_arrays([features.column(name).combine_chunks() for name in names])
    keys = pa.array(names).take(pa.array(np.tile(np.arange(width), n)))
    offsets = pa.array(np.arange(0, n * width + 1, width, dtype=np.int32))
    return pa.MapArray.from_arrays(offsets, keys, items.take(pa.array(order)).cast(pa.string()))
