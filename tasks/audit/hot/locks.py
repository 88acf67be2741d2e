"""Locks that the kernel lets go when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.core.errors import disk_error

_LOOK_EVERY_S = 0.05


def try_lock(path: Path, *, wait_s: float = 0.0) -> int | None:
    """The lock's file handle, to be given to `unlock`; None when it was not to be had within `wait_s` seconds.

    Somebody else may be in this process or in another.
    """
    deadline = time.monotonic() + wait_s
    while (handle := _try_once(path)) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    return handle


def _try_once(path: Path) -> int | None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise disk_error(error, str(path)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise disk_error(error, str(path)) from error
    return handle


def writer_lock(folder: Path, digits: str) -> Path:
    """The file whose lock the writer of a node holds while it lives; `digits` are `node_digits` of its name."""
    return folder / f"{digits}.writer"


def unlock(handle: int) -> None:
    os.close(handle)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock; yields False when it was not to be had within `wait_s` seconds."""
    handle = try_lock(path, wait_s=wait_s)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            unlock(handle)
