"""What durable appends of one online prediction and of many cost, beside other stores; what folding costs; and a kill test.

    python benchmarks/audit_append.py --appends 4000 --kills 20
    python benchmarks/audit_append.py --only many --before ../another-checkout

Needs no pipeline, model or service. A record is one prediction with 20 features (16 numbers, 4 texts), all explained. Every
contender keeps the same content and has it on the disk before an append returns; each runs in a process of its own,
in turn, `--repeats` times; the median is shown. CPU is that of the whole process, kernel time included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.audit.hot import HotLimits, HotLog, OnlineModel, OnlineRow, fold, hot_rows
from tasks.audit.hot.rows import pack
from tasks.core import Settings, open_store
from tasks.core.delta import table_view
from tasks.core.prediction_ids import PredictionIds
from tasks.core.spec import PipelineSpec, parse_pipeline

if TYPE_CHECKING:
    from tasks.audit.hot import OnlineRows

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "audit_append.md"
MANY = "\n## Many rows at once\n"
FOLDING = "\n## Folding\n"
MOMENT = datetime(2025, 3, 1, 12, tzinfo=UTC)
NUMERIC = tuple(f"number_{n:02d}" for n in range(16))
TEXTS = tuple(f"text_{n}" for n in range(4))
THREADS = (1, 8, 32)
AT_ONCE = (1, 32, 256, 1024)
FOLD_ROWS = 100_000
KILL_THREADS = 8
MODEL = OnlineModel(
    pipeline="append",
    model_version=7,
    bundle_digest="ab" * 32,
    feature_computation_version="1-0123456789abcdef",
    names=(*NUMERIC, *TEXTS),
    numeric=NUMERIC,
    explainer="expected_gradients",
    explainer_version="1",
    background_id="0123456789abcdef",
    base_value=-1.4,
)
PIPELINE = f"""
name: append
description: Online predictions.
owner: penstock
source: {{kind: python, uri: source.py, time_zone: UTC}}
entity_key: [customer]
event_time: asked_at
label: {{column: bought}}
features: {{numeric: [{", ".join(NUMERIC)}], categorical: {{{", ".join(f"{name}: {{}}" for name in TEXTS)}}}}}
split: {{train_days: 7, validation_days: 1}}
validation: {{suite: append}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--appends", type=int, default=4_000, help="Of the hot log and SQLite; others do fewer."
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=["many"], help="measure appends of many rows alone")
    parser.add_argument("--before", type=Path, help="another checkout, which `--only many` measures as well")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "APPENDS", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, appends, folder = given.one
        print(json.dumps(ONE[what](Path(folder), int(appends))))
        return
    if given.only:
        section = "\n".join(many(given.appends, given.repeats, given.before))
        text = RESULTS.read_text()
        head, rest = text.partition(MANY)[0].partition(FOLDING)[0], text[text.index(FOLDING) :]
        RESULTS.write_text(head + section + rest)
        print(section)
        return
    print(report(given.appends, given.repeats, given.kills, given.before))


def row(number: int) -> OnlineRow:
    """One prediction; numbers as a model sees them, so that nothing compresses better than in life."""
    dice = random.Random(number)
    values: dict[str, float | str | None] = {name: dice.gauss(0, 100) for name in NUMERIC}
    values.update({name: f"value-{dice.randrange(50)}" for name in TEXTS})
    return OnlineRow(
        model=MODEL,
        request_id=f"{dice.getrandbits(128):032x}",
        entity_id=f"customer-{number}",
        event_time=MOMENT + timedelta(milliseconds=7 * number),
        prediction=dice.random(),
        features=values,
        scored_at=MOMENT + timedelta(milliseconds=7 * number + 3),
        attributions=[dice.gauss(0, 1) for _ in MODEL.names],
        residual=1e-4,
    )


def installation(folder: Path) -> tuple[Settings, PipelineSpec]:
    return Settings.at_home(folder, project=folder), parse_pipeline(PIPELINE, origin="append")


