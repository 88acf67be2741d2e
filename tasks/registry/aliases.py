"""MLflow's `champion` and `challenger` aliases as a projection of the deployment log (I6).

What Penstock last set is kept beside the log. So an alias that is behind (a crash, MLflow was down) is told
from one that somebody moved by hand: only the second differs from what was last set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tasks.core.errors import NotFound, PromotionConflict
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.metadata.deployments import LogHead, NewEvent
from tasks.metadata.records import POINTER_KINDS, DeploymentEvent, ModelVersion, Projection
from tasks.metadata.store import MetadataStore
from tasks.registry.mlflow_api import MlflowRegistry

CHAMPION = "champion"
CHALLENGER = "challenger"
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
    """Make both aliases say what the log says; the lines tell what was changed.

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
    present = _present(mlflow, spec)
    lines = _answer_moved_challenger(store, spec, present.get(CHALLENGER), actor=actor)
    found = present.get(CHAMPION)
    head = store.head(spec)
    live = head.live.version if head.live else None
    ours = store.projection(spec, CHAMPION)
    if found == live or found in _may_be_behind(store, spec, ours):
        return lines
    shown = f"version {found}" if found is not None else "nothing"
    moved = f"alias champion was moved by hand in MLflow to {shown}; the log says {_shown(live)}"
    if policy == "adopt" and found is not None:
        refusal = _adopt(store, spec, found, live=live, check=check, actor=actor)
        if refusal is None:
            return [*lines, f"{moved}: adopted version {found}"]
        moved = f"{moved}; not adopted: {refusal}"
    if head.live is not None:
        _record_revert(store, spec, head.live, reason=moved, actor=actor)
    return [*lines, f"{moved}: put back"]


def _answer_moved_challenger(
    store: MetadataStore, spec: PipelineSpec, found: int | None, *, actor: str
) -> list[str]:
    """Record that somebody moved `challenger`; it says which version waits, so there is nothing to adopt."""
    wanted = _wanted(store, spec).aliases[CHALLENGER]
    ours = store.projection(spec, CHALLENGER)
    if found == wanted or found == (ours.version if ours else None):
        return []
    newest = next(iter(store.model_versions(spec, limit=1)), None)
    # Between the registration of a version and the note that the alias was set, a crash leaves it unrecorded.
    if newest is None or (found == newest.version and ours is None):
        return []
    shown = f"version {found}" if found is not None else "nothing"
    moved = f"alias challenger was moved by hand in MLflow to {shown}; {_shown(wanted)} waits"
    event = NewEvent(
        "revert", newest.version, newest.bundle_digest, newest.feature_version, None, actor, moved
    )
    store.append_events(spec, lambda _head: [event])
    return [f"{moved}: put back"]


def _may_be_behind(store: MetadataStore, spec: PipelineSpec, ours: Projection | None) -> set[int | None]:
    """What the champion alias can say when no hand moved it: what was last set, or what a crash kept from record."""
    since = ours.event_id if ours else 0
    later = store.history(spec, kinds=POINTER_KINDS)
    return {ours.version if ours else None} | {event.version for event in later if event.event_id > since}


def _adopt(
    store: MetadataStore,
    spec: PipelineSpec,
    version: int,
    *,
    live: int | None,
    check: Callable[[ModelVersion], None] | None,
    actor: str,
) -> str | None:
    model = store.model_version(spec, version)
    if model is None:
        return f"version {version} was not registered by Penstock"
    if check is None:
        return "no check was given that loads it"
    if version in store.head(spec).barred:
        return f"version {version} is barred"
    try:
        check(model)
    except Exception as error:  # whatever the user's model raises must not keep the alias wrong
        return f"its check failed: {error}"

    def decide(head: LogHead) -> list[NewEvent]:
        now_live = head.live.version if head.live else None
        if now_live != live or version in head.barred:
            raise PromotionConflict("the log moved meanwhile", which=f"{spec.name} version {version}")
        return [
            NewEvent(
                "adopt",
                version,
                model.bundle_digest,
                model.feature_version,
                live,
                actor,
                "alias champion was moved by hand in MLflow",
            )
        ]

    try:
        store.append_events(spec, decide)
    except PromotionConflict as error:
        return error.what
    return None


def _record_revert(
    store: MetadataStore, spec: PipelineSpec, live: DeploymentEvent, *, reason: str, actor: str
) -> None:
    event = NewEvent(
        "revert", live.version, live.bundle_digest, live.feature_version, live.version, actor, reason
    )
    store.append_events(spec, lambda _head: [event])


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


def _shown(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
