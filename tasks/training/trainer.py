"""Training from snapshot to bundle and MLflow run."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import DataError, DigestMismatch, NotFound, PipelineCodeError
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.records import Snapshot
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, pipeline_folder
from tasks.model.bundle import (
    GOLDEN_ROWS,
    Bundle,
    BundleManifest,
    Calibration,
    background_id,
    golden_table,
    upload_bundle,
    weights_bytes,
    write_bundle,
)
from tasks.model.execution import predict
from tasks.model.feature_code import FeatureCode
from tasks.model.network import build_network
from tasks.model.profile import ProfileSpec
from tasks.model.scorer import Scorer
from tasks.training.dataset import Day, TrainingData, load_training_data
from tasks.training.fit import Checkpoints, Fitted, logits_of
from tasks.training.on_ray import clear_parts, fit_on_ray
from tasks.training.quality import headline, platt
from tasks.training.records import TrainedModel, training_id
from tasks.training.reference import reference_profiles
from tasks.training.tracking import Tracked, check_tracking, track

logger = logging.getLogger(__name__)

FitFunction = Callable[..., Fitted]
Workers = Callable[[str, Callable[[], float]], AbstractContextManager[None]]
"""(training id, wall seconds of the epochs that are kept) -> the workers to fit with, from entering until leaving."""
ShowFunction = Callable[..., Tracked]


@dataclass(frozen=True)
class _Code:
    """The user's two files."""

    features: FeatureCode
    model_source: str
    model_origin: str


def train(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    *,
    validation_first_day: date,
    clock: Clock = utc_now,
    fit: FitFunction = fit_on_ray,
    show: ShowFunction = track,
    workers: Workers = lambda _, __: nullcontext(),
) -> TrainedModel:
    """Train the pipeline's network on the days of `snapshot` before `validation_first_day`.

    Called again with equal inputs it returns the finished result; after a crash it continues from the last
    finished step (epoch, fitted network, MLflow run).

    Args:
        snapshot: Of kind `training`, validated.
        validation_first_day: From this local day on rows are held out.
        fit: `fit_on_ray`, or a function of its signature.
        show: `track`, which logs to MLflow, or a function of its signature; others need no MLflow.
        workers: Where somebody shares out the cluster: what gives the workers to fit with.

    Returns:
        What was trained; its bundle lies at `bundles/<bundle_digest>/` in the pipeline's store.

    Raises:
        DataError: The snapshot cannot be trained on: no days on one side, one-class labels, damaged files.
        PipelineCodeError: features.py or model.py fails; file and line are named.
        TerminalError: The loss is not finite.
        ServiceUnavailable: MLflow does not answer; asked before anything is trained.
        TransientError: Ray failed; call again to continue.
    """
    started = time.monotonic()
    store = open_store(settings, prefix=spec.prefix)
    code = _read_code(settings, spec)
    identity = training_id(
        spec,
        snapshot_id=snapshot.snapshot_id,
        feature_version=code.features.version,
        model_source=code.model_source,
        validation_first_day=validation_first_day,
    )
    finished = _finished(store, identity)
    if finished is not None:
        logger.info("training %s was finished before; bundle %s", identity, finished.bundle_digest[:16])
        return finished
    logger.info("training %s on snapshot %s", identity, snapshot.snapshot_id)
    if show is track:
        check_tracking(settings)
    if snapshot.kind != "training":
        raise DataError(
            f"is of kind {snapshot.kind}, which has no labels",
            which=f"snapshot {snapshot.snapshot_id}",
            fix="take a snapshot of kind training",
        )
    data = load_training_data(store, spec, snapshot, code.features, validation_first_day=validation_first_day)
    network = build_network(code.model_source, data.network, origin=code.model_origin)
    checkpoints = Checkpoints(store, identity)
    with workers(identity, checkpoints.worked_s) if checkpoints.load_fitted() is None else nullcontext():
        fitted = fit(
            settings,
            spec,
            data,
            training_id=identity,
            model_source=code.model_source,
            model_origin=code.model_origin,
        )
    network.load_state_dict(fitted.state_dict)
    network.eval()
    result = _package(settings, store, spec, snapshot, code, data, network, fitted, identity, clock, show)
    with suppress(AlreadyExists):  # then an equal training finished at the same time
        store.put_exclusive(_result_key(identity), json.dumps(result.to_json(), indent=1).encode())
    checkpoints.clear()
    clear_parts(store, identity)
    logger.info(
        "trained: bundle %s, validation AUC %.4f, ECE %.4f, %d epochs, %.1f s in all",
        *(result.bundle_digest[:16], result.metrics["validation_auc"], result.metrics["validation_ece"]),
        *(result.epochs, time.monotonic() - started),
    )
    return _finished(store, identity) or result


