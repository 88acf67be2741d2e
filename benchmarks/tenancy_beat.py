"""How many beats of admission a database carries beside thousands of runs that wait, and what one of them takes.

    python benchmarks/tenancy_beat.py [--waiting 1000 10000 --gpus 2048 --tenants 200] [--before CHECKOUT] [--write]

Each database is private to the call: SQLite in a temporary folder, PostgreSQL by `tests/services.py`, with fsync on. The cluster is full:
runs of eight workers have all of it, and `--waiting` runs wait. `--processes` processes beat for some of those that wait, as fast as they can:
`LeaseHolder.beat`, everything from reading `tenants/` to the commit. For each of them its own pause passes between two beats by its own clock, so that
it reads files and says why it waits as often as it would. Of a hundred beats `--changing` ask for another number of workers.
CPU is that of the drivers, and of PostgreSQL's processes, over all beats. The first beat of each run is not counted.

How often a run that waits asks is its code's own: what all of them send and cost in a second is counted up from that. With `--before`, the same is done
with the code of another checkout, in turn with this one, and the ratio is shown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.append(str(ROOT / "tests"))
    sys.path.append(str(ROOT))  # after PYTHONPATH: the checkout that is measured comes first
RESULT = Path(__file__).parent / "results" / "tenancy_beat.md"
TOY = ROOT / "tests" / "toy_project"
_NOUGHT = (
    *(
        "heard",
        "pause_s",
        "granted",
        "changed",
        "priority",
        "allocated_s",
        "used_s",
        "wasted_s",
        "memory_gib",
    ),
    *("rows", "bytes_read", "bytes_written", "cpu_seconds", "gpu_seconds"),
)
_FIELDS = ("beats_s", "driver_ms", "server_ms", "p95_ms", "sent_s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waiting", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--gpus", type=int, default=2048)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--runs", type=int, default=10, help="that beat, in each process")
    parser.add_argument("--beats", type=int, default=20, help="of each of them")
    parser.add_argument("--changing", type=int, default=2, help="of a hundred beats")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(asked, json.loads(asked.measure))))
        return
    import services

    found: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-beat-") as folder:
        url, server = services.start_postgres(Path(folder), durable=True)
        try:
            for number in range(asked.rounds):
                for waiting in asked.waiting:
                    for which, code in _codes(asked.before).items():
                        for name in ("SQLite", "PostgreSQL"):
                            there = Path(folder) / f"{name}-{number}-{waiting}-{which}"
                            database = (
                                f"sqlite:///{there}/beat.db"
                                if name == "SQLite"
                                else services.new_postgres_database(url)
                            )
                            job = {"url": database, "folder": str(there), "waiting": waiting}
                            job["code"] = str(code)
                            job["server"] = server.pid if name == "PostgreSQL" else None
                            found.setdefault((name, waiting, which), []).append(_measure(code, job, asked))
        finally:
            services.stop(server)
    text = "\n".join(report(asked, found)) + "\n"
    print(text)
    if asked.write:
        RESULT.write_text(text, encoding="utf-8")


def report(asked: argparse.Namespace, found: dict[tuple[str, int, str], list[dict[str, float]]]) -> list[str]:
    """The page: the median of the rounds."""
    lines = [
        "# Beats of admission",
        "",
        f"`python benchmarks/tenancy_beat.py --waiting {' '.join(map(str, asked.waiting))} --gpus {asked.gpus} --tenants {asked.tenants} "
        f"--processes {asked.processes} --runs {asked.runs} --beats {asked.beats} --changing {asked.changing} --rounds {asked.rounds}"
        f"{' --before CHECKOUT' if asked.before else ''}`:",
        f"{asked.gpus // 8:,} runs with eight workers each, {asked.tenants} tenants; {asked.processes} processes beat on {os.cpu_count()} cores, which they share with the",
        f"database. Medians of {asked.rounds} rounds. CPU in milliseconds a beat, p95 of the wall time of a beat in milliseconds.",
        "",
        "A run that gets workers as soon as others give them back asks every five seconds, whatever the number: of 1,000 waiting runs on 2,048 GPUs all do.",
        "Of others the next of each tenant asks as often, and one with many before it every five minutes; then it says anew why it waits, which is most of such a beat.",
        "Those that beat here asked last, so that of 10,000 they are of the latter kind: the cost of all is counted up from theirs, and is somewhat less.",
        "",
        "| database | waiting runs | code | they send, beats/s | CPU a beat, driver | server | CPU-s a second for all: drivers | server | carried here, beats/s | p95 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for (name, waiting, which), rounds in sorted(found.items(), key=lambda item: (item[0][0], item[0][1])):
        middle = {field: statistics.median(one[field] for one in rounds) for field in _FIELDS}
        all_s = {part: middle["sent_s"] * middle[part] / 1000 for part in ("driver_ms", "server_ms")}
        server = (
            (f"{middle['server_ms']:.1f}", f"{all_s['server_ms']:.2f}") if name == "PostgreSQL" else ("", "")
        )
        lines.append(
            f"| {name} | {waiting:,} | {which} | {middle['sent_s']:.0f} | {middle['driver_ms']:.1f} | {server[0]} | {all_s['driver_ms']:.2f} | "
            f"{server[1]} | {middle['beats_s']:.0f} | {middle['p95_ms']:.0f} |"
        )
        before = found.get((name, waiting, "before"))
        if which == "this" and before:
            load: dict[str, list[float]] = {part: [] for part in ("driver_ms", "server_ms")}
            for new, old in zip(rounds, before, strict=True):
                for part, ones in load.items():
                    if new[part]:
                        ones.append(old["sent_s"] * old[part] / (new["sent_s"] * new[part]))
            shown = [f"{statistics.median(ones):.1f}" if ones else "" for ones in load.values()]
            ratios.append(f"| {name} | {waiting:,} | {' | '.join(shown)} |")
    if ratios:
        lines += [
            "",
            "What all waiting runs cost a second with the code before, as a multiple of now; medians over the rounds:",
            "",
            "| database | waiting runs | drivers' CPU | server's CPU |",
            "|---|---|---|---|",
            *ratios,
        ]
    return lines


def measured(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, float]:
    """One round with the code of a checkout."""
    import tasks  # before anything that looks for it in this one

    assert Path(tasks.__file__).is_relative_to(job["code"]), (
        f"{tasks.__file__} is measured, not {job['code']}"
    )
    settings = _installation(Path(job["folder"]), job["url"], asked)
    _fill(settings, job["waiting"], asked)
    time.sleep(2.5)  # files that have just been written are read again for a while
    processes = multiprocessing.get_context("fork")
    gate, results = processes.Barrier(asked.processes + 1), processes.SimpleQueue()
    drivers = [
        processes.Process(target=_drive, args=(settings, number, asked, gate, results))
        for number in range(asked.processes)
    ]
    for one in drivers:
        one.start()
    gate.wait(600)
    served, began = _cpu_s(job["server"]), time.perf_counter()
    found = [results.get() for _ in drivers]
    wall_s, served = time.perf_counter() - began, _cpu_s(job["server"]) - served
    for one in drivers:
        one.join()
    beats = asked.processes * asked.runs * asked.beats
    walls = sorted(wall for _, ones, _ in found for wall in ones)
    return {
        "beats_s": beats / wall_s,
        "driver_ms": 1000 * sum(cpu_s for cpu_s, _, _ in found) / beats,
        "server_ms": 1000 * served / beats,
        "p95_ms": 1000 * walls[int(0.95 * len(walls))],
        "sent_s": job["waiting"] * found[0][2],
    }


def _drive(settings: Any, number: int, asked: argparse.Namespace, gate: Any, results: Any) -> None:
    """Beat for some runs that wait."""
    from tasks.core.errors import ServiceUnavailable
    from tasks.core.tenants import load_shares
    from tasks.wiring.context import open_context
    from tasks.wiring.lease_holder import NOTHING, LeaseHolder, first_lease

    found = load_shares(settings)
    assert found is not None
    context, draw, clock_s = open_context(settings, "toy"), random.Random(number), [0.0]
    holders = []
    for run in range(asked.runs):
        first = first_lease(context, f"beats-{number}-{run}", "scoring")
        holders.append(LeaseHolder(context, first, *found, monotonic=lambda: clock_s[0]))

    def beat(holder: LeaseHolder, most: int) -> None:
        while True:
            with suppress(ServiceUnavailable):  # others have had the lock for seconds: it asks again
                assert holder.beat(NOTHING, workers=0, most=most).width == 0
                return

    for holder in holders:
        beat(holder, 8)
    gate.wait(600)
    began, walls = time.process_time(), []
    for _ in range(asked.beats):
        clock_s[0] += holders[0].pause_s
        for holder in holders:
            started = time.perf_counter()
            beat(holder, draw.choice([4, 6, 16]) if draw.random() * 100 < asked.changing else 8)
            walls.append(time.perf_counter() - started)
    results.put((time.process_time() - began, walls, _asks_a_second(holders[0])))


def _asks_a_second(holder: Any) -> float:
    """What a run that waits sends on average, by the pauses that every twentieth has at its place in the queue."""
    book = getattr(getattr(holder, "_settler", None), "book", None)
    if not hasattr(book, "ahead"):  # a release in which all ask equally often
        return float(1 / holder.pause_s)
    from tasks.wiring.lease_holder import waiting_pause_s

    waiting = [key for key in book.leases if key not in book.holding][::20]
    ends = holder._starts_in_s()
    return statistics.fmean(1 / waiting_pause_s(holder.cluster, book.ahead(key), ends) for key in waiting)


def _fill(settings: Any, waiting: int, asked: argparse.Namespace) -> None:
    """Make the other runs, in whatever tables this code keeps them."""
    from sqlalchemy import create_engine, insert, inspect

    from tasks.core.clock import utc_now
    from tasks.metadata import MetadataStore
    from tasks.metadata.tables import metadata

    with MetadataStore.open(settings).lease_ledger() as ledger:
        ledger.set_clock(1000.0)
    draw, now = random.Random(1), utc_now()
    rows = []
    for number in range(waiting + asked.gpus // 8):
        width = 0 if number < waiting else 8
        row: dict[str, Any] = dict.fromkeys(_NOUGHT, 0)
        # the tenant whose runs beat has more than it is promised, so that they have others before them
        tenant = 0 if waiting <= number < waiting + 4 else draw.randrange(asked.tenants)
        row |= {"tenant": f"t{tenant:03d}", "pipeline": "other", "kind": "scoring"}
        row |= {"run_id": f"r{number:08d}", "holder": f"r{number:08d}", "gpus": 1.0, "cpus": 1.0, "least": 1}
        row |= {"most": 8 if width else draw.choice([4, 8, 16]), "reclaimable": True, "ended": False}
        row |= {"width": width, "workers": width, "beat_s": 1e9, "since_s": 900 + draw.random()}
        row |= {"ends_in_s": draw.uniform(600, 6000) if width else None, "starts_in_s": None}
        row |= {"reason": "" if width else "needs 1 GPUs, 1 CPUs", "over_since_s": None}
        row |= {"asked_at_utc": now, "beat_at_utc": now}
        rows.append(row)
    engine = create_engine(settings.metadata_url)
    there = set(inspect(engine).get_table_names())
    with engine.begin() as connection:
        for name in {"penstock_leases", "penstock_lease_requests"} & there:
            table = metadata.tables[name]
            columns = [column.name for column in table.c]
            connection.execute(insert(table), [{key: row[key] for key in columns} for row in rows])


def _measure(code: Path, job: dict[str, Any], asked: argparse.Namespace) -> dict[str, float]:
    arguments = [
        f"--{name}={getattr(asked, name)}" for name in ("gpus", "tenants", "processes", "runs", "beats")
    ]
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            *arguments,
            f"--changing={asked.changing}",
            f"--measure={json.dumps(job)}",
        ],
        env={**os.environ, "PYTHONPATH": str(code)},
        cwd=code,
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _codes(before: Path | None) -> dict[str, Path]:
    return {"this": ROOT} if before is None else {"before": before.resolve(), "this": ROOT}


def _installation(folder: Path, url: str, asked: argparse.Namespace) -> Any:
    import dataclasses

    import tenancy_simulator as simulator

    from tasks.core import Settings

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


def _cpu_s(server: int | None) -> float:
    """Of the server and all of its processes, those that have ended too."""
    if server is None:
        return 0.0
    process, total = psutil.Process(server), 0.0
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended, and is in the server's sum
            used = child.cpu_times()
            total += used.user + used.system
    used = process.cpu_times()
    return total + used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main()
