"""`BoundedQueue`: first in, first out, between threads, with a limit that holds exactly.

It stands between requests and the model: who enqueues is told at once whether there was room, and who dequeues may
wait without using a CPU. Nothing but the standard library is imported.

One lock guards a deque. A producer touches a condition only when somebody waits, which under load is never: that is
most of what makes it cheaper than `queue.Queue` (benchmarks/results/bounded_queue.md). The check for room and the
append are one locked step, so the limit does not rest on the interpreter's own lock.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """A queue of at most `max_size` items for any number of producers and consumers.

    `enqueue` and `dequeue` take constant time, whatever is in the queue, and do not wait for room or for items. All calls together have one order
    that agrees with real time (they are linearizable): a consumer that finds nothing found it empty at a moment
    of its call, a producer that is refused found it full or closed.

    `dequeue(timeout_s=...)` and `dequeue_batch` wait, asleep, until an item comes, the time is over or the queue
    is closed. After `close` nothing more is taken in; what is inside can still be had, and nobody waits any longer.

    Not for signal handlers: the lock is not re-entrant.

    Args:
        max_size: At least 1.

    Raises:
        ValueError: `max_size` is less than 1.
    """

    __slots__ = (
        "_acquire",
        "_arrived",
        "_filled",
        "_filling",
        "_high",
        "_items",
        "_lock",
        "_max_size",
        "_release",
        "_room",
        "_waiting",
    )

    def __init__(self, max_size: int) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is {max_size}: a queue holds at least one item")
        self._max_size = max_size
        self._room = max_size
        """`max_size`, and 0 once closed: one comparison says whether an item may come in."""
        self._items: deque[T] = deque()
        self._high = 0
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        """Called by name where every call counts: a `with` statement costs a quarter of an enqueue."""
        self._arrived = threading.Condition(self._lock)
        """For those to whom one item is enough."""
        self._filled = threading.Condition(self._lock)
        """For those who want a full batch; they leave the items where they are, so anybody else may take them."""
        self._waiting = 0
        """Threads asleep on either condition."""
        self._filling: list[int] = []
        """How many items each thread asleep on `_filled` wants."""

    @property
    def max_size(self) -> int:
        """How many items there may be."""
        return self._max_size

    @property
    def high_water_mark(self) -> int:
        """The most items that were inside at once."""
        return self._high

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._room == 0

    def __len__(self) -> int:
        """How many items are inside at this moment."""
        return len(self._items)

    def __bool__(self) -> bool:
        """Always true: an empty queue is a queue."""
        return True

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"BoundedQueue({len(self)} of {self._max_size}{state})"

    def enqueue(self, item: T) -> bool:
        """Put an item at the end; False when the queue is full or closed. Never waits.

        Raises:
            TypeError: The item is None, which `dequeue` could not tell from an empty queue.
        """
        if item is None:
            raise TypeError("None cannot be enqueued: it is what dequeue returns for an empty queue")
        self._acquire()
        try:
            items = self._items
            size = len(items)
            if size >= self._room:
                return False
            items.append(item)
            if size >= self._high:
                self._high = size + 1
            if self._waiting:
                self._wake(size + 1)
        finally:
            self._release()
        return True

    def dequeue(self, timeout_s: float = 0.0) -> T | None:
        """Take the item at the front; None when there is none.

        Args:
            timeout_s: How long to wait for one; by default not at all, `math.inf`: until the queue is closed.
        """
        self._acquire()
        try:
            if self._items:
                return self._items.popleft()
            if timeout_s > 0:
                self._await_item(timeout_s)
                if self._items:
                    return self._items.popleft()
        finally:
            self._release()
        return None

    def dequeue_batch(
        self, max_items: int, max_wait_s: float = 0.0, *, idle_wait_s: float = 0.0, enough: int | None = None
    ) -> list[T]:
        """Take up to `max_items` from the front, all at one moment, in their order.

        First waits up to `idle_wait_s` until there is any item, then up to `max_wait_s` until there are `max_items`
        (or `enough`, or the queue is full), and takes what is there then. While it waits, the items stay inside: they count against the limit, and
        another consumer may take them. So the list is empty when nothing came, and also when others were faster.

        Args:
            max_items: At least 1.
            max_wait_s: Seconds to wait for more than there is; 0: take what is there.
            idle_wait_s: Seconds to wait for the first item; `math.inf`: until the queue is closed.
            enough: With so many items the wait is over, even if `max_items` is more; by default `max_items`.

        Raises:
            ValueError: `max_items` is less than 1.
        """
        if max_items < 1:
            raise ValueError(f"max_items is {max_items}: a batch holds at least one item")
        with self._lock:
            items = self._items
            if not items and idle_wait_s > 0:
                self._await_item(idle_wait_s)
            wanted = max_items if enough is None else min(enough, max_items)
            if max_wait_s > 0 and len(items) < wanted:
                self._await_fill(min(wanted, self._max_size), max_wait_s)
            if len(items) <= max_items:
                batch = list(items)
                items.clear()
            else:
                batch = [items.popleft() for _ in range(max_items)]
            if items and self._waiting:  # a wake-up that was meant for more than this call took
                self._wake(len(items))
        return batch

    def close(self) -> None:
        """Take nothing more in and wake whoever waits. What is inside stays to be dequeued. May be called again."""
        with self._lock:
            self._room = 0
            self._arrived.notify_all()
            self._filled.notify_all()

    def drain(self) -> list[T]:
        """Take everything that is inside, in order; usually after `close`, to turn down what nobody will process."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
        return items

    def _wake(self, size: int) -> None:
        """Wake one that wants an item, and those whose batch is full now. The caller holds the lock."""
        self._arrived.notify()
        if self._filling and size >= min(self._filling):
            self._filled.notify_all()

    def _await_item(self, timeout_s: float) -> None:
        """Sleep until an item is inside, the time is over or the queue is closed. The caller holds the lock."""
        until = time.monotonic() + timeout_s
        self._waiting += 1
        try:
            while not self._items and self._room:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                self._arrived.wait(_limited(left_s))
        except BaseException:  # interrupted: the wake-up that this thread may have had goes to another
            if self._items:
                self._arrived.notify()
            raise
        finally:
            self._waiting -= 1

    def _await_fill(self, wanted: int, max_wait_s: float) -> None:
        """Sleep until `wanted` items are inside, the time is over or the queue is closed. The caller holds the lock."""
        if (
            self._items
        ):  # this thread leaves them lying: whoever is content with one must not sleep beside them
            self._arrived.notify()
        until = time.monotonic() + max_wait_s
        self._waiting += 1
        self._filling.append(wanted)
        try:
            while len(self._items) < wanted and self._room:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                self._filled.wait(_limited(left_s))
        finally:
            self._filling.remove(wanted)
            self._waiting -= 1


def _limited(seconds: float) -> float | None:
    """What a condition takes as its timeout; None for more than it can count."""
    return None if math.isinf(seconds) or seconds > threading.TIMEOUT_MAX else seconds
