"""Metric series: what was measured of a model, by day. Lines are added; a new measurement supersedes an older one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any, NamedTuple

from sqlalchemy import CTE, Connection, FromClause, Select, insert, literal_column, select, true
from sqlalchemy.exc import IntegrityError

from tasks.metadata.access import StorePart, owned, owner_values, without_owner
from tasks.metadata.fleet import pipelines_of
from tasks.metadata.records import MetricPoint, NewMetric, Owner
from tasks.metadata.tables import metrics

_RACES = 20
"""Each lost race means that another writer kept its points, so that this many in a row is no race."""


class _Key(NamedTuple):
    metric: str
    model_version: int
    day: date
    source: str


class Series(StorePart):
    """Metric values of models by day, from training to production."""

    def record_metrics(self, of: Owner, points: Iterable[NewMetric]) -> int:
        """Keep what was measured; how many lines that added.

        A point that says what the newest measurement of its key says adds none, so a repeat adds nothing. Another
        value becomes the next measurement, and the older one stays readable. Points without a finite value are
        left out: they were not measured.
        """
        finite = [point for point in points if math.isfinite(point.value)]
        if not finite:
            return 0
        for race in range(_RACES):
            try:
                with self._database.write() as connection:
                    return self._add_points(connection, of, finite)
            except IntegrityError:  # PostgreSQL: another writer measured the same and committed first
                if race == _RACES - 1:
                    raise
        raise AssertionError("unreachable")

    def series(
        self,
        of: Owner,
        metric: str,
        *,
        model_version: int | None = None,
        since: date | None = None,
        until: date | None = None,
        source: str | None = None,
        superseded: bool = False,
    ) -> list[MetricPoint]:
        """The points of a metric in day order, both days included.

        Args:
            superseded: Also earlier measurements, oldest first, instead of the newest of each key alone.
        """
        table = metrics
        query = select(table).where(owned(table, of), table.c.metric == metric)
        if model_version is not None:
            query = query.where(table.c.model_version == model_version)
        if since is not None:
            query = query.where(table.c.day >= since)
        if until is not None:
            query = query.where(table.c.day <= until)
        if source is not None:
            query = query.where(table.c.source == source)
        query = query.order_by(table.c.day, table.c.model_version, table.c.source, table.c.measurement)
        with self._database.read() as connection:
            found = [MetricPoint(**without_owner(row)) for row in connection.execute(query).mappings()]
        if superseded:
            return found
        return list({_Key(p.metric, p.model_version, p.day, p.source): p for p in found}.values())

    def metric_names(self, of: Owner) -> list[str]:
        """Every metric that the pipeline has a point of."""
        query = select(metrics.c.metric).where(owned(metrics, of)).distinct()
        with self._database.read() as connection:
            return sorted(connection.execute(query).scalars())

    def latest_metric(
        self, metric: str, tenant: str = "default", *, source: str | None = None
    ) -> dict[str, MetricPoint]:
        """Of each pipeline of the tenant by name: the point of the newest day; a few index seeks a pipeline."""

        def newest(table: FromClause, names: CTE) -> Select[Any]:
            query = select(table).where(
                table.c.tenant == tenant, table.c.pipeline == names.c.pipeline, table.c.metric == metric
            )
            if source is not None:
                query = query.where(table.c.source == source)
            order = ("day", "model_version", "source", "measurement")
            return query.order_by(*(table.c[name].desc() for name in order)).limit(1)

        names = pipelines_of(metrics, tenant)
        if self._database.is_sqlite:  # it has no LATERAL, and every row has a number
            inner: Select[Any] = newest(metrics.alias("newest"), names).with_only_columns(
                literal_column("newest.rowid")
            )
            number = inner.correlate(names).scalar_subquery()
            query = select(metrics).select_from(
                names.join(metrics, literal_column("penstock_metrics.rowid") == number)
            )
        else:
            last = newest(metrics, names).lateral("newest")
            query = select(last).select_from(names.join(last, true()))
        with self._database.read() as connection:
            return {
                row["pipeline"]: MetricPoint(**without_owner(row))
                for row in connection.execute(query).mappings()
            }

    def _add_points(self, connection: Connection, of: Owner, points: Sequence[NewMetric]) -> int:
        known = self._newest_points(connection, of, points)
        now, rows = self._clock(), []
        for point in points:
            key = _Key(point.metric, point.model_version, point.day, point.source)
            said = (point.value, point.low, point.high, point.rows)
            number, before = known.get(key, (0, None))
            if said != before:
                known[key] = (number + 1, said)
                rows.append(
                    {**owner_values(of), **asdict(point), "measurement": number + 1, "measured_at_utc": now}
                )
        if rows:
            connection.execute(insert(metrics), rows)
        return len(rows)

    def _newest_points(
        self, connection: Connection, of: Owner, points: Sequence[NewMetric]
    ) -> dict[_Key, tuple[int, tuple[Any, ...] | None]]:
        """Of each key of the points: number and content of its newest measurement."""
        table, days = metrics, [point.day for point in points]
        query = select(table).where(
            owned(table, of),
            table.c.metric.in_({point.metric for point in points}),
            table.c.model_version.in_({point.model_version for point in points}),
            table.c.day.between(min(days), max(days)),
        )
        found = connection.execute(query.order_by(table.c.measurement))
        return {
            _Key(row.metric, row.model_version, row.day, row.source): (
                row.measurement,
                (row.value, row.low, row.high, row.rows),
            )
            for row in found
        }
