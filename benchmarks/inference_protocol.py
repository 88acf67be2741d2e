"""What the protocol around scoring costs with many shards: plan, resume, status, publish, verify, optimize.

    python benchmarks/inference_protocol.py --shards 1000 10000 --repeats 3 --against /folder/of/an/older/checkout

Needs no pipeline, no model of one and no service. A run of tiny shards is scored by the real shard worker into a store of
its own, once for each size (a folder given by `--scratch` is kept and found again). Then each operation is timed in
a fresh process, after its imports. With `--against`, the same store is also measured with the `tasks` of another
checkout, in turn with this one.
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
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.core import Settings, Snapshot, open_store
from tasks.core.crash_points import observe
from tasks.core.partitions import load_snapshot, save_snapshot, table_schema, write_partition
from tasks.core.spec import parse_pipeline

DAYS = 50
SHARD_ROWS = 20
RESULTS = Path(__file__).parent / "results" / "inference_protocol.md"
MODEL = "tasks.inference.torture_child:load_model"
AUDIT_TABLE = "tasks.audit:audit_table"
OPERATIONS = (
    "plan",
    "resume",
    "status",
    "publish",
    "publish again",
    "verify",
    "optimize",
    "optimize again",
    "verify optimized",
)
"""In the order in which they follow each other on one store."""
TRANSACTIONS = (
    ("predictions transaction", "before-delta-commit", "after-delta-commit"),
    ("audit transaction", "before-audit-commit", "after-audit-commit"),
)
"""What is shown of a publication besides: name, crash point before, crash point after."""

_PIPELINE = """
name: protocol
description: Many tiny shards.
owner: penstock
source: {kind: python, uri: source.py, time_zone: UTC}
entity_key: [customer]
event_time: asked_at
label: {column: bought}
features: {numeric: [price, visits]}
split: {train_days: 7, validation_days: 1}
validation: {suite: protocol}
inference: {shard_rows: SHARD_ROWS, batch_rows: SHARD_ROWS}
""".replace("SHARD_ROWS", str(SHARD_ROWS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--operations", nargs="*", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--against", type=Path, help="A folder with another version of `tasks`.")
    parser.add_argument(
        "--scratch", type=Path, help="Keep the prepared stores here, and use those that are there."
    )
    parser.add_argument("--child", nargs=2, metavar=("OPERATION", "HOME"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.child[0], Path(asked.child[1]))))
        return
    scratch = asked.scratch or Path(tempfile.mkdtemp(prefix="penstock-benchmark-"))
    versions = {"this": Path(__file__).parents[1], **({"before": asked.against} if asked.against else {})}
    found: dict[tuple[int, str, str], list[dict[str, float]]] = {}
    try:
        commits = {shards: prepare(scratch / str(shards), shards) for shards in asked.shards}
        for shards in asked.shards:
            for _ in range(asked.repeats):
                for version, folder in reversed(versions.items()):
                    forget_tables(scratch / str(shards))
                    for operation in asked.operations:
                        one = run(operation, scratch / str(shards), folder)
                        if one:
                            found.setdefault((shards, operation, version), []).append(one)
                            print(f"{shards:6d} {version:6s} {operation:16s} {one}", flush=True)
        report(found, commits, asked.repeats)
    finally:
        if asked.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)


def settings_of(home: Path) -> Settings:
    return Settings.at_home(home, project=home)


def prepare(home: Path, shards: int) -> dict[str, float]:
    """A scored run of that many shards; milliseconds of its commit records."""
    facts = home / "facts.json"
    if facts.exists():
        found: dict[str, float] = json.loads(facts.read_text())["commit_ms"]
        return found
    from tasks.inference import plan, run_plan

    settings, spec = settings_of(home), parse_pipeline(_PIPELINE, origin="this benchmark")
    store = open_store(settings, prefix=spec.prefix)
    days = [date(2024, 3, 1) + timedelta(days=i) for i in range(min(DAYS, shards))]
    tables = {day: rows_of(day, SHARD_ROWS * shards // len(days)) for day in days}
    partitions = tuple(write_partition(store, day, table) for day, table in tables.items())
    schema = table_schema(tables[days[0]])
    identity = Snapshot.identity(spec.name, "scoring", schema, partitions)
    snapshot = save_snapshot(
        store, Snapshot(identity, spec.name, "scoring", schema, partitions, "2024-05-01T00:00:00.000Z")
    )
    planned = plan(
        settings, spec, snapshot, model_version=1, bundle_digest="d" * 64, feature_version="1+protocol"
    )
    moments: dict[str, list[float]] = {"before-record": [], "after-record": []}
    observe(lambda name: moments[name].append(time.perf_counter()) if name in moments else None)
    print(f"scoring {len(planned.shards):,} shards ...", flush=True)
    run_plan(settings, spec, planned.run_id, local=True, audit_table=AUDIT_TABLE, load_model=MODEL)
    observe(None)
    took = [
        1000 * (after - before)
        for before, after in zip(moments["before-record"], moments["after-record"], strict=True)
    ]
    commit_ms = {"median": statistics.median(took), "p99": float(np.quantile(took, 0.99))}
    facts.write_text(
        json.dumps({"snapshot_id": snapshot.snapshot_id, "run_id": planned.run_id, "commit_ms": commit_ms})
    )
    return commit_ms


def rows_of(day: date, count: int) -> pa.Table:
    rng = np.random.default_rng(day.toordinal())
    midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000
    times = np.sort(rng.integers(0, 86_400_000_000, count)) + midnight
    return pa.table(
        {
            "customer": [f"c{day:%m%d}{i:06d}" for i in range(count)],
            "asked_at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "price": rng.gamma(2.0, 10.0, count),
            "visits": rng.poisson(3, count).astype(np.float64),
        }
    )


def forget_tables(home: Path) -> None:
    """As the store was before publication: no log, no marker, no compacted file."""
    base = Path(open_store(settings_of(home), prefix="default/protocol").url())
    for pattern in ("tables/*/_delta_log", "runs/*/merges"):
        for folder in base.glob(pattern):
            shutil.rmtree(folder)
    for pattern in ("runs/*/published.json", "tables/*/*/*_c-*.parquet"):
        for file in base.glob(pattern):
            file.unlink()


def run(operation: str, home: Path, version: Path) -> dict[str, float] | None:
    """One operation in a fresh process with the `tasks` of that folder; None when it has no such operation."""
    child = subprocess.run(
        [sys.executable, __file__, "--child", operation, str(home)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(version)},
    )
    if child.returncode:
        sys.exit(f"{operation} failed:\n{child.stderr[-3000:]}")
    found: dict[str, float] | None = json.loads(child.stdout.splitlines()[-1])
    return found


def measured(operation: str, home: Path) -> dict[str, float] | None:
    """Wall and CPU seconds and resident memory of one operation, in this process."""
    import deltalake  # noqa: F401  imports are no part of an operation

    import tasks.inference as room

    if "optimize" in operation and not hasattr(room, "optimize"):
        return None
    settings, spec = settings_of(home), parse_pipeline(_PIPELINE, origin="this benchmark")
    store = open_store(settings, prefix=spec.prefix)
    facts = json.loads((home / "facts.json").read_text())
    run_id, snapshot = facts["run_id"], load_snapshot(store, facts["snapshot_id"])
    verb = {"resume": "run_plan"}.get(operation, operation.split()[0])
    call = getattr(room, verb)
    arguments: tuple[Any, ...] = (run_id,)
    more: dict[str, Any] = {}
    if verb == "plan":  # of another model version each time, so that the run is new
        arguments = (snapshot,)
        more = {"model_version": 2 + time.time_ns() % 10**9, "bundle_digest": "d" * 64}
        more["feature_version"] = "1+protocol"
    elif verb == "run_plan":
        more = {"local": True, "audit_table": AUDIT_TABLE}
    elif verb == "optimize":
        arguments = ()
    moments: dict[str, tuple[float, float]] = {}
    observe(lambda name: moments.update({name: (time.perf_counter(), time.process_time())}))
    before_mb = fresh_peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call(settings, spec, *arguments, **more)
    took = {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "base_mb": round(before_mb),
        "peak_mb": round(peak_mb()),
    }
    if verb == "plan":
        shutil.rmtree(Path(store.url(f"runs/{result.run_id}")))
    for name, start, end in TRANSACTIONS:
        if end in moments:
            took[name] = round(moments[end][0] - moments[start][0], 4)
            took[f"{name}, CPU"] = round(moments[end][1] - moments[start][1], 4)
    if verb == "verify" and not result.ok:
        sys.exit(f"verify: {result.problems}")
    return took


def fresh_peak_mb() -> float:
    """Forget the peak so far, which a child inherits from its parent; resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """Peak resident memory of this process since it was last forgotten."""
    line = next(
        text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def report(
    found: dict[tuple[int, str, str], list[dict[str, float]]],
    commits: dict[int, dict[str, float]],
    repeats: int,
) -> None:
    lines = [
        "# What the protocol costs with many shards",
        "",
        f"Shards of {SHARD_ROWS} rows, {DAYS} days, with audit rows: each shard has two data files and a record. Medians of {repeats} runs in "
        f"turn, each operation in a fresh process after its imports; {os.cpu_count()} shared cores with other work on "
        f"the machine at the same time (load average at the end: {os.getloadavg()[1]:.1f}; CPU seconds suffer less from it than wall "
        f"time), {platform.system()}, Python {platform.python_version()}, local disk. "
        "Memory is the process's peak; in brackets what the operation added to it. `before` is the release whose records "
        "were read by resolving their type hints anew; there, building the transaction's actions counts as part of it.",
        "",
        "| shards | operation | version | wall s | least to most | CPU s | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for (shards, operation, version), runs in found.items():

        def middle(name: str, of: list[dict[str, float]] = runs) -> float:
            return statistics.median(one[name] for one in of)

        walls = [one["wall_s"] for one in runs]
        lines.append(
            f"| {shards:,} | {operation} | {version} | {middle('wall_s'):.2f} | {min(walls):.2f} to {max(walls):.2f} "
            f"| {middle('cpu_s'):.2f} | {middle('peak_mb'):.0f} (+{middle('peak_mb') - middle('base_mb'):.0f}) |"
        )
        for name, _, _ in TRANSACTIONS:
            if name in runs[0]:
                walls = [one[name] for one in runs]
                lines.append(
                    f"| {shards:,} | {operation}: {name} alone | {version} | {middle(name):.3f} "
                    f"| {min(walls):.3f} to {max(walls):.3f} | {middle(f'{name}, CPU'):.3f} | |"
                )
    lines += [
        "",
        "Commit record of a shard, while the shards were scored one after the other (exclusive create, made durable):",
        "",
    ]
    lines += [
        f"- {shards:,} shards: median {took['median']:.1f} ms, 99 % below {took['p99']:.1f} ms"
        for shards, took in commits.items()
    ]
    lines += ["", f"`python benchmarks/inference_protocol.py {_shown(sys.argv[1:])}`", ""]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


def _shown(arguments: list[str]) -> str:
    """The command without the folders of one machine."""
    shown = [*arguments]
    for name, value in (("--against", "CHECKOUT"), ("--scratch", "FOLDER")):
        if name in shown:
            shown[shown.index(name) + 1] = value
    return " ".join(shown)


if __name__ == "__main__":
    main()
