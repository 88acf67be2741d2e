"""A small model with the scorer's interface, snapshots of the toy source, and ways to look at the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.core.object_store import LocalStore, ObjectInfo, S3Store
from tasks.core.partitions import save_snapshot, table_schema, write_partition
from tasks.core.sampling import CountedRows
from tasks.inference import Plan, plan, publish, run_plan
from tasks.model.user_code import execute

FIRST_DAY = date(2024, 3, 1)
POISON = -13.0
"""A price at which the stub's feature code raises."""
NOT_A_NUMBER = -99.0
"""A price at which the stub answers NaN."""

STUB = "inference_support:load_stub"
AUDIT = "tasks.audit:audit_table"
DIGEST = "d" * 64


@dataclass(frozen=True)
class StubAttributions:
    attributions: np.ndarray[Any, Any]
    base_value: float
    residual: np.ndarray[Any, Any]


class StubModel:
    """score = sigmoid(0.05 * price + 0.1 * visits - version)."""

    feature_names = ("price", "visits", "city", "device")
    explainer = "stub"
    explainer_version = "1"
    background_id = "zero"
    block_rows = 1
    output_names: tuple[str, ...] = ()

    def __init__(self, version: int) -> None:
        self.version = version

    def features(self, rows: pa.Table) -> pa.Table:
        prices = rows.column("price").to_pylist()
        if POISON in prices:
            raise ValueError("a price of -13 is unlucky")
        kinds = (pa.float64(), pa.float64(), pa.string(), pa.string())
        return pa.table(
            {name: rows.column(name).cast(kind) for name, kind in zip(self.feature_names, kinds, strict=True)}
        )

    def encode(self, features: pa.Table) -> np.ndarray[Any, Any]:
        columns = [features.column(name).fill_null(0.0).to_numpy() for name in ("price", "visits")]
        return np.nan_to_num(np.stack(columns, axis=1)).astype(np.float32)

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # not by a product of matrices: some BLAS round a row otherwise beside other rows
        parts = encoded * np.array([0.05, 0.1], np.float32)
        scores = 1 / (1 + np.exp(-(parts[:, 0] + parts[:, 1] - self.version)))
        scores[encoded[:, 0] == NOT_A_NUMBER] = np.nan
        return scores.astype(np.float32)

    def outputs(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros((len(encoded), 0), np.float32)

    def explain(self, encoded: np.ndarray[Any, Any]) -> StubAttributions:
        parts = np.zeros((len(encoded), 4), np.float32)
        parts[:, :2] = encoded * np.array([0.05, 0.1], np.float32)
        return StubAttributions(parts, float(-self.version), np.zeros(len(encoded), np.float32))

    def profile(
        self,
        features: pa.Table,
        scores: np.ndarray[Any, Any],
        explained: np.ndarray[Any, Any],
        attributions: np.ndarray[Any, Any],
        rows: pa.Table,
        counted: CountedRows | None,
    ) -> dict[str, Any]:
        found = {"rows": features.num_rows, "score_sum": float(scores.sum(dtype=np.float64))}
        if counted is None:
            return found
        assert counted.features == features.take(pa.array(counted.places))
        return found | {"one_of": counted.one_of, "places": counted.places.tolist()}


def load_stub(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    return StubModel(planned.fingerprint.model_version)


def toy_rows(settings: Settings, day: date) -> pa.Table:
    """One day of the toy source, without outcomes."""
    path = settings.pipelines_dir / "toy" / "source.py"
    source: Any = execute(path.read_text(), str(path))
    return source.load(day, day).drop_columns(["paid", "bought"])


def scoring_snapshot(
    settings: Settings,
    spec: PipelineSpec,
    *,
    first_day: date = FIRST_DAY,
    days: int = 3,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> Snapshot:
    store = open_store(settings, prefix=spec.prefix)
    tables = {
        day: change(toy_rows(settings, day)) for day in (first_day + timedelta(days=i) for i in range(days))
    }
    partitions = tuple(write_partition(store, day, table) for day, table in tables.items())
    schema = table_schema(next(iter(tables.values())))
    identity = Snapshot.identity(spec.name, "scoring", schema, partitions)
    return save_snapshot(
        store, Snapshot(identity, spec.name, "scoring", schema, partitions, "2024-04-01T00:00:00.000Z")
    )


def plan_stub(
    settings: Settings, spec: PipelineSpec, snapshot: Snapshot, version: int = 1, **more: Any
) -> Plan:
    return plan(
        settings,
        spec,
        snapshot,
        model_version=version,
        bundle_digest=DIGEST,
        feature_version="1+stub",
        **more,
    )


def run_stub(settings: Settings, spec: PipelineSpec, run_id: str, **more: Any) -> Any:
    return run_plan(
        settings, spec, run_id, **{"local": True, "audit_table": AUDIT, "load_model": STUB, **more}
    )


def score_and_publish(settings: Settings, spec: PipelineSpec, snapshot: Snapshot, version: int = 1) -> str:
    run_id = plan_stub(settings, spec, snapshot, version).run_id
    run_stub(settings, spec, run_id)
    publish(settings, spec, run_id)
    return run_id


def table_rows(settings: Settings, spec: PipelineSpec, table: str = "predictions") -> list[dict[str, Any]]:
    """All rows that a reader of the Delta table sees, without the moment of scoring, in id order."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    store = open_store(settings, prefix=spec.prefix)
    try:
        delta = DeltaTable(store.url(f"tables/{table}"), storage_options=store.storage_options() or None)
    except TableNotFoundError:
        return []
    found = delta.to_pyarrow_table().drop_columns(["scored_at"])
    return sorted(found.to_pylist(), key=lambda row: (row["prediction_id"], row["run_id"]))


def with_prices(prices: dict[int, float]) -> Callable[[pa.Table], pa.Table]:
    """Set the price of some rows of every day."""

    def change(rows: pa.Table) -> pa.Table:
        values = rows.column("price").to_pylist()
        for index, price in prices.items():
            values[index] = price
        return rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(values, pa.float64()))

    return change


def set_store_clock(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    """Stores stamp their objects by a clock that is that much ahead of this machine's."""
    for kind in (LocalStore, S3Store):

        def listed(
            self: Any, prefix: str = "", *, real: Callable[..., Iterator[ObjectInfo]] = kind.list
        ) -> Iterator[ObjectInfo]:
            for info in real(self, prefix):
                yield replace(info, modified_at_utc=info.modified_at_utc + ahead)

        monkeypatch.setattr(kind, "list", listed)
