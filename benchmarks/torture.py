"""Torture batch inference on local disk or on S3, and keep what came of it in results/torture.md.

    python benchmarks/torture.py local
    python benchmarks/torture.py s3

Runs `penstock inference torture` with a home folder of its own. `s3` starts the endpoint that the tests run
against, from `.penstock/venv-s3`. `--from FILE` takes the `--json` output of a torture that has run already.
The exit code is that of the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
STORES = {"local": "Local disk", "s3": "S3"}
KILLS = {"local": 1000, "s3": 300}
_TEXT = """# Torture of batch inference

What the columns mean and what a round does: [docs/inference.md](../../docs/inference.md#torture). Made by `python benchmarks/torture.py local`
and `python benchmarks/torture.py s3`; the S3 endpoint is `ministack` on the same machine, behind the torture's own proxy in rounds in which the
store fails.
"""
_END = """
That proves no more than these faults on these stores: a process dies and a store errs, the machine does not. That the torture can
fail is tested: `tests/inference/test_inference_torture.py` plants five bugs, and each is found.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", choices=STORES)
    parser.add_argument("--kills", type=int, help="Default: 1000 on local disk, 300 on S3.")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--busy", action="store_true", help="Other work runs on the machine; say so.")
    parser.add_argument("--commit", help="Of the code that ran; default: what is checked out.")
    parser.add_argument("--note", default="", help="A sentence for the reader of the record.")
    parser.add_argument("--from", dest="file", type=Path, help="JSON output of a torture that has run.")
    asked = parser.parse_args()
    words = ["--kills", str(asked.kills or KILLS[asked.store]), "--seed", str(asked.seed)]
    if asked.seconds:
        words += ["--seconds", f"{asked.seconds:g}"]
    report = json.loads(asked.file.read_text()) if asked.file else _run(asked.store, words)
    shown = ["--store", "s3://..."] if asked.store == "s3" else []
    record = {
        "command": shlex.join(["penstock", "inference", "torture", *words, *shown]),
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
        f"{', other work on the machine at the same time' if asked.busy else ''}",
        "commit": asked.commit or _commit(),
        "note": asked.note,
        **{key: value for key, value in report.items() if key not in ("kept", "failures")},
        "failures": [_one_line(failure) for failure in report["failures"]],
    }
    (RESULTS / f"torture-{asked.store}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "torture.md").write_text(_page())
    print(RESULTS / "torture.md")
    return 0 if report["ok"] else 1


def _run(store: str, words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="penstock-torture-") as folder:
        env = {**os.environ, "PENSTOCK_HOME": folder}
        if store == "local":
            return _command(words, env)
        sys.path.insert(0, str(HERE.parent / "tests"))
        import s3_endpoint

        url, endpoint = s3_endpoint.start_s3(Path(folder))
        try:
            env |= {**s3_endpoint.CREDENTIALS, "PENSTOCK_S3_ENDPOINT": url}
            return _command([*words, "--store", s3_endpoint.fresh_store_url()], env)
        finally:
            endpoint.terminate()
            endpoint.wait(timeout=30)


def _command(words: list[str], env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tasks.cli", "-v", "inference", "torture", *words, "--json"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, cwd=HERE.parent, check=False)
    if not done.stdout.strip():
        raise SystemExit(done.returncode or 1)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _page() -> str:
    parts = [_TEXT]
    for store, title in STORES.items():
        file = RESULTS / f"torture-{store}.json"
        if file.exists():
            parts.append(_section(title, json.loads(file.read_text())))
    return "".join([*parts, _END])


def _section(title: str, record: dict[str, Any]) -> str:
    lines = record["faults"]
    columns = list(lines[0])
    total = {name: "all" if name == "fault" else sum(line[name] for line in lines) for name in columns}
    verdict = "Nothing was lost, doubled or seen in part."
    if any(total[name] for name in ("lost", "doubled", "changed", "partial_seen", "orphans_left")):
        verdict = "**Rows were lost, doubled, changed or seen in part, or files were left.**"
    if record["failures"]:
        verdict += f" {len(record['failures'])} problems:\n\n"
        verdict += "\n".join(f"- {failure}" for failure in record["failures"])
    note = ["", record["note"]] if record["note"] else []
    table = [
        f"| {' | '.join(name.replace('_', ' ') for name in columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(str(line[name]) for name in columns)} |" for line in (*lines, total)),
    ]
    return (
        f"\n## {title}\n\n{record['kills']:,} faults in {record['rounds']:,} rounds of {record['rows']} rows, "
        f"{record['seconds']:,.0f} s, seed {record['seed']}; {record['machine']}.\n\n"
        f"`{record['command']}`, commit {record['commit']}\n\n"
        + "\n".join([*table, "", verdict, *note])
        + "\n"
    )


def _one_line(failure: str) -> str:
    """Without paths of the machine it ran on, and without colours."""
    words = "".join(char for char in failure.split("\n")[0] if char.isprintable()).split(" ")
    return " ".join(f"…/{word.rsplit('/', 1)[-1]}" if word.count("/") > 2 else word for word in words)


if __name__ == "__main__":
    raise SystemExit(main())
