"""Bringing a database to the current schema, safely when many processes open it at once.

The usual case costs one query: the version row is read, and Alembic is imported only when it is not `HEAD`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from tasks.core.errors import ConfigError
from tasks.metadata.database import Database

HEAD = "0010"
"""Revision of the newest file in `migrations/versions`."""
MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "penstock_schema_version"
_LOCK = 0x70656E73  # any fixed number: PostgreSQL's advisory lock for "a Penstock schema change"
_log = logging.getLogger(__name__)


def ensure_current(database: Database) -> None:
    """Create or migrate the schema unless it is current.

    Raises:
        ConfigError: The database was migrated by a newer release than this one, or is empty and cannot hold all text.
        ServiceUnavailable: The database does not answer.
    """
    with database.read() as connection:
        if revision(connection) == HEAD:
            return
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found = revision(connection)
        if found is None and not database.is_sqlite:
            _require_utf8(connection, database)
        if found != HEAD:  # another process may have been first
            _migrate(connection, found, shown_url=database.shown_url)


def revision(connection: Connection) -> str | None:
    """The schema that a database has; None for one that Penstock never opened."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return found


def _require_utf8(connection: Connection, database: Database) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise ConfigError(
            f"has the encoding {encoding}; names and reasons are any Unicode text",
            which=database.shown_url,
            fix=f"make it anew: CREATE DATABASE {database.url.database} TEMPLATE template0 ENCODING 'UTF8' "
            "(LOCALE 'C.UTF-8' where the server's own does not go with it)",
        )


def _migrate(connection: Connection, found: str | None, *, shown_url: str) -> None:
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise ConfigError(
            f"has schema {found}, which this release (schema {HEAD}) does not know",
            which=shown_url,
            fix="run the newer release of Penstock that migrated it",
        )
    _log.info("metadata store %s: schema %s -> %s", shown_url, found or "(empty)", HEAD)

    from alembic.config import Config

    with EnvironmentContext(
        Config(), scripts, fn=lambda rev, _: scripts._upgrade_revs("head", rev)
    ) as context:
        context.configure(connection=connection, version_table=VERSION_TABLE, transactional_ddl=True)
        context.run_migrations()
