"""Connections to the metadata database, one a transaction, and the meaning of its errors.

No connection is kept between transactions: a store may be opened in a process that forks (Airflow's executor
does) and be forgotten without closing it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.pool import NullPool

from tasks.core.errors import (
    AccessDenied,
    CommitOutcomeUnknown,
    ConfigError,
    NotFound,
    PenstockError,
    ServiceUnavailable,
)
from tasks.core.postgres import UNPREPARED

_WRITE = "penstock_write"
_SECRET_QUERY = ("password", "sslpassword", "passfile")
_READ_ONLY = "25006"  # a standby, or a server that was made read-only
_NOT_ALLOWED = "42501"
_ENGINES = 16
_ANSWER_FACTOR = 10  # a statement may take so many times the patience for a lock
_KNOWN_REASONS = (
    (
        ("read-only transaction", "readonly database"),
        "point it at the primary server, or make the file and its folder writable; then run again",
    ),
    (
        ("disk is full", "No space left on device", "disk I/O error"),
        "free space on the database's disk; then run again",
    ),
    (
        ("too many clients", "too many connections", "connection slots"),
        "raise max_connections or end clients that are idle; then run again",
    ),
    (
        ("requests for workers",),
        "end runs of the tenant that wait for workers; then run again",
    ),
    (
        ("lock timeout", "database is locked", "statement timeout"),
        "end the program that holds the lock, or wait for it; then run again",
    ),
)
"""What databases say, and what helps."""


class Database:
    """A metadata database by its URL.

    Args:
        url: SQLAlchemy URL: `sqlite:///<absolute path>` or `postgresql://...` (driver psycopg 3).
        patience_s: How long to wait for a lock or a connection before `ServiceUnavailable`; PostgreSQL may take ten
            times as long over a statement.
        named: Where the URL was given, for errors.

    Raises:
        ConfigError: The URL is malformed, or names a database or driver that this installation cannot use.
    """

    def __init__(self, url: str, *, patience_s: float = 30.0, named: str = "PENSTOCK_METADATA_URL") -> None:
        self.url = parsed_url(url, named)
        self.shown_url = without_secrets(self.url)
        self._named = named
        self.patience_s = patience_s
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        try:
            self._engine = self._sqlite() if self.is_sqlite else self._postgres()
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise ConfigError(
                f"needs a database driver that is not installed ({error})",
                which=f"{named} {self.shown_url}",
                fix="use sqlite:///<path> or postgresql://, and install psycopg[binary] for the latter",
            ) from None

    def require(self) -> None:
        """Raises `NotFound` for an SQLite file that is not there, which connecting would create."""
        if self.is_sqlite and not Path(self.url.database or "").is_file():
            raise NotFound(
                "there is no such database",
                which=self.shown_url,
                fix=f"correct {self._named}, or PENSTOCK_HOME for the default",
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent read-only look. Raises `ServiceUnavailable` when the database does not answer."""
        with self._explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction; SQLite's write lock is taken at its start, so a reader never turns writer late.

        Raises:
            ServiceUnavailable: Locked for longer than `patience_s`, or unreachable; nothing was written.
            CommitOutcomeUnknown: The connection broke while the commit was under way.
        """
        with self._explained(), self._engine.connect() as connection:
            connection = connection.execution_options(**{_WRITE: True})
            transaction = connection.begin()
            try:
                yield connection
            except BaseException:
                if not connection.invalidated:
                    transaction.rollback()
                raise
            try:
                transaction.commit()
            except DBAPIError as error:
                if self.is_sqlite or not error.connection_invalidated:
                    raise
                raise CommitOutcomeUnknown(
                    "the database connection broke during a commit",
                    which=self.shown_url,
                    fix="run the same command again: writes here are keyed, so a repeat finds what is there",
                ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PenstockError:
            raise
        except (OperationalError, InterfaceError) as error:
            raise ServiceUnavailable(
                f"the metadata database does not answer: {_reason(error)}",
                which=self.shown_url,
                fix=_fix(error),
            ) from error
        except DatabaseError as error:
            if isinstance(error.orig, sqlite3.DatabaseError) and "not a database" in str(error.orig):
                raise ConfigError(
                    "exists but is not an SQLite database",
                    which=self.shown_url,
                    fix=f"point {self._named} elsewhere, or restore the file from a backup",
                ) from error
            if error.connection_invalidated:
                raise ServiceUnavailable(
                    f"the metadata database went away: {_reason(error)}",
                    which=self.shown_url,
                    fix="run again",
                ) from error
            if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED:
                raise AccessDenied(
                    f"does not allow this to user {self.url.username}: {_reason(error)}",
                    which=self.shown_url,
                    fix="a tenant's login may do what its workers do; use the owner's for everything else, and run the "
                    "SQL of `penstock tenancy render postgres` again after an upgrade",
                ) from error
            if getattr(error.orig, "sqlstate", None) == _READ_ONLY:  # psycopg calls it an internal error
                raise ServiceUnavailable(
                    f"the metadata database refuses: {_reason(error)}",
                    which=self.shown_url,
                    fix=_fix(error),
                ) from error
            raise

    def _sqlite(self) -> Engine:
        if not self.url.database or self.url.database == ":memory:":
            raise ConfigError(
                "an SQLite database in memory cannot be shared between processes",
                which=self._named,
                fix="give a file: sqlite:////absolute/path/metadata.db",
            )
        folder = Path(self.url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceUnavailable(
                f"cannot create the folder of the metadata database: {error.strerror}",
                which=str(folder),
                fix="make it writable, or set PENSTOCK_HOME to a folder that is",
            ) from error
        return _sqlite_engine(self.url, self.patience_s)

    def _postgres(self) -> Engine:
        if self.url.get_backend_name() != "postgresql":
            raise NoSuchModuleError(f"{self.url.get_backend_name()} is not supported")
        return _postgres_engine(self.url, self.patience_s)


# An engine has no connection of its own here. It keeps the compiled SQL, and what it has asked the server about itself: kept for
# the process, a store that is opened anew has both.


@lru_cache(maxsize=_ENGINES)
def _sqlite_engine(url: URL, patience_s: float) -> Engine:
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = (
            None  # sqlite3 would open transactions late and as readers; `begin` says how
        )
        deadline = time.monotonic() + patience_s
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            while True:  # the change needs the file for itself and does not wait for it by itself
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # without it INSERT OR REPLACE deletes a row of history past the trigger that refuses deletes
        connection.execute("PRAGMA recursive_triggers=ON")

    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": patience_s})
    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


@lru_cache(maxsize=_ENGINES)
def _postgres_engine(url: URL, patience_s: float) -> Engine:
    from tasks.metadata.answers import connector

    answer_s = _ANSWER_FACTOR * patience_s
    limits = f"SET LOCAL lock_timeout = {round(patience_s * 1000)}; SET LOCAL statement_timeout = {round(answer_s * 1000)}"

    def begin(connection: Connection) -> None:
        """Readers too: a table that is being altered would hold them for ever."""
        connection.exec_driver_sql(limits)

    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={
            "connect_timeout": max(1, min(10, round(patience_s))),
            "application_name": "penstock",
            "client_encoding": "utf8",
            "keepalives_idle": 30,
            "tcp_user_timeout": 30_000,
            **UNPREPARED,
        },
    )
    event.listen(engine, "begin", begin)
    # PostgreSQL ends a slow statement by itself; the client's own deadline is for a server that is stopped
    event.listen(engine, "do_connect", connector(answer_s + min(5.0, answer_s)))
    return engine


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def parsed_url(url: str, named: str) -> URL:
    """The URL's parts. Raises `ConfigError`, which never shows the text: it may hold a password."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "is not a database URL",
            which=named,
            fix="write it as sqlite:////absolute/path.db or postgresql://user:password@host:5432/name",
        ) from None  # the cause may print the password


def without_secrets(url: URL) -> str:
    """The URL as it may be shown."""
    return url.set(password=None).difference_update_query(_SECRET_QUERY).render_as_string(hide_password=True)


def _fix(error: DBAPIError) -> str:
    said = str(error.orig)
    for marks, fix in _KNOWN_REASONS:
        if any(mark in said for mark in marks):
            return fix
    return "check that it runs, is reachable and not held by another program; then run again"


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
