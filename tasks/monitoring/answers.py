"""What people have answered about earlier cases, as the monitor's policy takes it in.

An answer teaches in three ways. What was answered is not asked again while the incident lasts. A mute takes a signal out of
the verdict up to a day. A confirmed shift (new normal) becomes part of the reference, and days of an incident never do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from tasks.monitoring.signals import DaySignals, PerformanceSignal

ACCEPT = "accept"
ROLL_BACK = "roll_back"
RETRAIN = "retrain"
MUTE = "mute"
NEW_NORMAL = "new_normal"
INCIDENT = "incident"
ANSWERS = (ACCEPT, ROLL_BACK, RETRAIN, MUTE, NEW_NORMAL, INCIDENT)

PERFORMANCE = "performance"
"""The signal of the third tier."""
NEVER_NORMAL = frozenset({"repeat", "rows", "scores", "dead_letters", "stale"})
"""Checks of the contract that no day may teach to be normal."""


@dataclass(frozen=True)
class Answered:
    """A case that a person has answered, as far as the policy needs it."""

    kind: str
    """The verdict that the case is about."""
    days: tuple[date, ...]
    """Days on which it was seen, in order; never empty."""
    signals: frozenset[str]
    """As `signal_names` gives them."""
    answer: str
    words: str
    """Who answered what, for the reasons of a day."""
    until: date | None = None
    """Last day of a mute, included."""


@dataclass(frozen=True)
class Confirmed:
    """A shift that a person has confirmed as the new normal."""

    days: tuple[date, ...]
    signals: frozenset[str]

    @property
    def channels(self) -> frozenset[str]:
        """The channels of its signals; the empty name stands for the number of rows."""
        return frozenset(name.partition(":")[2] for name in self.signals)


def signal_names(signals: DaySignals) -> tuple[str, ...]:
    """`check:channel` of a day's faults, then `drift:channel` of its channels in alarm."""
    faults = [f"{finding.check}:{finding.channel}" for finding in signals.faults]
    return (*faults, *(f"drift:{channel.channel}" for channel in signals.alarms))


def muted(answered: Iterable[Answered], day: date) -> dict[str, str]:
    """The signals that are muted on a day, each with who muted it."""
    return {
        name: item.words
        for item in answered
        if item.answer == MUTE and item.until is not None and item.days[0] <= day <= item.until
        for name in item.signals
    }


def heard(signals: DaySignals, silent: Mapping[str, str]) -> DaySignals:
    """The signals of a day without those that are muted, as `muted` gives them."""
    if not silent:
        return signals
    return replace(
        signals,
        findings=tuple(f for f in signals.findings if f"{f.check}:{f.channel}" not in silent),
        drift=tuple(replace(c, alarm=None) if f"drift:{c.channel}" in silent else c for c in signals.drift),
    )


def muted_words(
    silent: Mapping[str, str], signals: DaySignals, gap: PerformanceSignal | None
) -> tuple[str, ...]:
    """What a mute kept from the verdict of a day."""
    present = [name for name in signal_names(signals) if name in silent]
    if PERFORMANCE in silent and gap is not None and gap.alarm:
        present.append(PERFORMANCE)
    by_words: dict[str, list[str]] = {}
    for name in present:
        by_words.setdefault(silent[name], []).append(name)
    return tuple(f"{', '.join(names)}: {words}." for words, names in by_words.items())


def excluded_days(answered: Sequence[Answered], *, faults: str) -> frozenset[date]:
    """Days of marked incidents: they never become part of a reference.

    A fault's days are left out by themselves, and serve again when they were delivered whole.

    Args:
        faults: The kind of a case about a data fault.
    """
    return frozenset(
        day for item in answered if item.answer == INCIDENT and item.kind != faults for day in item.days
    )


def confirmed_shifts(answered: Sequence[Answered]) -> tuple[Confirmed, ...]:
    """What is normal now because a person said so."""
    return tuple(Confirmed(item.days, item.signals) for item in answered if item.answer == NEW_NORMAL)
