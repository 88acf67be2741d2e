"""What a backup, another one, its verification and a restore take, by objects and by bytes.

    python benchmarks/recovery.py --records 10000 --files 200

Needs no pipeline and no service: an installation of random records (2 kB) and files (4 MB), on local disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.core import Settings
from tasks.metadata import MetadataStore, Scope
from tasks.recovery import back_up, restore, verify_backup

RESULTS = Path(__file__).parent / "results" / "recovery.md"
RECORD_BYTES, FILE_BYTES = 2_000, 4_000_000


def fill(settings: Settings, records: int, files: int) -> None:
    """Objects as runs leave them: many small records, some large files; and a row of the database for each 20 records."""
    root = Path(settings.store_url) / "default" / "bench"
    for number in range(records):
        path = root / "runs" / f"{number // 1000:016x}" / f"shard-{number % 1000:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(RECORD_BYTES))
    for number in range(files):
        path = root / "data" / f"day-{number // 10}" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE_BYTES))
    store = MetadataStore.open(settings)
    for number in range(records // 20):
        store.record_link(Scope("bench"), dag_id="d", dag_run_id=str(number), task_id="t", kind="k")


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds, result)."""
    wall, cpu = time.monotonic(), time.process_time()
    result = work()
    return time.monotonic() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=200)
    asked = parser.parse_args()
    rows = []
    for records, files in ((asked.records, 0), (0, asked.files), (asked.records, asked.files)):
        folder = Path(tempfile.mkdtemp(prefix="penstock-recovery-"))
        try:
            settings = Settings.at_home(folder / "home")
            fill(settings, records, files)
            place, other = str(folder / "backups"), Settings.at_home(folder / "other")
            megabytes = (records * RECORD_BYTES + files * FILE_BYTES) / 1e6
            for name, work in (
                ("create", lambda: back_up(settings, place)),  # noqa: B023  # called at once
                ("create again", lambda: back_up(settings, place)),  # noqa: B023
                ("verify", lambda: verify_backup(settings, place)),  # noqa: B023
                ("restore", lambda: restore(other, place)),  # noqa: B023
            ):
                wall, cpu, _ = timed(work)
                rows.append(
                    f"| {records:,} | {files:,} | {megabytes:,.0f} | {name} | {wall:.1f} | {cpu:.1f} | {(records + files) / wall:,.0f} |"
                )
        finally:
            shutil.rmtree(folder)
    RESULTS.write_text(
        "# What a backup and a restore take\n\n"
        f"Local disk to the same local disk, 8 objects at once, each written with fsync. 2 shared cores with other work at the same time (load average at the end: {os.getloadavg()[0]:.1f}), "
        f"{platform.system()}, Python {platform.python_version()}; CPU seconds suffer less from that than wall time. Made by `benchmarks/recovery.py`.\n\n"
        "| records of 2 kB | files of 4 MB | MB | operation | wall s | CPU s | objects/s |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n`create again` lists the store and reads nothing that is as it was.\n",
        encoding="utf-8",
    )
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
