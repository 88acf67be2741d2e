"""Keeps Great Expectations out of the task log: it logs tracebacks of what is reported anyway."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_NOWHERE = logging.NullHandler()


@contextmanager
def quiet() -> Iterator[None]:
    """No log line of the library reaches a handler, whatever levels its own loggers have set."""
    logger = logging.getLogger("great_expectations")
    before = logger.propagate, logger.level
    logger.addHandler(_NOWHERE)
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.propagate = before[0]
        logger.setLevel(before[1])
        logger.removeHandler(_NOWHERE)
