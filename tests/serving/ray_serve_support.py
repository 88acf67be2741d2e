"""A Ray head of a test's own, and `penstock serve --ray` on it; both are ended by their process group."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tasks.core import Settings

ROOT = Path(__file__).parents[2]
_PORTS = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
_PORTS += ("runtime-env-agent-port", "node-manager-port", "object-manager-port")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


@contextmanager
def ray_head(cpus: int) -> Iterator[dict[str, str]]:
    """A head with so many logical CPUs; the environment that joins it."""
    folder = Path(tempfile.mkdtemp(prefix="ps-ray-"))  # short: Ray's socket paths have a limit
    ports = free_ports(len(_PORTS))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"127.0.0.1:{ports[0]}",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--num-cpus={cpus}"),
        *(f"--object-store-memory={80 << 20}", f"--temp-dir={folder}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *(f"--{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
    ]
    log = folder / "head.log"
    with log.open("w") as file:
        head = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield env
    finally:
        _end(head, 20)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serve_on_ray(
    settings: Settings, env: dict[str, str], *options: str, command: list[str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`penstock serve toy --ray`, or what else does the same, when it answers; its process and URL."""
    usual = [sys.executable, "-m", "tasks.cli", "serve", "toy", "--ray", "--port", "0"]
    usual += ["--timeout-ms", "20000", "--poll-s", "0.1", *options]
    process = subprocess.Popen(
        command or usual,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, **settings.as_environment()},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        url = re.search(r"on (http://\S+),", line)
        if url is None:
            process.kill()
            raise AssertionError(line + process.stderr.read())
        yield process, url[1]
    finally:
        _end(process, 60)


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes], wait_s: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, and nothing else: the group is its own
    process.wait()
