"""The pre-merge path on the toy pipeline: what passes, what each planted fault says, and that production stays as it is."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import services
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from toy_installation import install_toy
from wiring_support import edit

from tasks.core import Finding, PipelineSpec, Settings
from tasks.core.errors import ConfigError, DataError, NotFound, ServiceUnavailable
from tasks.metadata import MetadataStore, ModelVersion
from tasks.wiring.ci import junit, markdown, run_ci
from tasks.wiring.ci.model import blocks
from tasks.wiring.ci.production import Champion, live_champion, read_only_url
from tasks.wiring.ci.records import CheckFailed, Checks, Skip, exit_code
from tasks.wiring.ci.sample import choose_days, days_for_rows


def checks(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in result["checks"]}


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {name: item["status"] for name, item in checks(result).items()}


def try_toy(settings: Settings, **arguments: Any) -> dict[str, Any]:
    return run_ci(settings, "toy", sample_days=15, **arguments)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, dict[str, Any], list[str]]]:
    """An installation in which nothing has run, the result of its toy pipeline as it is, and what was said."""
    root = tmp_path_factory.mktemp("ci")
    settings = install_toy(root)
    (root / "project/pipelines/toy/tests").mkdir()
    (root / "project/pipelines/toy/tests/test_features.py").write_text(
        "import os\n\nimport features\n\n\ndef test_the_version_is_text() -> None:\n"
        "    assert isinstance(features.FEATURE_VERSION, str)\n"
        f"    assert not os.environ['PENSTOCK_HOME'].startswith({str(root)!r})\n"
    )
    said: list[str] = []
    result = try_toy(settings, keep=True, say=said.append)
    yield settings, result, said
    shutil.rmtree(result["sandbox"])


def test_a_pipeline_as_it_should_be_passes_every_check(clean: tuple[Settings, dict[str, Any], Any]) -> None:
    _, result, said = clean
    assert (result["outcome"], result["exit_code"]) == ("pass", 0)
    assert {name for name, status in statuses(result).items() if status != "pass"} == {"production"}
    assert "1 passed" in checks(result)["unit tests"]["detail"]
    assert [line.split()[0] for line in said] == list(statuses(result).values())
    assert [row["metric"] for row in result["metrics"]] == ["auc", "brier", "ece"]


def test_the_installation_is_not_touched_and_reports_lie_in_the_sandbox(
    clean: tuple[Settings, dict[str, Any], Any],
) -> None:
    settings, result, _ = clean
    assert not settings.home.exists()
    assert not list(settings.project.rglob("__pycache__"))
    assert result["sandbox"] and len(result["reports"]) == 2
    for path in result["reports"]:
        assert path.startswith(result["sandbox"]) and "<html" in Path(path).read_text()[:200]


def unclosed_bracket(folder: Path) -> None:
    edit(folder / "features.py", {'["price", "visits", "city", "device"])': '["price"'})


def misspelt_field(folder: Path) -> None:
    edit(folder / "pipeline.yaml", {"event_time:": "event_tiem:"})


def no_yaml(folder: Path) -> None:
    edit(folder / "pipeline.yaml", {"entity_key: [customer]": "entity_key: [customer"})


def failing_test(folder: Path) -> None:
    (folder / "tests").mkdir()
    (folder / "tests/test_toy.py").write_text("def test_it() -> None:\n    assert 1 + 1 == 3\n")


def failing_test_of_the_model(folder: Path) -> None:
    (folder / "tests").mkdir()
    (folder / "tests/test_toy.py").write_text(
        "def test_scores(golden_rows, predict) -> None:\n    assert predict(golden_rows).max() < 0\n"
    )


def unknown_column(folder: Path) -> None:
    suite = folder.parents[1] / "great_expectations/expectations/toy.json"
    edit(suite, {'"column": "visits"': '"column": "vists"'})


def misspelt_feature(folder: Path) -> None:
    edit(folder / "pipeline.yaml", {"numeric: [price, visits]": "numeric: [price, vists]"})


def misspelt_suite(folder: Path) -> None:
    edit(folder / "pipeline.yaml", {"suite: toy": "suite: toi"})


def empty_suite(folder: Path) -> None:
    suite = folder.parents[1] / "great_expectations/expectations/toy.json"
    suite.write_text('{"name": "toy", "expectations": []}')


def keys_only_suite(folder: Path) -> None:
    suite = folder.parents[1] / "great_expectations/expectations/toy.json"
    suite.write_text(
        '{"name": "toy", "expectations": [{"type": "expect_column_values_to_not_be_null", '
        '"kwargs": {"column": "customer"}}]}'
    )


def unused_import(folder: Path) -> None:
    edit(folder / "features.py", {"import pyarrow as pa": "import os\n\nimport pyarrow as pa"})
    empty_suite(folder)  # so that nothing is trained here


def leak(folder: Path) -> None:
    edit(
        folder / "source.py",
        {'"device": device,': '"device": device,\n            "basket": bought * price,'},
    )
    edit(folder / "features.py", {'"device"])': '"device", "basket"])'})
    edit(folder / "pipeline.yaml", {"numeric: [price, visits]": "numeric: [price, visits, basket]"})


@pytest.mark.parametrize(
    ("plant", "check", "words"),
    [
        (unclosed_bracket, "code", ["features.py:", "was never closed"]),
        (misspelt_field, "pipeline.yaml", ["event_tiem", "did you mean 'event_time'"]),
        (no_yaml, "pipeline.yaml", ["pipeline.yaml:", "not valid YAML"]),
        (failing_test, "unit tests", ["assert (1 + 1) == 3", "test_toy.py"]),
        (failing_test_of_the_model, "evaluation gate", ["test_toy", "test_scores"]),
        (unknown_column, "data gate", ["no column vists (did you mean visits?)"]),
        (misspelt_feature, "sample", ["features.py", "does not return vists (did you mean visits?)"]),
        (misspelt_suite, "suite", ["pipeline.yaml: validation.suite", "has no toi.json"]),
        (empty_suite, "suite", ["an empty suite proves nothing"]),
        (keys_only_suite, "planted bad rows", ["missing values", "numbers out of range", "price"]),
        (unused_import, "lint", ["features.py:3", "F401"]),
        (leak, "evaluation gate", ["leakage: basket", "alone predicts the label"]),
    ],
)
def test_a_planted_fault_is_a_failure_that_names_it_and_its_fix(
    plant: Callable[[Path], None], check: str, words: list[str], settings: Settings
) -> None:
    plant(settings.pipelines_dir / "toy")
    result = try_toy(settings)
    found = checks(result)[check]
    failed = {name for name, status in statuses(result).items() if status == "fail"}
    # ruff parses too, and the gate runs the tests again
    twice = {"code": {"lint"}, "unit tests": {"evaluation gate"}, "lint": {"suite"}}
    assert failed == {check} | twice.get(check, set())
    assert (result["outcome"], result["exit_code"], found["status"]) == ("fail", 2, "fail")
    text = f"{found['error']['which']} {found['error']['what']}"
    assert all(word in text for word in words), text
    assert "penstock-ci-" not in found["error"]["fix"], "the sandbox is gone"
    assert found["error"]["fix"]
    assert found["kind"] == "terminal"
    assert found["error"]["what"].splitlines()[0] in markdown(result)


def test_what_needs_a_failed_check_is_skipped_and_says_so(settings: Settings) -> None:
    no_yaml(settings.pipelines_dir / "toy")
    result = try_toy(settings)
    others = {name: item for name, item in checks(result).items() if name not in ("pipeline.yaml", "lint")}
    assert {item["status"] for item in others.values()} == {"skipped"}
    assert "did not pass: pipeline.yaml" in others["code"]["detail"]


def digests(folder: Path) -> dict[str, str]:
    """Of every file but SQLite's own notes about who reads."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


