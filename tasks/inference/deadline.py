"""Interrupt a shard's attempt that takes too long, in whatever thread it runs."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_BYTE_CODES_UNTIL_IT_ARRIVES = 1000
_LOOK_AGAIN_S = 0.001
_LOOKS = 1000


class TimeIsUp(BaseException):
    """Raised inside an attempt; no `except Exception` of a model's code can swallow it."""


@contextmanager
def interrupted_after(seconds: float, *, end_process_after: float | None = None) -> Iterator[None]:
    """Raise `TimeIsUp` in this thread when the block takes longer than `seconds`.

    The exception arrives between two byte codes: a call into C that never returns is not interrupted. For that,
    `end_process_after` more seconds end the whole process, which only a worker of its own may ask for.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    running = True
    sent = False

    def interrupt() -> None:
        """Send the exception, but not while a thread is starting, unless that takes long.

        CPython 3.11 gives a thread that starts the number of the one that starts it, until it runs. Sent then, the exception would end the
        new thread before it says that it runs, for which the other one waits without end.
        """
        nonlocal sent
        for look in range(_LOOKS + 1):
            with lock, threading._active_limbo_lock:  # type: ignore[attr-defined]
                if not running:
                    return
                if look == _LOOKS or not threading._limbo:  # type: ignore[attr-defined]
                    sent = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(TimeIsUp)
                    )
                    return
            time.sleep(_LOOK_AGAIN_S)

    def end_process() -> None:
        with lock:
            if running:
                log.error(
                    "An attempt does not answer %.0f s after its time was up; its process ends.",
                    end_process_after,
                )
                os._exit(1)

    timers = [threading.Timer(seconds, interrupt)]
    if end_process_after is not None:
        timers.append(threading.Timer(seconds + end_process_after, end_process))
    for timer in timers:
        timer.daemon = True
        timer.start()

    def stop() -> None:
        nonlocal running
        with lock:
            running = False
        for timer in timers:
            timer.cancel()
        if sent:
            # Sent too late to be raised inside the block, it is raised here and not after it. It must not be taken
            # back: a withdrawn exception leaves CPython 3.11 in a state in which profilers and debuggers hang.
            for _ in range(_BYTE_CODES_UNTIL_IT_ARRIVES):
                pass

    try:
        yield
    finally:
        try:
            stop()
        except TimeIsUp:  # it comes once at most
            stop()
            raise
