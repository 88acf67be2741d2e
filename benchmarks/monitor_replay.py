"""The monitor as a daily schedule sees it, for `monitor_decisions.py`: one run a day over the last seven days.

The run of day D has the profile of D, and labels up to the day before (a label delay of one day). It decides on the
window of the last seven days, with 60 days of history, as `<pipeline>.monitor` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
from monitor_faults import ALERT, ASK, HOLD, Fault
from monitor_world import HISTORY, Scored, World, days_between

from tasks.evaluation.canary import MIN_DAY_ROWS, canary_bounds, paired_day
from tasks.evaluation.records import CanaryDay
from tasks.model import Profile
from tasks.monitoring import (
    DayPerformance,
    DaySignals,
    Decision,
    PerformanceSignal,
    decide,
    judge_gaps,
    measure_days,
)
from tasks.monitoring.decision import DAMAGE, DRIFT, FAULT
from tasks.monitoring.mitigation import RollbackCase, judge_rollback

WINDOW = timedelta(days=6)
LABELLED_DAYS = 28
"""Newest labelled days of a comparison, as `tasks.wiring.mitigation` takes them."""
ACTING = {DRIFT: ALERT, FAULT: HOLD, DAMAGE: ASK}


@dataclass(frozen=True)
class Seen:
    """One thing that a run says about one day."""

    day: date
    tier: str
    """The action that it calls for."""
    channel: str
    """Empty: the day as a whole, or its labels."""
    check: str
    text: str


@dataclass(frozen=True)
class Run:
    """What one day's run says that no earlier run has said."""

    day: date
    decision: Decision
    news: tuple[Seen, ...]

    @property
    def action(self) -> str:
        """The strongest action that its news call for; empty when there are none."""
        tiers = {seen.tier for seen in self.news}
        return next((action for action in (ASK, HOLD, ALERT) if action in tiers), "")


def replay(
    world: World,
    profiles: Mapping[date, Profile],
    performances: Mapping[date, DayPerformance],
    first: date,
    last: date,
) -> list[Run]:
    """The runs of these days, on days as they came."""
    spec = world.spec
    signals = measure_days(
        spec,
        world.monitor,
        profiles={day: found for day, found in profiles.items() if day >= first - HISTORY},
        first_day=first - WINDOW,
        last_day=last,
    )
    by_day = {found.day: found for found in signals}
    runs, said = [], set[tuple[date, str, str, str]]()
    for day in days_between(first, last):
        window = [by_day[d] for d in days_between(day - WINDOW, day) if d in by_day]
        labelled = [
            performances[d]
            for d in days_between(day - WINDOW - HISTORY, day)
            if d < day and d in performances
        ]
        gaps = judge_gaps(labelled, world.usual)
        recent = [found for found in labelled if found.day >= day - WINDOW]
        decision = decide(spec, window, [*recent, _immature(by_day[day])], gaps)
        verdicts = {d.day: d.verdict for d in decision.days}
        news = []
        for found in _seen(window, gaps, verdicts):
            key = (found.day, found.tier, found.channel, found.check)
            # What the first run sees of the days before it was said before it.
            if key not in said and (runs or found.day >= day - timedelta(days=1)):
                news.append(found)
            said.add(key)
        runs.append(Run(day, decision, tuple(news)))
    return runs


def _immature(signals: DaySignals) -> DayPerformance:
    return DayPerformance(signals.day, "immature", "Labels are due tomorrow.", signals.rows, 0)


def _seen(
    window: Sequence[DaySignals], gaps: Sequence[PerformanceSignal], verdicts: Mapping[date, str]
) -> list[Seen]:
    """The evidence of days with a verdict that acts."""
    found = []
    for signals in window:
        if verdicts[signals.day] in ACTING:
            found += [Seen(signals.day, HOLD, f.channel, f.check, f.detail) for f in signals.faults]
            found += [
                Seen(signals.day, ALERT, c.channel, "drift", f"{c.channel} z {c.z:.1f} ({c.alarm})")
                for c in signals.alarms
            ]
    for gap in gaps:
        if gap.alarm and gap.day in verdicts:
            text = f"AUC {gap.gap:+.3f} from what the scores promise (z {gap.z:.1f}, CUSUM {gap.cusum:.1f})"
            found.append(Seen(gap.day, ASK, "", "performance", text))
    return found


