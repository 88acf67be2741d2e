"""Moving the champion, forth and back, and asking what was live (I6, I7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from tasks.core.clock import Clock, utc_now
from tasks.core.errors import NotFound, PenstockError, PromotionConflict, TerminalError
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.metadata.deployments import LogHead, NewEvent
from tasks.metadata.records import POINTER_KINDS, DeploymentEvent, ModelVersion
from tasks.metadata.store import MetadataStore
from tasks.registry.aliases import project
from tasks.registry.deployment import Deployment
from tasks.registry.mlflow_api import MlflowRegistry

Check = Callable[[ModelVersion], None]
"""Loads a version (verifying its digest) and scores its golden rows; raises when that does not work."""
_log = logging.getLogger(__name__)


def champion(settings: Settings, spec: PipelineSpec) -> Deployment | None:
    """The live version, from the log alone: MLflow need not be up. None before the first promotion."""
    event = MetadataStore.open(settings).live(spec)
    return Deployment.of(event) if event else None


def live_at(settings: Settings, spec: PipelineSpec, moment: datetime) -> Deployment | None:
    """The version that was live at `moment` (timezone-aware)."""
    event = MetadataStore.open(settings).live_at(spec, moment)
    return Deployment.of(event) if event else None


def history(
    settings: Settings,
    spec: PipelineSpec,
    *,
    within: timedelta | None = None,
    limit: int | None = None,
    clock: Clock = utc_now,
) -> list[DeploymentEvent]:
    """Every deployment event, newest first; `within` keeps those of the last so much time."""
    since = clock() - within if within is not None else None
    return MetadataStore.open(settings).history(spec, since=since, limit=limit)


def version(settings: Settings, spec: PipelineSpec, number: int) -> ModelVersion:
    """A registered version. Raises `NotFound`, listing those there are."""
    return registered(MetadataStore.open(settings), spec, number)


def versions(settings: Settings, spec: PipelineSpec) -> list[ModelVersion]:
    """Registered versions, newest first."""
    return MetadataStore.open(settings).model_versions(spec)


def promote(
    settings: Settings,
    spec: PipelineSpec,
    version: int,
    *,
    expected: int | None,
    actor: str,
    reason: str,
    check: Check,
    expected_event: int | None = None,
    clock: Clock = utc_now,
) -> Deployment:
    """Make `version` the champion if `expected` is the champion now: of any number of callers, one wins.

    The same request again (version, expected and actor equal, and its version still live) returns the deployment
    it made; so does promoting what is expected to be live already.

    Args:
        expected: The version that the caller believes to be live; None: none is.
        check: Called before the pointer moves; what it raises leaves the champion as it is.
        expected_event: The event that the caller believes to have made `expected` live (0: none is), so that a version
            that left and came back meanwhile counts as moved.

    Raises:
        PromotionConflict: Something else is live; the message names it and who put it there.
        TerminalError: The version is barred.
        NotFound: The version is not registered.
        ServiceUnavailable: The database does not answer. MLflow down is no error: `alias_pending` says so.
    """
    store = MetadataStore.open(settings, clock=clock)
    model = registered(store, spec, version)

    def already(head: LogHead) -> DeploymentEvent | None:
        live = head.live
        if live is None or live.version != version:
            return None
        same_request = live.kind == "promote" and (live.expected_version, live.actor) == (expected, actor)
        return live if same_request or expected == version else None

    def decide(head: LogHead) -> list[NewEvent]:
        if already(head):
            return []
        refuse_barred(spec, version, head)
        require_live(spec, expected, head, wanted=f"promote version {version}", event=expected_event)
        return [new_event("promote", model, expected=expected, actor=actor, reason=reason)]

    head = store.head(spec)
    if decide(head):
        check(model)
        appended = store.append_events(spec, decide)
        event = appended[0] if appended else already(store.head(spec))
    else:
        event = already(head)
    if event is None:  # live for a moment, and replaced before it was read back
        raise PromotionConflict(
            "was live and has been replaced meanwhile",
            which=f"{spec.name} version {version}",
            fix="read the history and decide again",
        )
    _log.info("%s: champion is version %d (was %s)", spec.name, event.version, event.previous_version)
    return Deployment.of(event, alias_pending=aliases_pending(settings, store, spec))


def rollback(
    settings: Settings,
    spec: PipelineSpec,
    *,
    to_version: int | None = None,
    expected: int | None = None,
    actor: str,
    reason: str,
    check: Check,
    expected_event: int | None = None,
    clock: Clock = utc_now,
) -> Deployment:
    """Go back to an earlier champion and bar the present one until a person says otherwise (I7).

    Args:
        to_version: None: the last different version that was live and is not barred.
        expected: The version that the caller wants to leave. Give it whenever the call may be repeated: if it
            was rolled back already, that rollback is returned instead of going back one more.
        check: Called with the target before the pointer moves; what it raises leaves the champion as it is.
        expected_event: As in `promote`.

    Raises:
        PromotionConflict: Something other than `expected` is live.
        TerminalError: There is no earlier version to go back to, or the one asked for was never live or is barred.
        ServiceUnavailable: The database does not answer. MLflow down is no error: `alias_pending` says so.
    """
    store = MetadataStore.open(settings, clock=clock)

    def already(head: LogHead) -> DeploymentEvent | None:
        live = head.live
        done = (
            live is not None
            and expected is not None
            and live.kind == "rollback"
            and live.previous_version == expected
            and to_version in (None, live.version)
        )
        return live if done else None

    head = store.head(spec)
    event = already(head)
    if event is None:
        leaving = _require_something_live(spec, head)
        require_live(spec, leaving if expected is None else expected, head, wanted="roll back")
        past = store.history(spec, kinds=POINTER_KINDS)
        target = registered(store, spec, _rollback_target(spec, past, head, to_version))
        failing = registered(store, spec, leaving)
        check(target)

        def decide(now: LogHead) -> list[NewEvent]:
            if already(now):
                return []
            require_live(spec, leaving, now, wanted="roll back", event=expected_event)
            refuse_barred(spec, target.version, now)
            return [
                new_event("rollback", target, expected=leaving, actor=actor, reason=reason),
                new_event("bar", failing, expected=leaving, actor=actor, reason=reason),
            ]

        appended = store.append_events(spec, decide)
        event = appended[0] if appended else already(store.head(spec))
    if event is None:
        raise PromotionConflict(
            "the champion moved meanwhile", which=spec.name, fix="read the history and decide again"
        )
    _log.info("%s: rolled back to version %d from %s", spec.name, event.version, event.previous_version)
    return Deployment.of(event, alias_pending=aliases_pending(settings, store, spec))


def rollback_targets(settings: Settings, spec: PipelineSpec) -> list[int]:
    """The live version and those a rollback may go to, best first: none of them may be deleted (I7)."""
    store = MetadataStore.open(settings)
    past = store.history(spec, kinds=POINTER_KINDS)
    barred = store.head(spec).barred
    return [number for number in once_live(past) if number not in barred]


def once_live(moves: Sequence[DeploymentEvent]) -> list[int]:
    """The versions of these moves of the pointer, which come newest first; each once, the newest first."""
    return list(dict.fromkeys(event.version for event in moves))


def bar(settings: Settings, spec: PipelineSpec, version: int, *, actor: str, reason: str) -> None:
    """Forbid the promotion of `version` until `unbar`, and end its exposure; nothing changes when it is barred already.

    Raises:
        TerminalError: It is live: roll back instead, which bars it.
        NotFound: It is not registered.
    """
    store = MetadataStore.open(settings)
    model = registered(store, spec, version)

    def decide(head: LogHead) -> list[NewEvent]:
        if version in head.barred:
            return []
        if head.live and head.live.version == version:
            raise TerminalError(
                "is live and cannot be barred",
                which=f"{spec.name} version {version}",
                fix=f"roll it back: `penstock registry rollback {spec.name} --leaving {version}` bars it too",
            )
        shown = head.exposed is not None and head.exposed.version == version
        kinds = ["withdraw", "bar"] if shown else ["bar"]
        return [new_event(kind, model, expected=None, actor=actor, reason=reason) for kind in kinds]

    if store.append_events(spec, decide):
        aliases_pending(settings, store, spec)


def unbar(settings: Settings, spec: PipelineSpec, version: int, *, actor: str, reason: str) -> None:
    """Allow the promotion of a barred version again; nothing changes when it is not barred.

    Raises:
        NotFound: It is not registered.
    """
    store = MetadataStore.open(settings)
    model = registered(store, spec, version)
    event = new_event("unbar", model, expected=None, actor=actor, reason=reason)
    if store.append_events(spec, lambda head: [event] if version in head.barred else []):
        aliases_pending(settings, store, spec)


def reject(
    settings: Settings, spec: PipelineSpec, version: int, *, actor: str, reason: str
) -> DeploymentEvent:
    """Record that `actor` refused to promote `version`; nothing moves, and it may be asked for again.

    The same refusal again (version, actor and reason equal) is the one that is there.

    Raises:
        NotFound: It is not registered.
    """
    store = MetadataStore.open(settings)
    model = registered(store, spec, version)

    def recorded() -> DeploymentEvent | None:
        said = (version, actor, reason)
        past = store.history(spec, kinds=("reject",))
        return next((item for item in past if (item.version, item.actor, item.reason) == said), None)

    found = recorded()
    if found is not None:
        return found
    event = new_event("reject", model, expected=None, actor=actor, reason=reason)
    return store.append_events(spec, lambda _head: [event])[0]


def new_event(
    kind: str,
    model: ModelVersion,
    *,
    expected: int | None,
    actor: str,
    reason: str,
    share: float | None = None,
) -> NewEvent:
    """An event about `model`, to be appended."""
    return NewEvent(
        kind, model.version, model.bundle_digest, model.feature_version, expected, actor, reason, share
    )


def registered(store: MetadataStore, spec: PipelineSpec, number: int) -> ModelVersion:
    """A registered version. Raises `NotFound`, naming the newest."""
    model = store.model_version(spec, number)
    if model is None:
        known = ", ".join(str(item.version) for item in store.model_versions(spec, limit=10)) or "none yet"
        raise NotFound(
            "is not registered",
            which=f"{spec.name} version {number}",
            fix=f"use one of the newest: {known}; or train one",
        )
    return model


def require_live(
    spec: PipelineSpec, expected: int | None, head: LogHead, *, wanted: str, event: int | None = None
) -> None:
    """Raises `PromotionConflict` unless `expected` is what is live (None: nothing is), by `event` where that is given."""
    live = head.live.version if head.live else None
    made = head.live.event_id if head.live else 0
    if live == expected and event in (None, made):
        return
    believed = "no version" if expected is None else f"version {expected}"
    if event:
        believed += f" (event {event})"
    raise PromotionConflict(
        f"cannot {wanted}: {believed} was expected to be live, but {_who(head.live)}",
        which=spec.name,
        fix="compare with the version that is live now, then decide again",
    )


def _require_something_live(spec: PipelineSpec, head: LogHead) -> int:
    if head.live is None:
        raise TerminalError("has no champion to roll back", which=spec.name, fix="promote a version first")
    return head.live.version


def refuse_barred(spec: PipelineSpec, version: int, head: LogHead) -> None:
    """Raises `TerminalError` when the version is barred."""
    if version in head.barred:
        raise TerminalError(
            "is barred: it was rolled back or refused",
            which=f"{spec.name} version {version}",
            fix=f"if that is settled, run `penstock registry unbar {spec.name} {version} --reason ...`",
        )


def _rollback_target(
    spec: PipelineSpec, past: Sequence[DeploymentEvent], head: LogHead, to_version: int | None
) -> int:
    live = head.live.version if head.live else None
    earlier = [number for number in once_live(past) if number != live]
    usable = [number for number in earlier if number not in head.barred]
    if to_version is not None:
        refuse_barred(spec, to_version, head)
        if to_version not in earlier:
            raise TerminalError(
                "is live now"
                if to_version == live
                else "was never live, so it is not a version to go back to",
                which=f"{spec.name} version {to_version}",
                fix=f"roll back to one of: {', '.join(map(str, usable)) or 'none'}; or promote it",
            )
        return to_version
    if not usable:
        raise TerminalError(
            f"version {live} has no earlier version to go back to"
            + (f" (barred: {', '.join(map(str, earlier))})" if earlier else ""),
            which=spec.name,
            fix="train and promote another version, or unbar an earlier one",
        )
    return usable[0]


def _who(live: DeploymentEvent | None) -> str:
    if live is None:
        return "none is live"
    return f"version {live.version} is ({live.kind} by {live.actor} at {live.at_utc:%Y-%m-%d %H:%M:%S} UTC)"


def aliases_pending(settings: Settings, store: MetadataStore, spec: PipelineSpec) -> bool:
    """Tell MLflow; True when that did not work. The log has moved already, so this is never an error."""
    try:
        with MlflowRegistry(settings.mlflow_url) as mlflow:
            project(store, mlflow, spec)
        live = store.live(spec)
        shown = store.projection(spec, "champion")
        return (shown.version if shown else None) != (live.version if live else None)
    except PenstockError as error:
        _log.warning("%s: MLflow's aliases are behind and will be reconciled: %s", spec.name, error.what)
        return True
