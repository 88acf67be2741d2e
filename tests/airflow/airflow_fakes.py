"""Ray's Jobs API and a running task instance, as far as the operators use them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


class FakeRay:
    """Ray's Jobs API as far as the operator uses it, with jobs that a test moves by hand."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.tokens: list[str | None] = []
        self.broken = False
        self.lose_next_answer = False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.tokens.append(self.headers.get("Authorization"))
                parts = self.path.strip("/").split("/")
                job = fake.jobs.get(parts[2])
                if fake.broken:
                    self._answer(500, "Traceback\nRuntimeError: no agent")
                elif job is None:
                    self._answer(404, f"Job {parts[2]} does not exist")
                elif parts[-1] == "logs":
                    self._answer(200, json.dumps({"logs": job["logs"]}))
                else:
                    if job.get("then"):
                        job["seen"] = job.get("seen", 0) + 1
                        if job["seen"] > 2:
                            job.update(job.pop("then"))
                    self._answer(200, json.dumps({k: v for k, v in job.items() if k not in ("logs", "then")}))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fake.broken:
                    self._answer(500, "Traceback\nRuntimeError: no agent")
                elif self.path.endswith("/stop"):
                    submission_id = self.path.split("/")[3]
                    fake.stopped.append(submission_id)
                    fake.jobs[submission_id]["status"] = "STOPPED"
                    self._answer(200, json.dumps({"stopped": True}))
                else:
                    request = json.loads(body)
                    submission_id = request["submission_id"]
                    if submission_id in fake.jobs:
                        self._answer(400, f"Traceback\nValueError: {submission_id} already exists")
                        return
                    fake.submitted.append(request)
                    fake.add(submission_id)
                    if fake.lose_next_answer:
                        fake.lose_next_answer = False
                        self.close_connection = True
                        return
                    self._answer(200, json.dumps({"submission_id": submission_id}))

            def _answer(self, status: int, text: str) -> None:
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a cancelled client
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, submission_id: str, status: str = "RUNNING", logs: str = "", **more: Any) -> None:
        self.jobs[submission_id] = {
            "submission_id": submission_id,
            "status": status,
            "message": more.pop("message", ""),
            "driver_exit_code": more.pop("exit_code", None),
            "logs": logs,
            **more,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class FakeTask(SimpleNamespace):
    """A running task instance: what an operator reads of it, and the XComs that it pushes."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def context_of(
    *,
    params: dict[str, Any] | None = None,
    conf: dict[str, Any] | None = None,
    max_tries: int = 2,
    try_number: int = 1,
    user: str | None = "ada",
) -> dict[str, Any]:
    ti = FakeTask(
        dag_id="toy.train",
        run_id="manual__1",
        task_id="model.train",
        map_index=-1,
        try_number=try_number,
        max_tries=max_tries,
        xcoms={},
    )
    outlet_events: dict[Any, Any] = {}
    return {
        "ti": ti,
        "params": params or {},
        "dag": SimpleNamespace(params=params or {}),
        "dag_run": SimpleNamespace(triggering_user_name=user, run_type="manual", conf=conf),
        "outlet_events": outlet_events,
    }
