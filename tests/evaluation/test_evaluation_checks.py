"""The model itself is measured in a clean process, and what goes wrong there is a refusal with its reason."""

from __future__ import annotations

import importlib.metadata
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from checks_support import COLUMNS, sound_checks
from model_load import start_here

from tasks.core import Finding, PipelineSpec
from tasks.core.clean_process import run_python
from tasks.evaluation import Evaluation, evaluate
from tasks.evaluation.check_findings import model_findings
from tasks.evaluation.check_records import Dependency, Footprint, ModelChecks
from tasks.evaluation.check_records import TestFailure as CheckFailure
from tasks.evaluation.check_report import model_section
from tasks.evaluation.folder_tests import run_folder_tests
from tasks.evaluation.footprint import ModelProcess, measure_footprint
from tasks.evaluation.load_process import imported_dependencies, licence_of, top_names
from tasks.evaluation.scoring import load_scorer
from tasks.evaluation.signature import signature_of

ELSEWHERE = 'import sys\nCLEAN = "pytest" not in sys.modules\n'
FEATURES = """import pyarrow as pa

FEATURE_VERSION = "1"


def features(rows: pa.Table) -> pa.Table:
    {}
    return rows.select(["price", "visits", "city", "device"])
"""


def gated(toy: PipelineSpec, **changes: object) -> PipelineSpec:
    return toy.model_copy(update={"gates": toy.gates.model_copy(update=changes)})


def judged(spec: PipelineSpec, checks: ModelChecks | None, champion: str | None = "c" * 64) -> list[Finding]:
    from types import SimpleNamespace

    evidence: Any = SimpleNamespace(
        model_checks=checks, champion_digest=champion, candidate_digest="a" * 64, champion_error=None
    )
    return list(model_findings(spec, evidence))


def bad(findings: list[Finding]) -> dict[str, str]:
    return {item.name: item.status for item in findings if item.status != "pass"}


def folder_of(toy: Any, digest: str) -> tuple[Path, str]:
    return load_scorer(toy.settings, toy.spec, digest).bundle.folder, digest


def within(deadline_s: float) -> Any:
    def start(ends: ExitStack, folder: Path, digest: str, spec: PipelineSpec) -> ModelProcess:
        process = ModelProcess(folder, digest, spec, deadline_s=deadline_s)
        ends.callback(process.close)
        return process

    return start


def test_candidate_and_champion_are_measured_in_clean_processes_with_what_they_import(
    toy_store: Any, tmp_path: Path
) -> None:
    candidate, champion = toy_store.bundle(tmp_path / "a"), toy_store.bundle(tmp_path / "b", seed=1, steps=5)
    found = measure_footprint(toy_store.spec, folder_of(toy_store, candidate), folder_of(toy_store, champion))
    print_of_model = found.footprint.candidate
    assert found.footprint.candidate_error is None and found.footprint.champion_error is None
    assert print_of_model is not None and found.footprint.champion is not None
    assert print_of_model.batch_rows == toy_store.spec.inference.batch_rows
    assert 0 < print_of_model.p50_ms <= print_of_model.p99_ms
    assert 50 < print_of_model.peak_memory_mb < 2048
    assert found.footprint.one_row_ratio is not None and found.footprint.batch_ratio is not None
    names = {item.name.lower() for item in found.dependencies}
    assert {"torch", "numpy", "pyarrow"} <= names
    assert not names & {"pytest", "ray", "mlflow"}, "nothing but what scoring needs"
    assert all(item.version for item in found.dependencies)
    small = judged(gated(toy_store.spec, max_memory_mb=20), sound_checks(footprint=found.footprint))
    assert bad(small) == {"memory": "fail"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("if CLEAN: import os; os._exit(7)", "exit code 7"),
        ("if CLEAN: import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("if CLEAN: import time; time.sleep(600)", "did not finish within"),
        ("if CLEAN: hoard = bytearray(8 << 30)", "MemoryError"),
    ],
)
def test_a_process_that_dies_hangs_or_lacks_memory_is_a_failed_finding_with_its_reason(
    toy_store: Any, tmp_path: Path, fault: str, reason: str
) -> None:
    source = ELSEWHERE + FEATURES.format(fault)
    digest = toy_store.bundle(tmp_path / "a", features_source=source, steps=1)
    deadline_s = 1 if "within" in reason else 120
    found = measure_footprint(toy_store.spec, folder_of(toy_store, digest), None, start=within(deadline_s))
    assert found.footprint.candidate is None
    findings = judged(toy_store.spec, sound_checks(footprint=found.footprint, dependencies=()))
    broken = next(item for item in findings if item.name == "footprint")
    assert broken.status == "fail" and reason in broken.detail
    assert bad(findings)["dependencies"] == "fail", "what was not told is not known to be fine"


