"""What the deployments page shows of a pipeline: what is live, what was, who decided, and on what evidence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tasks.core import Clock, PipelineSpec, Settings, load_pipeline, pipeline_names, utc_now
from tasks.core.errors import NotFound, PenstockError
from tasks.metadata import CanaryStep, DeploymentEvent, MetadataStore, ModelVersion
from tasks.metadata.deployments import LogHead
from tasks.metadata.records import KINDS, POINTER_KINDS
from tasks.registry import Exposure
from tasks.wiring.context import Context, open_context

log = logging.getLogger(__name__)

EVENTS, VERDICTS, VERSIONS, SPANS, STEPS = 25, 12, 12, 60, 20
"""Most of each that one page shows."""
_KNOWN = 200
"""Versions, newest first, that a verdict's bundle is looked for among."""
_DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Span:
    """A version and the time that it was live."""

    version: int
    start: datetime
    end: datetime | None
    """None: it is live."""
    kind: str
    actor: str


@dataclass(frozen=True)
class VersionLine:
    """A registered version and what may be done with it."""

    model: ModelVersion
    state: str
    """`live`, `exposed`, `challenger`, `barred`, `former` or `registered`."""
    promotable: bool
    rollback_target: bool


@dataclass(frozen=True)
class GateLine:
    """A verdict of the evaluation gate or the canary."""

    gate: str
    outcome: str
    at: str
    version: int | None
    """None: the model was not registered."""
    passed: tuple[str, ...]
    open: tuple[tuple[str, str], ...]
    """(status, words) of the findings that are not passes."""
    report_url: str


@dataclass(frozen=True)
class Deployments:
    """One pipeline's page."""

    pipeline: str
    model_name: str
    live: DeploymentEvent | None
    visible_rows: int
    visible_days: int
    asked: datetime | None
    live_then: DeploymentEvent | None
    spans: tuple[Span, ...]
    """Oldest first, the last of them; empty before the first promotion."""
    marks: tuple[DeploymentEvent, ...]
    """Events that move nothing, oldest first, within the spans."""
    events: tuple[DeploymentEvent, ...]
    """Newest first."""
    next_before: int | None
    """Where the next page of events begins; None: there is none."""
    versions: tuple[VersionLine, ...]
    verdicts: tuple[GateLine, ...]
    canary_figure: str
    """HTML of the newest canary's confidence sequence; empty without one."""
    canary_of: int | None
    rollback_to: int | None
    exposed: Exposure | None
    """The challenger that a share of the entities gets."""
    steps: tuple[CanaryStep, ...]
    """Looks at exposed challengers, newest first."""


def deployments(
    settings: Settings,
    pipeline: str,
    *,
    before: int | None = None,
    at: datetime | None = None,
) -> Deployments:
    """Everything that the page of a pipeline shows.

    Args:
        before: Only events with a smaller id; for paging.
        at: A moment (timezone-aware) of which is asked what was live.

    Raises:
        NotFound, ConfigError: There is no such pipeline, or its file is not right.
    """
    context = open_context(settings, pipeline)
    spec, store = context.spec, context.metadata
    head = store.head(spec)
    moves = store.history(spec, kinds=POINTER_KINDS, limit=SPANS)
    others = store.history(spec, kinds=sorted(set(KINDS) - set(POINTER_KINDS)), limit=SPANS)
    spans = _spans(moves)
    rest = store.history(spec, before=before, limit=EVENTS + 1)
    newest = store.model_versions(spec, limit=_KNOWN)
    known = {item.bundle_digest: item.version for item in newest}
    figure, canary_of = _canary(context, known)
    targets = _targets(moves, head)
    rows, days = _visible(context, head.live)
    return Deployments(
        pipeline=spec.name,
        model_name=spec.model_name,
        live=head.live,
        visible_rows=rows,
        visible_days=days,
        asked=at,
        live_then=store.live_at(spec, at) if at else None,
        spans=spans,
        marks=tuple(event for event in reversed(others) if spans and event.at_utc >= spans[0].start),
        events=tuple(rest[:EVENTS]),
        next_before=rest[EVENTS - 1].event_id if len(rest) > EVENTS else None,
        versions=_versions(context, head, targets, newest[:VERSIONS]),
        verdicts=_verdicts(context, known),
        canary_figure=figure,
        canary_of=canary_of,
        rollback_to=targets[0] if targets else None,
        exposed=Exposure.of(head),
        steps=tuple(store.canary_steps(spec, limit=STEPS)),
    )


