"""The ledger of leases: who has which workers. Changed by one writer at a time, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, text

from tasks.metadata.access import StorePart, insert_new, upsert
from tasks.metadata.tables import CLOCK, allocations, leases

_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("holder", "reason"), ""),
    **dict.fromkeys(("gpus", "cpus", "memory_gib", "since_s", "allocated_s", "used_s", "wasted_s"), 0.0),
    **dict.fromkeys(("least", "most", "priority", "width", "workers"), 0),
    "reclaimable": True,
    "ends_in_s": None,
}


@dataclass
class OpenLedger:
    """The ledger while its lock is held. Rows are plain mappings: `tasks.tenancy` knows what they mean."""

    connection: Connection
    now: datetime
    """By the one clock that all who share the ledger are told: PostgreSQL's, or this machine's for SQLite."""
    clock_s: float
    clock_at: datetime
    rows: list[dict[str, Any]]

    def set_clock(self, clock_s: float) -> None:
        moments = {"asked_at_utc": self.now, "beat_at_utc": self.now}
        upsert(self.connection, leases, {**CLOCK, **_EMPTY, **moments, "beat_s": clock_s})

    def put(self, row: Mapping[str, Any]) -> None:
        upsert(self.connection, leases, row)

    def end(self, row: Mapping[str, Any], outcome: str) -> None:
        """Delete a lease and keep what it was allocated, if anything."""
        key = [leases.c[name] == row[name] for name in CLOCK]
        self.connection.execute(delete(leases).where(*key, leases.c.holder == row["holder"]))
        if row["allocated_s"] <= 0:
            return
        kept = ("tenant", "pipeline", "run_id", "holder", "gpus", "cpus", "allocated_s", "used_s", "wasted_s")
        values = {
            **{name: row[name] for name in kept},
            "idle_s": max(0.0, row["allocated_s"] - row["used_s"] - row["wasted_s"]),
            "outcome": outcome,
            "from_utc": row["asked_at_utc"],
            "until_utc": self.now,
        }
        insert_new(self.connection, allocations, values)


class LeaseRecords(StorePart):
    """Leases of all tenants: admission has to see everybody."""

    @contextmanager
    def lease_ledger(self) -> Iterator[OpenLedger]:
        """The ledger, locked until the block ends; nothing of it is kept when the block raises.

        Raises:
            ServiceUnavailable: The database does not answer, or somebody holds the lock for too long.
        """
        with self._database.write() as connection:
            now = self._clock()
            if not self._database.is_sqlite:
                connection.execute(text("LOCK TABLE penstock_leases IN EXCLUSIVE MODE"))
                now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            rows = [dict(row) for row in connection.execute(select(leases)).mappings()]
            clock = next((row for row in rows if row["tenant"] == CLOCK["tenant"]), None)
            if clock is None:
                moments = {"asked_at_utc": now, "beat_at_utc": now}
                clock = {**CLOCK, **_EMPTY, **moments, "beat_s": 0.0}
                connection.execute(insert(leases).values(**clock))
            yield OpenLedger(
                connection,
                now,
                clock["beat_s"],
                clock["beat_at_utc"],
                [row for row in rows if row["tenant"] != CLOCK["tenant"]],
            )

    def lease_rows(self) -> list[dict[str, Any]]:
        """Every lease as it is, by tenant and age."""
        query = (
            select(leases)
            .where(leases.c.tenant != CLOCK["tenant"])
            .order_by(leases.c.tenant, leases.c.since_s, leases.c.run_id)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def allocation_rows(self, *, since: datetime, until: datetime) -> list[dict[str, Any]]:
        """What ended leases had, by the moment of their end; `until` is excluded."""
        query = (
            select(allocations)
            .where(allocations.c.until_utc >= since, allocations.c.until_utc < until)
            .order_by(allocations.c.tenant, allocations.c.until_utc, allocations.c.run_id)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]
