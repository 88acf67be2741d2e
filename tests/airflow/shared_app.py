"""The plugin's application, made once for all tests: its routes take half a second to make."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

from plugins import pages

Overrides = dict[Callable[..., Any], Callable[..., Any]]

_OF_THE_REQUEST: ContextVar[Overrides] = ContextVar("overrides")


class _Looked(dict[Any, Any]):
    """What FastAPI asks for a dependency's replacement: that of the test whose request it is."""

    def __bool__(self) -> bool:
        return True

    def get(self, key: Any, default: Any = None) -> Any:
        return _OF_THE_REQUEST.get().get(key, default)


@cache
def application() -> FastAPI:
    """It keeps the configuration that it was made with, and how often each user has asked."""
    app = pages.create_app()
    mounted = [route.app for route in app.routes if isinstance(route, Mount)]
    assert mounted and all(isinstance(part, FastAPI) for part in mounted)
    for part in (app, *mounted):
        part.dependency_overrides = _Looked()
    return app


class SharedApp:
    """The application as one test sees it, with dependencies of its own."""

    def __init__(self) -> None:
        self.dependency_overrides: Overrides = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        _OF_THE_REQUEST.set(self.dependency_overrides)
        await application()(scope, receive, send)
