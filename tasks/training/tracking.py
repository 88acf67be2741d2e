"""The MLflow side of a training: one finished run for each `training_id`, worth browsing.

MLflow is a view here. What scoring needs is the bundle in the store; this run shows it to people.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core.errors import ServiceUnavailable
from tasks.core.mlflow_login import login_refused, mlflow_login, not_permitted
from tasks.core.mlflow_rest import MlflowRest
from tasks.core.records import Snapshot
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.model.scorer import Scorer
from tasks.training.dataset import TrainingData
from tasks.training.experiments import ensure_experiment
from tasks.training.fit import Fitted

logger = logging.getLogger(__name__)

TRAINING_TAG = "penstock.training_id"
MODEL_URI_TAG = "penstock.model_uri"

_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that is down must be reported in seconds; Airflow's retries are the patient ones.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}
_FIRST_ANSWER_S = 30.0


@dataclass(frozen=True)
class Tracked:
    """Where MLflow shows a training."""

    run_id: str
    experiment_id: str
    model_uri: str


def check_tracking(settings: Settings) -> None:
    """Return when MLflow answers, and lets us in.

    One that is not there is told from one that has just started: on a busy machine the first question that needs a login took more than 10 s.

    Raises:
        ConfigError: It refuses the login.
        ServiceUnavailable: It does not answer; the URL is named.
    """
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        httpx.get(f"{settings.mlflow_url}/health", timeout=5, trust_env=False).raise_for_status()
        asked = httpx.get(  # /health answers anybody
            f"{settings.mlflow_url}/api/2.0/mlflow/experiments/search",
            params={"max_results": 1},
            auth=mlflow_login(),
            timeout=httpx.Timeout(_FIRST_ANSWER_S, connect=5),
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise _unavailable(settings, str(error) or type(error).__name__) from error
    if asked.status_code == 401:
        raise login_refused(settings.mlflow_url, user=_user())


def track(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    data: TrainingData,
    fitted: Fitted,
    scorer: Scorer,
    metrics: dict[str, float],
    *,
    validation_scores: npt.NDArray[np.float32],
    store_url: str,
) -> Tracked:
    """Log the training, or find the finished run that an earlier attempt logged.

    An unfinished run of an earlier attempt is deleted, so a crash never leaves two runs for one training.

    Raises:
        ServiceUnavailable: MLflow does not answer.
    """
    with _mlflow(settings) as mlflow:
        with MlflowRest(settings.mlflow_url) as rest:
            experiment_id = ensure_experiment(rest, spec).experiment_id
        client = mlflow.MlflowClient(settings.mlflow_url)
        training_id = scorer.bundle.manifest.training_id
        found = _find_run(client, experiment_id, training_id)
        if found is not None:
            logger.info("MLflow run %s shows this training already", found.run_id)
            return found
        tags = _tags(spec, snapshot, scorer, data)
        run = client.create_run(experiment_id, run_name=f"{spec.name} {training_id[:8]}", tags=tags)
        run_id: str = run.info.run_id
        try:
            _log_numbers(client, run_id, spec, snapshot, data, fitted, metrics, store_url)
            _log_documents(client, run_id, spec, snapshot, data, fitted, scorer, metrics, validation_scores)
            model_uri = _log_model(run_id, spec, scorer)
            client.set_tag(run_id, MODEL_URI_TAG, model_uri)
        except BaseException:
            with _ignoring_errors():
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    logger.info("MLflow run %s/#/experiments/%s/runs/%s", settings.mlflow_url, experiment_id, run_id)
    return Tracked(run_id, experiment_id, model_uri)


@contextmanager
def _mlflow(settings: Settings) -> Iterator[Any]:
    """The mlflow module, quiet and impatient; its connection errors as `ServiceUnavailable`, refusals as `ConfigError`."""
    check_tracking(settings)
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        import mlflow
        import requests
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        mlflow.set_tracking_uri(settings.mlflow_url)
        try:
            yield mlflow
        except (MlflowException, requests.RequestException) as error:
            if getattr(error, "error_code", None) == "PERMISSION_DENIED":
                raise not_permitted(settings.mlflow_url, user=_user()) from error
            raise _unavailable(settings, str(error).splitlines()[0]) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _user() -> str | None:
    login = mlflow_login()
    return login[0] if login else None


def _unavailable(settings: Settings, reason: str) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"MLflow does not answer as it should: {reason}",
        which=settings.mlflow_url,
        fix="start it (`make up`) or correct PENSTOCK_MLFLOW_URL, then run again: nothing is trained twice",
    )


@contextmanager
def _ignoring_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the error that brought us here is the one to show
        logger.warning("could not mark the MLflow run as failed: %s", error)


def _find_run(client: Any, experiment_id: str, training_id: str) -> Tracked | None:
    runs = client.search_runs([experiment_id], filter_string=f"tags.`{TRAINING_TAG}` = '{training_id}'")
    for run in runs:
        if run.info.status == "FINISHED" and MODEL_URI_TAG in run.data.tags:
            return Tracked(run.info.run_id, experiment_id, run.data.tags[MODEL_URI_TAG])
    for run in runs:
        logger.info("removing MLflow run %s of an attempt that did not finish", run.info.run_id)
        client.delete_run(run.info.run_id)
    return None


def _tags(spec: PipelineSpec, snapshot: Snapshot, scorer: Scorer, data: TrainingData) -> dict[str, str]:
    return {
        "mlflow.user": spec.owner,
        "mlflow.source.name": f"pipelines/{spec.name}",
        "mlflow.source.type": "PROJECT",
        TRAINING_TAG: scorer.bundle.manifest.training_id,
        "penstock.pipeline": spec.name,
        "penstock.owner": spec.owner,
        "penstock.snapshot_id": snapshot.snapshot_id,
        "penstock.feature_version": scorer.feature_version,
        "penstock.bundle_digest": scorer.digest,
        "penstock.background_id": scorer.background_id,
        "penstock.train_days": f"{data.train_days[0].day}..{data.train_days[-1].day}",
        "penstock.validation_days": f"{data.validation_days[0].day}..{data.validation_days[-1].day}",
    }


def _log_numbers(
    client: Any,
    run_id: str,
    spec: PipelineSpec,
    snapshot: Snapshot,
    data: TrainingData,
    fitted: Fitted,
    metrics: dict[str, float],
    store_url: str,
) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, Param

    params = {
        **spec.training.model_dump(mode="json"),
        "features_numeric": len(spec.features.numeric),
        "features_categorical": len(spec.features.categorical),
        "encoded_columns": data.encoder.width,
        "tuning_first_day": data.tuning_first_day,
        "best_epoch": fitted.best_epoch,
    }
    now = int(time.time() * 1000)
    points = [Metric(name, value, now, 0) for name, value in metrics.items()]
    points += [
        Metric(f"epoch_{name}", getattr(item, name), now, item.epoch)
        for item in fitted.history
        for name in ("train_loss", "tuning_loss", "tuning_auc", "wall_s")
    ]
    client.log_batch(
        run_id, metrics=points, params=[Param(name, str(value)) for name, value in params.items()]
    )
    dataset = MetaDataset(
        CodeDatasetSource({"penstock.store": store_url, "penstock.snapshot": snapshot.snapshot_id}),
        name=f"{spec.name} snapshot",
        digest=snapshot.snapshot_id,
    )
    entity = dataset._to_mlflow_entity()
    profile = {"rows": snapshot.rows, "days": len(snapshot.days)}
    entity = type(entity)(
        entity.name, entity.digest, entity.source_type, entity.source, entity.schema, json.dumps(profile)
    )
    client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


def _log_documents(
    client: Any,
    run_id: str,
    spec: PipelineSpec,
    snapshot: Snapshot,
    data: TrainingData,
    fitted: Fitted,
    scorer: Scorer,
    metrics: dict[str, float],
    scores: npt.NDArray[np.float32],
) -> None:
    from tasks.training.figures import calibration_figure, loss_figure, precision_recall_figure, roc_figure
    from tasks.training.model_card import model_card

    labels = data.validation.y
    client.log_figure(run_id, roc_figure(scores, labels), "figures/roc.png")
    client.log_figure(run_id, precision_recall_figure(scores, labels), "figures/precision_recall.png")
    client.log_figure(run_id, calibration_figure(scores, labels), "figures/calibration.png")
    client.log_figure(run_id, loss_figure(fitted.history, fitted.best_epoch), "figures/loss.png")
    card = model_card(
        spec,
        snapshot,
        scorer.bundle.manifest,
        data,
        fitted,
        metrics,
        bundle_digest=scorer.digest,
        explainer=scorer.explainer,
    )
    client.log_text(run_id, card, "model_card.md")
    client.set_tag(run_id, "mlflow.note.content", card)
    client.log_artifacts(run_id, str(scorer.bundle.folder), "bundle")


def _log_model(run_id: str, spec: PipelineSpec, scorer: Scorer) -> str:
    """The calibrated network as a `torch.export` program: encoded matrix in, probabilities out."""
    import mlflow
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    width = scorer.encoder.width
    example = scorer.golden_encoded()[:5]
    if len(example) == 1:  # torch.export takes a batch of one for a constant
        example = np.repeat(example, 2, axis=0)
    kind = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, width))]), outputs=Schema([TensorSpec(kind, (-1,))])
    )
    frameworks = scorer.bundle.manifest.frameworks
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pytorch.log_model(
            scorer.calibrated_network(),
            name=spec.name,
            signature=signature,
            input_example=np.array(example),
            pip_requirements=[f"torch=={frameworks['torch']}", f"numpy=={frameworks['numpy']}"],
            serialization_format="pt2",
            metadata={
                "bundle_digest": scorer.digest,
                "feature_version": scorer.feature_version,
                "features": list(scorer.feature_names),
            },
            tags={"penstock.bundle_digest": scorer.digest},
        )
    return str(info.model_uri)
