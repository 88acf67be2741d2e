"""Who has which workers, what attempts have had, and what is reserved of a budget. Changed by one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, delete, select, text

from tasks.metadata.access import StorePart, insert_new, upsert, upsert_all
from tasks.metadata.tables import CLOCK, allocations, lease_ends, leases, reservations

_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("holder", "reason", "kind"), ""),
    **dict.fromkeys(("gpus", "cpus", "memory_gib", "since_s", "allocated_s", "used_s", "wasted_s"), 0.0),
    **dict.fromkeys(
        ("least", "most", "priority", "width", "workers", "rows", "bytes_read", "bytes_written"), 0
    ),
    **dict.fromkeys(("cpu_seconds", "gpu_seconds"), 0.0),
    "changed": 0,
    "reclaimable": True,
    "ends_in_s": None,
    "starts_in_s": None,
}
ENDS_KEPT_S = 3600.0
"""Whoever has looked last longer ago, by the ledger's time, reads everything again."""


@dataclass
class OpenLedger:
    """The ledger while its lock is held. Rows are plain mappings: `tasks.tenancy` knows what they mean.

    Each transaction that changes what others see of a lease has a number, the `revision`, so that whoever has seen one reads only what came
    after it. What is put is written when the block ends.
    """

    connection: Connection
    now: datetime
    """By the one clock that all who share the ledger are told: PostgreSQL's, or this machine's for SQLite."""
    clock: dict[str, Any]
    """The row of `CLOCK`: the ledger's time, the last revision, and Ray's size as it was asked last, and when."""
    _changed: bool = False
    _put: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def clock_s(self) -> float:
        return float(self.clock["beat_s"])

    @property
    def clock_at(self) -> datetime:
        moment: datetime = self.clock["beat_at_utc"]
        return moment

    @property
    def revision(self) -> int:
        """The last one, this transaction's when it has changed something."""
        return int(self.clock["changed"]) + self._changed

    def set_clock(self, clock_s: float, size: tuple[float, float, float] | None = None) -> None:
        """Keep the ledger's time and, where it was asked, the GPUs, CPUs and GiB that Ray has."""
        self.clock |= {"beat_at_utc": self.now, "beat_s": clock_s}
        if size is not None:
            self.clock |= dict(zip(("gpus", "cpus", "memory_gib"), size, strict=True))
            self.clock["asked_at_utc"] = self.now

    def lease(self, tenant: str, pipeline: str, run_id: str) -> dict[str, Any] | None:
        """The whole row of one lease."""
        query = select(leases).where(_is(leases, (tenant, pipeline, run_id)))
        row = self.connection.execute(query).mappings().first()
        return None if row is None else dict(row)

    def rows(self, columns: Sequence[str]) -> Sequence[Any]:
        """These columns of every lease."""
        return self.connection.execute(_narrow(columns)).all()

    def changes(self, since: int, columns: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """These columns of the leases that others see otherwise since that revision, and the keys of those that have ended.

        A lease that has ended and is there again is in both.
        """
        ended = select(lease_ends.c.tenant, lease_ends.c.pipeline, lease_ends.c.run_id)
        rows = self.connection.execute(_narrow(columns).where(leases.c.changed > since)).all()
        return rows, self.connection.execute(ended.where(lease_ends.c.changed > since)).all()

    def unheard(self, before_s: float) -> list[dict[str, Any]]:
        """The whole rows of leases that were heard of last before that moment of the ledger's time."""
        query = select(leases).where(leases.c.beat_s < before_s, leases.c.tenant != CLOCK["tenant"])
        return [dict(row) for row in self.connection.execute(query).mappings()]

    def put(self, row: Mapping[str, Any], *, revision: int | None = None) -> None:
        """Write a lease.

        Args:
            revision: The one that it keeps, where others see it as before; None: this transaction's.
        """
        self._changed |= revision is None
        self._put.append({**row, "changed": self.revision if revision is None else revision})

    def end(self, row: Mapping[str, Any], outcome: str) -> bool:
        """Delete a lease and keep what it was allocated, if anything; False when it is not there, or not this login's to end."""
        self._write()
        key = {name: row[name] for name in CLOCK}
        mine = and_(_is(leases, tuple(key.values())), leases.c.holder == row["holder"])
        if not self.connection.execute(delete(leases).where(mine)).rowcount:
            return False
        self._changed = True
        upsert(self.connection, lease_ends, {**key, "changed": self.revision, "ended_s": self.clock_s})
        old = lease_ends.c.ended_s < self.clock_s - ENDS_KEPT_S
        self.connection.execute(delete(lease_ends).where(old))
        if row["allocated_s"] > 0:
            insert_new(self.connection, allocations, _allocation(row, outcome, self.now))
        return True

    def flush(self) -> None:
        """Write what was put, and the clock."""
        self._put.append({**self.clock, "changed": self.revision})
        self._write()

    def _write(self) -> None:
        if self._put:
            upsert_all(self.connection, leases, self._put)
            self._put.clear()


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
            query = select(leases).where(_is(leases, tuple(CLOCK.values())))
            found = connection.execute(query).mappings().first()
            moments = {"asked_at_utc": now, "beat_at_utc": now}
            clock = {**CLOCK, **_EMPTY, **moments, "beat_s": 0.0} if found is None else dict(found)
            ledger = OpenLedger(connection, now, clock)
            yield ledger
            ledger.flush()

    def lease_rows(self) -> list[dict[str, Any]]:
        """Every lease as it is, by tenant and age."""
        query = (
            select(leases)
            .where(leases.c.tenant != CLOCK["tenant"])
            .order_by(leases.c.tenant, leases.c.since_s, leases.c.run_id)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def lease_ends(self) -> dict[tuple[str, str, str], float]:
        """(tenant, pipeline, run) -> in how many seconds those with workers think to end, as far as they know."""
        key = (leases.c.tenant, leases.c.pipeline, leases.c.run_id)
        query = select(*key, leases.c.ends_in_s).where(leases.c.width > 0, leases.c.ends_in_s.is_not(None))
        with self._database.read() as connection:
            return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query)}

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


def _is(table: Table, key: Sequence[str]) -> ColumnElement[bool]:
    """The condition for one run's row."""
    return and_(*(table.c[name] == value for name, value in zip(CLOCK, key, strict=True)))


def _narrow(columns: Sequence[str]) -> Select[Any]:
    return select(*(leases.c[name] for name in columns)).where(leases.c.tenant != CLOCK["tenant"])


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
