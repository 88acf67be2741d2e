"""Clients that ask a model server without pause, and what came of their requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any, Self

import httpx

from tasks.core import PipelineSpec, Settings
from tasks.data.sources import open_source
from tasks.evaluation.scoring import inputs_of

PATIENCE_S = 120.0


class LiveTraffic:
    """`penstock serve` in a process of its own, and `threads` clients; one row a request.

    Args:
        settings: The installation.
        spec: Its pipeline.
        port: To serve on.
        day: Whose rows are asked for, over and over.
        log: Receives what the server says.
    """

    def __init__(
        self, settings: Settings, spec: PipelineSpec, *, port: int, day: date, log: Path, threads: int = 4
    ) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        """Prediction id and model version of every answer."""
        self.failures: list[str] = []
        self._settings, self._spec, self._port, self._log = settings, spec, port, log
        self._rows = _rows_of(settings, spec, day)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(self._rows[number::threads],), daemon=True)
            for number in range(threads)
        ]
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        command = [
            str(Path(sys.executable).parent / "penstock"),
            "serve",
            self._spec.name,
            "--port",
            str(self._port),
        ]
        environment = {**os.environ, **self._settings.as_environment()}
        with self._log.open("wb") as sink:
            self._server = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._server.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"the server did not become ready: {self._log.read_text()[-2000:]}")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the clients, then the server as an operator does; what it answered is in the audit store then."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert self._server is not None
        self._server.send_signal(signal.SIGTERM)
        code = self._server.wait(120)
        if code != 0:
            self.failures.append(f"the server ended with {code}")

    @property
    def by_version(self) -> dict[int, int]:
        """Answers by model version."""
        found: Counter[int] = Counter()
        for (_, version), count in self.answered.items():
            found[version] += count
        return dict(sorted(found.items()))

    def unaudited(self) -> int:
        """Answered requests that the audit store does not have."""
        from tasks.audit.hot import hot_rows

        rows = hot_rows(self._settings, self._spec, "", "~")
        kept = Counter(zip(rows["prediction_id"].to_pylist(), rows["model_version"].to_pylist(), strict=True))
        return sum((self.answered - kept).values())

    def _ask(self, rows: list[dict[str, Any]]) -> None:
        path = f"/v1/pipelines/{self._spec.name}/predictions"
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._stop.is_set():
                for row in rows:
                    if self._stop.is_set():
                        break
                    body = {"rows": [row], "timeout_ms": 30_000}
                    try:
                        answer = client.post(path, json=body)
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))
                        continue
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code}: {answer.text[:200]}")
                        continue
                    (made,) = answer.json()["predictions"]
                    with self._lock:
                        self.answered[made["prediction_id"], made["model_version"]] += 1
                    time.sleep(0.01)  # a steady load, not a contest for the cores that training needs


def _rows_of(settings: Settings, spec: PipelineSpec, day: date) -> list[dict[str, Any]]:
    table = open_source(settings, spec).load(day, day)
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in inputs_of(table, spec).to_pylist()
    ]
