"""A look at production that cannot change it: which version is live, and its bundle."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import PenstockError, ServiceUnavailable
from tasks.wiring.ci.records import Skip


@dataclass(frozen=True)
class Champion:
    """The live version."""

    version: int
    bundle_digest: str


def live_champion(production: Settings, sandbox: Settings, spec: PipelineSpec) -> Champion | None:
    """The champion by the production metadata store, its bundle copied into the sandbox's cache; None: none is live.

    A SQLite file is copied first, also one of an older schema; a PostgreSQL session is read-only by its own setting.

    Raises:
        Skip: Production cannot be read from here; the text says why.
    """
    from tasks.model import fetch_bundle
    from tasks.registry import champion

    try:
        readable = replace(sandbox, metadata_url=read_only_url(production, sandbox.home / "production.db"))
        live = champion(readable, spec)
        if live is None:
            return None
        fetch_bundle(open_store(production, prefix=spec.prefix), live.bundle_digest, sandbox.cache_dir)
        return Champion(live.version, live.bundle_digest)
    except PenstockError as error:
        raise Skip(f"production cannot be read from here: {error.what}") from error
    except DBAPIError as error:  # a migration, which a session that cannot write refuses
        raise Skip(
            "production cannot be read from here: its metadata store has the schema of another release"
        ) from error


def read_only_url(production: Settings, copy: Path) -> str:
    """The URL of a metadata store that shows production's: SQLite as a copy at `copy`, PostgreSQL without writing.

    Raises:
        Skip: There is none.
        ServiceUnavailable: It cannot be read now.
    """
    url = make_url(production.metadata_url)
    if url.get_backend_name() != "sqlite":
        read_only = url.update_query_dict({"options": "-c default_transaction_read_only=on"})
        return read_only.render_as_string(hide_password=False)
    origin = Path(url.database or "")
    if not origin.is_file():
        raise Skip("there is no metadata store of production here, so nothing is known of a champion")
    try:
        with (
            closing(sqlite3.connect(f"{origin.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        raise ServiceUnavailable(
            f"cannot be read: {error}", which=str(origin), fix="wait until its writer is done, then run again"
        ) from error
    return f"sqlite:///{copy}"
