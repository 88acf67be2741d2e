"""The whole chain through a real Airflow, Ray and MLflow, in the order in which a user meets it."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, ClassVar

import httpx
import psutil
import pytest
from installation import Installation, until
from receivers import Receiver

from tasks import wiring
from tasks.core.errors import ConfigError
from tasks.core.mlflow_users import MODEL, SERVICE_GRANTS, Grant, MlflowUsers
from tasks.local import survey
from tasks.local.parts import bearer, log_of, ray_folder
from tasks.local.services import _processes, mlflow_admin
from tasks.registry.mlflow_api import MlflowRegistry
from tasks.training.tracking import check_tracking

pytestmark = pytest.mark.e2e

TRAIN, SCORE, MONITOR = "toy.train", "toy.score", "toy.monitor"
ROWS_A_DAY = 120


class TestTheCommand:
    @pytest.mark.parametrize("line", ["preparing Airflow's database", "ray is healthy"])
    def test_ctrl_c_while_the_services_start_leaves_no_process(
        self, stopped: Installation, line: str
    ) -> None:
        done = stopped.interrupt_up_at(line)
        assert done.returncode == 130, done.stdout
        assert line in done.stdout
        assert "Traceback" not in done.stdout
        assert stopped.leftovers() == []
        assert not any(state.running for state in survey(stopped.settings))

    def test_the_next_start_brings_all_services_up(self, installation: Installation) -> None:
        assert all(state.healthy for state in survey(installation.settings))
        assert installation.penstock("status").returncode == 0

    def test_a_second_start_leaves_the_services_as_they_are(self, installation: Installation) -> None:
        before = {state.name: state.pid for state in survey(installation.settings)}
        done = installation.penstock("up")
        assert done.returncode == 0, done.stdout
        assert {state.name: state.pid for state in survey(installation.settings)} == before

    def test_ray_asks_whoever_reaches_its_ports_for_the_token(self, installation: Installation) -> None:
        url = f"{installation.settings.ray_jobs_url}/api/jobs/"
        assert httpx.get(url, timeout=30, trust_env=False).status_code == 401
        path = installation.settings.home / "ray_auth_token"
        assert path.stat().st_mode & 0o777 == 0o600
        assert (
            httpx.get(url, headers=bearer(path.read_text()), timeout=30, trust_env=False).status_code == 200
        )


class TestTheChain:
    """Each test goes on where the one before it stopped."""

    known: ClassVar[dict[str, Any]] = {}

    def test_a_wrong_pipeline_file_is_an_import_error_and_takes_no_other_dag_down(
        self, installation: Installation
    ) -> None:
        airflow = installation.airflow
        wanted = {TRAIN, SCORE, MONITOR, "truncated.train", "platform.maintenance"}
        until(lambda: wanted <= set(airflow.dags()) or None, "the DAGs to be read")
        until(lambda: airflow.import_errors() or None, "the import error")
        (error,) = airflow.import_errors()
        for part in (
            "misspelt/pipeline.yaml: entity_key",
            "unknown key, did you mean 'entity_key'?",
            "Fix: ",
        ):
            assert part in error["stack_trace"].replace("entity_keys: unknown", "entity_key: unknown"), error
        assert not [dag for dag in airflow.dags() if dag.startswith("misspelt")]

    def test_training_over_rest_gates_registers_and_promotes(self, installation: Installation) -> None:
        installation.airflow.unpause(SCORE)
        installation.airflow.unpause(MONITOR)
        installation.trigger(TRAIN, "first", reason="the first model", actor="ada")
        installation.succeeded(TRAIN, "first")
        assert installation.airflow.xcom(TRAIN, "first", "release.promote")["version"] == 1

    def test_mlflow_shows_the_champion_with_its_origin(self, installation: Installation) -> None:
        version = installation.mlflow("registered-models/alias", name="toy", alias="champion")[
            "model_version"
        ]
        assert version["version"] == "1"
        tags = {tag["key"]: tag["value"] for tag in version["tags"]}
        trained = installation.airflow.xcom(TRAIN, "first", "model.train")
        told = " ".join(tags.values()) + version["description"]
        for value in (trained["bundle_digest"], trained["snapshot_id"], trained["feature_version"]):
            assert value in told, tags
        assert f"{TRAIN}/runs/first" in told, tags

    def test_no_program_is_mlflows_admin_or_knows_its_password(self, installation: Installation) -> None:
        settings = installation.settings
        with MlflowUsers(settings.mlflow_url, mlflow_admin(settings)) as users:
            ours, admin = users.held_by("penstock"), users.held_by("admin")
        assert ours and admin and not ours.is_admin
        assert ours.grants >= SERVICE_GRANTS | {Grant("penstock", MODEL, "toy")}, "who made the model"
        assert not admin.grants, "and so it made nothing"
        _, password = mlflow_admin(settings)
        knowing = set()
        for process, name in _processes(settings):
            with suppress(psutil.Error, OSError):
                if password in process.environ().values():
                    knowing.add(name)
        assert knowing <= {"mlflow"}

    def test_mlflow_lets_in_whom_it_knows_and_shows_them_what_they_were_granted(
        self, installation: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.server import get_app_client

        url = installation.settings.mlflow_url
        admin = mlflow_admin(installation.settings)
        reader = ("reader", "a-readers-own-password")

        def log_in(user: str, password: str) -> None:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

        def champion(*login: str) -> int:
            log_in(*login)
            with MlflowRegistry(url) as mlflow:
                return mlflow.aliases("toy")["champion"]

        assert httpx.get(url, timeout=30, trust_env=False).status_code == 401
        assert httpx.get(url, auth=admin, timeout=30, trust_env=False).status_code == 200
        for login, says in (
            (("", ""), "asks for a login, and none is given"),
            (("admin", "another-password"), "refuses the password of admin"),
        ):
            with pytest.raises(ConfigError, match=says):
                champion(*login)
            with pytest.raises(ConfigError, match=says):
                check_tracking(installation.settings)
        assert champion(*admin) == 1
        logins = get_app_client("basic-auth", tracking_uri=url)
        logins.create_user(*reader)
        with pytest.raises(ConfigError, match="does not permit this to reader"):
            champion(*reader)
        log_in(*admin)
        logins.grant_user_permission("reader", "registered_model", "toy", "READ")
        assert champion(*reader) == 1

    def test_no_log_of_any_service_has_a_secret(self, installation: Installation) -> None:
        home = installation.settings.home
        names = ("mlflow_password", "mlflow_service_password", "mlflow_secret_key", "ray_auth_token")
        secrets = [home / name for name in names]
        values = [path.read_bytes() for path in secrets]
        assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
        tops = (home / "logs", home / "airflow" / "logs", ray_folder(installation.settings))
        logs = [path for top in tops for path in top.rglob("*") if path.is_file()]
        assert len(logs) > 20
        for path in logs:
            content = path.read_bytes()
            assert not [value for value in values if value in content], path

    def test_the_evidence_page_needs_a_login(self, installation: Installation) -> None:
        path = f"/penstock/run/{TRAIN}/first"
        assert installation.airflow.page(path, logged_in=False).status_code in (303, 401)
        shown = installation.airflow.page(path, logged_in=True)
        assert shown.status_code == 200
        assert "the first model" in shown.text

    def test_the_promotion_starts_scoring_and_every_row_is_published_once(
        self, installation: Installation
    ) -> None:
        run_id = installation.run_by_asset(SCORE)
        installation.succeeded(SCORE, run_id)
        snapshot = installation.airflow.xcom(SCORE, run_id, "data.validate")
        table = installation.predictions("toy")
        assert table.num_rows == snapshot["rows"] == 16 * ROWS_A_DAY
        assert len(set(table["prediction_id"].to_pylist())) == table.num_rows
        plan = installation.airflow.xcom(SCORE, run_id, "inference.plan")
        self.known.update(dag_run=run_id, run_id=plan["run_id"], rows=table.num_rows)

    def test_airflows_lineage_and_that_of_the_steps_are_one_picture(
        self, installation: Installation, lineage: Receiver
    ) -> None:
        def told(job: str) -> list[dict[str, Any]]:
            return [event for event in list(lineage.events) if event["job"]["name"] == job]

        for dag, task, step in (
            (TRAIN, "model.train", "toy.train_model"),
            (TRAIN, "model.evaluate", "toy.evaluate_model"),
            (SCORE, "inference.score", "toy.score_run"),
        ):
            job = f"{dag}.{task}"
            until(
                lambda job=job: "COMPLETE" in {e["eventType"] for e in told(job)} or None, f"the end of {job}"
            )
            ofs = {event["run"]["runId"]: event for event in told(job)}
            assert "START" in {event["eventType"] for event in told(job)}
            assert not [e for e in told(job) if "unknownSourceAttribute" in e["run"]["facets"]]
            for event in told(step):
                parent = event["run"]["facets"]["parent"]
                assert parent["run"]["runId"] in ofs and parent["job"]["name"] == job
                assert parent["job"]["namespace"] == ofs[parent["run"]["runId"]]["job"]["namespace"]
            assert {"START", "COMPLETE"} == {event["eventType"] for event in told(step)}
            of_dag = ofs[parent["run"]["runId"]]["run"]["facets"]["parent"]
            assert of_dag["job"]["name"] == dag
            assert of_dag["run"]["runId"] in {event["run"]["runId"] for event in told(dag)}

    def test_the_publication_starts_the_monitor(self, installation: Installation) -> None:
        run_id = installation.run_by_asset(MONITOR)
        installation.succeeded(MONITOR, run_id)
        decided = installation.airflow.xcom(MONITOR, run_id, "decide")
        assert decided["verdict"]
        installation.airflow.pause(MONITOR)

    def test_scoring_the_same_days_again_is_the_same_run_and_adds_no_row(
        self, installation: Installation
    ) -> None:
        installation.trigger(SCORE, "again", first_day="2024-02-05", last_day="2024-02-20")
        installation.succeeded(SCORE, "again")
        assert installation.airflow.xcom(SCORE, "again", "inference.plan")["run_id"] == self.known["run_id"]
        assert installation.airflow.xcom(SCORE, "again", "inference.score")["shards_committed"] == 0
        assert installation.predictions("toy").num_rows == self.known["rows"]

    @pytest.mark.parametrize("task_id", ["inference.publish", "inference.score"])
    def test_clearing_one_task_of_a_finished_run_is_safe(
        self, installation: Installation, task_id: str
    ) -> None:
        installation.clear(SCORE, self.known["dag_run"], task_id)
        table = installation.predictions("toy")
        assert table.num_rows == self.known["rows"]
        assert len(set(table["prediction_id"].to_pylist())) == table.num_rows

    def test_a_kill_in_the_ui_stops_the_ray_job_and_clearing_finishes_the_run(
        self, installation: Installation
    ) -> None:
        hold = installation.project / "hold"
        hold.touch()
        try:
            installation.trigger(SCORE, "killed", first_day="2024-02-21", last_day="2024-02-21")
            installation.task_in(SCORE, "killed", "inference.score", "deferred")
            until(
                lambda: (
                    [job["status"] for job in installation.ray_jobs(SCORE, "killed")] == ["RUNNING"] or None
                ),
                "the job",
            )
            installation.airflow.mark_failed(SCORE, "killed", "inference.score")
            until(
                lambda: installation.ray_jobs(SCORE, "killed")[0]["status"] == "STOPPED" or None,
                "the job's end",
            )
            assert installation.ended(SCORE, "killed") == "failed"
        finally:
            hold.unlink()
        assert installation.predictions("toy").num_rows == self.known["rows"]
        installation.clear(SCORE, "killed", "inference.score", downstream=True)
        assert [job["status"] for job in installation.ray_jobs(SCORE, "killed")] == ["STOPPED", "SUCCEEDED"]
        assert installation.predictions("toy").num_rows == self.known["rows"] + ROWS_A_DAY

    def test_a_model_that_the_gate_refuses_leaves_the_champion_alone(
        self, installation: Installation
    ) -> None:
        installation.edit(
            "toy",
            "pipeline.yaml",
            {"min_auc: 0.55": "min_auc: 0.99", "epochs: 6, patience: 3": "epochs: 1, patience: 1"},
        )
        installation.trigger(TRAIN, "refused")
        assert installation.ended(TRAIN, "refused") == "failed"
        gate = installation.task(TRAIN, "refused", "model.gate")
        assert (gate["state"], gate["try_number"]) == ("failed", 1)
        assert installation.task(TRAIN, "refused", "release.register")["state"] == "upstream_failed"
        log = installation.log(TRAIN, "refused", "model.gate")
        assert re.search(r"AUC.*0\.99", log, re.IGNORECASE), log
        assert "/penstock/report/toy/evaluation/" in log, log
        assert "Traceback" not in log
        champion = installation.mlflow("registered-models/alias", name="toy", alias="champion")[
            "model_version"
        ]
        assert champion["version"] == "1"
        shown = installation.airflow.page(f"/penstock/run/{TRAIN}/refused", logged_in=True)
        assert "Stopped by" in shown.text


class TestACase:
    """A broken feed, from the hold to the answer. Each test goes on where the one before it stopped."""

    CASE = "toy.case"

    DAYS = ("2024-02-22", "2024-02-23")

    def broken_day(self, installation: Installation, day: str) -> tuple[str, str]:
        """Look at a day whose prices are often null; the monitor's run and the id of its case, once its question waits."""
        run_id, case_id = f"broken-{day}", f"fault-{day}"
        installation.trigger(MONITOR, run_id, first_day=day, last_day=day)
        until(
            lambda: case_id in [run["dag_run_id"] for run in installation.airflow.runs(self.CASE)] or None,
            "the case's run",
        )
        installation.task_in(self.CASE, case_id, "ask", "deferred")
        # An answer before the scheduler has seen the end of the process that asked, quicker than any person, makes it take that end
        # for one of the task that the answer woke: it runs that once more, which asks again.
        log = log_of(installation.settings, "airflow-scheduler")
        ended = re.compile(rf"Received executor event .*'{self.CASE}', task_id='ask', run_id='{case_id}'")
        until(lambda: ended.search(log.read_text()), "the scheduler to see that the question waits")
        return run_id, case_id

    def held(self, installation: Installation) -> bool:
        return bool(wiring.scoring_status(installation.settings, "toy")["held"])

    def test_a_fault_fails_the_monitor_and_asks_in_a_run_of_its_own(self, installation: Installation) -> None:
        good = "np.where(rng.random(n) < 0.03, np.nan, price)"
        bad = good.replace("0.03", "(0.3 if day >= date(2024, 2, 22) else 0.03)")
        installation.edit("toy", "source.py", {good: bad})
        first_day, last_day = self.DAYS
        installation.trigger(SCORE, "broken", first_day=first_day, last_day=last_day)
        installation.succeeded(SCORE, "broken")
        assert not self.held(installation)
        monitor, case_id = self.broken_day(installation, first_day)
        assert self.held(installation)
        assert installation.ended(MONITOR, monitor) == "failed", "the task that asks does not hide it"
        assert installation.task(MONITOR, monitor, "mitigate")["state"] == "failed"
        assert installation.task(MONITOR, monitor, "case")["state"] == "success"
        shown = installation.airflow.page(f"/penstock/cases/toy/{case_id}", logged_in=True)
        assert shown.status_code == 200 and "of price is null" in shown.text, shown.text

    def test_the_button_is_kept_with_the_name_and_ends_the_hold(self, installation: Installation) -> None:
        case_id = f"fault-{self.DAYS[0]}"
        installation.airflow.answer(self.CASE, case_id, "ask", "Accept", reason="a sale", mute_until="")
        installation.succeeded(self.CASE, case_id)
        said = installation.airflow.xcom(self.CASE, case_id, "answer")
        assert (said["answer"], said["actor"], said["reason"]) == ("accept", "airflow:admin", "a sale")
        assert said["released"] and not self.held(installation)
        for task_id in ("roll_back", "retrain"):
            assert installation.task(self.CASE, case_id, task_id)["state"] == "skipped"

    def test_an_answer_on_the_command_line_ends_the_question_in_airflow(
        self, installation: Installation
    ) -> None:
        _, case_id = self.broken_day(installation, self.DAYS[1])
        answer = (
            "monitoring",
            "answer",
            "toy",
            case_id,
            "new-normal",
            "--actor",
            "bob",
            "--reason",
            "new partner",
        )
        done = installation.penstock(*answer)
        assert done.returncode == 0, done.stdout
        installation.succeeded(self.CASE, case_id)
        assert installation.airflow.xcom(self.CASE, case_id, "ask")["actor"] == "bob"
        again = installation.penstock(*answer)
        assert again.returncode == 0, again.stdout
        other = installation.penstock(*answer[:4], "accept", "--actor", "eve", "--reason", "me too")
        assert other.returncode == 2 and "was answered already: bob answered new normal" in other.stdout
        installation.airflow.pause(MONITOR)


