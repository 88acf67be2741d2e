"""Scoring runs and publications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, or_, select

from tasks.metadata.access import StorePart, insert_new, owned, owner_values, upsert, without_owner
from tasks.metadata.records import Owner, Publication, ScoringRun
from tasks.metadata.tables import publication_days, publications, scoring_runs

STATUSES = ("planned", "scored", "published", "verified")
"""In the order that a run goes through."""


class Runs(StorePart):
    """How far each scoring run got."""

    def record_run(
        self,
        of: Owner,
        run_id: str,
        *,
        status: str,
        snapshot_id: str | None = None,
        model_version: int | None = None,
        bundle_digest: str | None = None,
        feature_version: str | None = None,
        exposed_version: int | None = None,
        first_day: date | None = None,
        last_day: date | None = None,
        rows: int | None = None,
        shards: int | None = None,
        dead_letters: int | None = None,
        cpu_seconds: float | None = None,
        gpu_seconds: float | None = None,
        wall_s: float | None = None,
        dag_run: str | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> ScoringRun:
        """Create or advance a run. What is not given stays; `record` is merged; the status never goes back.

        Raises:
            ValueError: `status` is not one of `STATUSES`.
        """
        if status not in STATUSES:
            raise ValueError(f"{status!r} is not a status of a run: {', '.join(STATUSES)}")
        given = {
            key: value
            for key, value in {
                "snapshot_id": snapshot_id,
                "model_version": model_version,
                "bundle_digest": bundle_digest,
                "feature_version": feature_version,
                "exposed_version": exposed_version,
                "first_day": first_day,
                "last_day": last_day,
                "rows": rows,
                "shards": shards,
                "dead_letters": dead_letters,
                "cpu_seconds": cpu_seconds,
                "gpu_seconds": gpu_seconds,
                "wall_s": wall_s,
                "dag_run": dag_run,
            }.items()
            if value is not None
        }
        now = self._clock()
        table = scoring_runs
        mine = (owned(table, of), table.c.run_id == run_id)
        fresh = {
            **owner_values(of),
            "run_id": run_id,
            "status": status,
            **given,
            "record": dict(record or {}),
        }
        with self._database.write() as connection:
            insert_new(connection, table, {**fresh, "planned_at_utc": now, "updated_at_utc": now})
            found = connection.execute(select(table).where(*mine).with_for_update()).mappings().one()
            changed = {
                **given,
                "status": max(status, found["status"], key=STATUSES.index),
                "record": {**found["record"], **(record or {})},
                "updated_at_utc": now,
            }
            connection.execute(table.update().where(*mine).values(**changed))
            return ScoringRun(**{**without_owner(found), **changed})

    def run(self, of: Owner, run_id: str) -> ScoringRun | None:
        """A scoring run by its id."""
        query = select(scoring_runs).where(owned(scoring_runs, of), scoring_runs.c.run_id == run_id)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return ScoringRun(**without_owner(row)) if row else None

    def runs(self, of: Owner, *, status: str | None = None, limit: int = 100) -> list[ScoringRun]:
        """Scoring runs, newest plan first."""
        query = select(scoring_runs).where(owned(scoring_runs, of))
        if status is not None:
            query = query.where(scoring_runs.c.status == status)
        query = query.order_by(scoring_runs.c.planned_at_utc.desc()).limit(limit)
        with self._database.read() as connection:
            return [ScoringRun(**without_owner(row)) for row in connection.execute(query).mappings()]

    def runs_of(self, of: Owner, version: int) -> list[ScoringRun]:
        """Every scoring run of a model version, oldest plan first; also those in which it was exposed."""
        table = scoring_runs
        query = select(table).where(owned(table, of), _uses(version))
        query = query.order_by(table.c.planned_at_utc)
        with self._database.read() as connection:
            return [ScoringRun(**without_owner(row)) for row in connection.execute(query).mappings()]

    def publications_of(self, of: Owner, version: int) -> list[Publication]:
        """Publications of every run of a model version, or in which it was exposed; oldest first."""
        made = publications.join(
            scoring_runs,
            (publications.c.tenant == scoring_runs.c.tenant)
            & (publications.c.pipeline == scoring_runs.c.pipeline)
            & (publications.c.run_id == scoring_runs.c.run_id),
        )
        query = select(publications).select_from(made)
        query = query.where(owned(publications, of), _uses(version))
        query = query.order_by(publications.c.published_at_utc)
        with self._database.read() as connection:
            return [_publication(row) for row in connection.execute(query).mappings()]

    def record_publication(
        self,
        of: Owner,
        run_id: str,
        *,
        table_version: int,
        rows: int,
        files: int,
        days: Sequence[date],
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        """Keep that a run is visible; False when it is kept already, at this table version or a later one.

        Each of `days` then belongs to the run whose table version is highest, in whatever order calls come.
        """
        values = {
            **owner_values(of),
            "run_id": run_id,
            "table_version": table_version,
            "rows": rows,
            "files": files,
            "days": [day.isoformat() for day in days],
            "record": dict(record or {}),
            "published_at_utc": self._clock(),
        }
        with self._database.write() as connection:
            if not insert_new(connection, publications, values):
                mine = (owned(publications, of), publications.c.run_id == run_id)
                kept = connection.execute(
                    select(publications.c.table_version).where(*mine).with_for_update()
                ).scalar_one()
                if table_version <= kept:
                    return False
                upsert(connection, publications, values)  # brought back after another run had taken its place
            for day in sorted(days):
                self._own_day(connection, of, day, run_id=run_id, table_version=table_version)
            return True

    def publications(self, of: Owner, *, limit: int = 100) -> list[Publication]:
        """Publications, newest first."""
        query = select(publications).where(owned(publications, of))
        query = query.order_by(publications.c.published_at_utc.desc()).limit(limit)
        with self._database.read() as connection:
            return [_publication(row) for row in connection.execute(query).mappings()]

    def published_days(self, of: Owner) -> dict[date, str]:
        """Every published day and the run whose predictions are visible for it."""
        table = publication_days
        query = select(table.c.day, table.c.run_id).where(owned(table, of)).order_by(table.c.day)
        with self._database.read() as connection:
            return {row.day: row.run_id for row in connection.execute(query)}

    def _own_day(self, connection: Any, of: Owner, day: date, *, run_id: str, table_version: int) -> None:
        table = publication_days
        mine = (owned(table, of), table.c.day == day)
        values = {**owner_values(of), "day": day, "run_id": run_id, "table_version": table_version}
        insert_new(connection, table, values)
        found = connection.execute(select(table.c.table_version).where(*mine).with_for_update()).scalar()
        if table_version >= found:
            upsert(connection, table, values)


def _uses(version: int) -> ColumnElement[bool]:
    return or_(scoring_runs.c.model_version == version, scoring_runs.c.exposed_version == version)


def _publication(row: Any) -> Publication:
    return Publication(**{**without_owner(row), "days": tuple(map(date.fromisoformat, row["days"]))})
