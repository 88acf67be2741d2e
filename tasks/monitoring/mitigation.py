"""What the monitor may do by itself: hold scoring, and roll back within stated limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import NotFound
from tasks.core.ids import digest_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.placed import place, read_placed, refuse_blank, release
from tasks.core.records import JsonRecord
from tasks.core.spec import PipelineSpec
from tasks.metadata.records import DeploymentEvent

ACTOR = "monitor"
"""Who places holds and rolls back by itself, in every log."""
LEAST_GAIN = 0.003
"""Brier loss that the earlier version must surely be better by."""
LEAST_DAYS = 3
QUIET = timedelta(days=7)
"""At most one automatic rollback in this time."""
_FOLDER = "monitoring/holds"


@dataclass(frozen=True)
class ScoringHold(JsonRecord):
    """Days whose data is at fault: no others are scored, and nothing is promoted, until it is over."""

    hold_id: str
    days: tuple[date, ...]
    reason: str
    actor: str
    placed_at_utc: str
    released_at_utc: str | None = None
    released_by: str | None = None
    release_reason: str | None = None

    @property
    def open(self) -> bool:
        return self.released_at_utc is None


def hold_scoring(
    store: ObjectStore, days: Sequence[date], *, reason: str, actor: str = ACTOR, clock: Clock = utc_now
) -> ScoringHold | None:
    """Hold scoring for faults of these days; the hold that stands where one of them has all of these days.

    Days that a person has released do not hold again, in whatever window they are seen. Days that were released because they
    were whole do, when they break again.

    Returns:
        None when a person has released all of these days.
    """
    known = scoring_holds(store)
    forgiven = {day for hold in known if hold.released_by not in (None, ACTOR) for day in hold.days}
    faulty = tuple(sorted(set(days) - forgiven))
    if not faulty:
        return None
    for hold in known:
        if hold.open and set(faulty) <= set(hold.days):
            return hold
    identity = digest_json([[day.isoformat() for day in faulty], len(known)])[:8]
    hold = ScoringHold(identity, faulty, reason, actor, iso_utc(clock()))
    try:
        place(store, _FOLDER, identity, hold)
    except AlreadyExists:  # another process saw the same fault
        return next(one for one in scoring_holds(store) if one.hold_id == identity)
    return hold


def release_scoring(
    store: ObjectStore, hold_id: str, *, reason: str, actor: str, clock: Clock = utc_now
) -> ScoringHold:
    """End a hold; a second release changes nothing.

    Raises:
        NotFound: There is no such hold.
        ConfigError: Nobody says why.
    """
    refuse_blank(reason, "reason", "say why: the record is all that remains of it")
    return release(
        store,
        _FOLDER,
        hold_id,
        lambda: {hold.hold_id: hold for hold in scoring_holds(store)},
        reason=reason,
        actor=actor,
        clock=clock,
        missing=NotFound(
            "is no hold of this pipeline's scoring",
            which=hold_id,
            fix="list them: penstock monitoring holds NAME",
        ),
    )


def scoring_holds(store: ObjectStore) -> list[ScoringHold]:
    """Every hold that was placed, also those that are over, oldest first.

    Raises:
        DataError: One cannot be read; nothing is scored then.
    """
    found = read_placed(
        store,
        _FOLDER,
        ScoringHold,
        what="a readable hold",
        fix="restore the object from a backup; nothing is scored until then",
    )
    return sorted(found, key=lambda hold: (hold.placed_at_utc, hold.hold_id))


@dataclass(frozen=True)
class RollbackCase(JsonRecord):
    """The live version beside the one that a rollback would go to, on the labelled days that the live one scored."""

    live: int
    target: int | None
    """None: there is none to go back to."""
    days: int
    gain: float | None
    """Lower confidence bound of the live version's Brier loss less the target's; None while it has none."""
    loss: float | None
    """Upper bound of the same."""
    skill: float | None = None
    """The target's Brier skill score on these rows; 0 is as good as always saying the share of positive labels."""
    report_key: str = ""


@dataclass(frozen=True)
class Rollback(JsonRecord):
    """Whether the monitor goes back by itself, and why or why not."""

    automatic: bool
    reasons: tuple[str, ...]


def judge_rollback(
    spec: PipelineSpec,
    case: RollbackCase,
    moves: Sequence[DeploymentEvent],
    now: datetime,
    *,
    held: str = "",
) -> Rollback:
    """Whether a damaged champion is left without asking. Pure.

    Only for a version that is shown to be better on the same rows, by a bound that holds however often it is looked at, and
    that has skill there: of two that fail, the less certain one loses less and is no remedy. At most once in a week; never from a version that the monitor itself went back to.

    Args:
        spec: `drift.rollback` says whether it may happen at all.
        case: The comparison.
        moves: What moved the champion, newest first.
        now: Timezone-aware.
        held: Why scoring is held, when it is: what the labels say of faulty days is not the model's.
    """
    against = [f"a data fault is open: {held}"] if held else []
    if case.target is None:
        return Rollback(False, ("there is no earlier version to go back to",))
    shown = f"version {case.live} beside version {case.target} on {case.days} labelled days: Brier loss "
    shown += f"{_signed(case.gain)} to {_signed(case.loss)} higher"
    if case.days < LEAST_DAYS:
        against.append(f"{case.days} labelled days of version {case.live}, {LEAST_DAYS} are needed")
    elif case.gain is None or case.gain <= LEAST_GAIN:
        against.append(f"version {case.target} is not shown to be better by {LEAST_GAIN:g}")
    elif case.skill is None or case.skill <= 0:
        against.append(
            f"version {case.target} knows no more about these rows than their share of positive labels: the labels or the "
            "world changed, and no version helps"
        )
    if moves and moves[0].kind == "rollback" and moves[0].actor == ACTOR:
        against.append(f"the monitor itself went back to version {case.live}: it goes back no second time")
    recent = [
        event
        for event in moves
        if event.kind == "rollback" and event.actor == ACTOR and now - event.at_utc < QUIET
    ]
    if recent:
        against.append(f"it rolled back on {recent[0].at_utc:%Y-%m-%d} already: once in {QUIET.days} days")
    if not against and spec.rolls_back == "ask":
        against.append("drift.rollback asks a person")
    return Rollback(not against, (shown, *against))


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{round(value, 4) + 0.0:+.4f}"
