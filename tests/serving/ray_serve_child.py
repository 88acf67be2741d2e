"""The toy pipeline on Ray Serve with a scale that moves within seconds: `ray_serve_child.py MAX_REPLICAS`."""

from __future__ import annotations

import sys
from dataclasses import replace

from serving_support import QUICK

from tasks.core import Settings
from tasks.serving import Scale
from tasks.wiring import serve_on_ray


def started(url: str, version: int | None) -> None:
    sys.stdout.write(f"toy: version {version} on {url}, moving\n")
    sys.stdout.flush()


if __name__ == "__main__":
    scale = Scale(
        max_replicas=int(sys.argv[1]), look_back_s=2.0, up_after_s=0.2, down_after_s=1.0, every_s=0.5
    )
    serve_on_ray(
        Settings.from_environment(),
        "toy",
        port=0,
        limits=replace(QUICK, drain_delay_s=0.2),
        scale=scale,
        started=started,
    )
