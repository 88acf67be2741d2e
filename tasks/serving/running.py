"""Runs a server in this process, until it is told to end."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from tasks.core.errors import ConfigError
from tasks.serving.app import PredictionApp
from tasks.serving.server import ModelServer

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.001
"""A thread that computes lets the event loop wait for so long at most; with Python's own 5 ms the 99th percentile of a loaded
server was a third higher, and CPU the same."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one.

    Raises:
        ConfigError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigError(
            f"cannot be listened on: {error}", which=f"{host}:{port}", fix="use another --host or --port"
        ) from error
    return found


class Running(uvicorn.Server):
    """A uvicorn server that ends without dropping a request.

    On SIGTERM or SIGINT it says first that it is not ready, and goes on answering for `ServingLimits.drain_delay_s`
    while every answer closes its connection. Then it stops listening and ends when the last answer is sent and
    recorded. A second signal ends the delay.
    """

    def __init__(self, server: ModelServer) -> None:
        self._model_server = server
        self._tell: Callable[[], None] | None = None
        super().__init__(
            uvicorn.Config(
                PredictionApp(server),
                http="httptools",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                backlog=2048,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=max(1, round(server.limits.drain_timeout_s)),
            )
        )

    def serve_on(self, listener: socket.socket, *, started: Callable[[], None] | None = None) -> None:
        """Answer on `listener` until `end` or a signal. `started` is called when it listens."""
        self._tell = started
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()  # what was imported stays: looking through it at each collection cost a fifth of the CPU at 256 clients
        try:
            self.run(sockets=[listener])
        finally:
            gc.unfreeze()
            sys.setswitchinterval(before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._tell is not None:
            self._tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del frame
        log.info("Received %s: draining", signal.Signals(sig).name)
        self.end()

    def end(self) -> None:
        """Drain and end. From any thread; again: without further delay."""
        if self._model_server.draining:
            self.should_exit = True
            return
        self._model_server.draining = True
        timer = threading.Timer(self._model_server.limits.drain_delay_s, self._stop_listening)
        timer.daemon = True
        timer.start()

    def _stop_listening(self) -> None:
        self.should_exit = True
