"""Merge the toy pipeline's small files, and die by SIGKILL at a named point: `optimize_child.py - POINT NTH`."""

from __future__ import annotations

import sys

from crash_child import die_at

from tasks.core import Settings, load_pipeline
from tasks.inference import optimize

if __name__ == "__main__":
    die_at(sys.argv[2], int(sys.argv[3]))
    settings = Settings.from_environment()
    optimize(settings, load_pipeline(settings, "toy"))
