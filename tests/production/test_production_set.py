"""The services of docker-compose.yml as processes: the chain on real flights, and faults in the middle of a run.

Each test goes on where the one before it stopped. `benchmarks/production_faults.py` strikes with the other faults.
"""

from __future__ import annotations

import json
import subprocess

import httpx
import psutil
import pytest
import yaml
from installation import CHECKOUT, until
from production_line import FAULTS, FIRST_DAY, MONITOR, PIPELINE, SCORE, Line, Struck, days

from tasks.core import open_store
from tasks.local import credentials, production, survey
from tasks.local.parts import AIRFLOW_PARTS, bearer, load_ports
from tasks.local.production import BUCKET, SECRETS, WORKER_ADDRESS, secrets_folder
from tasks.local.services import _processes, mlflow_admin

pytestmark = pytest.mark.e2e

AFFORDABLE = ("worker_node_killed", "postgres_restarted", "store_resets")
"""Faults of which each stands for a part: a node, the database, the store."""
DAYS = len(AFFORDABLE) + 1
"""That are scored: each fault strikes two, and the next one begins with the second of them."""


def ray(line: Line, path: str, *, token: bool = True) -> httpx.Response:
    headers = bearer(credentials(line.installation.settings)["RAY_AUTH_TOKEN"])
    url = f"{line.installation.settings.ray_jobs_url}{path}"
    return httpx.get(url, headers=headers if token else {}, timeout=30, trust_env=False)


