"""A limit on the memory of this process that the kernel holds: what asks for more fails here, and nobody else is ended for it."""

from __future__ import annotations

import resource
from pathlib import Path

from tasks.core.errors import ConfigError, OutOfMemory
from tasks.core.units import GIB

_KIB = 1024
_held: tuple[float, str] | None = None
"""Limit of this process in GiB, and where it is said."""


def limit_memory(gib: float, *, field: str) -> None:
    """Let this process have at most `gib` GiB of private writable memory; an allocation beyond is a `MemoryError`.

    Counted is what a process can write and shares with nobody, touched or not: files that it maps to read and Ray's object store
    are not. A limit that is lower already stays.

    Args:
        field: Where the limit is said, for the error.

    Raises:
        ConfigError: The process has more already.

    Source: setrlimit(2), RLIMIT_DATA.
    """
    global _held
    wanted, has = int(gib * GIB), _data_bytes()
    if has >= wanted:
        raise ConfigError(
            f"is {gib:g}, and a worker has {has / GIB:.2f} GiB before it loads anything",
            which=field,
            fix="raise it: this is what Ray and torch alone take (torch's CUDA build half a GiB more than its CPU build); its rows come beside",
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > wanted:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))
        _held = (gib, field)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed, here or in what this was raised from. Python, numpy and pyarrow raise `MemoryError`, torch a `RuntimeError`."""
    return error is not None and (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's of an accelerator
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
        or ran_out_of_memory(error.__cause__)
    )


def out_of_memory(error: BaseException, *, which: str, doing: str = "it") -> OutOfMemory:
    """What to tell of an allocation that failed: the limit, what the process had, and what to change."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200].removesuffix(": ")
    had = f"this process had {_data_bytes() / GIB:.2f} GiB when an allocation failed ({said})"
    less = "give it less at a time (inference.shard_rows and batch_rows, training.batch_rows)"
    if _held is None:
        return OutOfMemory(
            f"{doing} needs more memory than this machine has: {had}",
            which=which,
            fix=f"{less}, or run fewer workers on a node",
        )
    gib, field = _held
    return OutOfMemory(
        f"{doing} needs more memory than its {gib:g} GiB ({field}): {had}",
        which=which,
        fix=f"raise {field}, or {less}",
    )


def _data_bytes() -> int:
    """What the kernel counts towards the limit now; 0 where it does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("VmData:")), 0)
