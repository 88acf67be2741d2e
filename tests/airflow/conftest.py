"""An Airflow home of its own for these tests, set before anything imports Airflow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="penstock-airflow-tests-")
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
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


@pytest.fixture(scope="session")
def audit_site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A site with published predictions; tests only read it."""
    from audit_site import build_site

    return build_site(tmp_path_factory.mktemp("audit-site"))


@pytest.fixture
def site(audit_site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`audit_site` behind Airflow's own auth manager; its database is not needed."""
    from airflow.api_fastapi.app import create_auth_manager

    create_auth_manager()
    monkeypatch.setattr("airflow.models.dag.DagModel.get_team_name", lambda *_, **__: None)
    return audit_site
