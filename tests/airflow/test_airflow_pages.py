"""The pages in Airflow's UI: who may read them, and that nothing in them runs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient
from shared_app import SharedApp

from plugins import pages
from tasks.core import Settings
from tasks.core.errors import NotFound, StoreUnavailable

EVIL = '<script>alert("x")</script>'


def evidence(_settings: Settings, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    if run_id == "empty":
        return []
    return [
        {
            "kind": "data",
            "title": "Data gate",
            "outcome": "fail",
            "summary": EVIL,
            "reasons": [f"{dag_id} {run_id} {EVIL}"],
            "links": {
                "Report": "http://airflow/penstock/report/toy/validation/s1/report.html",
                "MLflow": "http://mlflow/#/runs/1",
                "Trap": "javascript:alert(1)",
            },
        }
    ]


def overview(_settings: Settings, may_read: Callable[[str], bool]) -> list[dict[str, Any]]:
    many = [f"day {number} moved" for number in range(9)]
    verdicts = [
        {"gate": "data", "outcome": "pass", "at": "2024-02-06", "reasons": [EVIL]},
        {"gate": "monitor", "outcome": "noise", "at": "2024-02-06", "reasons": many},
    ]
    toy = {
        "pipeline": "toy",
        "champion": {"version": 3, "at": "2024-02-06"},
        "verdicts": verdicts,
        "published": {"last_day": "2024-02-06", "rows": 1200},
    }
    return [
        line for line in (toy, {"pipeline": "secret_plans", "error": "broken"}) if may_read(line["pipeline"])
    ]


def read_report(_settings: Settings, pipeline: str, key: str) -> bytes:
    if "down" in key:
        raise StoreUnavailable("does not answer", which="store", fix="try again")
    if "gone" in key:
        raise NotFound("does not exist", which=key, fix="run the step")
    return f"<html><body>{pipeline} {key}</body></html>".encode()


@pytest.fixture
def client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The pages with nobody logged in. The auth manager is Airflow's own; its database is not needed."""
    manager = create_auth_manager()
    dags = {f"toy.{kind}" for kind in ("train", "score", "monitor")}
    monkeypatch.setattr(manager, "get_authorized_dag_ids", lambda **_: dags)
    monkeypatch.setattr("airflow.models.dag.DagModel.get_team_name", lambda *_, **__: None)
    app = SharedApp()
    app.dependency_overrides[pages.read_settings] = lambda: settings
    app.dependency_overrides[pages.read_wiring] = lambda: SimpleNamespace(
        dag_run_evidence=evidence, overview=overview, read_report=read_report
    )
    return TestClient(app, follow_redirects=False)


def log_in(client: TestClient, role: str | None) -> TestClient:
    client.app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="u", role=role)
    return client


@pytest.fixture
def viewer(client: TestClient) -> TestClient:
    return log_in(client, "VIEWER")


@pytest.mark.parametrize(
    ("gate", "outcome", "colour"),
    [
        ("monitor, 2024-02-06", "data fault", "fail"),
        ("monitor, 2024-02-06", "drift, no damage seen", "warn"),
        ("monitor, 2024-02-06", "healthy", "pass"),
        ("data", "fail", "fail"),
        ("evaluation", "fail", "pass"),
    ],
)
def test_the_overview_is_red_where_what_is_live_is_in_trouble(
    viewer: TestClient, gate: str, outcome: str, colour: str
) -> None:
    line = overview(None, lambda name: name == "toy")[0]  # type: ignore[arg-type]
    line["verdicts"] = [{"gate": gate, "outcome": outcome, "at": "2024-02-06", "reasons": ["why"]}]
    viewer.app.dependency_overrides[pages.read_wiring] = lambda: SimpleNamespace(overview=lambda *_: [line])
    assert f'<section class="record {colour}">' in viewer.get("/").text


PROTECTED = ["/", "/run/toy.train/manual__1", "/report/toy/validation/s1/report.html"]


