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
NO_TEST_FOUND = 5
"""pytest's exit code when it collected nothing."""


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
    """pytest of `pipelines/<name>/tests` in a process of its own, that sees the sandbox and never production."""
    folder = pipeline_folder(settings, spec.name)
    tests = folder / "tests"
    if not any(tests.rglob("test_*.py")):
        raise Skip(f"there is no {tests}/test_*.py: a test file there un-skips it")
    if not importlib.util.find_spec("pytest"):
        raise Skip("pytest is not installed: `pip install pytest` un-skips it")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    environ |= {**settings.as_environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    # The folder comes first on the path, so that its tests can `import features`.
    roots = [str(folder), str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(root for root in roots if root)
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "--no-header", "-p", "no:cacheprovider"]
    ended = _run([*command, f"--rootdir={folder}"], cwd=folder, environ=environ)
    if ended.returncode == NO_TEST_FOUND:
        raise CheckFailed("has files and no test in them", which=str(tests), fix="name functions test_...")
    if ended.returncode:
        raise CheckFailed(
            f"tests fail:\n{_tail(ended.stdout + ended.stderr)}",
            which=str(tests),
            fix=f"run them alone: python -m pytest {tests}",
        )
    return ended.stdout.strip().splitlines()[-1].strip("= ")


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
