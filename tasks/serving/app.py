"""HTTP: the two ways to ask for predictions, health, metrics and the API's own description.

The paths that predictions take are handled before FastAPI's routing, which would cost as much as a small model does; FastAPI
has them too, for its document and for whoever mounts it elsewhere. Both run the same code.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.core.clock import utc_now
from tasks.serving.batching import Ticket
from tasks.serving.limits import ServingLimits
from tasks.serving.metrics import CONTENT_TYPE
from tasks.serving.openapi import describe
from tasks.serving.refusals import MEDIA_TYPE, Refused
from tasks.serving.requests import RawRequest, decode_json, invocations, native, request_id_of, timeout_of
from tasks.serving.server import ModelServer

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]
_JSON = (b"content-type", b"application/json")
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class PredictionApp:
    """The ASGI application of a server.

    Args:
        server: What answers; it is started and stopped with the application's lifespan.
        metrics: What `/metrics` answers; None: the server's own.
    """

    def __init__(self, server: ModelServer, *, metrics: Callable[[], bytes] | None = None) -> None:
        self.server = server
        self.metrics = metrics or server.metrics.text
        self._native_path = f"/v1/pipelines/{server.pipeline}/predictions"
        self._hot: dict[str, Callable[[Scope, Receive], Any]] = {
            self._native_path: self.predictions,
            "/invocations": self.invocations,
        }
        self.api = _api(self, self._native_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            handle = self._hot.get(scope["path"])
            if handle is not None:
                await _send(send, await handle(scope, receive))
                return
        app: ASGIApp = self.api
        await app(scope, receive, send)

    async def predictions(self, scope: Scope, receive: Receive) -> Answer:
        """`POST /v1/pipelines/NAME/predictions`."""
        return await self._answer(
            scope, receive, lambda raw: native(raw, self.server.limits), self._native_body
        )

    async def invocations(self, scope: Scope, receive: Receive) -> Answer:
        """`POST /invocations`."""
        return await self._answer(scope, receive, invocations, self._mlflow_body)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        parse: Callable[[Any], RawRequest],
        body_of: Callable[[Ticket], bytes],
    ) -> Answer:
        arrived = time.monotonic()
        server = self.server
        try:
            server.refuse_early()
            headers = dict(scope["headers"])
            timeout_s, request_id = _asked(headers, server.limits)
            body = await _read(headers, receive, server.limits)
            if b"timeout_ms" not in body:  # its deadline is known, and decoding costs more than refusing
                server.refuse_late(arrived + (timeout_s or server.limits.default_timeout_s))
            request = parse(decode_json(body))
            if request_id is not None and request.request_id is None:
                request = replace(request, request_id=request_id)
            ticket = await server.predict(request, arrived=arrived, timeout_s=timeout_s)
        except Refused as refused:
            return self.problem(refused)
        except Exception:
            log.exception("A request failed")
            return self.problem(Refused(500, "internal", "the server failed", fix="see its log"))
        versions = {model.deployed.version for model in ticket.models}
        server.metrics.of(ticket.models[0]).duration.observe(time.monotonic() - arrived)
        answer = body_of(ticket)
        found: Headers = [
            _JSON,
            (b"content-length", str(len(answer)).encode()),
            (b"x-request-id", ticket.request_id.encode("latin-1", "replace")),
            (b"x-model-version", ", ".join(map(str, sorted(versions))).encode()),
            *_SAFE,
        ]
        return 200, self._closing(found), answer

    def problem(self, refused: Refused) -> Answer:
        """The answer to a request that gets no prediction."""
        live = self.server.live
        self.server.metrics.refused(refused.cause, live.exposure.champion.version if live else 0)
        body = refused.body()
        headers: Headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            *_SAFE,
        ]
        if refused.retry_after_s is not None:
            headers.append((b"retry-after", str(refused.retry_after_s).encode()))
        if refused.close:
            headers.append((b"connection", b"close"))
            return refused.status, headers, body
        return refused.status, self._closing(headers), body

    def _closing(self, headers: Headers) -> Headers:
        if self.server.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _native_body(self, ticket: Ticket) -> bytes:
        predictions = []
        for (identifier, score, outputs), model in zip(ticket.answers, ticket.models, strict=True):
            one: dict[str, Any] = {
                "prediction_id": identifier,
                "score": score,
                "model_version": model.deployed.version,
            }
            if outputs is not None:
                one["outputs"] = {
                    name: value if value - value == 0 else None
                    for name, value in zip(model.output_names, outputs, strict=True)
                }
            predictions.append(one)
        if ticket.inputs is not None:
            now = utc_now()
            for one, row in zip(predictions, ticket.inputs, strict=True):
                one["input"] = {
                    "snapshot_id": row.snapshot_id,
                    "event_time": row.event_time.isoformat(),
                    "age_s": round((now - row.event_time).total_seconds(), 3),
                }
        return _compact(
            {"pipeline": self.server.pipeline, "request_id": ticket.request_id, "predictions": predictions}
        ).encode()

    def _mlflow_body(self, ticket: Ticket) -> bytes:
        return _compact({"predictions": [score for _, score, _ in ticket.answers]}).encode()


def _asked(headers: dict[bytes, bytes], limits: ServingLimits) -> tuple[float | None, str | None]:
    """Deadline and request id of the headers, which are checked; and the media type."""
    media = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if media != b"application/json":
        raise Refused(
            415,
            "media_type",
            f"is {media.decode('latin-1')[:60]}",
            which="Content-Type",
            fix="send application/json",
            close=True,
        )
    timeout_s = request_id = None
    if (text := headers.get(b"x-request-timeout-ms")) is not None:
        timeout_s = timeout_of(text.decode("latin-1"), "X-Request-Timeout-Ms", limits)
    if (text := headers.get(b"x-request-id")) is not None:
        request_id = request_id_of(text.decode("latin-1"), "X-Request-Id")
    return timeout_s, request_id


async def _read(headers: dict[bytes, bytes], receive: Receive, limits: ServingLimits) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 or 408; the connection is to be closed.
    """
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                parts, size = [body], len(body)
                while message.get("more_body"):
                    message = await receive()
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    if size > limits.max_body_bytes:
                        raise _too_large(limits)
                    parts.append(part)
                body = b"".join(parts)
    except TimeoutError:
        raise Refused(
            408,
            "slow_client",
            f"the request did not arrive within {limits.body_timeout_s:g} s",
            fix="send it faster",
            close=True,
        ) from None
    if message["type"] == "http.disconnect":
        raise Refused(400, "invalid_request", "the client left before it had sent its request", close=True)
    if len(body) > limits.max_body_bytes:
        raise _too_large(limits)
    return body