def each(appends: int, threads: int, append: Callable[[OnlineRow], Any]) -> dict[str, float]:
    """CPU and wall time of one append, the rows being made before; and the slowest in a hundred."""
    rows = [row(number) for number in range(appends)]
    took: list[float] = []
    numbers = count()

    def serve() -> None:
        while (number := next(numbers)) < appends:
            started = time.perf_counter()
            append(rows[number])
            took.append(time.perf_counter() - started)

    cpu, wall = time.process_time(), time.perf_counter()
    if threads == 1:
        serve()
    else:
        workers = [threading.Thread(target=serve) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    ordered = sorted(took)
    return {
        "cpu_ms": cpu / appends * 1e3,
        "per_s": appends / wall,
        "p50_ms": statistics.median(ordered) * 1e3,
        "p99_ms": ordered[int(0.99 * len(ordered))] * 1e3,
    }


# -- contenders: (folder, appends) -> figures


def hot(threads: int) -> Callable[[Path, int], dict[str, float]]:
    def run(folder: Path, appends: int) -> dict[str, float]:
        with HotLog(*installation(folder), limits=HotLimits(seal_rows=10**9)) as log:
            log.append([row(-1)])
            figures = each(appends, threads, lambda one: log.append([one]))
            files = [*log.folder.glob("*.db")]
            log.seal()
            return {**figures, "bytes": sum(file.stat().st_size for file in files) / appends}

    return run


def at_once(each: int, *, columns: bool) -> Callable[[Path, int], dict[str, float]]:
    """Appends of `each` rows by one thread, as columns or one by one."""

    def run(folder: Path, appends: int) -> dict[str, float]:
        many = [[row(number) for number in range(first, first + each)] for first in range(0, appends, each)]
        offered = [[columns_of(rows)] if columns else rows for rows in many]
        with HotLog(*installation(folder)) as log:
            log.append([row(-1)])
            cpu, wall = time.process_time(), time.perf_counter()
            for rows in offered:
                log.append(rows)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            files = [*log.folder.glob("*.db")]
            log.seal()
            size = sum(file.stat().st_size for file in files)
        n = each * len(many)
        return {"cpu_us": cpu / n * 1e6, "per_s": n / wall, "bytes": size / n}

    return run


def columns_of(rows: list[OnlineRow]) -> OnlineRows:
    """The rows as a server has them that scored them together."""
    from tasks.audit.hot import OnlineRows  # `--before` may be a checkout that has none

    entities = pa.array([one.entity_id for one in rows])
    event_us = np.array([int(one.event_time.timestamp() * 1e6) for one in rows], np.int64)
    return OnlineRows(
        model=MODEL,
        prediction_ids=PredictionIds.of_parts(MODEL.pipeline, entities, event_us // 1000),
        request_ids=[one.request_id for one in rows],
        entity_ids=entities,
        event_us=event_us,
        predictions=np.array([one.prediction for one in rows], np.float32),
        features=pa.table({name: pa.array([one.features[name] for one in rows]) for name in MODEL.names}),
        scored_us=event_us + 3000,
        explained=np.ones(len(rows), np.bool_),
        attributions=np.array([one.attributions for one in rows], np.float32),
        residual=np.array([one.residual for one in rows], np.float32),
    )


def plain_sqlite(threads: int) -> Callable[[Path, int], dict[str, float]]:
    def run(folder: Path, appends: int) -> dict[str, float]:
        file = folder / "plain.db"
        setup = sqlite3.connect(file, isolation_level=None)
        setup.execute("PRAGMA journal_mode=WAL")
        setup.execute(
            "CREATE TABLE rows (prediction_id TEXT, request_id TEXT, body TEXT, PRIMARY KEY (prediction_id, request_id)) WITHOUT ROWID"
        )
        local = threading.local()

        def append(one: OnlineRow) -> None:
            if not hasattr(local, "connection"):
                local.connection = sqlite3.connect(file, isolation_level=None, timeout=60)
                local.connection.execute("PRAGMA synchronous=FULL")
            local.connection.execute(
                "INSERT INTO rows VALUES (?, ?, ?)",
                (one.prediction_id, one.request_id, json.dumps(plain(one))),
            )

        return each(appends, threads, append)

    return run


def duckdb_insert(folder: Path, appends: int) -> dict[str, float]:
    import duckdb

    connection = duckdb.connect(str(folder / "rows.duckdb"))
    connection.execute("SET threads = 1")
    connection.execute("CREATE TABLE rows (prediction_id VARCHAR, request_id VARCHAR, body VARCHAR)")
    return each(
        appends,
        1,
        lambda one: connection.execute(
            "INSERT INTO rows VALUES (?, ?, ?)", (one.prediction_id, one.request_id, json.dumps(plain(one)))
        ),
    )


def delta_append(folder: Path, appends: int) -> dict[str, float]:
    from deltalake import write_deltalake

    target = str(folder / "delta")

    def append(one: OnlineRow) -> None:
        table = pa.table(
            {
                "prediction_id": [one.prediction_id],
                "request_id": [one.request_id],
                "body": [json.dumps(plain(one))],
            }
        )
        write_deltalake(target, table, mode="append")

    append(row(-1))
    return each(appends, 1, append)


def plain(one: OnlineRow) -> dict[str, Any]:
    """What a straightforward table would keep of it."""
    return {
        "entity_id": one.entity_id,
        "event_time": one.event_time.isoformat(),
        "scored_at": one.scored_at.isoformat(),
        "prediction": one.prediction,
        "features": one.features,
        "attributions": one.attributions,
        "residual": one.residual,
        "model_version": MODEL.model_version,
        "bundle_digest": MODEL.bundle_digest,
    }


def encodings(_: Path, appends: int) -> dict[str, float]:
    """CPU and bytes of a packed record in the ways that were tried."""
    import msgpack
    import msgspec

    rows = [row(number) for number in range(appends)]
    msgspec_encode = msgspec.msgpack.Encoder().encode

    def values(one: OnlineRow) -> list[Any]:
        return [
            one.event_time.timestamp(),
            one.scored_at.timestamp(),
            one.entity_id,
            one.prediction,
            one.residual,
            [one.features[name] for name in MODEL.names],
            one.attributions,
        ]

    ways: dict[str, Callable[[OnlineRow], bytes]] = {
        "float32 + JSON texts + check sum": lambda one: pack(one)[0].body,
        "msgpack, float32": lambda one: msgpack.packb(values(one), use_single_float=True),
        "msgspec msgpack": lambda one: msgspec_encode(values(one)),
        "JSON, values only": lambda one: json.dumps(values(one)).encode(),
        "JSON with names": lambda one: json.dumps(plain(one)).encode(),
    }
    found: dict[str, float] = {}
    for name, encode in ways.items():
        for one in rows:
            one.__dict__.pop("prediction_id", None)
        started = time.process_time()
        size = sum(len(encode(one)) for one in rows)
        found[f"{name}|us"] = (time.process_time() - started) / appends * 1e6
        found[f"{name}|bytes"] = size / appends
    return found


def folding(folder: Path, appends: int) -> dict[str, float]:
    """CPU of folding full segments, and of reading one id while a full segment is hot."""
    settings, spec = installation(folder)
    with HotLog(settings, spec, limits=HotLimits(seal_rows=10**9)) as log:
        for first in range(0, appends, 1_000):
            log.append([row(number) for number in range(first, first + 1_000)])
        wanted = [row(number).prediction_id for number in random.Random(1).sample(range(appends), 200)]
        hot_rows(settings, spec, wanted[0], wanted[0])
        started = time.process_time()
        for identifier in wanted:
            assert hot_rows(settings, spec, identifier, identifier).num_rows == 1
        look_up_ms = (time.process_time() - started) / len(wanted) * 1e3
        cpu, wall = time.process_time(), time.perf_counter()
        assert log.fold(seal=True).rows == appends
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    view = table_view(open_store(settings, prefix=spec.prefix), "tables/audit")
    assert view is not None
    size = sum(file.size_bytes for file in view.files)
    return {
        "fold_us": cpu / appends * 1e6,
        "wall_s": wall,
        "bytes": size / appends,
        "look_up_ms": look_up_ms,
    }


def beside_a_fold(elsewhere: bool) -> Callable[[Path, int], dict[str, float]]:
    """Latency of appends of one thread while a full segment is folded in this process, or in another."""

    def run(folder: Path, appends: int) -> dict[str, float]:
        settings, spec = installation(folder)
        with HotLog(settings, spec, limits=HotLimits(seal_rows=10**9)) as log:
            for first in range(0, appends, 5_000):
                log.append([row(number) for number in range(first, first + 5_000)])
            log.seal()
            more = [row(number) for number in range(appends, appends + 20_000)]
            log.append([row(-1)])
            other = [sys.executable, __file__, "--one", "fold only", "0", str(folder)]
            folding = threading.Thread(
                target=(lambda: subprocess.run(other, check=True, stdout=subprocess.DEVNULL))
                if elsewhere
                else log.fold
            )
            folding.start()
            took = []
            for one_more in more:
                started = time.perf_counter()
                log.append([one_more])
                took.append(time.perf_counter() - started)
                if not folding.is_alive():
                    break
            folding.join()
        took.sort()
        return {
            "p50_ms": statistics.median(took) * 1e3,
            "p99_ms": took[int(0.99 * len(took))] * 1e3,
            "max_ms": took[-1] * 1e3,
        }

    return run


def sync(folder: Path, appends: int) -> dict[str, float]:
    """How long the disk takes to confirm what was written."""
    handle = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT)
    took = []
    for _ in range(appends):
        started = time.perf_counter()
        os.write(handle, b"\0" * 4096)
        os.fdatasync(handle)
        took.append(time.perf_counter() - started)
    return {"ms": statistics.median(took) * 1e3}


def fold_only(folder: Path, _: int) -> dict[str, float]:
    return {"rows": fold(*installation(folder)).rows}


def serve_until_killed(folder: Path, first: int) -> dict[str, float]:
    """The victim of the kill test: appends and folds, and tells each answer by a write of its own."""
    settings, spec = installation(folder)
    told = os.open(folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    log = HotLog(settings, spec, node="victim", limits=HotLimits(seal_rows=500))
    log.start_folding(every_s=0.05)
    numbers = count(first)

    def serve() -> None:
        while True:
            number = next(numbers)
            log.append([row(number)])
            os.write(told, f"{number}\n".encode())

    for _ in range(KILL_THREADS):
        threading.Thread(target=serve, daemon=True).start()
    threading.Event().wait()
    return {}


ONE: dict[str, Callable[[Path, int], dict[str, float]]] = {
    **{f"hot log, {n} threads": hot(n) for n in THREADS},
    **{f"SQLite, {n} threads": plain_sqlite(n) for n in THREADS},
    "DuckDB": duckdb_insert,
    "Delta": delta_append,
    **{f"{n} at once, columns": at_once(n, columns=True) for n in AT_ONCE},
    **{f"{n} at once, rows": at_once(n, columns=False) for n in AT_ONCE},
    "encodings": encodings,
    "folding": folding,
    "fold only": fold_only,
    "sync": sync,
    "beside a fold in the same process": beside_a_fold(False),
    "beside a fold in another process": beside_a_fold(True),
    "victim": serve_until_killed,
}


# -- the run


def one(what: str, appends: int, checkout: Path | None = None) -> dict[str, float]:
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve())} if checkout else None
    folder = Path(tempfile.mkdtemp(prefix="penstock-append-"))
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", what, str(appends), str(folder)],
            check=True,
            stdout=subprocess.PIPE,
            env=env,
        )
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures
    finally:
        shutil.rmtree(folder)


