"""Great Expectations behind one narrow, suspicious interface.

Nothing of the library leaves this module: results come out as `Outcome` of plain Python types, and an answer
that does not add up (an exception, a missing result, a count that contradicts another) comes out as an error.
The context is ephemeral: no project folder, no data docs, no checkpoint store, no progress bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core.expectation_suite import ExpectationSuite
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.exceptions import ExpectationNotFoundError
from great_expectations.expectations.expectation import (
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    MulticolumnMapExpectation,
)
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.registry import (
    get_expectation_impl,
    list_registered_expectation_implementations,
)

from tasks.core.near_names import did_you_mean
from tasks.validation.combine import EXAMPLES, Outcome
from tasks.validation.plain import plain
from tasks.validation.quiet import quiet
from tasks.validation.suite import Check

ROW = "__penstock_row"
"""Synthetic row id that quarantine needs: the library's own row index is not the position in the partition."""
_SAMPLE = 200  # failing values that the library hands out; distinct ones of them become examples
_MAP = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
_ABOUT_THE_COLUMN = {
    "expect_column_to_exist",
    "expect_column_values_to_be_of_type",
    "expect_column_values_to_be_in_type_list",
    "expect_column_proportion_of_non_null_values_to_be_between",
}
_ABOUT_NULLS = {"expect_column_values_to_be_null", "expect_column_values_to_not_be_null"}


def version() -> str:
    """The version of Great Expectations."""
    return str(gx.__version__)


def problems(checks: Sequence[Check]) -> list[str]:
    """Why `checks` cannot be run as declared; empty when they can.

    Each is built alone, because the suite's constructor logs and drops the ones that it does not know.
    """
    found: list[str] = []
    with quiet():
        for check in checks:
            where = f"expectation {check.index + 1} ({check.type})"
            try:
                implementation = get_expectation_impl(check.type)
                ExpectationConfiguration(**check.config()).to_domain_obj()
            except ExpectationNotFoundError:
                known = list_registered_expectation_implementations()
                found.append(f"{where}: unknown expectation type{did_you_mean(check.type, known)}")
                continue
            except Exception as error:
                found.append(f"{where}: {_one_line(error)}")
                continue
            is_map = issubclass(implementation, _MAP)
            if check.row_level and not is_map:
                found.append(f"{where}: row_level needs an expectation about single rows")
            if check.kwargs.get("row_condition") is not None and not is_map:
                found.append(f"{where}: row_condition on a summary cannot prove that any row was looked at")
    return found


class Engine:
    """Runs checks over data frames, one batch at a time."""

    def __init__(self, suite_name: str, checks: Sequence[Check]) -> None:
        """Load `checks`, which `problems` found fit. Raises `LoadMismatch` when the library dropped any."""
        with quiet():
            context = gx.get_context(mode="ephemeral")
            context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
            source = context.data_sources.add_pandas("penstock")
            self._asset = source.add_dataframe_asset("batch").add_batch_definition_whole_dataframe("whole")
            per_row = [check for check in checks if check.row_level]
            snapshot = [check for check in checks if _whole_snapshot(check)]
            taken = {check.index for check in (*per_row, *snapshot)}
            self._row_checks = self._load(f"{suite_name}.rows", per_row)
            self._snapshot_checks = self._load(f"{suite_name}.snapshot", snapshot)
            self._batch_checks = self._load(
                suite_name, [check for check in checks if check.index not in taken]
            )

    def rows(self, frame: pd.DataFrame) -> list[Outcome]:
        """Row-level checks; failing rows are named by position in `frame`."""
        numbered = frame.assign(**{ROW: np.arange(len(frame))})
        return self._run(
            self._row_checks,
            numbered,
            {
                "result_format": "COMPLETE",
                "unexpected_index_column_names": [ROW],
                "partial_unexpected_count": _SAMPLE,
            },
        )

    def batch(self, frame: pd.DataFrame) -> list[Outcome]:
        """All other checks about columns."""
        return self._run(
            self._batch_checks,
            frame,
            {"result_format": "SUMMARY", "partial_unexpected_count": _SAMPLE},
        )

    def snapshot(self, rows: int) -> list[Outcome]:
        """Checks on the number of rows of the whole snapshot, which no single batch knows."""
        return self._run(self._snapshot_checks, pd.DataFrame(index=range(rows)), {"result_format": "SUMMARY"})

    def _load(self, name: str, checks: list[Check]) -> tuple[ExpectationSuite, list[Check]]:
        suite = ExpectationSuite(name=name, expectations=[check.config() for check in checks])
        if len(suite.expectations) != len(checks):
            raise LoadMismatch(declared=len(checks), loaded=len(suite.expectations))
        return suite, checks

    def _run(
        self, loaded: tuple[ExpectationSuite, list[Check]], frame: pd.DataFrame, result_format: dict[str, Any]
    ) -> list[Outcome]:
        suite, checks = loaded
        if not checks:
            return []
        try:
            with quiet():
                batch = self._asset.get_batch({"dataframe": frame})
                report = batch.validate(suite, result_format=result_format)
        except Exception as error:
            text = f"Great Expectations raised {_one_line(error)}"
            return [Outcome(check.index, False, error=text) for check in checks]
        by_index: dict[int, Any] = {}
        for result in report.results:
            by_index[int(result.expectation_config.meta["check"])] = result
        return [
            _outcome(check, by_index[check.index], frame)
            if check.index in by_index
            else Outcome(check.index, False, error="Great Expectations gave no result for it")
            for check in checks
        ]


