"""The pipeline's folder by itself: does its code load, is it clean, do its own tests pass?"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tasks.core import PipelineSpec, Settings
from tasks.core.spec import pipeline_folder
from tasks.wiring.ci.records import CheckFailed, Skip

_PATIENCE_S = 1800
_SHOWN_LINES = 40
_RUFF_FILES = ("pyproject.toml", "ruff.toml", ".ruff.toml")


def load_code(settings: Settings, spec: PipelineSpec) -> str:
    """Import features.py and model.py as training does, and open the source; raises what is wrong with them."""
    from tasks.data import source_days
    from tasks.model import FeatureCode
    from tasks.model.user_code import execute

    folder = pipeline_folder(settings, spec.name)
    version = FeatureCode.from_file(folder / "features.py").version
    model = folder / "model.py"
    if not model.is_file():
        raise CheckFailed(
            "is missing", which=str(model), fix="write build(spec) -> torch.nn.Module in it; docs/model.md"
        )
    if not callable(getattr(execute(model.read_text(encoding="utf-8"), str(model)), "build", None)):
        raise CheckFailed("must define the function build(spec)", which=str(model), fix="see docs/model.md")
    days = source_days(settings, spec)
    if not days:
        raise CheckFailed(
            "has no days", which=f"source {spec.source.uri}", fix="check source in pipeline.yaml"
        )
    return f"features {version}; source has {len(days):,} days, {days[0]} to {days[-1]}"


def lint(settings: Settings, name: str) -> str:
    """`ruff check` of the folder, with the project's own rules."""
    folder = pipeline_folder(settings, name)
    if importlib.util.find_spec("ruff"):
        ruff = [sys.executable, "-m", "ruff"]
    elif found := shutil.which("ruff"):
        ruff = [found]
    else:
        raise Skip("ruff is not installed: `pip install ruff` un-skips it")
    command = [*ruff, "check", "--no-cache", "--output-format", "concise", str(folder)]
    if not any((settings.project / name).is_file() for name in _RUFF_FILES):
        command += ["--config", "lint.isort.known-first-party=['tasks']"]  # as in what `penstock new` writes
    ended = _run(command, cwd=settings.project, environ=dict(os.environ))
    if ended.returncode:
        raise CheckFailed(
            f"ruff finds faults:\n{_tail(ended.stdout or ended.stderr)}",
            which=str(folder),
            fix=f"correct them; `ruff check --fix {folder}` corrects some by itself",
        )
    return f"{sum(1 for _ in folder.rglob('*.py'))} Python files are clean"


def unit_tests(settings: Settings, spec: PipelineSpec) -> str:
    """The folder's own tests as the gate runs them, before there is a model: those that ask for one skip themselves."""
    from tasks.evaluation.folder_tests import run_folder_tests

    tests = pipeline_folder(settings, spec.name) / "tests"
    if not importlib.util.find_spec("pytest"):
        raise Skip("pytest is not installed: `pip install pytest` un-skips it")
    found = run_folder_tests(settings, spec, None)
    if not found.digest:
        raise Skip(f"there are no Python files in {tests}: a test_*.py there un-skips it")
    if found.error or found.failed:
        what = found.error or f"{found.failed} tests fail"
        raise CheckFailed(
            f"{what}\n{_tail(found.output)}",
            which=str(tests),
            fix=f"run them alone: python -m pytest {tests}",
        )
    skipped = f", {found.skipped} wait for a model" if found.skipped else ""
    return f"{found.passed} passed{skipped}"


def _run(command: list[str], *, cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(
            f"did not end within {_PATIENCE_S} s", which=" ".join(command[:4]), fix="make it shorter"
        ) from error


def _tail(text: str) -> str:
    lines = text.strip().splitlines()
    left_out = len(lines) - _SHOWN_LINES
    return "\n".join([f"... {left_out} lines before", *lines[left_out:]] if left_out > 0 else lines)
