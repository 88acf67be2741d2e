"""Group commit: many threads share one wait for the disk.

The first thread that finds nobody committing leads: it takes everything that waits, commits it at once and wakes the
others; the oldest append that came meanwhile leads next. So a lone thread pays no hand-over, and no thread is needed
that does nothing else.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.audit.hot.rows import PackedRows
from tasks.core.errors import CommitOutcomeUnknown, PenstockError, TerminalError, TransientError


class HotLogBusy(TransientError):
    """More rows wait to be written than may wait: nothing of this append was taken."""


class HotLogClosed(TerminalError):
    """An append after `close`."""


@dataclass(frozen=True)
class Appended:
    """What one append did; all of its rows are durable."""

    added: int
    repeated: int
    """Rows that were there already: a retry."""


@dataclass(eq=False)
class Waiting:
    """One append on its way."""

    packed: list[tuple[PackedRows, list[bytes]]]
    """Rows, and the key of each."""
    wake: threading.Lock = field(default_factory=threading.Lock)
    leads: bool = False
    result: Appended | None = None
    error: PenstockError | None = None

    @property
    def rows(self) -> int:
        return sum(len(keys) for _, keys in self.packed)

    @property
    def settled(self) -> bool:
        return self.result is not None or self.error is not None


class GroupCommit:
    """Hands appends of many threads to `write`, in one thread at a time and as many together as there are.

    Args:
        write: Settles every append of a list: `result` when it is durable; raises for all of them.
        waiting_rows: How many rows may wait.
        which: Whose appends these are, for messages.
    """

    def __init__(self, write: Callable[[list[Waiting]], None], waiting_rows: int, which: str) -> None:
        self._write = write
        self._limit = waiting_rows
        self._which = which
        self._mutex = threading.Lock()
        """Guards all below."""
        self._queue: list[Waiting] = []
        self._queued_rows = 0
        self._leading = False
        self._closed = False

    def run(self, item: Waiting) -> Appended:
        """Returns when the append is durable.

        Raises:
            HotLogBusy, HotLogClosed: Nothing was taken.
            CommitOutcomeUnknown: The thread that committed was interrupted.
            PenstockError: What `write` raised.
        """
        if not self._lead_or_wait(item):
            batch: list[Waiting] = []
            try:
                with self._mutex:
                    batch, self._queue, self._queued_rows = self._queue, [], 0
                self._commit(batch)
            finally:
                self._hand_over(batch, item)
        if item.error is not None:
            raise copy.copy(item.error)  # each thread raises one of its own
        assert item.result is not None
        return item.result

    def close(self) -> bool:
        """Take nothing more, and return when everything that was taken is settled; False when it was closed before."""
        with self._mutex:
            first, self._closed = not self._closed, True
        while True:
            with self._mutex:
                if not self._leading:
                    return first
            time.sleep(0.001)

    def _lead_or_wait(self, item: Waiting) -> bool:
        """Queue an append; True once somebody else has settled it, False when this thread has to commit."""
        with self._mutex:
            if self._closed:
                raise HotLogClosed("is closed", which=self._which, fix="open it again")
            if self._queued_rows and self._queued_rows + item.rows > self._limit:
                raise HotLogBusy(
                    f"{self._queued_rows} rows wait to be written, {self._limit} may",
                    which=self._which,
                    fix="retry after a moment; if it persists, the disk is too slow for this load",
                )
            self._queue.append(item)
            self._queued_rows += item.rows
            if not self._leading:
                self._leading = True
                return False
            item.wake.acquire()
        try:
            item.wake.acquire()
        except BaseException:  # interrupted: it may have been told to lead
            self._withdraw(item)
            raise
        return item.settled

    def _commit(self, batch: list[Waiting]) -> None:
        try:
            self._write(batch)
        except PenstockError as error:
            for one in batch:
                one.error = error

    def _hand_over(self, batch: list[Waiting], own: Waiting) -> None:
        """Wake those whose append is settled, and the next leader."""
        for one in batch:
            if not one.settled:  # this thread was interrupted
                one.error = CommitOutcomeUnknown(
                    "the thread that wrote was interrupted",
                    which=self._which,
                    fix="retry with the same request ids",
                )
        with self._mutex:
            self._drop(own)  # it is still there when the interruption came before anything was taken
            successor = self._next_leader()
        for one in batch:
            if one is not own:
                one.wake.release()
        if successor is not None:
            successor.wake.release()

    def _withdraw(self, item: Waiting) -> None:
        """Take an append back whose thread no longer waits; one that is being committed is settled for nobody."""
        with self._mutex:
            successor = self._next_leader() if self._drop(item) and item.leads else None
        if successor is not None:
            successor.wake.release()

    def _drop(self, item: Waiting) -> bool:
        if item not in self._queue:
            return False
        self._queue.remove(item)
        self._queued_rows -= item.rows
        return True

    def _next_leader(self) -> Waiting | None:
        """Who commits next; nobody when nothing waits. The caller holds the mutex, and wakes it."""
        successor = self._queue[0] if self._queue else None
        self._leading = successor is not None
        if successor is not None:
            successor.leads = True
        return successor
