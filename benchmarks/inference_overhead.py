"""What batch inference costs above a bare loop: CPU seconds of everything that runs, engine processes included.

    python benchmarks/inference_overhead.py --rows 2000000 --repeats 3

Takes the champion and the days of May from this installation (run `make demo` first), copies every row until there
are `--rows`, and scores them in fresh processes, the engines in turn:

- `bare`: read, features, encode, forward; nothing is kept. The floor.
- `bare + write`: the same, and the scores written as Parquet.
- `shards`: Penstock's shard worker in one process, without explanations and audit rows.
- `shards + audit`: the same with every prediction explained and its provenance kept.
- `ray`: as `shards`, on Ray Data with one actor.
- `ray + audit`: as `shards + audit`, on Ray Data with one actor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core import PipelineSpec, Settings, Snapshot, load_pipeline, open_store
from tasks.core.partitions import load_snapshot, read_partition, save_snapshot, write_partition
from tasks.metadata import MetadataStore

PIPELINE = "flight_delay"
ENGINES = ("bare", "bare + write", "shards", "shards + audit", "ray", "ray + audit")
RESULTS = Path(__file__).parent / "results" / "inference_overhead.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "SCRATCH"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        score(asked.child[0], Path(asked.child[1]))
        return
    scratch = Path(tempfile.mkdtemp(prefix="penstock-benchmark-"))
    try:
        rows = prepare(Settings.from_environment(), scratch, asked.rows)
        measured: dict[str, list[tuple[float, float, float]]] = {engine: [] for engine in asked.engines}
        for _ in range(asked.repeats):
            for engine in asked.engines:
                measured[engine].append(run(engine, scratch))
                print(f"{engine:16s} CPU {measured[engine][-1][0]:7.1f} s", flush=True)
        report(measured, rows)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def prepare(settings: Settings, scratch: Path, wanted: int) -> int:
    """A store of its own with the champion's bundle and a snapshot of about `wanted` rows; returns its rows."""
    spec = load_pipeline(settings, PIPELINE)
    source = open_store(settings, prefix=spec.prefix)
    metadata = MetadataStore.open(settings)
    live = metadata.live(spec)
    if live is None:
        sys.exit("this installation has no champion: run `make demo` first")
    run_id = next(iter(metadata.published_days(spec).values()))
    run_record = metadata.run(spec, run_id)
    assert run_record is not None and run_record.snapshot_id is not None
    snapshot = load_snapshot(source, run_record.snapshot_id)
    target = open_store(_scratch_settings(settings, scratch), prefix=spec.prefix)
    for info in source.list(f"bundles/{live.bundle_digest}"):
        target.put(info.key, source.get(info.key))
    copies = max(1, round(wanted / snapshot.rows))
    partitions = tuple(
        write_partition(target, part.day, _replicated(read_partition(source, part), copies))
        for part in snapshot.partitions
    )
    identity = Snapshot.identity(snapshot.pipeline, snapshot.kind, snapshot.schema, partitions)
    saved = save_snapshot(target, replace(snapshot, snapshot_id=identity, partitions=partitions))
    facts = {
        "snapshot_id": saved.snapshot_id,
        "version": live.version,
        "bundle_digest": live.bundle_digest,
        "feature_version": live.feature_version,
    }
    (scratch / "facts.json").write_text(json.dumps(facts))
    return saved.rows


def _replicated(rows: pa.Table, copies: int) -> pa.Table:
    """`copies` copies that differ in the flight number, so that every row keeps an identity of its own."""
    number = rows.schema.get_field_index("flight")
    flights = rows.column("flight").to_numpy()
    made = [
        rows.set_column(number, rows.schema.field(number), pa.array(flights + np.int64(10_000 * copy)))
        for copy in range(copies)
    ]
    return pa.concat_tables(made)


def _scratch_settings(settings: Settings, scratch: Path) -> Settings:
    return replace(Settings.at_home(scratch, project=settings.project), store_url=str(scratch / "store"))


