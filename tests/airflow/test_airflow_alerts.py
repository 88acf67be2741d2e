"""`platform.alerts`: there when alerts.yaml is, and secrets come from Airflow first."""

from __future__ import annotations

import json

import pytest

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
