"""The suspected causes of what the monitor saw: which channels, which slices, since when, and what changed then.

Nothing here is proof. A cause is a rule that found something to stand on; its weight is the sum of the points that
speak for and against it, and orders causes, no more: it is no probability. The rules are few on purpose, so that who is
woken at night can follow each of them (docs/monitoring.md has the table), and where none of them finds anything, that is
said as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from tasks.core.records import JsonRecord
from tasks.monitoring.decision import DAMAGE, DRIFT, FAULT, MERGE_DAYS
from tasks.monitoring.performance import Z_ALARM
from tasks.monitoring.signals import (
    ChannelDrift,
    ContractFinding,
    DayPerformance,
    DaySignals,
    Decision,
    PerformanceSignal,
)
from tasks.monitoring.slices import HELD, RANKS, SliceGap, SlicePerformance

FEED, FEATURE_CODE, MODEL, LABELS, WORLD, PLATFORM, UNKNOWN = (
    "feed",
    "feature code",
    "model",
    "labels",
    "world",
    "platform",
    "unknown",
)
"""Kinds of cause."""

DEPLOYMENT, EXPOSURE, FEATURE_VERSION, SCHEMA, TRAINING, WAIVER, HOLD_RELEASE, RUN_REPLACED, LOG = (
    "deployment",
    "exposure",
    "feature_version",
    "snapshot_schema",
    "training",
    "waiver",
    "hold_release",
    "run_replaced",
    "deployment_log",
)
"""Kinds of change; `deployment_log` is a line of the log that moved no prediction."""

SHOWN = 4
LEAST = 2
"""A cause with less weight is not worth naming."""
BLUR = timedelta(days=3)
"""How far before the estimated start of damage its cause may lie: the start of a CUSUM is an estimate."""
_OURS = (DEPLOYMENT, EXPOSURE, FEATURE_VERSION)
_DELIVERY = ("repeat", "frozen", "stale", "volume", "rows")
"""Checks that only a delivery can fail: no code of ours makes rows fewer or the same as yesterday's."""
_CONFLICTS = 0.01
"""Share of predictions with contradicting labels from which on labels are suspected."""


@dataclass(frozen=True)
class Change(JsonRecord):
    """Something that changed in code, data or model."""

    id: str
    """What it is found by: `event 7`, `run 3f2a...`, `training 9c1e...`."""
    kind: str
    """`deployment` (another version scores), `exposure`, `feature_version`, `snapshot_schema`, `training`, `waiver`,
    `hold_release`, `run_replaced` or `deployment_log`."""
    day: date
    """The first day of data that it can have touched."""
    at_utc: str
    """When it was done, ISO 8601."""
    words: str
    """In one short sentence."""
    detail: str = ""
    """Who did it, when and why, where it is known."""

    @property
    def told(self) -> str:
        """The sentence with its detail."""
        return f"{self.words} ({self.detail})" if self.detail else self.words


@dataclass(frozen=True)
class Cause(JsonRecord):
    """A suspected cause, with what speaks for it and against."""

    rank: int
    """1 is the most likely."""
    weight: int
    """Points for less points against; orders causes and is no probability. 0: nothing fits."""
    kind: str
    """`feed`, `feature code`, `model`, `labels`, `world`, `platform` or `unknown`."""
    what: str
    """In one plain sentence."""
    since: date
    """First day of data on which it shows."""
    channels: tuple[str, ...]
    slices: tuple[str, ...]
    changes: tuple[str, ...]
    """Ids of the changes that fit."""
    speaks_for: tuple[str, ...]
    speaks_against: tuple[str, ...]
    look: str
    """What to look at first."""