class LoadMismatch(Exception):
    """The library loaded another number of expectations than were declared."""

    def __init__(self, *, declared: int, loaded: int) -> None:
        super().__init__(f"{loaded} of {declared} declared expectations were loaded")


def _whole_snapshot(check: Check) -> bool:
    return check.type.startswith("expect_table_row_count_to_") and not check.row_level


def _outcome(check: Check, result: Any, frame: pd.DataFrame) -> Outcome:
    error = _raised(result.exception_info)
    if error:
        return Outcome(check.index, False, error=error)
    detail: dict[str, Any] = result.result or {}
    success = plain(result.success)
    if not isinstance(success, bool):
        return Outcome(check.index, False, error=f"its success is {success!r}, neither true nor false")
    if "element_count" in detail:
        missing = 0 if check.type in _ABOUT_NULLS else int(detail.get("missing_count") or 0)
        unexpected = int(detail.get("unexpected_count") or 0)
        outcome = Outcome(
            check.index,
            success,
            per_row=True,
            evaluated=int(detail["element_count"]) - missing,
            missing=missing,
            unexpected=unexpected,
            examples=_examples(detail),
        )
        return _with_rows(check, outcome, detail) if check.row_level else outcome
    if check.row_level:
        return Outcome(check.index, False, error="it names no rows, so it cannot be row-level")
    observed = _mismatch(detail) if "table_columns" in check.type else plain(detail.get("observed_value"))
    return Outcome(
        check.index,
        success,
        evaluated=_looked_at(check, frame),
        unexpected=int(detail.get("unexpected_count") or 0),
        observed=observed,
        examples=_examples(detail),
    )


def _with_rows(check: Check, outcome: Outcome, detail: dict[str, Any]) -> Outcome:
    entries = detail.get("unexpected_index_list") or []
    rows = tuple((int(entry[ROW]), _found(entry)) for entry in entries)
    if len(rows) != outcome.unexpected:
        return Outcome(
            check.index, False, error=f"it counts {outcome.unexpected} failing rows but names {len(rows)}"
        )
    return replace(outcome, rows=rows)


def _looked_at(check: Check, frame: pd.DataFrame) -> int:
    """Rows of `frame` with a value in every column of a summary: the library does not say."""
    present = [column for column in check.columns if column in frame.columns]
    if not present or check.type in _ABOUT_THE_COLUMN:
        return len(frame)
    return int(frame[present].notna().all(axis=1).sum())


def _mismatch(detail: dict[str, Any]) -> str | None:
    """Of a check on the table's columns: those that are missing or too many, instead of all there are."""
    mismatched = (detail.get("details") or {}).get("mismatched") or {}
    if not isinstance(mismatched, dict):
        return str(plain(mismatched))
    parts = [
        f"{kind} {', '.join(map(str, columns))}" for kind, columns in sorted(mismatched.items()) if columns
    ]
    return "; ".join(parts) or None


def _raised(info: Any) -> str | None:
    """The exception inside a result: the library nests it by metric, or not."""
    if not isinstance(info, dict):
        return None
    if info.get("raised_exception"):
        return _short(str(info.get("exception_message") or "an exception without a message"))
    for nested in info.values():
        if isinstance(nested, dict) and (message := _raised(nested)):
            return message
    return None


def _examples(detail: dict[str, Any]) -> tuple[str, ...]:
    values = [plain(value) for value in detail.get("partial_unexpected_list") or []]
    return tuple(dict.fromkeys(_text(value) for value in values if value is not None))[:EXAMPLES]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(_text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _found(entry: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {plain(value)}" for name, value in entry.items() if name != ROW)


def _one_line(error: BaseException) -> str:
    return _short(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:299]}…"
