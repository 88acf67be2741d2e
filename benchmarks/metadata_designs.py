"""Other designs of the deployment log, with the same events and the same questions: what each answers, takes and refuses.

Called by `benchmarks/metadata_store.py`. Every design is asked through its plain driver on one open connection, so that no
layer of ours is in the figures (PostgreSQL's parallel workers are off):

- relational: the store's own schema, on SQLite and on PostgreSQL;
- documents: one JSON object an event, in SQLite and in PostgreSQL with indexes on its fields, and in PostgreSQL with one GIN index;
- time series: PostgreSQL partitioned by day with BRIN, a DuckDB table, and Parquet files by day read by DuckDB.

Events arrive in the order of time. CPU is that of the process that asks and of the PostgreSQL backend that answers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.metadata.database import Database
from tasks.metadata.schema import ensure_current

START = datetime(2024, 1, 1, tzinfo=UTC)
WRITERS, WRITE_S, BATCH = 4, 5.0, 200
COLUMNS = (
    "tenant", "pipeline", "event_id", "kind", "moves_pointer", "version", "bundle_digest", "feature_version",
    "expected_version", "previous_version", "actor", "reason", "at_utc",
)  # fmt: skip
TYPES = (
    "VARCHAR", "VARCHAR", "BIGINT", "VARCHAR", "BOOLEAN", "INTEGER", "VARCHAR", "VARCHAR", "INTEGER", "INTEGER",
    "VARCHAR", "VARCHAR",
)  # fmt: skip
OURS = "penstock_deployment_events"


@dataclass(frozen=True)
class Asked:
    """The size of the experiment."""

    events: int
    pipelines: int
    repeats: int

    @property
    def each(self) -> int:
        return self.events // self.pipelines

    @property
    def names(self) -> list[str]:
        return [f"pipeline_{number:03}" for number in range(self.pipelines)]


@dataclass(frozen=True)
class Measured:
    """Milliseconds, p50, and of the CPU the mean."""

    wall_ms: dict[str, float]
    cpu_ms: dict[str, float]
    load_s: float
    size_mb: float
    one_a_s: float
    batch_a_s: float
    second_writer: str
    swap: str
    history: str


def row(pipeline: str, number: int) -> tuple[Any, ...]:
    return (
        "default", pipeline, number, "promote" if number % 5 else "revert", bool(number % 5), number,
        f"{number:064x}", "1+0123456789abcdef", number - 1, number - 1, "airflow",
        "the canary passed: better by 0.012 (0.004 to 0.020) over 14 days", START + timedelta(minutes=number),
    )  # fmt: skip


def in_time(asked: Asked, size: int = 20_000) -> Iterator[list[tuple[Any, ...]]]:
    """All events, a minute of all pipelines after the other, `size` rows at a time."""
    found: list[tuple[Any, ...]] = []
    for number in range(1, asked.each + 1):
        found += [row(name, number) for name in asked.names]
        if len(found) >= size:
            yield found
            found = []
    if found:
        yield found


def text_time(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*values[:-1], values[-1].isoformat(timespec="microseconds"))


def document(values: tuple[Any, ...]) -> str:
    return json.dumps(dict(zip(COLUMNS, text_time(values), strict=True)))


class Design:
    """One way to keep the log. `place` is a folder or a PostgreSQL URL."""

    name = ""
    table = OURS
    mark = "?"
    moves = "moves_pointer"
    seeks = True
    """False: what is live of every pipeline is one GROUP BY, as there is no index to seek in."""
    swap = "yes, by primary key"
    history = "yes, by trigger"
    second_writer = "waits"

    def __init__(self, place: str) -> None:
        self.place = place
        self.connection: Any = None

    def of(self, column: str) -> str:
        return column

    def moment(self, at: datetime) -> Any:
        return at

    def create(self) -> None: ...
    def open(self) -> None: ...
    def insert(self, rows: list[tuple[Any, ...]]) -> None: ...
    def settle(self) -> None: ...

    def size_mb(self) -> float:
        return 0.0

    def ask(self, sql: str, *values: Any) -> list[Any]:
        return list(self.connection.execute(sql, values).fetchall())

    def cpu_ns(self) -> int:
        return time.process_time_ns()

    def owner(self, name: str, *, moving: bool) -> tuple[str, list[Any]]:
        where = f"{self.of('tenant')} = {self.mark} AND {self.of('pipeline')} = {self.mark}"
        return where + (f" AND {self.moves}" if moving else ""), ["default", name]

    def questions(self, asked: Asked) -> dict[str, tuple[Callable[[], Any], int]]:
        chosen, number, at = random.Random(7), self.of("event_id"), self.of("at_utc")

        def live(name: str | None = None) -> Any:
            where, values = self.owner(name or chosen.choice(asked.names), moving=True)
            return self.ask(
                f"SELECT * FROM {self.table} WHERE {where} ORDER BY {number} DESC LIMIT 1", *values
            )

        def everywhere() -> Any:
            if self.seeks:
                return [live(name) for name in asked.names]
            grouped = (
                f"SELECT {self.of('pipeline')}, max({number}) FROM {self.table} WHERE {self.moves} GROUP BY 1"
            )
            return self.ask(grouped)

        def live_at() -> Any:
            where, values = self.owner(chosen.choice(asked.names), moving=True)
            moment = self.moment(START + timedelta(minutes=chosen.randrange(2, asked.each)))
            order = f"{at} <= {self.mark} ORDER BY {at} DESC, {number} DESC LIMIT 1"
            return self.ask(f"SELECT * FROM {self.table} WHERE {where} AND {order}", *values, moment)

        def last_day() -> Any:
            where, values = self.owner(chosen.choice(asked.names), moving=False)
            since = self.moment(START + timedelta(minutes=asked.each) - timedelta(hours=24))
            order = f"{at} >= {self.mark} ORDER BY {at} DESC, {number} DESC LIMIT 100"
            return self.ask(f"SELECT * FROM {self.table} WHERE {where} AND {order}", *values, since)

        def by_kind() -> Any:
            return self.ask(
                f"SELECT {self.of('kind')}, count(*), avg({self.of('version')}) FROM {self.table} GROUP BY 1"
            )

        few = asked.repeats if self.seeks else max(5, asked.repeats // 20)
        return {
            "live, one pipeline": (live, few),
            "live, every pipeline": (everywhere, 5),
            "live at T": (live_at, few),
            "newest 100 of 24 h": (last_day, few),
            "count and mean over all": (by_kind, 3),
        }


class Sqlite(Design):
    name = "relational, SQLite"
    insert_sql = f"INSERT INTO {OURS} ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"

    def create(self) -> None:
        ensure_current(Database(f"sqlite:///{self.place}/ours.db"))

    def open(self, file: str = "ours.db") -> None:
        self.connection = sqlite3.connect(Path(self.place) / file, isolation_level=None, timeout=30)
        for setting in ("journal_mode=WAL", "synchronous=FULL"):
            self.connection.execute(f"PRAGMA {setting}")

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(self.insert_sql, [self.packed(values) for values in rows])
        self.connection.execute("COMMIT")

    def packed(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return text_time(values)

    def moment(self, at: datetime) -> Any:
        return at.isoformat(timespec="microseconds")

    def settle(self) -> None:
        self.connection.execute("ANALYZE")

    def size_mb(self) -> float:
        [[pages]], [[size]] = self.ask("PRAGMA page_count"), self.ask("PRAGMA page_size")
        return pages * size / 1e6


class SqliteDocuments(Sqlite):
    name = "documents, SQLite, field indexes"
    table, insert_sql = "docs", "INSERT INTO docs (doc) VALUES (?)"
    moves = "json_extract(doc, '$.moves_pointer') = 1"
    swap = "yes, by a unique index on expressions"

    def of(self, column: str) -> str:
        return f"json_extract(doc, '$.{column}')"

    def create(self) -> None:
        self.open()
        self.connection.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, doc TEXT NOT NULL)")
        for number, columns in enumerate(FIELD_INDEXES):
            listed = ", ".join(self.of(column) for column in columns)
            unique = "UNIQUE" if number == 0 else ""
            self.connection.execute(f"CREATE {unique} INDEX docs_{number} ON docs ({listed})")

    def open(self, file: str = "docs.db") -> None:
        super().open(file)

    def packed(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return (document(values),)


FIELD_INDEXES = (
    ("tenant", "pipeline", "event_id"),
    ("tenant", "pipeline", "moves_pointer", "event_id"),
    ("tenant", "pipeline", "moves_pointer", "at_utc", "event_id"),
    ("tenant", "pipeline", "at_utc"),
    ("at_utc",),
)
"""Those of the store's own schema."""


