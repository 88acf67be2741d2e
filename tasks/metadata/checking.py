"""Is a metadata database whole? For after a copy, a restore from a backup, or somebody's hands in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, text

from tasks.core.records import JsonRecord
from tasks.metadata.content import (
    TableContent,
    content_of,
    highest,
    numbered_tables,
    unknown_tables,
)
from tasks.metadata.database import Database
from tasks.metadata.schema import HEAD, revision
from tasks.metadata.tables import HISTORY, metadata

_SHOWN = 5
"""Examples named of each kind of problem."""

_LOG = {
    "the numbers of {} do not run from 1 without a gap": """
        SELECT pipeline, min(event_id), max(event_id), count(*) FROM penstock_deployment_events
        GROUP BY tenant, pipeline HAVING min(event_id) <> 1 OR max(event_id) <> count(*) ORDER BY pipeline""",
    "time runs backwards in the log of {}, at event {}": """
        SELECT pipeline, event_id FROM (
            SELECT pipeline, event_id, at_utc,
                lag(at_utc) OVER (PARTITION BY tenant, pipeline ORDER BY event_id) AS before
            FROM penstock_deployment_events) AS log
        WHERE at_utc < before ORDER BY pipeline, event_id""",
    "{}, event {} says that another version was live before it": """
        SELECT pipeline, event_id FROM (
            SELECT pipeline, event_id, previous_version,
                lag(CASE WHEN moves_pointer THEN version ELSE previous_version END)
                    OVER (PARTITION BY tenant, pipeline ORDER BY event_id) AS was_live
            FROM penstock_deployment_events) AS log
        WHERE coalesce(previous_version, 0) <> coalesce(was_live, 0) ORDER BY pipeline, event_id""",
    "{}, event {} made a version live that is not registered with its bundle": """
        SELECT log.pipeline, log.event_id FROM penstock_deployment_events AS log
        LEFT JOIN penstock_model_versions AS known ON known.tenant = log.tenant AND known.pipeline = log.pipeline
            AND known.version = log.version AND known.bundle_digest = log.bundle_digest
        WHERE log.moves_pointer AND known.version IS NULL ORDER BY log.pipeline, log.event_id""",
    "{}, day {} belongs to a run that was never published": """
        SELECT days.pipeline, days.day FROM penstock_publication_days AS days
        LEFT JOIN penstock_publications AS run ON run.tenant = days.tenant AND run.pipeline = days.pipeline
            AND run.run_id = days.run_id
        WHERE run.run_id IS NULL ORDER BY days.pipeline, days.day""",
}


@dataclass(frozen=True)
class MetadataCheck(JsonRecord):
    """What a database holds and what is wrong with it."""

    database: str
    schema: str | None
    rows: int
    tables: tuple[TableContent, ...]
    problems: tuple[str, ...]
    """Empty: whole."""


def check_metadata(
    url: str, *, against: str | None = None, patience_s: float = 30.0, named: str = "PENSTOCK_METADATA_URL"
) -> MetadataCheck:
    """Look at every row of a metadata database in one transaction; it changes nothing, and migrates nothing.

    Checked are the schema's revision, the triggers that keep history, the deployment log (numbers without gaps, time that
    never runs backwards, each event's previous version, versions that are registered), that published days have a run,
    and the database's own health: SQLite's integrity check, PostgreSQL's counters.

    Args:
        against: URL of another metadata database whose rows must be the same.
        named: Where `url` was given, for errors.

    Raises:
        ConfigError: A URL cannot be used.
        NotFound: An SQLite file is not there.
        ServiceUnavailable: A database does not answer.
    """
    database = Database(url, patience_s=patience_s, named=named)
    database.require()
    with database.read() as connection:
        if not database.is_sqlite:  # every look below sees the same moment, whoever writes meanwhile
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        schema = revision(connection)
        if schema != HEAD:
            problem = f"its schema is {schema or 'not there'}, this release has {HEAD}: open it with this release once"
            return MetadataCheck(database.shown_url, schema, 0, (), (problem,))
        tables = tuple(content_of(connection, table) for table in metadata.sorted_tables)
        problems = [*_structure(connection, database), *_log(connection), *_health(connection, database)]
    if against is not None:
        other = check_metadata(against, patience_s=patience_s, named="--against")
        problems += _differences(tables, other)
    rows = sum(table.rows for table in tables)
    return MetadataCheck(database.shown_url, schema, rows, tables, tuple(problems))


def _structure(connection: Connection, database: Database) -> Iterator[str]:
    for name in unknown_tables(connection):
        yield f"table {name} is not known to this release"
    if database.is_sqlite:
        found = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        suffixes = ("no_update", "no_delete")
    else:
        found = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'"
        suffixes = ("no_change", "no_truncate")
    there = set(connection.execute(text(found)).scalars())
    for table in HISTORY:
        for suffix in suffixes:
            if f"{table}_{suffix}" not in there:
                yield f"{table} is not append-only: its trigger {table}_{suffix} is missing or disabled"


def _log(connection: Connection) -> Iterator[str]:
    for problem, query in _LOG.items():
        found = connection.execute(text(query)).all()
        for row in found[:_SHOWN]:
            yield problem.format(*row)
        if len(found) > _SHOWN:
            yield f"and {len(found) - _SHOWN:,} more of that kind"


def _health(connection: Connection, database: Database) -> Iterator[str]:
    if database.is_sqlite:
        said = connection.execute(text(f"PRAGMA integrity_check({_SHOWN})")).scalars().all()
        if said != ["ok"]:
            yield from (f"SQLite's integrity check: {line}" for line in said)
        return
    for table, column in numbered_tables():
        sequence = connection.execute(
            text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table, "column": column}
        ).scalar()
        if sequence is None:
            yield f"{table}.{column} has lost its counter"
            continue
        number = connection.execute(text(f"SELECT last_value FROM {sequence}")).scalar_one()
        if number < (top := highest(connection, table, column)):
            yield f"the counter of {table}.{column} is at {number}, below its rows: {top}"


def _differences(tables: tuple[TableContent, ...], other: MetadataCheck) -> Iterator[str]:
    yield from (f"{other.database}: {problem}" for problem in other.problems)
    theirs = {table.table: table for table in other.tables}
    for table in tables:
        if (found := theirs.get(table.table)) and found != table:
            yield f"{table.table} differs: {table.rows:,} rows here, {found.rows:,} in {other.database}"