_LOOK = {
    FEED: "Look at the source's rows of these days, in the channels named, and ask the owner of the feed.",
    FEATURE_CODE: "Compare the feature code of the two versions, and compute the features of one day with both.",
    MODEL: "Compare with the version before on the same labelled days; roll back if that one is better.",
    LABELS: "Look at how the labels of these days were made, and whether all of them have come.",
    WORLD: "Find the event behind it (season, holiday, storm, new partner); if it stays, retrain on recent days.",
    PLATFORM: "Look at the scoring run of these days: dead letters, failed shards, who scored them again and why.",
    UNKNOWN: "Look at some rows of the first day by hand: features, score, label.",
}


@dataclass
class _Case:
    """A cause while its points are counted."""

    kind: str
    text: str
    since: date
    main: bool = True
    """About what gave the window its verdict."""
    channels: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    weight: int = 0
    pro: list[str] = field(default_factory=list)
    contra: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def add(self, points: int, words: str, *changes: Change) -> None:
        self.weight += points
        (self.pro if points > 0 else self.contra).append(words)
        self.changes += [change.id for change in changes if change.id not in self.changes]


@dataclass(frozen=True)
class _Trouble:
    """Days of one kind of trouble, at most `MERGE_DAYS` apart, that reach into the window."""

    since: date
    first_alarm: date
    last: date
    days: tuple[date, ...]
    signals: tuple[DaySignals, ...]
    """Of these days."""
    went_on: bool = False
    """Of damage that begins with another model: the one before was in alarm too, and more than half as far off."""

    @property
    def findings(self) -> tuple[ContractFinding, ...]:
        return tuple(finding for signal in self.signals for finding in signal.faults)

    @property
    def warnings(self) -> tuple[ContractFinding, ...]:
        return tuple(finding for signal in self.signals for finding in signal.warnings)

    @property
    def alarms(self) -> tuple[ChannelDrift, ...]:
        return tuple(channel for signal in self.signals for channel in signal.alarms)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Features and pairs that left their usual range, in alarm or against the contract."""
        moved = [c.channel for c in self.alarms if c.kind in ("numeric", "categorical", "pair")]
        return _unique([*moved, *(f.channel for f in self.findings if f.channel)])

    @property
    def alone(self) -> tuple[ChannelDrift, ...]:
        """Numeric features whose mean is not what the means of the others suggest."""
        return tuple(channel for channel in self.alarms if channel.kind == "numeric" and channel.detail)


@dataclass(frozen=True)
class _Facts:
    performances: Sequence[DayPerformance]
    slices: SlicePerformance | None
    changes: Sequence[Change]
    source_columns: frozenset[str]
    main: bool

    def at(
        self, day: date, *kinds: str, until: date | None = None, blur: timedelta = timedelta(0)
    ) -> list[Change]:
        """Changes of these kinds that begin to act on `day`, or from `blur` before it until `until`."""
        last = until or day
        return [c for c in self.changes if c.kind in kinds and day - blur <= c.day <= last]

    def case(self, kind: str, text: str, trouble: _Trouble, channels: Iterable[str] = ()) -> _Case:
        return _Case(kind, text, trouble.since, self.main, channels=_unique(channels))


def suspect(
    decision: Decision,
    signals: Sequence[DaySignals],
    slices: SlicePerformance | None = None,
    changes: Sequence[Change] = (),
    *,
    performances: Sequence[DayPerformance] = (),
    gaps: Sequence[PerformanceSignal] = (),
    source_columns: Iterable[str] = (),
) -> tuple[Cause, ...]:
    """What most likely lies behind the verdict on a window, most likely first. Pure.

    Args:
        decision: The verdict; a healthy, noisy or blind window has no cause to look for.
        signals: Tiers 1 and 2 of the window, and of days before it, so that a start before the window is seen.
        slices: Performance by slice of the days with damage; None: not compared.
        changes: What changed on these days, whoever changed it.
        performances: Tier 3 by day.
        gaps: `judge_gaps` of the performances.
        source_columns: Columns that the source delivers; what is a channel and none of these is computed by features.py.

    Returns:
        At most four causes, or one of kind `unknown` when no rule finds anything; empty when nothing is wrong.
    """
    if decision.verdict not in (FAULT, DAMAGE, DRIFT):
        return ()
    columns = frozenset(source_columns)
    by_day = {signal.day: signal for signal in signals}
    found = {
        FAULT: _trouble(decision, by_day, [s.day for s in signals if s.faults]),
        DAMAGE: _damage(decision, by_day, gaps, {c.day for c in changes if c.kind == DEPLOYMENT}),
        DRIFT: _trouble(decision, by_day, [s.day for s in signals if s.alarms]),
    }
    cases: list[_Case] = []
    for verdict, rules in _RULES.items():
        trouble = found[verdict]
        if trouble is None or (verdict == DRIFT and decision.verdict != DRIFT):
            continue  # under a fault or damage what moved is evidence, not a question of its own
        facts = _Facts(performances, slices, changes, columns, main=verdict == decision.verdict)
        cases += [case for rule in rules for case in rule(trouble, facts)]
    named = [case for case in cases if case.weight >= LEAST]
    if not any(case.main for case in named):
        main = found[decision.verdict]
        named.insert(0, _unknown(decision, main, slices, changes))
    named.sort(key=lambda case: (not case.main, -case.weight))
    return tuple(_cause(case, rank, named) for rank, case in enumerate(named[:SHOWN], start=1))


# -- a data fault ---------------------------------------------------------------------------------------------


def _fault_feed(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    findings = [f for f in trouble.findings if f.check not in ("dead_letters", "scores")]
    if not findings:
        return
    channels = _unique(f.channel for f in findings if f.channel)
    checks = _unique(f.check for f in findings)
    case = facts.case(FEED, f"the feed: {_what(checks, channels)}", trouble, channels)
    case.add(2, findings[0].detail)
    delivered = [check for check in checks if check in _DELIVERY]
    if delivered:
        case.add(2, f"only a delivery can do that ({', '.join(delivered)}), no code of ours")
    raw = [channel for channel in channels if set(_parts(channel)) <= facts.source_columns]
    if channels and len(raw) == len(channels):
        case.add(1, f"{_list(channels)} {_are(channels)} delivered unchanged, not computed")
    schema = facts.at(trouble.since, SCHEMA)
    if schema:
        case.add(3, f"the source's columns changed on that day: {schema[0].told}", *schema)
    ours = facts.at(trouble.since, DEPLOYMENT, FEATURE_VERSION)
    if ours:
        case.add(-2, f"on that very day something of ours changed: {ours[0].words}")
    else:
        case.add(2, f"neither the model nor its feature code changed on {trouble.since}")
    released = facts.at(trouble.since, HOLD_RELEASE, until=trouble.last)
    if released:
        case.add(-1, f"somebody took the data for right: {released[0].told}", *released)
    yield case


def _fault_feature_code(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    findings = [f for f in trouble.findings if f.channel]
    channels = _unique(f.channel for f in findings)
    computed = [
        name for name in channels if facts.source_columns and not set(_parts(name)) & facts.source_columns
    ]
    changed = facts.at(trouble.since, FEATURE_VERSION)
    if not changed and not computed:
        return
    case = facts.case(FEATURE_CODE, f"the feature code: {_list(channels)}", trouble, channels)
    if changed:
        case.add(4, changed[0].told, *changed)
    if computed:
        case.add(2, f"{_list(computed)} {_are(computed)} computed by features.py")
    if not changed:
        case.add(-1, "the feature code is the same as the day before")
    if any(f.check in _DELIVERY for f in trouble.findings):
        case.add(-2, "a part of it only a delivery can do")
    yield case


def _fault_platform(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    findings = [f for f in trouble.findings if f.check in ("dead_letters", "scores")]
    if not findings:
        return
    moved = facts.at(trouble.since, DEPLOYMENT)
    kind, text = (
        (MODEL, "the model, which cannot score these rows")
        if moved
        else (PLATFORM, "the scoring of these days")
    )
    case = facts.case(kind, text, trouble)
    case.add(3, findings[0].detail)
    if moved:
        case.add(2, moved[0].told, *moved)
    again = facts.at(trouble.since, RUN_REPLACED, until=trouble.last)
    if again:
        case.add(1, again[0].told, *again)
    yield case


# -- performance damage ----------------------------------------------------------------------------------------


def _damage_model(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    moved = facts.at(trouble.since, DEPLOYMENT, until=trouble.first_alarm, blur=BLUR)
    if not moved:
        return
    change = moved[-1]
    case = facts.case(MODEL, f"the model: {change.words}", trouble)
    case.add(3, change.told, *moved)
    if trouble.went_on:
        case.add(-3, f"the model before {trouble.since} ranked worse than it promised too")
    elif trouble.since <= change.day <= trouble.first_alarm:
        case.add(2, f"performance fell exactly with it, on {trouble.since}")
    _inputs_stayed(case, trouble, 2)
    if trouble.inputs:
        case.add(-1, f"inputs moved as well ({_list(trouble.inputs)}), which no model does")
    waived = facts.at(change.day, WAIVER, blur=timedelta(days=30))
    if waived:
        case.add(1, f"a finding of the gate had been let pass: {waived[0].told}", *waived)
    worst = _concentrated(facts.slices)
    if worst:
        case.slices = _unique(item.name for item in worst)
        case.add(
            -1, f"only {_list([item.name for item in worst])} is worse, which a bad model seldom does alone"
        )
    yield case


def _damage_feature_code(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    changed = facts.at(trouble.since, FEATURE_VERSION, until=trouble.first_alarm, blur=BLUR)
    if not changed:
        return
    case = facts.case(FEATURE_CODE, f"the feature code: {changed[-1].words}", trouble, trouble.inputs)
    case.add(3, changed[-1].told, *changed)
    if trouble.inputs:
        case.add(2, f"{_list(trouble.inputs)} moved on these days")
    yield case


def _damage_feed(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    faulty = [signal for signal in trouble.signals if signal.faults]
    if not faulty or 2 * len(faulty) < len(trouble.days):
        return
    channels = _unique(f.channel for signal in faulty for f in signal.faults if f.channel)
    case = facts.case(FEED, "the data, which is at fault on the same days", trouble, channels)
    case.add(4, f"{len(faulty)} of {len(trouble.days)} days with damage break the contract with training")
    case.add(1, faulty[0].faults[0].detail)
    yield case


def _damage_slice(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    worst = _concentrated(facts.slices)
    if not worst:
        return
    first = worst[0]
    moved = [name for name in trouble.inputs if {item.column for item in worst} & set(_parts(name))]
    at_fault = {f.channel for f in trouble.findings} & set(moved)
    kind = FEED if at_fault else WORLD if moved else LABELS
    does = {
        FEED: "whose rows break the contract",
        WORLD: "whose rows changed",
        LABELS: "whose labels changed, or mean something else",
    }[kind]
    case = facts.case(kind, f"{_list([item.name for item in worst])}, {does}", trouble, moved)
    case.slices = _unique(item.name for item in worst)
    case.add(3, _shown(first))
    case.add(1, f"the rows of other slices are as good as their scores promise (z {first.rest_z:+.1f})")
    if moved:
        case.add(2, f"{_list(moved)} moved on these days")
    else:
        case.add(1, f"neither {first.column} nor another input moved")
    if facts.at(trouble.since, DEPLOYMENT, until=trouble.first_alarm, blur=BLUR):
        case.add(-1, "another model scores since then")
    yield case


def _damage_labels(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    case = facts.case(LABELS, "the labels or what they mean: all rows are worse alike", trouble)
    slices = facts.slices
    concentrated = _concentrated(slices)
    if (
        slices
        and len(slices.judged) > 1
        and not concentrated
        and slices.auc_z is not None
        and slices.auc_z < HELD
    ):
        case.add(
            2,
            f"no slice stands out: {len(slices.judged)} slices of {', '.join(slices.columns)} were compared",
        )
    elif concentrated:
        case.add(-2, f"not all rows are worse: {concentrated[0].name} is, and the others are not")
    _inputs_stayed(case, trouble, 2)
    moved = facts.at(trouble.since, *_OURS, until=trouble.first_alarm, blur=BLUR)
    if trouble.went_on:
        case.add(1, f"the model before {trouble.since} ranked worse than it promised too")
    elif moved:
        case.add(-2, f"something of ours changed then: {moved[-1].told}")
    else:
        case.add(1, "neither another model nor other feature code began to score then")
    measured = [p for p in facts.performances if p.day in trouble.days and p.state == "measured"]
    inverted = [p for p in measured if p.auc is not None and p.auc + 3 * (p.auc_se or 0.0) < 0.5]
    if inverted:
        case.add(2, f"on {len(inverted)} days the ranking is the wrong way round (AUC {inverted[0].auc:.3f})")
    conflicting = sum(p.conflicting_labels for p in measured)
    rows = sum(p.scored_rows for p in measured)
    if rows and conflicting > _CONFLICTS * rows:
        case.add(2, f"{conflicting:,} of {rows:,} predictions have labels that contradict each other")
    yield case


def _damage_world(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    if not trouble.inputs or any(signal.faults for signal in trouble.signals):
        return
    case = facts.case(
        WORLD,
        f"the world: {_list(trouble.inputs)} moved, and the model does not know it",
        trouble,
        trouble.inputs,
    )
    case.add(2, f"{_list(trouble.inputs)} moved while the model ranked worse")
    if not facts.at(trouble.since, *_OURS, until=trouble.first_alarm, blur=BLUR):
        case.add(1, "neither another model nor other feature code began to score then")
    yield case


# -- drift without damage --------------------------------------------------------------------------------------


def _drift_model(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    moved = facts.at(trouble.since, DEPLOYMENT, EXPOSURE)
    if not moved:
        return
    case = facts.case(MODEL, f"the model: {moved[-1].words}", trouble, [c.channel for c in trouble.alarms])
    case.add(3, f"channels moved exactly on the first day that it acts on: {moved[-1].told}", *moved)
    _inputs_stayed(case, trouble, 2)
    if trouble.inputs:
        case.add(-1, f"inputs moved as well ({_list(trouble.inputs)}), which no model does")
    yield case


def _drift_feature_code(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    changed = facts.at(trouble.since, FEATURE_VERSION)
    if not changed or not trouble.inputs:
        return
    case = facts.case(FEATURE_CODE, f"the feature code: {changed[-1].words}", trouble, trouble.inputs)
    case.add(4, f"{_list(trouble.inputs)} moved exactly when {changed[-1].words}", *changed)
    yield case


def _drift_feed(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    if not trouble.inputs:
        return
    case = facts.case(
        FEED, f"the feed, which delivers {_list(trouble.inputs)} otherwise", trouble, trouble.inputs
    )
    schema = facts.at(trouble.since, SCHEMA)
    if schema:
        case.add(4, schema[0].told, *schema)
    warned = [f for f in trouble.warnings if f.channel in trouble.inputs]
    if warned:
        case.add(3, warned[0].detail)
    if trouble.alone:
        case.add(3, f"{trouble.alone[0].detail}: an event would have moved those too")
    if len(trouble.inputs) == 1 and set(_parts(trouble.inputs[0])) <= facts.source_columns:
        case.add(1, f"{trouble.inputs[0]} alone moved, and is delivered as it is")
    yield case


def _drift_world(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    channels = _unique(c.channel for c in trouble.alarms)
    case = facts.case(
        WORLD, f"the world: {_list(channels)} moved (a season, a holiday, an event)", trouble, channels
    )
    if not facts.at(trouble.since, *_OURS, SCHEMA, RUN_REPLACED):
        case.add(2, f"nothing of ours changed on {trouble.since}")
    if trouble.alone:
        names = _unique(channel.channel for channel in trouble.alone)
        case.add(
            -1,
            f"what {_list(names)} usually {'moves' if len(names) == 1 else 'move'} with did not move in step",
        )
    elif len(channels) > 1:
        case.add(1, f"{len(channels)} channels moved together")
    labelled = [p for p in facts.performances if p.day in trouble.days and p.state == "measured"]
    if labelled:
        case.add(1, f"labels of {len(labelled)} of these days agree with the scores")
    yield case


def _drift_platform(trouble: _Trouble, facts: _Facts) -> Iterable[_Case]:
    again = facts.at(trouble.since, RUN_REPLACED)
    if again:
        case = facts.case(PLATFORM, f"the scoring: {again[-1].words}", trouble)
        case.add(2, again[-1].told, *again)
        yield case


_Rule = Callable[[_Trouble, _Facts], Iterable[_Case]]
_RULES: dict[str, tuple[_Rule, ...]] = {
    FAULT: (_fault_feed, _fault_feature_code, _fault_platform),
    DAMAGE: (
        _damage_feed,
        _damage_model,
        _damage_feature_code,
        _damage_slice,
        _damage_labels,
        _damage_world,
    ),
    DRIFT: (_drift_model, _drift_feature_code, _drift_feed, _drift_world, _drift_platform),
}


def damage_since(
    gaps: Sequence[PerformanceSignal], last: date, restarts: Collection[date] = ()
) -> tuple[date, ...]:
    """The measured days of the newest damage up to `last`, from its estimated start on; empty without an alarm.

    The start is the day after the CUSUM was last at zero before the first alarm: the usual estimate of when a
    lasting change happened. A day that alarms by itself is a jump: of the days before it only those are part that were half
    as far off, since chance alone leaves the CUSUM of whole days above zero. Alarms of one model at most seven days apart are one damage.

    Args:
        gaps: The performance chart.
        last: Later days are left out.
        restarts: First days of another model; the chart of each model begins anew, and so does its damage.

    Source: Page (1954), "Continuous inspection schemes".
    """
    known = sorted((gap for gap in gaps if gap.day <= last), key=lambda gap: gap.day)
    alarms = [number for number, gap in enumerate(known) if gap.alarm]
    if not alarms:
        return ()
    first = alarms[-1]
    for number in reversed(alarms[:-1]):
        earlier, later = known[number].day, known[first].day
        if (later - earlier).days > MERGE_DAYS or any(earlier < day <= later for day in restarts):
            break
        first = number
    jump = known[first].alarm == "once"
    start = first
    while start > 0 and known[start - 1].cusum > 0 and known[start].day not in restarts:
        if jump and known[start - 1].z > -Z_ALARM / 2:
            break
        start -= 1
    return tuple(gap.day for gap in known[start : alarms[-1] + 1])


def _damage(
    decision: Decision,
    by_day: dict[date, DaySignals],
    gaps: Sequence[PerformanceSignal],
    restarts: Collection[date],
) -> _Trouble | None:
    days = damage_since(gaps, decision.last_day, restarts)
    if not days or days[-1] < decision.first_day:
        return None
    first_alarm = min(gap.day for gap in gaps if gap.alarm and days[0] <= gap.day <= days[-1])
    signals = tuple(by_day[day] for day in days if day in by_day)
    went_on = days[0] in restarts and _was_worse(gaps, days)
    return _Trouble(days[0], first_alarm, days[-1], days, signals, went_on)


def _was_worse(gaps: Sequence[PerformanceSignal], days: Sequence[date]) -> bool:
    """Whether alarms of the week before these days were more than half as far off as these days are."""
    before = [gap.gap for gap in gaps if gap.alarm and 0 < (days[0] - gap.day).days <= MERGE_DAYS]
    now = [gap.gap for gap in gaps if gap.day in days]
    return bool(before) and 2 * sum(before) / len(before) < sum(now) / len(now)


def _trouble(decision: Decision, by_day: dict[date, DaySignals], days: Sequence[date]) -> _Trouble | None:
    """The newest incident among these days that reaches into the window."""
    run: list[date] = []
    for day in sorted(day for day in days if day <= decision.last_day):
        if run and (day - run[-1]).days > MERGE_DAYS:
            run = []
        run.append(day)
    if not run or run[-1] < decision.first_day:
        return None
    return _Trouble(run[0], run[0], run[-1], tuple(run), tuple(by_day[day] for day in run))


def _concentrated(slices: SlicePerformance | None) -> tuple[SliceGap, ...]:
    """Slices that are worse while the other rows are as promised, of the column where that is most striking; at most three."""
    apart = slices.apart if slices else ()
    return tuple(item for item in apart if item.column == apart[0].column)[:3]


def _inputs_stayed(case: _Case, trouble: _Trouble, points: int) -> None:
    judged = [signal for signal in trouble.signals if signal.judged]
    if trouble.inputs or not judged:
        return
    case.add(points, f"no input moved on the {len(judged)} days that could be judged")


def _unknown(
    decision: Decision, trouble: _Trouble | None, slices: SlicePerformance | None, changes: Sequence[Change]
) -> _Case:
    since = trouble.since if trouble else decision.first_day
    case = _Case(UNKNOWN, "nothing that is recorded explains it", since)
    case.contra = [
        f"{len(changes)} recorded changes were looked at; none fits the start, {since}",
        slices.statement if slices else "no slices were compared",
    ]
    return case


def _cause(case: _Case, rank: int, cases: Sequence[_Case]) -> Cause:
    tied = rank == 2 and case.weight == cases[0].weight and case.main
    how = "Most likely" if rank == 1 else "As likely" if tied else "Less likely"
    if not case.main:
        how = "Besides, perhaps"
    since = "" if str(case.since) in case.text else f", since {case.since}"
    text = f"{how} {case.text}{since}."
    if case.kind == UNKNOWN:
        text = f"The cause is not known: {case.text} (since {case.since})."
    return Cause(
        rank=rank,
        weight=max(case.weight, 0),
        kind=case.kind,
        what=text,
        since=case.since,
        channels=case.channels,
        slices=case.slices,
        changes=tuple(case.changes),
        speaks_for=tuple(case.pro),
        speaks_against=tuple(case.contra),
        look=_LOOK[case.kind],
    )


_CHECKS = {
    "nulls": "the share of nulls",
    "unseen": "the share of unknown categories",
    "pairs": "what comes with what",
    "range": "the range",
    "frozen": "the variety of values",
    "stale": "the age of values",
    "repeat": "the batch",
    "volume": "the number of rows",
    "rows": "the number of rows",
}
"""Check of the contract -> its words in a sentence."""


def _what(checks: Sequence[str], channels: Sequence[str]) -> str:
    about = f" of {_list(channels)}" if channels else ""
    return (
        f"{_list([_CHECKS.get(check, check) for check in checks])}{about} {_are(checks)} not as in training"
    )


def _shown(item: SliceGap) -> str:
    if item.found == RANKS and item.auc is not None and item.promised_auc is not None:
        return (
            f"{item.name} ({item.rows:,} labelled rows) has AUC {item.auc:.3f}, its scores promise "
            f"{item.promised_auc:.3f} (z {item.auc_z:+.1f})"
        )
    return (
        f"{item.name} ({item.rows:,} labelled rows) has {item.label_rate:.1%} positive labels, its scores promise "
        f"{item.mean_score:.1%} (z {item.rate_z:+.1f})"
    )


def _parts(channel: str) -> list[str]:
    """The columns of a channel: two of a pair."""
    return channel.split(" x ")


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _list(names: Sequence[str]) -> str:
    shown = [name.replace("_", " ") if name in ("dead_letters",) else name for name in names[:4]]
    if len(names) > 4:
        return f"{', '.join(shown)} and {len(names) - 4} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
