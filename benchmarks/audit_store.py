"""What a look-up in the audit store costs, side by side with others on the same rows: CPU-ms, bytes, rows a second.

    python3.11 -m venv .penstock/venv-bench && .penstock/venv-bench/bin/pip install -r benchmarks/requirements.txt
    python benchmarks/audit_store.py --rows 20000000

Takes the champion and a year of flights from this installation (run `make demo` first), scores and explains every flight, keeps 20
of the features (16 numeric, 4 categorical), and draws rows from them with fresh event times (to the millisecond) and
ids: 10 days of 24 hourly files. They are written by Penstock's own code (`audit_table`, `write_table_file`, `commit_change`). Then, each in a
process of its own:

- `penstock`: `by_prediction`, `window_table`.
- `duckdb, all files`: DuckDB over all Parquet files of the table.
- `delta -> duckdb`: file statistics of a Delta log that is kept open name the files, DuckDB reads them.
- `delta -> pyarrow`: the same with pyarrow's dataset reader.
- `polars`: `scan_delta` of the table.
- `pyiceberg`: a table of the same Parquet files, by `add_files`.
- `lance`: its own files of the same rows, with a BTREE index on the id.

A measurement is one function in `MEASUREMENTS` that returns figures; the other engines are in `audit_store_others.py`.
`--data FOLDER` keeps the rows for the next call.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store
from tasks.core.object_store import LocalStore

PIPELINE = "flight_delay"
NUMERIC, TEXTUAL = 16, 4
FIRST_DAY = date(2026, 1, 1)
DAYS = 10
LOOKUPS = 400
WINDOWS = 30
ENGINES = ("duckdb, all files", "delta -> duckdb", "delta -> pyarrow", "polars", "pyiceberg", "lance")
RESULTS = Path(__file__).parent / "results" / "audit_store.md"
BENCH_PYTHON = Path(__file__).resolve().parents[1] / ".penstock" / "venv-bench" / "bin" / "python"


@dataclass(frozen=True)
class Figure:
    """One cell of the result."""

    what: str
    engine: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Prepared:
    """The rows to measure with."""

    settings: Settings
    spec: PipelineSpec
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.settings.home

    @property
    def ids(self) -> list[str]:
        return list(self.facts["ids"])

    @property
    def hours(self) -> list[datetime]:
        return [datetime.fromisoformat(text) for text in self.facts["hours"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs="*", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--bench-python", type=Path, default=BENCH_PYTHON)
    parser.add_argument("--child", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        found = MEASUREMENTS[asked.child](prepared(asked.data))
        print(json.dumps([asdict(figure) for figure in found]))
        return
    scratch = (asked.data or Path(tempfile.mkdtemp(prefix="penstock-benchmark-"))).resolve()
    try:
        prepare(Settings.from_environment(), scratch, asked.rows)
        figures = [Figure(**item) for item in prepared(scratch).facts["figures"]]
        for name in asked.measure:
            own = [__file__, "--child", name, "--data", str(scratch)]
            figures += in_child([sys.executable, *own], name)
        for engine in asked.engines:
            other = [str(Path(__file__).with_name("audit_store_others.py")), engine, str(scratch)]
            figures += in_child([str(asked.bench_python), *other], engine)
        report(figures, prepared(scratch), asked)
    finally:
        if not asked.data:
            shutil.rmtree(scratch, ignore_errors=True)


def in_child(command: list[str], engine: str) -> list[Figure]:
    """Figures that a process of its own prints; of one that fails, why."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        print(f"{engine}: {why}", flush=True)
        return [Figure("left out", engine, float("nan"), why[:200])]
    found = [Figure(**item) for item in json.loads(done.stdout.splitlines()[-1])]
    for figure in found:
        print(f"{figure.what:32s} {figure.engine:20s} {figure.value:12.3f} {figure.note}", flush=True)
    return found


# The rows


