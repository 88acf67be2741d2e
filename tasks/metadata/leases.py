"""Who has which workers, what attempts have had, and what is reserved of a budget.

What a run asks for is a row of its own, which its driver writes without waiting for anybody. What it is granted is decided for all runs at once by
whoever has the ledger's lock: the row of `CLOCK`, which a tenant's own login cannot lock. Nothing that is done under that lock waits for
a row or a table that such a login may write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from tasks.core.errors import ServiceUnavailable
from tasks.metadata.access import StorePart, insert_new, upsert, upsert_all
from tasks.metadata.tables import CLOCK, allocations, lease_ends, lease_requests, leases, reservations

log = logging.getLogger(__name__)

ASKED = ("kind", "holder", "gpus", "cpus", "memory_gib", "least", "most", "reclaimable", "workers")
"""Of a request, what its lease was decided on."""
ENDS_KEPT_S = 3600.0
"""Whoever has looked last longer ago, by the ledger's time, reads everything again."""
_KEY = tuple(CLOCK)
_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("holder", "kind"), ""),
    **dict.fromkeys(("gpus", "cpus", "memory_gib", "since_s", "beat_s"), 0.0),
    **dict.fromkeys(("least", "most", "priority", "width", "workers", "granted", "changed"), 0),
    "reclaimable": True,
    "over_since_s": None,
}
_BUDGET_LOCK = dict.fromkeys(("pipeline", "kind", "subject"), "*")
"""With a tenant: the row by which its reservations are changed one at a time. Other tenants cannot lock it."""
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_SWEEP_LOCK_MS = 200
MOST_PAUSE_S = 300.0
"""A run that waits may say that it asks again so much later, and is not taken for dead before."""


_TOLD = (
    *(name for name in ASKED if name != "holder"),
    *("heard", "pause_s", "ends_in_s", "starts_in_s", "reason", "allocated_s", "used_s", "wasted_s"),
    *("rows", "bytes_read", "bytes_written", "cpu_seconds", "gpu_seconds"),
)
"""What a beat writes, beside when."""


def _tell() -> Update:
    """One statement, made once: a run that waits sends nothing else."""
    request = lease_requests.c
    clock = select(leases.c.beat_s).where(*(leases.c[name] == value for name, value in CLOCK.items()))
    mine = (request[name] == bindparam(f"of_{name}") for name in (*_KEY, "holder"))
    said: dict[str, Any] = {name: bindparam(name) for name in (*_TOLD, "beat_at_utc")}
    heard = func.coalesce(clock.scalar_subquery(), literal(0.0))
    return update(lease_requests).where(*mine, request.ended.is_(False)).values(**said, beat_s=heard)


_TELL = _tell()


@dataclass
class LedgerView:
    """The ledger as it was at one moment. Rows are plain mappings: `tasks.tenancy` knows what they mean.

    Each transaction that changes what others see of a lease has a number, the `revision`, so that whoever has seen one reads only what came
    after it.
    """

    connection: Connection
    clock: dict[str, Any]
    """The row of `CLOCK`: the ledger's time, the last revision, and Ray's size as it was asked last, and when."""

    @property
    def clock_s(self) -> float:
        return float(self.clock["beat_s"])

    @property
    def clock_at(self) -> datetime:
        moment: datetime = self.clock["beat_at_utc"]
        return moment

    @property
    def revision(self) -> int:
        return int(self.clock["changed"])

    @property
    def size(self) -> tuple[datetime, tuple[float, float, float]] | None:
        """When a run looked last how large Ray is, and the GPUs, CPUs and GiB that it found; None: none has yet."""
        return _size_of(self.clock)

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


