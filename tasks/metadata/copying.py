"""Moving an installation's metadata to another database: all rows in one transaction, compared before it commits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, Table, insert, text
from sqlalchemy.exc import DataError as ValueRefused
from sqlalchemy.exc import IntegrityError

from tasks.core.errors import (
    CommitOutcomeUnknown,
    ConfigError,
    DataError,
    DigestMismatch,
    ServiceUnavailable,
)
from tasks.core.records import JsonRecord
from tasks.metadata.content import (
    ContentDigest,
    TableContent,
    content_of,
    counts,
    highest,
    in_batches,
    numbered_tables,
    unknown_tables,
    verbatim,
)
from tasks.metadata.database import Database, parsed_url, without_secrets
from tasks.metadata.schema import ensure_current
from tasks.metadata.tables import metadata

_COPYING = 0x70656E74  # any fixed number: PostgreSQL's advisory lock of "a copy reads or fills this database"
_TARGET = "--to"
_CLAIM_S = 5.0
"""So long a server may take to notice that the process of an earlier copy is gone."""


@dataclass(frozen=True)
class MetadataCopy(JsonRecord):
    """What was copied; URLs without their passwords."""

    source: str
    target: str
    copied: bool
    """False: a dry run, which only counted."""
    rows: int
    tables: tuple[TableContent, ...]
    """Of a dry run without digests."""


def copy_metadata(source_url: str, target_url: str, *, patience_s: float = 30.0) -> MetadataCopy:
    """Copy every row of one metadata database into another, empty one.

    Nobody can write to the source meanwhile; readers go on. The target is migrated first. The rows, their comparison with
    what was read, and PostgreSQL's counters are one transaction: a copy that dies leaves no row.

    Raises:
        ConfigError: The target is the source or holds rows, or the source holds tables that this release does not know.
        NotFound: The source is an SQLite file that is not there.
        DataError: The target cannot hold a row of the source.
        DigestMismatch: The target gave back other rows than the source holds; nothing was kept.
        ServiceUnavailable: A database does not answer or is locked; nothing was kept.
        CommitOutcomeUnknown: The target broke during the commit; it holds all rows or none.
    """
    source = Database(source_url, patience_s=patience_s)
    _refuse_one_file(source.url, parsed_url(target_url, _TARGET))
    target = Database(target_url, patience_s=patience_s, named=_TARGET)
    source.require()
    ensure_current(source)
    with source.write() as reading:
        _claim(reading, source)
        _lock_tables(reading, source, mode="SHARE")
        refuse_unknown_tables(reading, source)
        with target.read() as there:  # before it is migrated: what holds rows is left as it is
            _claim(there, target)
            _refuse_rows(there, target)
        ensure_current(target)
        try:
            with target.write() as writing:
                _claim(writing, target)
                _lock_tables(writing, target, mode="SHARE ROW EXCLUSIVE")
                _refuse_rows(writing, target)
                tables = tuple(
                    copied_table(reading, writing, table, which=target.shown_url)
                    for table in metadata.sorted_tables
                )
                _number_on(writing, target)
        except CommitOutcomeUnknown as error:
            raise CommitOutcomeUnknown(
                error.what,
                which=target.shown_url,
                fix="the target holds all rows or none: copy again, and it is refused when they are there; "
                "then `penstock metadata check --against` compares the two",
            ) from error
    total = sum(table.rows for table in tables)
    return MetadataCopy(source.shown_url, target.shown_url, True, total, tables)


def plan_copy(source_url: str, target_url: str, *, patience_s: float = 30.0) -> MetadataCopy:
    """What `copy_metadata` would copy now; creates, migrates and locks nothing in the target.

    Raises:
        ConfigError, NotFound: As `copy_metadata`.
        ServiceUnavailable: A database does not answer.
    """
    source, url = Database(source_url, patience_s=patience_s), parsed_url(target_url, _TARGET)
    _refuse_one_file(source.url, url)
    source.require()
    ensure_current(source)
    with source.read() as reading:
        refuse_unknown_tables(reading, source)
        found = counts(reading)
    if url.get_backend_name() != "sqlite" or Path(url.database or "").is_file():
        target = Database(target_url, patience_s=patience_s, named=_TARGET)
        with target.read() as there:
            _refuse_rows(there, target)
    tables = tuple(TableContent(name, rows, "") for name, rows in found.items())
    return MetadataCopy(source.shown_url, without_secrets(url), False, sum(found.values()), tables)


def copied_table(reading: Connection, writing: Connection, table: Table, *, which: str) -> TableContent:
    """Copy one table and read it back. Raises `DataError` or `DigestMismatch`."""
    read, into = ContentDigest(), insert(verbatim(table))
    try:
        for rows in in_batches(reading, table):
            read.add(rows)
            writing.execute(into, [dict(row._mapping) for row in rows])
    except (ValueRefused, IntegrityError, ValueError) as error:
        raise DataError(
            f"cannot hold a row of {table.name}: {_first_line(error)}",
            which=which,
            fix="nothing was copied; correct that row in the source, then copy again",
        ) from error
    sent, kept = read.of(table.name), content_of(writing, table)
    if sent != kept:
        raise DigestMismatch(
            f"gave back {kept.rows:,} rows of {table.name} with digest {kept.digest[:16]}, and {sent.rows:,} with "
            f"{sent.digest[:16]} were sent",
            which=which,
            fix="nothing was copied; a value means something else there (a number that is not finite, a trigger): "
            "compare the table in both",
        )
    return kept


def _number_on(connection: Connection, database: Database) -> None:
    """Rows that PostgreSQL numbers by itself go on after the copied ones; SQLite looks at the rows."""
    if database.is_sqlite:
        return
    for table, column in numbered_tables():
        if last := highest(connection, table, column):
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"),
                {"table": table, "column": column, "last": last},
            )


def _lock_tables(connection: Connection, database: Database, *, mode: str) -> None:
    """Keep writers out until the transaction ends; on SQLite it has the write lock already."""
    if not database.is_sqlite:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"LOCK TABLE {names} IN {mode} MODE"))


def _claim(connection: Connection, database: Database) -> None:
    """One copy a database at a time; also how a database that is its own target shows itself under another URL."""
    if database.is_sqlite:
        return
    asked = text("SELECT pg_try_advisory_xact_lock(:lock)")
    deadline = time.monotonic() + min(_CLAIM_S, database.patience_s)
    while not connection.execute(asked, {"lock": _COPYING}).scalar():
        if time.monotonic() > deadline:
            raise ServiceUnavailable(
                "a copy already reads or fills it, or it is the database that is copied from",
                which=database.shown_url,
                fix="wait for the other copy, or name another database",
            )
        time.sleep(0.05)


def _refuse_one_file(source: URL, target: URL) -> None:
    same = source.set(password=None) == target.set(password=None)
    if source.get_backend_name() == target.get_backend_name() == "sqlite":
        same = Path(source.database or "").resolve() == Path(target.database or "").resolve()
    if same:
        raise ConfigError(
            "is the database that is copied from", which=without_secrets(target), fix="name another database"
        )


def refuse_unknown_tables(connection: Connection, database: Database) -> None:
    if unknown := unknown_tables(connection):
        raise ConfigError(
            f"holds tables that this release does not know: {', '.join(unknown)}",
            which=database.shown_url,
            fix="copy with the release that made them, or rename or drop them",
        )


def _refuse_rows(connection: Connection, database: Database) -> None:
    held = {name: rows for name, rows in counts(connection).items() if rows}
    if held:
        listed = ", ".join(f"{name} {rows:,}" for name, rows in held.items())
        raise ConfigError(
            f"holds rows already: {listed}",
            which=database.shown_url,
            fix="name an empty database; rows are never mixed or replaced",
        )


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
