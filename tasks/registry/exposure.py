"""Exposing a challenger: a share of the entities gets its predictions while the champion stays what is live (I6).

An exposure is an event of the deployment log. It holds until it is changed, withdrawn, or the champion moves:
a promotion, a rollback and an adopted alias end it by themselves.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

from tasks.core.clock import Clock, utc_now
from tasks.core.errors import ConfigError, NotFound, PromotionConflict, TerminalError
from tasks.core.records import JsonRecord
from tasks.core.report_style import percent
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.metadata.deployments import LogHead, NewEvent
from tasks.metadata.records import DeploymentEvent
from tasks.metadata.store import MetadataStore
from tasks.registry.promotion import (
    Check,
    aliases_pending,
    new_event,
    refuse_barred,
    registered,
    require_live,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exposure(JsonRecord):
    """A challenger whose predictions a share of the entities gets."""

    version: int
    bundle_digest: str
    feature_version: str
    share: float
    """Of entities, by hash of their key: the same ones as long as the share holds, and among those of any larger one."""
    champion_version: int
    event_id: int

    @classmethod
    def of(cls, head: LogHead) -> Self | None:
        """What is exposed at this end of the log; None when nothing is."""
        event = head.exposed
        if event is None or event.share is None or head.live is None:
            return None
        return cls(
            version=event.version,
            bundle_digest=event.bundle_digest,
            feature_version=event.feature_version,
            share=event.share,
            champion_version=head.live.version,
            event_id=event.event_id,
        )


def current_exposure(settings: Settings, spec: PipelineSpec) -> Exposure | None:
    """What is exposed now, from the log alone."""
    return Exposure.of(MetadataStore.open(settings).head(spec))


def expose(
    settings: Settings,
    spec: PipelineSpec,
    version: int,
    *,
    share: float,
    expected: int | None,
    actor: str,
    reason: str,
    check: Check,
    clock: Clock = utc_now,
) -> Exposure:
    """Give `share` of the entities the predictions of `version`, beside the champion `expected`.

    The same version at another share changes the exposure; at the same share nothing is added.

    Args:
        share: Above 0, below 1; 1 would be a promotion.
        expected: The version that the caller believes to be live.
        check: Called before a version is exposed that was not; what it raises leaves everything as it is.

    Raises:
        ConfigError: `share` is not between 0 and 1.
        PromotionConflict: Something else is live, or another version is exposed.
        TerminalError: The version is live or barred, or there is no champion to stand beside.
        NotFound: The version is not registered.
        ServiceUnavailable: The database does not answer.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"is {share:g}",
            which="the share of an exposure",
            fix="give one above 0 and below 1; all entities get a version by `penstock registry promote`",
        )
    store = MetadataStore.open(settings, clock=clock)
    model = registered(store, spec, version)

    def decide(head: LogHead) -> list[NewEvent]:
        require_live(spec, expected, head, wanted=f"expose version {version}")
        if head.live is None:
            raise TerminalError(
                "has no champion to stand beside",
                which=f"{spec.name} version {version}",
                fix=f"promote it: `penstock registry promote {spec.name} {version} --reason ...`",
            )
        if head.live.version == version:
            raise TerminalError(
                "is live: all entities get its predictions",
                which=f"{spec.name} version {version}",
                fix="expose another version",
            )
        refuse_barred(spec, version, head)
        now = head.exposed
        if now is not None and now.version != version:
            raise PromotionConflict(
                f"cannot be exposed: version {now.version} is, at {percent(now.share or 0)} "
                f"(by {now.actor} at {now.at_utc:%Y-%m-%d %H:%M:%S} UTC)",
                which=f"{spec.name} version {version}",
                fix=f"wait until that one is promoted or withdrawn, or `penstock registry withdraw {spec.name} --reason ...`",
            )
        if now is not None and now.share == share:
            return []
        return [
            new_event("expose", model, expected=head.live.version, actor=actor, reason=reason, share=share)
        ]

    head = store.head(spec)
    if decide(head) and (head.exposed is None or head.exposed.version != version):
        check(model)
    store.append_events(spec, decide)
    found = Exposure.of(store.head(spec))
    if found is None or found.version != version:
        raise PromotionConflict(
            "was exposed and is not any more",
            which=f"{spec.name} version {version}",
            fix="read the history and decide again",
        )
    _log.info("%s: version %d is exposed to %s of entities", spec.name, version, percent(found.share))
    return found


def withdraw(
    settings: Settings,
    spec: PipelineSpec,
    *,
    version: int | None = None,
    bar: bool = False,
    actor: str,
    reason: str,
    clock: Clock = utc_now,
) -> DeploymentEvent | None:
    """End the exposure: the champion's predictions go to everybody again. Repeating changes nothing.

    Args:
        version: Only if this version is exposed; None: whatever is.
        bar: Forbid its promotion and exposure as well, until a person unbars it; its unpublished runs are refused.

    Returns:
        The newest event that this call added; None when there was nothing to end.

    Raises:
        NotFound: `version` is not registered.
        ServiceUnavailable: The database does not answer.
    """
    store = MetadataStore.open(settings, clock=clock)
    if version is not None:
        registered(store, spec, version)

    def decide(head: LogHead) -> list[NewEvent]:
        now = head.exposed
        if now is None or (version is not None and now.version != version):
            return []
        model = registered(store, spec, now.version)
        live = head.live.version if head.live else None
        kinds = ["withdraw"] + (["bar"] if bar and now.version not in head.barred else [])
        return [new_event(kind, model, expected=live, actor=actor, reason=reason) for kind in kinds]

    appended = store.append_events(spec, decide)
    if appended:
        _log.info("%s: version %d is exposed no more", spec.name, appended[0].version)
    if any(event.kind == "bar" for event in appended):
        aliases_pending(settings, store, spec)  # a barred version is no challenger in MLflow either
    return appended[-1] if appended else None


def require_exposed(settings: Settings, spec: PipelineSpec) -> Exposure:
    """What is exposed now.

    Raises:
        NotFound: Nothing is.
    """
    found = current_exposure(settings, spec)
    if found is None:
        raise NotFound(
            "exposes no challenger",
            which=spec.name,
            fix=f"expose one: `penstock registry expose {spec.name} VERSION --reason ...`",
        )
    return found
