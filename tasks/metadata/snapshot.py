"""A metadata database as one SQLite file: what a backup keeps of it, whichever database it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import text

from tasks.core.errors import ConfigError, DigestMismatch, ServiceUnavailable
from tasks.metadata.copying import copied_table, refuse_unknown_tables
from tasks.metadata.database import Database
from tasks.metadata.schema import HEAD, ensure_current, revision
from tasks.metadata.tables import metadata


def snapshot_metadata(url: str, path: Path, *, patience_s: float = 30.0) -> str | None:
    """Write all rows of a metadata database, as they are at one moment, into the new SQLite file `path`.

    Nobody waits for it: writers go on, and what they commit meanwhile is not in the file. An SQLite database is copied
    page by page by SQLite's online backup, whatever its schema; of PostgreSQL the rows are read in one repeatable-read
    transaction and compared with what the file holds.

    Returns:
        The schema's revision.

    Raises:
        ConfigError: PostgreSQL holds a schema of another release, or tables that this one does not know.
        NotFound: The SQLite file is not there.
        DigestMismatch: The file is not what was read.
        ServiceUnavailable: The database does not answer.
    """
    source = Database(url, patience_s=patience_s)
    source.require()
    if source.is_sqlite:
        with source.read() as connection:  # named and explained when it is no database
            found = revision(connection)
        _copy_pages(Path(source.url.database or ""), path, which=source.shown_url, patience_s=patience_s)
        return found
    with source.read() as reading:
        reading.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        found = revision(reading)
        if found != HEAD:
            raise ConfigError(
                f"has schema {found or 'none'}, and this release reads {HEAD}",
                which=source.shown_url,
                fix="back it up with the release that made it, or by pg_dump; then let this release migrate it",
            )
        refuse_unknown_tables(reading, source)
        kept = Database(f"sqlite:///{path}")
        ensure_current(kept)
        with kept.write() as writing:
            for table in metadata.sorted_tables:
                copied_table(reading, writing, table, which=str(path))
    _into_one_file(path)
    return found


def _copy_pages(source: Path, target: Path, *, which: str, patience_s: float) -> None:
    try:
        with (
            closing(sqlite3.connect(source, timeout=patience_s)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing)  # all pages in one step: a writer cannot make it begin again
            said = writing.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise ServiceUnavailable(
            f"the metadata database cannot be copied to {target.parent}: {error}",
            which=which,
            fix="free space there, or wait for the program that holds the database; then run again",
        ) from error
    if said != "ok":
        raise DigestMismatch(
            f"the copy fails SQLite's integrity check: {said}",
            which=which,
            fix="`penstock metadata check` says what is damaged; restore the database from an older backup",
        )
    _into_one_file(target)


def _into_one_file(path: Path) -> None:
    """End the write-ahead log, so that the file alone is the database."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