@pytest.mark.parametrize("path", PROTECTED)
def test_nobody_reads_a_page_without_logging_in(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401
    client.cookies.set("_token", "not a token")
    assert client.get(path).status_code in (401, 403)


def test_a_browser_is_sent_to_the_login_page_and_back(client: TestClient) -> None:
    answer = client.get("/", headers={"accept": "text/html"})
    assert answer.status_code == 303
    assert "login" in answer.headers["location"]
    assert "next=http" in answer.headers["location"]


@pytest.mark.parametrize("path", PROTECTED[1:])
def test_a_user_without_access_to_the_dag_is_refused(client: TestClient, path: str) -> None:
    assert log_in(client, None).get(path).status_code == 403


@pytest.mark.parametrize("path", PROTECTED)
def test_pages_run_no_script_and_are_not_cached(viewer: TestClient, path: str) -> None:
    answer = viewer.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "no-store" in answer.headers["cache-control"]
    assert EVIL not in answer.text


def test_a_report_cannot_act_as_its_reader(viewer: TestClient) -> None:
    policy = viewer.get("/report/toy/monitoring/2024-02-06/report.html").headers["content-security-policy"]
    assert "sandbox" in policy
    assert "allow-scripts" not in policy
    assert "allow-same-origin" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "toy/bundles/x/report.html",
        "toy/validation/s1/evidence.json",
        "toy/validation/%2e%2e/%2e%2e/x.html",
        "toy/validation/..%2f..%2fx.html",
        "toy/validation//x.html",
        "toy/validation/a%00b.html",
        "toy/validation/a%5c..%5cx.html",
        "Toy/validation/s1/report.html",
        "%2e%2e/validation/s1/report.html",
        "toy/report.html",
    ],
)
def test_only_reports_are_served(viewer: TestClient, path: str) -> None:
    assert viewer.get(f"/report/{path}").status_code == 404


@pytest.mark.parametrize(
    "key", ["validation/../x.html", "validation/.hidden.html", "validation/./x.html", "/x.html"]
)
def test_a_key_never_leaves_its_folder(key: str) -> None:
    with pytest.raises(pages.HTTPException):
        pages.checked_report_key("toy", key)


def test_a_missing_report_and_a_silent_store_say_what_to_do(viewer: TestClient) -> None:
    gone = viewer.get("/report/toy/validation/gone/report.html")
    assert gone.status_code == 404
    assert "run the step" in gone.text
    down = viewer.get("/report/toy/validation/down/report.html")
    assert down.status_code == 503
    assert "try again" in down.text


def test_the_run_page_gives_the_verdict_in_words_with_reasons_and_safe_links(viewer: TestClient) -> None:
    text = viewer.get("/run/toy.train/manual__2024-01-01T00:00:00+00:00").text
    assert "Stopped by: Data gate." in text
    assert "toy.train manual__2024-01-01T00:00:00+00:00 &lt;script&gt;" in text
    assert 'href="/penstock/report/toy/validation/s1/report.html"' in text
    assert 'href="http://mlflow/#/runs/1"' in text
    assert "javascript:" not in text


def test_in_the_tab_other_services_are_shown_as_addresses(viewer: TestClient) -> None:
    text = viewer.get("/run/toy.train/r", headers={"sec-fetch-dest": "iframe"}).text
    assert "<code>http://mlflow/#/runs/1</code>" in text
    assert 'href="http://mlflow' not in text


def test_a_step_with_nothing_to_do_says_why_once(viewer: TestClient) -> None:
    why = "no row of version 2 is visible"
    item = {
        "kind": "re-scoring plan",
        "title": "Re-scoring plan",
        "summary": {"nothing to do": True, "reason": why},
        "reasons": [why],
    }
    viewer.app.dependency_overrides[pages.read_wiring] = lambda: SimpleNamespace(
        dag_run_evidence=lambda *_: [item]
    )
    text = viewer.get("/run/toy.rollback/r").text
    assert text.count(why) == 1 and "Nothing to do" not in text


def test_a_run_without_records_says_so(viewer: TestClient) -> None:
    assert "Nothing is recorded for this run yet" in viewer.get("/run/toy.train/empty").text


def test_the_overview_lists_only_what_the_user_may_read(viewer: TestClient) -> None:
    text = viewer.get("/").text
    assert "champion v3" in text
    assert "1,200 rows" in text
    assert "secret_plans" not in text
    assert "day 3 moved" in text and "day 4 moved" not in text and "and 5 more" in text
    for page in ("deployments/toy", "trend/toy", "cases/"):
        assert f'href="/penstock/{page}"' in text


def test_airflow_finds_the_plugin_without_building_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import entry_points

    (found,) = [point for point in entry_points(group="airflow.plugins") if point.name == "penstock"]
    plugin = found.load()
    assert plugin.fastapi_apps[0]["url_prefix"] == pages.PAGES
    assert plugin.fastapi_apps[0]["app"]._app is None
    tab = next(view for view in plugin.external_views if view["destination"] == "dag_run")
    assert tab["href"] == "/penstock/run/{DAG_ID}/{RUN_ID}"