def kill_test(kills: int) -> dict[str, int]:
    """Kill the victim at random moments; then every acknowledged row has to be there once."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-kill-"))
    told, dice = folder / "told", random.Random(7)

    def answers() -> list[int]:
        return [int(line) for line in told.read_text().splitlines()] if told.exists() else []

    try:
        for _ in range(kills):
            before = answers()
            first = max(before, default=-1) + KILL_THREADS + 1
            victim = subprocess.Popen([sys.executable, __file__, "--one", "victim", str(first), str(folder)])
            while len(answers()) == len(before):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 1.0))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        settings, spec = installation(folder)
        in_table = len(table_rows(settings, spec))
        fold(settings, spec, seal=True)
        found = Counter(table_rows(settings, spec))
        wanted = {row(number).request_id for number in answers()}
        return {
            "kills": kills,
            "acknowledged": len(wanted),
            "in the table at the last kill": in_table,
            "lost": len(wanted - set(found)),
            "doubled": sum(times - 1 for times in found.values()),
            "there without an answer": len(set(found) - wanted),
        }
    finally:
        shutil.rmtree(folder)


def table_rows(settings: Settings, spec: PipelineSpec) -> list[str]:
    """Request ids of the audit table's rows."""
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, "tables/audit")
    names: list[str] = []
    for file in view.files if view else ():
        data = pa.BufferReader(store.get(f"tables/audit/{file.path}"))
        names += pq.ParquetFile(data).read(columns=["source_key"]).column("source_key").to_pylist()
    return names


