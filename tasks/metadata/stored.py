"""What pipelines held in the store, day by day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from sqlalchemy import select

from tasks.metadata.access import StorePart, owned, owner_values, upsert
from tasks.metadata.records import Owner
from tasks.metadata.tables import stored


class StoredBytes(StorePart):
    """Looks at the store, each a day's; a part of it is what `tasks.wiring.storage` names it."""

    def put_stored(self, of: Owner, day: date, parts: Mapping[str, int]) -> None:
        """Keep how many bytes each part had on a day; a second look of the day replaces the first."""
        with self._database.write() as connection:
            for part, size in sorted(parts.items()):
                upsert(connection, stored, {**owner_values(of), "day": day, "part": part, "bytes": size})

    def was_looked_at(self, of: Owner, day: date) -> bool:
        """Whether there is a look of that day."""
        query = select(stored.c.part).where(owned(stored, of), stored.c.day == day).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def stored_rows(self, tenant: str, *, since: date, until: date) -> list[dict[str, Any]]:
        """The looks of a tenant's pipelines, by pipeline and day; `until` is excluded."""
        query = select(stored).where(stored.c.tenant == tenant, stored.c.day >= since, stored.c.day < until)
        query = query.order_by(stored.c.pipeline, stored.c.day, stored.c.part)
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]
