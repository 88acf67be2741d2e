"""Who has which workers, what attempts have had, and what is reserved of a budget. Changed by one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, insert, select, text

from tasks.metadata.access import StorePart, insert_new, upsert
from tasks.metadata.tables import CLOCK, allocations, leases, reservations

_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("holder", "reason", "kind"), ""),
    **dict.fromkeys(("gpus", "cpus", "memory_gib", "since_s", "allocated_s", "used_s", "wasted_s"), 0.0),
    **dict.fromkeys(
        ("least", "most", "priority", "width", "workers", "rows", "bytes_read", "bytes_written"), 0
    ),
    **dict.fromkeys(("cpu_seconds", "gpu_seconds"), 0.0),
    "reclaimable": True,
    "ends_in_s": None,
    "starts_in_s": None,
}
_SIZE = ("gpus", "cpus", "memory_gib", "asked_at_utc")


@dataclass
class OpenLedger:
    """The ledger while its lock is held. Rows are plain mappings: `tasks.tenancy` knows what they mean."""

    connection: Connection
    now: datetime
    """By the one clock that all who share the ledger are told: PostgreSQL's, or this machine's for SQLite."""
    clock_s: float
    clock_at: datetime
    rows: list[dict[str, Any]]
    seen: dict[str, Any]
    """Ray's size as it was asked last, and when."""

    def set_clock(self, clock_s: float, size: tuple[float, float, float] | None = None) -> None:
        """Keep the ledger's time and, where it was asked, the GPUs, CPUs and GiB that Ray has."""
        row = {**CLOCK, **_EMPTY, **self.seen, "beat_at_utc": self.now, "beat_s": clock_s}
        if size is not None:
            row |= dict(zip(("gpus", "cpus", "memory_gib"), size, strict=True)) | {"asked_at_utc": self.now}
        upsert(self.connection, leases, row)

    def put(self, row: Mapping[str, Any]) -> None:
        upsert(self.connection, leases, row)

    def end(self, row: Mapping[str, Any], outcome: str) -> None:
        """Delete a lease and keep what it was allocated, if anything."""
        key = [leases.c[name] == row[name] for name in CLOCK]
        self.connection.execute(delete(leases).where(*key, leases.c.holder == row["holder"]))
        if row["allocated_s"] <= 0:
            return
        insert_new(self.connection, allocations, _allocation(row, outcome, self.now))


@dataclass
class OpenBudget:
    """What a tenant has reserved, while nobody else reserves anything."""

    connection: Connection
    now: datetime
    rows: list[dict[str, Any]]
    """Of reservations that hold; a cost of None: it cannot be foreseen."""

    def put(self, row: Mapping[str, Any]) -> None:
        upsert(self.connection, reservations, row)


class LeaseRecords(StorePart):
    """Leases of all tenants: admission has to see everybody."""

    @contextmanager
    def lease_ledger(self) -> Iterator[OpenLedger]:
        """The ledger, locked until the block ends; nothing of it is kept when the block raises.

        Raises:
            ServiceUnavailable: The database does not answer, or somebody holds the lock for too long.
        """
        with self._database.write() as connection:
            now = self._locked(connection, leases)
            found = connection.execute(select(leases))
            names = tuple(found.keys())
            rows = [
                dict(zip(names, row, strict=True)) for row in found
            ]  # a tenth of the time of `.mappings()`
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
                {name: clock[name] for name in _SIZE},
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

    def seen_size(self) -> tuple[datetime, tuple[float, float, float]] | None:
        """When a run looked last how large Ray is, and the GPUs, CPUs and GiB that it found; None: none has yet."""
        query = select(leases).where(leases.c.tenant == CLOCK["tenant"])
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None or not row["cpus"]:
            return None
        return row["asked_at_utc"], (row["gpus"], row["cpus"], row["memory_gib"])

    def put_allocation(self, row: Mapping[str, Any], outcome: str) -> None:
        """Keep what an attempt without a lease has had until now; `tasks.metadata.UNDER_WAY` while it goes on."""
        with self._database.write() as connection:
            upsert(connection, allocations, _allocation(row, outcome, self._clock()))

    def allocation_rows(
        self, *, since: datetime, until: datetime, tenant: str | None = None
    ) -> list[dict[str, Any]]:
        """What attempts had, by the moment of their end; `until` is excluded."""
        query = select(allocations).where(allocations.c.until_utc >= since, allocations.c.until_utc < until)
        if tenant is not None:
            query = query.where(allocations.c.tenant == tenant)
        query = query.order_by(allocations.c.tenant, allocations.c.until_utc, allocations.c.run_id)
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def allocated_runs(self, tenant: str, *, since: datetime) -> set[tuple[str, str]]:
        """(pipeline, run) of every run with an attempt that ended since then."""
        table = allocations
        query = select(table.c.pipeline, table.c.run_id).where(
            table.c.tenant == tenant, table.c.until_utc >= since
        )
        with self._database.read() as connection:
            return {(row.pipeline, row.run_id) for row in connection.execute(query)}

    def latest_allocations(
        self, tenant: str, pipeline: str, kind: str, *, limit: int
    ) -> list[dict[str, Any]]:
        """What the last attempts of a pipeline had, the newest first."""
        table = allocations
        query = (
            select(table)
            .where(table.c.tenant == tenant, table.c.pipeline == pipeline, table.c.kind == kind)
            .order_by(table.c.until_utc.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    @contextmanager
    def open_budget(self, tenant: str) -> Iterator[OpenBudget]:
        """The tenant's reservations, locked until the block ends; nothing of it is kept when the block raises.

        Costs that are read inside are not older than the reservations: an attempt's costs are written before its
        reservation goes.

        Raises:
            ServiceUnavailable: The database does not answer, or somebody holds the lock for too long.
        """
        table = reservations
        with self._database.write() as connection:
            now = self._locked(connection, table)
            connection.execute(delete(table).where(table.c.tenant == tenant, table.c.until_utc <= now))
            query = select(table).where(table.c.tenant == tenant)
            yield OpenBudget(connection, now, [dict(row) for row in connection.execute(query).mappings()])

    def release_budget(self, tenant: str, pipeline: str, kind: str, subject: str) -> None:
        """Forget a reservation; one that is not there is no error."""
        key = {"tenant": tenant, "pipeline": pipeline, "kind": kind, "subject": subject}
        with self._database.write() as connection:
            found = and_(*(reservations.c[name] == value for name, value in key.items()))
            connection.execute(delete(reservations).where(found))

    def _locked(self, connection: Connection, table: Table) -> datetime:
        """Lock the table against other writers; returns the time. SQLite's writers are alone anyway."""
        if self._database.is_sqlite:
            return self._clock()
        connection.execute(text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now


def _allocation(row: Mapping[str, Any], outcome: str, now: datetime) -> dict[str, Any]:
    """The attempt of a lease as it is kept."""
    kept = (
        *("tenant", "pipeline", "run_id", "holder", "kind", "gpus", "cpus"),
        *("allocated_s", "used_s", "wasted_s", "rows", "bytes_read", "bytes_written"),
        *("cpu_seconds", "gpu_seconds"),
    )
    return {
        **{name: row[name] for name in kept},
        "idle_s": row["allocated_s"] - row["used_s"] - row["wasted_s"],
        "outcome": outcome,
        "from_utc": row["asked_at_utc"],
        "until_utc": now,
    }
