"""Audit rows of the toy pipeline, written by the real write path with the stub model."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from tasks.audit import audit_table
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.object_store import ObjectStore
from tasks.core.rows import prediction_ids
from tasks.core.scored import ScoredRows

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))

import inference_support
from inference_support import FIRST_DAY, score_and_publish, scoring_snapshot, table_rows, toy_rows

__all__ = ["FIRST_DAY", "inference_support", "older_audit_table", "open_store", "publish_days", "table_rows"]


def publish_days(
    settings: Settings, spec: PipelineSpec, *, days: int, version: int = 1
) -> tuple[list[str], str]:
    """Score and publish the first days; (their prediction ids in order, run id)."""
    from datetime import timedelta

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
