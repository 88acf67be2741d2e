"""A pipeline's registered model in MLflow."""

from __future__ import annotations

from tasks.core.mlflow_rest import AlreadyExists, MlflowRest, tag_list
from tasks.core.mlflow_users import MODEL, hand_to_tenant
from tasks.core.spec import PipelineSpec
from tasks.registry import cards


def ensure_model(mlflow: MlflowRest, spec: PipelineSpec) -> bool:
    """Make it where there is none, for the tenant's user to manage as well; whether there was none.

    An existing description, maybe a person's, stays. Nobody asks whether it is there first: of a model that is not
    there, MLflow tells those alone who may see all.
    """
    body = {
        "name": spec.model_name,
        "description": cards.model_card(spec),
        "tags": tag_list(cards.model_tags(spec)),
    }
    try:
        mlflow.call("POST", "registered-models/create", json=body)
    except AlreadyExists:
        return False
    hand_to_tenant(mlflow, spec.tenant, MODEL, spec.model_name)
    return True
