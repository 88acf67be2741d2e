"""A disk that fails below the store, inside one driver.

The calls of `os` and `io` that a local store stands on are replaced in this process, for paths below one folder:
when the fault is on, they raise what a bad disk makes the kernel answer, before their work, half way through it,
or after it (an answer that is lost, as on a network file system). Delta writes its log in Rust, where nothing can
be replaced: there a limit on the size of files makes the write itself fail.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.inference.torture.faults import (
    CREATE,
    DELETE,
    DISK_ERROR,
    DISK_FULL,
    LOOK,
    NO_ACCESS,
    READ,
    WRITE,
    StoreFault,
)
from tasks.inference.torture.store_uses import Uses

_STAGED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.part")
_ERRNO = {DISK_FULL: errno.ENOSPC, NO_ACCESS: errno.EACCES, DISK_ERROR: errno.EIO}


def install(uses: Uses, root: Path) -> None:
    """Count this process's use of the pipeline's folder `root` from now on, and fail as `uses.fault` says."""
    _Disk(uses, root).install()


class _Disk:
    def __init__(self, uses: Uses, root: Path) -> None:
        self._uses = uses
        self._root = os.fspath(root.absolute())

    def install(self) -> None:
        import deltalake

        calls = {"mkdir": WRITE, "fsync": WRITE, "link": CREATE, "replace": CREATE, "unlink": DELETE}
        for name, operation in {**calls, "stat": LOOK, "scandir": LOOK}.items():
            setattr(os, name, self._call(getattr(os, name), operation))
        setattr(io, "open", self._open(io.open))  # noqa: B010 - an assignment is an error to mypy
        for name in ("create", "create_write_transaction"):
            setattr(deltalake.DeltaTable, name, self._delta(getattr(deltalake.DeltaTable, name)))

    def _strikes(self, operation: str, path: Any) -> bool:
        key = self._key(path)
        return key is not None and self._uses.strikes(operation, key)

    def _key(self, path: Any) -> str | None:
        """The key of a path or an open file; of a half-written file, the one that it is to become."""
        try:
            text = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fspath(path)
        except (OSError, TypeError):
            return None
        if not isinstance(text, str) or not text.startswith(f"{self._root}/"):
            return None
        folder, _, name = text.removeprefix(f"{self._root}/").rpartition("/")
        staged = _STAGED.fullmatch(name)
        name = staged["name"] if staged else name
        return f"{folder}/{name}" if folder else name

    def _call(self, real: Callable[..., Any], operation: str) -> Any:
        @functools.wraps(real)
        def call(*arguments: Any, **more: Any) -> Any:
            path = arguments[1 if operation == CREATE else 0] if arguments else "."
            if not self._strikes(operation, path):
                return real(*arguments, **more)
            fault = self._fault
            if fault.kind not in _ERRNO or (fault.done and fault.kind == DISK_ERROR and operation == CREATE):
                real(*arguments, **more)
            raise _error(fault, path)

        return call

    def _open(self, real: Callable[..., Any]) -> Any:
        @functools.wraps(real)
        def call(file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            writes = any(letter in mode for letter in "wxa+")
            if not self._strikes(WRITE if writes else READ, file):
                return real(file, mode, *arguments, **more)
            fault = self._fault
            if fault.kind == NO_ACCESS or not fault.done:
                raise _error(fault, file)
            raw = _HalfFile(file, mode.replace("b", ""), fault)
            return io.BufferedWriter(raw) if writes else io.BufferedReader(raw)

        return call

    def _delta(self, real: Callable[..., Any]) -> Any:
        @functools.wraps(real)
        def call(table: Any, *arguments: Any, **more: Any) -> Any:
            url = table if isinstance(table, str) else table.table_uri
            path = f"{url.removeprefix('file://').rstrip('/')}/_delta_log/commit"
            if not self._strikes(CREATE, path):
                return real(table, *arguments, **more)
            fault = self._fault
            if fault.kind not in _ERRNO:
                real(table, *arguments, **more)
                raise _error(fault, path)
            with _small_files():
                return real(table, *arguments, **more)

        return call

    @property
    def _fault(self) -> StoreFault:
        assert self._uses.fault
        return self._uses.fault


class _HalfFile(io.FileIO):
    """Reads or writes half of what it is asked for, then fails."""

    def __init__(self, path: Any, mode: str, fault: StoreFault) -> None:
        super().__init__(path, mode)
        self._penstock_fault = fault
        self._penstock_path = path
        self._penstock_used = False

    def write(self, data: Any) -> int:
        if not self._penstock_used and len(data) > 1:
            self._penstock_used = True
            return super().write(bytes(data)[: len(data) // 2])
        raise _error(self._penstock_fault, self._penstock_path)

    def readinto(self, buffer: Any) -> int:
        if not self._penstock_used and len(buffer) > 1:
            self._penstock_used = True
            half = super().read(min(len(buffer), 64)) or b""
            buffer[: len(half)] = half
            return len(half)
        raise _error(self._penstock_fault, self._penstock_path)

    def readall(self) -> bytes:
        raise _error(self._penstock_fault, self._penstock_path)


@contextmanager
def _small_files() -> Iterator[None]:
    """No file of this process grows beyond some bytes; Python ignores the signal that says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _error(fault: StoreFault, path: Any) -> OSError:
    number = _ERRNO.get(fault.kind, errno.EIO)
    return OSError(number, os.strerror(number), path if isinstance(path, str) else str(path))
