"""What a task hands over: its span and its lineage run reach the process of its job."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow_fakes import FakeRay, context_of
from receivers import Receiver, receiving

from plugins.ray_job import PenstockRayJobOperator
from plugins.seen import with_lineage_parent
from plugins.steps import PenstockStepOperator
from tasks.core import Settings


@pytest.fixture
def receiver(installed: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as found:
        monkeypatch.setenv("PENSTOCK_OTLP_URL", found.url)
        monkeypatch.setenv("PENSTOCK_LINEAGE", found.url)
        yield found


def in_airflow(**kwargs: Any) -> dict[str, Any]:
    """A task's context whose instance knows its DAG run, as Airflow's does."""
    context = context_of(**kwargs)
    moment = datetime(2024, 3, 1, tzinfo=UTC)
    run = SimpleNamespace(logical_date=moment, run_after=moment, clear_number=0, conf={})
    context["ti"].get_template_context = lambda: {"dag_run": run}
    context["ti"].task = SimpleNamespace(task_id="model.train", dag=SimpleNamespace(dag_id="toy.train"))
    return context


def test_a_jobs_spans_and_lineage_belong_to_the_task_that_submitted_it(
    receiver: Receiver, ray_api: FakeRay, installed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_RAY_JOBS_URL", ray_api.url)
    operator = PenstockRayJobOperator(task_id="model.train", step="list_cases", pipeline="toy", arguments={})
    with pytest.raises(TaskDeferred):
        operator.execute(in_airflow())
    (submitted,) = ray_api.submitted
    done = subprocess.run(
        shlex.split(submitted["entrypoint"]),
        env={**os.environ, **submitted["runtime_env"]["env_vars"]},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent, step = receiver.span("submit Ray job"), receiver.span("step list_cases")
    assert (step.trace_id, step.parent_id) == (sent.trace_id, sent.span_id)
    assert sent.attributes["penstock.dag_id"] == "toy.train" and sent.attributes["penstock.try_number"] == 1
    parent = next(event for event in receiver.events if event["eventType"] == "COMPLETE")["run"]["facets"][
        "parent"
    ]
    assert parent["job"]["name"] == "toy.train.model.train"
    root = parent["root"]
    assert (root["job"]["namespace"], root["job"]["name"]) == (parent["job"]["namespace"], "toy.train")
    assert uuid.UUID(parent["run"]["runId"]) != uuid.UUID(root["run"]["runId"])


def test_a_step_in_the_tasks_own_process_is_a_child_of_the_tasks_span(
    receiver: Receiver, installed: Settings
) -> None:
    PenstockStepOperator(task_id="cases", step="list_cases", pipeline="toy", arguments={}).execute(
        in_airflow()
    )
    task, step = receiver.span("task cases"), receiver.span("step list_cases")
    assert (step.trace_id, step.parent_id, task.parent_id) == (task.trace_id, task.span_id, "")


def test_a_task_whose_run_is_not_known_goes_on_without_a_parent(
    receiver: Receiver, installed: Settings
) -> None:
    settings = Settings.from_environment()
    assert with_lineage_parent(settings, SimpleNamespace()) == settings
    PenstockStepOperator(task_id="cases", step="list_cases", pipeline="toy", arguments={}).execute(
        context_of()
    )
    assert "parent" not in receiver.events[-1]["run"]["facets"]


def test_the_provider_is_installed_and_silent_until_a_transport_is_configured() -> None:
    code = "from airflow.providers.openlineage import conf; print(conf.is_disabled())"
    quiet = {name: value for name, value in os.environ.items() if "OPENLINEAGE" not in name}
    told = {**quiet, "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": "x"})}
    for env, expected in ((quiet, "True"), (told, "False")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().splitlines()[-1] == expected