def test_the_champion_is_compared_with_and_production_is_only_read(
    clean: tuple[Settings, dict[str, Any], Any], settings: Settings, toy: PipelineSpec
) -> None:
    sandbox = Path(clean[1]["sandbox"]) / "store/default/toy/bundles"
    (digest,) = [path.name for path in sandbox.iterdir()]
    shutil.copytree(sandbox, settings.home / "store/default/toy/bundles")
    make_live(settings, toy, digest)
    edit(settings.pipelines_dir / "toy/pipeline.yaml", {"epochs: 6": "epochs: 3"})
    before = digests(settings.home)
    result = try_toy(settings)
    assert digests(settings.home) == before
    assert "version 1 is live" in checks(result)["production"]["detail"]
    assert all(row["champion"] for row in result["metrics"])
    rehearsal = checks(result)["promotion rehearsal"]
    assert "compared with version 1 in the canary" in rehearsal["detail"]
    assert any("rollback target, version 1, loads" in note["text"] for note in rehearsal["notes"])


def test_a_champion_whose_bundle_is_gone_is_told_and_does_not_block(
    settings: Settings, toy: PipelineSpec
) -> None:
    make_live(settings, toy, "d" * 64)
    result = try_toy(settings)
    assert checks(result)["production"]["status"] == "skipped"
    assert "cannot be read from here" in checks(result)["promotion rehearsal"]["detail"]
    assert result["exit_code"] == 0


