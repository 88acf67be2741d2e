"""Questions about all pipelines of a tenant at once: one statement each, and never a look at the whole log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, FromClause, Select, Table, and_, func, select, true

from tasks.metadata.access import StorePart, without_owner
from tasks.metadata.records import DeploymentEvent, ScoringRun, Training
from tasks.metadata.tables import (
    CLOCK,
    allocations,
    deployment_events,
    lease_requests,
    scoring_runs,
    stored,
    trainings,
)

_AT_ONCE = 500
"""Ids in one statement."""


class Fleet(StorePart):
    """What is live everywhere, and what happened everywhere."""

    def live_everywhere(
        self, tenant: str = "default", *, at: datetime | None = None
    ) -> dict[str, DeploymentEvent]:
        """Of each pipeline by name: the event that made its champion live, now or as of `at` (timezone-aware).

        A pipeline without a champion at that moment is left out. Costs a few index seeks a pipeline, however long
        the logs are: a GROUP BY would read them all.
        """

        def newest(log: FromClause, names: CTE) -> Select[Any]:
            query = select(log).where(
                log.c.tenant == tenant, log.c.pipeline == names.c.pipeline, log.c.moves_pointer.is_(True)
            )
            if at is not None:
                query = query.where(log.c.at_utc <= at).order_by(log.c.at_utc.desc())
            return query.order_by(log.c.event_id.desc()).limit(1)

        names, log = pipelines_of(deployment_events, tenant), deployment_events
        if self._database.is_sqlite:  # it has no LATERAL
            inner = log.alias("newest")
            number = newest(inner, names).with_only_columns(inner.c.event_id).correlate(names)
            mine = and_(log.c.tenant == tenant, log.c.pipeline == names.c.pipeline)
            query = select(log).select_from(
                names.join(log, and_(mine, log.c.event_id == number.scalar_subquery()))
            )
        else:  # a join by number is a hash join to PostgreSQL, and reads the whole log
            last = newest(log, names).lateral("newest")
            query = select(last).select_from(names.join(last, true()))
        with self._database.read() as connection:
            return {row.pipeline: _event(row) for row in connection.execute(query)}

    def runs_everywhere(
        self, tenant: str, *, since: datetime, until: datetime
    ) -> list[tuple[str, ScoringRun]]:
        """(pipeline, run) of every scoring run of a tenant planned from `since` to before `until`, oldest first."""
        table = scoring_runs
        query = select(table).where(
            table.c.tenant == tenant, table.c.planned_at_utc >= since, table.c.planned_at_utc < until
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.c.planned_at_utc, table.c.run_id)).mappings()
            return [(row["pipeline"], ScoringRun(**without_owner(row))) for row in rows]

    def versions_of_runs(self, tenant: str, run_ids: Sequence[str]) -> dict[tuple[str, str], int]:
        """(pipeline, run) -> model version of those runs that have one."""
        table = scoring_runs
        found: dict[tuple[str, str], int] = {}
        wanted = sorted(set(run_ids))
        with self._database.read() as connection:
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                query = select(table.c.pipeline, table.c.run_id, table.c.model_version).where(
                    table.c.tenant == tenant, table.c.run_id.in_(some), table.c.model_version.is_not(None)
                )
                found |= {(row.pipeline, row.run_id): row.model_version for row in connection.execute(query)}
        return found

    def trainings_everywhere(
        self, tenant: str, *, since: datetime, until: datetime
    ) -> list[tuple[str, Training]]:
        """(pipeline, training) of every training of a tenant that ended from `since` to before `until`, oldest first."""
        table = trainings
        query = select(table).where(
            table.c.tenant == tenant, table.c.recorded_at_utc >= since, table.c.recorded_at_utc < until
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.c.recorded_at_utc, table.c.training_id)).mappings()
            return [(row["pipeline"], Training(**without_owner(row))) for row in rows]

    def tenants(self) -> list[str]:
        """Every tenant that has planned a run, trained a model, had workers, or holds something in the store."""
        with self._database.read() as connection:
            names = {
                name
                for table in (scoring_runs, trainings, allocations, lease_requests, stored)
                for (name,) in connection.execute(select(table.c.tenant).distinct())
            }
        return sorted(names - {CLOCK["tenant"]})

    def events_everywhere(
        self, tenant: str = "default", *, since: datetime, until: datetime | None = None, limit: int = 1000
    ) -> list[tuple[str, DeploymentEvent]]:
        """(pipeline, event) of every event from `since` to before `until` (timezone-aware), newest first."""
        log = deployment_events
        query = select(log).where(log.c.at_utc >= since, log.c.tenant == tenant)
        if until is not None:
            query = query.where(log.c.at_utc < until)
        query = query.order_by(log.c.at_utc.desc(), log.c.pipeline, log.c.event_id.desc()).limit(limit)
        with self._database.read() as connection:
            return [(row.pipeline, _event(row)) for row in connection.execute(query)]


def pipelines_of(table: Table, tenant: str) -> CTE:
    """The tenant's pipelines in a table that has an index on tenant and pipeline: one seek each.

    Neither database skips from value to value in an index by itself: DISTINCT reads every entry. The last row is
    NULL: there is no further pipeline.
    """

    def first(*conditions: Any) -> Select[Any]:
        return select(func.min(table.c.pipeline).label("pipeline")).where(
            table.c.tenant == tenant, *conditions
        )

    names = first().cte("pipelines", recursive=True)
    following = first(table.c.pipeline > names.c.pipeline).correlate(names).scalar_subquery()
    return names.union_all(select(following).where(names.c.pipeline.is_not(None)))


def _event(row: Any) -> DeploymentEvent:
    return DeploymentEvent(**{item.name: getattr(row, item.name) for item in fields(DeploymentEvent)})
