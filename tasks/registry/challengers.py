"""Registering a gated model as challenger: one version for one bundle, however often it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tasks.core.clock import Clock, utc_now
from tasks.core.errors import (
    DigestMismatch,
    GateFailed,
    NotFound,
    ServiceUnavailable,
    TerminalError,
)
from tasks.core.records import Verdict
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.metadata.records import ModelVersion
from tasks.metadata.store import MetadataStore
from tasks.registry import cards
from tasks.registry.aliases import project
from tasks.registry.mlflow_api import MlflowRegistry
from tasks.registry.registered_model import ensure_model

BUNDLE_TAG = "penstock.bundle_digest"
_MOST_RETIRED_NUMBERS = 1000
_log = logging.getLogger(__name__)


def register_challenger(
    settings: Settings,
    spec: PipelineSpec,
    trained: Mapping[str, Any],
    verdict: Verdict,
    links: Mapping[str, str],
    *,
    clock: Clock = utc_now,
) -> ModelVersion:
    """Make a trained and gated model a version in MLflow and in the metadata store, alias `challenger`.

    Idempotent by bundle digest: a repeat, also after a crash at any point, returns the same version.

    Args:
        trained: A TrainedModel as JSON.
        verdict: The evaluation gate's verdict on this bundle.
        links: Label -> URL of where to look further (Airflow run, reports); empty URLs are left out.

    Raises:
        GateFailed: The verdict is not a pass.
        DigestMismatch: The verdict is about another bundle.
        NotFound: The MLflow run or logged model does not exist.
        ServiceUnavailable: MLflow or the database does not answer; run it again.
    """
    digest = str(trained["bundle_digest"])
    _require_pass(spec, verdict, digest)
    store = MetadataStore.open(settings, clock=clock)
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        known = store.model_version_of_bundle(spec, digest)
        if known is None:
            known = _register(store, mlflow, spec, trained, verdict, links, clock=clock)
        else:
            _log.info("%s version %d is registered already", spec.name, known.version)
        project(store, mlflow, spec)
    return known


def _require_pass(spec: PipelineSpec, verdict: Verdict, digest: str) -> None:
    if verdict.subject != digest:
        raise DigestMismatch(
            f"the verdict given is about {verdict.subject}",
            which=f"{spec.name} bundle {digest}",
            fix="evaluate and gate this very bundle, then register it",
        )
    if not verdict.passed:
        raise GateFailed(
            f"the {verdict.gate} gate says {verdict.outcome}: " + "; ".join(verdict.reasons()),
            which=f"{spec.name} bundle {digest}",
            fix="read the evaluation report, then change the data, the features or the model",
        )


def _register(
    store: MetadataStore,
    mlflow: MlflowRegistry,
    spec: PipelineSpec,
    trained: Mapping[str, Any],
    verdict: Verdict,
    links: Mapping[str, str],
    *,
    clock: Clock,
) -> ModelVersion:
    name = spec.model_name
    digest = str(trained["bundle_digest"])
    shown = {label: url for label, url in links.items() if url}
    if trained.get("mlflow_run_id"):
        shown.setdefault("MLflow run", mlflow.run_url(trained["mlflow_run_id"]))
    card = cards.version_card(trained, verdict, shown)
    tags = cards.version_tags(spec, trained, verdict, shown)
    ensure_model(mlflow, spec)

    # A tagged version without a record: a crash came between MLflow and the metadata store, or another process is
    # registering the same bundle right now. Its card and tags came with it in one call, so it is complete.
    number = _unrecorded(store, spec, mlflow.versions_with_tag(name, BUNDLE_TAG, digest))
    if number is None:
        number = _create(store, mlflow, spec, trained, description=card, tags=tags)
        _log.info("%s: created version %d in MLflow", spec.name, number)
    kept = store.record_model_version(
        spec,
        ModelVersion(
            version=number,
            bundle_digest=digest,
            feature_version=trained["feature_version"],
            snapshot_id=trained["snapshot_id"],
            training_id=trained["training_id"],
            mlflow_model_name=name,
            mlflow_run_id=trained.get("mlflow_run_id"),
            mlflow_model_uri=trained.get("mlflow_model_uri"),
            url=mlflow.version_url(name, number),
            created_at_utc=clock(),
            metrics=dict(trained.get("metrics") or {}),
        ),
    )
    if kept.version != number:  # another process was first
        mlflow.delete_version(name, number)
    return kept


def _unrecorded(store: MetadataStore, spec: PipelineSpec, numbers: list[int]) -> int | None:
    return next((number for number in numbers if store.model_version(spec, number) is None), None)


def _create(
    store: MetadataStore,
    mlflow: MlflowRegistry,
    spec: PipelineSpec,
    trained: Mapping[str, Any],
    *,
    description: str,
    tags: Mapping[str, str],
) -> int:
    """A version with a number never used before.

    MLflow counts from 1 again when the registered model or its database was deleted, but the log's versions keep
    their numbers for ever: such a number is used up. (MLflow keeps the number of a deleted version.)
    """
    source = trained.get("mlflow_model_uri")
    if not source:
        raise TerminalError(
            "has no model in MLflow",
            which=f"{spec.name} training {trained['training_id']}",
            fix="train again with MLflow running, so that the model is logged",
        )
    for _ in range(_MOST_RETIRED_NUMBERS):
        try:
            number = mlflow.create_version(
                spec.model_name,
                source=source,
                run_id=trained.get("mlflow_run_id"),
                description=description,
                tags=tags,
            )
        except ServiceUnavailable as error:
            raise ServiceUnavailable(
                error.what,
                which=error.which,
                fix=f"{error.fix}: if MLflow made the version after all, the repeat finds it by its tags",
            ) from error
        taken = store.model_version(spec, number)
        if taken is None or taken.bundle_digest == trained["bundle_digest"]:
            return number  # recorded for this bundle already: another process found the version by its tags
        mlflow.delete_version(spec.model_name, number)
    raise NotFound(
        f"gave out {_MOST_RETIRED_NUMBERS} version numbers that were used before",
        which=f"MLflow registered model {spec.model_name}",
        fix="restore MLflow's database, or point PENSTOCK_MLFLOW_URL at the server that holds this model",
    )
