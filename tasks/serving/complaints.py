"""What goes wrong row by row is said at once the first time, then once in a while: a log is no place for each row of a load."""

from __future__ import annotations

import math
import time


class Complaints:
    """When to say again what goes on going wrong. For one thread.

    Args:
        every_s: How long nothing is said of the same thing.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._said: dict[int, tuple[float, int]] = {}
        """Version -> when it was said last, and how many rows it happened to since."""

    def due(self, version: int, rows: int) -> int | None:
        """How many rows it happened to since it was said of this version, when it is time to say it; None: not now."""
        now = time.monotonic()
        said_at, unsaid = self._said.get(version, (-math.inf, 0))
        if now - said_at < self._every_s:
            self._said[version] = (said_at, unsaid + rows)
            return None
        self._said[version] = (now, 0)
        return unsaid + rows
