"""The stub model of the inference tests, the rows of the metadata tests, the server of the serving tests and the chain of the wiring's
tests are used here as well, both databases, and an MLflow that asks for logins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
from database_fixtures import postgres_url  # noqa: F401
from toy_installation import install_toy

from tasks.core import Settings

for folder in ("inference", "metadata", "serving", "wiring"):
    path = str(Path(__file__).parents[1] / folder)
    if path not in sys.path:
        sys.path.append(path)


@pytest.fixture(scope="session")
def with_logins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An installation whose MLflow asks for logins and runs; tests have tenants of their own in it."""
    settings, process = services.start_mlflow_with_logins(install_toy(tmp_path_factory.mktemp("logins")))
    yield settings
    services.stop(process)
