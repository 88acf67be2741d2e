"""What the deployment log answers and takes at a million events, on SQLite and on PostgreSQL.

    python benchmarks/metadata_store.py --events 1000000

Each database is private to the call: SQLite in a temporary folder, PostgreSQL by `tests/services.py`, with fsync on. The log is
filled with equal numbers of events for `--pipelines` pipelines, a minute apart, by bulk inserts that are not timed. Then:

- each question of the monitor, `--repeats` times on one open connection, for another pipeline or moment each time;
- "latest of every pipeline" as a seek a pipeline and as one DISTINCT or GROUP BY over the log;
- "of every pipeline" as the store asks it, one statement with its connection;
- a copy of a fifth of the events from SQLite to PostgreSQL and back, as `penstock metadata copy` does it;
- other designs with the same events and questions (`benchmarks/metadata_designs.py`);
- four processes inserting at once, a durable transaction an event, and 200 events a transaction.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import metadata_designs as designs
import numpy as np
from sqlalchemy import Connection, func, insert, select, text

from tasks.metadata import MetadataStore
from tasks.metadata.copying import copy_metadata
from tasks.metadata.database import Database
from tasks.metadata.schema import ensure_current
from tasks.metadata.tables import deployment_events as log

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import services

RESULTS = Path(__file__).parent / "results" / "metadata_store.md"
START = datetime(2024, 1, 1, tzinfo=UTC)
WRITERS = 4
WRITE_S = 8.0
BATCH = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--pipelines", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found: dict[str, tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float, float]], float]] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-metadata-") as folder:
        found["SQLite"] = measure(f"sqlite:///{folder}/metadata.db", asked)
        url, server = services.start_postgres(Path(folder), durable=True)
        try:
            found["PostgreSQL"] = measure(url, asked)
            copies = copied(f"sqlite:///{folder}/copy.db", services.new_postgres_database(url), folder, asked)
            others = compared(folder, services.new_postgres_database(url), asked)
        finally:
            services.stop(server)
    lines = [report(found, asked), *copies, *others]
    asked.results.write_text("\n".join(lines).rstrip("\n") + "\n")
    print(asked.results.read_text())


def copied(first: str, second: str, folder: str, asked: argparse.Namespace) -> list[str]:
    """Lines on a copy there and back."""
    database = Database(first)
    ensure_current(database)
    each = asked.events // asked.pipelines // 5
    for number in range(asked.pipelines):
        with database.write() as connection:
            connection.execute(insert(log), rows(f"pipeline_{number:03}", 1, each))
    lines = [
        "## A copy to another database",
        "",
        "| from | to | rows | wall s | rows a second |",
        "|---|---|---|---|---|",
    ]
    third = f"sqlite:///{folder}/back.db"
    for source, target, names in (
        (first, second, "SQLite | PostgreSQL"),
        (second, third, "PostgreSQL | SQLite"),
    ):
        started = time.perf_counter()
        found = copy_metadata(source, target)
        wall_s = time.perf_counter() - started
        lines.append(f"| {names} | {found.rows:,} | {wall_s:.1f} | {found.rows / wall_s:,.0f} |")
    return [*lines, ""]


def compared(folder: str, url: str, asked: argparse.Namespace) -> list[str]:
    """Lines on the other designs."""
    size = designs.Asked(asked.events, asked.pipelines, asked.repeats)
    found = {}
    for kind in designs.DESIGNS:
        found[kind.name] = designs.measure(kind, url if issubclass(kind, designs.Postgres) else folder, size)
        print(f"{kind.name}: measured", flush=True)
    return designs.section(found, size)


def rows(pipeline: str, first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "tenant": "default",
            "pipeline": pipeline,
            "event_id": number,
            "kind": "promote" if number % 5 else "revert",
            "moves_pointer": bool(number % 5),
            "version": number,
            "bundle_digest": f"{number:064x}",
            "feature_version": "1+0123456789abcdef",
            "expected_version": number - 1,
            "previous_version": number - 1,
            "actor": "airflow",
            "reason": "the canary passed: better by 0.012 (0.004 to 0.020) over 14 days",
            "at_utc": START + timedelta(minutes=number),
        }
        for number in range(first, first + count)
    ]


def measure(url: str, asked: argparse.Namespace) -> Any:
    database = Database(url)
    ensure_current(database)
    each = asked.events // asked.pipelines
    names = [f"pipeline_{number:03}" for number in range(asked.pipelines)]
    for name in names:
        with database.write() as connection:
            connection.execute(insert(log), rows(name, 1, each))
    if database.is_sqlite:
        with database.write() as connection:
            connection.execute(text("ANALYZE"))
    else:
        with database._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    size_mb = size(database)
    timings = {}
    with database.read() as connection:
        for name, (ask, repeats) in questions(names, each, asked.repeats).items():
            timings[name] = quantiles(timed(connection, ask, repeats))
    store = MetadataStore(database)
    since = START + timedelta(minutes=each) - timedelta(minutes=15)
    timings |= {
        "what is live of every pipeline, as the store asks": quantiles(
            calls(lambda: store.live_everywhere(), 20)
        ),
        "what was live of every pipeline at T, as the store asks": quantiles(
            calls(lambda: store.live_everywhere(at=START + timedelta(minutes=each // 2)), 20)
        ),
        "1,000 newest events of all pipelines, as the store asks": quantiles(
            calls(lambda: store.events_everywhere(since=since), 20)
        ),
    }
    writes = {label: write(url, batch) for label, batch in (("one event", 1), (f"{BATCH} events", BATCH))}
    return timings, writes, size_mb


def size(database: Database) -> float:
    with database.read() as connection:
        if database.is_sqlite:
            pages = connection.execute(text("PRAGMA page_count")).scalar_one()
            return float(pages * connection.execute(text("PRAGMA page_size")).scalar_one()) / 1e6
        asked = text("SELECT pg_total_relation_size('penstock_deployment_events')")
        return float(connection.execute(asked).scalar_one()) / 1e6


def questions(names: list[str], each: int, repeats: int) -> dict[str, tuple[Callable[..., Any], int]]:
    chosen = random.Random(7)

    def moving(name: str) -> Any:
        return select(log).where(
            log.c.tenant == "default", log.c.pipeline == name, log.c.moves_pointer.is_(True)
        )

    def latest(connection: Connection) -> None:
        one(connection, chosen.choice(names))

    def one(connection: Connection, name: str) -> None:
        connection.execute(moving(name).order_by(log.c.event_id.desc()).limit(1)).all()

    def all_by_seeks(connection: Connection) -> None:
        for name in names:
            one(connection, name)

    def all_by_group(connection: Connection) -> None:
        keys = (log.c.tenant, log.c.pipeline)
        newest = select(*keys, func.max(log.c.event_id)).where(log.c.moves_pointer.is_(True))
        connection.execute(newest.group_by(*keys)).all()

    def live_at(connection: Connection) -> None:
        moment = START + timedelta(minutes=chosen.randrange(each))
        query = moving(chosen.choice(names)).where(log.c.at_utc <= moment)
        connection.execute(query.order_by(log.c.at_utc.desc(), log.c.event_id.desc()).limit(1)).all()

    def last_day(connection: Connection) -> None:
        since = START + timedelta(minutes=each) - timedelta(hours=24)
        query = select(log).where(
            log.c.tenant == "default", log.c.pipeline == chosen.choice(names), log.c.at_utc >= since
        )
        connection.execute(query.order_by(log.c.at_utc.desc(), log.c.event_id.desc()).limit(100)).all()

    def by_number(connection: Connection) -> None:
        since = START + timedelta(minutes=each) - timedelta(minutes=30)
        query = select(log).where(
            log.c.tenant == "default", log.c.pipeline == chosen.choice(names), log.c.at_utc >= since
        )
        connection.execute(query.order_by(log.c.event_id.desc()).limit(100)).all()

    def unindexed(connection: Connection) -> None:
        connection.execute(select(log).where(log.c.reason == "nothing has this reason")).all()

    return {
        "what is live of one pipeline": (latest, repeats),
        "what is live of every pipeline, a seek each": (all_by_seeks, 20),
        "what is live of every pipeline, GROUP BY": (all_by_group, 7),
        "what was live at T": (live_at, repeats),
        "newest 100 events of a pipeline's last 24 h": (last_day, repeats),
        "a pipeline's last 30 minutes, ordered by number alone": (by_number, 20),
        "a question without an index": (unindexed, 7),
    }


def timed(connection: Connection, ask: Callable[[Connection], None], repeats: int) -> Iterator[float]:
    ask(connection)
    for _ in range(repeats):
        started = time.perf_counter()
        ask(connection)
        yield (time.perf_counter() - started) * 1000


def calls(ask: Callable[[], object], repeats: int) -> Iterator[float]:
    return timed(None, lambda _: ask(), repeats)  # type: ignore[arg-type]


def quantiles(found: Iterator[float]) -> tuple[float, float]:
    p50, p99 = np.quantile(list(found), [0.5, 0.99])
    return float(p50), float(p99)


def write(url: str, batch: int) -> tuple[float, float, float]:
    """(events a second of all writers, p50 ms, p99 ms of a transaction)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(WRITERS) as pool:
        found = pool.starmap(writer, [(url, f"writer_{number}_{batch}", batch) for number in range(WRITERS)])
    waits = [wait for waits, _ in found for wait in waits]
    p50, p99 = np.quantile(waits, [0.5, 0.99])
    return sum(len(waits) * batch / wall_s for waits, wall_s in found), float(p50), float(p99)


