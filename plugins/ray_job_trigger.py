"""`RayJobTrigger`: waits for a Ray job in the triggerer and prints its log lines into the task's log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from plugins.ray_jobs_api import AsyncRayJobs, RayJob
from tasks.core.errors import PenstockError, ServiceUnavailable

POSITION_KEY = "ray_log_position"
"""XCom that remembers how much of the job's log is in the task's log, so that a new triggerer goes on from there."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,.]\d+\s+(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+")
"""What the job's own logging puts first; the task's log has a time and a level for each line already."""

_CHATTER = re.compile(
    r"(\S*job_manager\.py:\d+ -- Runtime env is setting up"
    r"|Running entrypoint for job "
    r"|\S*worker\.py:\d+ -- (Using address|Connecting to existing Ray cluster|Connected to Ray cluster)"
    r"|\S+\.py:\d+ -- Progress bars disabled)"
)
"""What Ray says in every job and no reader of a task's log needs; the Ray dashboard has it."""


LEAST_S = 5.0
"""A trigger does not end sooner after its start, even when the job does."""


class TriggererEnds(ConnectionError):
    """The triggerer process is shutting down: Airflow cannot be asked any more."""


class RayJobTrigger(BaseTrigger):
    """Follow one job until it ends.

    The event's payload is `{"status", "message", "exit_code"}`, where status is a final one of Ray's or

    - `LOST`: Ray answers and does not know the job: its head was restarted;
    - `UNREACHABLE`: Ray has not answered for `unreachable_s`. The job may still run.
    - `REFUSED`: Ray refuses the request; `message` says why.

    When the trigger is cancelled because the task is no longer deferred (marked failed or success, cleared, timed
    out, its run deleted), the job is stopped. When only the triggerer ends or hands the trigger over, the task
    still is deferred and the job runs on.
    """

    def __init__(
        self, *, jobs_url: str, submission_id: str, poll_s: float = 2.0, unreachable_s: float = 120.0
    ) -> None:
        super().__init__()
        self.jobs_url = jobs_url
        self.submission_id = submission_id
        self.poll_s = poll_s
        self.unreachable_s = unreachable_s
        self._printed = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "plugins.ray_job_trigger.RayJobTrigger",
            {
                "jobs_url": self.jobs_url,
                "submission_id": self.submission_id,
                "poll_s": self.poll_s,
                "unreachable_s": self.unreachable_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        started = time.monotonic()
        try:
            payload = await self._follow()
            # The scheduler must have seen the end of the deferring process first. When the task is queued again before
            # that, Airflow takes the one for the other's end, and the task for one that failed.
            await asyncio.sleep(max(0.0, LEAST_S - (time.monotonic() - started)))
        except asyncio.CancelledError:
            await self._stop_unless_deferred()
            raise
        yield TriggerEvent(payload)

    async def _follow(self) -> dict[str, Any]:
        self._printed = await self._load_position()
        status = ""
        silent_since: float | None = None
        unknown = 0
        async with AsyncRayJobs(self.jobs_url) as jobs:
            while True:
                try:
                    job = await jobs.get(self.submission_id)
                    if job is not None:
                        unknown = 0
                        if job.status != status:
                            status = job.status
                            self.log.info("Ray job %s is %s", self.submission_id, status)
                        pause = await self._print_log(jobs, job)
                        if job.finished:
                            return {
                                "status": job.status,
                                "message": job.message,
                                "exit_code": job.exit_code,
                            }
                    else:
                        unknown, pause = unknown + 1, self.poll_s
                        if unknown == 2:
                            return {
                                "status": "LOST",
                                "message": "Ray does not know the job",
                                "exit_code": None,
                            }
                    silent_since = None
                except ServiceUnavailable as error:
                    now = time.monotonic()
                    if silent_since is None:
                        silent_since = now
                        self.log.warning("%s; waiting up to %.0f s", error.what, self.unreachable_s)
                    if now - silent_since >= self.unreachable_s:
                        return {"status": "UNREACHABLE", "message": str(error), "exit_code": None}
                    pause = self.poll_s
                except PenstockError as error:
                    return {"status": "REFUSED", "message": str(error), "exit_code": None}
                await asyncio.sleep(pause)

    async def _print_log(self, jobs: AsyncRayJobs, job: RayJob) -> float:
        """Print what is new, whole lines only while the job runs; returns the seconds until the next look.

        Ray sends the whole log each time, so a log of many megabytes is fetched less often.
        """
        if job.status == "PENDING":
            return self.poll_s
        text = await jobs.logs(self.submission_id)
        end = len(text) if job.finished else text.rfind("\n") + 1
        if end > self._printed and await self._save_position(end):
            for line in text[self._printed : end].splitlines():
                self._print(line)
            self._printed = end
        return self.poll_s * (1 + len(text) / 2_000_000)

    def _print(self, line: str) -> None:
        shown = _ANSI.sub("", line).rstrip().rsplit("\r", 1)[-1]
        if not shown:
            return
        stamp = _STAMP.match(shown)
        if _CHATTER.match(shown[stamp.end() :] if stamp else shown):
            return
        found = stamp or _LEVEL.search(shown[:80])
        self.log.log(
            logging.getLevelName(found.group(1)) if found else logging.INFO,
            "%s",
            shown[stamp.end() :] if stamp else shown,
        )

    async def _load_position(self) -> int:
        from airflow.sdk.execution_time.comms import GetXCom

        ti = self.task_instance
        with suppress(Exception):  # no XCom yet, or no Airflow around: print from the start
            answer = await self._ask(
                GetXCom(
                    key=POSITION_KEY,
                    dag_id=ti.dag_id,
                    run_id=ti.run_id,
                    task_id=ti.task_id,
                    map_index=ti.map_index,
                )
            )
            submission_id, position = str(answer.value).strip('"').rsplit(":", 1)
            return int(position) if submission_id == self.submission_id else 0
        return 0

    async def _save_position(self, position: int) -> bool:
        """Remember `position` before it is printed; False when this triggerer ends and the next one will print."""
        from airflow.sdk.execution_time.comms import SetXCom

        ti = self.task_instance
        if ti is None:
            return True
        try:
            await self._ask(
                SetXCom(
                    key=POSITION_KEY,
                    value=f"{self.submission_id}:{position}",
                    dag_id=ti.dag_id,
                    run_id=ti.run_id,
                    task_id=ti.task_id,
                    map_index=ti.map_index,
                )
            )
        except TriggererEnds:
            return False
        except Exception as error:  # the worst that follows is lines printed twice after a restart
            self.log.debug("Could not remember the log's position: %s", error)
        return True

    async def _task_state(self) -> str | None:
        """The task's state now; `deleted` when it is gone, None when nobody can say."""
        from airflow.sdk.execution_time.comms import GetTaskStates

        ti = self.task_instance
        try:
            answer = await self._ask(
                GetTaskStates(
                    dag_id=ti.dag_id, run_ids=[ti.run_id], task_ids=[ti.task_id], map_index=ti.map_index
                )
            )
            states = answer.task_states.get(ti.run_id, {})
        except Exception:
            return None
        if not states:
            return "deleted"
        state = next(iter(states.values()))
        return str(getattr(state, "value", state) or "cleared")

    async def _ask(self, message: Any) -> Any:
        """Send a message to Airflow through the triggerer; fails at once when the triggerer is shutting down."""
        from airflow.sdk.execution_time import task_runner

        comms = task_runner.SUPERVISOR_COMMS
        reader = getattr(comms, "_reader_task", None)
        if reader is None or reader.done():
            raise TriggererEnds("the triggerer is shutting down")
        return await asyncio.wait_for(comms.asend(message), timeout=10)

    async def _stop_unless_deferred(self) -> None:
        state = await self._task_state()
        if state in (None, "deferred"):
            self.log.info("The triggerer lets go of Ray job %s, which runs on", self.submission_id)
            return
        self.log.warning("The task is %s: stopping Ray job %s", state, self.submission_id)
        try:
            async with AsyncRayJobs(self.jobs_url) as jobs:
                await jobs.stop(self.submission_id)
        except PenstockError as error:
            self.log.error("Could not stop Ray job %s: %s", self.submission_id, error)