class Postgres(Design):
    name = "relational, PostgreSQL"
    mark = "%s"
    copied = COLUMNS

    def create(self) -> None:
        ensure_current(Database(self.place))

    def open(self) -> None:
        self.connection = psycopg.connect(self.place, autocommit=True)
        # a worker's CPU would be missing from the figures
        self.connection.execute("SET max_parallel_workers_per_gather = 0")
        self.backend = self.connection.info.backend_pid

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        listed = f"{self.table} ({', '.join(self.copied)})"
        with self.connection.transaction(), self.connection.cursor() as cursor:
            if len(rows) == 1:
                marks = ", ".join(["%s"] * len(self.copied))
                cursor.execute(f"INSERT INTO {listed} VALUES ({marks})", self.packed(rows[0]))
            else:
                with cursor.copy(f"COPY {listed} FROM STDIN") as copy:
                    for values in rows:
                        copy.write_row(self.packed(values))

    def packed(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return values

    def settle(self) -> None:
        self.connection.execute("VACUUM ANALYZE")

    def cpu_ns(self) -> int:
        running = Path(f"/proc/{self.backend}/schedstat").read_text().split()[0]
        return time.process_time_ns() + int(running)

    def size_mb(self) -> float:
        [[size]] = self.ask(
            "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(%s::regclass)", self.table
        ) or [[0]]
        if not size:
            [[size]] = self.ask("SELECT pg_total_relation_size(%s::regclass)", self.table)
        return float(size) / 1e6


class PostgresDocuments(Postgres):
    name = "documents, PostgreSQL, field indexes"
    table, copied = "docs", ("doc",)
    moves = "(doc->>'moves_pointer')::boolean"
    swap = "yes, by a unique index on expressions"

    def of(self, column: str) -> str:
        casts = {"event_id": "::bigint", "version": "::integer", "moves_pointer": "::boolean"}
        return f"(doc->>'{column}'){casts.get(column, '')}"

    def create(self) -> None:
        self.open()
        self.connection.execute(f"CREATE TABLE {self.table} (id bigserial PRIMARY KEY, doc jsonb NOT NULL)")
        self.index()

    def index(self) -> None:
        for number, columns in enumerate(FIELD_INDEXES):
            listed = ", ".join(f"({self.of(column)})" for column in columns)
            unique = "UNIQUE" if number == 0 else ""
            self.connection.execute(f"CREATE {unique} INDEX docs_{number} ON docs ({listed})")

    def packed(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return (document(values),)

    def moment(self, at: datetime) -> Any:
        return at.isoformat(timespec="microseconds")


class PostgresGin(PostgresDocuments):
    name = "documents, PostgreSQL, GIN"
    table, seeks = "gin_docs", False
    swap = "no: GIN cannot be unique"

    def index(self) -> None:
        self.connection.execute(f"CREATE INDEX ON {self.table} USING gin (doc jsonb_path_ops)")

    def owner(self, name: str, *, moving: bool) -> tuple[str, list[Any]]:
        wanted = {"tenant": "default", "pipeline": name} | ({"moves_pointer": True} if moving else {})
        return "doc @> %s::jsonb", [json.dumps(wanted)]


class PostgresSeries(Postgres):
    name = "time series, PostgreSQL, days and BRIN"
    table, seeks = "series", False
    swap = "no: a unique key must contain the time"
    history = "yes, by trigger on each part"

    def create(self) -> None:
        self.open()
        typed = ", ".join(f"{column} {kind}" for column, kind in zip(COLUMNS, TYPES, strict=False))
        self.connection.execute(
            f"CREATE TABLE series ({typed}, at_utc timestamptz) PARTITION BY RANGE (at_utc)"
        )
        for day in range(10):
            first, last = START + timedelta(days=day), START + timedelta(days=day + 1)
            self.connection.execute(
                f"CREATE TABLE series_{day} PARTITION OF series FOR VALUES FROM ('{first}') TO ('{last}')"
            )
        self.connection.execute("CREATE TABLE series_rest PARTITION OF series DEFAULT")
        self.connection.execute("CREATE INDEX ON series USING brin (at_utc) WITH (pages_per_range = 32)")


class Duck(Design):
    name = "time series, DuckDB table"
    table, seeks = "events", False
    history = "no: it has no triggers"

    def create(self) -> None:
        self.open()
        typed = ", ".join(f"{column} {kind}" for column, kind in zip(COLUMNS, TYPES, strict=False))
        self.connection.execute(
            f"CREATE TABLE events ({typed}, at_utc TIMESTAMP, PRIMARY KEY (tenant, pipeline, event_id))"
        )

    def open(self) -> None:
        self.connection = duckdb.connect(str(Path(self.place) / "events.duckdb"))

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        if len(rows) == 1:
            marks = ", ".join("?" * len(COLUMNS))
            values = (*rows[0][:-1], self.moment(rows[0][-1]))
            self.connection.execute(f"INSERT INTO events VALUES ({marks})", values)
            return
        self.connection.register("arriving", arrow(rows))
        self.connection.execute("INSERT INTO events SELECT * FROM arriving")
        self.connection.unregister("arriving")

    def moment(self, at: datetime) -> Any:
        return at.replace(tzinfo=None)

    def settle(self) -> None:
        self.connection.execute("CHECKPOINT")

    def size_mb(self) -> float:
        return sum(file.stat().st_size for file in Path(self.place).glob("events.duckdb*")) / 1e6


class Parquet(Duck):
    name = "time series, Parquet by day, DuckDB"
    swap, history = "no", "no: files are replaced by anybody"
    second_writer = "writes a file of its own"

    def create(self) -> None:
        (Path(self.place) / "parquet").mkdir()
        self.table = f"read_parquet('{self.place}/parquet/*.parquet')"
        self.open()

    def open(self) -> None:
        self.table = f"read_parquet('{self.place}/parquet/*.parquet')"
        self.connection = duckdb.connect()

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        target = Path(self.place) / "parquet" / f"{uuid.uuid4().hex}.parquet"
        pq.write_table(arrow(rows), target, compression="zstd")
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def settle(self) -> None:
        """What a nightly merge would leave: one file a day, in the order of pipeline and time."""
        folder, new = Path(self.place) / "parquet", Path(self.place) / "merged"
        new.mkdir()
        days = self.ask(f"SELECT DISTINCT at_utc::DATE FROM {self.table}")
        for (day,) in days:
            self.connection.execute(
                f"COPY (SELECT * FROM {self.table} WHERE at_utc::DATE = DATE '{day}' ORDER BY pipeline, event_id) "
                f"TO '{new}/{day}.parquet' (COMPRESSION zstd)"
            )
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        new.rename(folder)

    def size_mb(self) -> float:
        return sum(file.stat().st_size for file in (Path(self.place) / "parquet").iterdir()) / 1e6


def arrow(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    columns["at_utc"] = tuple(at.replace(tzinfo=None) for at in columns["at_utc"])
    return pa.table({name: list(values) for name, values in columns.items()})


DESIGNS: tuple[type[Design], ...] = (
    Sqlite, Postgres, SqliteDocuments, PostgresDocuments, PostgresGin, PostgresSeries, Duck, Parquet,
)  # fmt: skip


def measure(kind: type[Design], place: str, asked: Asked) -> Measured:
    design = kind(place)
    design.create()
    design.open()
    started = time.perf_counter()
    for rows in in_time(asked):
        design.insert(rows)
    design.settle()
    load_s = time.perf_counter() - started
    wall, cpu = {}, {}
    for name, (ask, repeats) in design.questions(asked).items():
        ask()
        walls, before = [], design.cpu_ns()
        for _ in range(repeats):
            begun = time.perf_counter()
            ask()
            walls.append((time.perf_counter() - begun) * 1000)
        cpu[name] = (design.cpu_ns() - before) / 1e6 / repeats
        wall[name] = float(np.median(walls))
    size = design.size_mb()
    refused = second_process(design) if kind is Duck else design.second_writer
    rates = [write(design, batch) for batch in (1, BATCH)]
    design.connection.close()
    return Measured(wall, cpu, load_s, size, *rates, refused, design.swap, design.history)


def second_process(design: Design) -> str:
    """What DuckDB tells another process that opens the same file to write."""
    code = f"import duckdb; duckdb.connect({str(Path(design.place) / 'events.duckdb')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "waits" if done.returncode == 0 else "is refused: one process holds the file"


def write(design: Design, batch: int) -> float:
    """Events a second of four writers: processes, or threads where only one process may open the file."""
    if type(design) is Duck:
        return _write_threads(design, batch)
    context = multiprocessing.get_context("spawn")
    with context.Pool(WRITERS) as pool:
        given = [(type(design), design.place, number, batch) for number in range(WRITERS)]
        return sum(pool.starmap(_writer, given))


def _writer(kind: type[Design], place: str, number: int, batch: int) -> float:
    design = kind(place)
    design.open()
    return _keep_writing(design, number, batch)


def _keep_writing(design: Design, number: int, batch: int) -> float:
    begun, written = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < WRITE_S:
        design.insert([row(f"writer_{number}_{batch}", written + n + 1) for n in range(batch)])
        written += batch
    return written / passed


def _write_threads(design: Design, batch: int) -> float:
    rates: list[float] = []

    def one(number: int) -> None:
        own = Duck(design.place)
        own.connection = design.connection.cursor()
        rates.append(_keep_writing(own, number, batch))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def section(found: dict[str, Measured], asked: Asked) -> list[str]:
    """The part of the report about designs."""
    questions = list(next(iter(found.values())).wall_ms)
    lines = [
        "## Other designs, the same events and questions",
        "",
        f"Made by `benchmarks/metadata_designs.py`: {asked.events:,} events in the order of time, each design through its plain driver on an open connection, one after the",
        "other in one run. Wall milliseconds (p50) / CPU milliseconds (mean; of the asking process and PostgreSQL's backend together).",
        "",
        "| design | " + " | ".join(questions) + " | MB |",
        "|---|" + "---|" * (len(questions) + 1),
    ]
    for name, one in found.items():
        cells = [f"{one.wall_ms[q]:.2f} / {one.cpu_ms[q]:.2f}" for q in questions]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {one.size_mb:.0f} |")
    lines += [
        "",
        f"Four writers for {WRITE_S:.0f} s each, every transaction durable, connections kept open; DuckDB's are threads of one process.",
        "",
        "| design | one event, a second | 200 events, events a second | loaded in s | a second writer | compare-and-swap in the database | history can refuse changes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        lines.append(
            f"| {name} | {one.one_a_s:,.0f} | {one.batch_a_s:,.0f} | {one.load_s:.0f} | {one.second_writer} | {one.swap} | "
            f"{one.history} |"
        )
    return [*lines, ""]
