"""The data gate as the DAGs call it: verdict, severities, quarantine, evidence, report, and the same answer twice."""

from __future__ import annotations

import io
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fresh_imports import imported_by
from validation_toy import Take, WriteSuite, change, clock, expect

from tasks.core import ObjectStore, PipelineSpec, Settings, load_pipeline
from tasks.core.errors import DataError, DataGateFailed
from tasks.core.partitions import load_snapshot, read_partition
from tasks.validation import ValidationResult, batches, gate, require, validate

BAD_PRICES = {4: -5.0, 7: 5000.0}


def evidence_of(store: ObjectStore, result: ValidationResult) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(store.get(str(result.verdict.evidence_key)))
    return raw


def report_of(store: ObjectStore, result: ValidationResult) -> str:
    return store.get(str(result.verdict.report_key)).decode()


def bad_rows_on_the_second_day(number: int, table: pa.Table) -> pa.Table:
    return change(change(table, "price", BAD_PRICES), "visits", {7: 900}) if number == 1 else table


def test_a_clean_snapshot_passes_under_its_own_id_with_a_finding_for_each_expectation(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    snapshot = take()
    result = validate(settings, toy, snapshot, clock=clock)
    require(result)
    assert result.verdict.outcome == "pass"
    assert (result.verdict.gate, result.verdict.pipeline, result.verdict.subject) == (
        "data",
        "toy",
        snapshot.snapshot_id,
    )
    assert result.clean_snapshot_id == snapshot.snapshot_id
    assert (result.rows, result.quarantined_rows, result.quarantine_key) == (180, 0, None)
    assert len(result.verdict.findings) == 10 + 7
    assert {finding.status for finding in result.verdict.findings} == {"pass"}
    assert ValidationResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    ("severity", "status", "outcome"),
    [("critical", "fail", "fail"), ("warning", "warn", "pass"), ("info", "warn", "pass")],
)
def test_only_a_critical_failure_stops_the_chain(
    settings: Settings,
    toy: PipelineSpec,
    take: Take,
    write_suite: WriteSuite,
    severity: str,
    status: str,
    outcome: str,
) -> None:
    write_suite(
        expect("column_to_exist", column="price"),
        expect("column_mean_to_be_between", severity, column="price", min_value=1000, max_value=2000),
    )
    result = validate(settings, toy, take(), clock=clock)
    found = result.verdict.findings[1]
    assert (found.status, result.verdict.outcome) == (status, outcome)
    assert found.limit == 1000
    assert found.value is not None
    assert 10 < found.value < 40


