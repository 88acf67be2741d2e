"""Online predictions of the toy pipeline, and what of them is hot or in the audit table."""

from __future__ import annotations

import io
from collections import Counter
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq

from tasks.audit.hot import OnlineModel, OnlineRow, hot_rows
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.delta import table_view

MOMENT = datetime(2024, 3, 1, 12, tzinfo=UTC)

MODEL = OnlineModel(
    pipeline="toy",
    model_version=3,
    bundle_digest="d" * 64,
    feature_computation_version="1-abc",
    names=("price", "visits", "city", "device"),
    numeric=("price", "visits"),
    explainer="stub",
    explainer_version="1",
    background_id="zero",
    base_value=-3.0,
)


def online_row(number: int, *, request_id: str | None = None, scored_at: datetime | None = None) -> OnlineRow:
    """The n-th prediction: every third is not explained, every fifth lacks a value and a text."""
    lacks = number % 5 == 0
    return OnlineRow(
        model=MODEL,
        request_id=request_id or f"request-{number}",
        entity_id=f"c{number}",
        event_time=MOMENT + timedelta(seconds=number),
        prediction=(number % 97) / 100,
        features={
            "price": None if lacks else number + 0.1,
            "visits": 2.0,
            "city": None if lacks else "Zürich",
            "device": "phone",
        },
        scored_at=scored_at or MOMENT + timedelta(seconds=number, microseconds=5),
        attributions=None if number % 3 == 0 else (0.1 * number, -0.2, 0.3, 1 / 3),
        residual=None if number % 3 == 0 else 0.001,
    )


def warm_rows(settings: Settings, spec: PipelineSpec) -> list[dict]:
    """Rows of the audit table, as its log says."""
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, "tables/audit")
    rows: list[dict] = []
    for file in view.files if view else ():
        data = io.BytesIO(store.get(f"tables/audit/{file.path}"))
        rows += pq.ParquetFile(data).read().to_pylist()
    return rows


def everywhere(settings: Settings, spec: PipelineSpec) -> Counter[tuple[str, str]]:
    """How often each (prediction id, request id) is there, hot and in the table together."""
    rows = hot_rows(settings, spec, "", "~").to_pylist() + warm_rows(settings, spec)
    return Counter((row["prediction_id"], row["source_key"]) for row in rows)
