"""The parts of Airflow that import what the processes need that they fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plugins import preloaded
from tasks.core import Settings
from tasks.local.embedded import services

HEAVY = "torch ray mlflow great_expectations pandas sklearn matplotlib scipy captum s3fs botocore"


def test_the_scheduler_has_imported_what_each_step_that_runs_in_a_task_process_needs(
    installed: Settings,
) -> None:
    from plugins.pipeline_dags import build_all, maintenance_dag
    from plugins.steps import PenstockStepOperator
    from tasks.wiring import _STEPS

    dags = [*build_all(installed)[0].values(), maintenance_dag(installed)]
    steps = {task.step for dag in dags for task in dag.tasks if isinstance(task, PenstockStepOperator)}
    assert len(steps) > 15
    assert {f"tasks.wiring.{_STEPS[step]}" for step in steps} <= set(preloaded.PARTS["scheduler"])


@pytest.mark.parametrize("part", preloaded.PARTS)
def test_a_part_imports_no_heavy_library_and_opens_no_connection(installed: Settings, part: str) -> None:
    program = f"""
import socket, sys
import airflow.__main__
def refuse(*args, **kwargs): raise SystemExit("an import opened a socket")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
before = set(sys.modules)
from plugins import preloaded
def begins():
    assert sys.argv == ["airflow", {part!r}]
    missing = set(preloaded.PARTS[{part!r}]) - set(sys.modules)
    heavy = {{name.split(".")[0] for name in set(sys.modules) - before}} & set({HEAVY!r}.split())
    assert not missing and not heavy, (missing, heavy)
    print("begun")
airflow.__main__.main = begins
preloaded.main({part!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "begun" in done.stdout, done.stdout + done.stderr


def test_the_services_of_this_machine_are_those_parts(settings: Settings) -> None:
    started = {service.name: service.command for service in services(settings)}
    for part in preloaded.PARTS:
        assert started[f"airflow-{part}"][1:] == ("-m", "plugins.preloaded", part)
    assert started["airflow-triggerer"][1:] == ("-m", "airflow", "triggerer")
