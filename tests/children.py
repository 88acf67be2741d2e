"""Processes that a test starts: each is forked from a server process that has one thread and has imported what they need.

A fork of the test's own process would copy whatever locks its other threads hold at that moment, and might wait for ever.
What a test has patched in its own process is not patched in these.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

SERVED = multiprocessing.get_context("forkserver")
SERVED.set_forkserver_preload(
    ["__main__", "alembic.runtime.environment", "psycopg", "pyarrow.dataset", "deltalake", "tasks.metadata.store",
     "tasks.audit", "tasks.inference.actor", "tasks.inference.engine", "tasks.inference.publishing", "tasks.registry.promotion",
     "tasks.tenancy.leases", "tasks.wiring", "torch"]
)  # fmt: skip
"""Makes processes that are forked from the server."""


def serve() -> None:
    """Start the server, unless it runs."""
    multiprocessing.forkserver.ensure_running()


class _Call:
    """A function that crosses to another process whole, with what it closes over."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (cloudpickle.dumps(self._function),)


def _answer(number: int, call: Callable[[], Any], gate: Any, answers: Any) -> None:
    gate.wait(60)
    try:
        answers.put((number, call()))
    except Exception as error:
        answers.put((number, f"{type(error).__name__}: {error}"))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make each call in a process of its own, at the same moment.

    Returns:
        Of each, in their order, what it returned or `Type: text` of its error; all together fit in a pipe (64 KiB).
    """
    gate, answers = SERVED.Barrier(len(calls)), SERVED.SimpleQueue()
    children = [
        SERVED.Process(target=_answer, args=(number, _Call(call), gate, answers))
        for number, call in enumerate(calls)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        child.kill()  # only of one that is still there
    found = {}
    while not answers.empty():
        found.update([answers.get()])
    return [found.get(n, f"no answer, exit code {child.exitcode}") for n, child in enumerate(children)]


def killed(call: Callable[[], Any], owner: Any = None, name: str = "", *, patience_s: float = 60.0) -> None:
    """Make the call in a process that must be killed by SIGKILL in it: where it calls `name` of `owner`, if one is given."""

    def run() -> None:
        if owner is not None:
            setattr(owner, name, die)
        call()

    child = SERVED.Process(target=_Call(run))
    child.start()
    child.join(patience_s)
    ended = child.exitcode
    child.kill()
    assert ended == -signal.SIGKILL


class Script:
    """A script at work in a process of its own, as by `subprocess.Popen`; where it lies and PYTHONPATH come first on its path."""

    def __init__(self, path: Path, *arguments: str, env: Mapping[str, str]) -> None:
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it lives as long as this
        words = [str(path), *arguments]
        self._process = SERVED.Process(target=_run_script, args=(words, dict(env), self._said.name))
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code; None while it is at work."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)

    def ended(self, *, patience_s: float = 120.0) -> tuple[int, str]:
        """Its exit code, and all that it said."""
        self._process.join(patience_s)
        code = self._process.exitcode
        self._process.kill()  # only where it is still there
        said = Path(self._said.name).read_text()
        assert code is not None, f"it did not end: {said}"
        return code, said


def assert_killed(child: Script) -> None:
    """Wait for a script that ends itself by SIGKILL; what it said is shown when it ended otherwise."""
    code, said = child.ended()
    assert code == -signal.SIGKILL, said


def _run_script(words: list[str], env: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    sys.path[:0] = [str(Path(words[0]).parent), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    with open(said, "wb") as output:  # noqa: PTH123
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    runpy.run_path(words[0], run_name="__main__")


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
