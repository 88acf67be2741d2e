"""A PostgreSQL for the session, and settings for either database; a conftest imports them by name.

A metadata store of the current schema that holds nothing is a copy of one that was migrated once: to migrate takes a tenth of a second
or three, and hundreds of tests begin with it.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import services
from toy_installation import TOY_PROJECT

from tasks.core import Settings
from tasks.metadata import MetadataStore


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server that lives as long as the session."""
    if services.postgres_binaries() is None:
        pytest.skip(services.NO_POSTGRES)
    url, process = services.start_postgres(tmp_path_factory.mktemp("postgres"))
    yield url
    services.stop(process)


def on_database(request: pytest.FixtureRequest, settings: Settings, *, opened: bool = True) -> Settings:
    """`settings` with a metadata store that holds nothing, on the database that the fixture's parameter names.

    Args:
        opened: It has the current schema; otherwise nobody has opened it yet.
    """
    if request.param == "sqlite":
        return on_sqlite(settings) if opened else settings
    server: str = request.getfixturevalue("postgres_url")
    return on_postgres(settings, server, opened=opened)


def on_sqlite(settings: Settings) -> Settings:
    """`settings`, whose SQLite file has the current schema and no row now."""
    put_sqlite_file(settings, _empty_sqlite_file())
    return settings


def sqlite_file_after(fill: Callable[[Settings], object]) -> bytes:
    """The file of a fresh installation's metadata store once `fill` has been at it, for tests that begin with a copy."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.at_home(Path(home), project=TOY_PROJECT)
        fill(settings)
        return _sqlite_path(settings).read_bytes()


def put_sqlite_file(settings: Settings, content: bytes) -> None:
    """Make `content` the metadata store of `settings`."""
    file = _sqlite_path(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _sqlite_path(settings: Settings) -> Path:
    return Path(settings.metadata_url.removeprefix("sqlite:///"))


def on_postgres(settings: Settings, server: str, *, opened: bool = True) -> Settings:
    """`settings` with a database of its own on the server, of the current schema and without a row, or empty."""
    like = _postgres_template(server) if opened else "template1"
    return dataclasses.replace(settings, metadata_url=services.new_postgres_database(server, like=like))


@functools.cache
def _empty_sqlite_file() -> bytes:
    return sqlite_file_after(MetadataStore.open)


@functools.cache
def _postgres_template(server: str) -> str:
    """The name of the database on the server that the others are copies of."""
    url = services.new_postgres_database(server)
    MetadataStore.open(dataclasses.replace(Settings.at_home(Path("/nowhere")), metadata_url=url))
    return url.rpartition("/")[2]
