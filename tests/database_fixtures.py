"""A PostgreSQL for the session, and settings for either database; a conftest imports them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import services

from tasks.core import Settings


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server that lives as long as the session."""
    if services.postgres_binaries() is None:
        pytest.skip(services.NO_POSTGRES)
    url, process = services.start_postgres(tmp_path_factory.mktemp("postgres"))
    yield url
    services.stop(process)


def on_database(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """`settings` with an empty metadata store on the database that the fixture's parameter names."""
    if request.param == "sqlite":
        return settings
    server: str = request.getfixturevalue("postgres_url")
    return dataclasses.replace(settings, metadata_url=services.new_postgres_database(server))