@dataclass
class OpenLedger(LedgerView):
    """The ledger while its lock is held. What is put is written when the block ends."""

    now: datetime
    """By the one clock that all who share the ledger are told: PostgreSQL's, or this machine's for SQLite."""
    _changed: bool = False
    _put: list[Mapping[str, Any]] = field(default_factory=list)
    _granted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def revision(self) -> int:
        """The last one, this transaction's when it has changed something."""
        return int(self.clock["changed"]) + self._changed

    @property
    def next_revision(self) -> int:
        """This transaction's, if it changes something."""
        return int(self.clock["changed"]) + 1

    def set_clock(self, clock_s: float, size: tuple[float, float, float] | None = None) -> None:
        """Keep the ledger's time and, where it was asked, the GPUs, CPUs and GiB that Ray has."""
        self.clock |= {"beat_at_utc": self.now, "beat_s": clock_s}
        if size is not None:
            self.clock |= dict(zip(("gpus", "cpus", "memory_gib"), size, strict=True))
            self.clock["asked_at_utc"] = self.now

    def asked(self, heard_since_s: float) -> list[dict[str, Any]]:
        """`ASKED` of the requests that were heard of since that moment of the ledger's time and are not what their lease was decided on.

        With `granted_to`: who holds that lease, or None; and `has_heard`: whether it has read how many workers it may have now.
        """
        request, lease = lease_requests.c, leases.c
        differs = or_(lease.tenant.is_(None), *(request[name] != lease[name] for name in ASKED))
        query = (
            select(
                *(request[name] for name in (*_KEY, *ASKED)),
                lease.holder.label("granted_to"),
                (request.heard >= func.coalesce(lease.granted, 0)).label("has_heard"),
            )
            .select_from(lease_requests.outerjoin(leases, _same(lease_requests, leases)))
            .where(request.ended.is_(False), ~_silent(heard_since_s), differs)
            .order_by(request.asked_at_utc, *(request[name] for name in _KEY))
        )
        return [dict(row) for row in self.connection.execute(query).mappings()]

    def unheard(self, heard_since_s: float) -> list[dict[str, Any]]:
        """Key, kind and holder of the leases whose request has ended or was not heard of since that moment."""
        request = lease_requests.c
        over = or_(request.tenant.is_(None), request.ended.is_(True), _silent(heard_since_s))
        query = (
            select(*(leases.c[name] for name in (*_KEY, "kind", "holder")), request.ended.label("ended"))
            .select_from(leases.outerjoin(lease_requests, _same(lease_requests, leases)))
            .where(leases.c.tenant != CLOCK["tenant"], over)
        )
        return [dict(row) for row in self.connection.execute(query).mappings()]

    def put(self, row: Mapping[str, Any]) -> None:
        """Write the lease of a request."""
        self._changed = True
        self._put.append({**row, **self._moment(), "asked_at_utc": self.now, "changed": self.revision})

    def grant(self, key: Sequence[str], granted: Mapping[str, Any]) -> None:
        """Change what a lease that is there has been granted."""
        self._changed = True
        of = {f"of_{name}": value for name, value in zip(_KEY, key, strict=True)}
        self._granted.append({**of, **granted, **self._moment(), "changed": self.revision})

    def end(self, key: Sequence[str]) -> None:
        """Delete a lease; one that is not there is no error."""
        if not self.connection.execute(delete(leases).where(_is(leases, key))).rowcount:
            return
        self._changed = True
        ended = dict(zip(_KEY, key, strict=True))
        upsert(self.connection, lease_ends, {**ended, "changed": self.revision, "ended_s": self.clock_s})
        old = lease_ends.c.ended_s < self.clock_s - ENDS_KEPT_S
        self.connection.execute(delete(lease_ends).where(old))

    def flush(self) -> None:
        """Write what was put and granted, and the clock."""
        if self._granted:
            of = and_(*(leases.c[name] == bindparam(f"of_{name}") for name in _KEY))
            changed = [name for name in self._granted[0] if not name.startswith("of_")]
            statement = update(leases).where(of).values({name: bindparam(name) for name in changed})
            self.connection.execute(statement, self._granted)
        if self._put:
            upsert_all(self.connection, leases, self._put, keep=("asked_at_utc",))
        upsert(self.connection, leases, {**self.clock, "changed": self.revision})

    def _moment(self) -> dict[str, Any]:
        return {"beat_s": self.clock_s, "beat_at_utc": self.now}


