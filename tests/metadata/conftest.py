"""Every test of the metadata store runs over SQLite and over a real PostgreSQL."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import services

from tasks.core import Settings
from tasks.metadata import MetadataStore


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if services.postgres_binaries() is None:
        pytest.skip(services.NO_POSTGRES)
    url, process = services.start_postgres(tmp_path_factory.mktemp("postgres"))
    yield url
    services.stop(process)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """An installation whose metadata store is empty, once on each database."""
    if request.param == "sqlite":
        return settings
    server: str = request.getfixturevalue("postgres_url")
    return dataclasses.replace(settings, metadata_url=services.new_postgres_database(server))


@pytest.fixture
def store(settings: Settings) -> MetadataStore:
    return MetadataStore.open(settings)


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    return Settings.at_home(tmp_path / "sqlite-home")
