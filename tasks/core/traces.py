"""OpenTelemetry spans, sent to `PENSTOCK_OTLP_URL`; without it nothing is imported and nothing is done.

A collector that is slow or away costs a span, never a run: sending happens beside the work, and at the end of a process's
outermost span it is waited for a short time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tasks.core.log_lines import bound
from tasks.core.settings import Settings

_SEND_S = 3.0
_FLUSH_MS = 3_000
_SERVICE = "penstock"
_providers: dict[tuple[int, str], Any] = {}
_making_one = threading.Lock()
log = logging.getLogger(__name__)


class Span:
    """A span that is under way; of one that is off every call does nothing."""

    def __init__(self, found: Any = None, tracer: Any = None) -> None:
        self._span = found
        self._tracer = tracer

    @property
    def parent_of_others(self) -> str | None:
        """W3C `traceparent` that makes spans of other processes children of this one; None when tracing is off."""
        if self._span is None:
            return None
        found = self._span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

    def say(self, **attributes: Any) -> None:
        """Add attributes; None is left out."""
        if self._span is not None:
            self._span.set_attributes(_plain(attributes))

    def child(
        self, name: str, began: datetime, ended: datetime, *, failed: str | None = None, **attributes: Any
    ) -> None:
        """Enter a child that is over: work of another process, told by its result."""
        if self._span is None:
            return
        from opentelemetry import trace

        made = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(self._span),
            start_time=_ns(began),
            attributes=_plain(attributes),
        )
        if failed:
            made.set_status(trace.StatusCode.ERROR, failed)
        made.end(_ns(ended))


@contextmanager
def span(settings: Settings, name: str, **attributes: Any) -> Iterator[Span]:
    """A span around what is done inside; a child of the one around it, else of `settings.trace_parent`.

    An error that leaves it is its status. Log lines inside carry `trace_id` and `span_id`.
    """
    made = _begun(settings, name, attributes) if settings.otlp_url else None
    if made is None:
        yield Span()
        return
    from opentelemetry import trace

    tracer, found, outermost = made
    here = found.get_span_context()
    try:
        with (
            trace.use_span(found, end_on_exit=True),
            bound(trace_id=f"{here.trace_id:032x}", span_id=f"{here.span_id:016x}"),
        ):
            yield Span(found, tracer)
    finally:
        if outermost:
            _flush(settings)


def current(settings: Settings) -> Span:
    """The span that this code runs in."""
    if not settings.otlp_url:
        return Span()
    from opentelemetry import trace

    found = trace.get_current_span()
    if not found.get_span_context().is_valid:
        return Span()
    return Span(found, _provider(settings.otlp_url).get_tracer(_SERVICE))


def _begun(settings: Settings, name: str, attributes: Mapping[str, Any]) -> tuple[Any, Any, bool] | None:
    """(tracer, span, whether it is the outermost of this process); None when tracing cannot be set up."""
    assert settings.otlp_url is not None
    try:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = _provider(settings.otlp_url).get_tracer(_SERVICE)
        around = trace.get_current_span().get_span_context().is_valid
        carried = {"traceparent": settings.trace_parent} if settings.trace_parent and not around else {}
        context = TraceContextTextMapPropagator().extract(carried) if carried else None
        return tracer, tracer.start_span(name, context=context, attributes=_plain(attributes)), not around
    except Exception as error:  # whatever is wrong with it, the work goes on
        log.warning("No traces: %s", error)
        return None


def _provider(url: str) -> Any:
    """One for a process: a child that was forked has no thread that sends."""
    key = (os.getpid(), url)
    with _making_one:
        if key not in _providers:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            made = TracerProvider(resource=Resource.create({"service.name": _SERVICE}))
            exporter = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=_SEND_S)
            made.add_span_processor(BatchSpanProcessor(exporter))
            _providers[key] = made
        return _providers[key]


def _flush(settings: Settings) -> None:
    assert settings.otlp_url is not None
    try:
        _provider(settings.otlp_url).force_flush(_FLUSH_MS)
    except Exception as error:
        log.warning("Traces were not sent: %s", error)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"penstock.{name}": value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in attributes.items()
        if value is not None
    }


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)
