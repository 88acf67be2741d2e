"""What the delivery API answers: frozen, JSON-ready, and published in docs/contracts.

They are not the metadata store's own records: those may change with its tables, these only by the contract's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from tasks.core.records import JsonRecord


@dataclass(frozen=True)
class DeploymentEntry(JsonRecord):
    """One line of a pipeline's deployment log. Lines are only ever added."""

    pipeline: str
    """Name of the pipeline."""
    event_id: int
    """1, 2, 3, ... within the pipeline, in commit order."""
    kind: str
    """What happened."""
    moves: bool
    """Whether this changed what is live."""
    version: int
    """The version that it is about."""
    previous_version: int | None
    """What was live just before; null: nothing was."""
    bundle_digest: str
    """SHA-256 over the version's bundle, as registered."""
    feature_version: str
    """Version of the features that the version reads."""
    actor: str
    """Who: `airflow:<user>`, or as a command line said."""
    reason: str
    """Why, in that person's or program's words."""
    at_utc: datetime
    """When; never before the line in front of it."""
    share: float | None = None
    """Of `expose`: the share of entities that get this version's predictions; null otherwise."""


@dataclass(frozen=True)
class DeploymentPage(JsonRecord):
    """Lines of a deployment log, newest first."""

    events: tuple[DeploymentEntry, ...]
    """At most `limit` of them."""
    before: int | None
    """Send it as `before` for the lines that follow; null: there are none."""


@dataclass(frozen=True)
class LiveVersion(JsonRecord):
    """What is live, or was at a moment."""

    pipeline: str
    """Name of the pipeline."""
    at_utc: datetime | None
    """The moment that was asked about; null: now."""
    live: DeploymentEntry | None
    """The line that made it live; null: nothing is, or was."""
    exposed: DeploymentEntry | None
    """The line that exposes a challenger to a share of the entities now; null: none does, or a moment was asked about."""


@dataclass(frozen=True)
class FindingEntry(JsonRecord):
    """One check of a gate."""

    name: str
    """Name of the check."""
    status: str
    """What was found; a waiver does not change it."""
    detail: str
    """The finding in words."""
    value: float | None
    """What was measured, where it is one number."""
    limit: float | None
    """What the value was held against, where it is one number."""
    waived: str | None
    """Who lets it pass, until when and why; null: nobody does."""


@dataclass(frozen=True)
class VerdictEntry(JsonRecord):
    """The answer of a gate, with every finding."""

    gate: str
    """Which gate."""
    outcome: str
    """Its answer, waivers counted."""
    waived: bool
    """Whether a person lets one of the findings pass."""
    subject: str
    """What was judged: a bundle digest, or for the data gate a snapshot id."""
    version: int | None
    """The registered version of that bundle; null: the model was not registered."""
    reasons: tuple[str, ...]
    """The findings that are not passes, one line each; all of them when there are none."""
    findings: tuple[FindingEntry, ...]
    """All findings, in the gate's order."""
    recorded_at_utc: datetime
    """When it was kept."""
    dag_run: str | None
    """`<dag id>/<run id>` of the DAG run that asked; null: it was asked by hand."""
    report_url: str
    """The report in Airflow; empty: there is none."""


@dataclass(frozen=True)
class VerdictList(JsonRecord):
    """Verdicts, newest first."""

    verdicts: tuple[VerdictEntry, ...]
    """At most `limit` of them."""


@dataclass(frozen=True)
class CanaryDayEntry(JsonRecord):
    """One labelled day of a canary, and the confidence sequence after it."""

    day: date
    """The day."""
    rows: int
    """Rows that both models scored."""
    challenger_brier: float
    """Brier score of the challenger on them; less is better."""
    champion_brier: float
    """Brier score of the champion on them."""
    mean: float | None
    """Mean over the days so far of challenger less champion; null where the sequence does not go so far."""
    low: float | None
    """Lower bound of that mean; null while the sequence has no width yet."""
    high: float | None
    """Upper bound of that mean; below the margin the challenger is no worse."""


@dataclass(frozen=True)
class CanaryComparison(JsonRecord):
    """One comparison of a challenger with the champion of its time."""

    outcome: str
    """Its answer."""
    version: int | None
    """The challenger; null: it is not registered."""
    challenger_digest: str
    """Bundle digest of the challenger."""
    champion_version: int | None
    """The champion that it was compared with; null: unknown."""
    margin_brier: float | None
    """By how much the challenger may be worse and still pass; null: unknown."""
    steps: tuple[CanaryDayEntry, ...]
    """By day, oldest first; empty when the evidence cannot be read."""
    evidence: str
    """`read`, or why it could not be."""
    reasons: tuple[str, ...]
    """The findings that are not passes, one line each; all of them when there are none."""
    recorded_at_utc: datetime
    """When it was kept."""
    report_url: str
    """The report in Airflow; empty: there is none."""


@dataclass(frozen=True)
class CanaryList(JsonRecord):
    """Comparisons, newest first."""

    canaries: tuple[CanaryComparison, ...]
    """At most `limit` of them."""


@dataclass(frozen=True)
class PipelineState(JsonRecord):
    """What is live in one pipeline."""

    pipeline: str
    """Name of the pipeline."""
    error: str
    """Why its folder cannot be loaded; empty: it can."""
    live: DeploymentEntry | None
    """The line that made the live version live; null: nothing is."""
    last_gate: str | None
    """Outcome of its newest evaluation gate; null: there is none yet."""
    events_of_last_day: int
    """Lines that its log got in the last 24 hours."""


@dataclass(frozen=True)
class PipelineStates(JsonRecord):
    """Every pipeline that the user may read, by name."""

    pipelines: tuple[PipelineState, ...]
    """By name."""


@dataclass(frozen=True)
class Promotion(JsonRecord):
    """A promotion that was made."""

    deployment: DeploymentEntry
    """The line that it is in the log; of a repeated request, the line of the first."""
    alias_pending: bool
    """True: MLflow could not be told yet; the next reconcile sets its alias."""
    rollback_target: str
    """`loaded`, or why the version that was live before could not be gone back to."""


@dataclass(frozen=True)
class Rollback(JsonRecord):
    """A rollback that was made, and what the version left has published."""

    deployment: DeploymentEntry
    """The line that it is in the log; of a repeated request, the line of the first."""
    alias_pending: bool
    """True: MLflow could not be told yet; the next reconcile sets its alias."""
    barred_version: int
    """The version left; it is not promoted again until a person unbars it."""
    affected_rows: int
    """Predictions of the version left that readers still see."""
    affected_days: int
    """Days of those."""
    affected_first_day: date | None
    """First of those; null: there are none."""
    affected_last_day: date | None
    """Last of those; null: there are none."""
    unfinished_runs: tuple[str, ...]
    """Scoring runs planned with the version left and not published; they will be refused."""


RECORDS: tuple[type[JsonRecord], ...] = (
    DeploymentEntry,
    DeploymentPage,
    LiveVersion,
    FindingEntry,
    VerdictEntry,
    VerdictList,
    CanaryDayEntry,
    CanaryComparison,
    CanaryList,
    PipelineState,
    PipelineStates,
    Promotion,
    Rollback,
)
"""All of them, in the order of the contract."""
