"""How many replicas the load asks for. Ray's controller runs this: it imports nothing of ours.

What waits is counted in seconds of scoring, not in requests: forty requests are nothing for a small model and two seconds for a large
one, and a server that refuses what would be late keeps its queue short however many ask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WAITING_S = "waiting_s"
BUSY_SHARE = "busy_share"
_MOST_GROWTH = 2.0


@dataclass(frozen=True)
class Scale:
    """Between how many replicas, and how fast."""

    min_replicas: int = 1
    max_replicas: int = 4
    cpus: float = 1.0
    """Of one replica; its threads use little more than one."""
    gpus: float = 0.0
    look_back_s: float = 10.0
    """The load is a mean over so long."""
    up_after_s: float = 5.0
    """So long it must ask for more replicas without a break."""
    down_after_s: float = 60.0
    """And so long for fewer, because a new replica loads its model first."""
    every_s: float = 2.0
    """How often replicas tell their load."""
    ready_within_s: float = 180.0
    """The first replicas must answer within this time."""


def replicas_wanted(
    waiting_s: Mapping[Any, float],
    busy_share: Mapping[Any, float],
    *,
    target_waiting_s: float = 0.1,
    target_busy_share: float = 0.7,
) -> float:
    """How many replicas would bring the load to its target.

    What waits asks for more of them, at most twice as many at once: a queue says that there are too few, not how
    many are missing. Only how busy they are can ask for fewer.

    Args:
        waiting_s: By replica, how long what waits will take to be scored; a mean over the last seconds.
        busy_share: By replica, how much of the time it computed, 0 to 1. At least one.
    """
    count = len(busy_share)
    wanted = sum(busy_share.values()) / target_busy_share
    waiting = sum(waiting_s.values()) / max(1, len(waiting_s))
    if waiting > target_waiting_s:
        wanted = max(wanted, count + 1, count * min(_MOST_GROWTH, waiting / target_waiting_s))
    return wanted


def by_load(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray Serve's autoscaling policy; replicas that said nothing yet change nothing."""
    told = context.aggregated_metrics or {}
    busy = told.get("busy_share") or {}
    if not busy:
        return context.target_num_replicas, {}
    return max(1, math.ceil(replicas_wanted(told.get("waiting_s") or {}, busy))), {}
