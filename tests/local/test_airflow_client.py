"""The REST client against a small HTTP server: logins, refusals, and answers that are not Airflow's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from tasks.core.errors import NotFound, ServiceUnavailable, TerminalError
from tasks.core.pools import POOLS, STEP_POOL
from tasks.local import AirflowClient


class _Airflow(BaseHTTPRequestHandler):
    """Answers what `answers` says for `METHOD path`; logs every request."""

    answers: ClassVar[dict[str, tuple[int, Any]]]
    seen: ClassVar[list[tuple[str, Any]]]
    tokens: ClassVar[int]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {self.path.split('?')[0]}"
        if request == "POST /auth/token":
            type(self).tokens += 1
            login = json.loads(body)
            good = login["password"] == "right"
            self._answer(
                201 if good else 401,
                {"access_token": f"t{self.tokens}"} if good else {"detail": "wrong password"},
            )
            return
        self.seen.append((request, json.loads(body) if body else None))
        if self.headers["Authorization"] == "Bearer t1" and self.answers.get("expired"):
            self._answer(401, {"detail": "expired"})
            return
        self._answer(*self.answers.get(request, (404, {"detail": "not there"})))

    def _answer(self, status: int, document: Any) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PATCH = _serve  # noqa: N815  (the base class's names)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def airflow() -> Iterator[tuple[type[_Airflow], str]]:
    handler = type("Handler", (_Airflow,), {"answers": {}, "seen": [], "tokens": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_expired_login_is_renewed_without_the_caller_knowing(airflow: Any) -> None:
    handler, url = airflow
    handler.answers.update(
        {"expired": (0, ""), "GET /api/v2/dags": (200, {"dags": [{"dag_id": "a", "is_paused": True}]})}
    )
    assert AirflowClient(url, "admin", "right").dags() == {"a": True}
    assert handler.tokens == 2


def test_a_wrong_password_is_named(airflow: Any) -> None:
    with pytest.raises(TerminalError, match=r"(?s)login.*wrong password"):
        AirflowClient(airflow[1], "admin", "wrong").dags()


def test_refusals_are_told_apart(airflow: Any) -> None:
    handler, url = airflow
    client = AirflowClient(url, "admin", "right")
    handler.answers["POST /api/v2/dags/a/dagRuns"] = (409, {"detail": "run exists"})
    with pytest.raises(TerminalError, match="run exists"):
        client.trigger("a", "r", {})
    with pytest.raises(NotFound, match="not there"):
        client.run("a", "r")
    handler.answers["GET /api/v2/importErrors"] = (502, "<html>bad gateway</html>")
    with pytest.raises(ServiceUnavailable, match="bad gateway"):
        client.import_errors()


def test_no_airflow_at_all_is_told_with_the_way_to_start_it() -> None:
    with pytest.raises(ServiceUnavailable, match=r"(?s)127\.0\.0\.1:1.*make up"):
        AirflowClient("http://127.0.0.1:1", "admin", "right").dags()


def test_run_ids_are_quoted(airflow: Any) -> None:
    handler, url = airflow
    handler.answers["GET /api/v2/dags/a/dagRuns/manual__2024-01-01T00%3A00%2B00%3A00%2Fx"] = (
        200,
        {"state": "success"},
    )
    run = AirflowClient(url, "admin", "right").run("a", "manual__2024-01-01T00:00+00:00/x")
    assert run["state"] == "success"


def test_a_pool_that_people_changed_is_left_as_it_is(airflow: Any) -> None:
    handler, url = airflow
    client = AirflowClient(url, "admin", "right")
    handler.answers["POST /api/v2/pools"] = (201, {})
    client.ensure_pool(STEP_POOL, POOLS[STEP_POOL])
    assert handler.seen[-1][0] == "POST /api/v2/pools"
    assert handler.seen[-1][1]["slots"] == POOLS[STEP_POOL].slots
    handler.answers[f"GET /api/v2/pools/{STEP_POOL}"] = (200, {"slots": 9})
    client.ensure_pool(STEP_POOL, POOLS[STEP_POOL])
    assert handler.seen[-1][0] == f"GET /api/v2/pools/{STEP_POOL}"


def test_a_log_is_text_whatever_form_its_lines_have(airflow: Any) -> None:
    handler, url = airflow
    handler.answers["GET /api/v2/dags/a/dagRuns/r/taskInstances/t/logs/1"] = (
        200,
        {"content": [{"event": "first", "level": "info"}, "second", {"other": 3}]},
    )
    assert AirflowClient(url, "admin", "right").log("a", "r", "t", 1) == "first\nsecond\n{'other': 3}"
