"""What may be asked of the audit store: ids, windows, filters and cursors, checked before anything is read."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from tasks.core.day_span import every_day
from tasks.core.errors import TerminalError
from tasks.core.ids import digest_json, event_millis, is_prediction_id, prediction_event_time
from tasks.core.records import JsonRecord
from tasks.core.spec import PipelineSpec

MAX_PAGE_ROWS = 10_000
MAX_WINDOW_DAYS = 366
_SHOWN = 80
"""Characters of what is no id that the refusal repeats."""


class InvalidQuery(TerminalError):
    """The question itself is wrong: a malformed id, a window that ends before it starts, another query's cursor."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class AuditFilter(JsonRecord):
    """Which scorings of a window are wanted; what is None does not matter."""

    model_version: int | None = None
    min_prediction: float | None = None
    """Lowest score, included."""
    max_prediction: float | None = None
    """Highest score, included."""
    entity_id: str | None = None

    @property
    def empty(self) -> bool:
        """Whether everything passes."""
        return self == AuditFilter()


@dataclass(frozen=True)
class Window:
    """A checked window of event time: `start <= event_time < end`, both UTC."""

    start: datetime
    end: datetime
    filter: AuditFilter
    after: str | None
    """The prediction id to continue after."""
    _digest: str

    @property
    def low(self) -> str:
        """A text that sorts before every id that the rest of the window can hold."""
        return self.after or _id_prefix(self.start)

    @property
    def high(self) -> str:
        """A text that sorts after every id that the window can hold."""
        return f"{_id_prefix(self.end - timedelta(microseconds=1))}~"

    @property
    def in_whole_milliseconds(self) -> bool:
        """Whether `low` and `high` alone say what is inside: an id knows the millisecond of its event."""
        return self.start.microsecond % 1000 == 0 and self.end.microsecond % 1000 == 0

    def dates(self) -> tuple[date, ...]:
        """The UTC dates that the rest of the window touches."""
        first = self.start if self.after is None else prediction_event_time(self.after)
        last = (self.end - timedelta(microseconds=1)).date()
        return tuple(every_day(first.date(), last))

    def cursor(self, after: str) -> str:
        """What continues this query after a prediction id."""
        text = json.dumps({"query": self._digest, "after": after})
        return base64.urlsafe_b64encode(text.encode()).decode()


def checked_window(
    spec: PipelineSpec,
    start: datetime,
    end: datetime,
    *,
    limit: int,
    cursor: str | None = None,
    filter: AuditFilter | None = None,
) -> Window:
    """The window that is asked for.

    Raises:
        InvalidQuery: A bound is naive, the window is empty or too long, a page too large, a score band empty, or the
            cursor is not of this query.
    """
    wanted = filter or AuditFilter()
    if start.tzinfo is None or end.tzinfo is None:
        raise InvalidQuery(
            "has no time zone", which="window bound", fix="give both bounds with an offset or Z"
        )
    if end <= start:
        raise InvalidQuery(
            f"ends at {end.isoformat()}, before it starts at {start.isoformat()}",
            which="window",
            fix="give an end after the start",
        )
    if end - start > timedelta(days=MAX_WINDOW_DAYS):
        raise InvalidQuery(
            f"spans {(end - start).days} days", which="window", fix=f"ask for at most {MAX_WINDOW_DAYS} days"
        )
    if not 1 <= limit <= MAX_PAGE_ROWS:
        raise InvalidQuery(f"is {limit}", which="limit", fix=f"use 1 to {MAX_PAGE_ROWS}")
    _check_band(wanted)
    start, end = _in_range(start), _in_range(end)
    query = digest_json([spec.prefix, start, end, wanted.to_json()])[:16]
    return Window(start, end, wanted, None if cursor is None else _after(cursor, query), query)


def _in_range(bound: datetime) -> datetime:
    """A bound in UTC; one before 1970 is 1970, since no prediction is about a time before."""
    try:
        moment = bound.astimezone(UTC)
    except OverflowError as error:
        raise InvalidQuery(
            f"is {bound.isoformat()}, which is not in a year from 1 to 9999 of UTC",
            which="window bound",
            fix="give a time that calendars have",
        ) from error
    return max(moment, _EPOCH)


def check_id(prediction_id: str) -> None:
    """Raises `InvalidQuery` for what is not a prediction id."""
    if not is_prediction_id(prediction_id):
        too_long = len(prediction_id) > _SHOWN
        raise InvalidQuery(
            f"is not a prediction id, it has {len(prediction_id):,} characters"
            if too_long
            else "is not a prediction id",
            which=f"{prediction_id[:_SHOWN]!r}..." if too_long else repr(prediction_id),
            fix="give a UUID of version 8 in lower case, of an event before the year 10000",
        )


def _id_prefix(moment: datetime) -> str:
    """The beginning of every id of that millisecond."""
    digits = f"{event_millis(moment):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _check_band(wanted: AuditFilter) -> None:
    low, high = wanted.min_prediction, wanted.max_prediction
    for name, bound in (("min_prediction", low), ("max_prediction", high)):
        if bound is not None and not 0 <= bound <= 1:
            raise InvalidQuery(f"is {bound}", which=name, fix="give a probability from 0 to 1")
    if low is not None and high is not None and high < low:
        raise InvalidQuery(f"goes from {low} down to {high}", which="score band", fix="swap the bounds")


def _after(cursor: str, query: str) -> str:
    try:
        raw = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        found, after = raw["query"], raw["after"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise InvalidQuery("is not a cursor", which=repr(cursor), fix="start without a cursor") from error
    if found != query or not isinstance(after, str) or not is_prediction_id(after):
        raise InvalidQuery(
            "is the cursor of another query", which=repr(cursor), fix="repeat the window, or start over"
        )
    return after
