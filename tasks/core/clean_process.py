"""Python processes that share nothing with this one but the installed code: no modules, no state, no threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CODE = str(Path(__file__).resolve().parents[2])
_TAIL = 2000


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    output: str
    """What it printed, both streams."""
    timed_out: bool = False

    @property
    def reason(self) -> str | None:
        """Why it did not end well; None when it did."""
        return None if self.code == 0 and not self.timed_out else why_ended(self.code, self.output)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with this code first, one thread for each library, and `extra`."""
    path = os.pathsep.join([_CODE, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **(extra or {}),
    }


def run_python(
    arguments: Sequence[str], *, deadline_s: float, cwd: Path, extra: Mapping[str, str] | None = None
) -> Ended:
    """Run `python <arguments>` to its end; past the deadline it is killed with every process that it started."""
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(extra),
            start_new_session=True,
        )
        timed_out = False
        try:
            child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            kill(child)
        printed.seek(0)
        return Ended(child.returncode, printed.read().decode(errors="replace"), timed_out)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that leads its own session, and all that it started; one that has ended is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def why_ended(code: int, output: str) -> str:
    """One line on a process that should not have ended so: its signal or exit code, and its last line."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (perhaps for lack of memory)" if name == "SIGKILL" else ""
        how = f"was ended by {name}{hint}"
    else:
        how = f"ended with exit code {code}"
    lines = [line.strip() for line in output[-_TAIL:].splitlines() if line.strip()]
    return f"{how}: {lines[-1]}" if lines else how