def run(engine: str, scratch: Path) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, peak resident GB) of one engine in fresh processes."""
    for leftover in (scratch / "store" / "default" / PIPELINE).glob("*"):
        if leftover.name in ("runs", "tables", "scores", "feature_sets"):
            shutil.rmtree(leftover)
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, __file__, "--child", engine, str(scratch)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    with sampled(child.pid) as usage:
        _, errors = child.communicate()
    if child.returncode:
        sys.exit(f"{engine} failed:\n{errors.decode()[-3000:]}")
    return usage["cpu_s"], time.monotonic() - started, usage["peak_gb"]


@contextmanager
def sampled(pid: int) -> Iterator[dict[str, float]]:
    """CPU seconds and peak resident memory of a process and all its descendants, read five times a second.

    A descendant is followed by its session's processes too: Ray's servers outlive the parent that made them.
    """
    usage = {"cpu_s": 0.0, "peak_gb": 0.0}
    spent: dict[tuple[int, float], float] = {}
    over = threading.Event()

    def look() -> None:
        known: dict[tuple[int, float], psutil.Process] = {}
        while True:
            try:
                root = psutil.Process(pid)
                for process in (root, *root.children(recursive=True)):
                    known[(process.pid, process.create_time())] = process
            except psutil.Error:
                pass
            resident = 0
            for key, process in list(known.items()):
                try:
                    times = process.cpu_times()
                    spent[key] = times.user + times.system
                    resident += process.memory_info().rss
                except psutil.Error:
                    known.pop(key)
            usage["peak_gb"] = max(usage["peak_gb"], resident / 1e9)
            if over.wait(0.2):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield usage
    finally:
        over.set()
        thread.join()
        usage["cpu_s"] = sum(spent.values())


def score(engine: str, scratch: Path) -> None:
    """One engine's work, in this process."""
    settings = _scratch_settings(Settings.from_environment(), scratch)
    spec = load_pipeline(settings, PIPELINE)
    facts = json.loads((scratch / "facts.json").read_text())
    snapshot = load_snapshot(open_store(settings, prefix=spec.prefix), facts["snapshot_id"])
    if engine.startswith("bare"):
        _score_bare(settings, spec, snapshot, facts["bundle_digest"], write=engine.endswith("write"))
        return
    from tasks.inference import plan, publish, run_plan

    planned = plan(
        settings,
        spec,
        snapshot,
        model_version=facts["version"],
        bundle_digest=facts["bundle_digest"],
        feature_version=facts["feature_version"],
    )
    audit = "tasks.audit:audit_table" if engine.endswith("audit") else None
    run_plan(settings, spec, planned.run_id, local=engine.startswith("shards"), audit_table=audit)
    publish(settings, spec, planned.run_id)


def _score_bare(
    settings: Settings, spec: PipelineSpec, snapshot: Snapshot, bundle_digest: str, *, write: bool
) -> None:
    from tasks.model import Scorer, fetch_bundle

    store = open_store(settings, prefix=spec.prefix)
    scorer = Scorer(fetch_bundle(store, bundle_digest, settings.cache_dir))
    out = Path(store.url("scores"))
    out.mkdir(exist_ok=True)
    for number, partition in enumerate(snapshot.partitions):
        rows = read_partition(store, partition)
        scores = scorer.predict(scorer.encode(scorer.features(rows)))
        if write:
            pq.write_table(pa.table({"score": scores}), out / f"{number}.parquet", compression="zstd")


def report(measured: dict[str, list[tuple[float, float, float]]], rows: int) -> None:
    lines = [
        "# What batch inference costs above a bare loop",
        "",
        f"{rows:,} rows of the flights (each day of May 2013 copied), the demo's champion, medians of "
        f"{len(next(iter(measured.values())))} runs in turn, everything in one call; {os.cpu_count()} shared cores, "
        f"{platform.system()}, Python {platform.python_version()}, local disk. CPU is of all processes, Ray's included, "
        "sampled five times a second. Publication is included.",
        "",
        "| engine | CPU s | least to most | above bare | wall s | peak GB, all processes |",
        "|---|---|---|---|---|---|",
    ]
    base = statistics.median(cpu for cpu, _, _ in measured["bare"]) if "bare" in measured else float("nan")
    for engine, runs in measured.items():
        cpu = [found[0] for found in runs]
        lines.append(
            f"| {engine} | {statistics.median(cpu):.1f} | {min(cpu):.1f} to {max(cpu):.1f} "
            f"| {statistics.median(cpu) - base:+.1f} | {statistics.median(found[1] for found in runs):.1f} "
            f"| {max(found[2] for found in runs):.2f} |"
        )
    lines += [
        "",
        f"`python benchmarks/inference_overhead.py {' '.join(sys.argv[1:])}`",
        "",
    ]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
