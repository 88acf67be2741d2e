"""The few calls of MLflow's REST API that the registry needs, with short deadlines.

The REST API rather than MLflow's client: the client takes seconds to import, keeps its deadlines in
process-wide environment variables and by default retries for minutes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from tasks.core.errors import ConfigError, NotFound, ServiceUnavailable, TerminalError
from tasks.core.mlflow_login import login_refused, mlflow_login, not_permitted

_ATTEMPTS = 2
_PAUSE_S = 0.3
_SEARCH_PAGE = 200


class MlflowRegistry:
    """One MLflow server, as registry.

    Args:
        url: Base URL; a user and password in it are used in place of those of the environment, and never shown.
        connect_s: Seconds to wait for a connection.
        answer_s: Seconds to wait for an answer.
    """

    def __init__(self, url: str, *, connect_s: float = 3.0, answer_s: float = 15.0) -> None:
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL:
            raise ConfigError(
                "is not a URL", which="PENSTOCK_MLFLOW_URL", fix="write it as http://host:port"
            ) from None
        self.public_url = str(base.copy_with(username=None, password=None)).rstrip("/")
        login = (base.username, base.password) if base.userinfo else mlflow_login()
        self._user = login[0] if login else None
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

    def ensure_model(self, name: str, *, description: str, tags: Mapping[str, str]) -> None:
        """Create the registered model unless it exists; an existing description, maybe a person's, stays."""
        try:
            self._call("GET", "registered-models/get", params={"name": name})
            return
        except NotFound:
            pass
        try:
            self._call(
                "POST",
                "registered-models/create",
                json={"name": name, "description": description, "tags": _tag_list(tags)},
            )
        except _AlreadyExists:
            return

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version. Raises `NotFound` when there is no such model."""
        model = self._call("GET", "registered-models/get", params={"name": name})["registered_model"]
        return {item["alias"]: int(item["version"]) for item in model.get("aliases", [])}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point `alias` at `version`. Raises `NotFound` when the version is gone."""
        self._call(
            "POST", "registered-models/alias", json={"name": name, "alias": alias, "version": str(version)}
        )

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove `alias`; nothing happens when it is not there."""
        try:
            self._call("DELETE", "registered-models/alias", json={"name": name, "alias": alias})
        except NotFound:
            return

    def versions_with_tag(self, name: str, key: str, value: str) -> list[int]:
        """Versions that carry a tag, lowest first."""
        found: list[int] = []
        page = ""
        while True:
            answer = self._call(
                "GET",
                "model-versions/search",
                params={
                    "filter": f"name = '{name}' AND tags.`{key}` = '{value}'",
                    "max_results": _SEARCH_PAGE,
                    **({"page_token": page} if page else {}),
                },
            )
            found.extend(int(item["version"]) for item in answer.get("model_versions", []))
            page = answer.get("next_page_token", "")
            if not page:
                return sorted(found)

    def create_version(
        self,
        name: str,
        *,
        source: str,
        run_id: str | None,
        description: str,
        tags: Mapping[str, str],
    ) -> int:
        """Create a version of `name` from `source` (`models:/m-...`, `runs:/...` or an artifact URI).

        It is asked for once: after a lost answer the version may exist, and its tags tell.
        """
        body: dict[str, Any] = {"name": name, "source": source, "description": description}
        body["tags"] = _tag_list(tags)
        if run_id:
            body["run_id"] = run_id
        if source.startswith("models:/m-"):
            body["model_id"] = source.removeprefix("models:/").split("/")[0]
        answer = self._call("POST", "model-versions/create", json=body, attempts=1)
        return int(answer["model_version"]["version"])

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version; nothing happens when it is gone."""
        try:
            self._call("DELETE", "model-versions/delete", json={"name": name, "version": str(version)})
        except NotFound:
            return

    def run_url(self, run_id: str) -> str:
        """Page of a run in the UI. Raises `NotFound` when there is no such run."""
        info = self._call("GET", "runs/get", params={"run_id": run_id})["run"]["info"]
        return f"{self.public_url}/#/experiments/{info['experiment_id']}/runs/{run_id}"

    def version_url(self, name: str, version: int) -> str:
        """Page of a version in the UI."""
        return f"{self.public_url}/#/models/{quote(name, safe='')}/versions/{version}"

    def _call(self, method: str, path: str, *, attempts: int = _ATTEMPTS, **content: Any) -> dict[str, Any]:
        for left in reversed(range(attempts)):
            try:
                answer = self._client.request(method, f"/api/2.0/mlflow/{path}", **content)
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
            raise login_refused(which, user=self._user)
        if answer.status_code == 403 and "Permission denied" in answer.text:
            raise not_permitted(which, user=self._user)
        code = body.get("error_code") if isinstance(body, dict) else None
        if code == "RESOURCE_ALREADY_EXISTS":
            raise _AlreadyExists(_message(answer), which=which)
        if code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFound(
                f"MLflow says: {_message(answer)}", which=which, fix="check the name in the MLflow UI"
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


class _AlreadyExists(TerminalError):
    """What was to be created is there."""


def _lost_a_race(answer: httpx.Response) -> bool:
    """MLflow sets aliases and tags by SELECT and INSERT: of two first calls at once one hits the unique key.

    It answers HTTP 400 with the database's error in its message (`sqlite3.IntegrityError`,
    `psycopg2.errors.UniqueViolation`), and nothing was written for the loser.
    """
    return answer.status_code == 400 and any(
        name in _message(answer) for name in ("IntegrityError", "UniqueViolation")
    )


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _message(answer: httpx.Response) -> str:
    try:
        text = answer.json().get("message", "")
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(str(text).split())[:300]
