"""What lineage, traces and JSON lines cost a step, and a run of many shards.

    python benchmarks/observability.py

Needs no service: receivers are a server in a process of its own on this machine. Steps run in fresh processes; the
figure of a step is the median of many calls after the first, which loads the libraries.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "observability.md"
WAYS = ("off", "json lines", "traces", "lineage", "all")
CALLS, SHARDS = 200, 1_000


def receive() -> None:
    """A receiver that takes everything; prints its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def child(way: str, url: str, folder: str) -> None:
    """Measure one way; prints JSON."""
    from datetime import UTC, datetime, timedelta

    from tasks.cli.logs import log_to_stderr
    from tasks.core import Settings
    from tasks.core.traces import span
    from tasks.wiring.observing import observed

    project = Path(folder) / "project"
    settings = Settings.at_home(Path(folder) / "home", project=project)
    if way in ("json lines", "all"):
        os.environ["PENSTOCK_LOG_FORMAT"] = "json"
        settings = replace(settings, log_format="json")
    if way in ("traces", "all"):
        settings = replace(settings, otlp_url=url)
    if way in ("lineage", "all"):
        settings = replace(settings, lineage=url)
    log_to_stderr(30)
    step = observed("list_cases", lambda _settings, _pipeline, **_: {})
    begun = time.perf_counter()
    step(settings, "toy")
    first_s = time.perf_counter() - begun
    took, cpu = [], time.process_time()
    for _ in range(CALLS):
        begun = time.perf_counter()
        step(settings, "toy")
        took.append(time.perf_counter() - begun)
    cpu_s = time.process_time() - cpu
    now = datetime.now(UTC)
    with span(settings, "run") as around:
        begun = time.process_time()
        for shard in range(SHARDS):
            around.child(
                "shard", now - timedelta(seconds=1), now, run_id="r", shard=shard, attempt="a", rows=9
            )
        shards_s = time.process_time() - begun
    print(
        json.dumps(
            {
                "first_ms": first_s * 1e3,
                "wall_ms": statistics.median(took) * 1e3,
                "cpu_ms": cpu_s / CALLS * 1e3,
                "shard_us": shards_s / SHARDS * 1e6,
            }
        )
    )


def main() -> None:
    here = [sys.executable, str(Path(__file__))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([*here, "receive"], stdout=subprocess.PIPE, text=True, env=env) as receiver,
    ):
        assert receiver.stdout is not None
        url = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
        (Path(folder) / "project").symlink_to(ROOT / "tests" / "toy_project")
        rows = []
        for way in WAYS:
            done = subprocess.run(
                [*here, "child", way, url, folder], env=env, check=True, capture_output=True, text=True
            )
            rows.append((way, json.loads(done.stdout)))
        receiver.terminate()
    lines = [
        f"| {way} | {one['first_ms']:.1f} | {one['wall_ms']:.3f} | {one['cpu_ms']:.3f} | {one['shard_us']:.1f} |"
        for way, one in rows
    ]
    RESULTS.write_text(
        "# What lineage, traces and JSON lines cost\n\n"
        f"An empty step, {CALLS} calls after the first in one process; receivers in another process of this machine. 2 shared cores with other work at the same time "
        f"(load average at the end: {os.getloadavg()[0]:.1f}), {platform.system()}, Python {platform.python_version()}. The first call loads the libraries and reads the pipeline. "
        f"A shard's span is entered by the driver, {SHARDS:,} of them. Made by `benchmarks/observability.py`.\n\n"
        "| on | first call, ms | a step, wall ms | a step, CPU ms | a shard, CPU µs |\n|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n\nTraces end with a flush at each step, lineage sends two events: both wait for the receiver's answer.\n",
        encoding="utf-8",
    )
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["receive"]:
        receive()
    elif sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:5])
    else:
        main()
