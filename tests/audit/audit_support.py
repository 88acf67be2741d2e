"""Audit rows of the toy pipeline, written by the real write path with the stub model."""

from __future__ import annotations

import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.audit.rows import AUDIT_SCHEMA, AUDIT_TABLE, audit_table
from tasks.core import ObjectStore, PipelineSpec, Settings, open_store
from tasks.core.delta import Change, FileName, TableFile, commit_change
from tasks.core.prediction_ids import PredictionIds
from tasks.core.rows import prediction_ids
from tasks.core.scored import ScoredRows
from tasks.core.table_files import write_table_file

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))

import inference_support
from inference_support import FIRST_DAY, score_and_publish, scoring_snapshot, table_rows, toy_rows

__all__ = [
    "FIRST_DAY",
    "add_file",
    "inference_support",
    "older_audit_table",
    "open_store",
    "publish_days",
    "table_rows",
    "write_batch",
]


def publish_days(
    settings: Settings, spec: PipelineSpec, *, days: int, version: int = 1
) -> tuple[list[str], str]:
    """Score and publish the first days; (their prediction ids in order, run id)."""
    run_id = score_and_publish(settings, spec, scoring_snapshot(settings, spec, days=days), version)
    ids = [
        item
        for i in range(days)
        for item in prediction_ids(toy_rows(settings, FIRST_DAY + timedelta(days=i)), spec)
    ]
    return sorted(ids), run_id


def older_audit_table(store: ObjectStore, scored: ScoredRows) -> pa.Table:
    """Audit rows as a release wrote them that knew no erasures."""
    return audit_table(store, scored).drop_columns(["erasure_id"])


def write_batch(
    settings: Settings,
    spec: PipelineSpec,
    rows: int,
    *,
    moment: datetime = datetime(2024, 3, 1, 12, tzinfo=UTC),
    step: timedelta = timedelta(0),
    run_id: str = "ab" * 8,
    version: int = 1,
) -> list[str]:
    """A batch of explained rows in one file of the audit table; their ids in order.

    Args:
        settings: This installation.
        spec: The toy pipeline.
        rows: How many.
        moment: Event time of the first.
        step: From each event time to the next; by default all have one.
        run_id: Of the run that scored them.
        version: Of its model.
    """
    store = open_store(settings, prefix=spec.prefix)
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    times = micros + np.arange(rows, dtype=np.int64) * (step // timedelta(microseconds=1))
    entities = pa.array([f"customer {i}" for i in range(rows)])
    ids = PredictionIds.of(entities, times, spec)
    order = ids.order()
    numbers = np.arange(rows, dtype=np.float64)[order]
    scored = ScoredRows(
        pipeline=spec.name,
        run_id=run_id,
        shard=0,
        day=moment.date(),
        model_version=version,
        bundle_digest="d" * 64,
        feature_version="1+stub",
        source_snapshot="cd" * 8,
        source_key="data/none.parquet",
        scored_at=moment + timedelta(days=version),
        prediction_ids=ids.take(order),
        event_times=pa.array(times[order], pa.timestamp("us", tz="UTC")),
        entity_ids=entities.take(pa.array(order)),
        source_rows=order,
        scores=((numbers % 1000) / 1000).astype(np.float32),
        output_names=(),
        outputs=np.zeros((rows, 0), np.float32),
        features=pa.table(
            {
                "price": numbers,
                "visits": numbers,
                "city": [f"city {i % 7}" for i in order],
                "device": ["phone"] * rows,
            }
        ),
        explained=np.ones(rows, bool),
        attributions=np.ones((rows, 4), np.float32),
        base_value=-1.0,
        residual=np.zeros(rows, np.float32),
        explainer="stub",
        explainer_version="1",
        background_id="zero",
    )
    name = FileName(moment.date(), run_id, moment.date(), 0, secrets.token_hex(4))
    add_file(store, write_table_file(store, AUDIT_TABLE, name, audit_table(store, scored), group_rows=2_048))
    texts: list[str] = scored.prediction_ids.texts().to_pylist()
    return texts


def add_file(store: ObjectStore, file: TableFile) -> None:
    """Add a file that is written already to the audit table."""
    commit_change(
        store,
        AUDIT_TABLE,
        schema=lambda: AUDIT_SCHEMA.append(pa.field("event_date", pa.date32())),
        decide=lambda _: Change(add=(file,)),
    )