def many(appends: int, repeats: int, before: Path | None) -> list[str]:
    """The section on appends of many rows, in turn with those of another checkout."""
    sizes = {name: appends if name.startswith("1 ") else 10 * appends for name in ONE if "at once" in name}
    sizes |= {f"hot log, {n} threads": appends for n in THREADS}
    sizes["folding"] = FOLD_ROWS
    arms = {"now": ROOT, **({"before": before} if before else {})}
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name, number in sizes.items():
            for arm, checkout in arms.items():
                if arm == "now" or "columns" not in name:
                    runs.setdefault((arm, name), []).append(one(name, number, checkout))
                    print(f"{arm}, {name}: {runs[arm, name][-1]}", file=sys.stderr)

    def shown(arm: str, name: str, key: str, form: str) -> str:
        some = runs.get((arm, name))
        return format(statistics.median(figures[key] for figures in some), form) if some else ""

    lines = [
        MANY,
        f"`--only many --appends {appends} --repeats {repeats}{' --before CHECKOUT' if before else ''}`. One thread; rows of one model, as columns (`OnlineRows`) or one by one; in turn.",
        "",
        *(["*Before* is a release in which each prediction was a row of SQLite.", ""] if before else []),
        "| rows of an append | columns, CPU-µs a row | rows/s | bytes a row | one by one, CPU-µs a row | rows/s | before, CPU-µs a row | rows/s | bytes a row |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n in AT_ONCE:
        columns, rows = f"{n} at once, columns", f"{n} at once, rows"
        cells = [
            f"{n:,}",
            shown("now", columns, "cpu_us", ".1f"),
            shown("now", columns, "per_s", ",.0f"),
            shown("now", columns, "bytes", ".0f"),
            shown("now", rows, "cpu_us", ".1f"),
            shown("now", rows, "per_s", ",.0f"),
            shown("before", rows, "cpu_us", ".1f"),
            shown("before", rows, "per_s", ",.0f"),
            shown("before", rows, "bytes", ".0f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | now | before |", "|---|---|---|"]
    for name, key, label in (
        *((f"hot log, {n} threads", "cpu_ms", f"append of one row, {_threads(n)}, CPU-ms") for n in THREADS),
        *((f"hot log, {n} threads", "bytes", f"its bytes, {_threads(n)}") for n in THREADS),
        ("folding", "fold_us", "fold of 100,000 rows, appended by 1,000, CPU-µs a row"),
        ("folding", "look_up_ms", "look-up by id among them while they are hot, CPU-ms"),
    ):
        form = {"cpu_ms": ".3f", "bytes": ".0f", "fold_us": ".1f", "look_up_ms": ".2f"}[key]
        lines.append(f"| {label} | {shown('now', name, key, form)} | {shown('before', name, key, form)} |")
    return lines


def report(appends: int, repeats: int, kills: int, before: Path | None) -> str:
    sizes = {
        **{name: appends for name in ONE if "threads" in name},
        "DuckDB": appends // 8,
        "Delta": appends // 20,
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sizes}
    for _ in range(repeats):
        for name, number in sizes.items():
            runs[name].append(one(name, number))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr)
    middle = {
        name: {key: statistics.median(figures[key] for figures in some) for key in some[0]}
        for name, some in runs.items()
    }
    folded, encoded, killed = one("folding", FOLD_ROWS), one("encodings", 20_000), kill_test(kills)
    beside = {
        name: one(f"beside a fold {name}", FOLD_ROWS)
        for name in ("in the same process", "in another process")
    }
    ratio = middle["hot log, 1 threads"]["cpu_ms"] / middle["SQLite, 1 threads"]["cpu_ms"]
    synced = one("sync", 2_000)["ms"]
    lines = [
        "# Durable append of one online prediction",
        "",
        f"`python benchmarks/audit_append.py --appends {appends} --repeats {repeats} --kills {kills}`, "
        f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}. Other work ran on the machine: compare "
        "rows of one table, not figures of different days.",
        "",
        "A record has 20 features, all explained; each append is on the disk before it returns. Medians of "
        f"{repeats} runs. This disk confirms a sync of 4 KiB in {synced:.2f} ms (median); a slower one makes single threads slower, "
        "and groups larger.",
        "",
        "| store | CPU-ms an append | appends/s | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
        *(
            f"| {label} | {figures['cpu_ms']:.3f} | {figures['per_s']:,.0f} | {figures['p50_ms']:.2f} | {figures['p99_ms']:.2f} |"
            for label, figures in (
                *((f"hot log, {_threads(n)}", middle[f"hot log, {n} threads"]) for n in THREADS),
                *(
                    (
                        f"SQLite, one INSERT a commit, WAL, full sync, {_threads(n)}",
                        middle[f"SQLite, {n} threads"],
                    )
                    for n in THREADS
                ),
                ("DuckDB, one INSERT a commit", middle["DuckDB"]),
                ("Delta, one append a record", middle["Delta"]),
            )
        ),
        "",
        f"The target was 0.45 CPU-ms. With one thread the hot log takes {ratio:.2f} times the CPU of a plain insert. Segments take "
        f"{middle['hot log, 1 threads']['bytes']:.0f} bytes a record.",
        "",
        *many(appends, repeats, before)[1:],
        "",
        "## Folding",
        "",
        f"{FOLD_ROWS:,} rows of one segment: {folded['fold_us']:.1f} CPU-µs a row, {folded['wall_s']:.1f} s, "
        f"{folded['bytes']:.0f} bytes a row in the table (random values). A look-up by id among them while they are hot, in blocks of 1,000: "
        f"{folded['look_up_ms']:.2f} CPU-ms.",
        "",
        "Appends of one thread while such a segment is folded:",
        "",
        "| | p50 ms | p99 ms | slowest ms |",
        "|---|---|---|---|",
        *(
            f"| {name} | {figures['p50_ms']:.2f} | {figures['p99_ms']:.2f} | {figures['max_ms']:.1f} |"
            for name, figures in beside.items()
        ),
        "",
        "## Ways to pack a record",
        "",
        "| | CPU-µs | bytes |",
        "|---|---|---|",
        *(
            f"| {name} | {encoded[f'{name}|us']:.1f} | {encoded[f'{name}|bytes']:.0f} |"
            for name in (key[:-3] for key in encoded if key.endswith("|us"))
        ),
        "",
        "The first one is used; its time has the prediction id and all checks in it, the others' have not.",
        "",
        "## Kills",
        "",
        f"A process with {KILL_THREADS} appending threads and a folding one, killed by SIGKILL {killed['kills']} times at random "
        f"moments: {killed['acknowledged']:,} rows acknowledged, **{killed['lost']} lost, {killed['doubled']} doubled**; "
        f"{killed['there without an answer']} are there whose answer the kill cut off. At the last kill "
        f"{killed['in the table at the last kill']:,} of them had been folded.",
        "",
    ]
    RESULTS.write_text("\n".join(lines))
    return "\n".join(lines)


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


if __name__ == "__main__":
    main()
