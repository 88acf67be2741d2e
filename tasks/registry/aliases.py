"""MLflow's `champion` and `challenger` aliases, and the marks of barred versions, as a projection of the deployment log (I6).

What Penstock last set is kept beside the log. So an alias that is behind (a crash, MLflow was down) is told
from one that somebody moved by hand: only the second differs from what was last set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from tasks.core.errors import NotFound
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.metadata.deployments import LogHead, NewEvent
from tasks.metadata.records import POINTER_KINDS, ModelVersion, Projection
from tasks.metadata.store import MetadataStore
from tasks.registry import cards
from tasks.registry.mlflow_api import MlflowRegistry

CHAMPION = "champion"
CHALLENGER = "challenger"
BARRED_TAG = "penstock.barred"
_SECOND_LOOK_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What the aliases must say for one state of the log."""

    event_id: int
    aliases: dict[str, int | None]


def wanted_aliases(head: LogHead, newest: ModelVersion | None, *, newest_was_live: bool) -> Wanted:
    """The aliases that a log asks for. Pure.

    `challenger` is the newest registered version while it has never been live and is not barred.
    """
    waits = newest is not None and not newest_was_live and newest.version not in head.barred
    return Wanted(
        head.event_id,
        {
            CHAMPION: head.live.version if head.live else None,
            CHALLENGER: newest.version if newest is not None and waits else None,
        },
    )


def project(store: MetadataStore, mlflow: MlflowRegistry, spec: PipelineSpec) -> list[str]:
    """Make both aliases, and the marks of barred versions, say what the log says; the lines tell what was changed.

    The log is read again afterwards: when another process moved it meanwhile, the newer state is set too, so the
    last of several concurrent writers leaves the right alias.

    Raises:
        ServiceUnavailable: MLflow or the database does not answer.
    """
    lines: list[str] = []
    while True:
        wanted = _wanted(store, spec)
        present = _present(mlflow, spec)
        for alias, version in wanted.aliases.items():
            lines += _set(store, mlflow, spec, alias, version, present.get(alias), wanted.event_id)
        lines += _mark_barred(store, mlflow, spec)
        if _wanted(store, spec) == wanted:
            return lines


def reconcile(
    settings: Settings,
    spec: PipelineSpec,
    *,
    policy: Literal["revert", "adopt"] = "revert",
    check: Callable[[ModelVersion], None] | None = None,
    actor: str = "reconcile",
) -> list[str]:
    """Bring MLflow's aliases in line with the log, and say what was done; an empty list when all was well.

    A `champion` alias that somebody moved by hand is put back and recorded (`revert`), or becomes a deployment
    (`adopt`) if the version is registered, not barred and passes `check`; otherwise it is put back all the same.

    Args:
        check: Loads the version and scores golden rows; needed for `adopt`.

    Raises:
        ServiceUnavailable: MLflow or the database does not answer.
    """
    store = MetadataStore.open(settings)
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        lines = _answer_hand_moves(store, mlflow, spec, policy=policy, check=check, actor=actor)
        lines += project(store, mlflow, spec)
    for line in lines:
        _log.info("%s: %s", spec.name, line)
    return lines


def _answer_hand_moves(
    store: MetadataStore,
    mlflow: MlflowRegistry,
    spec: PipelineSpec,
    *,
    policy: str,
    check: Callable[[ModelVersion], None] | None,
    actor: str,
) -> list[str]:
    """Record what hands moved; nothing while a promotion, a registration or another reconcile is at work."""
    while True:
        look = _look(store, mlflow, spec)
        if not _moved_by_hand(store, spec, look):
            return []
        time.sleep(_SECOND_LOOK_S)  # a process may be between the alias and its note
        if _look(store, mlflow, spec) != look:
            continue
        events, lines = _answers(store, spec, look, policy=policy, check=check, actor=actor)
        try:
            store.append_events(spec, partial(_unless_moved, look.head, events))
        except _LogMovedError:
            continue
        return lines