def prepare(settings: Settings, scratch: Path, rows: int) -> None:
    """An audit table of about `rows` rows under `scratch`; what writing it cost is among the facts."""
    facts_file = scratch / "facts.json"
    if facts_file.exists() and json.loads(facts_file.read_text())["asked"] == rows:
        return
    scratch.mkdir(parents=True, exist_ok=True)
    spec = load_pipeline(settings, PIPELINE)
    base = explained_flights(settings, spec, scratch)
    target = open_store(Settings.at_home(scratch, project=settings.project), prefix=spec.prefix)
    assert isinstance(target, LocalStore)
    facts = write_rows(target, spec, base, rows)
    facts_file.write_text(json.dumps({"asked": rows, **facts}))


def prepared(scratch: Path) -> Prepared:
    settings = Settings.at_home(scratch, project=Settings.from_environment().project)
    facts = json.loads((scratch / "facts.json").read_text())
    return Prepared(settings, load_pipeline(settings, PIPELINE), facts)


def explained_flights(settings: Settings, spec: PipelineSpec, scratch: Path) -> dict[str, Any]:
    """Entity, score, features and attributions of every flight of 2013, by the installation's champion."""
    from tasks.core.rows import entity_column
    from tasks.metadata import MetadataStore
    from tasks.model import Scorer, fetch_bundle

    live = MetadataStore.open(settings).live(spec)
    if live is None:
        sys.exit("this installation has no champion: run `make demo` first")
    scorer = Scorer(
        fetch_bundle(open_store(settings, prefix=spec.prefix), live.bundle_digest, scratch / "cache")
    )
    sys.path.insert(0, str(settings.pipelines_dir / PIPELINE))
    import source  # type: ignore[import-not-found]  # the pipeline's own

    flights = source.load(date(2013, 1, 1), date(2013, 12, 31))
    features = scorer.features(flights)
    encoded = scorer.encode(features)
    scores, explained = scorer.predict(encoded), scorer.explain(encoded)
    numeric = [field.name for field in features.schema if pa.types.is_floating(field.type)]
    textual = [name for name in features.column_names if name not in numeric]
    names = [*numeric[:NUMERIC], *textual[:TEXTUAL]]
    at = [scorer.feature_names.index(name) for name in names]
    shifts = np.ascontiguousarray(explained.attributions[:, at], np.float32)
    # What the features that are left out explain goes into the residual: rows stay complete.
    left_out = explained.attributions.sum(axis=1) - shifts.sum(axis=1)
    return {
        "entity": entity_column(flights, spec),
        "scores": np.asarray(scores, np.float32),
        "features": features.select(names).combine_chunks(),
        "attributions": shifts,
        "residual": (explained.residual + left_out).astype(np.float32),
        "base_value": float(explained.base_value),
        "scorer": scorer,
        "version": live.version,
        "digest": live.bundle_digest,
        "feature_version": live.feature_version,
    }


