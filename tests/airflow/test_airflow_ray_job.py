"""The Ray job operator and its trigger, against a Jobs API in this process."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow_fakes import FakeRay, context_of

from plugins import ray_job_trigger
from plugins.ray_job import PenstockRayJobOperator, job_environment, result_key, submission_base
from plugins.ray_job_trigger import RayJobTrigger, TriggererEnds
from tasks.core import Settings, open_store

BASE = submission_base("toy.train", "manual__1", "model.train", -1)
OK = {"ok": True, "result": {"bundle_digest": "ffee", "mlflow_run_id": "r1"}}


class LogLines(logging.Handler):
    """What operator and trigger say, whatever Airflow has made of the logging configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: dict[str, str] = {}
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.levels[record.getMessage()] = record.levelname

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def with_word(self, word: str) -> list[str]:
        return [line for line in self.lines if word in line]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    lines = LogLines()
    logger = logging.Logger("task", logging.DEBUG)
    logger.addHandler(lines)
    monkeypatch.setattr(PenstockRayJobOperator, "log", logger)
    monkeypatch.setattr(RayJobTrigger, "log", logger)
    return lines


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no scheduler to wait for."""
    monkeypatch.setattr(ray_job_trigger, "LEAST_S", 0.0)


@pytest.fixture
def cluster(installed: Settings, ray_api: FakeRay, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setenv("PENSTOCK_RAY_JOBS_URL", ray_api.url)
    return ray_api


def operator(**kwargs: Any) -> PenstockRayJobOperator:
    kwargs = {"arguments": {"snapshot_id": "s 1"}, "retries": 2, **kwargs}
    return PenstockRayJobOperator(task_id="model.train", step="train_model", pipeline="toy", **kwargs)


def start(**context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(context_of(**context))
    return deferred.value


def finish(settings: Settings, record: dict[str, Any], submission_id: str = f"{BASE}-g0-0") -> None:
    open_store(settings).put(result_key(submission_id), json.dumps(record).encode())


def resume(status: str, *, adopted: bool = False, try_number: int = 1, **event: Any) -> dict[str, Any]:
    payload = {"status": status, "message": "", "exit_code": None, **event}
    return operator().resume(context_of(try_number=try_number), payload, f"{BASE}-g0-0", adopted)


def test_the_first_attempt_submits_one_job_that_describes_itself(
    cluster: FakeRay, installed: Settings, monkeypatch: pytest.MonkeyPatch, log: LogLines
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    monkeypatch.setenv("AIRFLOW__PENSTOCK__RAY_PYTHON", "/opt/ray/python")
    deferred = start()
    (request,) = cluster.submitted
    assert request["submission_id"] == f"{BASE}-g0-0"
    assert shlex.split(request["entrypoint"]) == [
        "/opt/ray/python",
        "-m",
        "tasks.cli",
        "job",
        "train_model",
        "toy",
        "--arguments",
        '{"snapshot_id":"s 1"}',
        "--result",
        f"jobs/{BASE}-g0-0.json",
    ]
    env = request["runtime_env"]["env_vars"]
    assert env["PENSTOCK_STORE"] == installed.store_url
    assert env["AWS_SECRET_ACCESS_KEY"] == "very secret"
    assert "very secret" not in log.text
    assert request["metadata"]["dag_id"] == "toy.train"
    assert request["metadata"]["tenant"] == "default"
    assert all(isinstance(value, str) for value in request["metadata"].values())
    assert deferred.trigger.submission_id == f"{BASE}-g0-0"
    assert deferred.method_name == "resume"


def test_ids_differ_by_run_task_and_map_index_and_suit_a_file_name() -> None:
    ids = {
        submission_base(dag, run, task, index)
        for dag in ("a.train", "b.train")
        for run in ("manual__2024-01-01T00:00:00+00:00", "r/2")
        for task in ("x", "group.x")
        for index in (-1, 0)
    }
    assert len(ids) == 16
    assert all(
        set(one) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for one in ids
    )


def test_the_link_to_the_job_is_there_while_the_task_waits(cluster: FakeRay) -> None:
    context = context_of()
    with pytest.raises(TaskDeferred):
        operator().execute(context)
    assert context["ti"].xcoms["_link_ray_job"] == f"{cluster.url}/#/jobs/{BASE}-g0-0"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_retry_attaches_to_a_live_job(cluster: FakeRay, status: str) -> None:
    cluster.add(f"{BASE}-g0-0", status)
    deferred = start(try_number=2)
    assert cluster.submitted == []
    assert deferred.kwargs == {"submission_id": f"{BASE}-g0-0", "adopted": True}


def test_a_retry_adopts_a_job_that_has_succeeded(
    cluster: FakeRay, installed: Settings, log: LogLines
) -> None:
    cluster.add(f"{BASE}-g0-0", "SUCCEEDED", logs="epoch 1\n")
    finish(installed, OK)
    assert operator().execute(context_of(try_number=2)) == OK["result"]
    assert cluster.submitted == []
    assert "epoch 1" in log.text


def test_a_result_outlives_the_ray_head_that_made_it(cluster: FakeRay, installed: Settings) -> None:
    finish(installed, OK)
    assert operator().execute(context_of(try_number=2)) == OK["result"]
    assert cluster.submitted == []


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_retry_after_a_job_without_result_starts_the_next_one(cluster: FakeRay, status: str) -> None:
    cluster.add(f"{BASE}-g0-0", status)
    cluster.add(f"{BASE}-g0-1", "FAILED")
    assert start(try_number=3).trigger.submission_id == f"{BASE}-g0-2"


def test_a_cleared_task_starts_anew_and_stops_the_job_of_before(
    cluster: FakeRay, installed: Settings
) -> None:
    cluster.add(f"{BASE}-g0-0", "RUNNING")
    cluster.add(f"{BASE}-g0-1", "SUCCEEDED")
    finish(installed, OK, f"{BASE}-g0-1")
    deferred = start(try_number=3, max_tries=4)
    assert deferred.trigger.submission_id == f"{BASE}-g2-0"
    assert cluster.stopped == [f"{BASE}-g0-0"]


def test_an_attempt_that_found_a_job_being_stopped_starts_its_own(cluster: FakeRay) -> None:
    cluster.add(f"{BASE}-g0-0", "STOPPED")
    with pytest.raises(TaskDeferred) as deferred:
        resume("STOPPED", adopted=True)
    assert deferred.value.trigger.submission_id == f"{BASE}-g0-1"


def test_a_lost_answer_to_a_submission_starts_no_second_job(cluster: FakeRay) -> None:
    cluster.lose_next_answer = True
    assert start().trigger.submission_id == f"{BASE}-g0-0"
    assert len(cluster.submitted) == 1


def test_a_silent_cluster_is_retried_and_named(cluster: FakeRay) -> None:
    cluster.broken = True
    with pytest.raises(AirflowException, match=r"RuntimeError: no agent.*\n  Fix:") as caught:
        operator().execute(context_of())
    assert not isinstance(caught.value, AirflowFailException)
    assert str(caught.value).endswith("the task tries again by itself: this was try 1 of 3")


def test_the_log_of_the_last_try_does_not_promise_another(cluster: FakeRay, log: LogLines) -> None:
    cluster.broken = True
    with pytest.raises(AirflowException):
        operator().execute(context_of(try_number=3))
    assert "no try is left, this was the last of 3: clear the task when the cause is gone" in log.text
    assert "by itself" not in log.text


def test_success_returns_the_result_and_the_links(cluster: FakeRay, installed: Settings) -> None:
    finish(installed, OK)
    task = operator()
    event = {"status": "SUCCEEDED", "message": "", "exit_code": 0}
    assert task.resume(context_of(), event, f"{BASE}-g0-0", False) == OK["result"]
    assert task.links["mlflow_run"].endswith("/#/runs/r1")
    assert task.links["ray_job"].endswith(f"{BASE}-g0-0")


@pytest.mark.parametrize(("kind", "retried"), [("terminal", False), ("transient", True), ("unknown", True)])
def test_the_jobs_own_error_reaches_the_task_whole(
    cluster: FakeRay, installed: Settings, kind: str, retried: bool
) -> None:
    error = {
        "type": "PipelineCodeError",
        "what": "build() raised",
        "which": "model.py:7",
        "fix": "correct it",
    }
    finish(installed, {"ok": False, "kind": kind, "error": error})
    with pytest.raises(AirflowException) as caught:
        resume("FAILED", exit_code=2)
    whole = "model.py:7: build() raised\n  Fix: correct it"
    again = "; the task tries again by itself: this was try 1 of 3" if retried else ""
    assert str(caught.value) == whole + again
    assert isinstance(caught.value, AirflowFailException) is not retried
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("status", "event", "says"),
    [
        ("FAILED", {"exit_code": 137, "message": "Job entrypoint command failed"}, "exit code 137"),
        ("LOST", {}, "head was restarted"),
        ("UNREACHABLE", {}, "stopped answering"),
        ("STOPPED", {}, "stopped outside this task"),
        ("SUCCEEDED", {}, "same PENSTOCK_STORE"),
    ],
)
def test_a_job_without_a_result_is_retried_with_a_plain_reason(
    cluster: FakeRay, status: str, event: dict[str, Any], says: str
) -> None:
    with pytest.raises(AirflowException, match=says) as caught:
        resume(status, **event)
    assert not isinstance(caught.value, AirflowFailException)
    assert "Fix:" in str(caught.value)
    assert str(caught.value).endswith("by itself: this was try 1 of 3")
    with pytest.raises(AirflowException, match=says) as last:
        resume(status, try_number=3, **event)
    assert str(last.value).endswith("this was the last of 3: clear the task when the cause is gone")
    assert "by itself" not in str(last.value)


def test_a_refusal_is_not_retried(cluster: FakeRay) -> None:
    with pytest.raises(AirflowFailException, match="RAY_AUTH_TOKEN"):
        resume("REFUSED", message="set RAY_AUTH_TOKEN")


def test_a_task_process_that_is_told_to_end_stops_the_job_it_started(cluster: FakeRay) -> None:
    task = operator()
    task.on_kill()
    assert cluster.stopped == []
    with pytest.raises(TaskDeferred):
        task.execute(context_of())
    task.on_kill()
    assert cluster.stopped == [f"{BASE}-g0-0"]


def test_the_token_is_sent_and_an_installation_without_one_sends_none(
    cluster: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    start(try_number=2)
    assert cluster.tokens[0] is None
    assert cluster.tokens[-1] == "Bearer t0ken"


def test_a_job_sees_the_same_installation(installed: Settings) -> None:
    assert Settings.from_environment(job_environment(installed)) == installed


def test_a_job_gets_credentials_only_where_the_cluster_has_none_itself(
    installed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(installed, metadata_url="postgresql+psycopg://penstock:s3cr3t@db/penstock")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    assert "s3cr3t" in str(job_environment(settings))
    monkeypatch.setenv("AIRFLOW__PENSTOCK__RAY_HAS_SECRETS", "True")
    given = job_environment(settings)
    assert "s3cr3t" not in str(given)
    assert given["PENSTOCK_STORE"] == settings.store_url


# -- the trigger


class WatchedTrigger(RayJobTrigger):
    """A trigger whose Airflow answers what a test says."""

    def __init__(self, url: str, *, state: str | None = None, position: str | None = None) -> None:
        super().__init__(jobs_url=url, submission_id="j", poll_s=0.01, unreachable_s=0.05)
        self.task_instance = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)
        self.state, self.position, self.ends = state, position, False

    async def _ask(self, message: Any) -> Any:
        if self.ends:
            raise TriggererEnds
        kind = type(message).__name__
        if kind == "GetXCom":
            return SimpleNamespace(value=self.position)
        if kind == "SetXCom":
            self.position = message.value
            return None
        if self.state is None:
            raise ConnectionError("nobody knows")
        return SimpleNamespace(task_states={"r": {"t": self.state}} if self.state != "deleted" else {})


def follow(trigger: RayJobTrigger) -> dict[str, Any]:
    async def first() -> dict[str, Any]:
        async for event in trigger.run():
            return event.payload
        raise AssertionError("no event")

    return asyncio.run(first())


def cancel(trigger: RayJobTrigger, api: FakeRay) -> None:
    async def go() -> None:
        task = asyncio.create_task(anext(trigger.run()))
        while len(api.tokens) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())


def test_a_job_that_ends_at_once_is_not_reported_before_the_scheduler_saw_the_deferral(
    ray_api: FakeRay, log: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job_trigger, "LEAST_S", 2.0)
    ray_api.add("j", "SUCCEEDED")

    async def go() -> dict[str, Any]:
        task = asyncio.create_task(anext(WatchedTrigger(ray_api.url).run()))
        while not log.with_word("is SUCCEEDED"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not task.done()
        return (await task).payload

    assert asyncio.run(go())["status"] == "SUCCEEDED"


def test_lines_are_printed_once_while_the_job_runs_and_at_its_end(ray_api: FakeRay, log: LogLines) -> None:
    after = {
        "status": "SUCCEEDED",
        "logs": "line 1\n\x1b[31mline 2 ERROR\x1b[0m\nline 3",
        "driver_exit_code": 0,
    }
    ray_api.add("j", logs="line 1\nline 2 ER", then=after)
    assert follow(WatchedTrigger(ray_api.url))["status"] == "SUCCEEDED"
    assert log.with_word("line") == ["line 1", "line 2 ERROR", "line 3"]
    assert log.levels["line 2 ERROR"] == "ERROR"


def test_the_jobs_own_time_and_level_are_not_printed_twice(ray_api: FakeRay, log: LogLines) -> None:
    ray_api.add("j", "SUCCEEDED", logs="2026-11-21 03:37:22,123 WARNING tasks.training: one line of 3\n")
    follow(WatchedTrigger(ray_api.url))
    assert log.with_word("line") == ["tasks.training: one line of 3"]
    assert log.levels["tasks.training: one line of 3"] == "WARNING"


def test_what_ray_says_in_every_job_is_left_out(ray_api: FakeRay, log: LogLines) -> None:
    chatter = (
        "2026-11-21 04:10:42,1 INFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job j: python -m tasks.cli job\n"
        "2026-11-21 04:13:26,2 INFO worker.py:1841 -- Connecting to existing Ray cluster at address: a...\n"
        "line 1 of ours\n"
        "2026-11-21 04:13:26,2 ERROR worker.py:99 -- The worker died: line 2\n"
    )
    ray_api.add("j", "SUCCEEDED", logs=chatter)
    follow(WatchedTrigger(ray_api.url))
    assert log.with_word("line") == ["line 1 of ours", "worker.py:99 -- The worker died: line 2"]
    assert not log.with_word("entrypoint") + log.with_word("Runtime env") + log.with_word("Connecting")


def test_a_new_triggerer_goes_on_where_the_last_one_stopped(ray_api: FakeRay, log: LogLines) -> None:
    ray_api.add("j", "SUCCEEDED", logs="line 1\nline 2\n")
    follow(WatchedTrigger(ray_api.url, position=f"j:{len('line 1') + 1}"))
    assert log.with_word("line") == ["line 2"]


def test_the_position_of_another_job_does_not_count(ray_api: FakeRay, log: LogLines) -> None:
    ray_api.add("j", "SUCCEEDED", logs="line 1\n")
    follow(WatchedTrigger(ray_api.url, position="other:7"))
    assert log.with_word("line") == ["line 1"]


def test_a_triggerer_that_ends_leaves_new_lines_to_the_next_one(ray_api: FakeRay, log: LogLines) -> None:
    ray_api.add("j", logs="line 1\n")
    trigger = WatchedTrigger(ray_api.url)
    trigger.ends = True
    cancel(trigger, ray_api)
    assert log.with_word("line") == []
    assert ray_api.stopped == []


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "scheduled", "deleted"])
def test_a_cancelled_trigger_stops_the_job_when_the_task_is_no_longer_deferred(
    ray_api: FakeRay, state: str
) -> None:
    ray_api.add("j")
    cancel(WatchedTrigger(ray_api.url, state=state), ray_api)
    assert ray_api.stopped == ["j"]


@pytest.mark.parametrize("state", ["deferred", None])
def test_a_triggerer_that_restarts_or_hands_over_leaves_the_job_alone(
    ray_api: FakeRay, state: str | None
) -> None:
    ray_api.add("j")
    cancel(WatchedTrigger(ray_api.url, state=state), ray_api)
    assert ray_api.stopped == []


def test_a_restarted_head_is_told_from_a_silent_one(ray_api: FakeRay) -> None:
    assert follow(WatchedTrigger(ray_api.url))["status"] == "LOST"
    ray_api.broken = True
    assert follow(WatchedTrigger(ray_api.url))["status"] == "UNREACHABLE"


def test_a_trigger_is_rebuilt_from_what_it_serialises() -> None:
    path, kwargs = RayJobTrigger(jobs_url="http://x", submission_id="j", poll_s=3.0).serialize()
    assert path == f"{RayJobTrigger.__module__}.{RayJobTrigger.__qualname__}"
    assert RayJobTrigger(**kwargs).serialize() == (path, kwargs)
