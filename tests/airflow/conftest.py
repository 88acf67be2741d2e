"""An Airflow home of its own for these tests, set before anything imports Airflow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="penstock-airflow-tests-")
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__PENSTOCK__REQUESTS_PER_MINUTE"] = "0"  # tests ask more often than people
os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = "ada:admin,vic:viewer"

from airflow_fakes import FakeRay  # noqa: E402

from tasks.core import Settings  # noqa: E402


@pytest.fixture
def ray_api() -> Iterator[FakeRay]:
    fake = FakeRay()
    yield fake
    fake.close()


@pytest.fixture
def installed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """`settings` as every Airflow process sees them: through the environment."""
    for name in list(os.environ):
        if name.startswith(("PENSTOCK_", "AWS_")):
            monkeypatch.delenv(name)
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    return Settings.from_environment()


@pytest.fixture
def no_airflow_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's own auth manager, which asks the database for nothing but a DAG's team."""
    from airflow.api_fastapi.app import create_auth_manager

    create_auth_manager()
    monkeypatch.setattr("airflow.models.dag.DagModel.get_team_name", lambda *_, **__: None)


@pytest.fixture(scope="session")
def audit_site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A site with published predictions; tests only read it."""
    from audit_site import build_site

    return build_site(tmp_path_factory.mktemp("audit-site"))


@pytest.fixture
def site(audit_site: Any, no_airflow_database: None) -> Any:
    """`audit_site` behind Airflow's own auth manager; its database is not needed."""
    return audit_site


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version's bundle is taken for whole unless it is version 9's."""
    from tasks.core.errors import DigestMismatch

    def check(version: Any) -> None:
        if version.version == 9:
            raise DigestMismatch("was changed", which="bundle 9", fix="restore it")

    monkeypatch.setattr("tasks.wiring.release._loads_and_scores", lambda _context: check)


@pytest.fixture
def delivery(tmp_path: Path, unchecked: None) -> Any:
    """A deployment log with two versions, to change over the REST API."""
    from deployment_support import installation

    return installation(tmp_path)


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """As `delivery`, for requests that are refused: its log is the same after all of them."""
    from deployment_support import installation

    found = installation(tmp_path_factory.mktemp("untouched"))
    yield found
    assert found.moves() == [("promote", 1), ("promote", 2)]
