"""`penstock` called in this process as the console script calls it, on an installation of its own."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cli_support import Outcome, Penstock, fit_here

from tasks.cli import main
from tasks.core import Settings


@pytest.fixture(scope="session")
def healthy_url() -> Iterator[str]:
    """An address that says it is healthy: all that training asks of MLflow before it reads the user's code."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def penstock(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Penstock:
    """`penstock("data", "snapshot", "toy")`: exit code, stdout and stderr."""

    def call(*arguments: str, at: Settings | None = None) -> Outcome:
        for name, value in (at or settings).as_environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def training_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """The train step fits in this process, without Ray."""
    import tasks.training
    from tasks.training.trainer import train

    here = functools.partial(train, fit=fit_here)
    monkeypatch.setattr(tasks.training, "train", here, raising=False)
    return here


@pytest.fixture
def frozen(settings: Settings, healthy_url: str) -> tuple[Settings, str]:
    """An installation with a training snapshot, and the snapshot's id."""
    from tasks import wiring

    made = replace(settings, mlflow_url=healthy_url)
    return made, wiring.step("snapshot_training")(made, "toy")["snapshot_id"]
