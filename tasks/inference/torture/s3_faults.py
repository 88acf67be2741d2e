"""A proxy in front of an S3 endpoint that loses answers, refuses, stalls and cuts connections.

It listens on a free port of loopback and speaks plain HTTP/1.1 to clients. Requests are passed on unchanged, the
`Host` that the client signed included, so it works before servers that do not route by host name.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import SplitResult, unquote, urlsplit

from tasks.inference.torture.faults import (
    BUSY,
    CREATE,
    DELETE,
    LATE,
    LOOK,
    READ,
    REFUSED,
    RESET_READ,
    RESET_WRITE,
    SILENT,
    StoreFault,
)
from tasks.inference.torture.store_uses import Uses

IMPATIENT_S = 2.0
"""How long drivers wait for an answer in rounds in which none comes."""

_STALL_S = 2 * IMPATIENT_S
_LATE_S = 1.0
_UPSTREAM_S = 60.0
_OPERATION = {"PUT": CREATE, "POST": CREATE, "GET": READ, "HEAD": LOOK, "DELETE": DELETE}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


@contextmanager
def s3_faults(endpoint: str, root: str, uses: Uses) -> Iterator[str]:
    """A proxy before `endpoint` while the block runs; writes that it does late are done when the block is left.

    Args:
        endpoint: URL of the real one.
        root: `s3://bucket/prefix` of the pipeline's store.
        uses: Counts the requests and says which of them fail.

    Yields:
        The URL that drivers use.
    """
    server = _Proxy(urlsplit(endpoint), root.removeprefix("s3://"), uses)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.hear_no_more()
        server.server_close()
        server.finish_late_writes()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = False  # what was passed on is answered before the block is left
    request_queue_size = 64

    def __init__(self, upstream: SplitResult, root: str, uses: Uses) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.root = root
        self.uses = uses
        self.closing = threading.Event()
        self.clients: set[socket.socket] = set()
        self._late: list[threading.Thread] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, or a connection that we cut, is no error."""

    def hear_no_more(self) -> None:
        """Let connections end after the answer that is under way; clients keep idle ones open."""
        for client in list(self.clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RD)

    def send_late(self, handler: _Handler, body: bytes) -> None:
        """Pass a write on after a while, when nobody waits for it any more."""

        def send() -> None:
            self.closing.wait(_LATE_S)
            handler.pass_on(body)

        thread = threading.Thread(target=send, daemon=True)
        self._late.append(thread)
        thread.start()

    def finish_late_writes(self) -> None:
        for thread in self._late:
            thread.join(_UPSTREAM_S)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its header
    timeout = _UPSTREAM_S
    server: _Proxy

    def setup(self) -> None:
        """Called once a connection."""
        super().setup()
        self.server.clients.add(self.connection)

    def finish(self) -> None:
        """Called at its end."""
        self.server.clients.discard(self.connection)
        super().finish()

    def handle_one_request(self) -> None:
        """One request of a connection that may carry many."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        uses = self.server.uses
        if not uses.strikes(self._operation(), self._key()):
            self._answer(*self.pass_on(self._body()))
            return
        assert uses.fault
        self._fail(uses.fault)

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is counted."""

    def _operation(self) -> str:
        if self.command == "GET" and "list-type=" in self.path:
            return LOOK
        return _OPERATION.get(self.command, LOOK)

    def _key(self) -> str:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        return path.removeprefix(f"{self.server.root}/")

    def _fail(self, fault: StoreFault) -> None:
        kind = fault.kind
        if kind == BUSY:
            self._body()
            self._refuse(503, "SlowDown") if fault.done else self._refuse(500, "InternalError")
        elif kind == REFUSED:
            self._body()
            self._refuse(403, "AccessDenied")
        elif kind == RESET_WRITE:
            self._body(half=True)
            self._cut()
        elif kind == RESET_READ:
            self._answer(*self.pass_on(self._body()), half=True)
            self._cut()
        elif kind == SILENT:
            body = self._body()
            if fault.done:
                self.pass_on(body)
            self.server.closing.wait(_STALL_S)
            self._cut()
        elif kind == LATE:
            self.server.send_late(self, self._body())
            self._cut()
        else:  # an answer is lost
            self.pass_on(self._body())
            self._refuse(500, "InternalError") if fault.done else self._cut()

    # -- to the client

    def _body(self, *, half: bool = False) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    return b""
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, half: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
        self._answer(status, [("Content-Type", "application/xml")], text.encode())

    def _cut(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    # -- to the real endpoint

    def pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """(status, headers, body) of the real endpoint's answer."""
        upstream = self.server.upstream
        secure = upstream.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(upstream.hostname or "", upstream.port, timeout=_UPSTREAM_S)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()
