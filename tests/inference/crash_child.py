"""Score and publish a run, and die by SIGKILL at a named point: `crash_child.py RUN_ID POINT NTH`."""

from __future__ import annotations

import os
import signal
import sys

from inference_support import run_stub

from tasks.core import Settings, load_pipeline
from tasks.core.crash_points import observe
from tasks.inference import publish


def die_at(point: str, nth: int) -> None:
    """Die when this process reaches `point` for the n-th time."""
    hits = 0

    def die(name: str) -> None:
        nonlocal hits
        hits += name == point
        if hits == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    observe(die)


def main() -> None:
    run_id, point, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
    die_at(point, nth)
    settings = Settings.from_environment()
    spec = load_pipeline(settings, "toy")
    run_stub(settings, spec, run_id)
    publish(settings, spec, run_id)


if __name__ == "__main__":
    main()
