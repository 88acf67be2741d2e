"""Processes that a test starts: each is forked from a server process that has one thread and has imported what they need.

A fork of the test's own process would copy whatever locks its other threads hold at that moment, and might wait for ever.
What a test has patched in its own process is not patched in these.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import cloudpickle

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(
    ["__main__", "alembic.runtime.environment", "psycopg", "tasks.metadata.store", "tasks.registry.promotion",
     "tasks.tenancy.leases", "tasks.wiring"]
)  # fmt: skip


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
    gate, answers = _SERVED.Barrier(len(calls)), _SERVED.SimpleQueue()
    children = [
        _SERVED.Process(target=_answer, args=(number, _Call(call), gate, answers))
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

    child = _SERVED.Process(target=_Call(run))
    child.start()
    child.join(patience_s)
    ended = child.exitcode
    child.kill()
    assert ended == -signal.SIGKILL


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
