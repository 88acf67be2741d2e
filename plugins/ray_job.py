"""`PenstockRayJobOperator`: one step of a pipeline as a Ray job, with the task deferred while it runs.

The job's id follows from the task instance, which makes a retry safe at any moment:

    penstock-<dag>-<task>-<digest of dag, run, task, map index>-g<generation>-<attempt>

`generation` counts how often a person cleared the task: a cleared task starts a new job, and stops a job of an
earlier generation that still runs. Within a generation a retry attaches to a live job, adopts one that succeeded,
and starts the next attempt only when the last one failed, was stopped or is gone.

The job writes its answer to `jobs/<submission id>.json` in the store; Ray is asked only whether it has ended.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

from airflow.sdk import conf

from plugins.errors import airflow_error_of_record, as_airflow_errors
from plugins.links import dag_run_url, links_of, ray_job_url
from plugins.ray_job_trigger import RayJobTrigger
from plugins.ray_jobs_api import RayJob, RayJobs
from plugins.seen import task_ids, with_lineage_parent
from plugins.steps import WiredOperator, conclude, in_words, step_arguments
from tasks.core.errors import ConfigError, NotFound, PenstockError, TransientError
from tasks.core.ids import digest_json
from tasks.core.settings import Settings
from tasks.core.traces import span

PASSED_ON = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""Variables of the worker that the job gets too, next to `Settings.as_environment()`."""

SECRET = frozenset({"PENSTOCK_METADATA_URL"})
"""Settings that may hold a password."""


