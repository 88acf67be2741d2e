"""Requests wait in a bounded queue; one thread takes what is there, scores it at once, and hands the answers back."""

from __future__ import annotations

import logging
import math
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tasks.core.errors import PenstockError
from tasks.serving.bounded_queue import BoundedQueue
from tasks.serving.complaints import Complaints
from tasks.serving.entities import FoundRow
from tasks.serving.limits import ServingLimits
from tasks.serving.metrics import ServingMetrics
from tasks.serving.models import Answered, ServedModel
from tasks.serving.pace import Pace
from tasks.serving.refusals import Refused
from tasks.serving.signature import Row

log = logging.getLogger(__name__)


class Ticket:
    """One admitted request on its way through the queue."""

    __slots__ = (
        "answers",
        "champion",
        "champion_rows",
        "deadline",
        "enqueued",
        "error",
        "future",
        "handed",
        "inputs",
        "models",
        "request_id",
        "rows",
        "shadow",
    )

    def __init__(
        self,
        rows: list[Row],
        models: list[ServedModel],
        champion: ServedModel,
        shadow: ServedModel | None,
        deadline: float,
        request_id: str,
        future: Future[None],
        champion_rows: Mapping[int, Row] | None = None,
    ) -> None:
        self.rows = rows
        """Each in the columns of the model that answers it."""
        self.champion_rows = champion_rows or {}
        """By place, in the champion's columns, those that an exposed challenger reads in its own."""
        self.models = models
        """By row: whoever was live for its entity when it was admitted."""
        self.champion = champion
        """Answers what an exposed challenger cannot."""
        self.shadow = shadow
        """Scores a copy and answers nothing."""
        self.deadline = deadline
        """By `time.monotonic`."""
        self.request_id = request_id
        self.future = future
        self.enqueued = time.monotonic()
        self.answers: list[tuple[str, float, Any]] = [("", math.nan, None)] * len(rows)
        """By row: prediction id, score, and what the model says beside it."""
        self.inputs: list[FoundRow] | None = None
        """By row, when the request named entities and the server had their rows."""
        self.error: Refused | None = None
        self.handed = False
        """Whether its answer is on its way; nothing may be changed then."""


Place = tuple[Ticket, int]
"""A ticket and which of its rows."""
Scored = tuple[ServedModel, list[Place], pa.Table | None, Any]
"""Who was asked about which rows, their table, and the scores; None when the model failed as a whole."""