def on_postgres(settings: Settings, server_url: str) -> tuple[Settings, Settings]:
    """(production with an empty database on PostgreSQL, a sandbox)."""
    sandbox = Settings.at_home(settings.home / "sandbox", project=settings.project)
    return dataclasses.replace(settings, metadata_url=services.new_postgres_database(server_url)), sandbox


def test_a_champion_on_postgresql_is_read_in_a_session_that_cannot_write(
    clean: tuple[Settings, dict[str, Any], Any], settings: Settings, toy: PipelineSpec, postgres_url: str
) -> None:
    bundles = Path(clean[1]["sandbox"]) / "store/default/toy/bundles"
    (digest,) = [path.name for path in bundles.iterdir()]
    shutil.copytree(bundles, settings.home / "store/default/toy/bundles")
    real, sandbox = on_postgres(settings, postgres_url)
    make_live(real, toy, digest)
    assert live_champion(real, sandbox, toy) == Champion(1, digest)
    engine = create_engine(read_only_url(real, sandbox.home / "copy.db"))
    with engine.connect() as connection, pytest.raises(DBAPIError, match="read-only transaction"):
        connection.execute(text("DELETE FROM penstock_alias_projections"))
    engine.dispose()


def test_a_postgresql_without_the_present_schema_is_left_as_it_is(
    settings: Settings, toy: PipelineSpec, postgres_url: str
) -> None:
    real, sandbox = on_postgres(settings, postgres_url)
    with pytest.raises(Skip, match="production cannot be read from here"):
        live_champion(real, sandbox, toy)
    engine = create_engine(real.metadata_url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()


def make_live(settings: Settings, spec: PipelineSpec, digest: str) -> None:
    from tasks.registry import promote

    MetadataStore.open(settings).record_model_version(
        spec,
        ModelVersion(
            version=1,
            bundle_digest=digest,
            feature_version="1",
            snapshot_id="s",
            training_id="t",
            mlflow_model_name="toy",
            mlflow_run_id=None,
            mlflow_model_uri=None,
            url="",
            created_at_utc=datetime(2024, 1, 1, tzinfo=UTC),
        ),
    )
    down = dataclasses.replace(settings, mlflow_url="http://127.0.0.1:9")
    promote(down, spec, 1, expected=None, actor="ada", reason="first", check=lambda _: None)


def test_a_sample_is_the_days_around_the_border_and_never_too_few() -> None:
    days = [date(2024, 1, 1) + timedelta(days=index) for index in range(60)]
    windows = (days[0], days[39], days[40], days[59])
    sample = choose_days(days, windows, 20)
    assert (sample.train_first_day, sample.validation_first_day, sample.last_day, sample.days) == (
        days[24], days[40], days[43], 20,
    )  # fmt: skip
    whole = choose_days(days, windows, 500)
    assert (whole.train_first_day, whole.last_day, whole.days) == (days[0], days[59], 60)
    with pytest.raises(DataError, match="0 validation days"):
        choose_days(days[:40], windows, 20)
    assert (days_for_rows(10, 100.0), days_for_rows(5_000, 100.0)) == (11, 50)


def test_rows_asked_for_are_given_in_whole_days(settings: Settings) -> None:
    empty_suite(settings.pipelines_dir / "toy")  # so that nothing is trained here
    result = run_ci(settings, "toy", sample_rows=1700)
    assert checks(result)["sample"]["detail"].startswith("1,680 rows of 14 days")


@pytest.mark.parametrize("asked", [{"sample_days": 3}, {"sample_rows": 0}])
def test_a_sample_that_is_too_small_is_refused_before_anything_runs(
    settings: Settings, asked: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="give at least"):
        run_ci(settings, "toy", **asked)


def test_an_unknown_pipeline_lists_those_there_are(settings: Settings) -> None:
    with pytest.raises(NotFound, match="use one of: toy"):
        run_ci(settings, "tow")


@pytest.mark.parametrize(
    ("name", "status", "stops"),
    [
        ("leakage: basket", "fail", True),
        ("leakage: basket", "warn", False),
        ("behaviour: row order", "fail", True),
        ("known in time: price", "fail", True),
        ("a finding of a later release", "fail", True),
        ("min_auc", "fail", False),
        ("calibration", "fail", False),
        ("slice device=phone", "fail", False),
    ],
)
def test_what_a_sample_cannot_decide_never_blocks_and_the_rest_does(
    name: str, status: str, stops: bool
) -> None:
    assert blocks(Finding(name, status, "")) is stops


def fail_with(error: Exception) -> Callable[[], str]:
    def check() -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], 0),
        ([Skip("no ruff")], 0),
        ([ServiceUnavailable("is down")], 75),
        ([ServiceUnavailable("is down"), CheckFailed("is wrong")], 2),
        ([ServiceUnavailable("is down"), ZeroDivisionError()], 1),
    ],
)
def test_the_exit_code_says_whether_to_fix_or_to_try_again(errors: list[Exception], code: int) -> None:
    path = Checks()
    for number, error in enumerate(errors):
        path.check(f"check {number}", fail_with(error))
    assert exit_code(path.results) == code


def test_junit_and_markdown_carry_every_check_whatever_its_text_holds() -> None:
    path = Checks()
    path.check("fine", lambda: "all | well")
    path.check(
        "bad", fail_with(CheckFailed("<b> & \x1b[31m ]]>\nsecond line", which="a.py:3", fix="do | it"))
    )
    path.check("after", lambda: "", needs=["bad"])
    path.check("odd", fail_with(ZeroDivisionError("by zero")))
    results = [item.to_json() for item in path.results]
    result = {
        "pipeline": "toy", "outcome": "fail", "wall_s": 1.5, "checks": results, "metrics": [], "reports": [],
    }  # fmt: skip
    suite = Xml.fromstring(junit(result).split("\n", 1)[1])[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    cases = {case.get("name"): case for case in suite}
    failure = cases["bad"].find("failure")
    assert failure is not None and failure.text is not None
    assert (
        "a.py:3: <b> & " in failure.text and "second line" in failure.text and "Fix: do | it" in failure.text
    )
    assert cases["after"].find("skipped") is not None
    assert "ZeroDivisionError: by zero" in cases["odd"].find("error").text  # type: ignore[union-attr]
    text = markdown(result)
    assert "all \\| well" in text and "second line" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
