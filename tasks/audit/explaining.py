"""Explanations on demand: attributions of a recorded prediction, by the recorded model from the recorded features."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from tasks.audit.record import AuditRecord, largest
from tasks.core.errors import DataError, DigestMismatch, FeaturesErased, FeaturesNotKept, NotFound
from tasks.core.object_store import open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

if TYPE_CHECKING:
    from tasks.model import Scorer

_ALL_BITS = 23
"""Of a float32's fraction: what is computed now is not rounded."""
_MODELS = 4
"""Recorded models that a process keeps loaded."""


def explain(settings: Settings, spec: PipelineSpec, record: AuditRecord) -> AuditRecord:
    """The record with the attributions of all features: computed now, when they are not stored.

    A record whose explanation is stored whole comes back as it is. Otherwise `explanation` is `computed`, and
    explainer, background and bits are those of the computation.

    Args:
        settings: This installation.
        spec: The pipeline.
        record: What `by_prediction` answered.

    Raises:
        FeaturesErased, FeaturesNotKept: The record has no features to compute from.
        NotFound: The recorded model bundle is gone.
        DigestMismatch: The bundle is damaged, this machine does not compute what was trained, or the recorded model
            gives the recorded features another score than the recorded one.
    """
    from tasks.model.scorer import BFLOAT16_TOLERANCE

    if record.explanation in ("stored", "computed"):
        return record
    features = recorded_features(record)
    model = recorded_model(settings, spec, record)
    encoded = model.encode(features)
    score = float(model.predict(encoded)[0])
    # The run may have scored in bfloat16: anything closer than that is this prediction.
    if record.prediction is None or not abs(score - record.prediction) <= BFLOAT16_TOLERANCE:
        raise DigestMismatch(
            f"the recorded model gives {score:.6g} for the recorded features, the record says {record.prediction}",
            which=record.prediction_id,
            fix=f"nothing was explained; `penstock audit reproduce {spec.name} {record.prediction_id}` says what differs",
        )
    found = model.explain(encoded)
    values = {
        name: float(value) for name, value in zip(model.feature_names, found.attributions[0], strict=True)
    }
    return replace(
        record,
        attributions=values,
        top_features=largest(values, spec.explanations.top_k),
        base_value=float(found.base_value),
        residual=float(found.residual[0]),
        explainer=model.explainer,
        explainer_version=model.explainer_version,
        background_id=model.background_id,
        attribution_bits=_ALL_BITS,
        explanation="computed",
    )


def recorded_model(settings: Settings, spec: PipelineSpec, record: AuditRecord) -> Scorer:
    """The model that the record names by digest, verified, its golden rows replayed.

    Raises:
        NotFound: Its bundle is gone.
        DigestMismatch: Its bundle is damaged, or this machine does not compute what was trained (I9).
        DataError: Its features are not those of the record.
    """
    try:
        model = _model(settings, spec.prefix, record.bundle_digest)
    except NotFound as error:
        raise NotFound(
            f"the model of {record.prediction_id} (version {record.model_version}) is gone",
            which=error.which,
            fix="restore the bundle from a backup: it alone can compute this prediction again",
        ) from error
    names = set(model.feature_names)
    if names != set(record.features):
        odd = ", ".join(sorted(names ^ set(record.features)))
        raise DataError(
            f"has other features than model version {record.model_version}: {odd}",
            which=record.prediction_id,
            fix="the audit row or its feature set was changed: restore them from a backup",
        )
    return model


@lru_cache(maxsize=_MODELS)
def _model(settings: Settings, prefix: str, digest: str) -> Scorer:
    from tasks.model import Scorer, fetch_bundle

    scorer = Scorer(fetch_bundle(open_store(settings, prefix=prefix), digest, settings.cache_dir))
    scorer.check_golden()
    return scorer


def recorded_features(record: AuditRecord) -> pa.Table:
    """The record's features as one row, float64 and string.

    Raises:
        FeaturesErased, FeaturesNotKept: There are none.
    """
    if record.erasure_id is not None:
        raise FeaturesErased(
            f"its features were erased (erasure {record.erasure_id})",
            which=record.prediction_id,
            fix="nothing can be computed from them any more; the record says which model and run it was",
        )
    if not record.features:
        raise FeaturesNotKept(
            f"its feature values are not kept in the {record.tier} tier",
            which=record.prediction_id,
            fix="restore its day if a backup has it; keep values longer in `explanations` of pipeline.yaml",
        )
    return pa.table(
        {
            name: pa.array([value], pa.string() if isinstance(value, str) else pa.float64())
            for name, value in record.features.items()
        }
    )
