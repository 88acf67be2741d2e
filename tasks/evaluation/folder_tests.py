"""Runs the tests that a pipeline's folder brings, in a clean process, beside the model that is judged."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.clean_process import Ended, run_python
from tasks.core.ids import digest_bytes, digest_tree
from tasks.core.spec import pipeline_folder
from tasks.evaluation.check_records import FolderTests, TestFailure

_OUTPUT = 20_000
_NO_TESTS = 5
"""pytest's exit code when it collected nothing."""


def tests_digest(settings: Settings, spec: PipelineSpec) -> str:
    """Digest of every file under `pipelines/<name>/tests`; empty when it holds no Python file."""
    folder = pipeline_folder(settings, spec.name) / "tests"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if not any(path.suffix == ".py" for path in files):
        return ""
    return digest_tree([(str(path.relative_to(folder)), digest_bytes(path.read_bytes())) for path in files])


def run_folder_tests(settings: Settings, spec: PipelineSpec, bundle_digest: str | None) -> FolderTests:
    """Run `pipelines/<name>/tests` with pytest in a clean process; a failed test is a result, never an error.

    The process sees the fixtures of `tasks.evaluation.pytest_plugin`, may `import` the folder's own modules, and is
    killed after `gates.tests_timeout_s`. Nothing is written into the folder.

    Args:
        bundle_digest: The model that `scorer`, `bundle`, `predict` and `golden_rows` stand for; None: tests that ask for them
            are skipped.

    Raises:
        NotFound, DigestMismatch: The bundle is gone or damaged.
    """
    digest = tests_digest(settings, spec)
    if not digest:
        return FolderTests(0, 0, 0, "", "")
    if importlib.util.find_spec("pytest") is None:
        error = "pytest is not installed here: install it beside Penstock, in the worker's image too"
        return FolderTests(0, 0, 0, "", "", error=error, digest=digest)
    folder = pipeline_folder(settings, spec.name)
    with tempfile.TemporaryDirectory(prefix="penstock-tests-") as scratch:
        junit, task = Path(scratch, "junit.xml"), Path(scratch, "task.json")
        task.write_text(json.dumps(_task(settings, spec, bundle_digest)))
        ended = run_python(
            [
                *("-m", "pytest", str(folder / "tests")),
                *("-p", "tasks.evaluation.pytest_plugin", "-p", "no:cacheprovider"),
                *("-c", _configuration(scratch, folder), f"--rootdir={folder}", "--import-mode=importlib"),
                *("-q", "-ra", "--tb=short", f"--junit-xml={junit}", f"--penstock-task={task}"),
            ],
            deadline_s=spec.gates.tests_timeout_s,
            cwd=Path(scratch),
            # Plugins that happen to be installed must not decide whether a model passes.
            extra={**settings.as_environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        )
        report = junit.read_text(encoding="utf-8") if junit.is_file() else ""
    return read_junit(report, ended, digest, spec.gates.tests_timeout_s)


def _task(settings: Settings, spec: PipelineSpec, bundle_digest: str | None) -> dict[str, object]:
    folder = ""
    if bundle_digest is not None:
        from tasks.model import fetch_bundle

        store = open_store(settings, prefix=spec.prefix)
        folder = str(fetch_bundle(store, bundle_digest, settings.cache_dir).folder)
    return {
        "spec": spec.model_dump(mode="json"),
        "bundle_digest": bundle_digest,
        "bundle_folder": folder,
    }


def _configuration(scratch: str, folder: Path) -> str:
    """A configuration of our own: that of whatever project lies around the folder must not count."""
    path = Path(scratch, "pytest.ini")
    path.write_text(f"[pytest]\npythonpath = {folder}\n")
    return str(path)


def read_junit(report: str, ended: Ended, digest: str, timeout_s: float) -> FolderTests:
    """What pytest's report and its end say; a report that does not account for the end is an error."""
    output = ended.output[-_OUTPUT:]
    if ended.timed_out:
        late = f"the tests did not end within {timeout_s:g} s (gates.tests_timeout_s)"
        return FolderTests(0, 0, 0, report, output, error=late, digest=digest)
    try:
        cases = list(ElementTree.fromstring(report).iter("testcase")) if report else []
    except ElementTree.ParseError:
        cases, report = [], ""
    failures: list[TestFailure] = []
    skipped = 0
    for case in cases:
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        bad = next((item for item in case if item.tag in ("failure", "error")), None)
        if bad is not None:
            failures.append(TestFailure(name, _first_line(bad.get("message") or bad.text or bad.tag)))
        elif any(item.tag == "skipped" for item in case):
            skipped += 1
    error: str | None = None
    if ended.code == _NO_TESTS:
        error = "the folder's tests hold no test: pytest collected nothing"
    elif ended.code != 0 and not failures:
        error = f"pytest {ended.reason}"
    elif not cases:
        error = "pytest left no report"
    passed = len(cases) - skipped - len(failures)
    return FolderTests(passed, len(failures), skipped, report, output, tuple(failures), error, digest)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason given"
