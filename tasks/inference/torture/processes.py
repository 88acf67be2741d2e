"""Drivers as processes of their own: started, paused, killed and waited for."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.core.errors import TransientError
from tasks.core.settings import Settings

PATIENCE_S = 120.0
"""No driver needs longer for anything."""


class Driver:
    """A child process that works on the run."""

    def __init__(self, command: Sequence[str], settings: Settings, log_file: Path) -> None:
        self._log_file = log_file
        with log_file.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **settings.as_environment()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )

    def wait_ready(self) -> None:
        """Until everything is imported.

        Raises:
            TransientError: It did not start.
        """
        assert self._process.stdout
        there, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        if not there or self._process.stdout.readline() != b"ready\n":
            raise TransientError(
                f"did not start: {self.log_tail()}", which="a driver", fix="see whether the machine is busy"
            )

    def go(self) -> None:
        """Begin the work."""
        assert self._process.stdin
        self._process.stdin.write(b"go\n")

    def state(self) -> str:
        """`running`, `stopped` or `ended`; leaves what it learns for `ended`."""
        flags = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        if self._process.returncode is not None:
            return "ended"
        found = os.waitid(os.P_PID, self._process.pid, flags)
        if found is None:
            return "running"
        return "stopped" if found.si_code == os.CLD_STOPPED else "ended"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it ended; returns when a SIGSTOP has stopped it."""
        if self.state() != "ended":
            self._process.send_signal(number)
            if number is signal.SIGSTOP:
                deadline = time.monotonic() + PATIENCE_S
                while self.state() == "running" and time.monotonic() < deadline:
                    time.sleep(0.001)

    def ended(self) -> tuple[int, dict[str, Any]]:
        """(exit code, the last line that it printed as JSON)."""
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return 1, {"message": f"did not end within {PATIENCE_S:.0f} s"}
        assert self._process.stdout
        said = self._process.stdout.read().splitlines()
        return code, json.loads(said[-1]) if said and code >= 0 else {}

    def log_tail(self) -> str:
        """The end of what drivers of this round wrote to stderr."""
        lines = self._log_file.read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:])

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


@contextmanager
def drivers(
    command: Sequence[str], arguments: Sequence[tuple[str, ...]], settings: Settings, log_file: Path
) -> Iterator[list[Driver]]:
    """Drivers that wait for `go`, one for each of `arguments`; none of them outlives the block."""
    started: list[Driver] = []
    try:
        for words in arguments:  # one by one: those that started are closed when a later one fails
            started.append(Driver((*command, *words), settings, log_file))  # noqa: PERF401
        for driver in started:
            driver.wait_ready()
        yield started
    finally:
        for driver in started:
            driver.close()
