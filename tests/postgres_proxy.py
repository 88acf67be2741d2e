"""A TCP proxy in front of PostgreSQL that cuts or holds the connection in the middle of a transaction.

    with PostgresProxy(url) as proxy:
        proxy.add("INSERT INTO penstock_verdicts", "after commit")

The next transaction that sends a statement with that text meets the fault; others pass unchanged.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

from sqlalchemy import make_url

Moment = Literal[
    "at the statement", "before commit", "after commit", "hang at the statement", "hang at commit"
]
"""Where the fault is: the statement or COMMIT is not passed on, or the server has carried COMMIT out and its answer is
lost; what hangs is taken and neither passed on nor answered."""


class PostgresProxy:
    """A proxy on a free port of loopback; `url` is the server's with a password in it, which must never be shown."""

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        port = self._listener.getsockname()[1]
        self.url = self._server.set(port=port, password="s3cr3t").render_as_string(hide_password=False)
        self._fault: tuple[bytes, Moment] | None = None
        self._gone_after = False
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.gone = False
        """While it is True every new connection is closed at once, as of a server that was stopped."""
        self.met = 0

    def __enter__(self) -> PostgresProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._listener.close()

    def add(self, statement: str, moment: Moment, *, then_gone: bool = False) -> None:
        """Meet the next transaction with such a statement; `then_gone`: the server is gone afterwards."""
        self._fault, self._gone_after = (statement.encode(), moment), then_gone

    def release(self) -> None:
        """Close what hangs."""
        self._released.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.gone:
                    client.close()
                else:
                    threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection((self._server.host or "", self._server.port or 5432))
        silent = threading.Event()
        answers = threading.Thread(target=self._answers, args=(server, client, silent), daemon=True)
        answers.start()
        said = b""
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                said += data
                moment = self._meets(said, data)
                if moment == "after commit":
                    silent.set()
                    server.sendall(data)
                    answers.join(20)
                elif moment and moment.startswith("hang"):
                    self._released.wait(60)
                if moment:
                    break
                server.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _meets(self, said: bytes, data: bytes) -> Moment | None:
        with self._lock:
            if self._fault is None or self._fault[0] not in said:
                return None
            moment = self._fault[1]
            if moment.endswith("commit") and b"COMMIT" not in data:
                return None
            self._fault = None
            self.met += 1
            self.gone = self._gone_after
            return moment

    @staticmethod
    def _answers(server: socket.socket, client: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if silent.is_set():
                    return  # the answer to COMMIT has arrived, so it is carried out
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
