"""Expectations and what they found, in words for people."""

from __future__ import annotations

from typing import Any

from tasks.validation.suite import Check


def sentence(check: Check) -> str:
    """What `check` expects, as one sentence without a full stop."""
    columns = ", ".join(check.columns)
    text = _PHRASES.get(check.type, _fallback)(check.kwargs)
    subject = columns or "The table"
    if check.kwargs.get("mostly") is not None:
        text += f", in at least {percent(check.mostly)} of rows"
    if check.kwargs.get("row_condition") is not None:
        text += f", where {check.kwargs['row_condition']}"
    return f"{subject} {text}"


def number(value: float) -> str:
    """A figure short enough for a table: 1,234 or 0.0123."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share as a percentage that never rounds a part to all or nothing."""
    if share in (0, 1):
        return "100 %" if share else "0 %"
    for digits in (1, 2, 3):
        text = f"{share * 100:.{digits}f}"
        if float(text) not in (0.0, 100.0):
            return f"{text.rstrip('0').rstrip('.')} %"
    return "under 0.001 %" if share < 0.5 else "over 99.999 %"


def values(items: Any, *, most: int = 6) -> str:
    """A list of values, cut after `most`."""
    shown = [str(item) for item in list(items)[:most]]
    rest = len(items) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def bounds(kwargs: dict[str, Any]) -> str:
    """`between 1 and 2`, `at least 1` or `at most 2`."""
    low, high = (_bound(kwargs.get(name)) for name in ("min_value", "max_value"))
    strict = kwargs.get("strict_min"), kwargs.get("strict_max")
    if low is not None and high is not None and not any(strict):
        return f"between {low} and {high}"
    parts = []
    if low is not None:
        parts.append(f"{'above' if strict[0] else 'at least'} {low}")
    if high is not None:
        parts.append(f"{'below' if strict[1] else 'at most'} {high}")
    return " and ".join(parts) or "anything"


def _bound(value: Any) -> str | None:
    if value is None:
        return None
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _fallback(kwargs: dict[str, Any]) -> str:
    rest = {
        key: value
        for key, value in kwargs.items()
        if key not in ("column", "column_A", "column_B", "column_list", "mostly", "row_condition")
    }
    return "meets " + (", ".join(f"{key} {value}" for key, value in rest.items()) or "the expectation")


_PHRASES: dict[str, Any] = {
    "expect_column_to_exist": lambda _: "exists",
    "expect_column_values_to_not_be_null": lambda _: "is not null",
    "expect_column_values_to_be_null": lambda _: "is null",
    "expect_column_values_to_be_between": lambda k: f"is {bounds(k)}",
    "expect_column_values_to_be_in_set": lambda k: f"is one of {values(k['value_set'])}",
    "expect_column_values_to_not_be_in_set": lambda k: f"is none of {values(k['value_set'])}",
    "expect_column_values_to_match_regex": lambda k: f"matches {k['regex']}",
    "expect_column_values_to_not_match_regex": lambda k: f"does not match {k['regex']}",
    "expect_column_values_to_be_unique": lambda _: "is unique",
    "expect_column_values_to_be_of_type": lambda k: f"is of type {k['type_']}",
    "expect_column_values_to_be_in_type_list": lambda k: f"is of type {' or '.join(k['type_list'])}",
    "expect_column_value_lengths_to_equal": lambda k: f"has {k['value']} characters",
    "expect_column_value_lengths_to_be_between": lambda k: f"has a length {bounds(k)}",
    "expect_column_distinct_values_to_be_in_set": lambda k: f"has no value besides {values(k['value_set'])}",
    "expect_column_distinct_values_to_contain_set": lambda k: f"contains all of {values(k['value_set'])}",
    "expect_column_distinct_values_to_equal_set": lambda k: (
        f"has exactly the values {values(k['value_set'])}"
    ),
    "expect_column_unique_value_count_to_be_between": lambda k: f"has {bounds(k)} distinct values",
    "expect_column_mean_to_be_between": lambda k: f"has a mean {bounds(k)}",
    "expect_column_median_to_be_between": lambda k: f"has a median {bounds(k)}",
    "expect_column_min_to_be_between": lambda k: f"has a minimum {bounds(k)}",
    "expect_column_max_to_be_between": lambda k: f"has a maximum {bounds(k)}",
    "expect_column_sum_to_be_between": lambda k: f"has a sum {bounds(k)}",
    "expect_column_stdev_to_be_between": lambda k: f"has a standard deviation {bounds(k)}",
    "expect_column_quantile_values_to_be_between": lambda k: (
        "has quantiles "
        + "; ".join(
            f"{percent(float(q))} {bounds({'min_value': pair[0], 'max_value': pair[1]})}"
            for q, pair in zip(
                k["quantile_ranges"]["quantiles"], k["quantile_ranges"]["value_ranges"], strict=False
            )
        )
    ),
    "expect_column_pair_values_a_to_be_greater_than_b": lambda k: (
        "are in descending order" + (" or equal" if k.get("or_equal") else "")
    ),
    "expect_column_pair_values_to_be_equal": lambda _: "are equal",
    "expect_compound_columns_to_be_unique": lambda _: "together are unique",
    "expect_select_column_values_to_be_unique_within_record": lambda _: "differ within a row",
    "expect_table_columns_to_match_set": lambda k: (
        f"has {'exactly' if k.get('exact_match', True) else 'at least'} the columns "
        f"{values(k['column_set'], most=40)}"
    ),
    "expect_table_row_count_to_be_between": lambda k: f"has {bounds(k)} rows",
    "expect_table_row_count_to_equal": lambda k: f"has {number(k['value'])} rows",
    "expect_table_column_count_to_equal": lambda k: f"has {k['value']} columns",
}