class PenstockRayJobOperator(WiredOperator):
    """Run `penstock job <step> <pipeline>` on the Ray cluster at `PENSTOCK_RAY_JOBS_URL`.

    Args, next to those of `WiredOperator`:
        tenant: Recorded in the job's metadata.
        entrypoint_python: The Python of the cluster. Default: `[penstock] ray_python` of Airflow's configuration
            (`AIRFLOW__PENSTOCK__RAY_PYTHON`), else this process's own.
        entrypoint: Replaces `<python> -m tasks.cli job` in front of the job's arguments.
        poll_s: Seconds between two looks at the job.
        unreachable_s: Seconds without an answer from Ray after which the attempt ends; the next one re-attaches.
        job_timeout: The job is stopped and the attempt fails after this time.

    A terminal error of the job fails the task at once; a transient one, a lost job or a silent cluster is retried.
    """

    ui_color = "#d9ecd9"

    def __init__(
        self,
        *,
        tenant: str = "default",
        entrypoint_python: str | None = None,
        entrypoint: Sequence[str] | None = None,
        poll_s: float = 2.0,
        unreachable_s: float = 120.0,
        job_timeout: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tenant = tenant
        self.entrypoint_python = entrypoint_python
        self.entrypoint = list(entrypoint) if entrypoint else None
        self.poll_s = poll_s
        self.unreachable_s = unreachable_s
        self.job_timeout = job_timeout
        self._live: tuple[str, str] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        with as_airflow_errors(self, context):
            settings = with_lineage_parent(Settings.from_environment(), context["ti"])
            arguments = step_arguments(self, context, settings)
            with (
                span(settings, "submit Ray job", step=self.step, **task_ids(context["ti"])) as around,
                RayJobs(settings.ray_jobs_url) as jobs,
            ):
                settings = replace(settings, trace_parent=around.parent_of_others or settings.trace_parent)
                submission_id, record, adopted = self._place(context, settings, jobs, arguments)
                if record is not None:
                    for line in _log_of(jobs, submission_id).splitlines():
                        self.log.info("%s", line)
        if record is not None:
            return self._conclude(context, settings, arguments, record, submission_id)
        return self._wait_for(settings, submission_id, adopted=adopted)

    def resume(
        self, context: Any, event: dict[str, Any], submission_id: str, adopted: bool
    ) -> dict[str, Any]:
        """Continue when the trigger has seen the job end."""
        with as_airflow_errors(self, context):
            settings = Settings.from_environment()
            self.links["ray_job"] = ray_job_url(settings.ray_jobs_url, submission_id)
            arguments = step_arguments(self, context, settings)
            record = _result(settings, submission_id)
        status = event["status"]
        succeeded = record is not None and record.get("ok")
        if status == "STOPPED" and adopted and not succeeded:
            self.log.info(
                "Ray job %s was being stopped when this attempt found it; starting anew", submission_id
            )
            return self.execute(context)
        if record is not None:
            return self._conclude(context, settings, arguments, record, submission_id)
        with as_airflow_errors(self, context):
            raise _without_result(submission_id, event)

    def on_kill(self) -> None:
        """The task process is told to end before the task was deferred: stop the job that it just started."""
        if self._live:
            url, submission_id = self._live
            self.log.warning("The task was stopped: stopping Ray job %s", submission_id)
            try:
                with RayJobs(url) as jobs:
                    jobs.stop(submission_id)
            except PenstockError as error:
                self.log.error("Could not stop Ray job %s: %s", submission_id, error)

    def _place(
        self, context: Any, settings: Settings, jobs: RayJobs, arguments: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any] | None, bool]:
        """Find this task's job or start it: (submission id, its result if it has succeeded, attached to a live one)."""
        ti = context["ti"]
        base = submission_base(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
        generation = max((getattr(ti, "max_tries", None) or 0) - (self.retries or 0), 0)
        self._end_earlier(jobs, base, generation)
        attempt = 0
        while True:
            submission_id = f"{base}-g{generation}-{attempt}"
            job = jobs.get(submission_id)
            if job is not None and not job.finished:
                self.log.info("Attached to Ray job %s, which is %s", submission_id, job.status)
                self._announce(settings, context, submission_id)
                return submission_id, None, True
            record = _result(settings, submission_id)
            if record is not None and record.get("ok"):
                self.log.info("Ray job %s has succeeded already; taking its result", submission_id)
                self._announce(settings, context, submission_id)
                self._live = None
                return submission_id, record, True
            if job is None and record is None:
                break
            attempt += 1
        self.log.info("Starting Ray job %s: %s with %s", submission_id, self.step, in_words(arguments))
        self._announce(settings, context, submission_id)
        jobs.submit(
            submission_id,
            entrypoint=self._command(submission_id, arguments),
            env=job_environment(settings),
            metadata=self._metadata(context, settings),
        )
        return submission_id, None, False

    def _announce(self, settings: Settings, context: Any, submission_id: str) -> None:
        self._live = (settings.ray_jobs_url, submission_id)
        self.links["ray_job"] = ray_job_url(settings.ray_jobs_url, submission_id)
        self.log.info("Ray job page: %s", self.links["ray_job"])
        context["ti"].xcom_push(key="_link_ray_job", value=self.links["ray_job"])

    def _end_earlier(self, jobs: RayJobs, base: str, generation: int) -> None:
        for earlier in range(generation):
            attempt = 0
            while (job := jobs.get(submission_id := f"{base}-g{earlier}-{attempt}")) is not None:
                if not job.finished:
                    self.log.info("Stopping Ray job %s of before the task was cleared", submission_id)
                    jobs.stop(submission_id)
                attempt += 1

    def _command(self, submission_id: str, arguments: Mapping[str, Any]) -> str:
        python = self.entrypoint_python or conf.get("penstock", "ray_python", fallback=None) or sys.executable
        head = self.entrypoint or [python, "-m", "tasks.cli", "job"]
        given = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
        tail = [self.step, self.pipeline, "--arguments", given, "--result", result_key(submission_id)]
        return shlex.join([*head, *tail])

    def _metadata(self, context: Any, settings: Settings) -> dict[str, str]:
        ti = context["ti"]
        return {
            "dag_id": ti.dag_id,
            "run_id": ti.run_id,
            "task_id": ti.task_id,
            "map_index": str(ti.map_index),
            "try_number": str(ti.try_number),
            "pipeline": self.pipeline,
            "step": self.step,
            "tenant": self.tenant,
            "airflow_url": dag_run_url(settings, ti.dag_id, ti.run_id),
        }

    def _wait_for(self, settings: Settings, submission_id: str, *, adopted: bool) -> NoReturn:
        self.defer(
            trigger=RayJobTrigger(
                jobs_url=settings.ray_jobs_url,
                submission_id=submission_id,
                poll_s=self.poll_s,
                unreachable_s=self.unreachable_s,
            ),
            method_name="resume",
            kwargs={"submission_id": submission_id, "adopted": adopted},
            timeout=self.job_timeout,
        )

    def _conclude(
        self,
        context: Any,
        settings: Settings,
        arguments: Mapping[str, Any],
        record: dict[str, Any],
        submission_id: str,
    ) -> dict[str, Any]:
        self.links["ray_job"] = ray_job_url(settings.ray_jobs_url, submission_id)
        if not record.get("ok"):
            failure = airflow_error_of_record(
                record.get("error") or {}, record.get("kind", "transient"), context
            )
            self.log.error("%s", failure)
            raise failure from None
        result = record.get("result") or {}
        self.links |= links_of(settings, self.pipeline, self.step, arguments, result)
        return conclude(self, context, result)


def submission_base(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """The part of the submission id that all jobs of one task instance share; safe in file names and URLs."""
    digest = digest_json([dag_id, run_id, task_id, map_index])[:12]
    readable = re.sub(r"[^A-Za-z0-9_]+", "_", f"{dag_id}-{task_id.rsplit('.', 1)[-1]}")
    return f"penstock-{readable[:60]}-{digest}"


def result_key(submission_id: str) -> str:
    """Where the job writes its answer in the installation's store."""
    return f"jobs/{submission_id}.json"


def job_environment(settings: Settings) -> dict[str, str]:
    """The variables a job needs to see the same installation.

    They may hold credentials, and Ray writes them into a log of its own. Where the nodes of the cluster have their
    credentials themselves (`[penstock] ray_has_secrets`), those are left out.
    """
    if conf.getboolean("penstock", "ray_has_secrets", fallback=False):
        return {name: value for name, value in settings.as_environment().items() if name not in SECRET}
    passed = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return {**settings.as_environment(), **passed}


def _result(settings: Settings, submission_id: str) -> dict[str, Any] | None:
    from tasks.core.object_store import open_store

    try:
        record = json.loads(open_store(settings).get(result_key(submission_id)))
    except NotFound:
        return None
    except ValueError as error:
        raise TransientError(
            f"is not JSON: {error}",
            which=f"the result of Ray job {submission_id} ({result_key(submission_id)})",
            fix="look at the job's log",
        ) from error
    return record if isinstance(record, dict) else None


def _log_of(jobs: RayJobs, submission_id: str) -> str:
    try:
        return jobs.logs(submission_id)
    except PenstockError:
        return ""


def _without_result(submission_id: str, event: Mapping[str, Any]) -> PenstockError:
    """What to tell the user about a job that ended without writing a result."""
    status, message = event["status"], str(event.get("message") or "").strip()
    job = RayJob(submission_id, status, message, event.get("exit_code"))
    said = f" Ray says: {_first_line(message)}" if message else ""
    what, fix = {
        "LOST": (
            "Ray no longer knows the job: its head was restarted.",
            "see in its log why; the next try continues from what is committed",
        ),
        "UNREACHABLE": (
            "Ray stopped answering.",
            "check that the Ray head runs; what is committed is kept",
        ),
        "STOPPED": (
            "the job was stopped outside this task.",
            "to stop a run, mark its task as failed in Airflow: that ends the job too",
        ),
        "REFUSED": (f"Ray refused the request. {message}", "correct what is named and clear the task"),
        "SUCCEEDED": (
            "the job succeeded but left no result.",
            "check that the cluster and Airflow use the same PENSTOCK_STORE",
        ),
    }.get(
        status,
        (
            f"the job ended with exit code {job.exit_code} and left no result.{said}",
            "read the job's log above; a process killed for memory leaves no traceback",
        ),
    )
    kind = ConfigError if status == "REFUSED" else TransientError
    return kind(what, which=f"Ray job {submission_id}", fix=fix)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]
