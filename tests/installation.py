"""An installation that tests drive as its users do: the `penstock` command, and Airflow's REST API."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import psutil
import pyarrow as pa
from toy_installation import TOY_PROJECT

from tasks.core import Settings, load_pipeline, open_store
from tasks.local import AirflowClient, credentials
from tasks.local.parts import bearer
from tasks.local.services import airflow_login, local_settings, mlflow_admin

CHECKOUT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 400.0  # a busy machine may be slow; only a broken one waits this long
_HTTP = httpx.Client(timeout=30, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""A client is costly to make. Services start anew between its questions, so it keeps no connection."""

T = TypeVar("T")


class Airflow(AirflowClient):
    """What a person does in the UI that the product itself never does."""

    def mark_failed(self, dag_id: str, run_id: str, task_id: str) -> None:
        self._call(
            "PATCH",
            f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}",
            json={"new_state": "failed"},
        )

    def pause(self, dag_id: str) -> None:
        self._call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": True})

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, **fields: str) -> None:
        """Press a button under *Required Actions*."""
        path = (
            f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/-1/hitlDetails"
        )
        self._call("PATCH", path, json={"chosen_options": [option], "params_input": fields})

    def page(self, path: str, *, logged_in: bool) -> httpx.Response:
        """A page of the UI, as a browser asks for it."""
        headers = {"Accept": "text/html"}
        if logged_in:
            token = self._http.post("/auth/token", json=self._login).json()["access_token"]
            headers["Authorization"] = f"Bearer {token}"
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=30, trust_env=False)