def test_a_candidate_that_costs_far_more_than_the_champion_is_measured_longer_and_refused(
    toy_store: Any, tmp_path: Path
) -> None:
    slow = FEATURES.format("sum(range(100_000))  # work that nobody needs")
    candidate = toy_store.bundle(tmp_path / "a", features_source=slow, steps=1)
    champion = toy_store.bundle(tmp_path / "b", steps=1)
    where = folder_of(toy_store, candidate), folder_of(toy_store, champion)
    found = measure_footprint(toy_store.spec, *where, start=start_here)
    assert found.footprint.candidate is not None and found.footprint.candidate.rounds == 15
    findings = judged(toy_store.spec, sound_checks(footprint=found.footprint))
    assert bad(findings) == {"cost beside the champion": "fail"}
    back = measure_footprint(toy_store.spec, *reversed(where), start=start_here)
    assert bad(judged(toy_store.spec, sound_checks(footprint=back.footprint))) == {}


def test_budgets_are_judged_each_by_its_own_limit(toy: PipelineSpec) -> None:
    assert bad(judged(toy, sound_checks())) == {}
    assert bad(judged(gated(toy, max_latency_ms_p99=1.5), sound_checks())) == {"latency": "fail"}
    assert bad(judged(gated(toy, max_memory_mb=299), sound_checks())) == {"memory": "fail"}
    footprint = replace(sound_checks().footprint, batch_ratio=2.1)
    assert bad(judged(toy, sound_checks(footprint=footprint))) == {"cost beside the champion": "fail"}
    assert bad(judged(gated(toy, max_latency_ratio=None), sound_checks(footprint=footprint))) == {}
    assert bad(judged(toy, sound_checks(footprint=footprint), champion=None)) == {}


def test_a_champion_that_cannot_be_measured_leaves_the_gate_undecided(toy: PipelineSpec) -> None:
    load = sound_checks().footprint.candidate
    footprint = Footprint(load, None, champion_error="its process was ended by SIGKILL")
    findings = judged(toy, sound_checks(footprint=footprint))
    assert bad(findings) == {"cost beside the champion": "warn"}
    assert any("SIGKILL" in item.detail for item in findings)


def test_evidence_without_model_checks_fails(toy: PipelineSpec) -> None:
    assert bad(judged(toy, None)) == {"model checks": "fail"}


def test_a_signature_names_the_columns_that_features_are_computed_from(
    toy_store: Any, tmp_path: Path
) -> None:
    digest = toy_store.bundle(tmp_path / "a", steps=1)
    found = signature_of(load_scorer(toy_store.settings, toy_store.spec, digest))
    assert set(found.inputs) == {"price", "visits", "city", "device"}, "not the key, not the time"
    assert found.features == ("price", "visits", "city", "device")
    assert found.outputs == {"prediction": "float"}
    assert set(found.categories) == {"city", "device"} and all(found.categories.values())


@pytest.mark.parametrize(
    ("ours", "rule", "word"),
    [
        ({"inputs": {**COLUMNS, "paid": "double"}}, "signature: inputs", "paid, which scoring snapshots"),
        ({"inputs": {**COLUMNS, "weight": "double"}}, "signature: inputs", "weight, which the source"),
        ({"inputs": {**COLUMNS, "visits": "double"}}, "signature: inputs", "double in training, int64 now"),
        ({"features": ("price", "visits", "device", "city")}, "signature: features", "another order"),
        ({"features": ("price", "visits", "city")}, "signature: features", "lacks device"),
        ({"categories": {"city": (), "device": ("phone",)}}, "signature: categories", "left of city"),
        ({"outputs": {}}, "signature: outputs", "no longer gives prediction"),
        ({"outputs": {"prediction": "double"}}, "signature: outputs", "type of prediction"),
    ],
)
def test_a_signature_that_breaks_its_readers_is_refused_by_the_rule_made_for_it(
    toy: PipelineSpec, ours: dict[str, Any], rule: str, word: str
) -> None:
    checks = sound_checks()
    assert checks.signature is not None
    findings = judged(toy, replace(checks, signature=replace(checks.signature, **ours)))
    assert bad(findings) == {rule: "fail"}
    assert word in next(item.detail for item in findings if item.name == rule)


