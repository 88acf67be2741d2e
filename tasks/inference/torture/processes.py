"""Drivers as processes of their own: started, paused, killed and waited for.

Each is forked from a server process that has imported what they need: an interpreter and its imports take longer than
the work that is disturbed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tasks.core.errors import TransientError
from tasks.core.settings import Settings

PATIENCE_S = 120.0
"""No driver needs longer for anything."""
Work = Callable[[Sequence[str], Connection], int]
"""What a driver does with its arguments and its end of a pipe; returns its exit code. It is importable by its name."""

_SERVED = multiprocessing.get_context("forkserver")
_IMPORTED = (
    "__main__",
    "tasks.inference.torture.child",
    "tasks.inference.publishing",
    "tasks.audit",
    "deltalake",
)


class Driver:
    """A child process that works on the run."""

    def __init__(self, work: Work, words: Sequence[str], settings: Settings, log_file: Path) -> None:
        self._log_file = log_file
        self._told, its_end = _SERVED.Pipe()
        environment = {**os.environ, **settings.as_environment()}
        self._process = _SERVED.Process(
            target=_begin, args=(work, tuple(words), its_end, environment, str(log_file))
        )
        self._process.start()
        its_end.close()  # or nobody would be told that the driver has ended

    def wait_ready(self) -> None:
        """Until everything is imported.

        Raises:
            TransientError: It did not start.
        """
        with suppress(EOFError):
            if self._told.poll(PATIENCE_S) and self._told.recv() == "ready":
                return
        raise TransientError(
            f"did not start: {self.log_tail()}", which="a driver", fix="see whether the machine is busy"
        )

    def go(self) -> None:
        """Begin the work."""
        self._told.send("go")

    def state(self) -> str:
        """`running`, `stopped` or `ended`."""
        if self._process.exitcode is not None:
            return "ended"
        try:
            status = psutil.Process(self._process.pid).status()
        except psutil.NoSuchProcess:
            return "ended"
        known = {psutil.STATUS_STOPPED: "stopped", psutil.STATUS_ZOMBIE: "ended"}
        return known.get(status, "running")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it ended; returns when a SIGSTOP has stopped it."""
        if self.state() != "ended":
            assert self._process.pid
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
            if number is signal.SIGSTOP:
                deadline = time.monotonic() + PATIENCE_S
                while self.state() == "running" and time.monotonic() < deadline:
                    time.sleep(0.001)

    def ended(self) -> tuple[int, dict[str, Any]]:
        """(exit code, the last that it told)."""
        self._process.join(PATIENCE_S)
        code = self._process.exitcode
        if code is None:
            self.close()
            return 1, {"message": f"did not end within {PATIENCE_S:.0f} s"}
        told: dict[str, Any] = {}
        with suppress(EOFError, OSError):  # it was killed
            told = self._told.recv()
        return code, told

    def log_tail(self) -> str:
        """The end of what drivers of this round wrote to stderr."""
        lines = self._log_file.read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:])

    def close(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.join()
        self._told.close()


@contextmanager
def drivers(
    work: Work, arguments: Sequence[tuple[str, ...]], settings: Settings, log_file: Path
) -> Iterator[list[Driver]]:
    """Drivers that wait for `go`, one for each of `arguments`; none of them outlives the block."""
    _SERVED.set_forkserver_preload([*_IMPORTED])  # nothing to a server that runs already
    log_file.touch()
    started: list[Driver] = []
    try:
        for words in arguments:  # one by one: those that started are closed when a later one fails
            started.append(Driver(work, words, settings, log_file))  # noqa: PERF401
        for driver in started:
            driver.wait_ready()
        yield started
    finally:
        for driver in started:
            driver.close()


def _begin(
    work: Work, words: Sequence[str], told: Connection, environment: dict[str, str], log_file: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log_file, "ab") as log:  # noqa: PTH123 - for its descriptor
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    sys.exit(work(words, told))
