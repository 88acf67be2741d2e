"""Twelve faults in the middle of runs on the production profile: what does the user see, and what becomes of the rows?

    .penstock/venv/bin/python benchmarks/production_faults.py

It starts PostgreSQL, an S3 endpoint, MLflow, a Ray head with a second node and Airflow (`penstock up --profile production`) in a
folder of its own, trains and scores real flights, and then strikes one scoring run after the other. Exit code 1 when a row
is lost, doubled or changed, or a run does not end well; results/production_faults.md has the table. With names of faults as arguments
it strikes with these only, and replaces their rows.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from production_line import FAULTS, Line, Struck  # noqa: E402

from tasks.local import credentials  # noqa: E402
from tasks.local.parts import ray_folder  # noqa: E402

RESULTS = HERE / "results" / "production_faults.md"
HEADER = """# Faults on the production profile

Made by `benchmarks/production_faults.py`: `penstock up --profile production` in a folder of its own, real flights. A clean run scores 13 days
({rows:,} rows); each fault then strikes a run that scores two of these days again, in 60-row shards on two Ray nodes. After it the whole table is compared with that of the clean run:
every prediction id there once, every score the same, the struck days from the struck run; and while a run has failed, the run before is there whole.
{machine}. The load on the machine was not ours alone.

| fault | what the user sees | rows | what to do |
|---|---|---|---|
"""


def main() -> int:
    chosen = sys.argv[1:] or [blow.name for blow in FAULTS]
    root = Path(tempfile.mkdtemp(prefix="penstock-faults-"))
    root.chmod(0o755)  # PostgreSQL may run as another user
    line = Line(root)
    told = dict(_known())
    failed = 0
    try:
        line.up()
        os.environ.update(credentials(line.installation.settings))
        rows = line.clean_run(len(FAULTS) + 1)
        for number, blow in enumerate(FAULTS):
            if blow.name not in chosen:
                continue
            struck = Struck()
            try:
                blow.strike(line, number, struck)
            except Exception as error:
                failed += 1
                traceback.print_exc()
                struck.rows = f"**failed**: {str(error).splitlines()[0]}"
                line.up()
            told[blow.fault] = (
                f"| {blow.fault} | {'<br>'.join(part.replace('|', '/') for part in struck.seen)} | {struck.rows} | {blow.do} |"
            )
            print(told[blow.fault], flush=True)
    finally:
        line.installation.penstock("down")
        shutil.rmtree(ray_folder(line.installation.settings), ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    table = [told[blow.fault] for blow in FAULTS if blow.fault in told]
    RESULTS.write_text(HEADER.format(rows=rows, machine=machine) + "\n".join(table) + "\n")
    return 1 if failed else 0


def _known() -> Iterator[tuple[str, str]]:
    """The rows of the table that is there, by their fault."""
    for row in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        if row.startswith("| ") and not row.startswith("| fault "):
            yield row.split(" | ")[0].removeprefix("| "), row


if __name__ == "__main__":
    sys.exit(main())
