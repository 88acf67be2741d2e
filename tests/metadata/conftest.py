"""Every test of the metadata store runs over SQLite and over a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from database_fixtures import on_database, postgres_url  # noqa: F401

from tasks.core import Settings
from tasks.metadata import MetadataStore


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """An installation whose metadata store is empty, once on each database."""
    return on_database(request, settings)


@pytest.fixture
def store(settings: Settings) -> MetadataStore:
    return MetadataStore.open(settings)


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    return Settings.at_home(tmp_path / "sqlite-home")
