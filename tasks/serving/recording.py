"""What happens to rows after they were answered: counted, explained, written to the audit store. Nobody waits for it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import PenstockError, TerminalError
from tasks.serving.bounded_queue import BoundedQueue
from tasks.serving.complaints import Complaints
from tasks.serving.limits import ServingLimits
from tasks.serving.metrics import ServingMetrics
from tasks.serving.models import Answered, Journal, Scores, ServedModel

log = logging.getLogger(__name__)

_COUNTED_AT_ONCE = 2048
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0


class Recorder:
    """A queue of answered rows and the thread that works it off.

    Rows stay in memory until the audit store has them, and so many may do so (`ServingLimits.unrecorded_rows`); whoever admits requests
    looks at `unrecorded_rows` first. So no answered row goes unrecorded because of the load; explanations may.

    Args:
        journal: The audit store; None: rows are only counted.
        limits: See there.
        metrics: Counts.
    """

    def __init__(self, journal: Journal | None, limits: ServingLimits, metrics: ServingMetrics) -> None:
        self._journal = journal
        self._limits = limits
        self._metrics = metrics
        self._queue: BoundedQueue[Answered] = BoundedQueue(limits.unrecorded_rows)
        self._offered_rows = 0
        self._done_rows = 0
        self._uncounted: list[Answered] = []
        self._counted_at = time.monotonic()
        self._enough = threading.Event()
        """Set when as many rows wait as are written at once."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        metrics.backlog.set_function(lambda: self.unrecorded_rows)

    def start(self) -> None:
        self._thread.start()

    @property
    def done_rows(self) -> int:
        """Rows that need not be kept in memory any more."""
        return self._done_rows

    @property
    def unrecorded_rows(self) -> int:
        """Answered rows that the audit store does not have yet."""
        return self._offered_rows - self._done_rows

    def offer(self, answered: Answered) -> None:
        """Take rows; from the scoring thread alone."""
        self._offered_rows += answered.rows
        if not self._queue.enqueue(answered):  # cannot be while admission looks at the backlog
            self._metrics.lost.inc(answered.rows)
            self._done_rows += answered.rows
            log.error("%d answered rows found no room to wait for the audit store", answered.rows)
        if self.unrecorded_rows >= self._limits.record_rows:
            self._enough.set()

    def close(self, timeout_s: float) -> None:
        """Write what is there, then end; what the audit store does not take within the time is lost, and logged."""
        self._queue.close()
        self._enough.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LONGEST_RETRY_S + 1)
        if self.unrecorded_rows:
            log.error("%d answered rows are not in the audit store", self.unrecorded_rows)
        if self._journal is not None:
            self._journal.close()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(1)
        while True:
            groups = self._gathered()
            if groups:
                try:
                    self._keep(groups)
                except Exception:
                    log.exception("Answered rows could not be recorded")
                    self._metrics.record_failures.inc()
                    self._metrics.lost.inc(sum(group.rows for group in groups))
                self._done_rows += sum(group.rows for group in groups)
                self._uncounted += groups
            self._count_if_due()
            if not groups and self._queue.closed and not len(self._queue):
                return

    def _gathered(self) -> list[Answered]:
        """What is written together: rows that came within a short while of the first, until they are enough."""
        limits, queue = self._limits, self._queue
        first = queue.dequeue(limits.count_every_s if self._uncounted else math.inf)
        if first is None:
            return []
        self._enough.clear()
        if self.unrecorded_rows < limits.record_rows and not queue.closed:
            self._enough.wait(limits.record_every_s)
        groups, rows = [first], first.rows
        while rows < limits.record_rows and (more := queue.dequeue()) is not None:
            groups.append(more)
            rows += more.rows
        return groups

    def _keep(self, groups: Sequence[Answered]) -> None:
        if self._journal is None:
            return
        wait_s = _FIRST_RETRY_S
        while True:
            explain = self.unrecorded_rows <= self._limits.explain_backlog_rows
            try:
                done = self._journal.append(groups, explain=explain)
            except PenstockError as error:
                self._metrics.record_failures.inc()
                if isinstance(error, TerminalError) and len(groups) > 1:
                    for group in groups:  # the others are not to be lost with the one at fault
                        self._keep([group])
                    return
                if isinstance(error, TerminalError) or self._stop.is_set():
                    log.error("%d answered rows are not recorded: %s", sum(g.rows for g in groups), error)
                    self._metrics.lost.inc(sum(group.rows for group in groups))
                    return
                log.warning(
                    "The audit store does not take rows now, trying again in %.1f s: %s", wait_s, error
                )
                self._stop.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_RETRY_S)
                continue
            self._metrics.recorded.inc(done.rows)
            self._metrics.explained.inc(done.explained)
            self._metrics.explanations_shed.inc(done.shed)
            return

    def _count_if_due(self) -> None:
        """Count on the profile's grid what was not counted yet; a count of few rows costs as much as one of many."""
        groups = self._uncounted
        waited_s = time.monotonic() - self._counted_at
        if not groups or (len(groups) < _COUNTED_AT_ONCE and waited_s < self._limits.count_every_s):
            return
        self._uncounted, self._counted_at = [], time.monotonic()
        now = datetime.now(UTC)
        by_model = sorted(groups, key=lambda group: group.model.deployed.version)
        for model, of_model in groupby(by_model, key=lambda group: group.model):
            batches = [batch for group in of_model for batch in group.batches]
            try:
                self._metrics.observe(model, model.profile(batches), _lag_s(batches, now))
            except PenstockError as error:
                log.warning("Answered rows were not counted: %s", error)


