"""The small run that is tortured: its pipeline, rows and model, and what its tables must hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core.object_store import open_store
from tasks.core.partitions import save_snapshot, table_schema, write_partition
from tasks.core.records import Snapshot
from tasks.core.rows import prediction_ids
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, parse_pipeline
from tasks.inference.records import Plan

MODEL = "tasks.inference.torture.workload:load_model"
AUDIT_TABLE = "tasks.audit:audit_table"
PREVIOUS, TORTURED = 1, 2
"""Model versions: of the run that readers see before, and of the run that is tortured."""

DAYS = tuple(date(2024, 3, 1) + timedelta(days=i) for i in range(2))
ROWS_PER_DAY = 60

# In Zurich the first hour of a day is of the UTC date before, so some shards write two files.
_PIPELINE = """
name: torture
description: Rows that are scored while processes die.
owner: penstock
source: {kind: python, uri: source.py, time_zone: Europe/Zurich}
entity_key: [customer]
event_time: asked_at
label: {column: bought}
features: {numeric: [price, visits]}
split: {train_days: 7, validation_days: 1}
validation: {suite: torture}
inference: {shard_rows: 20, batch_rows: 16, shard_timeout_s: 120}
"""


@dataclass(frozen=True)
class TortureAttributions:
    """Contributions, float32 [n, 2], with their base value and residual."""

    attributions: npt.NDArray[np.float32]
    base_value: float
    residual: npt.NDArray[np.float32]


class TortureModel:
    """score = sigmoid(0.05 * price + 0.1 * visits - version): the versions differ in every row."""

    feature_names = ("price", "visits")
    explainer = "torture"
    explainer_version = "1"
    background_id = "zero"
    block_rows = 1
    output_names: tuple[str, ...] = ()
    _weights = np.array([0.05, 0.1], np.float32)

    def __init__(self, version: int) -> None:
        self.version = version

    def features(self, rows: pa.Table) -> pa.Table:
        """The two columns as they are."""
        return rows.select(list(self.feature_names))

    def encode(self, features: pa.Table) -> npt.NDArray[np.float32]:
        """float32 [n, 2]."""
        columns = [features.column(name).to_numpy() for name in self.feature_names]
        encoded: npt.NDArray[np.float32] = np.stack(columns, axis=1).astype(np.float32)
        return encoded

    def predict(self, encoded: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 [n]; row by row, so the size of a batch does not change them."""
        logits = (encoded * self._weights).sum(axis=1, dtype=np.float64) - self.version
        scores: npt.NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
        return scores

    def outputs(self, encoded: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Nothing beside the score."""
        return np.zeros((len(encoded), 0), np.float32)

    def explain(self, encoded: npt.NDArray[np.float32]) -> TortureAttributions:
        """Exact: the model is linear on the logit scale."""
        parts = (encoded * self._weights).astype(np.float32)
        return TortureAttributions(parts, float(-self.version), np.zeros(len(encoded), np.float32))

    def profile(self, *_counted: object, **_how: object) -> dict[str, Any] | None:
        """Nothing monitors these rows."""
        return None


def load_model(_settings: Settings, _spec: PipelineSpec, planned: Plan) -> TortureModel:
    """The model of the plan's version."""
    return TortureModel(planned.fingerprint.model_version)


def torture_pipeline() -> PipelineSpec:
    """The pipeline whose runs are tortured; it has no folder."""
    return parse_pipeline(_PIPELINE, origin="the torture's pipeline")


def torture_snapshot(settings: Settings, spec: PipelineSpec) -> Snapshot:
    """Store the rows to score, the same ones every time."""
    store = open_store(settings, prefix=spec.prefix)
    tables = {day: _rows(day) for day in DAYS}
    partitions = tuple(write_partition(store, day, table) for day, table in tables.items())
    schema = table_schema(tables[DAYS[0]])
    identity = Snapshot.identity(spec.name, "scoring", schema, partitions)
    return save_snapshot(
        store, Snapshot(identity, spec.name, "scoring", schema, partitions, "2024-04-01T00:00:00.000Z")
    )


def expected_scores(spec: PipelineSpec) -> dict[str, float]:
    """Score by prediction id of the tortured run, without shards, files and commits."""
    rows = pa.concat_tables([_rows(day) for day in DAYS])
    model = TortureModel(TORTURED)
    scores = model.predict(model.encode(model.features(rows)))
    return dict(zip(prediction_ids(rows, spec), scores.tolist(), strict=True))


def drive(settings: Settings, spec: PipelineSpec, version: int = TORTURED) -> str:
    """Plan, score and publish, or whatever of it is not done yet; returns the run's id."""
    from tasks.inference.engine import run_plan
    from tasks.inference.planning import plan
    from tasks.inference.publishing import publish

    snapshot = torture_snapshot(settings, spec)
    planned = plan(
        settings,
        spec,
        snapshot,
        model_version=version,
        bundle_digest="d" * 64,
        feature_version="1+torture",
    )
    run_plan(settings, spec, planned.run_id, local=True, audit_table=AUDIT_TABLE, load_model=MODEL)
    publish(settings, spec, planned.run_id)
    return planned.run_id


def _rows(day: date) -> pa.Table:
    rng = np.random.default_rng(day.toordinal())
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=1)  # in Zurich, in winter
    seconds = np.sort(rng.integers(0, 86_400, ROWS_PER_DAY))
    seconds[:5] = np.arange(5) * 60
    return pa.table(
        {
            "customer": [f"c{day:%m%d}{i:04d}" for i in range(ROWS_PER_DAY)],
            "asked_at": pa.array(
                [midnight + timedelta(seconds=int(second)) for second in np.sort(seconds)],
                pa.timestamp("us", tz="UTC"),
            ),
            "price": rng.gamma(2.0, 10.0, ROWS_PER_DAY),
            "visits": rng.poisson(3, ROWS_PER_DAY).astype(np.float64),
        }
    )
