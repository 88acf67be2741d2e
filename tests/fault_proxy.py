"""An HTTP proxy in front of the S3 endpoint that misbehaves on purpose: by operation, key and count.

    with FaultProxy(s3_url) as proxy:
        proxy.add(Fault("PutObject", r"/shard-00001\\.json$", "lose-answer", times=1))

Requests that no fault matches pass through unchanged. Everything that arrived is in `seen`, in order.

The proxy is a process of its own: Delta's library holds the interpreter's lock while it waits for the store, so a
proxy in a thread of the test could never answer it.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["answer", "reset", "lose-answer", "hang", "cut-answer", "delay", "trickle"]
"""What a fault does:

answer       `status` with S3's error document of `code`; the store never sees the request
reset        the connection is reset; the store never sees the request
lose-answer  the store does what was asked, then the connection is reset
hang         the request is taken and never answered (until the faults are cleared)
cut-answer   the store does what was asked, half of the answer's body arrives
delay        the request waits for `delay_s` first
trickle      the request's body is read over `delay_s`, in ten parts
"""

_CONTROL = "/__proxy__/"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass
class Fault:
    """One misbehaviour; `operation` is S3's name or `*`, `key` a regular expression searched in the key or prefix."""

    operation: str
    key: str
    kind: Kind
    times: int | None = None
    """How many requests it meets; None means all until `clear`."""
    skip: int = 0
    """How many matching requests pass unharmed first."""
    status: int = 503
    code: str = "SlowDown"
    delay_s: float = 0.0


@dataclass(frozen=True)
class Seen:
    """A request that arrived, and the fault it met."""

    operation: str
    key: str
    fault: Kind | None


@dataclass
class InFlight:
    """Uploads that the proxy holds at one moment, and the most it ever held."""

    uploads: int = 0
    size_bytes: int = 0
    most_uploads: int = 0
    most_bytes: int = 0

    def enter(self, size: int) -> None:
        self.uploads += 1
        self.size_bytes += size
        self.most_uploads = max(self.most_uploads, self.uploads)
        self.most_bytes = max(self.most_bytes, self.size_bytes)

    def leave(self, size: int) -> None:
        self.uploads -= 1
        self.size_bytes -= size


