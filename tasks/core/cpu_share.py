"""A share of the CPUs for a process and all of its threads, so that one with many threads does not slow its neighbours."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")


def take_own_share() -> bool:
    """Make this process the leader of a session; False where that changes nothing.

    Linux divides busy CPUs between sessions first and between the threads of each then: 8 threads of one worker get as much as one
    thread of another. Nobody is held to a number of CPUs: what is idle is anybody's. In a container its own limits hold instead.

    Source: sched(7), "The autogroup feature".
    """
    try:
        if _SWITCH.read_text().strip() != "1":
            return False
    except OSError:
        return False
    with suppress(OSError):
        if (
            os.getpgid(0) == os.getpid()
        ):  # Ray makes its workers leaders of a group, and those may not begin a session
            os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()  # its group has its own number again, by which Ray ends what it has started
    return os.getsid(0) == os.getpid()
