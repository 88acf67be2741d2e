"""What a metadata database holds, in a form that two databases can be compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Row, Table, Text, func, inspect, select, text

from tasks.core.records import JsonRecord
from tasks.metadata.column_types import JsonText
from tasks.metadata.schema import VERSION_TABLE
from tasks.metadata.tables import metadata

BATCH = 2_000
"""Rows that are held in memory at once."""
_MODULUS = 2**256


@dataclass(frozen=True)
class TableContent(JsonRecord):
    """How many rows a table has, and one digest for all of them."""

    table: str
    rows: int
    digest: str
    """Sum over the rows of the SHA-256 of each, modulo 2**256, in hex: the same in any order and on either database."""


class ContentDigest:
    """Counts rows and sums up their digests as they pass by."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, rows: Sequence[Row[Any]]) -> None:
        for row in rows:
            line = json.dumps([_plain(value) for value in row], ensure_ascii=True, separators=(",", ":"))
            self._sum = (self._sum + int.from_bytes(hashlib.sha256(line.encode()).digest())) % _MODULUS
        self.rows += len(rows)

    def of(self, table: str) -> TableContent:
        return TableContent(table, self.rows, f"{self._sum:064x}")


def verbatim(table: Table) -> Table:
    """The same table with JSON columns as the text that they are: copied to the letter, not read and written anew."""
    columns = [
        Column(column.name, Text() if isinstance(column.type, JsonText) else column.type)
        for column in table.columns
    ]
    return Table(table.name, MetaData(), *columns)


def in_batches(connection: Connection, table: Table) -> Iterator[Sequence[Row[Any]]]:
    """All rows in the database's own order, `BATCH` at a time; PostgreSQL keeps the rest on the server."""
    query = select(verbatim(table)).execution_options(
        yield_per=BATCH
    )  # a connection's options would stay with it
    yield from connection.execute(query).partitions()


def content_of(connection: Connection, table: Table) -> TableContent:
    """Count and digest of one table; reads it whole."""
    found = ContentDigest()
    for rows in in_batches(connection, table):
        found.add(rows)
    return found.of(table.name)


def counts(connection: Connection) -> dict[str, int]:
    """Rows of each table of Penstock's that is there, whatever its schema's revision; the version table is left out."""
    names = [name for name in inspect(connection).get_table_names() if name.startswith("penstock_")]
    return {
        name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
        for name in sorted(names)
        if name != VERSION_TABLE
    }


def unknown_tables(connection: Connection) -> list[str]:
    """Tables with Penstock's prefix that this release does not know."""
    return sorted(set(counts(connection)) - set(metadata.tables))


def numbered_tables() -> list[tuple[str, str]]:
    """(table, column) of every key that PostgreSQL numbers by a sequence."""
    return [
        (table.name, table.autoincrement_column.name)
        for table in metadata.sorted_tables
        if table.autoincrement_column is not None
    ]


def highest(connection: Connection, table: str, column: str) -> int:
    """The largest number given so far; 0 in an empty table."""
    found: int | None = connection.execute(select(func.max(metadata.tables[table].c[column]))).scalar()
    return found or 0


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    return value + 0.0 if isinstance(value, float) else value  # SQLite has no minus zero