class TestTheSet:
    def test_every_service_is_up_and_a_second_start_leaves_them_as_they_are(self, line: Line) -> None:
        before = {state.name: state.pid for state in survey(line.installation.settings) if state.healthy}
        assert len(before) == len(survey(line.installation.settings)) == 9
        assert "services are up already" in line.up()
        assert {state.name: state.pid for state in survey(line.installation.settings)} == before
        assert line.installation.penstock("status").returncode == 0

    def test_ray_has_two_nodes_at_different_addresses_and_asks_for_its_token(self, line: Line) -> None:
        nodes = ray(line, "/nodes?view=summary").json()["data"]["summary"]
        alive = [node["ip"] for node in nodes if node["raylet"]["state"] == "ALIVE"]
        assert len(set(alive)) == 2 and WORKER_ADDRESS in alive
        assert ray(line, "/api/jobs/", token=False).status_code == 401

    def test_mlflow_asks_for_its_password_and_keeps_its_logins_on_postgresql(self, line: Line) -> None:
        url = f"{line.installation.settings.mlflow_url}/api/2.0/mlflow/users/get"
        for login, status in ((None, 401), (("admin", "another-password"), 401)):
            answer = httpx.get(url, params={"username": "admin"}, auth=login, timeout=30, trust_env=False)
            assert answer.status_code == status
        user = line.installation.mlflow("users/get", username=mlflow_admin(line.installation.settings)[0])
        assert user["user"]["is_admin"]
        assert not line.installation.mlflow("users/get", username="penstock")["user"]["is_admin"]
        assert not list(line.installation.home.rglob("*.db")), "a login in a file"

    def test_the_health_checks_of_the_containers_pass(self, line: Line) -> None:
        ports = load_ports(line.installation.settings)
        here = {
            "localhost:5000": ports["mlflow"],
            "localhost:8080": ports["airflow"],
            "localhost:8974": ports["airflow_scheduler_health"],
            "ray:6379": ports["ray_gcs"],
        }
        services = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
        for name in ("mlflow", "ray-worker", *(f"airflow-{part}" for part in AIRFLOW_PARTS)):
            _, *command = services[name]["healthcheck"]["test"]
            words = [word for word in command if not word.endswith("entrypoint.sh")]
            for address, port in here.items():
                words = [word.replace(address, f"127.0.0.1:{port}") for word in words]
            done = subprocess.run(
                words,
                env=production.environment(line.installation.settings),
                cwd=line.installation.home,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (name, words, done.stdout, done.stderr)

    def test_the_other_profile_waits_until_this_one_was_ended(self, line: Line) -> None:
        done = line.installation.penstock("up", "--profile", "embedded")
        assert done.returncode == 2, done.stdout
        assert "the services of the profile production run" in done.stdout
        assert "penstock down" in done.stdout
        assert all(state.healthy for state in survey(line.installation.settings))


class TestTheChain:
    def test_training_promotes_a_model_and_scoring_publishes_every_row_once(self, line: Line) -> None:
        rows = line.clean_run(DAYS)
        ids = line.rows()["prediction_id"].to_pylist()
        scored = line.airflow.xcom(SCORE, "days-1", "data.validate")
        assert len(set(ids)) == rows == scored["rows"] > 3_000

    def test_both_nodes_have_scored(self, line: Line) -> None:
        actors = ray(line, "/api/v0/actors?limit=1000").json()["data"]["result"]["result"]
        assert len({actor["node_id"] for actor in actors if actor["class_name"] == "ShardActor"}) == 2

    def test_the_monitor_judges_the_days_and_archives_explanations(self, line: Line) -> None:
        first, last = days(0, DAYS - 1)  # not the blizzard's: what the monitor says of it is another test's
        line.installation.trigger(MONITOR, "days-1", first_day=first, last_day=last, as_of="2013-03-15")
        line.installation.succeeded(MONITOR, "days-1")
        assert line.airflow.xcom(MONITOR, "days-1", "decide", "verdict")
        line.airflow.pause(MONITOR)

    def test_mlflow_keeps_its_artifacts_on_s3(self, line: Line) -> None:
        version = line.installation.mlflow("registered-models/alias", name=PIPELINE, alias="champion")
        assert version["model_version"]["version"] == "1"
        store = open_store(line.installation.settings)
        assert store.url("").startswith(f"s3://{BUCKET}/store")
        listed = store.fs.find(f"{BUCKET}/mlflow")  # type: ignore[attr-defined]
        assert any("/artifacts/" in key for key in listed), listed[:5]

    def test_commands_work_as_they_do_against_the_embedded_set(self, line: Line) -> None:
        shown = line.installation.penstock("pipelines")
        assert "version 1" in shown.stdout and days(0, DAYS)[1] in shown.stdout, shown.stdout
        checked = line.installation.penstock("metadata", "check")
        assert checked.returncode == 0, checked.stdout
        start = FIRST_DAY.isoformat()
        window = line.installation.penstock(
            "audit", "window", PIPELINE, "--start", start, "--end", "2013-02-07", "--limit", "3", "--json"
        )
        assert window.returncode == 0, window.stdout
        found = json.loads(window.stdout[window.stdout.index("{") :])["records"]
        again = line.installation.penstock("audit", "reproduce", PIPELINE, found[0]["prediction_id"])
        assert again.returncode == 0, again.stdout


class TestSecrets:
    def test_only_the_owner_may_read_them_and_no_list_of_processes_or_log_has_one(self, line: Line) -> None:
        settings = line.installation.settings
        folder = secrets_folder(settings)
        values = {path.name: path.read_text() for path in folder.iterdir()}
        assert set(values) == set(SECRETS)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        login = settings.home / "production" / "airflow" / "simple_auth_manager_passwords.json.generated"
        values["login"] = json.loads(login.read_text())["admin"]
        assert login.stat().st_mode & 0o777 == 0o600
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
            except psutil.Error:
                continue
            assert not [name for name, value in values.items() if value in words], words
        logs = [
            path
            for top in (settings.home / "production" / "logs", settings.home / "production" / "airflow")
            for path in top.rglob("*.log")
        ] + [path for path in line.ray_logs() if path.is_file()]
        assert len(logs) > 20
        for path in logs:
            content = path.read_bytes()
            assert not [name for name, value in values.items() if value.encode() in content], path


class TestFaults:
    @pytest.mark.parametrize("name", AFFORDABLE)
    def test_a_fault_loses_no_row_and_doubles_none(self, line: Line, name: str) -> None:
        blow = next(blow for blow in FAULTS if blow.name == name)
        struck = Struck()
        blow.strike(line, AFFORDABLE.index(name), struck)
        assert "each once" in struck.rows and struck.seen


class TestTheEnd:
    def test_a_set_that_was_ended_has_everything_when_it_is_started_again(self, line: Line) -> None:
        before = line.rows()
        processes = [process for process, _ in _processes(line.installation.settings)]
        done = line.installation.penstock("down")
        assert done.returncode == 0, done.stdout
        assert line.installation.leftovers() == []
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        log = line.installation.home / "production" / "logs" / "postgres.log"
        assert "database system is shut down" in log.read_text().splitlines()[-1]
        line.up()
        assert line.rows().equals(before)
        assert line.airflow.run(SCORE, "days-1")["state"] == "success"
        until(lambda: line.live_version() == 1 or None, "the champion")