def writer(url: str, name: str, batch: int) -> tuple[list[float], float]:
    database, waits, number = Database(url), [], 1
    with database.read() as connection:
        connection.execute(select(log.c.event_id).limit(1)).all()
    begun = time.perf_counter()
    while time.perf_counter() - begun < WRITE_S:
        started = time.perf_counter()
        with database.write() as connection:
            connection.execute(insert(log), rows(name, number, batch))
        waits.append((time.perf_counter() - started) * 1000)
        number += batch
    return waits, time.perf_counter() - begun


def report(found: dict[str, Any], asked: argparse.Namespace) -> str:
    lines = [
        f"# The deployment log at {asked.events:,} events",
        "",
        "Made by `benchmarks/metadata_store.py`, which says what is asked. Milliseconds, p50 / p99, with the rows read and on an open connection;",
        f"{asked.pipelines} pipelines, 2 shared cores, {platform.system()}, Python {platform.python_version()}, local disk, one run.",
        "",
        "| question | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in next(iter(found.values()))[0]:
        cells = [f"{timings[name][0]:.2f} / {timings[name][1]:.2f}" for timings, _, _ in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(
        "| size in MB, indexes included | " + " | ".join(f"{item[2]:.0f}" for item in found.values()) + " |"
    )
    lines += [
        "",
        f"{WRITERS} processes write at once for {WRITE_S:.0f} s, as the store does: a new connection a transaction, fully synchronised. Each inserts into a pipeline of its own",
        "and knows its numbers: a promotion also reads the head of its log first. Rates are sums over writers, which start within about a second of each other.",
        "",
        "| a transaction of | database | events a second | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for label in next(iter(found.values()))[1]:
        for database, (_, writes, _) in found.items():
            rate, p50, p99 = writes[label]
            lines.append(f"| {label} | {database} | {rate:,.0f} | {p50:.1f} | {p99:.1f} |")
    lines += ["", f"`python benchmarks/metadata_store.py --events {asked.events}`", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
