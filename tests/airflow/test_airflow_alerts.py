"""`platform.alerts`: there when alerts.yaml is, and secrets come from Airflow first."""

from __future__ import annotations

import json

import pytest
from shared_app import SharedApp

from plugins.alerts import airflow_connections, alerts_dag
from tasks.core import Settings
from tasks.core.errors import NotFound


def test_the_dag_is_there_only_with_the_file_and_never_runs_twice_at_once(settings: Settings) -> None:
    assert alerts_dag(settings) is None
    (settings.pipelines_dir / "alerts.yaml").write_text("channels: {}\n")
    dag = alerts_dag(settings)
    assert dag is not None and dag.dag_id == "platform.alerts" and dag.max_active_runs == 1
    assert [task.task_id for task in dag.tasks] == ["send"]


def test_a_connection_comes_from_airflow_and_else_from_the_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PAGER", json.dumps({"conn_type": "http", "host": "h", "password": "p"}))
    settings.home.mkdir(parents=True, exist_ok=True)
    path = settings.home / "connections.json"
    path.write_text(json.dumps({"other": {"host": "f"}}))
    path.chmod(0o600)
    find = airflow_connections(settings)
    assert (find("pager").host, find("pager").password, find("pager").origin) == ("h", "p", "airflow")
    assert (find("other").host, find("other").origin) == ("f", "file")
    with pytest.raises(NotFound, match="missing_one"):
        find("missing_one")


def test_the_metrics_endpoint_asks_for_a_login_and_shows_only_what_the_user_may_read(
    settings: Settings,
) -> None:
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.core_api.security import get_user, requires_authenticated
    from fastapi.testclient import TestClient

    from plugins import pages

    create_auth_manager()
    app = SharedApp()
    app.dependency_overrides[pages.read_settings] = lambda: settings
    client = TestClient(app)
    assert client.get("/metrics").status_code == 401
    app.dependency_overrides[get_user] = lambda: object()
    app.dependency_overrides[requires_authenticated()] = lambda: None
    for may, seen in ((True, True), (False, False)):
        app.dependency_overrides[pages.readable_pipelines] = lambda may=may: lambda name: may
        answer = client.get("/metrics")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
        assert ('penstock_pipeline_loads{pipeline="toy",tenant="default"} 1.0' in answer.text) is seen


def test_the_trend_page_is_for_who_may_read_the_monitor(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    from plugins import pages

    create_auth_manager()
    monkeypatch.setattr("airflow.models.dag.DagModel.get_team_name", lambda *_, **__: None)
    app = SharedApp()
    app.dependency_overrides[pages.read_settings] = lambda: settings
    client = TestClient(app)
    assert client.get("/trend/toy", headers={"accept": "application/json"}).status_code == 401
    user = SimpleAuthManagerUser(username="ada", role="admin")
    app.dependency_overrides[get_user] = lambda: user
    shown = client.get("/trend/toy?days=30")
    assert shown.status_code == 200 and "Not judged yet" in shown.text
    assert "script-src" not in shown.text and "default-src 'none'" in shown.headers["content-security-policy"]
    assert '/penstock/trend/toy"' in client.get("/trend/").text
    assert client.get("/trend/nobody").status_code == 404
    app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="eve", role=None)
    assert client.get("/trend/toy").status_code == 403


def test_the_task_sends_what_is_due_and_a_wrong_file_fails_it_at_once(installed: Settings) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    from plugins.alerts import SendAlertsOperator

    file = installed.pipelines_dir / "alerts.yaml"
    file.write_text("channels: {}\n")
    task = SendAlertsOperator(task_id="send")
    assert task.execute({}) == {
        "changed": 0,
        "resolved": 0,
        "channels": {},
        "pipelines_that_do_not_load": [],
    }
    file.write_text("routes: {page: [nobody]}\n")
    with pytest.raises(AirflowFailException, match="nobody"):
        task.execute({})
