"""What watching costs, for `monitor_decisions.py`: judging a day from profiles beside tests on its rows, and profiling as a part of scoring."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from monitor_world import HOME, MONITORED, REFERENCE, ROOT, World, days_between, make_world
from scipy import stats
from shard_stages import as_other_flights

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.partitions import save_snapshot, write_partition
from tasks.core.records import Snapshot
from tasks.model import Profile
from tasks.monitoring import measure_days

SHARDS, SHARD_ROWS = 100, 100_000
SCORED_ROWS, MANY_ROWS = 300_000, 3_000_000
USUAL_SHARD_ROWS = 200_000
RUNS = 5
DEFAULT, LARGE = (256, 128), (512, 512, 256)
DAY = date(2013, 8, 15)
MONTH = (date(2013, 8, 1), date(2013, 8, 31))
_BY_ITSELF = """
import pickle, sys, time
from tasks.inference import publish, run_plan
from tasks.inference.bundle_model import BundleModel

settings, spec, run_id = pickle.load(sys.stdin.buffer)
own, spent = BundleModel.profile, []

def timed(*given):
    began = time.thread_time()
    found = own(*given)
    spent.append(time.thread_time() - began)
    return found

BundleModel.profile = timed
run_plan(settings, spec, run_id, local=True, audit_table=None)
publish(settings, spec, run_id)
print(sum(spent))
"""


@dataclass(frozen=True)
class Costs:
    """CPU-seconds of this process."""

    shards: int
    rows: int
    channels: int
    judge_s: float
    merge_s: float
    ks_s: float
    scoring: dict[str, tuple[Scoring, Scoring]]
    """By what is scored: (with every row counted, as it is), taken in turn."""


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
    channels = len(world.scorer.bundle.profile_spec.channels)
    return Costs(SHARDS, SHARDS * SHARD_ROWS, channels, *_judging(world), measure_scoring(world))


def measure_scoring(world: World) -> dict[str, tuple[Scoring, Scoring]]:
    """Of a large day with networks of three sizes, in this pipeline's shards and in the default's, and of a month of days as they are."""
    june = (date(2013, 6, 1), REFERENCE[1])
    default, large = (make_world(validation=june, hidden=hidden) for hidden in (DEFAULT, LARGE))
    whole = f"a day of {SCORED_ROWS:,} rows in shards of {world.spec.inference.shard_rows:,}"
    usual = f"a day of {SCORED_ROWS:,} rows in shards of {USUAL_SHARD_ROWS:,}"
    many = f"a day of {MANY_ROWS:,} rows in shards of {USUAL_SHARD_ROWS:,}"
    return {
        f"{whole}, one layer of 32, every row explained": _median_runs(world, audit=True),
        f"{whole}, one layer of 32": _median_runs(world),
        f"{whole}, layers of {_layers(DEFAULT)}": _median_runs(default),
        f"{whole}, layers of {_layers(LARGE)}": _median_runs(large),
        f"{usual}, one layer of 32": _median_runs(_in_usual_shards(world)),
        f"{usual}, layers of {_layers(DEFAULT)}": _median_runs(_in_usual_shards(default)),
        f"{many}, one layer of 32": _median_runs(_in_usual_shards(world), rows=MANY_ROWS),
        "31 days as they are, one layer of 32": _median_runs(world, days=days_between(*MONTH)),
        f"31 days as they are, layers of {_layers(DEFAULT)}": _median_runs(
            default, days=days_between(*MONTH)
        ),
        "the same 31 days, each planned, scored and published in a run of its own": _median_runs(
            default, days=days_between(*MONTH), daily=True
        ),
        "3 of these days, each scored and published by a process of its own, with its start": _median_runs(
            default,
            days=days_between(MONTH[0], MONTH[0] + timedelta(days=2)),
            daily=True,
            processes=True,
            runs=1,
        ),
    }


def _in_usual_shards(world: World) -> World:
    inference = world.spec.inference.model_copy(update={"shard_rows": USUAL_SHARD_ROWS})
    return replace(world, spec=world.spec.model_copy(update={"inference": inference}))


def _layers(hidden: tuple[int, ...]) -> str:
    return ", ".join(map(str, hidden))


def _median_runs(
    world: World,
    *,
    audit: bool = False,
    days: Sequence[date] = (),
    daily: bool = False,
    processes: bool = False,
    rows: int = SCORED_ROWS,
    runs: int = RUNS,
) -> tuple[Scoring, Scoring]:
    """(with every row counted, as it is)."""
    tables = {day: world.rows[day].drop_columns(_known(world)) for day in days} or {
        DAY: _large_day(world, rows)
    }
    pairs = [
        [
            _scoring(world, tables, audit=audit, every=every, daily=daily, processes=processes)
            for every in (True, False)
        ]
        for _ in range(runs)
    ]
    every, sampled = (sorted(side, key=lambda run: run.share)[runs // 2] for side in zip(*pairs, strict=True))
    return every, sampled


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


def _scoring(
    world: World,
    tables: Mapping[date, pa.Table],
    *,
    audit: bool,
    every: bool,
    daily: bool = False,
    processes: bool = False,
) -> Scoring:
    """Shards scored and committed by the pipeline's own worker, in this process.

    Args:
        tables: Rows to score, by day.
        every: Whether every row is counted, whatever the size of its day.
        daily: Whether each day is a run of its own, of which planning and publishing are timed as well.
        processes: Whether each run has a process of its own, timed from its start, and without the planning.
    """
    from tasks.inference import plan, publish, run_plan

    home = HOME / "scoring"
    shutil.rmtree(home, ignore_errors=True)
    settings = Settings.at_home(home, project=ROOT)
    spec, digest = world.spec, world.scorer.bundle.digest
    store = open_store(settings, prefix=spec.prefix)
    source = open_store(Settings.at_home(HOME, project=ROOT), prefix=spec.prefix)
    for info in source.list(f"bundles/{digest}"):
        store.put(info.key, source.get(info.key))
    partitions = [write_partition(store, day, rows) for day, rows in tables.items()]
    schema = tuple((field.name, str(field.type)) for field in next(iter(tables.values())).schema)
    snapshots = [
        save_snapshot(
            store,
            Snapshot(
                snapshot_id=Snapshot.identity(spec.name, "scoring", schema, some),
                pipeline=spec.name,
                kind="scoring",
                schema=schema,
                partitions=some,
                created_at_utc="2013-08-16T00:00:00.000Z",
            ),
        )
        for some in ([(one,) for one in partitions] if daily else [tuple(partitions)])
    ]

    def planned(snapshot: Snapshot) -> str:
        return plan(
            settings,
            spec,
            snapshot,
            model_version=1,
            bundle_digest=digest,
            feature_version=world.scorer.feature_version,
        ).run_id

    audit_table = "tasks.audit:audit_table" if audit else None
    runs: Iterable[str] = map(planned, snapshots)  # each when it is its turn
    if processes or not daily:
        runs = list(runs)  # before the clock runs
    rows = sum(partition.rows for partition in partitions)
    if processes:
        found = [_by_itself(settings, spec, run_id) for run_id in runs]
        shutil.rmtree(home)
        return Scoring(rows, sum(run[0] for run in found), sum(run[1] for run in found))
    with _profiling_timed(every=every) as spent:
        began = time.process_time()
        for run_id in runs:
            run_plan(settings, spec, run_id, local=True, audit_table=audit_table)
            if daily:
                publish(settings, spec, run_id)
        scoring_s = time.process_time() - began
    shutil.rmtree(home)
    return Scoring(rows, scoring_s, spent[0])


def _by_itself(settings: Settings, spec: PipelineSpec, run_id: str) -> tuple[float, float]:
    """CPU-seconds of a process that scores and publishes a run, and of them those that profiling takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = pickle.dumps((settings, spec, run_id))
    child = subprocess.run(
        [sys.executable, "-c", _BY_ITSELF], input=given, stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, float(child.stdout)


def _known(world: World) -> list[str]:
    return sorted(world.spec.label.known_afterwards)


def _large_day(world: World, rows: int) -> pa.Table:
    return as_other_flights(world.rows[DAY].drop_columns(_known(world)), rows)


@contextmanager
def _profiling_timed(*, every: bool) -> Iterator[list[float]]:
    """CPU-seconds that sampling a batch and `BundleModel.profile` take meanwhile."""
    from tasks.inference import scoring, shard
    from tasks.inference.bundle_model import BundleModel

    spent = [0.0]

    def timed(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            began = time.thread_time()
            try:
                return own(*given)
            finally:
                spent[0] += time.thread_time() - began

        return call

    with pytest.MonkeyPatch.context() as patched:
        if every:
            patched.setattr(shard, "counted_among", lambda *_: None)
        patched.setattr(scoring._Scoring, "_counted", timed(scoring._Scoring._counted))
        patched.setattr(shard, "_counted_rows", timed(shard._counted_rows))
        patched.setattr(BundleModel, "profile", timed(BundleModel.profile))
        yield spent
