"""A toy snapshot that a test can damage, and a suite that it can rewrite."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from validation_toy import FIRST_DAY, Take, WriteSuite, toy_rows

from tasks.core import ObjectStore, PipelineSpec, Settings, Snapshot, open_store
from tasks.core.partitions import save_snapshot, write_partition


@pytest.fixture
def store(settings: Settings, toy: PipelineSpec) -> ObjectStore:
    return open_store(settings, prefix=toy.prefix)


@pytest.fixture
def take(store: ObjectStore, toy: PipelineSpec) -> Take:
    """`take(days=3, kind="training", edit=...)`: a stored snapshot; `edit(day_number, table)` damages it."""

    def build(
        *,
        days: int = 3,
        kind: str = "training",
        rows: int = 60,
        edit: Callable[[int, pa.Table], pa.Table] | None = None,
    ) -> Snapshot:
        partitions = []
        schema: tuple[tuple[str, str], ...] = ()
        for number in range(days):
            day = FIRST_DAY + timedelta(days=number)
            table = toy_rows(day, rows)
            if edit is not None:
                table = edit(number, table)
            if kind == "scoring":
                table = table.drop_columns(["bought", "paid"])
            schema = tuple((field.name, str(field.type)) for field in table.schema)
            partitions.append(write_partition(store, day, table))
        return save_snapshot(
            store,
            Snapshot(
                Snapshot.identity(toy.name, kind, schema, tuple(partitions)),
                toy.name,
                kind,
                schema,
                tuple(partitions),
                "2024-03-01T00:00:00Z",
            ),
        )

    return build


@pytest.fixture
def write_suite(settings: Settings) -> WriteSuite:
    """`write_suite({...}, {...})` replaces the toy suite by these expectations."""

    def write(*expectations: Any, **top: Any) -> None:
        path = settings.expectations_dir / "toy.json"
        path.write_text(json.dumps({"name": "toy", "expectations": list(expectations), **top}))

    return write