def _too_large(limits: ServingLimits) -> Refused:
    return Refused(
        413,
        "too_large",
        f"is larger than {limits.max_body_bytes:,} bytes",
        which="body",
        fix="send several requests, or score the rows in batch",
        close=True,
    )


async def _send(send: Send, answer: Answer) -> None:
    status, headers, body = answer
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _as_response(answer: Answer) -> Response:
    status, headers, body = answer
    response = Response(body, status)
    response.raw_headers = headers
    return response


def _api(app: PredictionApp, native_path: str) -> FastAPI:
    server = app.server

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        try:
            yield
        finally:
            await asyncio.to_thread(server.stop)

    api = FastAPI(
        title=f"Penstock: {server.pipeline}",
        version="1",
        description="Predictions on request: the scores, ids and explanations that batch scoring gives the same rows.",
        lifespan=lifespan,
        redoc_url=None,
    )

    async def ask(request: Request) -> Response:
        return _as_response(await app.predictions(request.scope, request.receive))

    async def ask_as_mlflow(request: Request) -> Response:
        return _as_response(await app.invocations(request.scope, request.receive))

    api.add_api_route(native_path, ask, methods=["POST"], include_in_schema=False)
    api.add_api_route("/invocations", ask_as_mlflow, methods=["POST"], include_in_schema=False)

    @api.get("/health/live", include_in_schema=False)
    @api.get("/ping", include_in_schema=False)
    async def alive() -> Response:
        return JSONResponse({"status": "alive"})

    @api.get("/health/ready", include_in_schema=False)
    async def ready() -> Response:
        live = server.live
        state: dict[str, Any] = {"ready": server.ready, "pipeline": server.pipeline}
        if live is not None:
            state["model_version"] = live.exposure.champion.version
            state["bundle_digest"] = live.exposure.champion.bundle_digest
            state["challenger_version"] = live.challenger.deployed.version if live.challenger else None
            state["challenger_share"] = live.exposure.share
            state["shadow"] = live.exposure.shadow
        if server.draining:
            state["reason"] = "draining"
        elif live is None:
            state["reason"] = "no model is loaded yet"
        return JSONResponse(state, 200 if server.ready else 503)

    @api.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(app.metrics(), media_type=CONTENT_TYPE)

    @api.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        status = error.status_code
        body = {
            "type": HTTPStatus(status).phrase.replace(" ", ""),
            "what": str(error.detail),
            "which": f"{request.method} {request.url.path[:200]}",
            "fix": f"this server answers POST {native_path} and POST /invocations; /openapi.json has the rest",
        }
        return JSONResponse(body, status, headers=dict(error.headers or {}), media_type=MEDIA_TYPE)

    def document() -> dict[str, Any]:
        live = server.live
        return describe(api, native_path, live.champion.signature if live else None, server.limits)

    api.openapi = document  # type: ignore[method-assign]
    return api