def _package(
    settings: Settings,
    store: ObjectStore,
    spec: PipelineSpec,
    snapshot: Snapshot,
    code: _Code,
    data: TrainingData,
    network: Any,
    fitted: Fitted,
    identity: str,
    clock: Clock,
    show: ShowFunction,
) -> TrainedModel:
    """Calibrate, measure, write and upload the bundle, log to MLflow."""
    network.load_state_dict(fitted.tuned)
    calibration = platt(logits_of(network, data.tuning.x), data.tuning.y)
    tuning_scores = predict(network, data.tuning.x, calibration)
    network.load_state_dict(fitted.state_dict)
    validation_scores = predict(network, data.validation.x, calibration)
    metrics = {
        **headline(validation_scores, data.validation.y, prefix="validation"),
        **headline(tuning_scores, data.tuning.y, prefix="tuning"),
        "fit_rows": float(len(data.fit.y)),
        "tuning_rows": float(len(data.tuning.y)),
        "validation_rows": float(len(data.validation.y)),
    }
    with tempfile.TemporaryDirectory(prefix="penstock-bundle-") as scratch:
        folder = Path(scratch, "bundle")
        manifest = _manifest(store, spec, snapshot, code, data, fitted, calibration, identity, clock)
        digest = _write(folder, manifest, spec, code, data, network, fitted)
        scorer = Scorer(Bundle.at(folder))
        _check_replay(scorer, code)
        upload_bundle(store, folder)
        logger.info("bundle %s uploaded to %s", digest[:16], store.url(f"bundles/{digest}"))
        tracked = show(
            settings,
            spec,
            snapshot,
            data,
            fitted,
            scorer,
            metrics,
            validation_scores=validation_scores,
            store_url=store.url(),
        )
    return TrainedModel(
        training_id=identity,
        pipeline=spec.name,
        bundle_digest=digest,
        mlflow_run_id=tracked.run_id,
        mlflow_experiment_id=tracked.experiment_id,
        mlflow_model_uri=tracked.model_uri,
        feature_version=code.features.version,
        snapshot_id=snapshot.snapshot_id,
        validation_first_day=data.validation_days[0].day,
        metrics=metrics,
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        train_s=sum(item.wall_s for item in fitted.history),
        workers=spec.training.workers,
        gpus_per_worker=spec.training.gpus_per_worker,
    )


def _manifest(
    store: ObjectStore,
    spec: PipelineSpec,
    snapshot: Snapshot,
    code: _Code,
    data: TrainingData,
    fitted: Fitted,
    calibration: Calibration,
    identity: str,
    clock: Clock,
) -> BundleManifest:
    import torch

    return BundleManifest(
        pipeline=spec.name,
        training_id=identity,
        snapshot_id=snapshot.snapshot_id,
        feature_version=code.features.version,
        network=data.network,
        calibration=calibration,
        label_rate=float(data.fit.y.mean()),
        train_first_day=data.train_days[0].day,
        train_last_day=data.train_days[-1].day,
        validation_first_day=data.validation_days[0].day,
        created_at_utc=_first_time(store, identity, clock),
        background_id=background_id(data.encoder, weights_bytes(fitted.state_dict)),
        frameworks={
            "torch": torch.__version__.split("+")[0],
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
    )


def _first_time(store: ObjectStore, identity: str, clock: Clock) -> str:
    """When this training was first packaged: a repeat after a crash must write the same bundle bytes."""
    key = f"training/{identity}/packaged_at_utc"
    with suppress(AlreadyExists):
        store.put_exclusive(key, iso_utc(clock()).encode())
    return store.get(key).decode()


def _write(
    folder: Path,
    manifest: BundleManifest,
    spec: PipelineSpec,
    code: _Code,
    data: TrainingData,
    network: Any,
    fitted: Fitted,
) -> str:
    def scores(features: pa.Table) -> Any:
        return predict(network, data.encoder.encode(features), manifest.calibration)

    train_features = pa.concat_tables(day.features for day in data.train_days)
    profile_spec = ProfileSpec.fit(train_features, scores(train_features), spec)
    reference = reference_profiles(spec, data, profile_spec, network, manifest.calibration)
    rows, features = _golden(data.validation_days)
    encoded = data.encoder.encode(features)
    return write_bundle(
        folder,
        manifest=manifest,
        spec=spec,
        feature_code=code.features,
        model_source=code.model_source,
        encoder=data.encoder,
        weights=weights_bytes(fitted.state_dict),
        golden=golden_table(rows, encoded, predict(network, encoded, manifest.calibration)),
        profile_spec=profile_spec,
        reference=reference,
    )


def _golden(days: tuple[Day, ...]) -> tuple[pa.Table, pa.Table]:
    """Source rows and features of at most `GOLDEN_ROWS` validation rows, evenly spaced over all of them."""
    rows = pa.concat_tables(day.rows for day in days)
    features = pa.concat_tables(day.features for day in days)
    picked = np.unique(np.linspace(0, rows.num_rows - 1, min(GOLDEN_ROWS, rows.num_rows)).astype(np.int64))
    return rows.take(pa.array(picked)), features.take(pa.array(picked))


def _check_replay(scorer: Scorer, code: _Code) -> None:
    """Golden rows scored alone must equal what they got among the rows of their day."""
    try:
        scorer.check_golden()
    except DigestMismatch as error:
        raise PipelineCodeError(
            f"features(rows) depends on which other rows come with a row ({error.what})",
            which=code.features.origin,
            fix="compute each row's features from that row alone; scoring splits a day into shards",
        ) from error


def _read_code(settings: Settings, spec: PipelineSpec) -> _Code:
    folder = pipeline_folder(settings, spec.name)
    model = folder / "model.py"
    try:
        source = model.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineCodeError(
            f"cannot be read: {error}", which=str(model), fix="create it with def build(spec) -> nn.Module"
        ) from error
    return _Code(FeatureCode.from_file(folder / "features.py"), source, str(model))


def _result_key(identity: str) -> str:
    return f"training/{identity}/result.json"


def _finished(store: ObjectStore, identity: str) -> TrainedModel | None:
    try:
        return TrainedModel.from_json(json.loads(store.get(_result_key(identity))))
    except NotFound:
        return None