def deployments_overview(
    settings: Settings, may_read: Callable[[str], bool] = lambda _name: True, *, clock: Clock = utc_now
) -> list[dict[str, Any]]:
    """One line a pipeline: what is live since when and why, its last verdict, and its events of the last day.

    What is live and the events are one statement a tenant each, however long the logs are.
    """
    specs: list[PipelineSpec] = []
    lines: dict[str, dict[str, Any]] = {}
    for name in filter(may_read, pipeline_names(settings)):
        try:
            specs.append(load_pipeline(settings, name))
        except PenstockError as error:
            lines[name] = {"pipeline": name, "error": str(error)}
    live: dict[tuple[str, str], DeploymentEvent] = {}
    recent: dict[tuple[str, str], int] = {}
    store = MetadataStore.open(settings)
    for tenant in {spec.tenant for spec in specs}:
        live |= {(tenant, name): event for name, event in store.live_everywhere(tenant).items()}
        for name, _event in store.events_everywhere(tenant, since=clock() - _DAY):
            recent[tenant, name] = recent.get((tenant, name), 0) + 1
    for spec in specs:
        newest = store.verdicts(spec, gate="evaluation", limit=1)
        lines[spec.name] = {
            "pipeline": spec.name,
            "error": "",
            "live": live.get((spec.tenant, spec.name)),
            "verdict": newest[0].verdict if newest else None,
            "recent": recent.get((spec.tenant, spec.name), 0),
        }
    return [lines[name] for name in sorted(lines)]


def _spans(moves: list[DeploymentEvent]) -> tuple[Span, ...]:
    """`moves` come newest first."""
    ordered = list(reversed(moves))
    ends = [event.at_utc for event in ordered[1:]] + [None]
    return tuple(
        Span(event.version, event.at_utc, end, event.kind, event.actor)
        for event, end in zip(ordered, ends, strict=True)
    )


def _targets(moves: list[DeploymentEvent], head: LogHead) -> list[int]:
    """Where a rollback may go, best first, of the newest moves."""
    from tasks.registry.promotion import once_live

    live = head.live.version if head.live else None
    return [number for number in once_live(moves) if number != live and number not in head.barred]


def _versions(
    context: Context, head: LogHead, targets: list[int], newest: list[ModelVersion]
) -> tuple[VersionLine, ...]:
    """`newest` come newest first."""
    live = head.live.version if head.live else None
    lines = []
    for model in newest:
        barred = model.version in head.barred
        if model.version == live:
            state = "live"
        elif head.exposed is not None and model.version == head.exposed.version:
            state = "exposed"
        elif barred:
            state = "barred"
        elif context.metadata.was_live(context.spec, model.version):
            state = "former"
        else:
            state = "challenger" if model == newest[0] else "registered"
        lines.append(
            VersionLine(
                model=model,
                state=state,
                promotable=model.version != live and not barred,
                rollback_target=model.version in targets,
            )
        )
    return tuple(lines)


def _verdicts(context: Context, known: dict[str, int]) -> tuple[GateLine, ...]:
    found = [
        stored
        for gate in ("evaluation", "canary")
        for stored in context.metadata.verdicts(context.spec, gate=gate, limit=VERDICTS)
    ]
    found.sort(key=lambda stored: stored.recorded_at_utc, reverse=True)
    return tuple(
        GateLine(
            gate=stored.verdict.gate,
            outcome=stored.verdict.outcome,
            at=f"{stored.recorded_at_utc:%Y-%m-%d %H:%M}",
            version=known.get(stored.verdict.subject),
            passed=tuple(
                f"{item.name}: {item.shown}" for item in stored.verdict.findings if item.status == "pass"
            ),
            open=tuple(
                (item.status, f"{item.name}: {item.shown}")
                for item in sorted(stored.verdict.findings, key=lambda item: item.status)  # fail before warn
                if item.status != "pass"
            ),
            report_url=context.report_url(stored.verdict.report_key),
        )
        for stored in found[:VERDICTS]
    )


def _canary(context: Context, known: dict[str, int]) -> tuple[str, int | None]:
    """The newest canary's confidence sequence, drawn, and whose it is; nothing when its evidence is gone."""
    from tasks.evaluation.records import CanaryBound, CanaryDay
    from tasks.evaluation.report import sequence_figure

    newest = context.metadata.verdicts(context.spec, gate="canary", limit=1)
    if not newest or not newest[0].verdict.evidence_key:
        return "", None
    verdict = newest[0].verdict
    try:
        evidence = json.loads(context.store.get(str(verdict.evidence_key)))
        days = [CanaryDay.from_json(item) for item in evidence["days"]]
        bounds = [CanaryBound.from_json(item) for item in evidence["sequence"]]
        margin = float(evidence["canary"]["margin_brier"])
    except (NotFound, ValueError, KeyError, TypeError) as error:
        log.warning("%s: the canary's evidence cannot be drawn: %s", context.spec.name, error)
        return "", None
    if not bounds:
        return "", None
    canary = context.spec.canary.model_copy(update={"margin_brier": margin})
    spec = context.spec.model_copy(update={"canary": canary})
    return sequence_figure(spec, days, bounds), known.get(verdict.subject)


def _visible(context: Context, live: DeploymentEvent | None) -> tuple[int, int]:
    """Rows and days that readers see of the live version."""
    from tasks.wiring.rollback import blast_radius

    if live is None:
        return 0, 0
    try:
        radius = blast_radius(context.settings, context.spec.name, version=live.version)
    except NotFound:  # live, and taken out of the list of versions by hand
        return 0, 0
    return radius["visible_rows"], radius["visible_days"]
