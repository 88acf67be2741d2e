"""What changed around a window of days: in the model, its feature code, the data's columns, and by people's hand.

Days of data and moments of work are two clocks: a backfill scores a year of days in an hour. What joins them are the
scoring runs. A change is said to act from the first day on that was scored after it; days that were scored
twice count when they were scored first, and the second scoring is a change of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.core.day_span import day_span
from tasks.core.errors import DataError, NotFound
from tasks.core.waivers import waivers
from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.metadata import ScoringRun
    from tasks.metadata.records import DeploymentEvent
    from tasks.monitoring.causes import Change

BEFORE = timedelta(days=14)
"""How many days before a window are looked at."""
_RUNS, _EVENTS, _TRAININGS = 400, 200, 50
"""Most of each that are read, newest first."""
_SCHEMAS = 40
"""Most snapshots whose columns are compared."""


@dataclass(frozen=True)
class _Scored:
    """Days in the order of the data, with the run that scored each first, and those that took their place."""

    first: dict[date, ScoringRun]
    again: tuple[tuple[date, ScoringRun, datetime, ScoringRun], ...]
    """(day, run, when it was published, the run that held the day until then)."""

    def day_of(self, moment: datetime) -> date | None:
        """The first day that was scored after `moment`."""
        return min((day for day, run in self.first.items() if run.planned_at_utc >= moment), default=None)


def changes_of(context: Context, first_day: date, last_day: date) -> list[Change]:
    """What changed from 14 days before a window to its end, by the day from which on it can act; oldest first.

    Reads at most 400 runs, 200 deployment events, 50 trainings and 40 snapshots' manifests of the metadata store and the
    pipeline's store, and no row.
    """
    start = first_day - BEFORE
    scored = _scored(context, last_day)
    if not scored.first:
        return []
    # The newest run before the time that is looked at is where the first comparison starts from.
    earlier = [day for day in scored.first if day < start]
    since = scored.first[max(earlier)].planned_at_utc if earlier else None
    found = [
        *_models(context, scored),
        *_other_events(context, scored, since),
        *_schemas(context, scored, start),
        *_trainings(context, scored, since),
        *_placed(context, scored),
        *_scored_again(context, scored),
    ]
    return sorted(
        (change for change in found if start <= change.day <= last_day),
        key=lambda change: (change.day, change.at_utc, change.id),
    )


def _scored(context: Context, last_day: date) -> _Scored:
    runs = {run.run_id: run for run in context.metadata.runs(context.spec, limit=_RUNS)}
    first: dict[date, ScoringRun] = {}
    holder: dict[date, ScoringRun] = {}
    again = []
    for publication in reversed(context.metadata.publications(context.spec, limit=_RUNS)):
        run = runs.get(publication.run_id)
        if run is None:
            continue
        for day in publication.days:
            if day > last_day:
                continue
            if day in first and first[day].run_id != run.run_id:
                again.append((day, run, publication.published_at_utc, holder[day]))
            else:
                first[day] = run
            holder[day] = run
    return _Scored(dict(sorted(first.items())), tuple(again))


def _models(context: Context, scored: _Scored) -> Iterator[Change]:
    """Another version, or another feature version, scores from this day on."""
    from tasks.metadata.records import POINTER_KINDS
    from tasks.monitoring.causes import DEPLOYMENT, FEATURE_VERSION, Change

    moves = context.metadata.history(context.spec, kinds=POINTER_KINDS, limit=_EVENTS)
    for (_, before), (day, run) in pairwise(scored.first.items()):
        if run.run_id == before.run_id:
            continue
        event = _move(moves, run)
        at = (event.at_utc if event else run.planned_at_utc).isoformat()
        if run.bundle_digest != before.bundle_digest:
            yield Change(
                id=f"event {event.event_id}" if event else f"run {run.run_id[:12]}",
                kind=DEPLOYMENT,
                day=day,
                at_utc=at,
                words=f"version {run.model_version} scores from {day} on, version {before.model_version} before",
                detail=_told(event) if event else "",
            )
        if run.feature_version != before.feature_version:
            yield Change(
                id=f"feature version {str(run.feature_version)[:12]}",
                kind=FEATURE_VERSION,
                day=day,
                at_utc=at,
                words=f"features are computed by version {_short(run.feature_version)} from {day} on, "
                f"by {_short(before.feature_version)} before",
            )


def _move(moves: Sequence[DeploymentEvent], run: ScoringRun) -> DeploymentEvent | None:
    """The event that made a run's version live, as of its plan."""
    return next(
        (e for e in moves if e.at_utc <= run.planned_at_utc and e.version == run.model_version),
        None,
    )


def _told(event: DeploymentEvent) -> str:
    verb = {"promote": "promoted", "rollback": "rolled back to", "adopt": "adopted"}[event.kind]
    why = f": {event.reason}" if event.reason else ""
    return f"{verb} on {event.at_utc:%Y-%m-%d %H:%M} UTC by {event.actor}{why}"


def _other_events(context: Context, scored: _Scored, since: datetime | None) -> Iterator[Change]:
    """Exposures, and lines of the log that moved no prediction."""
    from tasks.metadata.records import EXPOSURE_KINDS, KINDS, POINTER_KINDS
    from tasks.monitoring.causes import EXPOSURE, LOG, Change

    others = [kind for kind in KINDS if kind not in POINTER_KINDS]
    for event in context.metadata.history(context.spec, kinds=others, since=since, limit=_EVENTS):
        share = f" for {event.share:.0%} of the entities" if event.share is not None else ""
        yield Change(
            id=f"event {event.event_id}",
            kind=EXPOSURE if event.kind in EXPOSURE_KINDS else LOG,
            day=scored.day_of(event.at_utc) or event.at_utc.date(),
            at_utc=event.at_utc.isoformat(),
            words=f"{event.kind} of version {event.version}{share} by {event.actor}",
            detail=event.reason,
        )


