"""The deployment log: what was live when, and who moved it. Lines are added, never changed (I6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select
from sqlalchemy.exc import IntegrityError

from tasks.core.errors import CommitOutcomeUnknown, ServiceUnavailable
from tasks.metadata.access import StorePart, insert_new, owned, owner_values, upsert
from tasks.metadata.records import (
    EXPOSURE_KINDS,
    KINDS,
    POINTER_KINDS,
    DeploymentEvent,
    ModelVersion,
    Owner,
    Projection,
)
from tasks.metadata.tables import alias_projections, deployment_events, model_versions


@dataclass(frozen=True)
class NewEvent:
    """An event that is about to be appended; number, moment and previous version come from the log."""

    kind: str
    version: int
    bundle_digest: str
    feature_version: str
    expected_version: int | None
    actor: str
    reason: str
    share: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not a kind of deployment event: {', '.join(KINDS)}")


@dataclass(frozen=True)
class LogHead:
    """The end of a pipeline's deployment log, as seen inside the appending transaction."""

    event_id: int
    """0 when the log is empty."""
    live: DeploymentEvent | None
    """The event that made the live version live."""
    barred: frozenset[int]
    exposed: DeploymentEvent | None = None
    """The `expose` that holds: nothing has ended it since."""


class Deployments(StorePart):
    """Deployment events, registered versions and alias projections."""

    def append_events(
        self, of: Owner, decide: Callable[[LogHead], Sequence[NewEvent]]
    ) -> list[DeploymentEvent]:
        """Compare-and-swap: `decide` sees the head and returns what to append, or raises to append nothing.

        The head cannot have moved when the events land: their numbers follow it and the primary key refuses a
        second event on the same head. When another writer was first, `decide` is asked again with the new head.

        Raises:
            ServiceUnavailable: The database does not answer; nothing was appended.
            CommitOutcomeUnknown: The connection broke during the commit and the log could not be read, or does not
                hold the events (yet). Read `history` before deciding again.
        """
        refused: LogHead | None = None
        while True:
            appended: list[DeploymentEvent] = []
            try:
                with self._database.write() as connection:
                    head = self._head(connection, of)
                    appended = self._append(connection, of, head, decide(head))
            except CommitOutcomeUnknown:
                if not self._landed(of, appended):
                    raise
            except IntegrityError:  # PostgreSQL: another writer took this number and committed first
                if head == refused:  # the log did not move, so it was not a race
                    raise
                refused = head
                continue
            return appended

    def _landed(self, of: Owner, events: Sequence[DeploymentEvent]) -> bool:
        try:
            found = {event.event_id: event for event in self.history(of, limit=len(events) + 100)}
        except ServiceUnavailable:
            return False
        return all(found.get(event.event_id) == event for event in events)

    def head(self, of: Owner) -> LogHead:
        """The end of the log now."""
        with self._database.read() as connection:
            return self._head(connection, of)

    def live(self, of: Owner) -> DeploymentEvent | None:
        """The event that made the champion live; None before the first promotion."""
        with self._database.read() as connection:
            return self._live(connection, of)

    def live_at(self, of: Owner, moment: datetime) -> DeploymentEvent | None:
        """The event whose version was live at `moment` (timezone-aware)."""
        with self._database.read() as connection:
            return self._live(connection, of, until=moment)

    def was_live(self, of: Owner, version: int) -> bool:
        """True when `version` is or has ever been the champion."""
        table = deployment_events
        query = select(table.c.event_id).where(
            owned(table, of), table.c.moves_pointer.is_(True), table.c.version == version
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def history(
        self,
        of: Owner,
        *,
        kinds: Collection[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[DeploymentEvent]:
        """Events from `since` to before `until`, newest first; with `before`, those with a smaller id."""
        table = deployment_events
        query = select(table).where(owned(table, of))
        if kinds is not None:
            query = query.where(table.c.kind.in_(list(kinds)))
        if since is not None:
            query = query.where(table.c.at_utc >= since)
        if until is not None:
            query = query.where(table.c.at_utc < until)
        if since is not None or until is not None:
            # the order is that of event_id, as time never runs backwards; said so, SQLite seeks to the bounds as well
            query = query.order_by(table.c.at_utc.desc())
        if before is not None:
            query = query.where(table.c.event_id < before)
        query = query.order_by(table.c.event_id.desc())
        if limit is not None:
            query = query.limit(limit)
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    def record_model_version(self, of: Owner, version: ModelVersion) -> ModelVersion:
        """Keep a registered version; when its bundle was registered before, that version is returned instead."""
        values = {item.name: getattr(version, item.name) for item in fields(version)}
        with self._database.write() as connection:
            insert_new(connection, model_versions, {**owner_values(of), **values})
            kept = self._model_version(
                connection, of, model_versions.c.bundle_digest == version.bundle_digest
            )
        if kept is None:
            raise ValueError(f"version {version.version} of {of.name} is taken by another bundle")
        return kept

    def model_version(self, of: Owner, version: int) -> ModelVersion | None:
        """A registered version by its number."""
        with self._database.read() as connection:
            return self._model_version(connection, of, model_versions.c.version == version)

    def model_version_of_bundle(self, of: Owner, bundle_digest: str) -> ModelVersion | None:
        """A registered version by its bundle."""
        with self._database.read() as connection:
            return self._model_version(connection, of, model_versions.c.bundle_digest == bundle_digest)

    def model_versions(self, of: Owner, *, limit: int | None = None) -> list[ModelVersion]:
        """Registered versions, newest first."""
        query = select(model_versions).where(owned(model_versions, of))
        query = query.order_by(model_versions.c.version.desc()).limit(limit)
        with self._database.read() as connection:
            return [_model_version(row) for row in connection.execute(query)]

    def record_projection(self, of: Owner, alias: str, version: int | None, *, event_id: int) -> None:
        """Remember that this alias was set (or removed: None) for the log as of `event_id`."""
        with self._database.write() as connection:
            upsert(
                connection,
                alias_projections,
                {
                    **owner_values(of),
                    "alias": alias,
                    "version": version,
                    "event_id": event_id,
                    "set_at_utc": self._clock(),
                },
            )

    def projection(self, of: Owner, alias: str) -> Projection | None:
        """The last alias that Penstock set; None when it never did."""
        table = alias_projections
        with self._database.read() as connection:
            row = connection.execute(select(table).where(owned(table, of), table.c.alias == alias)).first()
        return Projection(row.alias, row.version, row.event_id, row.set_at_utc) if row else None

    def _head(self, connection: Connection, of: Owner) -> LogHead:
        table = deployment_events
        newest = connection.execute(select(func.max(table.c.event_id)).where(owned(table, of))).scalar()
        marks = connection.execute(
            select(table.c.version, table.c.kind)
            .where(owned(table, of), table.c.kind.in_(["bar", "unbar"]))
            .order_by(table.c.event_id)
        )
        last_mark = {row.version: row.kind for row in marks}
        barred = frozenset(version for version, kind in last_mark.items() if kind == "bar")
        return LogHead(newest or 0, self._live(connection, of), barred, self._exposed(connection, of))

    def _exposed(self, connection: Connection, of: Owner) -> DeploymentEvent | None:
        table = deployment_events
        query = select(table).where(
            owned(table, of), or_(table.c.moves_pointer.is_(True), table.c.kind.in_(EXPOSURE_KINDS))
        )
        row = connection.execute(query.order_by(table.c.event_id.desc()).limit(1)).first()
        return _event(row) if row and row.kind == "expose" else None

    def _live(
        self, connection: Connection, of: Owner, *, until: datetime | None = None
    ) -> DeploymentEvent | None:
        table = deployment_events
        query = select(table).where(owned(table, of), table.c.moves_pointer.is_(True))
        if until is not None:
            query = query.where(table.c.at_utc <= until).order_by(table.c.at_utc.desc())
        row = connection.execute(query.order_by(table.c.event_id.desc()).limit(1)).first()
        return _event(row) if row else None

    def _append(
        self, connection: Connection, of: Owner, head: LogHead, events: Sequence[NewEvent]
    ) -> list[DeploymentEvent]:
        if not events:
            return []
        table = deployment_events
        last = connection.execute(
            select(table.c.at_utc).where(owned(table, of), table.c.event_id == head.event_id)
        ).scalar()
        moment = max(self._clock(), last) if last else self._clock()
        live = head.live.version if head.live else None
        appended = []
        for number, new in enumerate(events, start=head.event_id + 1):
            event = DeploymentEvent(event_id=number, previous_version=live, at_utc=moment, **_fields_of(new))
            moves = new.kind in POINTER_KINDS
            connection.execute(
                insert(table).values(**owner_values(of), moves_pointer=moves, **_fields_of(event))
            )
            live = new.version if moves else live
            appended.append(event)
        return appended

    def _model_version(self, connection: Connection, of: Owner, condition: Any) -> ModelVersion | None:
        row = connection.execute(select(model_versions).where(owned(model_versions, of), condition)).first()
        return _model_version(row) if row else None


def _fields_of(record: NewEvent | DeploymentEvent) -> dict[str, Any]:
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _event(row: Row[Any]) -> DeploymentEvent:
    return DeploymentEvent(**{item.name: getattr(row, item.name) for item in fields(DeploymentEvent)})


def _model_version(row: Row[Any]) -> ModelVersion:
    return ModelVersion(**{item.name: getattr(row, item.name) for item in fields(ModelVersion)})