def _lag_s(batches: Sequence[Any], now: datetime) -> float | None:
    newest = [pc.max(batch.identity.column(0)).as_py() for batch in batches if batch.identity.num_rows]
    moments = [moment for moment in newest if isinstance(moment, datetime) and moment.tzinfo]
    return (now - max(moments)).total_seconds() if moments else None


class Shadow:
    """A challenger that scores copies, in a thread of its own: its speed and its faults touch no answer."""

    def __init__(self, limits: ServingLimits, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._complaints = Complaints()
        self._queue: BoundedQueue[tuple[ServedModel, pa.Table, Scores]] = BoundedQueue(limits.shadow_requests)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, challenger: ServedModel, table: pa.Table, answered: Scores) -> None:
        """Take copies of answered rows; counted and left when there are too many."""
        if not self._queue.enqueue((challenger, table, answered)):
            self._metrics.shadow_shed.inc(table.num_rows)

    def close(self) -> None:
        self._queue.close()
        self._queue.drain()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        import torch

        torch.set_num_threads(1)
        while True:
            copies = self._queue.dequeue(math.inf)
            if copies is None:
                return
            challenger, table, answered = copies
            try:
                self._compare(challenger, table, answered)
            except Exception as error:  # of the challenger's; the next copies are to be scored
                self._failed(challenger, len(answered.rows), f"{type(error).__name__}: {error}")

    def _compare(self, challenger: ServedModel, table: pa.Table, answered: Scores) -> None:
        wanted = challenger.signature.schema
        scores = challenger.score(table.select(wanted.names).cast(wanted))
        lost = sorted(scores.failures.keys() & set(answered.rows.tolist()))
        if lost:
            self._failed(challenger, len(lost), str(scores.failures[lost[0]]))
        _, mine, theirs = np.intersect1d(scores.rows, answered.rows, return_indices=True)
        seen = self._metrics.of(challenger)
        for difference in np.abs(scores.scores[mine] - answered.scores[theirs]).tolist():
            seen.differences.observe(difference)
        if scores.batches:
            self._metrics.observe(challenger, challenger.profile(scores.batches), None)

    def _failed(self, challenger: ServedModel, rows: int, reason: str) -> None:
        """No request failed: this is no error of the server, and `errors_total` pages for those."""
        version = challenger.deployed.version
        self._metrics.of(challenger).shadow_failed.inc(rows)
        since = self._complaints.due(version, rows)
        if since is not None:
            log.warning("Version %d, a shadow, could not score %d answered rows: %s", version, since, reason)
