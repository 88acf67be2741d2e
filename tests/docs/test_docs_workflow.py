"""The workflow to copy: it is what the CI system takes, names only what exists, and finds the pipelines that changed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs_support import ROOT

from tasks.cli.app import app

FILE = ROOT / "docs" / "examples" / "penstock-ci.yml"
OWN = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(FILE.read_text())
    return found


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", [FILE, OWN], ids=["to copy", "our own"])
def test_a_workflow_has_the_form_that_the_ci_system_takes(file: Path) -> None:
    checked = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)]
    done = subprocess.run([sys.executable, "-m", *checked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = yaml.safe_load(file.read_text())
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job.get("needs") in (None, *found["jobs"])
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_our_own_workflow_runs_what_a_person_types() -> None:
    commands = [step["run"] for step in steps(yaml.safe_load(OWN.read_text())) if "run" in step]
    assert commands[-1] == "make check"
    made = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pytest" in made.stdout and "mypy" in made.stdout


def test_text_from_a_pull_request_never_becomes_part_of_a_script(workflow: dict[Any, Any]) -> None:
    assert all("${{" not in step.get("run", "") for step in steps(workflow))


def test_every_step_output_and_job_output_that_is_read_is_written(workflow: dict[Any, Any]) -> None:
    text = FILE.read_text()
    ids = {step["id"] for step in steps(workflow) if "id" in step}
    assert set(re.findall(r"steps\.(\w+)\.outputs", text)) == ids
    read = set(re.findall(r"needs\.(\w+)\.outputs\.(\w+)", text))
    assert read and all(output in workflow["jobs"][job]["outputs"] for job, output in read)


def test_every_penstock_command_in_it_exists_with_its_options(workflow: dict[Any, Any]) -> None:
    lines = [line.strip() for step in steps(workflow) for line in step.get("run", "").splitlines()]
    found = [shlex.split(line) for line in lines if line.startswith("penstock ")]
    assert found
    for words in found:
        command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_every_file_that_it_installs_from_exists(workflow: dict[Any, Any]) -> None:
    named = set(re.findall(r"-r (\S+)", FILE.read_text()))
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (["pipelines/one/features.py"], ["one"]),
        (["pipelines/one/tests/test_a.py", "pipelines/two/pipeline.yaml"], ["one", "two"]),
        (["pipelines/gone/features.py"], []),
        (["pipelines/README.md"], []),
        (["great_expectations/expectations/one.json"], ["one", "two"]),
        (["great_expectations/README.md"], []),
    ],
)
def test_its_script_finds_the_pipelines_that_a_pull_request_changed(
    workflow: dict[Any, Any], tmp_path: Path, changed: list[str], found: list[str]
) -> None:
    (script,) = [step["run"] for step in steps(workflow) if step.get("id") == "find"]
    repository = tmp_path / "repository"
    for name in ("one", "two"):
        (repository / "pipelines" / name).mkdir(parents=True)
        (repository / "pipelines" / name / "pipeline.yaml").write_text("name: x\n")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=repository, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "base")
    base = git("rev-parse", "HEAD")
    for name in changed:
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changed\n")
    git("add", ".")
    git("commit", "-qm", "change")
    output = tmp_path / "output"
    environ = {**os.environ, "BASE": base, "RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-c", script], cwd=repository, env=environ, check=True)
    name, _, value = output.read_text().strip().partition("=")
    assert (name, json.loads(value)) == ("pipelines", found)
