"""Servers on loopback that keep what is sent to them: an OpenTelemetry collector and an OpenLineage endpoint."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class SpanSeen:
    """A span as the collector got it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    began_ns: int
    ended_ns: int
    failed: str | None


@dataclass
class Receiver:
    """What came in."""

    url: str = ""
    spans: list[SpanSeen] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    """What is answered."""
    hold: threading.Event | None = None
    """Answers wait for it."""

    def span(self, name: str) -> SpanSeen:
        (found,) = [one for one in self.spans if one.name == name]
        return found

    def take(self, path: str, body: bytes) -> None:
        if path.endswith("/v1/traces"):
            self.spans += _spans(body)
        else:
            self.events.append(json.loads(body))


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A server for both kinds, by the path."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if receiver.hold is not None:
                receiver.hold.wait(60)
            if receiver.status == 200:
                receiver.take(self.path, body)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        server.shutdown()
        server.server_close()


def _spans(body: bytes) -> list[SpanSeen]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(body)
    return [
        SpanSeen(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            attributes={
                item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
            },
            began_ns=span.start_time_unix_nano,
            ended_ns=span.end_time_unix_nano,
            failed=span.status.message or "failed" if span.status.code == 2 else None,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
