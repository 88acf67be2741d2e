"""One prediction's audit record: what every reader returns, and what the data contract promises."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.audit.rows import FeatureSet
from tasks.core.records import JsonRecord

SCHEMA_VERSION = "1.0"
"""Of `AuditRecord` (docs/audit.md: what may change under which number)."""


@dataclass(frozen=True)
class AuditRecord(JsonRecord):
    """Everything about one prediction.

    Of an erased prediction remain the identifiers of the prediction, its model and its run, and `erasure_id`; all
    that is about the entity is null or empty.
    """

    prediction_id: str
    """UUID of version 8, lower case: event time in milliseconds, then a hash of pipeline, entity and that time."""
    event_time: datetime
    """The moment that the prediction is about."""
    pipeline: str
    """Name of the pipeline."""
    entity_id: str | None
    """Values of the entity key, joined by `|`; null once erased."""
    prediction: float | None
    """The calibrated probability; null once erased."""
    model_version: int
    """Number of the registered version."""
    bundle_digest: str
    """SHA-256 of the model's bundle: weights, encoder, feature code, golden rows."""
    run_id: str
    """The scoring run."""
    shard_id: int
    """Number of the run's shard."""
    source_snapshot: str | None
    """The input snapshot; null for a prediction that was made online."""
    source_key: str | None
    """Key of the partition file; of an online prediction the id of its request."""
    source_row: int | None
    """Number of the row in that file, from 0."""
    feature_set_version: str
    """Names the list of features, their order and types."""
    feature_computation_version: str
    """Declared version and digest of the features.py that computed them."""
    feature_asof: datetime
    """The moment that the features are about."""
    features: dict[str, Any]
    """Value by feature name, as the model saw it: float, text or null."""
    attributions: dict[str, float] | None
    """Shift on the logit scale by feature name; None when the prediction was not explained. See `explanation`."""
    top_features: tuple[str, ...]
    """Names of the largest attributions by magnitude, largest first."""
    base_value: float | None
    """What the model says of the baseline."""
    residual: float | None
    """`base_value`, all `attributions` and `residual` add up to the logit of `prediction`."""
    explainer: str | None
    """The method; null when the prediction was not explained."""
    explainer_version: str | None
    """Of the method."""
    background_id: str | None
    """The baseline: the training averages that attributions count from."""
    attribution_bits: int | None
    """Bits of fraction that the attributions keep: they are off by 1 part in `2 ** (bits + 1)` at most."""
    explanation: str | None
    """`stored`; `top` when the cold tier kept the largest attributions and added the others to the residual; `computed` when
    it was not kept and was computed for this answer, by the recorded model from the recorded features; else null."""
    scored_at: datetime
    """When the prediction was made."""
    tier: str
    """`hot`, `warm` or `cold`."""
    erasure_id: str | None = None
    """The erasure that removed the data subject from this record."""
    superseded_runs: tuple[str, ...] = ()
    """Earlier runs that predicted this row too; ask for them by run id."""
    superseded_by: str | None = None
    """The newest run that predicted this row, when it is not this one."""
    schema_version: str = SCHEMA_VERSION
    """Version of this record's contract: major, which consumers must know, and minor."""


@dataclass(frozen=True)
class AuditPage(JsonRecord):
    """One page of a window, in order of prediction id."""

    records: tuple[AuditRecord, ...]
    """At most as many as were asked for."""
    cursor: str | None
    """Pass it to get the next page; None on the last one."""


def record_of(
    row: dict[str, Any],
    features: FeatureSet,
    *,
    top_k: int,
    older: tuple[str, ...] = (),
    newest: str | None = None,
) -> AuditRecord:
    """The record of one row of the audit table.

    Args:
        row: Its columns as Python values, with its `tier` and, where it is not `stored`, its `explanation`.
        features: The feature set that the row names.
        top_k: How many names `top_features` has at most.
        older: Runs that predicted this row earlier.
        newest: The newest run that predicted it, when that is another.
    """
    attributions = row["attributions"]
    named = (
        None
        if attributions is None
        else {
            name: value for name, value in zip(features.names, attributions, strict=True) if value is not None
        }
    )
    return AuditRecord(
        prediction_id=row["prediction_id"],
        event_time=row["event_time"],
        pipeline=row["pipeline"],
        entity_id=row["entity_id"],
        prediction=row["prediction"],
        model_version=row["model_version"],
        bundle_digest=row["bundle_digest"],
        run_id=row["run_id"],
        shard_id=row["shard_id"],
        source_snapshot=row["source_snapshot"],
        source_key=row["source_key"],
        source_row=row["source_row"],
        feature_set_version=row["feature_set_version"],
        feature_computation_version=row["feature_computation_version"],
        feature_asof=row["feature_asof"] or row["event_time"],
        features=_values(row, features),
        attributions=named,
        top_features=largest(named or {}, top_k),
        base_value=row["base_value"],
        residual=row["residual"],
        explainer=row["explainer"],
        explainer_version=row["explainer_version"],
        background_id=row["background_id"],
        attribution_bits=row["attribution_bits"],
        explanation=row.get("explanation") or _kept_as(attributions),
        scored_at=row["scored_at"],
        tier=row["tier"],
        erasure_id=row["erasure_id"],
        superseded_runs=older,
        superseded_by=newest,
    )


def _kept_as(attributions: list[float | None] | None) -> str | None:
    """How a row of the table keeps its explanation: one that came back from the archive lacks elements."""
    if attributions is None:
        return None
    return "top" if None in attributions else "stored"


def largest(attributions: dict[str, float], k: int) -> tuple[str, ...]:
    """Names of the k largest attributions by magnitude, largest first; ties in feature order."""
    return tuple(sorted(attributions, key=lambda name: -abs(attributions[name]))[:k])


def _values(row: dict[str, Any], features: FeatureSet) -> dict[str, Any]:
    if row["feature_values"] is None:
        return {}
    values: dict[str, Any] = dict(zip(features.numeric, row["feature_values"], strict=True))
    values.update(zip(features.textual, row["feature_texts"], strict=True))
    return {name: values[name] for name in features.names}
