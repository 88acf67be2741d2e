"""The Airflow plugin: pages of evidence and audit under `/penstock`, tabs on every DAG and DAG run, entries in the navigation.

Registered by the entry point `airflow.plugins`. Airflow loads it in every process, so the web application behind
the pages is only built where it is asked for: in the API server.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/penstock"


class LazyPages:
    """ASGI application that builds `plugins.pages` on its first request."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from plugins.pages import create_app

            self._app = create_app()
        await self._app(scope, receive, send)


class PenstockPlugin(AirflowPlugin):
    """What Penstock adds to Airflow's UI."""

    name = "penstock"
    fastapi_apps = [{"app": LazyPages(), "url_prefix": PREFIX, "name": "Penstock pages"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {"name": "Penstock", "href": f"{PREFIX}/", "destination": "nav", "category": "browse"},
        {
            "name": "Evidence",
            "href": f"{PREFIX}/run/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "penstock-evidence",
        },
        {"name": "Deployments", "href": f"{PREFIX}/deployments/", "destination": "nav", "category": "browse"},
        {
            "name": "Deployments",
            "href": f"{PREFIX}/deployments/dag/{{DAG_ID}}",
            "destination": "dag",
            "url_route": "penstock-deployments",
        },
        {
            "name": "Deployments",
            "href": f"{PREFIX}/deployments/dag/{{DAG_ID}}",
            "destination": "dag_run",
            "url_route": "penstock-run-deployments",
        },
        {"name": "Cases", "href": f"{PREFIX}/cases/", "destination": "nav", "category": "browse"},
        {
            "name": "Case",
            "href": f"{PREFIX}/cases/run/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "penstock-case",
        },
        {"name": "Tenancy", "href": f"{PREFIX}/tenancy/", "destination": "nav", "category": "browse"},
        {"name": "Trend", "href": f"{PREFIX}/trend/", "destination": "nav", "category": "browse"},
        {"name": "Audit", "href": f"{PREFIX}/audit/", "destination": "nav", "category": "browse"},
        {
            "name": "Audit",
            "href": f"{PREFIX}/audit/run/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "penstock-audit",
        },
    ]
