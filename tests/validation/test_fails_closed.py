"""Each way in which Great Expectations says yes, or nothing, without having looked: ours says no.

The first tests of each pair pin the library's own behaviour, so that an upgrade that changes it is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from great_expectations.core.expectation_suite import ExpectationSuite
from validation_toy import Take, WriteSuite, change, clock, expect

from tasks.core import PipelineSpec, Settings
from tasks.validation import ValidationResult, validate
from tasks.validation import engine as engine_module
from tasks.validation.combine import Outcome, combine
from tasks.validation.plain import plain
from tasks.validation.suite import Check

PRICE_NOT_NULL = expect("column_values_to_not_be_null", column="price")


def library(frame: pd.DataFrame, *entries: dict[str, Any]) -> tuple[ExpectationSuite, Any]:
    """What Great Expectations itself makes of a suite and a frame."""
    source = gx.get_context(mode="ephemeral").data_sources.add_pandas("p")
    batch = (
        source.add_dataframe_asset("a")
        .add_batch_definition_whole_dataframe("b")
        .get_batch({"dataframe": frame})
    )
    suite = ExpectationSuite(name="s", expectations=list(entries))
    return suite, batch.validate(suite)


def failures(result: ValidationResult) -> list[str]:
    assert result.verdict.outcome == (
        "fail" if any(f.status == "fail" for f in result.verdict.findings) else "pass"
    )
    return [f"{item.name}: {item.detail}" for item in result.verdict.findings if item.status == "fail"]


def assert_fails(result: ValidationResult, *words: str) -> None:
    assert result.verdict.outcome == "fail"
    assert result.clean_snapshot_id == ""
    assert any(all(word in text for word in words) for text in failures(result)), failures(result)


def test_the_toy_snapshot_passes_so_that_the_tests_below_can_fail(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    assert failures(validate(settings, toy, take(), clock=clock)) == []


def test_the_library_drops_an_unknown_type_and_goes_on() -> None:
    suite, report = library(
        pd.DataFrame({"price": [1.0]}), PRICE_NOT_NULL, expect("column_values_to_be_nice", column="price")
    )
    assert len(suite.expectations) == 1
    assert report.success


def test_an_unknown_expectation_type_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(PRICE_NOT_NULL, expect("column_values_to_be_betwen", column="price", severity="info"))
    known = "did you mean 'expect_column_values_to_be_between'?"
    assert_fails(validate(settings, toy, take()), "expectation 2", f"unknown expectation type, {known}")


def test_the_library_drops_an_unknown_severity_and_goes_on() -> None:
    suite, report = library(
        pd.DataFrame({"price": [1.0]}), PRICE_NOT_NULL, PRICE_NOT_NULL | {"severity": "fatal"}
    )
    assert len(suite.expectations) == 1
    assert report.success


def test_an_unknown_severity_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(PRICE_NOT_NULL, PRICE_NOT_NULL | {"severity": "fatal"})
    assert_fails(validate(settings, toy, take()), "unknown severity 'fatal'")


def test_a_misspelt_argument_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(expect("column_values_to_be_between", column="price", min_value=0, max_valeu=1))
    assert_fails(validate(settings, toy, take()), "max_valeu")


def test_the_library_passes_an_empty_suite() -> None:
    assert library(pd.DataFrame({"price": [1.0]}))[1].success


def test_an_empty_suite_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite()
    assert_fails(validate(settings, toy, take()), "an empty suite proves nothing")


def test_a_missing_suite_file_fails_the_gate(settings: Settings, toy: PipelineSpec, take: Take) -> None:
    (settings.expectations_dir / "toy.json").unlink()
    assert_fails(validate(settings, toy, take()), "toy.json does not exist")


def test_the_library_passes_an_empty_table() -> None:
    frame = pd.DataFrame({"price": pd.Series([], dtype=float)})
    assert library(frame, PRICE_NOT_NULL)[1].success


def test_a_snapshot_without_partitions_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    whole = take()
    empty = type(whole)("0" * 16, toy.name, "training", whole.schema, (), whole.created_at_utc)
    assert_fails(validate(settings, toy, empty), "no partition")


def test_a_day_below_the_row_floor_fails_the_gate(settings: Settings, toy: PipelineSpec, take: Take) -> None:
    snapshot = take(edit=lambda number, table: table.slice(0, 19) if number == 1 else table)
    assert_fails(validate(settings, toy, snapshot), "enough rows every day", "2024-01-02", "19")


def test_the_library_passes_a_column_without_any_value() -> None:
    frame = pd.DataFrame({"price": pd.Series([None, None], dtype=float)})
    assert library(frame, expect("column_values_to_be_between", column="price", min_value=0))[1].success
    assert library(frame, expect("column_distinct_values_to_be_in_set", column="price", value_set=[1]))[
        1
    ].success


@pytest.mark.parametrize(
    "entry",
    [
        expect("column_values_to_be_between", column="price", min_value=0),
        expect("column_values_to_be_between", column="price", min_value=0, row_level=True),
        expect("column_distinct_values_to_be_in_set", column="price", value_set=[1]),
        expect("column_unique_value_count_to_be_between", column="price", min_value=0),
        expect("column_mean_to_be_between", column="price", min_value=0),
        expect(
            "column_values_to_be_between",
            column="visits",
            min_value=0,
            row_condition='city=="Paris"',
            condition_parser="pandas",
        ),
    ],
)
def test_an_expectation_that_looked_at_no_value_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite, entry: dict[str, Any]
) -> None:
    write_suite(expect("column_to_exist", column="price"), entry)
    snapshot = take(edit=lambda _, table: change(table, "price", dict.fromkeys(range(60))))
    assert_fails(validate(settings, toy, snapshot), "no value at all")


def test_a_summary_of_a_batch_without_values_fails_although_other_batches_have_some() -> None:
    check = Check(
        0,
        "expect_column_distinct_values_to_be_in_set",
        {"column": "x", "value_set": [1]},
        "critical",
        False,
        "",
    )
    result = combine(
        check, [("a", Outcome(0, True, evaluated=5, observed=[1])), ("b", Outcome(0, True, evaluated=0))]
    )
    assert result.status == "fail"
    assert "no value to summarise" in result.detail


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_an_exception_inside_an_expectation_fails_the_gate_at_any_severity(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite, severity: str
) -> None:
    write_suite(PRICE_NOT_NULL, expect("column_values_to_match_regex", severity, column="city", regex="["))
    assert_fails(validate(settings, toy, take()), "city: values to match regex", "could not be evaluated")


def test_a_missing_column_fails_the_gate_at_any_severity(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(PRICE_NOT_NULL, expect("column_values_to_be_between", "info", column="prize", min_value=0))
    assert_fails(validate(settings, toy, take()), "no column prize")


def test_fewer_loaded_than_declared_expectations_fail_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(ExpectationSuite):
        def __init__(self, name: str, expectations: Sequence[Any]) -> None:
            super().__init__(name=name, expectations=list(expectations)[:-1])

    monkeypatch.setattr(engine_module, "ExpectationSuite", Forgetful)
    assert_fails(validate(settings, toy, take()), "declared expectations were loaded")


def test_an_expectation_without_result_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def __init__(self, asset: Any) -> None:
            self.asset = asset

        def get_batch(self, options: Any) -> Silent:
            self.batch = self.asset.get_batch(options)
            return self

        def validate(self, suite: Any, **options: Any) -> Any:
            report = self.batch.validate(suite, **options)
            report.results.pop()
            return report

    whole = engine_module.Engine.__init__

    def start(self: Any, *arguments: Any) -> None:
        whole(self, *arguments)
        self._asset = Silent(self._asset)

    monkeypatch.setattr(engine_module.Engine, "__init__", start)
    assert_fails(validate(settings, toy, take()), "gave no result")


def test_a_library_that_breaks_down_altogether_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine_module.Engine.__init__

    def start(self: Any, *arguments: Any) -> None:
        whole(self, *arguments)
        self._asset = None

    monkeypatch.setattr(engine_module.Engine, "__init__", start)
    assert_fails(validate(settings, toy, take()), "could not be evaluated", "raised")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            expect("column_mean_to_be_between", column="price", min_value=0, row_level=True),
            "about single rows",
        ),
        (
            expect(
                "column_mean_to_be_between",
                column="price",
                min_value=0,
                row_condition="visits>1",
                condition_parser="pandas",
            ),
            "cannot prove that any row was looked at",
        ),
    ],
)
def test_a_summary_can_neither_quarantine_rows_nor_hide_behind_a_condition(
    settings: Settings,
    toy: PipelineSpec,
    take: Take,
    write_suite: WriteSuite,
    entry: dict[str, Any],
    says: str,
) -> None:
    write_suite(entry)
    assert_fails(validate(settings, toy, take()), says)


def test_a_row_level_type_check_names_no_rows_and_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(
        PRICE_NOT_NULL, expect("column_values_to_be_of_type", column="price", type_="float64", row_level=True)
    )
    assert_fails(validate(settings, toy, take()), "names no rows")


def test_a_suite_that_is_all_about_labels_evaluates_nothing_on_a_scoring_snapshot_and_fails(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(expect("column_values_to_be_in_set", column="bought", value_set=[0, 1]))
    assert_fails(validate(settings, toy, take(kind="scoring")), "applies to a scoring snapshot")


def test_a_missing_label_column_fails_a_training_snapshot(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    snapshot = take(edit=lambda _, table: table.drop_columns(["bought"]))
    assert_fails(validate(settings, toy, snapshot), "bought")


def test_numpy_answers_of_the_quantile_expectation_are_stored_as_json(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    ranges = {"quantiles": [0.1, 0.5], "value_ranges": [[0, 50], [None, 100]]}
    write_suite(expect("column_quantile_values_to_be_between", column="price", quantile_ranges=ranges))
    result = validate(settings, toy, take())
    assert result.verdict.passed
    store = Path(settings.store_url) / toy.prefix
    stored = json.loads((store / str(result.verdict.evidence_key)).read_text())
    assert stored["checks"][0]["observed"]["quantiles"] == [0.1, 0.5]


def test_plain_coerces_what_json_cannot_hold() -> None:
    odd = {
        1: np.bool_(True),
        "b": np.float64("nan"),
        "c": {np.int64(3)},
        "d": pd.NaT,
        "e": pd.Timestamp("2024-01-01"),
        "f": np.array([1.5]),
        "g": float("inf"),
    }
    assert plain(odd) == {
        "1": True,
        "b": None,
        "c": [3],
        "d": None,
        "e": "2024-01-01T00:00:00",
        "f": [1.5],
        "g": "inf",
    }
    assert isinstance(plain(np.bool_(False)), bool)


def test_a_partition_delivered_twice_under_one_day_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    whole = take()
    twice = type(whole)(
        "1" * 16,
        toy.name,
        "training",
        whole.schema,
        (*whole.partitions, whole.partitions[0]),
        whole.created_at_utc,
    )
    assert_fails(validate(settings, toy, twice), "two partitions")


def test_repeated_keys_fail_the_gate_and_are_named(settings: Settings, toy: PipelineSpec, take: Take) -> None:
    snapshot = take(
        edit=lambda number, table: pa.concat_tables([table, table.slice(5, 2)]) if number == 2 else table
    )
    assert_fails(validate(settings, toy, snapshot), "rows are unique", "2 rows repeat", "c01030005")


def test_a_row_of_another_day_fails_the_gate(settings: Settings, toy: PipelineSpec, take: Take) -> None:
    def late(number: int, table: pa.Table) -> pa.Table:
        moment = table.column("asked_at")[0].as_py().replace(day=9)
        return change(table, "asked_at", {3: moment}) if number == 0 else table

    assert_fails(validate(settings, toy, take(edit=late)), "rows lie in their day", "1 rows", "2024-01-09")


def test_a_null_in_the_key_fails_the_gate(
    settings: Settings, toy: PipelineSpec, take: Take, write_suite: WriteSuite
) -> None:
    write_suite(expect("column_to_exist", column="price"))
    snapshot = take(edit=lambda _, table: change(table, "customer", {0: None}))
    assert_fails(validate(settings, toy, snapshot), "keys are present", "3 rows")


def test_a_column_that_stays_away_for_a_day_is_a_warning(
    settings: Settings, toy: PipelineSpec, take: Take
) -> None:
    snapshot = take(
        days=8,
        edit=lambda number, table: change(table, "price", dict.fromkeys(range(60))) if number == 4 else table,
    )
    result = validate(settings, toy, snapshot)
    assert result.verdict.passed
    (found,) = [item for item in result.verdict.findings if item.name == "columns are delivered every day"]
    assert found.status == "warn"
    assert "price on 2024-01-05" in found.detail


def test_a_row_level_answer_that_names_fewer_rows_than_it_counts_is_not_trusted() -> None:
    check = Check(0, "expect_column_values_to_be_between", {"column": "x"}, "critical", True, "")
    detail = {"unexpected_index_list": [{"x": -1, engine_module.ROW: 3}]}
    one, two = (
        engine_module._with_rows(check, Outcome(0, False, per_row=True, evaluated=9, unexpected=n), detail)
        for n in (1, 2)
    )
    assert (one.error, one.rows) == (None, ((3, "x = -1"),))
    assert two.error == "it counts 2 failing rows but names 1"
    assert combine(check, [("a", two)]).status == "fail"
