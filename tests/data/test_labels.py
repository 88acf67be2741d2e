"""Labels: when they are known, and that they join to predictions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deliveries import FIRST, make_day, window

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import LabelsNotMature
from tasks.core.partitions import read_partition
from tasks.core.rows import entity_ids, prediction_ids
from tasks.data import labels, take_snapshot

Make = Callable[..., PipelineSpec]


def day(offset: int) -> date:
    return FIRST + timedelta(days=offset)


def test_labels_carry_the_ids_that_scoring_gives_the_same_rows(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    spec = make_pipeline(delivered)
    found = labels(settings, spec, days=[day(1)], as_of=day(2))
    scoring = take_snapshot(settings, spec, kind="scoring", window=window(1))
    rows = read_partition(open_store(settings, prefix=spec.prefix), scoring.partitions[0])
    assert found["prediction_id"].to_pylist() == prediction_ids(rows, spec)
    assert found["entity_id"].to_pylist() == entity_ids(rows, spec)
    assert found["label"].to_pylist() == make_day(1)["bought"].to_pylist()
    assert found.schema.field("label").type == pa.int8()
    assert set(found["day"].to_pylist()) == {day(1)}


def test_only_matured_days_come(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    spec = make_pipeline(delivered, label={"column": "bought", "delay_days": 2})
    found = labels(settings, spec, days=[day(0), day(1), day(3)], as_of=day(3))
    assert sorted(set(found["day"].to_pylist())) == [day(0), day(1)]
    with pytest.raises(LabelsNotMature, match="not known on 2024-03-04") as caught:
        labels(settings, spec, days=[day(3), day(2)], as_of=day(3))
    assert "2024-03-05" in caught.value.fix


def test_days_with_a_gap_and_days_without_rows_are_fine(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    found = labels(settings, make_pipeline(delivered), days=[day(3), day(0), day(40)], as_of=day(100))
    assert sorted(set(found["day"].to_pylist())) == [day(0), day(3)]
    assert labels(settings, make_pipeline(delivered), days=[day(40)], as_of=day(100)).num_rows == 0
