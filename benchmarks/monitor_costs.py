"""What watching costs, for `monitor_decisions.py`: judging a day from profiles beside tests on its rows, and profiling as a part of scoring."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from monitor_world import HOME, MONITORED, REFERENCE, ROOT, World, days_between, make_world
from scipy import stats

from tasks.core import Settings, open_store
from tasks.core.partitions import save_snapshot, write_partition
from tasks.core.records import Snapshot
from tasks.model import Profile
from tasks.monitoring import measure_days

SHARDS, SHARD_ROWS = 100, 100_000
SCORED_ROWS = 300_000
RUNS = 5
LARGE = (512, 512, 256)
DAY = date(2013, 8, 15)


@dataclass(frozen=True)
class Costs:
    """CPU-seconds of this process."""

    shards: int
    rows: int
    channels: int
    judge_s: float
    merge_s: float
    ks_s: float
    plain: Scoring
    explained: Scoring
    """Every row, as this pipeline has them."""
    large: Scoring
    """With the layers `LARGE`, without explanations."""


@dataclass(frozen=True)
class Scoring:
    """The run with the median share of profiling among `RUNS`. CPU-seconds of this process."""

    rows: int
    scoring_s: float
    profile_s: float
    """Of them."""

    @property
    def share(self) -> float:
        return self.profile_s / self.scoring_s


def measure_costs(world: World) -> Costs:
    large = make_world(validation=(date(2013, 6, 1), REFERENCE[1]), hidden=LARGE)
    channels = len(world.scorer.bundle.profile_spec.channels)
    return Costs(
        SHARDS,
        SHARDS * SHARD_ROWS,
        channels,
        *_judging(world),
        _median_run(world, audit=False),
        _median_run(world, audit=True),
        _median_run(large, audit=False),
    )


def _median_run(world: World, *, audit: bool) -> Scoring:
    return sorted((_scoring(world, audit=audit) for _ in range(RUNS)), key=lambda run: run.share)[RUNS // 2]


def _judging(world: World) -> tuple[float, float, float]:
    """(reading, merging and judging; merging alone; KS tests on the rows) of a day of 100 shards."""
    grid = world.scorer.bundle.profile_spec
    days = days_between(MONITORED[0], DAY - timedelta(days=1))
    pool = [world.scored(day) for day in days_between(DAY, DAY + timedelta(days=27))]
    features = pa.concat_tables([scored.features for scored in pool]).combine_chunks()
    scores = np.concatenate([scored.scores for scored in pool])
    numeric = list(world.spec.features.numeric)
    folder = HOME / "costs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    records = []
    for shard in range(SHARDS):
        taken = rng.integers(0, len(scores), SHARD_ROWS)
        rows = features.take(pa.array(taken))
        pq.write_table(rows.select(numeric), folder / f"{shard:03}.parquet")
        records.append(json.dumps(Profile.of(grid, rows, scores[taken]).to_json()))
    history = {day: world.clean_profile(day) for day in days}
    monitor = world.monitor  # calibrated before the clock runs, as it is once for many days

    began = time.process_time()
    profiles = [Profile.from_json(grid, json.loads(record)) for record in records]
    before_merge = time.process_time()
    merged = Profile.merged(grid, profiles)
    merge_s = time.process_time() - before_merge
    measure_days(
        world.spec, monitor, profiles={**history, DAY: merged}, first_day=DAY, last_day=DAY
    )  # which measures the days before as well
    judge_s = time.process_time() - began

    reference = pa.concat_tables([world.scored(day).features for day in days_between(*REFERENCE)])
    began = time.process_time()
    for name in numeric:
        column = pq.ParquetDataset(sorted(folder.glob("*.parquet"))).read(columns=[name])[name]
        values = column.drop_null().to_numpy()
        stats.ks_2samp(reference[name].drop_null().to_numpy(), values)
    ks_s = time.process_time() - began
    shutil.rmtree(folder)
    return judge_s, merge_s, ks_s


def _scoring(world: World, *, audit: bool) -> Scoring:
    """Shards scored and committed by the pipeline's own worker, in this process."""
    from tasks.inference import plan, run_plan

    home = HOME / "scoring"
    shutil.rmtree(home, ignore_errors=True)
    settings = Settings.at_home(home, project=ROOT)
    spec, digest = world.spec, world.scorer.bundle.digest
    store = open_store(settings, prefix=spec.prefix)
    source = open_store(Settings.at_home(HOME, project=ROOT), prefix=spec.prefix)
    for info in source.list(f"bundles/{digest}"):
        store.put(info.key, source.get(info.key))
    rows = world.rows[DAY].drop_columns(sorted(spec.label.known_afterwards))
    copies = [
        rows.set_column(
            rows.column_names.index("flight"),
            rows.schema.field("flight"),
            pa.array(rows["flight"].to_numpy() + 10_000 * copy),
        )
        for copy in range(-(-SCORED_ROWS // rows.num_rows))
    ]
    partition = write_partition(store, DAY, pa.concat_tables(copies))
    schema = tuple((field.name, str(field.type)) for field in rows.schema)
    snapshot = save_snapshot(
        store,
        Snapshot(
            snapshot_id=Snapshot.identity(spec.name, "scoring", schema, (partition,)),
            pipeline=spec.name,
            kind="scoring",
            schema=schema,
            partitions=(partition,),
            created_at_utc="2013-08-16T00:00:00.000Z",
        ),
    )
    planned = plan(
        settings,
        spec,
        snapshot,
        model_version=1,
        bundle_digest=digest,
        feature_version=world.scorer.feature_version,
    )
    with _profiling_timed() as spent:
        began = time.process_time()
        run_plan(
            settings,
            spec,
            planned.run_id,
            local=True,
            audit_table="tasks.audit:audit_table" if audit else None,
        )
        scoring_s = time.process_time() - began
    shutil.rmtree(home)
    return Scoring(partition.rows, scoring_s, spent[0])


@contextmanager
def _profiling_timed() -> Iterator[list[float]]:
    """CPU-seconds that `BundleModel.profile` takes meanwhile."""
    from tasks.inference.bundle_model import BundleModel

    spent, own = [0.0], BundleModel.profile

    def timed(self: BundleModel, *given: Any) -> Any:
        began = time.thread_time()
        try:
            return own(self, *given)
        finally:
            spent[0] += time.thread_time() - began

    BundleModel.profile = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        BundleModel.profile = own  # type: ignore[method-assign]
