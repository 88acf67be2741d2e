"""How long a batch of so many rows will take, from what the last ones took."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_ROWS = 32
"""Fewer rows at once cost about as much as so many."""
_KEPT = 0.9
"""Weight of what was known, against one more batch."""
_FIRST_ROW_S = 2e-5
"""What a row is taken to cost before a large batch was scored. Low, for a request that is refused teaches nothing: by a guess that is
too high nobody would ever be let in."""
_HALF_LIFE_S = 5.0
"""How fast what nobody renews is forgotten, for the same reason."""


@dataclass
class _Mean:
    """Seconds over units, the newest batches weighing most."""

    units: float = 0.0
    spent_s: float = 0.0
    renewed: float = 0.0

    def add(self, units: int, spent_s: float, now: float) -> None:
        self.units = _KEPT * self.units + units
        self.spent_s = _KEPT * self.spent_s + spent_s
        self.renewed = now

    def of_one(self, now: float | None) -> float | None:
        """Seconds of one unit; None before any. With `now`, halved for each half-life that nothing was added in."""
        if not self.units:
            return None
        age_s = 0.0 if now is None else max(0.0, now - self.renewed)
        return float(self.spent_s / self.units * 0.5 ** (age_s / _HALF_LIFE_S))


class Pace:
    """What batches cost: small ones the same whatever they have, large ones by row.

    Both are kept apart, or lone requests would say that a thousand rows take as long as a thousand requests. It has one writer;
    a reader beside it may see a batch half counted.
    """

    def __init__(self) -> None:
        self._small, self._large = _Mean(), _Mean()

    def add(self, rows: int, spent_s: float, now: float) -> None:
        """A batch of so many rows took so long; `now` by `time.monotonic`."""
        if rows < LEAST_ROWS:
            self._small.add(1, spent_s, now)
        else:
            self._large.add(rows, spent_s, now)

    def batch_s(self, rows: int, now: float | None = None) -> float:
        """How long so many rows take that are scored together; 0 for none.

        Args:
            now: Of a server that has nothing to do: then what it knows grows old. None: it is at work, and what it knows holds.
        """
        if rows <= 0:
            return 0.0
        small_s, row_s = self._small.of_one(now), self._large.of_one(now)
        if rows < LEAST_ROWS and small_s is not None:
            return small_s
        return max(rows, LEAST_ROWS) * (_FIRST_ROW_S if row_s is None else row_s)

    def rows_within(self, spent_s: float) -> int:
        """How many rows can be scored together in so long, at least `LEAST_ROWS`; careful while no large batch was seen."""
        small_s, row_s = self._small.of_one(None), self._large.of_one(None)
        if row_s is None:
            row_s = _FIRST_ROW_S if small_s is None else small_s / LEAST_ROWS
        return max(LEAST_ROWS, int(spent_s / row_s)) if row_s > 0 else LEAST_ROWS
