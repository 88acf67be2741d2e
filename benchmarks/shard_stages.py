"""Where the time of a shard goes, on a CPU or beside a GPU: reading, ids, features, encoding, network, profile, writing, commit.

    python benchmarks/shard_stages.py --bundle BUNDLE --day FILE --rows 3000000 300000 --shard-rows 200000 50000 --layers 256,128 2048,2048,1024

`BUNDLE` is a bundle's folder of the pipeline `flight_delay` and `FILE` the Parquet file of one of its days, both as `monitor_decisions.py` leaves them
under `.penstock/monitor_decisions/store`. The day's rows are repeated as other flights, with `--jitter` with numbers of their own; networks of other layers
get random weights. The pipeline's own worker scores and commits them in this process, without Ray, each library with one thread, as a worker of one CPU has.
What loading the model takes is left out: it is once for a run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store
from tasks.core.partitions import save_snapshot, write_partition
from tasks.core.prediction_ids import PredictionIds
from tasks.core.records import Snapshot
from tasks.inference import plan, run_plan, scoring, shard
from tasks.inference.bundle_model import BundleModel
from tasks.inference.shard import ShardWorker
from tasks.model import Bundle, build_network, upload_bundle, write_bundle
from tasks.model.bundle import ENCODED_COLUMN, SCORE_COLUMN, background_id, golden_table, weights_bytes
from tasks.model.execution import predict

ROOT = Path(__file__).resolve().parents[1]
PIPELINE, DAY = "flight_delay", date(2013, 8, 15)
LOAD = "load"
STAGES: dict[str, list[tuple[Any, str]]] = {
    LOAD: [(ShardWorker, "_loaded")],
    "wait for rows": [(ShardWorker, "_read")],
    "ids": [
        (scoring, "entity_column"),
        (scoring, "event_micros"),
        (PredictionIds, "of"),
        (shard, "_refuse_duplicates"),
    ],
    "features": [(BundleModel, "features")],
    "encode": [(BundleModel, "encode")],
    "network": [(BundleModel, "predict")],
    "explain": [(BundleModel, "explain")],
    "profile": [(scoring._Scoring, "_counted"), (shard, "_counted_rows"), (BundleModel, "profile")],
    "order": [(ShardWorker, "_ordered")],
    "write": [(shard, "prediction_table"), (shard, "write_table_file")],
    "commit": [(shard, "read_shard_record"), (shard, "check_fence"), (shard, "commit_shard")],
}
"""What each consists of; none of them calls another."""


@dataclass
class Spent:
    """Seconds by stage."""

    wall: Counter[str] = field(default_factory=Counter)
    cpu: Counter[str] = field(default_factory=Counter)
    """Of the thread that did it."""


@contextmanager
def watched() -> Iterator[Spent]:
    """What the stages take meanwhile."""
    spent, before = Spent(), []
    for stage, functions in STAGES.items():
        for owner, name in functions:
            own = vars(owner)[name]
            before.append((owner, name, own))
            setattr(owner, name, _timed(own, stage, spent))
    try:
        yield spent
    finally:
        for owner, name, own in before:
            setattr(owner, name, own)


def _timed(own: Any, stage: str, spent: Spent) -> Any:
    function = own.__func__ if isinstance(own, classmethod) else own

    @wraps(function)
    def timed(*given: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*given, **named)
        finally:
            spent.wall[stage] += time.perf_counter() - wall
            spent.cpu[stage] += time.thread_time() - cpu

    return classmethod(timed) if isinstance(own, classmethod) else timed


def with_layers(base: Bundle, hidden: tuple[int, ...], folder: Path) -> Path:
    """The same bundle with another network, of random weights."""
    manifest = replace(base.manifest, network=replace(base.manifest.network, hidden=hidden), files={})
    torch.manual_seed(0)
    network = build_network(base.model_source, manifest.network, origin="model.py").eval()
    weights = weights_bytes(network.state_dict())
    rows = base.golden.drop_columns([ENCODED_COLUMN, SCORE_COLUMN])
    encoded = np.array(base.golden[ENCODED_COLUMN].to_pylist(), np.float32)
    write_bundle(
        folder,
        manifest=replace(manifest, background_id=background_id(base.encoder, weights)),
        spec=base.spec,
        feature_code=base.feature_code,
        model_source=base.model_source,
        encoder=base.encoder,
        weights=weights,
        golden=golden_table(rows, encoded, predict(network, encoded, manifest.calibration)),
        profile_spec=base.profile_spec,
        reference=base.reference_profiles,
    )
    return folder


def large_day(spec: PipelineSpec, file: Path, rows: int, *, jitter: bool) -> pa.Table:
    """At least so many rows, without outcomes."""
    day = pq.read_table(file)
    day = day.drop_columns([name for name in day.column_names if name in spec.label.known_afterwards])
    table = as_other_flights(day, rows).combine_chunks()
    if not jitter:
        return table
    rng = np.random.default_rng(0)
    for index, column in enumerate(table.schema):
        if pa.types.is_floating(column.type):
            values = table.column(index).to_numpy(zero_copy_only=False)
            moved = values * (1 + 1e-3 * rng.standard_normal(len(values)))
            table = table.set_column(index, column, pa.array(moved, column.type, from_pandas=True))
    return table


def as_other_flights(day: pa.Table, rows: int) -> pa.Table:
    """A day's rows again and again, each time as other flights; at least so many."""
    at, flights = day.column_names.index("flight"), day["flight"].to_numpy()
    copies = [
        day.set_column(at, day.schema.field(at), pa.array(flights + 10_000 * copy))
        for copy in range(-(-rows // day.num_rows))
    ]
    return pa.concat_tables(copies)


def measured(asked: argparse.Namespace, hidden: tuple[int, ...], rows: int, shard_rows: int) -> str:
    """A line of the table: seconds for a million rows by stage."""
    home = Path(tempfile.mkdtemp(prefix="shards-"))
    try:
        settings = Settings.at_home(home, project=ROOT)
        spec = load_pipeline(settings, PIPELINE)
        own = {"shard_rows": shard_rows, "gpus_per_worker": float(torch.cuda.is_available())}
        spec = spec.model_copy(update={"inference": spec.inference.model_copy(update=own)})
        store = open_store(settings, prefix=spec.prefix)
        base = Bundle.at(asked.bundle)
        digest = upload_bundle(store, with_layers(base, hidden, home / "bundle"))
        table = large_day(spec, asked.day, rows, jitter=asked.jitter)
        parts = (write_partition(store, DAY, table),)
        schema = tuple((column.name, str(column.type)) for column in table.schema)
        identity = Snapshot.identity(spec.name, "scoring", schema, parts)
        snapshot = save_snapshot(
            store, Snapshot(identity, spec.name, "scoring", schema, parts, "2013-08-16T00:00:00.000Z")
        )
        run_id = plan(
            settings,
            spec,
            snapshot,
            model_version=1,
            bundle_digest=digest,
            feature_version=base.feature_code.version,
        ).run_id
        with watched() as spent:
            wall, cpu = time.perf_counter(), time.process_time()
            audit_table = "tasks.audit:audit_table" if asked.audit else None
            run_plan(settings, spec, run_id, local=True, audit_table=audit_table)
            wall_s = time.perf_counter() - wall - spent.wall[LOAD]
            cpu_s = time.process_time() - cpu - spent.cpu[LOAD]
    finally:
        shutil.rmtree(home)
    million = table.num_rows / 1e6
    cells = [
        f"{spent.wall[stage] / million:.2f} ({spent.wall[stage] / wall_s:.0%})"
        for stage in STAGES
        if stage != LOAD
    ]
    return (
        f"| {', '.join(map(str, hidden))} | {table.num_rows:,} | {shard_rows:,} | {' | '.join(cells)} | {wall_s / million:.2f} | {cpu_s / million:.2f} | "
        f"{spent.cpu['profile'] / cpu_s:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--day", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[300_000])
    parser.add_argument("--shard-rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--layers", nargs="+", default=["256,128"])
    parser.add_argument("--jitter", action="store_true", help="no value comes twice")
    parser.add_argument("--audit", action="store_true", help="every row with its audit row")
    asked = parser.parse_args()
    for set_threads in (pa.set_cpu_count, pa.set_io_thread_count, torch.set_num_threads):
        set_threads(1)
    layers = [tuple(map(int, one.split(","))) for one in asked.layers]
    measured(asked, layers[0], 50_000, 50_000)  # to warm up
    stages = " | ".join(stage for stage in STAGES if stage != LOAD)
    print(
        f"| layers | rows | shard | {stages} | all, wall s | all, CPU s | profiling's share of CPU |\n|{'---|' * (len(STAGES) + 5)}"
    )
    for rows in asked.rows:
        for shard_rows in asked.shard_rows:
            for hidden in layers:
                print(measured(asked, hidden, rows, shard_rows), flush=True)


if __name__ == "__main__":
    main()
