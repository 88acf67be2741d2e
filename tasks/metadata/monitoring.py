"""Signals and decisions of the monitor, and what happened to explanation data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import select

from tasks.metadata.access import (
    StorePart,
    insert_new,
    owned,
    owner_values,
    record_digest,
    upsert,
    without_owner,
)
from tasks.metadata.records import AuditAction, Owner, StoredDecision, StoredSignals
from tasks.metadata.tables import audit_actions, day_signals, decisions


class Monitoring(StorePart):
    """What was measured and what was done about it."""

    def record_signals(
        self, of: Owner, *, day: date, run_id: str, model_version: int, signals: Mapping[str, Any]
    ) -> None:
        """Keep a day's signals; a later measurement of the same day and run replaces the earlier."""
        values = {
            **owner_values(of),
            "day": day,
            "run_id": run_id,
            "model_version": model_version,
            "signals": dict(signals),
            "measured_at_utc": self._clock(),
        }
        with self._database.write() as connection:
            upsert(connection, day_signals, values)

    def signals(
        self,
        of: Owner,
        *,
        first_day: date | None = None,
        last_day: date | None = None,
        run_id: str | None = None,
    ) -> list[StoredSignals]:
        """Signals in day order; days with several runs appear once a run, latest measured last."""
        table = day_signals
        query = select(table).where(owned(table, of)).order_by(table.c.day, table.c.measured_at_utc)
        if first_day is not None:
            query = query.where(table.c.day >= first_day)
        if last_day is not None:
            query = query.where(table.c.day <= last_day)
        if run_id is not None:
            query = query.where(table.c.run_id == run_id)
        with self._database.read() as connection:
            return [StoredSignals(**without_owner(row)) for row in connection.execute(query).mappings()]

    def record_decision(
        self,
        of: Owner,
        *,
        action: str,
        verdict: str,
        reasons: Sequence[str],
        first_day: date | None = None,
        last_day: date | None = None,
        model_version: int | None = None,
        actor: str = "monitor",
        dag_run: str | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        """Keep a decision; False when the same decision of the same DAG run is there already."""
        content = {
            "action": action,
            "verdict": verdict,
            "first_day": first_day,
            "last_day": last_day,
            "model_version": model_version,
            "reasons": list(reasons),
            "actor": actor,
            "dag_run": dag_run,
            "record": dict(record or {}),
        }
        values = {
            **owner_values(of),
            **content,
            "record_digest": record_digest([content]),
            "decided_at_utc": self._clock(),
        }
        with self._database.write() as connection:
            return insert_new(connection, decisions, values)

    def decisions(
        self, of: Owner, *, since: datetime | None = None, limit: int = 100
    ) -> list[StoredDecision]:
        """Decisions, newest first."""
        table = decisions
        query = select(table).where(owned(table, of))
        if since is not None:
            query = query.where(table.c.decided_at_utc >= since)
        query = query.order_by(table.c.decided_at_utc.desc(), table.c.id.desc()).limit(limit)
        found = []
        with self._database.read() as connection:
            for row in connection.execute(query).mappings():
                fields = without_owner(row)
                del fields["record_digest"]
                identifier = fields.pop("id")
                fields["reasons"] = tuple(fields["reasons"])
                found.append(StoredDecision(decision_id=identifier, **fields))
        return found

    def record_audit_action(
        self,
        of: Owner,
        *,
        kind: str,
        day: date,
        rows: int,
        key: str,
        actor: str = "retention",
        reason: str = "",
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        """Keep that a day's explanation data was archived, expired, restored or erased; False when kept already."""
        content = {
            "kind": kind,
            "day": day,
            "rows": rows,
            "key": key,
            "actor": actor,
            "reason": reason,
            "record": dict(record or {}),
        }
        values = {
            **owner_values(of),
            **content,
            "record_digest": record_digest([content]),
            "at_utc": self._clock(),
        }
        with self._database.write() as connection:
            return insert_new(connection, audit_actions, values)

    def audit_actions(self, of: Owner, *, day: date | None = None, limit: int = 1000) -> list[AuditAction]:
        """Actions on explanation data, newest first."""
        table = audit_actions
        query = select(table).where(owned(table, of))
        if day is not None:
            query = query.where(table.c.day == day)
        query = query.order_by(table.c.at_utc.desc(), table.c.id.desc()).limit(limit)
        found = []
        with self._database.read() as connection:
            for row in connection.execute(query).mappings():
                fields = without_owner(row)
                del fields["record_digest"], fields["id"]
                found.append(AuditAction(**fields))
        return found
