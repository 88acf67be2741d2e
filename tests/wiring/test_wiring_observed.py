"""What others see of a step: lineage with rows and versions, a trace down to the shards, lines with ids; and that none of it stops a run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from receivers import Receiver, receiving
from wiring_support import Finished, plan_next_days, step

from tasks import wiring
from tasks.core import Settings
from tasks.core.errors import DataGateFailed, NotFound
from tasks.core.log_lines import bound, bound_ids, handler


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def seen(installation: Settings, receiver: Receiver) -> Settings:
    """The finished installation, with a collector and a lineage endpoint."""
    return dataclasses.replace(
        installation, otlp_url=receiver.url, lineage=f"{receiver.url}/api/v1/lineage", log_format="json"
    )


def of(receiver: Receiver, name: str, state: str = "COMPLETE") -> dict[str, Any]:
    (found,) = [
        event
        for event in receiver.events
        if event["job"]["name"] == f"toy.{name}" and event["eventType"] == state
    ]
    return found


def test_lineage_leads_from_the_source_to_the_table_with_rows_and_versions(
    seen: Settings, receiver: Receiver
) -> None:
    run_id = plan_next_days(seen)
    step(seen, "score_run", run_id=run_id, local=True)
    published = step(seen, "publish_run", run_id=run_id)
    for event in receiver.events:
        assert event["job"]["namespace"] == "penstock://default"
    taken, validated = of(receiver, "snapshot_scoring"), of(receiver, "validate_snapshot")
    scored, added = of(receiver, "score_run"), of(receiver, "publish_run")
    assert taken["inputs"][0]["name"].endswith("pipelines/toy/source.py")
    for earlier, later in ((taken, validated), (validated, scored), (scored, added)):
        written = {(one["namespace"], one["name"]): one for one in earlier["outputs"]}
        assert (later["inputs"][0]["namespace"], later["inputs"][0]["name"]) in written
    checks = validated["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert checks and all(one["success"] for one in checks)
    columns = {one["name"] for one in scored["inputs"][0]["facets"]["schema"]["fields"]}
    assert {"price", "visits"} <= columns
    bundle = scored["inputs"][1]
    live = step(seen, "live_model")
    assert bundle["facets"]["version"]["datasetVersion"] == live["bundle_digest"]
    assert bundle["name"].endswith(f"bundles/{live['bundle_digest']}")
    rows = [
        scored["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"],
        scored["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"],
        added["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"],
    ]
    assert rows == [480, 480, 480]
    table = added["outputs"][0]
    assert table["name"].endswith("default/toy/tables/predictions") and table["namespace"] == "file"
    assert table["facets"]["version"]["datasetVersion"] == str(published["table_version"])
    begun = of(receiver, "score_run", "START")
    assert begun["run"]["runId"] == scored["run"]["runId"] and begun["outputs"] == []


def test_a_training_is_told_with_its_snapshot_and_its_model(
    seen: Settings, receiver: Receiver, finished: Finished
) -> None:
    done = finished.chain.done
    trained = done["train_model"].first
    again = step(
        seen,
        "train_model",
        snapshot_id=trained["snapshot_id"],
        validation_first_day=done["snapshot_training"].first["validation_first_day"],
    )
    assert again == trained
    event = of(receiver, "train_model")
    assert event["inputs"][0]["facets"]["version"]["datasetVersion"] == trained["snapshot_id"]
    assert event["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] > 0
    assert event["outputs"][0]["facets"]["version"]["datasetVersion"] == trained["bundle_digest"]


def test_a_gate_that_refuses_is_a_failed_run_with_its_checks(seen: Settings, receiver: Receiver) -> None:
    suite = next(iter(seen.expectations_dir.glob("toy*.json")))
    raw = json.loads(suite.read_text())
    for check in raw["expectations"]:
        if check["type"] == "expect_column_values_to_be_between":
            check["kwargs"] |= {"min_value": 10**9, "max_value": 10**9 + 1}
            check["severity"] = "critical"
            check.setdefault("meta", {}).pop("quarantine", None)
    suite.write_text(json.dumps(raw))
    taken = step(seen, "snapshot_scoring")
    with pytest.raises(DataGateFailed):
        step(seen, "validate_snapshot", snapshot_id=taken["snapshot_id"])
    event = of(receiver, "validate_snapshot", "FAIL")
    assert "errorMessage" in event["run"]["facets"]
    checks = event["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert not all(one["success"] for one in checks)
    assert receiver.span("step validate_snapshot").failed


def test_a_trace_reaches_from_the_parent_that_was_handed_over_to_every_shard(
    seen: Settings, receiver: Receiver
) -> None:
    run_id = plan_next_days(seen)
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    report = step(
        dataclasses.replace(seen, trace_parent=parent), "score_run", run_id=run_id, local=True, dag_run="d/r"
    )
    around = receiver.span("step score_run")
    assert (around.trace_id, around.parent_id) == ("ab" * 16, "cd" * 8)
    said = around.attributes
    assert (said["penstock.pipeline"], said["penstock.tenant"], said["penstock.run_id"], said["penstock.dag_run"]) == (
        "toy", "default", run_id, "d/r",
    )  # fmt: skip
    shards = [one for one in receiver.spans if one.name == "shard"]
    assert sorted(one.attributes["penstock.shard"] for one in shards) == list(range(report["shards"]))
    assert sum(one.attributes["penstock.rows"] for one in shards) == report["rows_scored"]
    for one in shards:
        assert (one.trace_id, one.parent_id) == (around.trace_id, around.span_id)
        assert one.began_ns <= one.ended_ns and one.attributes["penstock.attempt"].startswith("a0001-")


@pytest.mark.parametrize("fault", ["refused", "error", "away", "hangs", "unwritable"])
def test_receivers_that_fail_cost_an_event_and_never_the_run(
    installation: Settings,
    receiver: Receiver,
    fault: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = receiver.url
    if fault == "refused":
        receiver.status = 400
    elif fault == "error":
        receiver.status = 503
    elif fault == "hangs":
        receiver.hold = threading.Event()
        for patience in ("tasks.core.traces._SEND_S", "tasks.wiring.lineage._SEND_S"):
            monkeypatch.setattr(patience, 0.5)
    elif fault == "away":
        url = "http://127.0.0.1:9"
    lineage = str(tmp_path) if fault == "unwritable" else url
    settings = dataclasses.replace(installation, otlp_url=url, lineage=lineage)
    run_id = plan_next_days(installation)
    assert step(settings, "score_run", run_id=run_id, local=True)["rows_scored"] == 480
    assert "was not sent" in caplog.text
    assert receiver.events == []
    assert receiver.spans == [] or fault == "unwritable"  # that is the file of lineage alone


def test_lineage_may_go_to_a_file(installation: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(installation, lineage=str(tmp_path / "lineage.ndjson"))
    step(settings, "list_cases")
    with pytest.raises(NotFound):
        step(settings, "show_snapshot", snapshot_id="no-such-snapshot")
    events = [json.loads(line) for line in (tmp_path / "lineage.ndjson").read_text().splitlines()]
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("toy.list_cases", "START"),
        ("toy.list_cases", "COMPLETE"),
        ("toy.show_snapshot", "START"),
        ("toy.show_snapshot", "FAIL"),
    ]


def test_a_step_in_a_process_of_its_own_writes_lines_with_ids_and_joins_the_trace(
    seen: Settings, receiver: Receiver
) -> None:
    """As a Ray job runs it: everything comes by the environment."""
    run_id = plan_next_days(seen)
    receiver.spans.clear()
    settings = dataclasses.replace(
        seen,
        trace_parent=f"00-{'12' * 16}-{'34' * 8}-01",
        lineage_parent=f"airflow/toy.score.score/{'5' * 8}-1111-4111-8111-111111111111",
    )
    command = [sys.executable, "-m", "tasks.cli", "job", "score_run", "toy", "--result", "jobs/x.json"]
    done = subprocess.run(
        [*command, "--arguments", json.dumps({"run_id": run_id, "local": True})],
        env={**os.environ, **settings.as_environment()}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    inside = [line for line in lines if line.get("step") == "score_run"]
    assert {line["run_id"] for line in inside} == {run_id}
    assert {line["tenant"] for line in inside} == {"default"} and {line["trace_id"] for line in inside} == {
        "12" * 16
    }
    assert [line for line in lines if "scored 480 rows" in line["message"]]
    around = receiver.span("step score_run")
    assert (around.trace_id, around.parent_id) == ("12" * 16, "34" * 8)
    assert len([one for one in receiver.spans if one.name == "shard"]) > 1
    parent = of(receiver, "score_run")["run"]["facets"]["parent"]
    assert (parent["job"]["namespace"], parent["job"]["name"]) == ("airflow", "toy.score.score")
    assert "root" not in parent


def test_without_receivers_neither_library_is_loaded(installation: Settings) -> None:
    code = (
        "import sys; from tasks import wiring; from tasks.core import Settings;"
        "wiring.step('list_cases')(Settings.from_environment(), 'toy');"
        "print([name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'openlineage')])"
    )
    env = {**os.environ, **installation.as_environment()}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ids_are_bound_for_what_is_inside_and_a_line_is_one_object(installation: Settings) -> None:
    stream = StringIO()
    logger = logging.Logger("one")
    logger.addHandler(handler(stream, "json"))
    with bound(run_id="r1", tenant=None):
        with bound(shard=3):
            assert bound_ids() == {"run_id": "r1", "shard": 3}
            try:
                raise ValueError("two\nlines, „quoted“")
            except ValueError:
                logger.exception("shard %d failed", 3)
        logger.info("after")
    inside, after = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (inside["run_id"], inside["shard"], inside["level"], inside["message"]) == (
        "r1",
        3,
        "error",
        "shard 3 failed",
    )
    assert "two\nlines, „quoted“" in inside["error"]
    assert "shard" not in after and bound_ids() == {}


def test_a_step_is_the_same_function_for_whoever_asks_its_signature() -> None:
    import inspect

    assert list(inspect.signature(wiring.step("score_run")).parameters) == [
        "settings", "pipeline", "run_id", "local", "dag_run",
    ]  # fmt: skip
