"""Online predictions of the toy pipeline, and what of them is hot or in the audit table."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.audit.hot import OnlineModel, OnlineRow, OnlineRows, hot_rows
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.delta import table_view
from tasks.core.prediction_ids import PredictionIds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENT = datetime(2024, 3, 1, 12, tzinfo=UTC)
EACH = 3
"""Rows that a thread of `hot_child.py` appends at once, as columns."""

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


def columns_of(rows: Sequence[OnlineRow]) -> OnlineRows:
    """The same predictions as columns; they are of one model."""
    model = rows[0].model
    entities = pa.array([row.entity_id for row in rows], pa.string())
    event_us = _micros([row.event_time for row in rows])
    explained = [row for row in rows if row.attributions is not None]
    return OnlineRows(
        model=model,
        prediction_ids=PredictionIds.of_parts(model.pipeline, entities, event_us // 1000),
        request_ids=[row.request_id for row in rows],
        entity_ids=entities,
        event_us=event_us,
        predictions=np.array([row.prediction for row in rows], np.float32),
        features=pa.table(
            {
                name: pa.array(
                    [row.features[name] for row in rows],
                    pa.float64() if name in model.numeric else pa.string(),
                )
                for name in model.names
            }
        ),
        scored_us=_micros([row.scored_at for row in rows]),
        explained=np.array([row.attributions is not None for row in rows], np.bool_),
        attributions=np.array([row.attributions for row in explained], np.float32).reshape(
            -1, len(model.names)
        ),
        residual=np.array([row.residual for row in explained], np.float32),
    )


def _micros(moments: Sequence[datetime]) -> np.ndarray:
    return np.array([(moment - EPOCH) // timedelta(microseconds=1) for moment in moments], np.int64)


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
