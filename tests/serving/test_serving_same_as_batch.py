"""The same rows get the same ids, the same scores and the same explanations as in batch, to the last bit."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from serving_support import DAY, PATH, QUICK, json_rows, make_bundle, put_live, serving, toy_rows

from tasks import wiring
from tasks.audit.hot import fold
from tasks.audit.rows import AUDIT_SCHEMA
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.spec import Window
from tasks.data import take_snapshot
from tasks.inference import plan, publish, run_plan

AUDIT = "tasks.audit:audit_table"
HISTORY = """
import pyarrow as pa
import pyarrow.compute as pc
FEATURE_VERSION = "2"
def features(rows):
    price = pc.cast(rows["price"], pa.float64())
    return pa.table({
        "price": pc.multiply(pc.sqrt(price), 1 / 3),
        "visits": pc.divide(pc.cast(rows["visits"], pa.float64()), 7.0),
        "city": rows["city"],
        "device": rows["device"],
    })
"""


def table(settings: Settings, spec: PipelineSpec, name: str) -> dict[str, dict[str, Any]]:
    """Rows of a Delta table by prediction id."""
    url = open_store(settings, prefix=spec.prefix).url(f"tables/{name}").removeprefix("file://")
    return {row["prediction_id"]: row for row in DeltaTable(url).to_pyarrow_table().to_pylist()}


def batch(settings: Settings, spec: PipelineSpec, version: int, bundle: tuple[str, str]) -> None:
    window = Window(first_day=DAY, last_day=DAY + timedelta(days=1))
    snapshot = take_snapshot(settings, spec, kind="scoring", window=window)
    planned = plan(
        settings, spec, snapshot, model_version=version, bundle_digest=bundle[0], feature_version=bundle[1]
    )
    run_plan(settings, spec, planned.run_id, local=True, audit_table=AUDIT)
    publish(settings, spec, planned.run_id)


def bits(score: float) -> bytes:
    return np.float32(score).tobytes()


@pytest.mark.parametrize("hidden", [(16, 8), (192, 64)])
@pytest.mark.parametrize("features", [None, HISTORY])
def test_scores_and_ids_of_requests_are_those_of_batch_scoring_bit_by_bit(
    installation: Settings, spec: PipelineSpec, hidden: tuple[int, ...], features: str | None
) -> None:
    bundle = make_bundle(installation, spec, seed=9, hidden=hidden, features=features)
    put_live(installation, spec, 9, bundle)
    batch(installation, spec, 9, bundle)
    published = table(installation, spec, "predictions")
    rows = json_rows(pa.concat_tables([toy_rows(installation, DAY + timedelta(days=n)) for n in (0, 1)]))
    assert len(rows) == len(published) == 240
    answers: list[dict[str, Any]] = []
    with serving(installation, audit=False) as (server, client):
        assert server.live is not None
        for size in (1, 2, 3, 7, 31, 32, 33, 100):  # in all sorts of company
            part = rows[len(answers) : len(answers) + size]
            answers += client.post(PATH, json={"rows": part}).json()["predictions"]
        answers += client.post(PATH, json={"rows": rows[len(answers) :]}).json()["predictions"]
    assert {answer["prediction_id"] for answer in answers} == set(published)
    for answer in answers:
        assert bits(answer["score"]) == bits(published[answer["prediction_id"]]["score"])


def test_the_audit_store_has_the_same_features_and_explanations_online_as_in_batch(
    installation: Settings, spec: PipelineSpec, bundles: dict[int, tuple[str, str]]
) -> None:
    batch(installation, spec, 1, bundles[1])
    offline = table(installation, spec, "audit")
    rows = json_rows(toy_rows(installation))
    with serving(installation, QUICK) as (_, client):
        for first in range(0, 120, 5):
            assert client.post(PATH, json={"rows": rows[first : first + 5]}).status_code == 200
    assert fold(installation, spec, seal=True).rows == 120
    url = open_store(installation, prefix=spec.prefix).url("tables/audit").removeprefix("file://")
    online = [row for row in DeltaTable(url).to_pyarrow_table().to_pylist() if row["source_snapshot"] is None]
    assert len(online) == 120
    of_the_run = {"run_id", "shard_id", "source_snapshot", "source_key", "source_row", "scored_at"}
    same = [name for name in AUDIT_SCHEMA.names if name not in of_the_run]
    assert {"prediction", "attributions", "feature_values", "base_value", "residual"} <= set(same)
    for row in online:
        twin = offline[row["prediction_id"]]
        assert repr([row[name] for name in same]) == repr([twin[name] for name in same])  # a NaN is one


def test_wiring_lists_the_server() -> None:
    assert callable(wiring.serve)