@dataclass(frozen=True)
class Caught:
    """How one case ended."""

    fault: str
    start: date
    variant: str
    after_days: int | None
    """Runs until it was said, the start day's counted; None: never."""
    action: str
    """Of that run."""
    actions: frozenset[str]
    """Of all runs of the case that say more than the clean replay."""
    first: str
    """What was said first."""
    by: frozenset[str]
    """Channels of that run's words."""


def case(
    world: World, clean: Mapping[date, Run], fault: Fault, start: date, variant: str, days: Sequence[Scored]
) -> Caught:
    """Replay one case; what the clean replay of the same day says does not count, nor what the fault does not touch."""
    last = start + timedelta(days=fault.days - 1)
    first = max(start - HISTORY - WINDOW, world.year.monitored[0])
    monitored = days_between(first, start - timedelta(days=1))
    profiles = {day: world.clean_profile(day) for day in monitored}
    performances = {day: world.scored(day).performance(world.spec) for day in monitored}
    profiles |= {scored.day: world.profile(scored) for scored in days}
    performances |= {scored.day: scored.performance(world.spec) for scored in days}
    touched = fault.channels(variant)
    after, action, text, by, actions = None, "", "", frozenset[str](), set()
    for run in replay(world, profiles, performances, start, last):
        usual = {(seen.day, seen.channel, seen.check) for seen in clean[run.day].news}
        more = [
            seen
            for seen in run.news
            if seen.day >= start
            and (seen.day, seen.channel, seen.check) not in usual
            and (touched is None or not seen.channel or seen.channel in touched)
        ]
        if not more:
            continue
        found = Run(run.day, run.decision, tuple(more)).action
        actions.add(found)
        if after is None:
            after, action, text = (run.day - start).days + 1, found, more[0].text
            by = frozenset(seen.channel for seen in more)
    return Caught(fault.name, start, variant, after, action, frozenset(actions), text, by)


def clean_runs(world: World) -> list[Run]:
    """Every monitored day as it was."""
    days = days_between(*world.year.monitored)
    profiles = {day: world.clean_profile(day) for day in days}
    performances = {day: world.scored(day).performance(world.spec) for day in days}
    return replay(world, profiles, performances, *world.year.monitored)


def compared(world: World, other: World, days: Sequence[date]) -> dict[date, CanaryDay]:
    """The model beside another one, by day, on labelled rows."""
    found = {}
    for day in days:
        mine, theirs = world.scored(day), other.scored(day)
        known = np.isfinite(mine.labels)
        losses = [(one.scores[known] - mine.labels[known]) ** 2 for one in (theirs, mine)]
        pair = paired_day(day, *losses)
        found[day] = CanaryDay(
            day=day,
            rows=pair.rows,
            challenger_brier=pair.challenger_brier,
            champion_brier=pair.champion_brier,
            row_spread=pair.row_spread,
            positives=int(mine.labels[known].sum()),
        )
    return found


def rollback_days(
    world: World, days: Mapping[date, CanaryDay], runs: Sequence[Run], *, asked_only: bool
) -> list[date]:
    """Days on which the monitor would go back to the other model by itself."""
    from tasks.wiring.comparing import challengers_skill

    gone = []
    for run in runs:
        if asked_only and run.decision.action != ASK:
            continue
        newest = [
            days[d]
            for d in days_between(run.day - timedelta(days=LABELLED_DAYS), run.day - timedelta(days=1))
            if d in days
        ]
        spec = world.spec.model_copy(
            update={
                "canary": world.spec.canary.model_copy(
                    update={"days": max(len(newest), world.spec.canary.days)}
                )
            }
        )
        bounds = canary_bounds(spec, newest)
        low, high = (bounds[-1].low, bounds[-1].high) if bounds else (None, None)
        counted = sum(day.rows >= MIN_DAY_ROWS for day in newest)
        held = "a data fault" if run.decision.action == HOLD else ""
        item = RollbackCase(
            2,
            1,
            counted,
            None if high is None else -high,
            None if low is None else -low,
            challengers_skill(newest),
        )
        now = datetime.combine(run.day, time(6), UTC)
        if judge_rollback(spec, item, (), now, held=held).automatic:
            gone.append(run.day)
    return gone
