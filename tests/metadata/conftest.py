"""Every test of the metadata store runs over SQLite and over a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from database_fixtures import on_database, postgres_url  # noqa: F401

from tasks.core import Settings
from tasks.metadata import MetadataStore


@pytest.fixture
def opened() -> bool:
    """Whether the database has the current schema when a test begins; a module or a test may say otherwise."""
    return True


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings, opened: bool) -> Settings:
    """An installation whose metadata store holds nothing, once on each database."""
    return on_database(request, settings, opened=opened)


@pytest.fixture
def store(settings: Settings) -> MetadataStore:
    return MetadataStore.open(settings)


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    return Settings.at_home(tmp_path / "sqlite-home")
