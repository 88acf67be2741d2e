"""What a suite file may say, and that nothing in it is silently dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from validation_toy import expect

from tasks.core import Settings
from tasks.validation.suite import Check, for_scoring, not_applicable, read_suite

NOT_NULL = expect("column_values_to_not_be_null", column="price")


def read(folder: Path, raw: object) -> tuple[str, ...]:
    (folder / "s.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return read_suite(folder, "s").problems


def test_the_toy_suite_is_read_whole(settings: Settings) -> None:
    suite = read_suite(settings.expectations_dir, "toy")
    assert suite.problems == ()
    assert suite.declared == len(suite.checks) == 10
    assert [check.row_level for check in suite.checks].count(True) == 2
    assert len({check.name for check in suite.checks}) == 10


def test_a_missing_file_names_the_suites_there_are(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    (problem,) = read_suite(tmp_path, "s").problems
    assert "s.json does not exist" in problem
    assert "other" in problem


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("{", "not valid JSON"),
        ('{"name": "s", "expectations": [NaN]}', "not valid JSON"),
        ([], "no list of expectations"),
        ({"name": "s"}, "no list of expectations"),
        ({"name": "s", "expectations": []}, "an empty suite proves nothing"),
        ({"name": "other", "expectations": [NOT_NULL]}, "its name is 'other'"),
        ({"name": "s", "expectations": [NOT_NULL], "expectation": []}, "unknown key 'expectation'"),
        ({"name": "s", "expectations": ["x"]}, "is not an object"),
        ({"name": "s", "expectations": [{"kwargs": {}}]}, "has no type"),
        ({"name": "s", "expectations": [{"type": "expect_x"}]}, "has no kwargs"),
        ({"name": "s", "expectations": [NOT_NULL | {"severity": "fatal"}]}, "unknown severity 'fatal'"),
        ({"name": "s", "expectations": [NOT_NULL | {"severity": None}]}, "unknown severity None"),
        ({"name": "s", "expectations": [NOT_NULL | {"kwarg": {}}]}, "did you mean 'kwargs'"),
        ({"name": "s", "expectations": [NOT_NULL | {"id": "0b1c"}]}, "unknown key 'id'"),
        (
            {"name": "s", "expectations": [NOT_NULL | {"meta": {"row_level": "yes"}}]},
            "row_level must be true or false",
        ),
    ],
)
def test_what_cannot_be_taken_as_written_is_a_problem(tmp_path: Path, raw: object, says: str) -> None:
    problems = read(tmp_path, raw)
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (expect("column_values_to_not_be_null", column="x", mostly=0), "mostly must be above 0"),
        (expect("column_values_to_not_be_null", column="x", mostly=True), "mostly must be above 0"),
        (expect("column_mean_to_be_between", column="x"), "neither min_value nor max_value"),
        (expect("table_row_count_to_be_between"), "neither min_value nor max_value"),
        (expect("column_values_to_match_regex", column="x", regex=""), "regex is empty"),
        (expect("column_values_to_be_in_set", column="x", value_set=[]), "value_set is empty"),
        (
            expect(
                "column_quantile_values_to_be_between",
                column="x",
                quantile_ranges={"quantiles": [], "value_ranges": []},
            ),
            "a bound for every quantile",
        ),
    ],
)
def test_an_expectation_that_can_never_fail_is_a_problem(tmp_path: Path, entry: object, says: str) -> None:
    problems = read(tmp_path, {"name": "s", "expectations": [entry]})
    assert any(says in problem for problem in problems), problems


def test_layout_does_not_change_the_digest_and_a_bound_does(tmp_path: Path) -> None:
    def digest(raw: dict, indent: int | None) -> str:
        (tmp_path / "s.json").write_text(json.dumps(raw, indent=indent))
        return read_suite(tmp_path, "s").digest

    entry = expect("column_mean_to_be_between", column="x", min_value=1)
    raw = {"name": "s", "expectations": [entry]}
    changed = {"name": "s", "expectations": [expect("column_mean_to_be_between", column="x", min_value=2)]}
    assert digest(raw, None) == digest(dict(reversed(raw.items())), 4)
    assert digest(raw, None) != digest(changed, None)


def test_a_second_check_of_one_kind_on_one_column_gets_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"name": "s", "expectations": [NOT_NULL, NOT_NULL]}))
    first, second = read_suite(tmp_path, "s").checks
    assert first.name != second.name


def test_only_label_and_outcome_columns_are_not_applicable_to_scoring() -> None:
    def check(**kwargs: object) -> Check:
        return Check(0, "expect_something", kwargs, "critical", False, "")

    outcomes = {"bought", "paid"}
    assert not_applicable(check(column="bought"), outcomes=outcomes)
    assert not_applicable(check(column_A="price", column_B="paid"), outcomes=outcomes)
    assert not_applicable(check(column_list=["customer", "paid"]), outcomes=outcomes)
    assert not not_applicable(check(column="price"), outcomes=outcomes)
    table = check(column_set=["price", "bought"])
    assert not not_applicable(table, outcomes=outcomes)
    assert for_scoring(table, outcomes=outcomes).kwargs["column_set"] == ["price"]
