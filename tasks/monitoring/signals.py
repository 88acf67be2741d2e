"""What the monitor says about a day: records only, JSON-ready, in the order they are made.

`DaySignals` comes from profiles, `DayPerformance` from labels, `Decision` from the history of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from tasks.core.records import JsonRecord

FAULT = "fault"
"""The data breaks the training contract: scoring it should wait."""
WARN = "warn"
"""Unusual; a person should look when it repeats."""


@dataclass(frozen=True)
class ContractFinding(JsonRecord):
    """One way in which a day's rows differ from what the model was trained on."""

    check: str
    """`nulls`, `unseen`, `pairs`, `range`, `frozen`, `stale`, `repeat`, `volume`, `rows`, `scores` or `dead_letters`."""
    severity: str
    """`fault` or `warn`."""
    channel: str
    """The feature or pair; empty when it is about the whole day."""
    detail: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class ChannelDrift(JsonRecord):
    """How far one channel moved, in its own normal spread."""

    channel: str
    kind: str
    """`numeric`, `categorical`, `pair`, `score` or `attribution`."""
    distance: float
    """Jensen-Shannon distance to the last four same weekdays, 0..1."""
    expected: float
    """Median of that distance on reference days of the same class."""
    z: float
    """(log distance - log expected) / scale; large means far. Of a numeric feature whose mean is not what the others' say, that z if it is larger."""
    alarm: str | None
    """`once`, `persistent` or None."""
    detail: str = ""
    """What moved inside the channel, in words, where its name does not say it."""


@dataclass(frozen=True)
class DaySignals(JsonRecord):
    """Tiers 1 and 2 for one day."""

    day: date
    rows: int
    expected_rows: float | None
    """Median of the last four same weekdays."""
    findings: tuple[ContractFinding, ...]
    drift: tuple[ChannelDrift, ...]
    """Empty when drift could not be judged; `statements` says why."""
    statements: tuple[str, ...]
    """What could not be judged, and why."""
    compared_with: tuple[date, ...]
    """The days of the pooled reference."""
    score_mean: float | None
    score_band: tuple[float, ...] | None
    """(low, high): where the mean score of such a day is expected."""
    expected_auc: float | None
    """From the score histogram alone, if scores are calibrated."""
    expected_brier: float | None
    grid: str
    """Digest of the profile grid, so of the model bundle's view of the data."""

    @property
    def faults(self) -> tuple[ContractFinding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == FAULT)

    @property
    def warnings(self) -> tuple[ContractFinding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == WARN)

    @property
    def alarms(self) -> tuple[ChannelDrift, ...]:
        """Channels in alarm, farthest first."""
        return tuple(sorted((c for c in self.drift if c.alarm), key=lambda c: -c.z))

    @property
    def judged(self) -> bool:
        """False when drift could not be measured."""
        return bool(self.drift)


@dataclass(frozen=True)
class DayPerformance(JsonRecord):
    """Tier 3 for one day: what labels say, beside what calibrated scores imply.

    `state` is `measured`, `immature` (labels are not due yet), `missing` (due, but fewer than half came),
    `too_few` or `one_class`; only `measured` days have an AUC.
    """

    day: date
    state: str
    statement: str
    scored_rows: int
    labelled_rows: int
    positives: int = 0
    duplicate_labels: int = 0
    conflicting_labels: int = 0
    auc: float | None = None
    auc_se: float | None = None
    """Standard error (DeLong)."""
    expected_auc: float | None = None
    brier: float | None = None
    brier_se: float | None = None
    expected_brier: float | None = None
    as_of: date | None = None
    """Date of the look at labels that this is; None in records of earlier releases."""
    first_asked: date | None = None
    """Date of the first look since the labels were due."""
    labelled_on: date | None = None
    """Date of the first look that found enough of them."""
    taken_in_later: bool = False
    """Whether that was the look of a later window."""

    @property
    def coverage(self) -> float:
        """Share of scored rows that have a label, 0..1."""
        return self.labelled_rows / self.scored_rows if self.scored_rows else 0.0

    @property
    def gap(self) -> float | None:
        """Realised minus expected AUC; negative means worse than the scores promise."""
        return None if self.auc is None or self.expected_auc is None else self.auc - self.expected_auc

    @property
    def brier_gap(self) -> float | None:
        """Realised minus expected Brier score; positive means worse than the scores promise."""
        return None if self.brier is None or self.expected_brier is None else self.brier - self.expected_brier


@dataclass(frozen=True)
class PerformanceSignal(JsonRecord):
    """One measured day of the performance chart."""

    day: date
    gap: float
    z: float
    """Standardised gap; negative means worse."""
    cusum: float
    alarm: str | None
    """`once` (z beyond 4), `cusum` or None."""
    band: tuple[float, ...]
    """(low, high) of the AUC expected on this day."""
    usual: float = 0.0
    """The gap that is usual, by the days of validation."""


@dataclass(frozen=True)
class OperationFinding(JsonRecord):
    """Something about the operation around the model; it never changes the verdict on data or model."""

    kind: str
    """`labels late`, `freshness`, `scoring cost`, `clock`, `columns`, `late labels taken in` or `days without predictions`."""
    severity: str
    """`nothing`, `note` or `alert`: the action that it asks for at least."""
    statement: str
    since: date | None = None
    value: float | None = None
    limit: float | None = None
    next_steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class DayDecision(JsonRecord):
    """The verdict on one day, with what was known about it."""

    day: date
    verdict: str
    action: str
    reasons: tuple[str, ...]
    incident: date | None = None
    """First day of the incident that this day belongs to."""


@dataclass(frozen=True)
class Decision(JsonRecord):
    """The monitor's answer for a window.

    `verdict`: `healthy`, `noise`, `drift, no damage seen`, `data fault`, `performance damage` or `cannot judge`.
    `action`: `nothing`, `note`, `alert`, `hold_scoring` or `ask_person`.
    """

    pipeline: str
    first_day: date
    last_day: date
    verdict: str
    action: str
    headline: str
    """The verdict in one sentence."""
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]
    days: tuple[DayDecision, ...]
    evidence: dict[str, float]
    """Counts and extremes behind the reasons."""
    operations: tuple[OperationFinding, ...] = ()
    data_action: str = ""
    """The action that data and performance ask for by themselves; empty in records of earlier releases."""
    damaged_on: date | None = None
    """The newest labelled day, when it shows damage about which nobody has answered; it may lie before the window."""
    corrected: tuple[DayDecision, ...] = ()
    """Days before the window whose verdict changed when their labels came late."""
