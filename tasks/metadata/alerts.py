"""Alerts and their messages: what is open, what was sent where, and what still has to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, update

from tasks.metadata.access import StorePart, insert_new, upsert
from tasks.metadata.tables import alert_deliveries, alerts

_KEY = ("tenant", "pipeline", "kind", "incident")
_LEASE = timedelta(minutes=15)
"""A message whose sender has not come back after this is sent again, under the same message id."""


class _TakenByAnother(Exception):
    """Ends the transaction of a claim without its earlier rows."""


class AlertRecords(StorePart):
    """Rows are plain mappings of the tables' columns: `tasks.monitoring` knows what they mean."""

    def keep_alerts(
        self, rows: Iterable[Mapping[str, Any]], planned: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Keep alerts as they are now, and deliveries that are not there yet or must no longer be sent, in one transaction.

        A delivery that another sender has taken meanwhile stays as that sender left it.
        """
        with self._database.write() as connection:
            for row in rows:
                upsert(connection, alerts, row)
            for row in planned:
                if insert_new(connection, alert_deliveries, row) or row["status"] != "dropped":
                    continue
                connection.execute(
                    update(alert_deliveries)
                    .where(*_same(row), alert_deliveries.c.status == "pending")
                    .values(status="dropped")
                )

    def alert_rows(
        self,
        tenant: str,
        *,
        pipeline: str | None = None,
        since: datetime | None = None,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Alerts that are open, or were seen since `since`; newest first."""
        table = alerts
        query = select(table).where(table.c.tenant == tenant)
        if pipeline is not None:
            query = query.where(table.c.pipeline == pipeline)
        if since is not None:
            query = query.where(or_(table.c.status == "open", table.c.observed_at_utc >= since))
        query = query.order_by(table.c.observed_at_utc.desc(), table.c.kind).limit(limit)
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def delivery_rows(
        self, tenant: str, *, pipeline: str | None = None, since: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Deliveries that are not done, or were made due since `since`; oldest first."""
        table = alert_deliveries
        query = select(table).where(table.c.tenant == tenant)
        if pipeline is not None:
            query = query.where(table.c.pipeline == pipeline)
        if since is not None:
            query = query.where(or_(table.c.status.in_(["pending", "sending"]), table.c.due_at_utc >= since))
        query = query.order_by(table.c.due_at_utc, *(table.c[name] for name in _KEY))
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def sent_messages(self, since: datetime) -> dict[str, list[datetime]]:
        """By channel: when each message of all tenants since then was sent; a message about many alerts counts once."""
        table = alert_deliveries
        query = (
            select(table.c.channel, table.c.message_id, func.max(table.c.sent_at_utc))
            .where(table.c.sent_at_utc >= since)
            .group_by(table.c.channel, table.c.message_id)
        )
        found: dict[str, list[datetime]] = {}
        with self._database.read() as connection:
            for channel, _, at in connection.execute(query):
                found.setdefault(channel, []).append(at)
        return found

    def claim_deliveries(self, rows: Iterable[Mapping[str, Any]], message_id: str) -> bool:
        """Take deliveries for sending, all or none; False when somebody else has one of them."""
        now, table = self._clock(), alert_deliveries
        free = or_(
            table.c.status == "pending",
            and_(table.c.status == "sending", table.c.tried_at_utc < now - _LEASE),
        )
        mine = {"status": "sending", "message_id": message_id, "tried_at_utc": now}
        try:
            with self._database.write() as connection:
                for row in rows:
                    claim = update(table).where(*_same(row), free)
                    taken = connection.execute(claim.values(**mine, attempts=table.c.attempts + 1))
                    if taken.rowcount != 1:
                        raise _TakenByAnother
        except _TakenByAnother:
            return False
        return True

    def finish_deliveries(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        problem: str | None = None,
        retry_at: datetime | None = None,
    ) -> None:
        """Say that claimed deliveries were sent; with a problem, that they were not, and when to try again."""
        now, table = self._clock(), alert_deliveries
        changed: dict[str, Any] = {"status": "sent", "sent_at_utc": now, "problem": None}
        if problem is not None:
            changed = {"status": "pending", "problem": problem, "due_at_utc": retry_at or now}
        with self._database.write() as connection:
            for row in rows:
                connection.execute(update(table).where(*_same(row)).values(**changed))

    def open_alert_counts(self, tenant: str, pipeline: str) -> dict[str, int]:
        """How many alerts are open, by severity."""
        table = alerts
        query = (
            select(table.c.severity, func.count())
            .where(table.c.tenant == tenant, table.c.pipeline == pipeline, table.c.status == "open")
            .group_by(table.c.severity)
        )
        with self._database.read() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query)}

    def waiting_deliveries(self, tenant: str, pipeline: str) -> int:
        """How many deliveries are not done."""
        table = alert_deliveries
        query = select(func.count()).where(
            table.c.tenant == tenant,
            table.c.pipeline == pipeline,
            table.c.status.in_(["pending", "sending"]),
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())


def _same(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(alert_deliveries.c[name] == row[name] for name in (*_KEY, "channel", "phase"))
