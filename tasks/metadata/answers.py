"""PostgreSQL connections that wait for an answer for a known time.

The server's `statement_timeout` ends what is slow. It says nothing when the server itself is stopped, its disk hangs
or a firewall swallows packets while the kernel still acknowledges them: then a driver waits for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg
from psycopg import errors


def connector(answer_s: float) -> Callable[..., psycopg.Connection[Any]]:
    """A listener for SQLAlchemy's `do_connect` whose connections break when a single answer takes longer."""

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
            return super().wait(self._bounded(gen), *args, **kwargs)

        def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            deadline = time.monotonic() + answer_s
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if not ready and time.monotonic() > deadline:
                        self.pgconn.finish()  # its outcome is not known: nothing more may be said on it
                        raise errors.OperationalError(f"no answer within {answer_s:g} s")
                    wanted = gen.send(ready)
            except StopIteration as done:
                return done.value

    def connect(_dialect: Any, _record: Any, arguments: Any, named: Any) -> psycopg.Connection[Any]:
        return Bounded.connect(*arguments, **named)

    return connect
