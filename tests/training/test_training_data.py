"""Who trains, who tunes, who validates; and what data cannot be trained on."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from training_support import VALIDATION_FIRST_DAY, load

from tasks.core import open_store
from tasks.core.errors import DataError, PipelineCodeError


def _with(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_days_divide_the_rows_in_time_order_and_unlabelled_rows_are_left_out(settings, toy, snapshot) -> None:
    data = load(settings, toy, snapshot)
    assert [day.day for day in data.train_days][-1] == date(2024, 1, 28)
    assert data.tuning_first_day == date(2024, 1, 25)  # 15 % of 28 days
    known = {day.day: int(np.isfinite(day.labels).sum()) for day in (*data.train_days, *data.validation_days)}
    assert len(data.fit.y) == sum(n for day, n in known.items() if day < date(2024, 1, 25))
    assert len(data.tuning.y) == sum(
        n for day, n in known.items() if date(2024, 1, 25) <= day < VALIDATION_FIRST_DAY
    )
    assert len(data.validation.y) == sum(n for day, n in known.items() if day >= VALIDATION_FIRST_DAY)
    assert (
        sum(known.values())
        < snapshot.rows
        == sum(len(d.labels) for d in (*data.train_days, *data.validation_days))
    )


def test_the_encoder_learns_from_the_fit_rows_alone(settings, toy, make_snapshot) -> None:
    def later_is_dear(day: date, table: pa.Table) -> pa.Table:
        return _with(table, "visits", [10**6] * table.num_rows) if day >= date(2024, 1, 25) else table

    data = load(settings, toy, make_snapshot(later_is_dear))
    assert data.encoder.numeric[1].mean < 10


def test_a_feature_that_reads_an_outcome_fails_before_anything_is_trained(settings, toy, snapshot) -> None:
    path = settings.pipelines_dir / "toy" / "features.py"
    path.write_text(path.read_text().replace("    return rows", '    rows["paid"]\n    return rows'))
    with pytest.raises(PipelineCodeError, match=r"features\.py:9.*KeyError.*paid"):
        load(settings, toy, snapshot)


def test_a_single_training_day_still_gives_tuning_rows(settings, toy, make_snapshot) -> None:
    data = load(settings, toy, make_snapshot(days=2), date(2024, 1, 2))
    assert len(data.tuning.y) > 10 and len(data.fit.y) > 4 * len(data.tuning.y) - 20


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0] * 120, "all 2880 labels are 0 in the fit rows"),
        ([1] * 120, "all 2880 labels are 1 in the fit rows"),
        (pa.nulls(120, pa.int8()), "no row has a label in the fit rows"),
        ([2] * 120, "label column 'bought' holds the value 2"),
        (["yes"] * 120, "label column 'bought' holds string"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_refused(settings, toy, make_snapshot, values, says) -> None:
    bad = make_snapshot(lambda day, table: _with(table, "bought", values))
    with pytest.raises(DataError) as caught:
        load(settings, toy, bad)
    assert says in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    ("first", "says"), [(date(2024, 1, 1), "no day before"), (date(2024, 3, 1), "no day from")]
)
def test_a_window_without_days_is_refused(settings, toy, snapshot, first: date, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(settings, toy, snapshot, first)


def test_a_truncated_partition_is_refused_by_name(settings, toy, snapshot) -> None:
    store = open_store(settings, prefix=toy.prefix)
    key = snapshot.partitions[3].key
    store.put(key, store.get(key)[:-50])
    with pytest.raises(DataError, match=key):
        load(settings, toy, snapshot)