@dataclass
class OpenRequest:
    """A run's own row, while its driver writes it."""

    connection: Connection
    key: tuple[str, str, str]
    now: datetime

    def tell(self, row: Mapping[str, Any]) -> bool:
        """Write what the attempt says, where its request is there; False when it is not, or another attempt's."""
        of = {f"of_{name}": value for name, value in zip(_KEY, self.key, strict=True)}
        said = {name: row[name] for name in _TOLD} | {"beat_at_utc": self.now, "of_holder": row["holder"]}
        if not self.connection.execute(_TELL, {**said, **of}).rowcount:
            return False
        if (
            self.connection.dialect.name == "postgresql"
        ):  # a beat that a crash of the server forgets is told again
            self.connection.execute(text("SET LOCAL synchronous_commit = off"))
        return True

    def explain(self, holder: str, reason: str, starts_in_s: float | None) -> None:
        """Keep why the run has no workers, and when it may expect some."""
        mine = and_(_is(lease_requests, self.key), lease_requests.c.holder == holder)
        said = {"reason": reason, "starts_in_s": starts_in_s}
        self.connection.execute(update(lease_requests).where(mine).values(**said))

    def last(self) -> dict[str, Any] | None:
        """The request as it is, locked against other attempts of the run."""
        query = select(lease_requests).where(_is(lease_requests, self.key)).with_for_update()
        row = self.connection.execute(query).mappings().first()
        return None if row is None else dict(row)

    def ask(self, row: Mapping[str, Any], beat_s: float) -> None:
        """Write the request of an attempt that is new, at that moment of the ledger's time."""
        new = {**dict(zip(_KEY, self.key, strict=True)), **row, "ended": False, "beat_s": beat_s}
        upsert(self.connection, lease_requests, {**new, "asked_at_utc": self.now, "beat_at_utc": self.now})

    def end(self, row: Mapping[str, Any], outcome: str) -> None:
        """Keep what an attempt was allocated, if anything; its request asks for nothing any more."""
        mine = and_(_is(lease_requests, self.key), lease_requests.c.holder == row["holder"])
        self.connection.execute(update(lease_requests).where(mine).values(ended=True))
        if row["allocated_s"] > 0:
            insert_new(self.connection, allocations, _allocation(row, outcome, self.now))

    def granted(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The run's lease, and the row of `CLOCK`."""
        query = select(leases).where(or_(_is(leases, self.key), _is(leases, tuple(CLOCK.values()))))
        found = {
            row["tenant"] == CLOCK["tenant"]: dict(row) for row in self.connection.execute(query).mappings()
        }
        return found.get(False), found.get(True)


@dataclass
class OpenBudget:
    """What a tenant has reserved, while nobody else reserves anything for it."""

    connection: Connection
    now: datetime
    rows: list[dict[str, Any]]
    """Of reservations that hold; a cost of None: it cannot be foreseen."""

    def put(self, row: Mapping[str, Any]) -> None:
        upsert(self.connection, reservations, row)


class LeaseRecords(StorePart):
    """Leases of all tenants: who decides has to see everybody."""

    @contextmanager
    def lease_request(self, tenant: str, pipeline: str, run_id: str) -> Iterator[OpenRequest]:
        """A run's own row, to be written by its driver; nothing of it is kept when the block raises.

        Raises:
            ServiceUnavailable: The database does not answer.
        """
        with self._database.write() as connection:
            yield OpenRequest(connection, (tenant, pipeline, run_id), self._now(connection))

    @contextmanager
    def lease_ledger(self) -> Iterator[OpenLedger]:
        """The ledger, locked until the block ends; nothing of it is kept when the block raises.

        Raises:
            ServiceUnavailable: The database does not answer, or somebody holds the lock for too long.
            AccessDenied: This login may not decide.
        """
        with self._database.write() as connection:
            ledger = self._ledger(connection, wait=True)
            assert ledger is not None
            yield ledger
            ledger.flush()

    @contextmanager
    def lease_ledger_if_free(self) -> Iterator[OpenLedger | None]:
        """`lease_ledger`; None when somebody else has it on PostgreSQL. On SQLite every writer waits for the one before."""
        with self._database.write() as connection:
            ledger = self._ledger(connection, wait=False)
            yield ledger
            if ledger is not None:
                ledger.flush()

    @contextmanager
    def lease_view(self) -> Iterator[LedgerView | None]:
        """The ledger, to be read; None when nobody has ever settled it."""
        with self._database.read() as connection:
            clock = connection.execute(_clock()).mappings().first()
            yield None if clock is None else LedgerView(connection, dict(clock))

    def may_settle(self) -> bool:
        """Whether this login may decide what runs are granted."""
        if self._database.is_sqlite:
            return True
        with self._database.read() as connection:
            asked = select(func.has_table_privilege(leases.name, "UPDATE"))
            return bool(connection.execute(asked).scalar_one())

    def last_decision(self) -> tuple[datetime, float] | None:
        """When it was decided last what runs may have, and how many seconds ago that was by the ledger's own clock; None: never."""
        with self._database.read() as connection:
            row = connection.execute(_clock()).mappings().first()
            if row is None:
                return None
            moment: datetime = row["beat_at_utc"]
            return moment, max(0.0, (self._now(connection) - moment).total_seconds())

    def has_login(self, users: Sequence[str]) -> bool:
        """Whether the server has a login of one of these names; False on SQLite, which has none."""
        if self._database.is_sqlite or not users:
            return False
        asked = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = ANY(:users) AND rolcanlogin)")
        with self._database.read() as connection:
            return bool(connection.execute(asked, {"users": list(users)}).scalar_one())

    def end_transactions(self, users: Sequence[str], *, longer_than_s: float) -> list[tuple[str, float]]:
        """End the connections of these logins whose transaction is older; returns login and age in seconds of each. None on SQLite.

        Raises:
            AccessDenied: This login is neither a member of theirs nor a superuser.
        """
        if self._database.is_sqlite or not users:
            return []
        found = text(
            "SELECT usename, extract(epoch FROM clock_timestamp() - xact_start)::float8, pg_terminate_backend(pid) "
            "FROM pg_stat_activity WHERE datname = current_database() AND usename = ANY(:users) "
            "AND xact_start < clock_timestamp() - make_interval(secs => :longer_than_s)"
        )
        with self._database.read() as connection:
            rows = connection.execute(found, {"users": list(users), "longer_than_s": longer_than_s})
            return [(user, age_s) for user, age_s, ended in rows if ended]

    def sweep_requests(self, heard_since_s: float) -> list[dict[str, Any]]:
        """Delete requests that have ended or were not heard of since that moment; returns the latter, whose costs are kept.

        A transaction for each tenant, which waits for none of its rows: what a tenant's own session has locked is left for the next time.

        Raises:
            ServiceUnavailable: The database does not answer.
        """
        request = lease_requests.c
        over = or_(request.ended.is_(True), _silent(heard_since_s))
        with self._database.read() as connection:
            tenants = [name for (name,) in connection.execute(select(request.tenant).where(over).distinct())]
        swept: list[dict[str, Any]] = []
        for tenant in tenants:
            try:
                swept += self._sweep(tenant, over)
            except ServiceUnavailable as error:
                log.warning("Requests of tenant %s that have ended stay for now: %s", tenant, error.what)
        return swept

    def _sweep(self, tenant: str, over: ColumnElement[bool]) -> list[dict[str, Any]]:
        table = lease_requests
        query = select(table).where(table.c.tenant == tenant, over).with_for_update(skip_locked=True)
        with self._database.write() as connection:
            if not self._database.is_sqlite:
                connection.execute(text(f"SET LOCAL lock_timeout = {_SWEEP_LOCK_MS}"))
            rows = [dict(row) for row in connection.execute(query).mappings()]
            now = self._now(connection)
            for row in rows:
                if not row["ended"] and row["allocated_s"] > 0:
                    insert_new(connection, allocations, _allocation(row, "expired", now))
                connection.execute(delete(table).where(_is(table, [row[name] for name in _KEY])))
        return [row for row in rows if not row["ended"]]

    def lease_rows(self) -> list[dict[str, Any]]:
        """Every request that has not ended, with what it was granted, by tenant and age."""
        request, lease = lease_requests.c, leases.c
        same = and_(_same(lease_requests, leases), request.holder == lease.holder)
        query = (
            select(
                *(column for column in request if column.name not in ("ended", "asked_at_utc")),
                func.coalesce(lease.width, 0).label("width"),
                func.coalesce(lease.workers, 0).label("counted"),
                func.coalesce(lease.priority, 0).label("priority"),
                func.coalesce(lease.since_s, request.beat_s).label("since_s"),
                func.coalesce(lease.asked_at_utc, request.asked_at_utc).label("asked_at_utc"),
            )
            .select_from(lease_requests.outerjoin(leases, same))
            .where(request.ended.is_(False))
            .order_by(request.tenant, text("since_s"), request.run_id)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def lease_ends(self) -> dict[tuple[str, str, str], float]:
        """(tenant, pipeline, run) -> in how many seconds those with workers think to end, as far as they know and this login may know."""
        request = lease_requests.c
        query = (
            select(*(request[name] for name in _KEY), request.ends_in_s)
            .select_from(lease_requests.join(leases, _same(lease_requests, leases)))
            .where(leases.c.width > 0, request.ends_in_s.is_not(None), request.ended.is_(False))
        )
        with self._database.read() as connection:
            return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query)}

    def seen_size(self) -> tuple[datetime, tuple[float, float, float]] | None:
        """When a run looked last how large Ray is, and the GPUs, CPUs and GiB that it found; None: none has yet."""
        with self._database.read() as connection:
            row = connection.execute(_clock()).mappings().first()
        return None if row is None else _size_of(dict(row))

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
        lock = {"tenant": tenant, **_BUDGET_LOCK}
        with self._database.write() as connection:
            insert_new(connection, table, {**lock, "cost": 0.0, "until_utc": _LONG_AGO})
            the_lock = and_(*(table.c[name] == value for name, value in lock.items()))
            connection.execute(select(table.c.tenant).where(the_lock).with_for_update())
            now = self._now(connection)
            query = select(table).where(table.c.tenant == tenant, table.c.until_utc > now)
            yield OpenBudget(connection, now, [dict(row) for row in connection.execute(query).mappings()])

    def release_budget(self, tenant: str, pipeline: str, kind: str, subject: str) -> None:
        """A reservation holds no longer; one that is not there is no error."""
        key = {"tenant": tenant, "pipeline": pipeline, "kind": kind, "subject": subject}
        with self._database.write() as connection:
            found = and_(*(reservations.c[name] == value for name, value in key.items()))
            connection.execute(update(reservations).where(found).values(until_utc=_LONG_AGO))

    def forget_reservations(self) -> int:
        """Delete what has been released or has run out; returns how many. A row that somebody has locked is left for the next time."""
        table = reservations
        key = list(table.primary_key.columns)
        with self._database.write() as connection:
            over = and_(table.c.until_utc <= self._now(connection), table.c.kind != _BUDGET_LOCK["kind"])
            found = connection.execute(select(*key).where(over).with_for_update(skip_locked=True)).all()
            for row in found:
                mine = (column == value for column, value in zip(key, row, strict=True))
                connection.execute(delete(table).where(*mine))
        return len(found)

    def _ledger(self, connection: Connection, *, wait: bool) -> OpenLedger | None:
        """Lock the row of `CLOCK`, which is made where it is not there. SQLite's writers are alone anyway."""
        locked = _clock().with_for_update(skip_locked=not wait)
        row = connection.execute(locked).mappings().first()
        if row is None:
            moments = {"asked_at_utc": _LONG_AGO, "beat_at_utc": self._now(connection)}
            insert_new(connection, leases, {**CLOCK, **_EMPTY, **moments})
            row = connection.execute(locked).mappings().first()
        return None if row is None else OpenLedger(connection, dict(row), self._now(connection))

    def _now(self, connection: Connection) -> datetime:
        if self._database.is_sqlite:
            return self._clock()
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now


def _size_of(clock: Mapping[str, Any]) -> tuple[datetime, tuple[float, float, float]] | None:
    if not clock["cpus"]:
        return None
    return clock["asked_at_utc"], (clock["gpus"], clock["cpus"], clock["memory_gib"])


def _clock() -> Select[Any]:
    return select(leases).where(_is(leases, tuple(CLOCK.values())))


def _same(one: Table, other: Table) -> ColumnElement[bool]:
    """The condition that rows of two tables are of one run."""
    return and_(*(one.c[name] == other.c[name] for name in _KEY))


def _is(table: Table, key: Sequence[str]) -> ColumnElement[bool]:
    """The condition for one run's row."""
    return and_(*(table.c[name] == value for name, value in zip(CLOCK, key, strict=True)))


def _silent(heard_since_s: float) -> ColumnElement[bool]:
    """Whether a request was not heard of since that moment, nor said that it would not be."""
    request = lease_requests.c
    pause_s = case((request.pause_s.between(0.0, MOST_PAUSE_S), request.pause_s), else_=literal(0.0))
    return request.beat_s + pause_s < heard_since_s


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
