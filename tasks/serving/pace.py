"""How long a batch of so many rows will take, from what the last ones took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEAST_ROWS = 32
"""Fewer rows at once cost about as much as so many."""
_KEPT = 0.9
"""Weight of what was known, against one more batch."""
_FIRST_ROW_S = 2e-5
"""What a row is taken to cost in a batch larger than any that was seen. Low, for a request that is refused teaches nothing: by a guess
that is too high nobody would ever be let in."""
_HALF_LIFE_S = 5.0
"""How fast what nobody renews is forgotten, for the same reason."""
_SLOW_MOMENT = 2.0
"""Of the last two batches the faster one, so many times, is the most that is expected: one that was stopped, or that compiled a kernel,
says nothing of the next."""
_WORTH_IT = 1.25
"""More rows are scored together where that takes at most so many times as long as the least batch."""


@dataclass(frozen=True)
class _Batches:
    """What batches of about one size took, the newest weighing most."""

    seen: float = 0.0
    rows: float = 0.0
    spent_s: float = 0.0
    last_two_s: tuple[float, float] = (0.0, 0.0)
    renewed: float = 0.0

    def plus(self, rows: int, spent_s: float, now: float) -> _Batches:
        return _Batches(
            _KEPT * self.seen + 1.0,
            _KEPT * self.rows + rows,
            _KEPT * self.spent_s + spent_s,
            (self.last_two_s[1], spent_s),
            now,
        )

    @property
    def known(self) -> bool:
        """Whether there was more than one."""
        return self.seen > 1.0

    def expected(self, now: float) -> tuple[float, float]:
        """(rows, seconds) of one batch; the seconds are halved for each half-life since the last one."""
        spent_s = min(self.spent_s / self.seen, _SLOW_MOMENT * min(self.last_two_s))
        return self.rows / self.seen, spent_s * 0.5 ** (max(0.0, now - self.renewed) / _HALF_LIFE_S)


Known = tuple[tuple[float, float], ...]
"""(rows, seconds) of a batch of each size that was seen twice."""


class Pace:
    """What batches cost, by their size.

    Sizes are kept apart, each up to twice the one before: a thousand rows take as long as thirty-two on one machine, and thirty times as
    long on another. Of all sizes two things hold: more rows take no less time, and a row takes no more of it among more rows. What is
    expected is the least that agrees with them and with what was seen. A size is known from its second batch on.

    It has one writer, and any number of readers beside it.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Batches] = {}  # replaced as a whole, for those who read it meanwhile
        self._at_work: Known = ()
        self._least_batch_s = 0.0
        self._all = _Batches()

    def add(self, rows: int, spent_s: float, now: float) -> None:
        """A batch of so many rows took so long; `now` by `time.monotonic`."""
        size = (rows // LEAST_ROWS).bit_length()
        before = self._sizes.get(size, _Batches())
        self._sizes = {**self._sizes, size: before.plus(rows, spent_s, now)}
        self._at_work = self._known(now)
        # This does not grow old: it would have to be found anew, by ever smaller batches.
        self._least_batch_s = _least_s(
            [batches.expected(batches.renewed) for batches in self._sizes.values() if batches.known],
            LEAST_ROWS,
        )
        self._all = self._all.plus(max(rows, LEAST_ROWS), spent_s, now)

    def batch_s(self, rows: int, now: float | None = None) -> float:
        """How long so many rows take that are scored together; 0 for none.

        Args:
            now: Of a server that has nothing to do: then all that it knows grows old. None: it is at work, and what it knows of a
                size grows old while it scores others.
        """
        if rows <= 0:
            return 0.0
        charged = max(rows, LEAST_ROWS)
        known = self._at_work if now is None else self._known(now)
        expected_s = _least_s(known, charged)
        return (
            expected_s
            if any(rows <= of_rows for of_rows, _ in known)
            else max(expected_s, charged * _FIRST_ROW_S)
        )

    def behind_s(self, rows: int, *, waiting_rows: int, waiting_requests: int, most_rows: int) -> float:
        """How long a request of so many rows takes that comes while others wait; at work.

        Args:
            rows: 0: how long what waits takes.
            waiting_rows: Of the requests that wait, all together.
            most_rows: Several requests are scored together while they have no more.
        """
        if waiting_rows + rows <= most_rows:
            return self.batch_s(waiting_rows + rows)
        waiting_s = self.batch_s(waiting_rows)
        if waiting_rows > most_rows:
            row_s = self._all.spent_s / self._all.rows if self._all.rows else _FIRST_ROW_S
            # Each batch has a request at least: one of a thousand rows that waits is one batch.
            waiting_s = min(waiting_rows * row_s, waiting_requests * waiting_s)
        return waiting_s + self.batch_s(rows)

    def rows_within(self, spent_s: float) -> int:
        """How many rows can be scored together in so long, or in little more than the least batch takes; at least `LEAST_ROWS`.

        At most twice as many as were ever scored together: what more would take is not known.
        """
        if not self._at_work:
            return max(LEAST_ROWS, int(spent_s / _FIRST_ROW_S))
        enough_s = max(spent_s, _WORTH_IT * self._least_batch_s)
        found = 2.0 * max(LEAST_ROWS, max(of_rows for of_rows, _ in self._at_work))
        for of_rows, batch_s in self._at_work:
            if batch_s > enough_s:
                found = min(found, of_rows * enough_s / batch_s)
        return max(LEAST_ROWS, int(found))

    def _known(self, now: float) -> Known:
        return tuple(batches.expected(now) for batches in self._sizes.values() if batches.known)


def _least_s(known: Iterable[tuple[float, float]], rows: int) -> float:
    """The least that so many rows can take, by (rows, seconds) of batches."""
    return max(
        (spent_s if rows >= of_rows else spent_s * rows / of_rows for of_rows, spent_s in known), default=0.0
    )
