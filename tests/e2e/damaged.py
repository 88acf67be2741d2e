"""Pipelines over Parquet files, each with one fault that a delivery can have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

DAYS = 4
_ROWS = 30


def add_damaged_pipelines(project: Path) -> None:
    """`truncated`, `lacking` and `hollow` with a bad file of day 2, and `misspelt` with a wrong key."""
    for name in ("truncated", "lacking", "hollow"):
        folder = _add_pipeline(project, name)
        for day in range(DAYS):
            pq.write_table(_rows(day), folder / f"day-{day}.parquet")
    bad = project / "pipelines" / "truncated" / "delivered" / "day-2.parquet"
    bad.write_bytes(bad.read_bytes()[:-40])
    pq.write_table(
        _rows(2).drop_columns(["bought"]), project / "pipelines" / "lacking" / "delivered" / "day-2.parquet"
    )
    pq.write_table(_rows(2).slice(0, 0), project / "pipelines" / "hollow" / "delivered" / "day-2.parquet")
    _add_pipeline(project, "misspelt")
    file = project / "pipelines" / "misspelt" / "pipeline.yaml"
    file.write_text(file.read_text().replace("entity_key:", "entity_keys:"))


def _add_pipeline(project: Path, name: str) -> Path:
    delivered = project / "pipelines" / name / "delivered"
    delivered.mkdir(parents=True)
    (delivered.parent / "pipeline.yaml").write_text(
        yaml.safe_dump(
            {
                "name": name,
                "description": "visits",
                "owner": "tests",
                "source": {"kind": "parquet", "uri": "delivered"},
                "entity_key": ["visit"],
                "event_time": "at",
                "label": {"column": "bought"},
                "features": {"numeric": ["price"]},
                "split": {
                    "train": {"first_day": "2024-03-01", "last_day": "2024-03-03"},
                    "validation": {"first_day": "2024-03-04", "last_day": "2024-03-04"},
                },
                "validation": {"suite": name},
            },
            sort_keys=False,
        )
    )
    suite = {
        "name": name,
        "expectations": [
            {
                "type": "expect_column_values_to_not_be_null",
                "kwargs": {"column": "visit"},
                "severity": "critical",
            }
        ],
    }
    (project / "great_expectations" / "expectations" / f"{name}.json").write_text(json.dumps(suite))
    return delivered


def _rows(day: int) -> pa.Table:
    rng = np.random.default_rng(day)
    start = np.datetime64(f"2024-03-0{day + 1}T00:00", "us")
    return pa.table(
        {
            "visit": np.arange(_ROWS),
            "at": pa.array(start + np.arange(_ROWS) * np.timedelta64(40, "m"), pa.timestamp("us", tz="UTC")),
            "price": rng.random(_ROWS),
            "bought": pa.array(np.arange(_ROWS) % 2, pa.int8()),
        }
    )