def test_require_names_the_critical_findings_and_the_report(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    snapshot = take(edit=lambda number, table: change(table, "device", {0: "fridge"}))
    result = validate(settings, toy, snapshot, clock=clock)
    with pytest.raises(DataGateFailed) as raised:
        require(result)
    text = str(raised.value)
    assert "device is one of phone, desktop" in text
    assert "fridge" in text
    assert snapshot.snapshot_id in text
    assert result.report_url in text
    assert Path(result.report_url).is_file()


def test_mostly_is_the_share_that_must_agree(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(expect("column_values_to_not_be_null", column="price", mostly=0.9))
    few = take(edit=lambda _, table: change(table, "price", dict.fromkeys(range(5))))
    many = take(edit=lambda _, table: change(table, "price", dict.fromkeys(range(7))))
    assert validate(settings, toy, few).verdict.passed
    assert not validate(settings, toy, many).verdict.passed


def test_rows_that_fail_a_row_level_expectation_are_quarantined_whole_with_their_reasons(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    snapshot = take(edit=bad_rows_on_the_second_day)
    result = validate(settings, toy, snapshot, clock=clock)
    require(result)
    assert (result.rows, result.quarantined_rows) == (178, 2)

    quarantined = pq.read_table(io.BytesIO(store.get(str(result.quarantine_key))))
    assert quarantined.column_names == [
        *(name for name, _ in snapshot.schema),
        "quarantine_reason",
        "quarantine_expectations",
    ]
    rows = quarantined.to_pylist()
    assert [row["customer"] for row in rows] == ["c01020004", "c01020007"]
    assert "price = -5.0" in rows[0]["quarantine_reason"]
    assert "between 0 and 1,000" in rows[0]["quarantine_reason"]
    assert len(rows[0]["quarantine_expectations"]) == 1
    assert rows[1]["quarantine_expectations"] == [
        "price: values to be between",
        "visits: values to be between",
    ]


def test_the_clean_snapshot_holds_all_other_rows_and_reuses_untouched_partitions(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    snapshot = take(edit=bad_rows_on_the_second_day)
    result = validate(settings, toy, snapshot, clock=clock)
    clean = load_snapshot(store, result.clean_snapshot_id)
    assert clean.snapshot_id != snapshot.snapshot_id
    assert clean.parent_snapshot_id == snapshot.snapshot_id
    assert clean.rows == result.rows == 178
    assert [part.key for part in clean.partitions][::2] == [part.key for part in snapshot.partitions][::2]
    before = read_partition(store, snapshot.partitions[1])
    after = read_partition(store, clean.partitions[1])
    assert after.to_pylist() == [
        row for number, row in enumerate(before.to_pylist()) if number not in BAD_PRICES
    ]


def test_a_validation_of_the_clean_snapshot_quarantines_nothing_more(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    first = validate(settings, toy, take(edit=bad_rows_on_the_second_day))
    second = validate(settings, toy, load_snapshot(store, first.clean_snapshot_id))
    assert second.verdict.passed
    assert second.quarantined_rows == 0
    assert second.clean_snapshot_id == first.clean_snapshot_id


def test_too_large_a_share_of_quarantined_rows_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    snapshot = take(edit=lambda _, table: change(table, "price", dict.fromkeys(range(4), -1.0)))
    result = validate(settings, toy, snapshot)
    assert not result.verdict.passed
    (found,) = [item for item in result.verdict.findings if item.name == "share of quarantined rows"]
    assert (found.status, found.limit) == ("fail", 0.05)
    assert found.value == pytest.approx(12 / 180)
    assert found.detail.endswith("the limit is 5 %; most by price: values to be between: 12")
    assert result.clean_snapshot_id == ""
    assert store.exists(str(result.quarantine_key))


def test_a_row_level_expectation_with_mostly_fails_below_it(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(
        expect("column_values_to_be_between", column="price", min_value=0, mostly=0.99, row_level=True)
    )
    snapshot = take(edit=lambda _, table: change(table, "price", {0: -1.0}))
    assert validate(settings, toy, snapshot).verdict.findings[0].status == "fail"


def test_other_expectations_judge_the_rows_that_stay(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(
        expect("column_max_to_be_between", column="price", max_value=1000),
        expect("column_values_to_be_between", column="price", min_value=0, max_value=1000, row_level=True),
    )
    assert validate(settings, toy, take(edit=bad_rows_on_the_second_day)).verdict.passed


def test_a_scoring_snapshot_skips_label_expectations_without_counting_them_as_passed(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    result = validate(settings, toy, take(kind="scoring"), clock=clock)
    require(result)
    assert not [finding for finding in result.verdict.findings if "bought" in finding.name]
    evidence = evidence_of(store, result)
    (skipped,) = evidence["not_applicable"]
    assert skipped["reason"] == "not applicable to a scoring snapshot"
    assert skipped["status"] == "skipped"
    assert evidence["suite"]["declared"] == 10
    assert evidence["suite"]["evaluated"] == 9
    assert "Not applicable" in report_of(store, result)


def test_the_same_snapshot_and_suite_give_the_stored_answer(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = take(edit=bad_rows_on_the_second_day)
    first = validate(settings, toy, snapshot, clock=clock)
    kept = store.get(str(first.verdict.evidence_key))
    monkeypatch.setattr(gate, "_examine", lambda *_: pytest.fail("validated again"))
    assert validate(settings, toy, snapshot) == first
    assert store.get(str(first.verdict.evidence_key)) == kept


def test_a_failed_answer_is_stored_too(
    settings: Settings, toy: PipelineSpec, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = take(edit=lambda _, table: change(table, "device", {0: "fridge"}))
    first = validate(settings, toy, snapshot)
    monkeypatch.setattr(gate, "_examine", lambda *_: pytest.fail("validated again"))
    assert validate(settings, toy, snapshot) == first


def test_a_changed_suite_validates_again_and_keeps_the_earlier_evidence(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore, write_suite: WriteSuite
) -> None:
    snapshot = take(edit=bad_rows_on_the_second_day)
    first = validate(settings, toy, snapshot)
    earlier = store.get(str(first.verdict.evidence_key))
    write_suite(expect("column_values_to_not_be_null", column="price"))
    second = validate(settings, toy, snapshot)
    assert second.quarantined_rows == 0
    assert second.clean_snapshot_id == snapshot.snapshot_id
    assert not store.exists(str(first.quarantine_key)), "rows that are not quarantined any more"
    kept = [info.key for info in store.list(f"validation/{snapshot.snapshot_id}/history")]
    assert [Path(key).name for key in kept] == ["evidence.json", "quarantine.parquet", "report.html"]
    assert store.get(kept[0]) == earlier


def test_a_changed_limit_in_pipeline_yaml_validates_again(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    snapshot = take()
    assert validate(settings, toy, snapshot).verdict.passed
    stricter = toy.model_copy(update={"validation": toy.validation.model_copy(update={"min_rows": 61})})
    assert not validate(settings, stricter, snapshot).verdict.passed


def test_an_answer_that_was_no_answer_is_not_kept(
    settings: Settings, toy: PipelineSpec, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.validation import engine

    snapshot = take()
    with monkeypatch.context() as broken:
        broken.setattr(engine.Engine, "rows", lambda self, frame: [])
        assert not validate(settings, toy, snapshot).verdict.passed
    assert validate(settings, toy, snapshot).verdict.passed


def test_a_damaged_partition_is_an_error_that_names_the_file_and_leaves_no_evidence(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    snapshot = take()
    key = snapshot.partitions[1].key
    store.put(key, store.get(key)[:-10])
    with pytest.raises(DataError, match=re.escape(key)):
        validate(settings, toy, snapshot)
    assert not list(store.list("validation"))


@pytest.mark.parametrize("batch_rows", [1, 60, 100, 120, 10_000])
def test_the_answer_does_not_depend_on_how_days_are_batched(
    settings: Settings,
    toy: PipelineSpec,
    take: Take,
    store: ObjectStore,
    batch_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = batches.read_batches
    monkeypatch.setattr(
        gate, "read_batches", lambda store, snapshot: whole(store, snapshot, batch_rows=batch_rows)
    )
    result = validate(settings, toy, take(edit=bad_rows_on_the_second_day), clock=clock)
    require(result)
    assert load_snapshot(store, result.clean_snapshot_id).rows == 178
    assert pq.read_table(io.BytesIO(store.get(str(result.quarantine_key)))).column(
        "customer"
    ).to_pylist() == ["c01020004", "c01020007"]
    warned = {f.name: f.value for f in result.verdict.findings if f.status != "pass"}
    assert warned == {
        "price: values to be between": pytest.approx(2 / 180),
        "visits: values to be between": pytest.approx(1 / 180),
    }
    assert [f.value for f in result.verdict.findings if f.name == "enough rows every day"] == [58]


def test_a_day_larger_than_a_batch_is_read_in_row_groups_and_its_duplicates_are_still_found(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.partitions.ROW_GROUP_ROWS", 25)
    monkeypatch.setattr(batches.read_batches, "__kwdefaults__", {"batch_rows": 50})

    def repeat_first_row_at_the_end(number: int, table: pa.Table) -> pa.Table:
        return (
            pa.concat_tables([table, table.slice(0, 1)])
            if number == 1
            else bad_rows_on_the_second_day(1, table)
        )

    result = validate(settings, toy, take(edit=repeat_first_row_at_the_end))
    evidence = evidence_of(store, result)
    assert len(evidence["batches"]) == 6
    assert [day["rows"] for day in evidence["days"]] == [60, 61, 60]
    assert [day["quarantined"] for day in evidence["days"]] == [2, 0, 2]
    assert [f.name for f in result.verdict.findings if f.status == "fail"] == ["rows are unique"]


def test_row_counts_are_judged_over_the_whole_snapshot(
    settings: Settings,
    toy: PipelineSpec,
    take: Take,
    write_suite: WriteSuite,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches.read_batches, "__kwdefaults__", {"batch_rows": 60})
    write_suite(expect("table_row_count_to_be_between", min_value=180, max_value=180))
    assert validate(settings, toy, take()).verdict.passed
    write_suite(expect("table_row_count_to_be_between", min_value=181))
    assert not validate(settings, toy, take()).verdict.passed


def test_the_evidence_holds_digest_versions_and_every_result(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    evidence = evidence_of(store, validate(settings, toy, take(edit=bad_rows_on_the_second_day), clock=clock))
    assert len(evidence["suite"]["digest"]) == 64
    assert evidence["versions"]["great-expectations"].startswith("1.")
    assert [check["severity"] for check in evidence["checks"]].count("warning") == 3
    by_name = {check["name"]: check for check in evidence["checks"]}
    price = by_name["price: values to be between"]
    assert (price["evaluated"], price["unexpected"], price["missing"]) == (180, 2, 0)
    assert price["examples"]
    assert by_name["price: mean to be between"]["observed"] == pytest.approx(20, abs=6)
    assert evidence["quarantine"]["by_expectation"] == {
        "price: values to be between": 2,
        "visits: values to be between": 1,
    }


class Links(HTMLParser):
    """Everything that a browser would fetch, run or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")]


@pytest.mark.parametrize("kind", ["training", "scoring"])
def test_the_report_needs_no_network_and_no_script(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore, kind: str
) -> None:
    html = report_of(store, validate(settings, toy, take(kind=kind, edit=bad_rows_on_the_second_day)))
    links = Links()
    links.feed(html)
    assert "script" not in links.tags
    assert set(links.targets) == {"data:,", "quarantine.parquet", "evidence.json"}
    assert "http" not in html.replace("http-equiv", "")
    assert "@import" not in html
    assert "url(" not in html


def test_the_report_says_the_verdict_in_words_and_shows_severities_and_days(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore
) -> None:
    good = report_of(store, validate(settings, toy, take(edit=bad_rows_on_the_second_day)))
    assert "Fit for training, with 2 warnings" in good
    assert "<h2>Critical expectations</h2>" in good
    assert "<h2>Warning expectations</h2>" in good
    assert good.count("<title>2024-01-0") == 3 + 1
    bad = report_of(
        store, validate(settings, toy, take(edit=lambda _, t: change(t, "device", {0: "<b>fridge</b>"})))
    )
    assert "This data must not be used: 1 check failed" in bad
    assert "&lt;b&gt;fridge&lt;/b&gt;" in bad
    assert "<b>fridge" not in bad


def test_a_suite_that_cannot_be_run_still_gets_a_report_that_says_why(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore, write_suite: WriteSuite
) -> None:
    write_suite(expect("column_values_to_be_nice", column="price"))
    result = validate(settings, toy, take())
    assert "unknown expectation type" in report_of(store, result)
    with pytest.raises(DataGateFailed, match="unknown expectation type"):
        require(result)


def test_nothing_is_printed_and_no_file_is_left_behind(
    settings: Settings, toy: PipelineSpec, take: Take, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    elsewhere, home, scratch = (tmp_path / name for name in ("cwd", "userhome", "scratch"))
    for folder in (elsewhere, home, scratch):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with caplog.at_level(logging.INFO):
        validate(settings, toy, take(edit=bad_rows_on_the_second_day))
    assert capfd.readouterr() == ("", "")
    assert [list(folder.iterdir()) for folder in (elsewhere, home, scratch)] == [[], [], []]
    assert {record.name for record in caplog.records} == {"tasks.validation.gate"}
    assert any("data gate PASS" in record.getMessage() for record in caplog.records)


def test_only_the_promises_of_an_object_store_are_used(
    settings: Settings, toy: PipelineSpec, take: Take, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = {name for name in vars(ObjectStore) if not name.startswith("_")}

    class Bucket:
        """A store with the Protocol's methods only, whose URLs no local function can open."""

        def __getattr__(self, name: str) -> Any:
            assert name in promised, f"{name} is not promised by ObjectStore"
            return getattr(store, name)

        def url(self, key: str = "") -> str:
            return f"s3://bucket/{key}"

    snapshot = take(edit=bad_rows_on_the_second_day)
    monkeypatch.setattr(gate, "open_store", lambda *_, **__: Bucket())
    result = validate(settings, toy, snapshot)
    assert result.report_url == f"s3://bucket/validation/{snapshot.snapshot_id}/report.html"
    assert validate(settings, toy, snapshot) == result


def test_the_door_does_not_import_great_expectations() -> None:
    assert imported_by("import tasks.validation as v; v.require", "great_expectations", "pandas") == []


def test_the_flight_suite_is_one_that_can_be_run() -> None:
    from tasks.validation.engine import problems
    from tasks.validation.suite import read_suite

    settings = Settings.at_home(Path("unused"))
    spec = load_pipeline(settings, "flight_delay")
    suite = read_suite(settings.expectations_dir, spec.validation.suite)
    assert suite.problems == ()
    assert problems(suite.checks) == []
    assert 20 <= suite.declared <= 30
    assert {check.severity for check in suite.checks} == {"critical", "warning", "info"}
    assert any(check.row_level for check in suite.checks)
