"""What every test shares: an installation of its own in a temporary folder, with the toy pipeline."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import services
from store_fixtures import s3_server  # noqa: F401
from toy_installation import install_toy

from tasks.core import PipelineSpec, Settings, load_pipeline, object_store

hypothesis.settings.register_profile("penstock", deadline=None)  # no test is about how fast a machine is
hypothesis.settings.load_profile("penstock")

# Tests start a thousand processes of Penstock. Where this is set, as in many images, each of them compiles its modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

gc.disable()  # until all tests are collected: what they import stays, and to go through it as it grows takes a fifth of that time

LONGEST_FIRST = ("inference", "e2e", "production", "training", "tenancy", "wiring", "serving", "registry")
"""Folders that take minutes. With these at work first nobody is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders of `LONGEST_FIRST` in its order, then the others as they came."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, the tests of a folder share a process, and so the services that its conftest.py starts."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0].rpartition("/")[0]

    return ByFolder(config, log)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Commands and libraries configure logging for their process; the test's process gets its own back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    """What a module sets for its process, as the driver of a Ray does with its token, no other module finds."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def _own_connections() -> Iterator[None]:
    """A client of S3 has ten megabytes and lives as long as its process; tests have hundreds, each with an address of its own.

    What was there before the module is no garbage of it: to go through all that tests import, 840,000 objects, takes half a second.
    """
    gc.freeze()
    yield
    object_store._file_systems.clear()
    gc.collect()


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server for all folders of a process: each uses names of its own in it."""
    url, process = services.start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield url
    services.stop(process)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A fresh installation whose project folder is a private copy of `tests/toy_project`."""
    return install_toy(tmp_path)


@pytest.fixture
def toy(settings: Settings) -> PipelineSpec:
    """The toy pipeline of `settings`."""
    return load_pipeline(settings, "toy")
