"""What the pages show: an overview that survives a broken pipeline, short evidence, and nothing but reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from wiring_support import Finished, edit

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.core.errors import DataGateFailed, NotFound
from tasks.core.records import Finding
from tasks.metadata import MetadataStore
from tasks.wiring.context import days_without_rows


def evidence(settings: Settings, kind: str, run: str = "manual__1") -> dict[str, Any]:
    entries = {entry["kind"]: entry for entry in wiring.dag_run_evidence(settings, "toy.train", run)}
    found: dict[str, Any] = entries[kind]
    return found


def test_the_overview_says_what_is_live_judged_and_published(finished: Finished) -> None:
    (line,) = wiring.overview(finished.settings)
    assert line["pipeline"] == "toy" and line["champion"]["version"] == finished.version
    assert line["published"] == {"last_day": "2024-02-08", "days": 4}
    assert {item["gate"]: item["outcome"] for item in line["verdicts"]} == {
        "data": "pass",
        "evaluation": "pass",
        "monitor, 2024-02-05 to 2024-02-08": "healthy",
    }


def test_the_overview_names_what_a_waiver_let_pass(installation: Settings) -> None:
    store, spec = MetadataStore.open(installation), load_pipeline(installation, "toy")
    waived = Finding(
        "calibration", "fail", "0.12 > 0.1", waived="waived by ada until 2024-03-01: late labels"
    )
    last = store.verdicts(spec, gate="evaluation", limit=1)[0].verdict
    store.record_verdict(
        spec, replace(last, findings=(*last.findings, waived), decided_at_utc="2024-02-20T00:00:00.000Z")
    )
    (line,) = wiring.overview(installation)
    (judged,) = (item for item in line["verdicts"] if item["gate"] == "evaluation")
    assert judged["outcome"] == "pass"
    assert judged["reasons"] == [f"[fail] calibration: 0.12 > 0.1 ({waived.waived})"]


def test_a_decision_about_one_day_or_none_is_told_as_such(installation: Settings) -> None:
    store, spec = MetadataStore.open(installation), load_pipeline(installation, "toy")
    day = date(2024, 2, 9)
    for first, last, days in ((day, day, "2024-02-09"), (None, None, "")):
        store.record_decision(
            spec, action="note", verdict="noise", reasons=["a"], first_day=first, last_day=last
        )
        (line,) = wiring.overview(installation)
        assert line["verdicts"][-1]["gate"] == (f"monitor, {days}" if days else "monitor")
        evaluated = store.verdicts(spec, gate="evaluation", limit=1)[0].verdict
        told = wiring.approval_evidence(
            installation,
            "toy",
            version=1,
            evaluation_key=evaluated.report_key.removesuffix("/report.html") + "/evidence.json",
        )
        assert told["monitor"][0]["days"] == days


def test_a_broken_pipeline_is_named_and_hides_no_other(installation: Settings) -> None:
    (installation.pipelines_dir / "odd").mkdir()
    (installation.pipelines_dir / "odd" / "pipeline.yaml").write_text("name: odd\n")
    odd, toy = wiring.overview(installation)
    assert "odd/pipeline.yaml" in odd["error"] and odd["champion"] is None
    assert toy["champion"] and "error" not in toy
    assert wiring.overview(installation, lambda name: name == "toy") == [toy]


def test_a_passed_gate_shows_how_many_checks_and_no_list_of_passes(installation: Settings) -> None:
    taken = wiring.step("snapshot_training")(installation, "toy")
    wiring.step("validate_snapshot")(
        installation, "toy", snapshot_id=taken["snapshot_id"], dag_run="toy.train/manual__1"
    )
    entry = evidence(installation, "data gate")
    spec = load_pipeline(installation, "toy")
    verdict = MetadataStore.open(installation).verdicts(spec, gate="data", limit=1)[0].verdict
    total = len(verdict.findings)
    assert (entry["title"], entry["outcome"], entry["reasons"]) == ("Data gate", "pass", [])
    assert entry["summary"]["checks"] == f"{total} of {total} checks passed"
    assert entry["links"]["report"].endswith("report.html")
    assert verdict.reasons(), "the verdict itself still says on what it stands"


def test_a_failed_gate_shows_what_failed_and_only_that(installation: Settings) -> None:
    edit(
        installation.pipelines_dir / "toy" / "source.py",
        {'["phone", "desktop"]': '["phone", "watch"]'},
    )
    taken = wiring.step("snapshot_training")(installation, "toy")
    with pytest.raises(DataGateFailed, match="device"):
        wiring.step("validate_snapshot")(
            installation, "toy", snapshot_id=taken["snapshot_id"], dag_run="toy.train/manual__2"
        )
    entry = evidence(installation, "data gate", "manual__2")
    assert entry["outcome"] == "fail"
    assert entry["reasons"] and all(not reason.startswith("[pass]") for reason in entry["reasons"])
    passed, _, rest = entry["summary"]["checks"].partition(" of ")
    assert int(passed) == int(rest.split()[0]) - len(entry["reasons"])


def test_a_day_of_the_window_that_was_not_delivered_is_named(installation: Settings) -> None:
    take = wiring.step("snapshot_training")
    assert take(installation, "toy")["days_without_rows"] == ""
    edit(
        installation.pipelines_dir / "toy" / "source.py",
        {
            "for i in range((last_day - first_day).days + 1)]\n    return": "for i in range((last_day - first_day).days + 1)]\n"
            "    days = [day for day in days if day not in (date(2024, 1, 9), date(2024, 2, 4))]\n    return"
        },
    )
    taken = take(installation, "toy", dag_run="toy.train/manual__4")
    assert (taken["days"], taken["days_without_rows"]) == (33, "2: 2024-01-09, 2024-02-04")
    (entry,) = wiring.dag_run_evidence(installation, "toy.train", "manual__4")
    assert entry["summary"]["days without rows"] == "2: 2024-01-09, 2024-02-04"
    first, last = date(2024, 1, 1), date(2024, 1, 9)
    assert days_without_rows(first, last, [first]).startswith("8: 2024-01-02, ") and days_without_rows(
        first, last, [first]
    ).endswith("2024-01-06, ...")


def test_a_snapshot_says_that_features_raise_on_its_rows_and_where(installation: Settings) -> None:
    take = wiring.step("snapshot_training")
    assert take(installation, "toy")["features_raise"] == ""
    code = installation.pipelines_dir / "toy" / "features.py"
    code.write_text(
        f"{code.read_text()}\n\ndef features(rows):\n    raise KeyError('nowhere')\n", encoding="utf-8"
    )
    raised = take(installation, "toy", dag_run="toy.train/manual__5")["features_raise"]
    assert "features.py:" in raised and "KeyError: 'nowhere'" in raised
    (entry,) = wiring.dag_run_evidence(installation, "toy.train", "manual__5")
    assert entry["summary"]["features raise"] == raised


def test_evidence_of_a_repeated_task_is_there_once(installation: Settings) -> None:
    for _ in range(2):
        wiring.step("snapshot_training")(installation, "toy", dag_run="toy.train/manual__3")
    entries = wiring.dag_run_evidence(installation, "toy.train", "manual__3")
    assert [entry["kind"] for entry in entries] == ["snapshot"]


@pytest.mark.parametrize("dag_id", ["nothing.train", "platform.maintenance", "toy"])
def test_a_dag_without_evidence_has_none(finished: Finished, dag_id: str) -> None:
    assert wiring.dag_run_evidence(finished.settings, dag_id, "manual__9") == []


def test_a_report_is_read_whole(finished: Finished) -> None:
    key = finished.chain.done["report_window"].first["report_key"]
    assert wiring.read_report(finished.settings, "toy", key).lstrip().startswith(b"<!")


@pytest.mark.parametrize(
    "key",
    [
        "monitoring/../../../other/toy/monitoring/report.html",
        "../toy/validation/x/report.html",
        "/etc/passwd.html",
        "monitoring/x/decision.json",
        "snapshots/x.html",
        "validation/x/report.html\n",
        "validation/%2e%2e/report.html",
        "validation\\..\\report.html",
        "",
    ],
)
def test_nothing_but_a_report_of_the_pipeline_is_read(finished: Finished, key: str) -> None:
    store = open_store(finished.settings)
    store.put("other/toy/monitoring/report.html", b"another tenant's")
    with pytest.raises(NotFound):
        wiring.read_report(finished.settings, "toy", key)


def test_a_report_of_a_pipeline_that_is_none_is_not_found(finished: Finished) -> None:
    with pytest.raises(NotFound, match="is not a pipeline"):
        wiring.read_report(finished.settings, "../toy", "validation/x/report.html")
