"""What pipelines hold in the store: looked at once a day, kept in the metadata store, billed by the month."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping
from datetime import date, datetime, timedelta

from tasks.core import Clock, utc_now
from tasks.core.units import GIB
from tasks.metadata import MetadataStore
from tasks.wiring.context import Context

HOLDS = timedelta(days=7)
"""So long a look stands for the days after it; then nobody knows what is there."""
_PARTS = {
    "tables/predictions/": "predictions",
    "tables/audit/": "explanations",
    "archive/": "explanations",
    "audit/": "explanations",
    "bundles/": "models",
    "training/": "models",
    "data/": "data",
    "snapshots/": "data",
}
OTHER = "other"
"""Runs' records, reports, what a pipeline keeps beside its data."""

Looks = Mapping[date, Mapping[str, int]]
"""Day -> part -> bytes."""


def look_at_storage(context: Context, *, clock: Clock = utc_now) -> int | None:
    """Add up what the pipeline's prefix holds, and keep it; None when that was done today (UTC) already.

    One listing of the prefix. Files count that a table has let go and that are not deleted yet: the store's bill has them too.
    """
    today = clock().date()
    if context.metadata.was_looked_at(context.spec, today):
        return None
    parts = dict.fromkeys((*_PARTS.values(), OTHER), 0)
    for info in context.store.list():
        parts[_part(info.key)] += info.size_bytes
    context.metadata.put_stored(context.spec, today, parts)
    return sum(parts.values())


def looks_of(
    store: MetadataStore, tenant: str, first: datetime, after: datetime
) -> dict[str, dict[date, dict[str, int]]]:
    """Pipeline -> its looks that say something of a month."""
    found: dict[str, dict[date, dict[str, int]]] = {}
    for row in store.stored_rows(tenant, since=first.date() - HOLDS, until=after.date()):
        found.setdefault(row["pipeline"], {}).setdefault(row["day"], {})[row["part"]] = row["bytes"]
    return found


def gib_months(looks: Looks, first: date, last: date) -> float:
    """GiB-months that were held from `first` to `last`, days of one month.

    A day has what it was looked at with, or else the day before it, for `HOLDS` after a look; a day that no look stands for has nothing.
    """
    held, day = 0, first
    while day <= last:
        known = max((looked for looked in looks if looked <= day < looked + HOLDS), default=None)
        held += sum(looks[known].values()) if known else 0
        day += timedelta(days=1)
    return held / GIB / monthrange(first.year, first.month)[1]


def _part(key: str) -> str:
    return next((part for prefix, part in _PARTS.items() if key.startswith(prefix)), OTHER)
