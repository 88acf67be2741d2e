"""The toy pipeline's training snapshot, and settings with a real MLflow server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pyarrow as pa
import pytest

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.core.partitions import save_snapshot, table_schema, write_partition
from tasks.model.user_code import execute

FIRST_DAY, DAYS = date(2024, 1, 1), 35

Edit = Callable[[date, pa.Table], pa.Table]
MakeSnapshot = Callable[..., Snapshot]


@pytest.fixture
def make_snapshot(settings: Settings, toy: PipelineSpec) -> MakeSnapshot:
    """`make_snapshot(edit=...)` stores the toy source's 35 days, each passed through `edit(day, table)`."""
    path = settings.pipelines_dir / "toy" / "source.py"
    source = execute(path.read_text(), str(path))
    store = open_store(settings, prefix=toy.prefix)

    def make(edit: Edit = lambda day, table: table, *, days: int = DAYS) -> Snapshot:
        tables = {}
        for index in range(days):
            day = FIRST_DAY + timedelta(days=index)
            tables[day] = edit(day, source.load(day, day))
        parts = tuple(write_partition(store, day, table) for day, table in tables.items())
        schema = table_schema(next(iter(tables.values())))
        identity = Snapshot.identity("toy", "training", schema, parts)
        return save_snapshot(
            store, Snapshot(identity, "toy", "training", schema, parts, "2024-03-01T00:00:00.000Z")
        )

    return make


@pytest.fixture
def snapshot(make_snapshot: MakeSnapshot) -> Snapshot:
    return make_snapshot()


@pytest.fixture
def tracked_settings(settings: Settings, mlflow_url: str) -> Settings:
    """`settings` that point to a real MLflow server."""
    return replace(settings, mlflow_url=mlflow_url)
