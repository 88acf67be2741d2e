"""The parts of Airflow that import what the processes need that they fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plugins import preloaded
from tasks.core import Settings
from tasks.local.embedded import services

FOR_STEPS = "torch great_expectations pandas sklearn scipy"
UNUSED = {
    "scheduler": "ray mlflow matplotlib captum s3fs",
    "dag-processor": f"ray mlflow matplotlib captum s3fs botocore {FOR_STEPS}",
}
"""Large libraries that a part does not import."""


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
def test_a_part_imports_no_library_for_nothing_starts_no_thread_and_opens_no_connection(
    installed: Settings, part: str
) -> None:
    program = f"""
import gc, socket, sys, threading
import airflow.__main__
def refuse(*args, **kwargs): raise SystemExit("an import opened a socket")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
before = set(sys.modules)
from plugins import preloaded
def begins():
    assert sys.argv == ["airflow", {part!r}]
    missing = set(preloaded.PARTS[{part!r}]) - set(sys.modules)
    unused = {{name.split(".")[0] for name in set(sys.modules) - before}} & set({UNUSED[part]!r}.split())
    assert not missing and not unused, (missing, unused)
    assert threading.active_count() == 1, "a fork would copy its locks and not it"
    assert gc.isenabled() and gc.get_freeze_count() > 100_000
    print("begun")
airflow.__main__.main = begins
preloaded.main({part!r})
"""
    assert "begun" in printed_by(program)


def test_a_task_forked_from_the_scheduler_finds_the_libraries_of_its_step_imported(
    installed: Settings,
) -> None:
    program = f"""
import airflow.__main__, os, sys
from plugins import preloaded
def begins():
    assert set({FOR_STEPS!r}.split()) <= set(sys.modules)
    before = set(sys.modules)
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    from tasks import wiring
    from tasks.core.settings import Settings
    taken = wiring.step("snapshot_training")(Settings.from_environment(), "toy")
    wiring.step("validate_snapshot")(Settings.from_environment(), "toy", snapshot_id=taken["snapshot_id"])
    more = {{name for name in set(sys.modules) - before if name.partition(".")[0] in {FOR_STEPS.split()!r}}}
    print("more:", len(more), sorted(more)[:20])
    sys.stdout.flush()
    os._exit(0)
airflow.__main__.main = begins
preloaded.main("scheduler")
"""
    printed = printed_by(program)
    assert int(printed.partition("more: ")[2].split()[0]) < 50, printed


def printed_by(program: str) -> str:
    """What a Python says that runs it, and must end well."""
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_services_of_this_machine_are_those_parts(settings: Settings) -> None:
    started = {service.name: service.command for service in services(settings)}
    for part in preloaded.PARTS:
        assert started[f"airflow-{part}"][1:] == ("-m", "plugins.preloaded", part)
    assert started["airflow-triggerer"][1:] == ("-m", "airflow", "triggerer")