class FaultProxy:
    """A proxy on a free port of loopback, or on `port`, to be used as a context manager."""

    def __init__(self, upstream: str, *, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, upstream, str(port)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def add(self, *faults: Fault) -> None:
        """Misbehave so from now on, beside what was added before."""
        self._ask("add", [dataclasses.asdict(fault) for fault in faults])

    def clear(self) -> None:
        """Behave from now on; requests that hang are let go without an answer."""
        self._ask("clear")

    def forget(self) -> None:
        """Begin to count anew."""
        self._ask("forget")

    @property
    def seen(self) -> list[Seen]:
        """All requests since `forget`, in order of arrival."""
        return [Seen(*item) for item in self._ask("state")["seen"]]

    @property
    def in_flight(self) -> InFlight:
        return InFlight(**self._ask("state")["in_flight"])

    def count(self, operation: str, key: str = "") -> int:
        """How many requests of an operation arrived whose key matches."""
        return sum(item.operation == operation and re.search(key, item.key) is not None for item in self.seen)

    def met(self, kind: Kind) -> int:
        """How many requests met a fault of this kind."""
        return sum(item.fault == kind for item in self.seen)

    def _ask(self, what: str, value: Any = None) -> Any:
        with urllib.request.urlopen(
            f"{self.url}{_CONTROL}{what}", data=json.dumps(value).encode(), timeout=30
        ) as answer:
            return json.load(answer)


@dataclass
class _Misbehaviour:
    """What the proxy's process keeps."""

    seen: list[Seen] = field(default_factory=list)
    in_flight: InFlight = field(default_factory=InFlight)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)

    def told(self, what: str, value: Any) -> Any:
        """Do what `FaultProxy` asks for."""
        with self.lock:
            if what == "add":
                self.faults.extend(Fault(**fault) for fault in value)
            elif what == "clear":
                self.faults.clear()
                self.released.set()
                self.released = threading.Event()
            elif what == "forget":
                self.seen.clear()
                self.in_flight.most_uploads = self.in_flight.most_bytes = 0
            elif what == "state":
                return {
                    "seen": [dataclasses.astuple(item) for item in self.seen],
                    "in_flight": dataclasses.asdict(self.in_flight),
                }
            return None

    def choose(self, operation: str, key: str) -> Fault | None:
        """The fault that this request meets, counted; the request is noted."""
        with self.lock:
            chosen = None
            for fault in self.faults:
                if fault.operation not in ("*", operation) or re.search(fault.key, key) is None:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    chosen = fault
                    break
            self.seen.append(Seen(operation, key, chosen.kind if chosen else None))
            return chosen


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    upstream: str
    doing: _Misbehaviour

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are what this proxy is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its header
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _any(self) -> None:
        doing = self.server.doing
        if self.path.startswith(_CONTROL):
            answer = doing.told(self.path.removeprefix(_CONTROL), json.loads(self._body(over_s=0.0)))
            self._send(200, [], json.dumps(answer).encode())
            return
        operation, key = _what(self.command, self.path)
        fault = doing.choose(operation, key)
        kind = fault.kind if fault else None
        body = self._body(over_s=fault.delay_s if fault and kind == "trickle" else 0.0)
        if operation == "PutObject":
            with doing.lock:
                doing.in_flight.enter(len(body))
        try:
            self._answer(fault, kind, body)
        finally:
            if operation == "PutObject":
                with doing.lock:
                    doing.in_flight.leave(len(body))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any  # noqa: N815 (the base class asks for these names)

    def _answer(self, fault: Fault | None, kind: Kind | None, body: bytes) -> None:
        if fault and kind == "answer":
            document = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected {fault.code}</Message></Error>"
            self._send(fault.status, [("Content-Type", "application/xml")], document.encode())
            return
        if kind == "reset":
            self._reset()
            return
        if kind == "hang":
            self.server.doing.released.wait(120)
            self._reset()
            return
        if fault and kind == "delay":
            time.sleep(fault.delay_s)
        status, headers, answer = self._forward(body)
        if kind == "lose-answer":
            self._reset()
        elif kind == "cut-answer":
            self._send(status, headers, answer[: len(answer) // 2], says=len(answer))
            self._reset()
        else:
            self._send(status, headers, answer)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = urlsplit(self.server.upstream)
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            if body or self.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body or None, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _send(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, says: int | None = None
    ) -> None:
        self.send_response_only(status)
        size = str(len(body) if says is None else says)
        if self.command == "HEAD":  # its length is that of the object, which is not sent
            size = next((value for name, value in headers if name.lower() == "content-length"), "0")
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _body(self, *, over_s: float) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                continue
            return b"".join(parts)
        size = int(self.headers.get("Content-Length", 0))
        if not over_s:
            return self.rfile.read(size)
        parts = []
        for part in range(10):
            time.sleep(over_s / 10)
            parts.append(self.rfile.read(size * (part + 1) // 10 - size * part // 10))
        return b"".join(parts)


def _what(method: str, path: str) -> tuple[str, str]:
    """(S3's operation, key or listing prefix)."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    _, _, key = unquote(parts.path).lstrip("/").partition("/")
    if method == "GET" and ("list-type" in query or not key):
        return "ListObjects", query.get("prefix", [""])[0]
    if method == "POST" and "delete" in query:
        return "DeleteObjects", ""
    if "uploads" in query or "uploadId" in query:
        return "Multipart", key
    names = {"GET": "GetObject", "PUT": "PutObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
    return names.get(method, method), key


def main() -> None:
    server = _Server(("127.0.0.1", int(sys.argv[2])), _Handler)
    server.upstream, server.doing = sys.argv[1], _Misbehaviour()
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever(0.5)


if __name__ == "__main__":
    main()
