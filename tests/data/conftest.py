"""Pipelines over small files that a test can damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from deliveries import make_day
from store_fixtures import s3_url, store_settings

from tasks.core import PipelineSpec, Settings, load_pipeline

__all__ = ["s3_url", "store_settings"]


@pytest.fixture
def delivered(tmp_path: Path) -> Path:
    """A folder with four daily Parquet files."""
    folder = tmp_path / "delivered"
    folder.mkdir()
    for offset in range(4):
        pq.write_table(make_day(offset), folder / f"day-{offset}.parquet")
    return folder


@pytest.fixture
def make_pipeline(settings: Settings) -> Callable[..., PipelineSpec]:
    """Writes a pipeline folder named `shop` and loads it."""

    def make(uri: Path | str, kind: str = "parquet", zone: str = "UTC", **changes: object) -> PipelineSpec:
        raw = {
            "name": "shop",
            "description": "visits",
            "owner": "tests",
            "source": {"kind": kind, "uri": str(uri), "time_zone": zone},
            "entity_key": ["shop", "visit"],
            "event_time": "at",
            "label": {"column": "bought", "outcome_columns": ["paid"]},
            "features": {"numeric": ["price"], "categorical": {"city": {}}},
            "split": {"train_days": 2, "validation_days": 1},
            "validation": {"suite": "shop"},
            **changes,
        }
        folder = settings.pipelines_dir / "shop"
        folder.mkdir(exist_ok=True)
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(raw))
        return load_pipeline(settings, "shop")

    return make
