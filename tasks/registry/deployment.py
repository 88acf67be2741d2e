"""`Deployment`: a version that is, or was, live."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from tasks.core.records import JsonRecord
from tasks.metadata.records import DeploymentEvent


@dataclass(frozen=True)
class Deployment(JsonRecord):
    """A live version, with the event that made it so."""

    version: int
    bundle_digest: str
    """SHA-256 over the bundle's whole tree, as recorded at registration: check the loaded tree against it (I9)."""
    feature_version: str
    event_id: int
    kind: str
    """`promote`, `rollback` or `adopt`."""
    at_utc: datetime
    previous_version: int | None
    actor: str
    reason: str
    alias_pending: bool = False
    """True when MLflow could not be told: the log has moved, `reconcile` will move the alias."""

    @classmethod
    def of(cls, event: DeploymentEvent, *, alias_pending: bool = False) -> Self:
        """The deployment that a pointer-moving event made."""
        return cls(
            version=event.version,
            bundle_digest=event.bundle_digest,
            feature_version=event.feature_version,
            event_id=event.event_id,
            kind=event.kind,
            at_utc=event.at_utc,
            previous_version=event.previous_version,
            actor=event.actor,
            reason=event.reason,
            alias_pending=alias_pending,
        )
