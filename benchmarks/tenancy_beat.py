"""What a whole beat of admission takes, in the driver and in the database, beside thousands of runs that wait.

    python benchmarks/tenancy_beat.py [--waiting 10000 --gpus 2048 --tenants 200 --beats 60] [--write]

Each database is private to the call: SQLite in a temporary folder, PostgreSQL by `tests/services.py`, with fsync on. The cluster is full:
runs of eight workers have all of it. One more run waits, and beats: `LeaseHolder.beat`, everything from reading `tenants/` to the commit.
Between two of its beats all others beat as well, and `--changes` of them end, as many new ones come, and as many have another width, which is not timed.
The decision alone is that of `tenancy_simulator.py`: the same function over a queue that is there already.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from sqlalchemy import text, update

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import services
import tenancy_simulator as simulator

from tasks.core import Settings
from tasks.core.clock import utc_now
from tasks.core.tenants import load_shares
from tasks.metadata import MetadataStore
from tasks.metadata.database import Database
from tasks.metadata.tables import leases
from tasks.wiring.context import open_context
from tasks.wiring.lease_holder import NOTHING, LeaseHolder, first_lease, lease_row

RESULT = Path(__file__).parent / "results" / "tenancy_beat.md"
TOY = Path(__file__).resolve().parent.parent / "tests" / "toy_project"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=2048)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--beats", type=int, default=60)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    asked = parser.parse_args()
    rows = [f"| the decision alone | {_shown(simulator.admission(asked.gpus, asked.tenants))} | | |"]
    with tempfile.TemporaryDirectory(prefix="penstock-beat-") as folder:
        rows += measure("SQLite", f"sqlite:///{folder}/beat.db", Path(folder) / "sqlite", asked, None)
        url, server = services.start_postgres(Path(folder), durable=True)
        try:
            name = services.new_postgres_database(url)
            process = psutil.Process(server.pid)
            rows += measure("PostgreSQL", name, Path(folder) / "postgres", asked, process)
        finally:
            services.stop(server)
    lines = [
        "# A beat of admission",
        "",
        f"`python benchmarks/tenancy_beat.py --waiting {asked.waiting} --gpus {asked.gpus} --tenants {asked.tenants} --beats {asked.beats} --changes {asked.changes}`:",
        f"{asked.waiting:,} waiting runs, {asked.gpus // 8:,} with eight workers each, {asked.tenants} tenants. Median and p95 of a beat, in milliseconds; CPU of the",
        "driver and, over all beats, of the database server.",
        "",
        "| | CPU | wall | server's CPU, mean |",
        "|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if asked.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(
    name: str, url: str, folder: Path, asked: argparse.Namespace, server: psutil.Process | None
) -> list[str]:
    """The rows of the table for one database."""
    settings = _installation(folder, url, asked)
    time.sleep(2.5)  # files that have just been written are read again for a while
    found = load_shares(settings)
    assert found is not None
    context = open_context(settings, "toy")
    world = _World(settings, asked)
    world.fill()
    first_of_it = first_lease(context, "beats", "scoring")
    holder = LeaseHolder(context, first_of_it, *found, monotonic=lambda: world.monotonic_s)
    first, others, served = [], [], 0.0
    for number in range(asked.beats):
        world.go_on()
        before, began, wall = _cpu_s(server), time.process_time(), time.perf_counter()
        mine = holder.beat(NOTHING, workers=0, most=8)
        cpu_ms, wall_ms = 1000 * (time.process_time() - began), 1000 * (time.perf_counter() - wall)
        assert mine.width == 0 and mine.reason
        (others if number else first).append((cpu_ms, wall_ms))
        served += (_cpu_s(server) - before) if number else 0.0
    on_server = f"{1000 * served / len(others):.1f}" if server else "in the driver"
    cpu, wall_all = zip(*others, strict=True)
    return [
        f"| {name}, first beat of a driver | {first[0][0]:.0f} | {first[0][1]:.0f} | |",
        f"| {name}, every other | {_shown(_quantiles(cpu))} | {_shown(_quantiles(wall_all))} | {on_server} |",
    ]


class _World:
    """The other runs."""

    def __init__(self, settings: Settings, asked: argparse.Namespace) -> None:
        self._settings, self._asked = settings, asked
        self._store = MetadataStore.open(settings)
        self._draw, self._number = random.Random(1), 0
        self.monotonic_s = 0.0
        self._waiting: list[str] = []
        self._working: list[str] = []
        context = open_context(settings, "toy")
        first = first_lease(context, "", "scoring")
        self._first = dataclasses.replace(first, gpus=1.0, cpus=1.0, memory_gib=0.0)

    def _row(self, run_id: str, width: int, now_s: float) -> dict[str, object]:
        one = dataclasses.replace(
            self._first,
            tenant=f"t{self._draw.randrange(self._asked.tenants):03d}",
            run_id=run_id,
            holder=run_id,
            most=self._draw.choice([4, 8, 16]),
            width=width,
            workers=width,
            ends_in_s=self._draw.uniform(600, 6000) if width else None,
            since_s=now_s + self._draw.random(),
            beat_s=now_s,
            reason="" if width else "needs 1 GPUs, 1 CPUs; the tenant uses 3 GPUs of 3 GPUs promised",
            beat_at_utc=utc_now(),
        )
        return lease_row(one)

    def fill(self) -> None:
        with self._store.lease_ledger() as ledger:
            ledger.set_clock(1000.0)
            for _ in range(self._asked.waiting):
                self._waiting.append(self._come(ledger, 0, 1000.0))
            for _ in range(self._asked.gpus // 8):
                self._working.append(self._come(ledger, 8, 1000.0))

    def _come(self, ledger: object, width: int, now_s: float) -> str:
        self._number += 1
        run_id = f"r{self._number:08d}"
        ledger.put(self._row(run_id, width, now_s))  # type: ignore[attr-defined]
        return run_id

    def go_on(self) -> None:
        """All others beat; some of them end, come, and change. A driver reads its files again."""
        self.monotonic_s += 15.0
        with self._store.lease_ledger() as ledger:
            now_s = ledger.clock_s + 1.0
            rows = {row["run_id"]: row for row in self._store.lease_rows()}
            for gone in self._draw.sample(self._working, self._asked.changes):
                self._working.remove(gone)
                ledger.end({**rows[gone], "allocated_s": 5.0}, "finished")
                self._working.append(self._come(ledger, 8, now_s))
                other = rows[self._draw.choice(self._waiting)]
                ledger.put({**other, "most": self._draw.choice([4, 8, 16])})
        with Database(self._settings.metadata_url).write() as connection:
            clock = leases.c.tenant == "*"
            everybody = update(leases).where(~clock)
            connection.execute(everybody.values(beat_s=now_s, beat_at_utc=utc_now()))
        if "postgresql" in self._settings.metadata_url:
            self._vacuum()

    def _vacuum(self) -> None:
        """What autovacuum would have done meanwhile: here a minute passes in a moment."""
        database = Database(self._settings.metadata_url)
        with database.read() as connection:
            raw = connection.connection.dbapi_connection
            raw.rollback()
            raw.autocommit = True
            raw.execute("VACUUM penstock_leases")
            raw.autocommit = False
            connection.execute(text("SELECT 1"))


def _installation(folder: Path, url: str, asked: argparse.Namespace) -> Settings:
    project = folder / "project"
    shutil.copytree(TOY, project)
    settings = dataclasses.replace(Settings.at_home(folder / "home", project=project), metadata_url=url)
    path = settings.pipelines_dir / "toy" / "pipeline.yaml"
    written = path.read_text().replace("name: toy", "name: toy\ntenant: t000")
    path.write_text(written.replace("inference: {", "inference: {max_workers: 8, gpus_per_worker: 1, "))
    tenants = project / "tenants"
    tenants.mkdir()
    (tenants / "_cluster.yaml").write_text(f"{{gpus: {asked.gpus}, cpus: {asked.gpus}}}")
    for name, share in simulator.make_shares(asked.gpus, asked.tenants, 1).items():
        said = f"share: {{guarantee: {{gpus: {share.guarantee.gpus:g}}}, weight: {share.weight:g}}}"
        (tenants / f"{name}.yaml").write_text(said)
    return settings


def _cpu_s(server: psutil.Process | None) -> float:
    """Of the server and all of its processes, those that have ended too."""
    if server is None:
        return 0.0
    total = 0.0
    for process in server.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended, and is in the server's sum
            used = process.cpu_times()
            total += used.user + used.system
    used = server.cpu_times()
    return total + used.user + used.system + used.children_user + used.children_system


def _quantiles(values: tuple[float, ...]) -> tuple[float, float]:
    return simulator.quantile(list(values), 0.5), simulator.quantile(list(values), 0.95)


def _shown(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.1f}, {pair[1]:.1f}"


if __name__ == "__main__":
    main()
