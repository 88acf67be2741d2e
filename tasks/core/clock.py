"""The only place that asks what time it is, so that tests can say so themselves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def utc_now() -> datetime:
    """The current time, timezone-aware UTC."""
    return datetime.now(UTC)


def epoch_micros(moment: datetime) -> int:
    """Whole microseconds since the Unix epoch. Raises `TypeError` for a moment without a zone."""
    return (moment - _EPOCH) // _MICROSECOND


def iso_utc(moment: datetime) -> str:
    """ISO 8601 in UTC with a `Z`, millisecond precision; `moment` must be timezone-aware."""
    if moment.tzinfo is None:
        raise ValueError("iso_utc needs a timezone-aware datetime")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
