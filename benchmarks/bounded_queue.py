"""What the bounded queue costs beside `queue.Queue`: calls, wake-ups, and waiting.

    python benchmarks/bounded_queue.py

Needs nothing but Python. Both queues are measured in turn in one process, `--repeats` times; the median is shown. CPU is that of the
whole process, kernel time included. An operation is an item put or an item taken; a thread that finds the queue full or empty
lets another one run and tries again, and those attempts are paid for but not counted.
"""

from __future__ import annotations

import argparse
import platform
import queue
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.serving import BoundedQueue

RESULTS = Path(__file__).parent / "results" / "bounded_queue.md"
SIZE = 1024
ITEMS = 400_000
WAKES = 3_000
IDLE_THREADS, IDLE_S = 8, 3.0


class Ours:
    """`BoundedQueue` in the words of this benchmark."""

    name = "BoundedQueue"

    def __init__(self, size: int) -> None:
        inner: BoundedQueue[int] = BoundedQueue(size)
        self.put, self.take = inner.enqueue, inner.dequeue
        self.take_waiting: Callable[[], Any] = lambda: inner.dequeue(1.0)


class Standard:
    """`queue.Queue`, the same."""

    name = "queue.Queue"

    def __init__(self, size: int) -> None:
        inner: queue.Queue[int] = queue.Queue(size)
        put, get, full, empty = inner.put_nowait, inner.get_nowait, queue.Full, queue.Empty

        def enqueue(item: int) -> bool:
            try:
                put(item)
            except full:
                return False
            return True

        def dequeue() -> int | None:
            try:
                return get()
            except empty:
                return None

        def waiting() -> int | None:
            try:
                return inner.get(timeout=1.0)
            except empty:
                return None

        self.put, self.take, self.take_waiting = enqueue, dequeue, waiting


def cpu_s(works: list[Callable[[], None]]) -> float:
    """CPU seconds of this process until all have ended."""
    threads = [threading.Thread(target=work) for work in works]
    before = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.process_time() - before


def operations(make: Callable[[int], Any], producers: int, consumers: int, *, waiting: bool) -> float:
    """Million operations per CPU second."""
    one = make(SIZE)

    def produce() -> None:
        put = one.put
        for item in range(1, ITEMS // producers + 1):
            while not put(item):
                time.sleep(0)

    def consume() -> None:
        take = one.take_waiting if waiting else one.take
        for _ in range(ITEMS // consumers):
            while take() is None:
                time.sleep(0)

    used_s = cpu_s([produce] * producers + [consume] * consumers)
    return 2 * ITEMS / used_s / 1e6


def wake_ups_us(make: Callable[[int], Any]) -> tuple[float, float]:
    """From putting an item to its arrival in a thread that sleeps: median and 99th percentile, microseconds."""
    there, back = make(4), make(4)
    found: list[float] = []

    def answer() -> None:
        for _ in range(WAKES):
            while there.take_waiting() is None:
                pass
            found.append(time.perf_counter() - sent[0])
            back.put(1)

    sent = [0.0]
    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(WAKES):
        time.sleep(0.0002)  # the other thread sleeps by now
        sent[0] = time.perf_counter()
        there.put(1)
        while back.take_waiting() is None:
            pass
    thread.join()
    cuts = statistics.quantiles(found, n=100)
    return statistics.median(found) * 1e6, cuts[98] * 1e6


def idle_ms(make: Callable[[int], Any]) -> float:
    """CPU milliseconds a second that waiting threads take. The timeout is one second, so each wakes up once a second."""
    one = make(4)

    def wait() -> None:
        until = time.monotonic() + IDLE_S
        while time.monotonic() < until:
            one.take_waiting()

    return cpu_s([wait] * IDLE_THREADS) / IDLE_S * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the result file")
    arguments = parser.parse_args()
    makes: list[Any] = [Standard, Ours]
    cases = [
        ("1 producer, 1 consumer", 1, 1, False),
        ("4 producers, 4 consumers", 4, 4, False),
        ("4 producers, 4 waiting consumers", 4, 4, True),
    ]
    lines = [
        "| million operations per CPU-second | queue.Queue | BoundedQueue | ratio |",
        "|---|---|---|---|",
    ]
    for name, producers, consumers, waiting in cases:
        rates: dict[str, list[float]] = {make.name: [] for make in makes}
        for _ in range(arguments.repeats):
            for make in makes:
                rates[make.name].append(operations(make, producers, consumers, waiting=waiting))
        old, new = (statistics.median(rates[make.name]) for make in makes)
        lines.append(f"| {name} | {old:.2f} | {new:.2f} | {new / old:.2f} |")
        print(lines[-1])
    wakes: dict[str, list[tuple[float, float]]] = {make.name: [] for make in makes}
    for _ in range(arguments.repeats):
        for make in makes:
            wakes[make.name].append(wake_ups_us(make))
    lines += ["", "| | queue.Queue | BoundedQueue | ratio |", "|---|---|---|---|"]
    for at, name in enumerate(("wake-up, median, µs", "wake-up, p99, µs")):
        old, new = (statistics.median(pair[at] for pair in wakes[make.name]) for make in makes)
        lines.append(f"| {name} | {old:.0f} | {new:.0f} | {new / old:.2f} |")
        print(lines[-1])
    old, new = (idle_ms(make) for make in makes)
    lines.append(f"| {IDLE_THREADS} waiting threads, CPU-ms a second | {old:.1f} | {new:.1f} | |")
    print(lines[-1])
    if arguments.write:
        head = (
            "# The bounded queue beside `queue.Queue`\n\n"
            f"`python benchmarks/bounded_queue.py --repeats {arguments.repeats} --write`, {platform.machine()}, 2 CPUs, Python "
            f"{platform.python_version()}. Other work ran on the machine: compare figures of one line.\n\n"
            f"{ITEMS:,} items pass a queue of {SIZE}. Medians of {arguments.repeats} runs, both queues in turn.\n\n"
        )
        RESULTS.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
