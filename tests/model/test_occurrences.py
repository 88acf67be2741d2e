"""Counting a column by value: exact whatever the table holds, and a table that holds what comes often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.model.occurrences import Occurrences

ROWS = 10_000


def counted(column: np.ndarray) -> Occurrences:
    return Occurrences.of(column, np.empty(column.size, np.int64))


def test_values_that_repeat_in_step_with_the_rows_are_found():
    column = np.tile(np.random.default_rng(0).normal(size=1024), 32)
    assert counted(column).rest.size < 0.25 * column.size


def test_a_column_whose_values_hardly_repeat_and_a_short_one_are_left_as_they_are():
    for column in (np.random.default_rng(0).normal(size=20_000), np.zeros(100), np.zeros(0)):
        found = counted(column)
        assert found.rest is column and found.values.size == 0


@pytest.mark.parametrize("kind", ["repeats", "unique"])
def test_a_function_of_the_value_reaches_every_row(kind):
    rng = np.random.default_rng(1)
    column = rng.normal(size=20_000) if kind == "unique" else rng.choice(rng.normal(size=900), 20_000)
    out = np.empty(column.size, np.int64)
    counted(column).each(lambda values: np.floor(values * 100).astype(np.int64), out)
    assert out.tolist() == np.floor(column * 100).astype(np.int64).tolist()


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50), st.integers(0, 2**32)
)
@hypothesis_settings(max_examples=40)
def test_every_row_is_counted_once_under_its_own_bits(values, seed):
    rng = np.random.default_rng(seed)
    column = rng.choice(np.array(values), ROWS)
    column[rng.random(ROWS) < 0.05] = 0.123
    found = counted(column)
    again = np.concatenate([np.repeat(found.values, found.counts), found.rest])
    assert sorted(again.view(np.uint64).tolist()) == sorted(column.view(np.uint64).tolist())
