"""Recorded histories of a queue, and whether they have an order that agrees with real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Call:
    """One finished call. `started` and `ended` are ticks of one clock that all threads share."""

    operation: str
    """`enqueue`, `dequeue` or `batch`."""
    argument: Any
    """The item, nothing, or the most items."""
    result: Any
    started: int
    ended: int


def allowed(state: tuple[Any, ...], call: Call, max_size: int) -> tuple[Any, ...] | None:
    """The queue after `call`, if a queue that holds `state` may answer so; else None."""
    if call.operation == "enqueue":
        if call.result != (len(state) < max_size):
            return None
        return (*state, call.argument) if call.result else state
    if call.operation == "dequeue":
        if call.result != (state[0] if state else None):
            return None
        return state[1:]
    taken = state[: call.argument]
    return state[len(taken) :] if tuple(call.result) == taken else None


def linearizable(history: list[Call], max_size: int) -> bool:
    """Whether some order of the calls, each at a moment between its start and its end, is one of a bounded queue.

    Source: Wing & Gong (1993), "Testing and verifying concurrent objects", with the states seen kept (Lowe 2017).
    """
    everything = (1 << len(history)) - 1
    seen: set[tuple[int, tuple[Any, ...]]] = set()
    pending: list[tuple[int, tuple[Any, ...]]] = [(0, ())]
    while pending:
        done, state = pending.pop()
        if done == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [index for index in range(len(history)) if not done >> index & 1]
        first_end = min(history[index].ended for index in left)
        for index in left:
            if history[index].started < first_end:
                after = allowed(state, history[index], max_size)
                if after is not None:
                    pending.append((done | 1 << index, after))
    return False


class Recorder:
    """Calls a queue and keeps what was asked and answered, with ticks."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.calls: list[Call] = []

    def enqueue(self, item: Any) -> None:
        started = time.perf_counter_ns()
        result = self.queue.enqueue(item)
        self._keep("enqueue", item, result, started)

    def dequeue(self) -> None:
        started = time.perf_counter_ns()
        result = self.queue.dequeue()
        self._keep("dequeue", None, result, started)

    def batch(self, max_items: int) -> None:
        started = time.perf_counter_ns()
        result = self.queue.dequeue_batch(max_items)
        self._keep("batch", max_items, tuple(result), started)

    def _keep(self, operation: str, argument: Any, result: Any, started: int) -> None:
        self.calls.append(Call(operation, argument, result, started, time.perf_counter_ns()))


@contextmanager
def switching_at_every_line(file: str) -> Iterator[None]:
    """Threads that start inside change places at every line of `file`: no luck of the interpreter's lock is left."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(file):
            return None
        if event == "line":
            time.sleep(0)
        return trace

    threading.settrace(trace)
    try:
        yield
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


def in_threads(works: list[Callable[[], None]]) -> None:
    """Run all at once, to their end; what one raises is raised here."""
    errors: list[BaseException] = []
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            gate.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread never ended: a wake-up was lost"
    if errors:
        raise errors[0]


class UnlockedQueue:
    """What is not acceptable: check, then append, without a lock. The tests' own control."""

    def __init__(self, max_size: int) -> None:
        self.items: list[Any] = []
        self.max_size = max_size

    def enqueue(self, item: Any) -> bool:
        if len(self.items) >= self.max_size:
            return False
        self.items.append(item)
        return True

    def dequeue(self) -> Any:
        if not self.items:
            return None
        item = self.items[0]
        self.items = self.items[1:]
        return item
