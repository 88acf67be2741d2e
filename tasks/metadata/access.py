"""What the parts of the metadata store share: keyed inserts and reading rows as records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_
from sqlalchemy.dialects import postgresql, sqlite

from tasks.core.clock import Clock, utc_now
from tasks.core.ids import digest_json
from tasks.metadata.column_types import json_ready
from tasks.metadata.database import Database
from tasks.metadata.records import Owner


class StorePart:
    """One part of `MetadataStore`: a database and a clock."""

    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock


def owned(table: Table, of: Owner) -> ColumnElement[bool]:
    """The condition that keeps a query inside one tenant's pipeline."""
    return and_(table.c.tenant == of.tenant, table.c.pipeline == of.name)


def owner_values(of: Owner) -> dict[str, str]:
    """The two columns that every row starts with."""
    return {"tenant": of.tenant, "pipeline": of.name}


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert unless a row with an equal key is there; True when this call wrote the row."""
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert
    key = next(iter(table.primary_key.columns))
    statement = insert(table).values(**values).on_conflict_do_nothing().returning(key)
    return connection.execute(statement).first() is not None


def upsert(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Insert, or replace every given column outside the primary key."""
    upsert_all(connection, table, [values])


def upsert_all(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, keep: Sequence[str] = ()
) -> None:
    """`upsert` of rows with the same columns, by one statement; what `keep` names stays as it is in rows that are there."""
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert
    key = [column.name for column in table.primary_key.columns]
    statement = insert(table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in (*key, *keep)}
    connection.execute(
        statement.on_conflict_do_update(index_elements=key, set_=changed), [dict(row) for row in rows]
    )


def record_digest(parts: Iterable[Any]) -> str:
    """One digest for equal content: what makes a repeated insert the same row."""
    return digest_json(json_ready(list(parts)))


def without_owner(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row's columns as a record's fields: tenant and pipeline are what the caller asked with."""
    return {str(key): value for key, value in row.items() if key not in ("tenant", "pipeline")}
