"""How often a user may ask, and how much may be sent at once: what stands against whoever keeps the API server busy.

Both hold for every page and endpoint of the plugin, in each process of the API server by itself. Airflow's own API is not ours to limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.sdk import conf
from fastapi import HTTPException
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS_PER_MINUTE = 600
"""Of one user; `[penstock] requests_per_minute` of Airflow's configuration says otherwise, 0: any number."""
MAX_BODY_BYTES = 1 << 20


def request_counter() -> Callable[[GetUserDep], None]:
    """A dependency that counts a user's requests; raises `HTTPException` with status 429 when there are too many.

    Raises:
        ValueError: The configuration says no whole number from 0 on.
    """
    most = conf.getint("penstock", "requests_per_minute", fallback=REQUESTS_PER_MINUTE)
    if most < 0:
        raise ValueError(f"[penstock] requests_per_minute is {most}: write 0 for any number, or more")
    limiter, rate = SlidingWindowCounterRateLimiter(MemoryStorage()), RateLimitItemPerMinute(max(1, most))

    def count(user: GetUserDep) -> None:
        if most == 0:
            return
        who = user.get_id()
        if limiter.hit(rate, who):
            return
        wait_s = max(1, math.ceil(limiter.get_window_stats(rate, who).reset_time - time.time()))
        raise HTTPException(
            429,
            f"You have asked more than {most} times within a minute. Ask again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        )

    count.__annotations__ = {"user": GetUserDep, "return": None}  # annotations are strings here
    return count


class BodyLimit:
    """Middleware that refuses a larger body with 413 before all of it was read."""

    def __init__(self, app: ASGIApp, most: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        left = self._most

        async def counted() -> Message:
            nonlocal left
            too_large = declared.isdigit() and int(declared) > self._most
            message: Message = {} if too_large else await receive()
            left -= len(message.get("body", b""))
            if too_large or left < 0:
                raise HTTPException(413, f"The body is larger than {self._most:,} bytes.")
            return message

        await self._app(scope, counted, send)
