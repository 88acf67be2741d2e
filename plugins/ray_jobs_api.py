"""The part of Ray's Jobs REST API that a task and its trigger need, over plain HTTP.

One class builds requests and reads answers; `RayJobs` sends them from a task process, `AsyncRayJobs` from the
triggerer. When `RAY_AUTH_TOKEN` is set it is sent as a bearer token, and never logged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tasks.core.errors import ConfigError, ServiceUnavailable

if TYPE_CHECKING:
    import httpx

FINISHED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RayJob:
    """What Ray says about one job."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    exit_code: int | None

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


def _headers() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _job(submission_id: str, response: httpx.Response) -> RayJob | None:
    if response.status_code == 404:
        return None
    _check(response)
    raw = response.json()
    return RayJob(submission_id, raw["status"], raw.get("message") or "", raw.get("driver_exit_code"))


def _check(response: httpx.Response) -> None:
    if response.status_code in (401, 403):
        raise ConfigError(
            f"refused the request with HTTP {response.status_code}",
            which=f"Ray Jobs API at {response.request.url}",
            fix="set RAY_AUTH_TOKEN for Airflow's workers and triggerer to the cluster's token",
        )
    if response.status_code == 400:
        raise ConfigError(
            _last_line(response.text), which=f"Ray Jobs API at {response.request.url}", fix="correct the job"
        )
    if response.status_code >= 400:
        raise ServiceUnavailable(
            f"answered HTTP {response.status_code}: {_last_line(response.text)}",
            which=f"Ray Jobs API at {response.request.url}",
            fix="check the Ray head's dashboard log",
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "no reason given"


def _unreachable(url: str, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"does not answer ({type(error).__name__}: {error})",
        which=f"Ray Jobs API at {url}",
        fix="check that the Ray head runs and that PENSTOCK_RAY_JOBS_URL names it",
    )


class RayJobs:
    """Blocking client for a task process.

    Every method raises `ServiceUnavailable` when Ray does not answer and `ConfigError` when it refuses.
    """

    def __init__(self, url: str) -> None:
        import httpx

        self._url = url
        self._http = httpx.Client(
            base_url=url, headers=_headers(), timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        import httpx

        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from error

    def get(self, submission_id: str) -> RayJob | None:
        """The job, or None when Ray does not know it."""
        return _job(submission_id, self._send("GET", f"/api/jobs/{submission_id}"))

    def submit(
        self, submission_id: str, *, entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Start the job. Doing it twice starts it once: Ray refuses an id that it knows.

        An answer that got lost is looked up by the id, so that no second job is started (I4).
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": {"env_vars": dict(env)},
            "metadata": dict(metadata),
        }
        try:
            _check(self._send("POST", "/api/jobs/", body))
        except (ServiceUnavailable, ConfigError):
            if self.get(submission_id) is None:
                raise

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop the job; one that has finished, or is unknown, is left as it is."""
        response = self._send("POST", f"/api/jobs/{submission_id}/stop")
        if response.status_code != 404:
            _check(response)

    def logs(self, submission_id: str) -> str:
        """Everything the job's driver printed so far."""
        response = self._send("GET", f"/api/jobs/{submission_id}/logs")
        _check(response)
        return str(response.json().get("logs") or "")


class AsyncRayJobs:
    """The same for the triggerer's event loop."""

    def __init__(self, url: str) -> None:
        import httpx

        self._url = url
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(), timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _send(self, method: str, path: str) -> httpx.Response:
        import httpx

        try:
            return await self._http.request(method, path)
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from error

    async def get(self, submission_id: str) -> RayJob | None:
        return _job(submission_id, await self._send("GET", f"/api/jobs/{submission_id}"))

    async def stop(self, submission_id: str) -> None:
        response = await self._send("POST", f"/api/jobs/{submission_id}/stop")
        if response.status_code != 404:
            _check(response)

    async def logs(self, submission_id: str) -> str:
        response = await self._send("GET", f"/api/jobs/{submission_id}/logs")
        _check(response)
        return str(response.json().get("logs") or "")
