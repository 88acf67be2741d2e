"""Buttons on a task instance that lead to what the task made.

An operator fills `self.links` while it runs; Airflow stores each link as an XCom when the task process ends, in
success and in failure, and the UI reads it from there. No code of ours runs in the API server for a button.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import quote

import attrs
from airflow.sdk import BaseOperatorLink

from tasks.core.settings import Settings

PAGES = "/penstock"
"""Where the plugin's pages are mounted on Airflow's API server."""


@attrs.define
class _StoredLink(BaseOperatorLink):
    label: ClassVar[str] = ""
    key: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return self.label

    @property
    def xcom_key(self) -> str:
        return f"_link_{self.key}"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  (Airflow's signature)
        return getattr(operator, "links", {}).get(self.key, "")


@attrs.define
class MlflowRunLink(_StoredLink):
    """The training run in MLflow."""

    label = "MLflow run"
    key = "mlflow_run"


@attrs.define
class ModelVersionLink(_StoredLink):
    """The registered model version in MLflow."""

    label = "MLflow model version"
    key = "model_version"


@attrs.define
class ValidationReportLink(_StoredLink):
    """The data gate's report."""

    label = "Validation report"
    key = "validation_report"


@attrs.define
class EvaluationReportLink(_StoredLink):
    """The evaluation gate's report."""

    label = "Evaluation report"
    key = "evaluation_report"


@attrs.define
class DriftReportLink(_StoredLink):
    """The monitor's report."""

    label = "Drift report"
    key = "drift_report"


@attrs.define
class RayJobLink(_StoredLink):
    """The job in the Ray dashboard."""

    label = "Ray job"
    key = "ray_job"


@attrs.define
class StartedRunLink(_StoredLink):
    """The DAG run that the task has started."""

    label = "Started run"
    key = "started_run"


LINKS: tuple[type[_StoredLink], ...] = (
    MlflowRunLink,
    ModelVersionLink,
    ValidationReportLink,
    EvaluationReportLink,
    DriftReportLink,
    RayJobLink,
    StartedRunLink,
)

STEP_LINKS: Mapping[str, tuple[type[_StoredLink], ...]] = {
    "validate_snapshot": (ValidationReportLink,),
    "train_model": (RayJobLink, MlflowRunLink),
    "evaluate_model": (EvaluationReportLink,),
    "gate_model": (EvaluationReportLink,),
    "register_model": (ModelVersionLink, EvaluationReportLink),
    "promote_model": (ModelVersionLink,),
    "score_run": (RayJobLink,),
    "report_window": (DriftReportLink,),
}
"""Which buttons a step has."""


def operator_links(step: str) -> tuple[_StoredLink, ...]:
    """The link objects for an operator that runs `step`."""
    return tuple(link() for link in STEP_LINKS.get(step, ()))


def report_url(settings: Settings, pipeline: str, key: str) -> str:
    """Where the plugin serves the report `key` of `pipeline`'s store."""
    return f"{settings.airflow_url}{PAGES}/report/{quote(pipeline)}/{quote(key)}"


def run_page_url(settings: Settings, dag_id: str, run_id: str) -> str:
    """The evidence page of a DAG run."""
    return f"{settings.airflow_url}{PAGES}/run/{quote(dag_id, safe='')}/{quote(run_id, safe='')}"


def dag_run_url(settings: Settings, dag_id: str, run_id: str) -> str:
    """The DAG run in Airflow's own UI."""
    return f"{settings.airflow_url}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def ray_job_url(jobs_url: str, submission_id: str) -> str:
    """The job's page in the Ray dashboard."""
    return f"{jobs_url}/#/jobs/{submission_id}"


def links_of(
    settings: Settings,
    pipeline: str,
    step: str,
    arguments: Mapping[str, Any],
    result: Mapping[str, Any],
    *,
    model_name: str = "",
) -> dict[str, str]:
    """URLs by link key, as far as `arguments` and `result` tell them.

    Reports have known keys in the store, so a gate that fails is linked to its report as well: `result` is then
    empty and the arguments are enough.
    """
    found: dict[str, str] = {}
    report_key = result.get("report_key")
    if step == "validate_snapshot":
        report_key = report_key or f"validation/{arguments.get('snapshot_id')}/report.html"
        found["validation_report"] = report_url(settings, pipeline, report_key)
    elif step in ("gate_model", "register_model") and arguments.get("evaluation_key"):
        beside = PurePosixPath(str(arguments["evaluation_key"])).with_name("report.html")
        found["evaluation_report"] = report_url(settings, pipeline, str(beside))
    elif step == "evaluate_model" and report_key:
        found["evaluation_report"] = report_url(settings, pipeline, report_key)
    elif step == "report_window" and report_key:
        found["drift_report"] = report_url(settings, pipeline, report_key)
    if step == "train_model" and result.get("mlflow_run_id"):
        found["mlflow_run"] = f"{settings.mlflow_url}/#/runs/{result['mlflow_run_id']}"
    if step == "register_model" and str(result.get("url", "")).startswith(("http://", "https://")):
        found["model_version"] = str(result["url"])
    if step == "promote_model" and (version := result.get("version", arguments.get("version"))) is not None:
        found["model_version"] = (
            f"{settings.mlflow_url}/#/models/{quote(model_name or pipeline)}/versions/{version}"
        )
    return found