def write_rows(store: LocalStore, spec: PipelineSpec, base: dict[str, Any], rows: int) -> dict[str, Any]:
    """Write the table; returns ids and hours to ask for, and the figures of writing."""
    from tasks.audit.rows import AUDIT_SCHEMA, AUDIT_TABLE, audit_table
    from tasks.core.delta import Change, FileName, commit_change
    from tasks.core.table_files import AUDIT_GROUP_ROWS, write_table_file

    random = np.random.default_rng(7)
    per_file = rows // (DAYS * 24)
    build_s = write_s = commit_s = 0.0
    size = written = 0
    ids: list[str] = []
    plain_size = plain_rows = 0
    for day in range(DAYS):
        files = []
        for hour in range(24):
            scored = drawn(spec, base, random, per_file, day, hour)
            event_date = FIRST_DAY + timedelta(days=day)
            name = FileName(event_date, "ab" * 8, event_date, hour, "1")
            started = time.process_time()
            table = audit_table(store, scored)
            built = time.process_time()
            files.append(write_table_file(store, AUDIT_TABLE, name, table, group_rows=AUDIT_GROUP_ROWS))
            write_s += time.process_time() - built
            build_s += built - started
            size += files[-1].size_bytes
            written += table.num_rows
            chosen = random.integers(0, table.num_rows, max(1, LOOKUPS // (DAYS * 24) + 1))
            ids += table.column("prediction_id").take(pa.array(chosen)).to_pylist()
            if hour == 0:
                plain_size += plainly_written(table)
                plain_rows += table.num_rows
        started = time.process_time()
        change = Change(add=tuple(files), transaction=(f"benchmark-{day}", 1))
        commit_change(
            store,
            AUDIT_TABLE,
            schema=lambda: AUDIT_SCHEMA.append(pa.field("event_date", pa.date32())),
            decide=lambda _, change=change: change,
        )
        commit_s += time.process_time() - started
    random.shuffle(ids)
    start = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
    hours = [start + timedelta(hours=int(at)) for at in random.permutation(DAYS * 24)[:WINDOWS]]
    note = f"building {build_s:.1f}, encoding and writing {write_s:.1f}, committing {commit_s:.2f} CPU-s"
    figures = [
        Figure("bytes per prediction, warm", "penstock", size / written),
        Figure("bytes per prediction, warm", "pyarrow's defaults", plain_size / plain_rows, "the same rows"),
        Figure(
            "bulk write, k rows per CPU-s", "penstock", written / (build_s + write_s + commit_s) / 1e3, note
        ),
    ]
    return {
        "rows": written,
        "ids": ids[:LOOKUPS],
        "hours": [hour.isoformat() for hour in hours],
        "table": store.url(AUDIT_TABLE),
        "figures": [asdict(figure) for figure in figures],
    }


def drawn(
    spec: PipelineSpec, base: dict[str, Any], random: np.random.Generator, rows: int, day: int, hour: int
) -> Any:
    """Scored rows of one hour: flights with event times of their own."""
    from tasks.core.prediction_ids import PredictionIds
    from tasks.core.scored import ScoredRows

    scorer = base["scorer"]
    at = random.integers(0, len(base["scores"]), rows)
    start = datetime.combine(FIRST_DAY, datetime.min.time(), UTC) + timedelta(days=day, hours=hour)
    millis = int(start.timestamp() * 1000) + random.choice(3_600_000, rows, replace=False)
    micros = millis * 1000
    entities = base["entity"].take(pa.array(at))
    ids = PredictionIds.of(entities, micros, spec)
    order = ids.order()
    at, picked = at[order], pa.array(at[order])
    return ScoredRows(
        pipeline=spec.name,
        run_id="ab" * 8,
        shard=hour,
        day=start.date(),
        model_version=base["version"],
        bundle_digest=base["digest"],
        feature_version=base["feature_version"],
        source_snapshot="cd" * 8,
        source_key=f"data/{start.date()}/{'ef' * 8}.parquet",
        scored_at=start + timedelta(hours=1),
        prediction_ids=ids.take(order),
        event_times=pa.array(micros[order], pa.timestamp("us", tz="UTC")),
        entity_ids=base["entity"].take(picked),
        source_rows=order,
        output_names=(),
        outputs=np.zeros((rows, 0), np.float32),
        scores=base["scores"][at],
        features=base["features"].take(picked),
        explained=np.ones(rows, bool),
        attributions=base["attributions"][at],
        base_value=base["base_value"],
        residual=base["residual"][at],
        explainer=scorer.explainer,
        explainer_version=scorer.explainer_version,
        background_id=scorer.background_id,
    )


def plainly_written(table: pa.Table) -> int:
    """Bytes of the rows as pyarrow writes them unasked, with the same compression."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return int(sink.tell())


# Measurements


def cpu_ms(calls: Iterator[Callable[[], Any]]) -> list[float]:
    """CPU-ms of each call, all threads of this process counted."""
    found = []
    for call in calls:
        started = time.process_time()
        call()
        found.append((time.process_time() - started) * 1e3)
    return found


def spread(found: list[float]) -> str:
    ordered = sorted(found)
    return f"{len(found)} calls, p95 {ordered[int(len(found) * 0.95)]:.2f}"


def look_ups(of: Prepared) -> list[Figure]:
    """By id: the first time that a file is asked, and when its footer is known."""
    from tasks.audit import by_prediction

    def ask(identifier: str) -> Callable[[], Any]:
        def call() -> None:
            assert by_prediction(of.settings, of.spec, identifier).prediction_id == identifier

        return call

    ask(of.ids[0])()  # imports, the log
    first = cpu_ms(ask(item) for item in of.ids)
    again = cpu_ms(ask(item) for item in of.ids)
    return [
        Figure("look-up by id, CPU-ms", "penstock", statistics.median(again), spread(again)),
        Figure("look-up by id, first pass, CPU-ms", "penstock", statistics.median(first), spread(first)),
    ]


def windows(of: Prepared) -> list[Figure]:
    """One hour: count and mean of the prediction, and all rows; the first time and when the file is known."""
    from tasks.audit import window_table

    def aggregate(start: datetime) -> Callable[[], Any]:
        def call() -> None:
            table = window_table(
                of.settings, of.spec, start, start + timedelta(hours=1), columns=["prediction"]
            )
            assert table.num_rows and pc.mean(table.column("prediction")).as_py() > 0

        return call

    def full(start: datetime) -> Callable[[], Any]:
        return lambda: window_table(of.settings, of.spec, start, start + timedelta(hours=1))

    aggregate(of.hours[0])()
    first = cpu_ms(aggregate(hour) for hour in of.hours[1:])
    again = cpu_ms(aggregate(hour) for hour in of.hours * 3)
    whole = cpu_ms(full(hour) for hour in of.hours)
    return [
        Figure("one hour, aggregate, CPU-ms", "penstock", statistics.median(again), spread(again)),
        Figure(
            "one hour, aggregate, first pass, CPU-ms", "penstock", statistics.median(first), spread(first)
        ),
        Figure("one hour, all rows, CPU-ms", "penstock", statistics.median(whole), spread(whole)),
    ]


def after_a_commit(of: Prepared) -> list[Figure]:
    """By id, when somebody has committed since the last look-up: a reader that knows nothing yet."""
    from tasks.audit.reader import Asked, AuditReader

    day = FIRST_DAY

    def call() -> None:
        AuditReader(of.settings, of.spec).warm.live(Asked((day,), "", "~"))

    found = cpu_ms(iter([call] * 20))
    return [Figure("reading the log anew, CPU-ms", "penstock", statistics.median(found), spread(found))]


MEASUREMENTS: dict[str, Callable[[Prepared], list[Figure]]] = {
    "look-ups": look_ups,
    "windows": windows,
    "log": after_a_commit,
}


# The report


def report(figures: list[Figure], of: Prepared, asked: argparse.Namespace) -> None:
    rows = [figure for figure in figures if figure.what != "left out"]
    lines = [
        f"## {of.facts['rows']:,} predictions, {NUMERIC} numeric and {TEXTUAL} categorical features",
        "",
        f"{os.cpu_count()} shared cores, {platform.system()}, Python {platform.python_version()}, local disk, warm page "
        "cache. CPU is that of the process with all its threads; medians.",
        "",
        "| what | engine | figure | |",
        "|---|---|---|---|",
    ]
    for what in dict.fromkeys(figure.what for figure in rows):
        of_it = sorted((figure for figure in rows if figure.what == what), key=lambda figure: figure.value)
        lines += [f"| {what} | {item.engine} | {item.value:,.2f} | {item.note} |" for item in of_it]
    for figure in figures:
        if figure.what == "left out":
            lines += ["", f"Left out: {figure.engine} ({figure.note})."]
    command = f"--rows {asked.rows}" + (
        f" --engines {' '.join(asked.engines)}" if len(asked.engines) < len(ENGINES) else ""
    )
    lines += ["", f"`python benchmarks/audit_store.py {command}`", ""]
    print("\n".join(lines))
    with asked.results.open("a") as file:
        file.write("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