def test_added_outputs_and_new_categories_are_welcome(toy: PipelineSpec) -> None:
    checks = sound_checks()
    assert checks.signature is not None
    wider = replace(
        checks.signature,
        outputs={"prediction": "float", "hours": "float"},
        categories={"city": ("a", "c"), "device": ("phone",)},
    )
    findings = judged(toy, replace(checks, signature=wider))
    details = {item.name: item.detail for item in findings}
    assert bad(findings) == {}
    assert "adds hours" in details["signature: outputs"]
    assert "1 of 2 (b)" in details["signature: categories"]


def test_a_signature_that_cannot_be_told_is_refused_with_the_reason(toy: PipelineSpec) -> None:
    checks = sound_checks(signature=None, signature_error="features.py:3: raised")
    findings = judged(toy, checks)
    assert bad(findings) == {"signature": "fail"}
    assert "features.py:3" in next(item.detail for item in findings if item.name == "signature")


def test_a_forbidden_licence_is_refused_and_an_unstated_one_is_undecided_once_any_is_forbidden(
    toy: PipelineSpec,
) -> None:
    viral = (*sound_checks().dependencies, Dependency("thing", "1", "GNU Affero General Public License v3"))
    silent = (*sound_checks().dependencies, Dependency("thing", "1", ""))
    strict = gated(toy, forbidden_licences=("*affero*", "AGPL*"))
    assert bad(judged(strict, sound_checks(dependencies=viral))) == {"dependencies": "fail"}
    assert bad(judged(strict, sound_checks(dependencies=silent))) == {"dependencies": "warn"}
    assert bad(judged(strict, sound_checks())) == {}
    assert bad(judged(toy, sound_checks(dependencies=viral))) == {}
    assert any("thing" in item.detail for item in judged(toy, sound_checks(dependencies=silent)))


def test_a_licence_is_read_from_whichever_field_states_it() -> None:
    from email.message import Message

    def metadata(*fields: tuple[str, str]) -> Message:
        found = Message()
        for name, value in fields:
            found[name] = value
        return found

    osi = ("Classifier", "License :: OSI Approved :: MIT License")
    assert licence_of(metadata(("License-Expression", "MIT"), ("License", "old"))) == "MIT"
    assert licence_of(metadata(osi, ("License", "MIT, see file"))) == "MIT License"
    assert licence_of(metadata(("License", "Apache 2.0\nlong text"))) == "Apache 2.0"
    assert licence_of(metadata(("License", "UNKNOWN"))) == licence_of(metadata()) == ""
    assert [item.name for item in imported_dependencies(["numpy.linalg", "json"])] == ["numpy"]


def test_distributions_are_known_by_the_names_that_python_s_own_library_finds() -> None:
    found: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for name in top_names(distribution):
            found.setdefault(name, set()).add(distribution.metadata["Name"])
    assert found == {name: set(of) for name, of in importlib.metadata.packages_distributions().items()}


def put_tests(toy: Any, text: str) -> None:
    folder = toy.settings.pipelines_dir / "toy" / "tests"
    folder.mkdir(exist_ok=True)
    (folder / "test_toy.py").write_text(text)


TESTS = """import numpy as np
import pyarrow as pa
import pytest


def test_the_model_scores_its_golden_rows(predict, golden_rows, scorer):
    scores = predict(golden_rows)
    assert len(scores) == golden_rows.num_rows and np.all((scores >= 0) & (scores <= 1))


def test_features_are_those_of_the_spec(feature_code, spec):
    rows = pa.table({"price": [1.0], "visits": [2], "city": ["a"], "device": ["b"]})
    assert tuple(feature_code.compute(rows, spec.features).column_names) == spec.features.names


def test_the_folder_can_be_imported():
    import features

    assert features.FEATURE_VERSION == "1"


@pytest.mark.parametrize("limit", [0])
def test_that_does_not_hold(predict, golden_rows, limit):
    assert predict(golden_rows).max() <= limit
"""


def test_tests_of_the_folder_meet_the_candidate_and_each_failure_is_a_finding_with_its_name(
    toy_store: Any, tmp_path: Path
) -> None:
    digest = toy_store.bundle(tmp_path / "a", steps=1)
    put_tests(toy_store, TESTS)
    tests = run_folder_tests(toy_store.settings, toy_store.spec, digest)
    assert (tests.passed, tests.failed, tests.skipped, tests.error) == (3, 1, 0, None), tests.output
    assert "<testsuite" in tests.junit_xml and "test_that_does_not_hold" in tests.output
    found = bad(judged(toy_store.spec, sound_checks(tests=tests)))
    assert list(found) == ["test tests.test_toy::test_that_does_not_hold[0]"], found
    written = {path.name for path in (toy_store.settings.pipelines_dir / "toy").rglob("*")}
    assert not written & {"__pycache__", ".pytest_cache"}


