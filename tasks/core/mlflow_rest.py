"""Calls of MLflow's REST API, with short deadlines and errors that say what to do.

The REST API rather than MLflow's client: the client takes seconds to import, keeps its deadlines in
process-wide environment variables and by default retries for minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from tasks.core.errors import ConfigError, LoginRefused, NotFound, ServiceUnavailable, TerminalError
from tasks.core.mlflow_login import Login, login_refused, mlflow_login, not_permitted

_ATTEMPTS = 2
_PAUSE_S = 0.3


class AlreadyExists(TerminalError):
    """What was to be created is there."""


class NoLogins(ConfigError):
    """This MLflow has no users."""


class MlflowRest:
    """One MLflow server.

    Args:
        url: Base URL; a user and password in it are used in place of those of the environment, and never shown.
        login: User and password in place of both.
        refused: The error for a login that is refused, of where and which user.
        connect_s: Seconds to wait for a connection.
        answer_s: Seconds to wait for an answer.
    """

    def __init__(
        self,
        url: str,
        *,
        login: Login | None = None,
        refused: Callable[..., LoginRefused] = login_refused,
        connect_s: float = 3.0,
        answer_s: float = 15.0,
    ) -> None:
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL:
            raise ConfigError(
                "is not a URL", which="PENSTOCK_MLFLOW_URL", fix="write it as http://host:port"
            ) from None
        self.public_url = str(base.copy_with(username=None, password=None)).rstrip("/")
        if login is None:
            login = (base.username, base.password) if base.userinfo else mlflow_login()
        self.user = login[0] if login else None
        self._refused = refused
        self._client = httpx.Client(
            base_url=base.copy_with(username=None, password=None),
            auth=login,
            timeout=httpx.Timeout(answer_s, connect=connect_s),
            verify=base.scheme != "http",  # building a TLS context costs more than most calls
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def call(
        self, method: str, path: str, *, attempts: int = _ATTEMPTS, version: str = "2.0", **content: Any
    ) -> dict[str, Any]:
        """The answer to a call below `/api/<version>/mlflow/`.

        Raises:
            AlreadyExists: What it would make is there.
            NotFound: What it is about is not there.
            LoginRefused: MLflow does not know the user, or the password is another.
            ConfigError: The user may not do this, or no MLflow answers at this URL.
            TerminalError: MLflow refused for another reason, which is told.
            ServiceUnavailable: It does not answer.
        """
        for left in reversed(range(attempts)):
            try:
                answer = self._client.request(method, f"/api/{version}/mlflow/{path}", **content)
            except httpx.ConnectError as error:
                problem = f"does not accept connections ({error})"
            except httpx.HTTPError as error:
                problem = f"did not answer ({type(error).__name__}: {error})"
                break  # a server that hangs is not asked twice: the caller waits for this
            else:
                if left and _lost_a_race(answer):
                    continue  # the row that the other call inserted is updated this time
                if answer.status_code < 500 and answer.status_code != 429:
                    return self._understood(answer, f"{method} {path}")
                problem = f"answered {answer.status_code}: {_message(answer)}"
            if left:
                time.sleep(_PAUSE_S)
        raise ServiceUnavailable(
            f"MLflow {problem}",
            which=f"{self.public_url} ({path})",
            fix="start MLflow (`make up`, `make status`) or correct PENSTOCK_MLFLOW_URL, then run again",
        )

    def _understood(self, answer: httpx.Response, call: str) -> dict[str, Any]:
        which = f"{self.public_url} ({call})"
        try:
            body = answer.json() if answer.content else {}
        except ValueError:
            body = None
        if answer.is_success and isinstance(body, dict):
            return body
        if answer.status_code == 401:
            raise self._refused(which, user=self.user)
        if answer.status_code == 403 and "Permission denied" in answer.text:
            raise not_permitted(which, user=self.user)
        code = body.get("error_code") if isinstance(body, dict) else None
        if code == "RESOURCE_ALREADY_EXISTS":
            raise AlreadyExists(_message(answer), which=which)
        if code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFound(
                f"MLflow says: {_message(answer)}", which=which, fix="check the name in the MLflow UI"
            )
        if code is None and answer.status_code == 404 and " users/" in call:
            raise NoLogins(
                "keeps no logins",
                which=which,
                fix="start MLflow with `--app-name basic-auth`; docs/deployment.md",
            )
        if code is None:
            raise ConfigError(
                f"does not answer like an MLflow server (HTTP {answer.status_code})",
                which=which,
                fix="correct PENSTOCK_MLFLOW_URL; for a 403, start MLflow with --allowed-hosts naming this host",
            )
        raise TerminalError(
            f"MLflow refused: {_message(answer)} ({code})", which=which, fix="see its message"
        )


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """As MLflow's calls take them."""
    return [{"key": key, "value": value} for key, value in tags.items()]


def _lost_a_race(answer: httpx.Response) -> bool:
    """MLflow sets aliases and tags by SELECT and INSERT: of two first calls at once one hits the unique key.

    It answers HTTP 400 with the database's error in its message (`sqlite3.IntegrityError`,
    `psycopg2.errors.UniqueViolation`), and nothing was written for the loser.
    """
    return answer.status_code == 400 and any(
        name in _message(answer) for name in ("IntegrityError", "UniqueViolation")
    )


def _message(answer: httpx.Response) -> str:
    try:
        text = answer.json().get("message", "")
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(str(text).split())[:300]
