"""A limit on the memory of this process that the kernel holds: what asks for more fails here, and nobody else is ended for it."""

from __future__ import annotations

import resource
from pathlib import Path

from tasks.core.errors import ConfigError

_GIB = 1 << 30
_KIB = 1024
_TORCH = "DefaultCPUAllocator: can't allocate memory"


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
    wanted, has = int(gib * _GIB), _data_bytes()
    if has >= wanted:
        raise ConfigError(
            f"is {gib:g}, and a worker has {has / _GIB:.2f} GiB before it loads anything",
            which=field,
            fix="raise it: a worker with torch needs about 1 GiB, and its rows beside",
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > wanted:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed: Python's, numpy's, or torch's, which says so by a `RuntimeError` of its own."""
    if error is None:
        return False
    told = isinstance(error, RuntimeError) and _TORCH in str(error)
    return told or isinstance(error, MemoryError) or out_of_memory(error.__cause__)


def _data_bytes() -> int:
    """What the kernel counts towards the limit now; 0 where it does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("VmData:")), 0)