def _schemas(context: Context, scored: _Scored, start: date) -> Iterator[Change]:
    """The source delivers other columns, or other types, from this day on."""
    from tasks.monitoring.causes import SCHEMA, Change

    known: dict[str, dict[str, str] | None] = {}

    def columns(snapshot_id: str | None) -> dict[str, str] | None:
        if snapshot_id is None:
            return None
        if snapshot_id not in known:
            try:
                known[snapshot_id] = dict(context.snapshot(snapshot_id).schema)
            except (NotFound, DataError):  # retention took it: nothing to compare with
                known[snapshot_id] = None
        return known[snapshot_id]

    near = [item for item in scored.first.items() if item[0] >= start - timedelta(days=7)]
    steps = [(a, b) for a, b in pairwise(near) if a[1].snapshot_id != b[1].snapshot_id]
    for (_, before), (day, run) in steps[-_SCHEMAS:]:
        old, new = columns(before.snapshot_id), columns(run.snapshot_id)
        if old is None or new is None or old == new:
            continue
        changed = [
            f"{name} ({old[name]}, now {new[name]})" for name in old if name in new and old[name] != new[name]
        ]
        parts = [
            f"{title} {', '.join(names)}"
            for title, names in (
                ("without", [name for name in old if name not in new]),
                ("with new", [name for name in new if name not in old]),
                ("with other types:", changed),
            )
            if names
        ]
        yield Change(
            id=f"snapshot {run.snapshot_id}",
            kind=SCHEMA,
            day=day,
            at_utc=run.planned_at_utc.isoformat(),
            words=f"the source delivers its rows from {day} on {'; '.join(parts) or 'with its columns in another order'}",
        )


def _trainings(context: Context, scored: _Scored, since: datetime | None) -> Iterator[Change]:
    from tasks.monitoring.causes import TRAINING, Change

    newest = context.metadata.model_versions(context.spec, limit=_TRAININGS)
    versions = {item.bundle_digest: item.version for item in newest}
    for item in context.metadata.trainings(context.spec, limit=_TRAININGS):
        if since is not None and item.recorded_at_utc < since:
            break
        version = versions.get(item.bundle_digest)
        which = f"version {version}" if version else "a model that is not registered"
        yield Change(
            id=f"training {item.training_id[:12]}",
            kind=TRAINING,
            day=scored.day_of(item.recorded_at_utc) or item.recorded_at_utc.date(),
            at_utc=item.recorded_at_utc.isoformat(),
            words=f"{which} was trained on snapshot {item.snapshot_id}",
        )


def _placed(context: Context, scored: _Scored) -> Iterator[Change]:
    """Waivers of the evaluation gate that were placed, and holds of scoring that were released."""
    from tasks.monitoring.causes import HOLD_RELEASE, WAIVER, Change
    from tasks.monitoring.mitigation import scoring_holds

    for waiver in waivers(context.store):
        at = _moment(waiver.placed_at_utc)
        yield Change(
            id=f"waiver {waiver.waiver_id}",
            kind=WAIVER,
            day=scored.day_of(at) or at.date(),
            at_utc=at.isoformat(),
            words=f"{waiver.actor} let {waiver.finding!r} pass until {waiver.until}",
            detail=waiver.reason,
        )
    for hold in scoring_holds(context.store):
        if hold.released_at_utc is None:
            continue
        at = _moment(hold.released_at_utc)
        yield Change(
            id=f"hold {hold.hold_id}",
            kind=HOLD_RELEASE,
            day=hold.days[0],
            at_utc=at.isoformat(),
            words=f"{hold.released_by} released the hold for {day_span(hold.days[0], hold.days[-1])}",
            detail=hold.release_reason or "",
        )


def _scored_again(context: Context, scored: _Scored) -> Iterator[Change]:
    """Days that another run holds since; where its model is another one, that is a deployment to these days."""
    from tasks.metadata.records import POINTER_KINDS
    from tasks.monitoring.causes import DEPLOYMENT, RUN_REPLACED, Change

    days: dict[str, list[date]] = {}
    for day, run, *_ in scored.again:
        days.setdefault(run.run_id, []).append(day)
    moves = context.metadata.history(context.spec, kinds=POINTER_KINDS, limit=_EVENTS) if days else []
    for day, run, at, before in scored.again:
        mine = sorted(days[run.run_id])
        if day != mine[0]:
            continue
        span = f"{mine[0]} was" if len(mine) == 1 else f"{len(mine)} days from {mine[0]} to {mine[-1]} were"
        words = f"{span} scored again, by version {run.model_version}"
        if run.bundle_digest == before.bundle_digest:
            yield Change(f"run {run.run_id[:12]}", RUN_REPLACED, mine[0], at.isoformat(), words)
            continue
        event = _move(moves, run)
        yield Change(
            id=f"run {run.run_id[:12]}",
            kind=DEPLOYMENT,
            day=mine[0],
            at_utc=at.isoformat(),
            words=f"{words}, version {before.model_version} before",
            detail=_told(event) if event else "",
        )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _short(version: str | None) -> str:
    return (version or "unknown")[:12]
