"""Airflow over its public REST API (v2): trigger a DAG, follow its tasks, read what they returned."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import httpx

from tasks.core.errors import NotFound, ServiceUnavailable, TerminalError
from tasks.core.pools import Pool


class AirflowClient:
    """One login to one Airflow.

    Raises (every method):
        ServiceUnavailable: Airflow does not answer, or answers 5xx.
        NotFound: No such DAG, run or task.
        TerminalError: The request was refused; Airflow's own words are in the message.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url.rstrip("/")
        self._login = {"username": user, "password": password}
        self._http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)
        self._token: str | None = None

    def close(self) -> None:
        self._http.close()

    def unpause(self, dag_id: str) -> None:
        self._call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def dags(self) -> dict[str, bool]:
        """DAG id -> paused."""
        found = self._call("GET", "/api/v2/dags", params={"limit": 1000})
        return {dag["dag_id"]: dag["is_paused"] for dag in found["dags"]}

    def import_errors(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return found

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> dict[str, Any]:
        """Start a run under an id of ours."""
        return self._call(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns",
            json={"dag_run_id": run_id, "logical_date": None, "conf": conf},
        )

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Newest first."""
        found: list[dict[str, Any]] = self._call(
            "GET", f"/api/v2/dags/{dag_id}/dagRuns", params={"limit": 100, "order_by": "-id"}
        )["dag_runs"]
        return found

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call(
            "GET",
            f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances",
            params={"limit": 200},
        )["task_instances"]
        return found

    def clear(self, dag_id: str, run_id: str, task_ids: list[str], *, downstream: bool = False) -> None:
        """Run tasks of a finished run again, as a person does with the Clear button."""
        self._call(
            "POST",
            f"/api/v2/dags/{dag_id}/clearTaskInstances",
            json={
                "dag_run_id": run_id,
                "task_ids": task_ids,
                "dry_run": False,
                "only_failed": False,
                "reset_dag_runs": True,
                "include_downstream": downstream,
            },
        )

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        found = self._call(
            "GET",
            f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/{key}",
            params={"deserialize": False, "stringify": False},
        )
        return found["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        """A task's log as text, one line an event."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
        found = self._call("GET", path, params={"full_content": True})
        content = found.get("content", [])
        return "\n".join(
            str(item.get("event", item)) if isinstance(item, dict) else str(item) for item in content
        )

    def ensure_pool(self, name: str, pool: Pool) -> None:
        """Create the pool, or leave the one there is as people have set it."""
        try:
            self._call("GET", f"/api/v2/pools/{name}")
        except NotFound:
            self._call("POST", "/api/v2/pools", json={"name": name, **asdict(pool)})

    def set_pool(self, name: str, pool: Pool) -> bool:
        """Make the pool as `pool` says; True when that changed something."""
        wanted = {"name": name, **asdict(pool)}
        try:
            found = self._call("GET", f"/api/v2/pools/{name}")
        except NotFound:
            self._call("POST", "/api/v2/pools", json=wanted)
            return True
        if all(found.get(field) == value for field, value in wanted.items()):
            return False
        self._call("PATCH", f"/api/v2/pools/{name}", json={**wanted, "pool": name})
        return True

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self._send(method, path, **arguments)
        if answer.status_code == 401:
            self._token = None
            answer = self._send(method, path, **arguments)
        if answer.status_code == 404:
            raise NotFound(_detail(answer), which=f"Airflow {path}", fix="check the name in the Airflow UI")
        if answer.status_code >= 500:
            raise ServiceUnavailable(
                _detail(answer), which=f"Airflow {path}", fix="read the API server's log"
            )
        if answer.status_code >= 400:
            raise TerminalError(_detail(answer), which=f"Airflow {method} {path}", fix="correct the request")
        return answer.json() if answer.content else {}

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            if self._token is None:
                login = self._http.post("/auth/token", json=self._login)
                if login.status_code not in (200, 201):
                    raise TerminalError(
                        _detail(login), which=f"Airflow login at {self.url}", fix="check user and password"
                    )
                self._token = login.json()["access_token"]
            return self._http.request(
                method, path, headers={"Authorization": f"Bearer {self._token}"}, **arguments
            )
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"does not answer: {error}", which=f"Airflow at {self.url}", fix="start it with `make up`"
            ) from error


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json().get("detail", answer.text)
    except ValueError:
        detail = answer.text
    return f"answered {answer.status_code}: {str(detail)[:500]}"