class Installation:
    """One home and one project under `root`; the project has the pipelines and suites of `source`."""

    def __init__(self, root: Path, source: Path = TOY_PROJECT) -> None:
        self.home = root / "home"
        self.project = root / "project"
        for folder in ("pipelines", "great_expectations"):
            shutil.copytree(
                source / folder, self.project / folder, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copytree(
            CHECKOUT / "dags", self.project / "dags", ignore=shutil.ignore_patterns("__pycache__")
        )
        self.given: dict[str, str] = {}
        """Variables that the command gets beside those of the test."""
        self._airflow: Airflow | None = None

    @property
    def settings(self) -> Settings:
        return local_settings(Settings.at_home(self.home, project=self.project))

    @property
    def airflow(self) -> Airflow:
        if self._airflow is None or self._airflow.url != self.settings.airflow_url:
            self._airflow = Airflow(self.settings.airflow_url, *airflow_login(self.settings))
        return self._airflow

    # -- the command

    def penstock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(*arguments), **self._streams(), timeout=240, check=False, start_new_session=True
        )

    def interrupt_up_at(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run `penstock up` and press Ctrl-C when it prints `line`."""
        child = subprocess.Popen(self._command("up"), **self._streams(), start_new_session=True)
        assert child.stdout is not None
        printed: list[str] = []
        for text in child.stdout:
            printed.append(text)
            if line in text:
                child.send_signal(signal.SIGINT)
                break
        rest, _ = child.communicate(timeout=120)
        return subprocess.CompletedProcess("up", child.returncode, "".join(printed) + rest)

    def _command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / "penstock"), *arguments]

    def _streams(self) -> dict[str, Any]:
        mine = {"PENSTOCK_HOME": str(self.home), "PENSTOCK_PROJECT": str(self.project)}
        theirs = {
            key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK_", "AIRFLOW_"))
        }
        return {
            "env": {**theirs, **mine, **self.given, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            "cwd": self.project,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }

    def leftovers(self) -> list[str]:
        """Processes of this home, found without Penstock's own records: by environment and by command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                words = process.cmdline()
                if process.environ().get("PENSTOCK_HOME") == str(self.home) or str(self.home) in " ".join(
                    words
                ):
                    found.append(f"{process.pid} {' '.join(words)[:120]}")
            except (psutil.Error, OSError):
                continue
        return found

    # -- pipelines

    def edit(self, pipeline: str, file: str, changes: dict[str, str]) -> None:
        path = self.project / "pipelines" / pipeline / file
        text = path.read_text()
        for old, new in changes.items():
            assert old in text, (path, old)
            text = text.replace(old, new)
        path.write_text(text)

    def predictions(self, pipeline: str) -> pa.Table:
        """The published rows, read as any Delta reader reads them."""
        from deltalake import DeltaTable

        store = open_store(self.settings, prefix=load_pipeline(self.settings, pipeline).prefix)
        url = store.url("tables/predictions").removeprefix("file://")
        table = DeltaTable(url, storage_options=store.storage_options() or None)
        return pa.table(table.to_pyarrow_table())

    # -- DAG runs

    def trigger(self, dag_id: str, run_id: str, **conf: Any) -> None:
        self.airflow.unpause(dag_id)
        self.airflow.trigger(dag_id, run_id, conf)

    def ended(self, dag_id: str, run_id: str) -> str:
        """Wait for the run to end; its state."""

        def look() -> str | None:
            state = str(self.airflow.run(dag_id, run_id)["state"])
            return state if state in ("success", "failed") else None

        return until(look, f"{dag_id} {run_id} to end")

    def succeeded(self, dag_id: str, run_id: str) -> None:
        """Wait for the run to end; an `AssertionError` with the failed tasks' logs when it has failed."""
        if self.ended(dag_id, run_id) != "success":
            tasks = self.airflow.task_instances(dag_id, run_id)
            logs = [self.log(dag_id, run_id, task["task_id"]) for task in tasks if task["state"] == "failed"]
            states = ", ".join(f"{task['task_id']} {task['state']}" for task in tasks)
            raise AssertionError("\n".join([f"{dag_id} {run_id}: {states}", *logs]))

    def run_by_asset(self, dag_id: str) -> str:
        """Wait until an asset has started a run of the DAG; its id."""
        return until(
            lambda: next(
                (
                    run["dag_run_id"]
                    for run in self.airflow.runs(dag_id)
                    if run["run_type"] == "asset_triggered"
                ),
                None,
            ),
            f"a run of {dag_id} by asset",
        )

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        tasks = self.airflow.task_instances(dag_id, run_id)
        return next(task for task in tasks if task["task_id"] == task_id)

    def task_in(self, dag_id: str, run_id: str, task_id: str, state: str) -> dict[str, Any]:
        """Wait until a task is in a state."""

        def look() -> dict[str, Any] | None:
            task = self.task(dag_id, run_id, task_id)
            return task if task["state"] == state else None

        return until(look, f"{dag_id} {run_id} {task_id} to be {state}")

    def clear(self, dag_id: str, run_id: str, task_id: str, *, downstream: bool = False) -> None:
        """Clear a task as a person does and wait until the run has succeeded."""
        self.airflow.clear(dag_id, run_id, [task_id], downstream=downstream)
        until(
            lambda: self.airflow.run(dag_id, run_id)["state"] in ("queued", "running") or None,
            f"{dag_id} {run_id} to start again",
        )
        self.succeeded(dag_id, run_id)

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        return self.airflow.log(dag_id, run_id, task_id, self.task(dag_id, run_id, task_id)["try_number"])

    def ray_jobs(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Ray's own list of the jobs of a DAG run, oldest first."""
        mine = [
            job
            for job in self._ray("/api/jobs/")
            if job["metadata"].get("dag_id") == dag_id and job["metadata"].get("run_id") == run_id
        ]
        return sorted(mine, key=lambda job: job["start_time"])

    def ray_job_log(self, dag_id: str, run_id: str) -> str:
        """What the newest Ray job of a DAG run has written so far."""
        job = self.ray_jobs(dag_id, run_id)[-1]
        return str(self._ray(f"/api/jobs/{job['submission_id']}/logs")["logs"])

    def _ray(self, path: str) -> Any:
        headers = bearer(credentials(self.settings)["RAY_AUTH_TOKEN"])
        answer = _HTTP.get(f"{self.settings.ray_jobs_url}{path}", headers=headers)
        return answer.raise_for_status().json()

    def mlflow(self, path: str, **params: str) -> Any:
        url = f"{self.settings.mlflow_url}/api/2.0/mlflow/{path}"
        answer = _HTTP.get(url, params=params, auth=mlflow_admin(self.settings))
        assert answer.status_code == 200, answer.text
        return answer.json()


def until(look: Callable[[], T | None], what: str) -> T:
    """The first answer of `look` that is not None; it looks less often the longer it waits, since an answer costs a server's time."""
    began = time.monotonic()
    while (found := look()) is None:
        waited_s = time.monotonic() - began
        if waited_s > _PATIENCE_S:
            raise AssertionError(f"waited {_PATIENCE_S:.0f} s for {what}")
        time.sleep(min(max(waited_s / 20, 0.2), 1.0))
    return found