def test_without_a_model_what_needs_one_is_skipped(toy_store: Any) -> None:
    put_tests(toy_store, TESTS)
    tests = run_folder_tests(toy_store.settings, toy_store.spec, None)
    assert (tests.passed, tests.failed, tests.skipped) == (2, 0, 2), tests.output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import time\n\n\ndef test_hangs():\n    time.sleep(600)\n", "did not end within"),
        ("import os\n\n\ndef test_dies():\n    os._exit(0)\n", "left no report"),
        ("X = 1\n", "collected nothing"),
    ],
)
def test_tests_that_do_not_come_to_their_end_have_failed(toy_store: Any, text: str, reason: str) -> None:
    put_tests(toy_store, text)
    timeout_s = 1 if "within" in reason else 120
    tests = run_folder_tests(toy_store.settings, gated(toy_store.spec, tests_timeout_s=timeout_s), None)
    findings = judged(toy_store.spec, sound_checks(tests=tests))
    assert bad(findings) == {"tests": "fail"}
    assert any(reason in item.detail for item in findings)


def test_a_folder_without_tests_passes_unless_tests_are_required(toy_store: Any) -> None:
    tests = run_folder_tests(toy_store.settings, toy_store.spec, None)
    skipped = [item for item in judged(toy_store.spec, sound_checks(tests=tests)) if item.name == "tests"]
    assert [(item.status, item.detail) for item in skipped] == [("pass", "skipped: no tests")]
    strict = gated(toy_store.spec, require_tests=True)
    assert bad(judged(strict, sound_checks(tests=tests))) == {"tests": "fail"}
    skips = replace(tests, skipped=2, digest="d")
    assert bad(judged(strict, sound_checks(tests=skips))) == {"tests": "fail"}


@pytest.mark.timeout(60)
def test_a_clean_process_past_its_deadline_takes_its_children_along(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    ended = run_python(["-c", code], deadline_s=3, cwd=tmp_path)
    assert ended.timed_out and ended.reason
    status = Path(f"/proc/{int(ended.output)}/status")
    # A killed process is gone a moment later; one that was not killed sleeps on and fails the test by its time limit.
    while status.exists() and "State:\tZ" not in status.read_text():
        time.sleep(0.05)


def test_model_checks_survive_json_and_rows_are_told_by_their_types(toy_store: Any, tmp_path: Path) -> None:
    digest = toy_store.bundle(tmp_path / "a", steps=1)
    scorer = load_scorer(toy_store.settings, toy_store.spec, digest)
    snapshot = toy_store.snapshot()
    found = toy_store.check(toy_store.settings, toy_store.spec, snapshot, scorer, None)
    assert ModelChecks.from_json(found.to_json()) == found
    assert bad(judged(toy_store.spec, found, champion=None)) == {}
    other = replace(
        snapshot,
        schema=tuple(
            (name, str(pa.string()) if name == "visits" else kind) for name, kind in snapshot.schema
        ),
    )
    changed = toy_store.check(toy_store.settings, toy_store.spec, other, scorer, None)
    assert bad(judged(toy_store.spec, changed, champion=None)) == {"signature: inputs": "fail"}


def test_the_report_shows_what_was_measured_and_nothing_of_it_for_older_evidence() -> None:
    failed = replace(
        sound_checks().tests,
        digest="d",
        failed=1,
        failures=(CheckFailure("test_a<b>", "assert 1 <= 0"),),
        output="<script>",
    )
    shown = model_section(sound_checks(tests=failed))
    for text in ("BSD-3-Clause", "50,000", "price (double)", "test_a&lt;b&gt;", "&lt;script&gt;"):
        assert text in shown
    assert "<script>" not in shown
    broken = Footprint(None, candidate_error="did not finish within 180 s")
    assert "did not finish within 180 s" in model_section(sound_checks(footprint=broken))
    assert model_section(None) == ""


def test_evidence_of_earlier_releases_is_still_read(toy_store: Any, tmp_path: Path) -> None:
    digest = toy_store.bundle(tmp_path / "a", steps=1)
    found = evaluate(
        toy_store.settings,
        toy_store.spec,
        toy_store.snapshot(),
        candidate_digest=digest,
        champion_digest=None,
        validation_first_day=date(2024, 1, 29),
        check=toy_store.check,
    )
    old = {key: value for key, value in found.to_json().items() if key != "model_checks"}
    read = Evaluation.from_json(old)
    assert read.model_checks is None and read.models == found.models