BAD_DELIVERIES = {
    "truncated": ["is not a whole Parquet file", "deliver it again"],
    "lacking": ["lacks bought", "deliver all files with the same columns"],
    "hollow": ["has no rows", "deliver it again"],
}


@pytest.fixture(scope="module")
def trained_on(installation: Installation) -> Installation:
    """All bad deliveries at once: they have nothing to do with each other."""
    for pipeline in BAD_DELIVERIES:
        installation.trigger(f"{pipeline}.train", "bad")
    return installation


class TestBadDeliveries:
    @pytest.mark.parametrize("pipeline", BAD_DELIVERIES)
    def test_a_bad_file_is_named_with_its_fix_and_not_tried_again(
        self, trained_on: Installation, pipeline: str
    ) -> None:
        dag_id = f"{pipeline}.train"
        assert trained_on.ended(dag_id, "bad") == "failed"
        task = trained_on.task(dag_id, "bad", "data.snapshot")
        assert (task["state"], task["try_number"]) == ("failed", 1)
        log = trained_on.log(dag_id, "bad", "data.snapshot")
        for part in (f"pipelines/{pipeline}/delivered/day-2.parquet", "Fix: ", *BAD_DELIVERIES[pipeline]):
            assert part in log, log
        assert "Traceback" not in log


class TestTheEnd:
    def test_a_killed_scheduler_is_back_after_the_next_start(self, installation: Installation) -> None:
        scheduler = next(s for s in survey(installation.settings) if s.name == "airflow-scheduler")
        assert scheduler.pid is not None
        psutil.Process(scheduler.pid).kill()
        until(lambda: installation.penstock("status").returncode == 1 or None, "the status to show the loss")
        done = installation.penstock("up")
        assert done.returncode == 0, done.stdout
        assert all(state.healthy for state in survey(installation.settings))
        assert installation.airflow.run(TRAIN, "first")["state"] == "success"

    def test_down_ends_every_process(self, installation: Installation) -> None:
        processes = [process for process, _ in _processes(installation.settings)]
        assert len(processes) >= 6
        done = installation.penstock("down")
        assert done.returncode == 0, done.stdout
        assert installation.leftovers() == []
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert alive == []
