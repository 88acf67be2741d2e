"""Who answers which request: a pure function of the entity and of what the deployment log says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tasks.core.sampling import entity_in_slice


@dataclass(frozen=True)
class Deployed:
    """A version that may answer requests, as the deployment log names it."""

    version: int
    bundle_digest: str
    """What the loaded bundle is checked against (I9)."""
    feature_version: str
    live_since: datetime
    """When the event that exposed it was written."""


@dataclass(frozen=True)
class Exposure:
    """Which versions answer, and how much of the traffic.

    The challenger answers the same entities that the canary's slice holds: those whose hash falls below `share`. An
    entity that the challenger answers at one share it also answers at every larger one, so a ramp moves each once.

    Raises:
        ValueError: The share is not between 0 and 1, or there is one without a challenger.
    """

    champion: Deployed
    challenger: Deployed | None = None
    share: float = 0.0
    """Share of entities that the challenger answers."""
    shadow: bool = False
    """The challenger scores copies of requests and answers none, whatever the share."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"a share is between 0 and 1, not {self.share}")
        if self.challenger is None and (self.share or self.shadow):
            raise ValueError("there is a share, or shadow mode, but no challenger")


def goes_to_challenger(pipeline: str, entity: str, exposure: Exposure) -> bool:
    """Whether the challenger answers this entity: always the same while the exposure is.

    Args:
        pipeline: Its name.
        entity: `tasks.core.ids.entity_id` of the row.
        exposure: What the deployment log says now.
    """
    if exposure.shadow or not exposure.share:
        return False
    return entity_in_slice(pipeline, entity, exposure.share)