@dataclass(frozen=True)
class _Look:
    """Aliases of one moment with the log and the notes, which were the same before and after."""

    head: LogHead
    wanted: Wanted
    champion_note: Projection | None
    challenger_note: Projection | None
    present: dict[str, int] = field(default_factory=dict)


class _LogMovedError(Exception):
    """Another process was first."""


def _look(store: MetadataStore, mlflow: MlflowRegistry, spec: PipelineSpec) -> _Look:
    while True:
        before = _notes(store, spec)
        present = _present(mlflow, spec)
        if _notes(store, spec) == before:
            return replace(before, present=present)


def _notes(store: MetadataStore, spec: PipelineSpec) -> _Look:
    notes = (store.projection(spec, CHAMPION), store.projection(spec, CHALLENGER))
    return _Look(store.head(spec), _wanted(store, spec), *notes)


def _unless_moved(seen: LogHead, events: list[NewEvent], now: LogHead) -> list[NewEvent]:
    if now.event_id != seen.event_id:
        raise _LogMovedError
    return events


def _moved_by_hand(store: MetadataStore, spec: PipelineSpec, look: _Look) -> list[str]:
    """The aliases that differ from the log in a way that neither a crash nor an outage explains."""
    moved = []
    found, wanted = look.present.get(CHALLENGER), look.wanted.aliases[CHALLENGER]
    if found not in (wanted, look.challenger_note.version if look.challenger_note else None):
        newest = next(iter(store.model_versions(spec, limit=1)), None)
        # Between the registration of a version and the note that the alias was set, a crash leaves it unrecorded.
        if newest is not None and not (found == newest.version and look.challenger_note is None):
            moved.append(CHALLENGER)
    found, live = look.present.get(CHAMPION), look.wanted.aliases[CHAMPION]
    if found != live and found not in _may_be_behind(store, spec, look.champion_note):
        moved.append(CHAMPION)
    return moved


def _answers(
    store: MetadataStore,
    spec: PipelineSpec,
    look: _Look,
    *,
    policy: str,
    check: Callable[[ModelVersion], None] | None,
    actor: str,
) -> tuple[list[NewEvent], list[str]]:
    """The events to append on the head that was seen, and the lines that tell of them."""
    events: list[NewEvent] = []
    lines: list[str] = []
    aliases = _moved_by_hand(store, spec, look)
    if CHALLENGER in aliases:
        newest = store.model_versions(spec, limit=1)[0]
        wanted = look.wanted.aliases[CHALLENGER]
        moved = f"alias challenger was moved by hand in MLflow to {_shown(look.present.get(CHALLENGER), 'nothing')}; {_shown(wanted)} waits"
        event = NewEvent(
            "revert", newest.version, newest.bundle_digest, newest.feature_version, None, actor, moved
        )
        events += _unless_recorded(store, spec, event, look.challenger_note)
        lines.append(f"{moved}: put back")
    if CHAMPION in aliases:
        live, found = look.head.live, look.present.get(CHAMPION)
        now = live.version if live else None
        moved = f"alias champion was moved by hand in MLflow to {_shown(found, 'nothing')}; the log says {_shown(now)}"
        if policy == "adopt" and found is not None:
            adopted = _adoption(store, spec, found, look.head, check=check, actor=actor)
            if isinstance(adopted, NewEvent):
                return [*events, adopted], [*lines, f"{moved}: adopted version {found}"]
            moved = f"{moved}; not adopted: {adopted}"
        if live is not None:
            event = NewEvent(
                "revert", live.version, live.bundle_digest, live.feature_version, live.version, actor, moved
            )
            events += _unless_recorded(store, spec, event, look.champion_note)
        lines.append(f"{moved}: put back")
    return events, lines


def _unless_recorded(
    store: MetadataStore, spec: PipelineSpec, event: NewEvent, note: Projection | None
) -> list[NewEvent]:
    """Nothing when an attempt that stopped half way, or one beside this, has recorded it: the alias was not set since."""
    since = note.event_id if note else 0
    past = store.history(spec, kinds=("revert",), limit=10)
    same = (
        item.reason == event.reason and item.actor == event.actor for item in past if item.event_id > since
    )
    return [] if any(same) else [event]


