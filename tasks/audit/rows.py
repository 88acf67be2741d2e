"""The audit table's rows: one for each prediction, with provenance always and attributions where explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.columns import constant
from tasks.core.errors import DataError, NotFound
from tasks.core.ids import canonical_json, digest_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import JsonRecord
from tasks.core.scored import ScoredRows

AUDIT_TABLE = "tables/audit"

ATTRIBUTION_BITS = 11
"""Bits of fraction that attributions keep: the other 12 of a float32 cost a third of the row (docs/audit.md)."""

Floats = npt.NDArray[np.float32]

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
        ("attribution_bits", pa.int8()),
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
        ("feature_texts", pa.list_(pa.field("element", pa.string()))),
        ("scored_at", _UTC),
        ("erasure_id", pa.string()),
    ]
)
"""Columns of a file; the table has `event_date` (UTC) besides, which the file's folder says."""


TEXT_MAP = "feature_values_text"
"""What an earlier release wrote instead of `feature_texts`: a map from feature name to text."""

EARLIER_COLUMNS = (TEXT_MAP, "topk_idx")
"""Columns of earlier releases of which this one has the content in others."""


@dataclass(frozen=True)
class FeatureSet(JsonRecord):
    """What the positions in `attributions` and `feature_values` mean; stored once, not on every row."""

    feature_set_version: str
    """16 hex digits over all other fields."""
    pipeline: str
    names: tuple[str, ...]
    """Order of `attributions` and of `topk_idx`."""
    numeric: tuple[str, ...]
    """Order of `feature_values`; the others, in the order of `names`, are in `feature_texts`."""
    feature_computation_version: str
    bundle_digest: str
    """Its `encoder.json` holds the category maps, its `features.py` the code."""

    @property
    def textual(self) -> tuple[str, ...]:
        """Order of `feature_texts`."""
        return tuple(name for name in self.names if name not in self.numeric)

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


def audit_table(store: ObjectStore, scored: ScoredRows) -> pa.Table:
    """Audit rows of scored rows, in their order; stores their feature set when it is new.

    Args:
        store: The pipeline's store.
        scored: n rows, F features.

    Returns:
        n rows of `AUDIT_SCHEMA`, columns of one value dictionary-encoded. Rows that were not explained have null
        attributions, base value, residual and explainer.
    """
    features = FeatureSet.of(scored)
    with suppress(AlreadyExists):  # named by content: whoever stored it stored the same
        _store_once(store, features)
    n = len(scored.prediction_ids)
    explained = scored.explained
    attributions, residual = rounded(scored.attributions, scored.residual[explained])

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
        "attributions": _lists(attributions, explained, pa.float32()),
        "attribution_bits": where_explained(ATTRIBUTION_BITS, pa.int8()),
        "residual": _where(explained, residual),
        "explainer": where_explained(scored.explainer, pa.string()),
        "explainer_version": where_explained(scored.explainer_version, pa.string()),
        "background_id": where_explained(scored.background_id, pa.string()),
        "feature_set_version": same(features.feature_set_version, pa.string()),
        "feature_computation_version": same(scored.feature_version, pa.string()),
        "feature_asof": same(None, _UTC),
        "source_snapshot": same(scored.source_snapshot, pa.string()),
        "source_key": same(scored.source_key, pa.string()),
        "source_row": pa.array(scored.source_rows, pa.int64()),
        "feature_values": _numbers(scored.features, features.numeric),
        "feature_texts": _texts(scored.features, features),
        "scored_at": same(scored.scored_at, _UTC),
        "erasure_id": same(None, pa.string()),
    }
    return pa.table({name: columns[name] for name in AUDIT_SCHEMA.names})


def rounded(attributions: Floats, residual: Floats, bits: int = ATTRIBUTION_BITS) -> tuple[Floats, Floats]:
    """Attributions with fewer significant bits, and the residual that keeps each row's sum.

    Bits that say nothing cost most of a float's space; 11 bits of fraction are off by 1 part in 4,096 at most.

    Args:
        attributions: Shape (k, F), finite or NaN.
        residual: Shape (k,).
        bits: Bits of the fraction to keep, 1 to 23; 23 keeps all.

    Source: Klower et al. (2021), "Compressing atmospheric data into its real information content"
        (round to nearest).
    """
    drop = 23 - bits
    if not drop or not attributions.size:
        return attributions, residual
    whole = attributions.view(np.uint32)
    half = np.uint32(1 << (drop - 1))
    kept = ((whole + half) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)
    kept = np.where(np.isfinite(attributions) & np.isfinite(kept), kept, attributions)
    return kept, residual + (attributions - kept).sum(axis=1)


def online_scored_at(rows: pa.Table) -> pa.Array:
    """What tells scorings of one prediction by one run apart; timestamp, shape (rows,).

    A batch run scores a prediction once: null. An online run, which is a node's day, may score it again: the moment. (Not the
    request id, which an erasure takes away.)
    """
    online = pc.is_null(rows.column("source_snapshot"))
    return pc.if_else(online, rows.column("scored_at"), pa.scalar(None, _UTC))


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


def with_texts(table: pa.Table, feature_set: Callable[[str], FeatureSet]) -> pa.Table:
    """The table with `feature_texts` in the place of the map that an earlier release wrote, if it has that.

    Args:
        table: With `feature_set_version`, where it has the map.
        feature_set: The feature set of a version.
    """
    if TEXT_MAP not in table.column_names:
        return table
    found = [
        None if texts is None else [dict(texts).get(name) for name in feature_set(version).textual]
        for texts, version in zip(
            table.column(TEXT_MAP).to_pylist(), table.column("feature_set_version").to_pylist(), strict=True
        )
    ]
    lists: pa.Array | pa.ChunkedArray = pa.array(found, AUDIT_SCHEMA.field("feature_texts").type)
    if "feature_texts" in table.column_names:  # files of two releases, merged
        known = table.column("feature_texts").to_pylist()
        lists = pa.array([new or old for new, old in zip(known, found, strict=True)], lists.type)
        table = table.drop_columns(["feature_texts"])
    return table.drop_columns([TEXT_MAP]).append_column("feature_texts", lists)


def feature_sets(store: ObjectStore) -> Callable[[str], FeatureSet]:
    """`read_feature_set` of this store, which reads each version once."""
    return cache(lambda version: read_feature_set(store, version))


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
    names = known.textual
    n, width = features.num_rows, len(names)
    kind = AUDIT_SCHEMA.field("feature_texts").type
    if not width:
        return pa.array([[]] * n, kind)
    # Interleave: row after row, feature after feature.
    order = (np.arange(n)[:, None] + np.arange(width)[None, :] * n).reshape(-1)
    items = pa.concat_arrays([features.column(name).combine_chunks() for name in names])
    offsets = pa.array(np.arange(0, n * width + 1, width, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, items.take(pa.array(order)).cast(pa.string()), type=kind)


def _where(where: npt.NDArray[np.bool_], values: Floats) -> pa.Array:
    """float32, shape (n,): the k `values` at the k places where `where`, shape (n,); else null."""
    whole = np.zeros(len(where), np.float32)
    whole[where] = values
    return pa.array(whole, pa.float32(), mask=~where)
