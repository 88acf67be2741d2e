"""Stores and databases for the tests below."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import s3_endpoint
from database_fixtures import postgres_url
from store_fixtures import s3_url, store_settings

from tasks.core import PipelineSpec, Settings, load_pipeline

BESIDE = [str(Path(__file__).parents[1] / name) for name in ("inference", "metadata", "audit")]
sys.path += [folder for folder in BESIDE if folder not in sys.path]

__all__ = ["postgres_url", "s3_url", "store_settings"]


@pytest.fixture
def place(store_settings: Settings, tmp_path: Path) -> str:
    """Where backups go: a folder beside a local store, a prefix beside one on S3."""
    if store_settings.s3_endpoint is None:
        return str(tmp_path / "backups")
    return s3_endpoint.fresh_store_url()


@pytest.fixture
def elsewhere(store_settings: Settings, tmp_path: Path) -> Settings:
    """An empty installation of the same kind, with the same pipelines."""
    fresh = Settings.at_home(tmp_path / "elsewhere", project=store_settings.project)
    if store_settings.s3_endpoint is None:
        return fresh
    return dataclasses.replace(
        fresh, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=store_settings.s3_endpoint
    )


@pytest.fixture
def spec(store_settings: Settings) -> PipelineSpec:
    return load_pipeline(store_settings, "toy")