def _may_be_behind(store: MetadataStore, spec: PipelineSpec, ours: Projection | None) -> set[int | None]:
    """What the champion alias can say when no hand moved it: what was last set, or what a crash kept from record."""
    since = ours.event_id if ours else 0
    later = store.history(spec, kinds=POINTER_KINDS)
    return {ours.version if ours else None} | {event.version for event in later if event.event_id > since}


def _adoption(
    store: MetadataStore,
    spec: PipelineSpec,
    version: int,
    head: LogHead,
    *,
    check: Callable[[ModelVersion], None] | None,
    actor: str,
) -> NewEvent | str:
    """The event that makes the hand-made choice a deployment, or why it cannot be one."""
    model = store.model_version(spec, version)
    if model is None:
        return f"version {version} was not registered by Penstock"
    if check is None:
        return "no check was given that loads it"
    if version in head.barred:
        return f"version {version} is barred"
    try:
        check(model)
    except Exception as error:  # whatever the user's model raises must not keep the alias wrong
        return f"its check failed: {error}"
    return NewEvent(
        "adopt",
        version,
        model.bundle_digest,
        model.feature_version,
        head.live.version if head.live else None,
        actor,
        "alias champion was moved by hand in MLflow",
    )


def _wanted(store: MetadataStore, spec: PipelineSpec) -> Wanted:
    newest = next(iter(store.model_versions(spec, limit=1)), None)
    was_live = newest is not None and store.was_live(spec, newest.version)
    return wanted_aliases(store.head(spec), newest, newest_was_live=was_live)


def _present(mlflow: MlflowRegistry, spec: PipelineSpec) -> dict[str, int]:
    try:
        return mlflow.aliases(spec.model_name)
    except NotFound:
        return {}


def _set(
    store: MetadataStore,
    mlflow: MlflowRegistry,
    spec: PipelineSpec,
    alias: str,
    version: int | None,
    present: int | None,
    event_id: int,
) -> list[str]:
    lines: list[str] = []
    if version != present:
        if version is None:
            mlflow.delete_alias(spec.model_name, alias)
        else:
            try:
                mlflow.set_alias(spec.model_name, alias, version)
            except NotFound:
                return [
                    f"alias {alias} cannot be set: version {version} was deleted in MLflow (scoring is not affected)"
                ]
        lines.append(f"alias {alias}: {_shown(present)} -> {_shown(version)}")
    ours = store.projection(spec, alias)
    if ours is None or (ours.version, ours.event_id) != (version, event_id):
        store.record_projection(spec, alias, version, event_id=event_id)
    return lines


def _mark_barred(store: MetadataStore, mlflow: MlflowRegistry, spec: PipelineSpec) -> list[str]:
    """A tag, and the first line of the description. A tag stays where the log says nothing of its version: after a lost database
    it is all that is known.
    """
    last = {event.version: event for event in reversed(store.history(spec, kinds=("bar", "unbar")))}
    tagged = mlflow.tagged(spec.model_name, BARRED_TAG) if last else {}
    lines: list[str] = []
    for version, event in sorted(last.items()):
        wanted = cards.barred_tag(event) if event.kind == "bar" else None
        if tagged.get(version) == wanted:
            continue
        try:
            # The tag last: it tells that all is done.
            card = cards.barred_card(mlflow.description(spec.model_name, version), wanted)
            mlflow.describe(spec.model_name, version, card)
            if wanted is None:
                mlflow.delete_tag(spec.model_name, version, BARRED_TAG)
            else:
                mlflow.set_tag(spec.model_name, version, BARRED_TAG, wanted)
        except NotFound:
            continue  # deleted in MLflow
        lines.append(f"version {version}: {'no longer ' if wanted is None else ''}shown as barred")
    return lines


def _shown(version: int | None, none: str = "none") -> str:
    return none if version is None else f"version {version}"