class MicroBatcher:
    """The queue and its thread.

    Args:
        limits: See there.
        metrics: Counts.
        record: Called with rows after they were answered.
        shadow: Called with rows, their table and scores, for a challenger that answers nothing.
    """

    def __init__(
        self,
        limits: ServingLimits,
        metrics: ServingMetrics,
        *,
        record: Callable[[Answered], None],
        shadow: Callable[[ServedModel, pa.Table, Any], None],
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._record = record
        self._shadow = shadow
        self._complaints = Complaints()
        self._queue: BoundedQueue[Ticket] = BoundedQueue(limits.queue_requests)
        self._loop: AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self.pace = Pace()
        self.busy_s = 0.0
        """Time that the thread has spent on batches so far."""
        # Each counter has one writer, so none needs a lock.
        self.admitted_rows = 0
        self._admitted = 0
        """Requests, as the next two are beside their rows."""
        self._finished = self._finished_rows = 0
        self._scoring = self._scoring_rows = 0
        """Of what is not finished, the batch under way."""
        self.unanswered_rows = 0
        """Of the admitted rows, those that are finished with and that the recorder does not get."""
        metrics.size.set(limits.queue_requests)
        metrics.depth.set_function(lambda: len(self._queue))
        metrics.high.set_function(lambda: self._queue.high_water_mark)

    def start(self, loop: AbstractEventLoop) -> None:
        """Begin; answers are handed to `loop`."""
        self._loop = loop
        self._thread.start()

    def admit(self, ticket: Ticket) -> bool:
        """Take a request; False when the queue is full or closed. From the event loop's thread."""
        if not self._queue.enqueue(ticket):
            return False
        self._admitted += 1
        self.admitted_rows += len(ticket.rows)
        return True

    @property
    def full(self) -> bool:
        return len(self._queue) >= self._queue.max_size

    @property
    def closed(self) -> bool:
        return self._queue.closed

    def expected_s(self, rows: int = 0) -> float:
        """How long a request of so many rows that comes now will take: the batch under way, and what waits together with it."""
        scoring, unfinished = self._scoring_rows, self.admitted_rows - self._finished_rows
        if not unfinished:
            return self.pace.batch_s(rows, time.monotonic())
        behind_s = self.pace.behind_s(
            rows,
            waiting_rows=unfinished - scoring,
            waiting_requests=self._admitted - self._finished - self._scoring,
            most_rows=self._affordable_rows(),
        )
        return self.pace.batch_s(scoring) + behind_s

    def retry_after_s(self) -> int:
        """When it is worth trying again: when what waits now will have been scored."""
        return max(1, math.ceil(self.expected_s()))

    def close(self, timeout_s: float) -> None:
        """Take nothing more, answer what is inside, end the thread."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        left = self._queue.drain()
        for ticket in left:
            ticket.error = Refused(
                503, "not_ready", "the server is shutting down", fix="send it to another replica"
            )
        if left:
            self._deliver(left)

    def _run(self) -> None:
        import torch

        torch.set_num_threads(1)  # of this thread: another thread's setting is not inherited
        limits, queue, before = self._limits, self._queue, 1
        while True:
            # Whoever came together last time is waited for; who came alone waits for nobody.
            wait_s = limits.max_wait_s if before > 1 else 0.0
            tickets = queue.dequeue_batch(limits.batch_rows, wait_s, idle_wait_s=math.inf, enough=before)
            before = len(tickets)
            if not tickets and queue.closed and not len(queue):
                return
            for chunk in self._chunks(tickets):
                started = time.perf_counter()
                self._scoring, self._scoring_rows = len(chunk), sum(len(ticket.rows) for ticket in chunk)
                try:
                    scored_rows = self._score(chunk)
                except Exception:
                    log.exception("A batch could not be handled")
                    scored_rows = 0
                    left = [ticket for ticket in chunk if not ticket.handed]
                    for ticket in left:
                        ticket.error = ticket.error or _internal()
                    self._deliver(left)
                self._finished += self._scoring
                self._finished_rows += self._scoring_rows
                self._scoring = self._scoring_rows = 0
                spent_s = time.perf_counter() - started
                self.busy_s += spent_s
                if scored_rows:
                    self.pace.add(scored_rows, spent_s, time.monotonic())

    def _chunks(self, tickets: list[Ticket]) -> Iterator[list[Ticket]]:
        """Whole tickets, together as many rows as are scored in about `batch_s`."""
        chunk: list[Ticket] = []
        rows = 0
        for ticket in tickets:
            if chunk and rows + len(ticket.rows) > self._affordable_rows():
                yield chunk
                chunk, rows = [], 0
            chunk.append(ticket)
            rows += len(ticket.rows)
        if chunk:
            yield chunk

    def _affordable_rows(self) -> int:
        """Most rows of several requests that are scored together."""
        return min(self._limits.batch_rows, self.pace.rows_within(self._limits.batch_s))

    def _score(self, chunk: list[Ticket]) -> int:
        """Answer a chunk; how many rows the models were asked for."""
        owed = sum(len(ticket.rows) for ticket in chunk)
        try:
            groups = self._groups(chunk)
            scored = [(model, places, *self._ask(model, places)) for model, places in groups.items()]
            for model, places in self._fallen_back(scored).items():
                scored.append((model, places, *self._ask(model, places)))
            self._deliver(chunk)
            moment = datetime.now(UTC)
            for model, places, table, scores in scored:
                if scores is None:
                    continue
                requests = [
                    None if ticket.error or ticket.models[index] is not model else ticket.request_id
                    for ticket, index in places
                ]
                kept = sum(request is not None for request in requests)
                if kept:
                    self._record(Answered(model, scores.batches, requests, moment, kept))
                    owed -= kept
                challenger = places[0][0].shadow
                if challenger is not None and challenger is not model:
                    self._shadow(challenger, table, scores)
        finally:  # what was not handed to the recorder will never be, and takes no room there
            self.unanswered_rows += owed
        return sum(len(places) for places in groups.values())

    def _fallen_back(self, scored: Sequence[Scored]) -> dict[ServedModel, list[Place]]:
        """Rows that an exposed challenger could not score, by the champion that answers them instead.

        As in batch: an exposure can make predictions differ, it cannot lose one.
        """
        groups: dict[ServedModel, list[Place]] = {}
        for model, places, _, scores in scored:
            failed = range(len(places)) if scores is None else sorted(scores.failures)
            fallen = [row for row in failed if places[row][0].champion is not model]
            for ticket, index in (places[row] for row in fallen):
                ticket.models[index] = ticket.champion
                ticket.rows[index] = ticket.champion_rows.get(index, ticket.rows[index])
                groups.setdefault(ticket.champion, []).append((ticket, index))
            if not fallen:
                continue
            self._metrics.of(model).fallbacks.inc(len(fallen))
            since = self._complaints.due(model.deployed.version, len(fallen)) if scores else None
            if since is not None:
                log.warning(
                    "Version %d, exposed, could not score %d rows, the champion answered them: %s",
                    *(model.deployed.version, since, scores.failures[fallen[0]]),
                )
        return groups

    def _groups(self, chunk: list[Ticket]) -> dict[ServedModel, list[Place]]:
        """The rows that are still in time, by the model that answers them; the other tickets get their error."""
        now = time.monotonic()
        groups: dict[ServedModel, list[Place]] = {}
        for ticket in chunk:
            if ticket.deadline <= now:
                ticket.error = Refused(
                    504,
                    "expired",
                    "the request's time was over before it was scored",
                    fix="retry, or allow more time",
                    retry_after_s=self.retry_after_s(),
                )
                continue
            self._metrics.of(ticket.models[0]).wait.observe(now - ticket.enqueued)
            for index, model in enumerate(ticket.models):
                groups.setdefault(model, []).append((ticket, index))
        return groups

    def _ask(self, model: ServedModel, places: Sequence[Place]) -> tuple[pa.Table | None, Any]:
        """Score rows and write the answers, or why there is none, into their tickets."""
        started = time.perf_counter()
        try:
            table = model.signature.table([ticket.rows[index] for ticket, index in places])
            scores = model.score(table)
        except Exception as error:
            self._failed(model, places, error)
            return None, None
        outputs = scores.outputs if model.output_names else None
        values = scores.scores.tolist()
        for position, row in enumerate(scores.rows.tolist()):
            ticket, index = places[row]
            beside = None if outputs is None else outputs[position].tolist()
            ticket.answers[index] = (scores.prediction_ids[position], values[position], beside)
        for row, failure in scores.failures.items():
            ticket, index = places[row]
            if ticket.champion is not model:
                continue  # the champion is asked next
            ticket.error = Refused(
                422,
                "row_failed",
                f"cannot be scored ({failure})",
                which=f"row {index}",
                fix="correct the row; batch scoring would put it among its dead letters",
            )
        spent_s = time.perf_counter() - started
        mine = self._metrics.of(model)
        mine.busy.inc(spent_s)
        mine.batch_rows.observe(len(places))
        mine.predictions.inc(len(values))
        return table, scores

    def _failed(self, model: ServedModel, places: Sequence[Place], error: Exception) -> None:
        version = model.deployed.version
        since = self._complaints.due(version, len(places))
        if since is not None:
            log.error("Version %d failed on %d rows: %s", version, since, error, exc_info=error)
        what = error.what if isinstance(error, PenstockError) else f"{type(error).__name__} in the model"
        for ticket, _ in places:
            if ticket.champion is not model:
                continue  # the champion is asked next
            ticket.error = Refused(
                500, "model_failed", what, which=f"model version {version}", fix="see the server's log"
            )

    def _deliver(self, tickets: list[Ticket]) -> None:
        assert self._loop is not None
        for ticket in tickets:
            ticket.handed = True
        try:
            self._loop.call_soon_threadsafe(_settle, tickets)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.warning("%d requests were scored and nobody waits for them", len(tickets))


def _settle(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.future.done():
            ticket.future.set_result(None)


def _internal() -> Refused:
    return Refused(500, "internal", "the server failed", fix="see its log")
