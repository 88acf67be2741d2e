"""An installation whose toy pipeline has a live model, made once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving_support import make_bundle, private_copy, put_live, serving
from toy_installation import install_toy

from tasks.core import PipelineSpec, Settings, load_pipeline
from tasks.serving import ModelServer

Bundles = dict[int, tuple[str, str]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Bundles]:
    """Three bundles in a store; version 1 is live."""
    settings = install_toy(tmp_path_factory.mktemp("serving"))
    spec = load_pipeline(settings, "toy")
    bundles = {version: make_bundle(settings, spec, seed=version) for version in (1, 2, 3)}
    put_live(settings, spec, 1, bundles[1])
    return settings, bundles


@pytest.fixture
def bundles(made: tuple[Settings, Bundles]) -> Bundles:
    return made[1]


@pytest.fixture
def installation(made: tuple[Settings, Bundles], tmp_path: Path) -> Settings:
    return private_copy(made[0], tmp_path)


@pytest.fixture
def spec(installation: Settings) -> PipelineSpec:
    return load_pipeline(installation, "toy")


@pytest.fixture(scope="module")
def shared(
    made: tuple[Settings, Bundles], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelServer, httpx.Client]]:
    """One server for tests that only ask."""
    home = tmp_path_factory.mktemp("shared") / "home"
    shutil.copytree(made[0].home, home)
    settings = Settings.at_home(home, project=made[0].project)
    with serving(settings) as found:
        yield found
