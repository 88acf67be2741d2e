"""A real MLflow server for the room, a real PostgreSQL beside SQLite, and a pipeline name of its own for each test."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import services
from database_fixtures import on_database, on_sqlite, postgres_url  # noqa: F401
from registry_support import Trained, trained_record

from tasks.core import PipelineSpec, Settings
from tasks.registry.mlflow_api import MlflowRegistry


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down in a test stays down: asking again at once is enough."""
    monkeypatch.setattr("tasks.core.mlflow_rest._PAUSE_S", 0.0)
    monkeypatch.setattr("tasks.registry.aliases._SECOND_LOOK_S", 0.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def without_mlflow(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """An installation on each database whose MLflow server is down."""
    settings = dataclasses.replace(settings, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    return on_database(request, settings)


@pytest.fixture
def with_mlflow(settings: Settings, mlflow_url: str) -> Settings:
    """An installation whose MLflow server is up."""
    return dataclasses.replace(on_sqlite(settings), mlflow_url=mlflow_url)


@pytest.fixture
def spec(toy: PipelineSpec) -> PipelineSpec:
    """The toy pipeline under a name that no other test uses: the MLflow server is shared."""
    return toy.model_copy(update={"name": f"toy_{uuid.uuid4().hex[:8]}"})


@pytest.fixture
def mlflow(with_mlflow: Settings) -> Iterator[MlflowRegistry]:
    with MlflowRegistry(with_mlflow.mlflow_url) as api:
        yield api


@pytest.fixture
def train(mlflow_url: str) -> Callable[[str], Trained]:
    """Makes an MLflow run with a logged model; the result is a TrainedModel as JSON, its digest from a letter."""

    def make(letter: str) -> Trained:
        with httpx.Client(base_url=f"{mlflow_url}/api/2.0/mlflow", timeout=30) as client:

            def post(path: str, body: dict[str, Any]) -> Any:
                return client.post(path, json=body).raise_for_status().json()

            run = post("runs/create", {"experiment_id": "0", "start_time": 1, "run_name": f"train {letter}"})
            run_id = run["run"]["info"]["run_id"]
            model = post("logged-models", {"experiment_id": "0", "name": "m", "source_run_id": run_id})
            model_id = model["model"]["info"]["model_id"]
            client.patch(
                f"logged-models/{model_id}", json={"model_id": model_id, "status": "LOGGED_MODEL_READY"}
            ).raise_for_status()
        return {**trained_record(letter), "mlflow_run_id": run_id, "mlflow_model_uri": f"models:/{model_id}"}

    return make
