"""A pipeline's experiment in MLflow, which has the name of its registered model."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.core.errors import NotFound
from tasks.core.mlflow_rest import AlreadyExists, MlflowRest, tag_list
from tasks.core.mlflow_users import EXPERIMENT, hand_to_tenant
from tasks.core.spec import PipelineSpec


@dataclass(frozen=True)
class Experiment:
    """One experiment, and whether this call has made it."""

    experiment_id: str
    made: bool


def ensure_experiment(mlflow: MlflowRest, spec: PipelineSpec) -> Experiment:
    """The pipeline's experiment; made where there is none, for the tenant's user to manage as well."""
    try:
        return Experiment(_id_of(mlflow, spec), made=False)
    except NotFound:
        pass
    tags = {
        "mlflow.note.content": spec.description,
        "penstock.pipeline": spec.name,
        "owner": spec.owner,
        "mlflow.experimentKind": "custom_model_development",
    }
    try:
        made = mlflow.call(
            "POST", "experiments/create", json={"name": spec.model_name, "tags": tag_list(tags)}
        )
    except AlreadyExists:  # made by another process in between
        return Experiment(_id_of(mlflow, spec), made=False)
    experiment_id = str(made["experiment_id"])
    hand_to_tenant(mlflow, spec.tenant, EXPERIMENT, experiment_id)
    return Experiment(experiment_id, made=True)


def _id_of(mlflow: MlflowRest, spec: PipelineSpec) -> str:
    found = mlflow.call("GET", "experiments/get-by-name", params={"experiment_name": spec.model_name})
    return str(found["experiment"]["experiment_id"])
