"""What a beat of admission takes with PgBouncer before the metadata database, beside one without.

    python benchmarks/database_pooler.py [--rounds 15 --beats 20] [--write]

PostgreSQL and a PgBouncer for each of its modes are private to the call. One run waits by way of each, in one database; each round, they beat in turn:
`LeaseHolder.beat`, from reading `tenants/` to the commit. CPU is that of the driver, of PostgreSQL's processes and of PgBouncer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULT = Path(__file__).parent / "results" / "database_pooler.md"
MODES = ("transaction", "session")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--beats", type=int, default=20, help="of each in a round")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    asked = parser.parse_args()
    text = measured(asked.rounds, asked.beats)
    print(text)
    if asked.write:
        RESULT.write_text(text)


def measured(rounds: int, beats: int) -> str:
    """The table, of so many rounds after one that is not counted."""
    import services
    from share_files import say
    from toy_installation import install_toy

    from tasks.metadata import MetadataStore

    with ExitStack() as ends:
        tmp = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        base = install_toy(tmp)
        say(base, "{gpus: 4, cpus: 1, beat_s: 5, lease_s: 60000}")
        server, postgres = services.start_postgres(tmp, durable=True)
        ends.callback(services.stop, postgres)
        direct = replace(base, metadata_url=services.new_postgres_database(server))
        MetadataStore.open(direct)
        beat = {"none": beater(direct, "none")}
        poolers: dict[str, int] = {}
        for mode in MODES:
            folder = tmp / mode
            folder.mkdir()
            url, pooler = services.start_pgbouncer(direct.metadata_url, folder, mode)
            ends.callback(services.stop, pooler)
            beat[mode], poolers[mode] = beater(replace(base, metadata_url=url), mode), pooler.pid
        used: dict[str, list[tuple[float, float, float]]] = {name: [] for name in beat}
        for _ in range(rounds + 1):
            for name, once in beat.items():
                before = cpu_s(postgres.pid, poolers.get(name))
                for _ in range(beats):
                    once()
                time.sleep(0.05)  # the server's part of the last one
                after = cpu_s(postgres.pid, poolers.get(name))
                driver, of_server, of_pooler = (b - a for a, b in zip(before, after, strict=True))
                used[name].append((driver, of_server, of_pooler))
    return table({name: found[1:] for name, found in used.items()}, rounds, beats)


def beater(settings: object, run_id: str) -> Callable[[], object]:
    """A beat of a run that waits."""
    from tasks.core.tenants import load_shares
    from tasks.wiring.context import open_context
    from tasks.wiring.lease_holder import NOTHING, LeaseHolder, first_lease

    context = open_context(settings, "toy")  # type: ignore[arg-type]
    shares = load_shares(context.settings)
    assert shares is not None
    holder = LeaseHolder(context, first_lease(context, run_id, "scoring"), *shares)
    return lambda: holder.beat(NOTHING, workers=0, most=4)


def cpu_s(server: int, pooler: int | None) -> tuple[float, float, float]:
    """CPU seconds until now of this process, of the server with its children, those that have ended too, and of the pooler."""
    return time.process_time(), _with_children(server), _with_children(pooler) if pooler else 0.0


def _with_children(pid: int) -> float:
    parent = psutil.Process(pid)
    own = parent.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in parent.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)


def table(used: dict[str, list[tuple[float, float, float]]], rounds: int, beats: int) -> str:
    lines = [
        "# A pooler before the metadata database",
        "",
        f"`python benchmarks/database_pooler.py --rounds {rounds} --beats {beats}`: medians of {rounds} rounds, CPU in milliseconds a beat.",
        "PgBouncer on the same machine, two connections of the server's for each database. Ratios are those of the same round.",
        "",
        "| PgBouncer's mode | driver | server | PgBouncer | driver, of that without | server with PgBouncer, of that without |",
        "|---|---|---|---|---|---|",
    ]
    direct = used["none"]
    for name, found in used.items():
        driver, server, pooler = (
            statistics.median(1000 * one[part] / beats for one in found) for part in range(3)
        )
        drivers = statistics.median(one[0] / other[0] for one, other in zip(found, direct, strict=True))
        servers = statistics.median(
            (one[1] + one[2]) / other[1] for one, other in zip(found, direct, strict=True)
        )
        lines.append(
            f"| {name} | {driver:.2f} | {server:.2f} | {pooler:.2f} | {drivers:.2f} | {servers:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
