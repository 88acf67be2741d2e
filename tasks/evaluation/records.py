"""What an evaluation found, as records: the input of `judge`, and the evidence that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from tasks.core.records import JsonRecord
from tasks.evaluation.check_records import ModelChecks


@dataclass(frozen=True)
class Interval(JsonRecord):
    """An estimate with its bootstrap interval; None where it is not defined (one class, one day, no rows)."""

    value: float | None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    """Bootstrap standard error with the small-sample factor sqrt(days / (days - 1))."""

    @property
    def text(self) -> str:
        """`0.712 [0.698, 0.726]`."""
        if self.value is None:
            return "not defined"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{bounds}"


@dataclass(frozen=True)
class CalibrationBin(JsonRecord):
    """One equal-mass bin of the candidate's scores."""

    rows: int
    mean_score: float
    label_rate: float
    low: float | None
    """Interval of the label rate, by resampling days."""
    high: float | None


@dataclass(frozen=True)
class SliceMetrics(JsonRecord):
    """The candidate on the validation rows of one slice."""

    column: str
    value: str
    rows: int
    days: int
    positives: int
    auc: Interval
    calibration_gap: Interval
    """Mean score minus label rate."""
    champion_auc: Interval | None = None
    baseline_auc: Interval | None = None
    champion_difference: Interval | None = None
    """AUC minus AUC of the champion, paired; None in evidence of earlier releases too, which no longer passes."""

    @property
    def name(self) -> str:
        return f"{self.column}={self.value}"


@dataclass(frozen=True)
class BehaviourCheck(JsonRecord):
    """One check of how the candidate behaves, whatever the labels say."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Latency(JsonRecord):
    """Wall time of features + encode + predict at one batch size; informational, never judged."""

    batch_rows: int
    median_ms: float
    rows_per_s: float


@dataclass(frozen=True)
class FeatureAuc(JsonRecord):
    """How well one feature alone ranks the labels of the validation days; fitted on the train days."""

    feature: str
    auc: Interval


@dataclass(frozen=True)
class FeatureTimes(JsonRecord):
    """Whether one feature's values were known when the predictions were made; train and validation days."""

    feature: str
    column: str
    """The source column that says since when the value is known."""
    rows: int
    """Rows in which the feature has a value."""
    late_rows: int
    undated_rows: int
    """A value without a time: not shown to be known."""
    largest_lateness_s: float


@dataclass(frozen=True)
class ScoreShape(JsonRecord):
    """The distribution of the candidate's predictions."""

    most_common: float
    repeated_share: float
    """Share of rows that get the commonest prediction, at six decimals."""
    extreme_share: float
    """Share of rows whose odds are beyond a thousand times the label rate's, either way."""
    mean_ratio: Interval
    """Mean prediction over label rate."""
    champion_distance: float | None
    """Kolmogorov-Smirnov distance to the champion's predictions of the same rows."""


@dataclass(frozen=True)
class Evaluation(JsonRecord):
    """Everything `judge` needs, and what the report shows."""

    pipeline: str
    snapshot_id: str
    candidate_digest: str
    champion_digest: str | None
    feature_version: str
    train_first_day: date | None
    train_last_day: date | None
    train_rows: int
    """Labelled rows the baseline was fitted on."""
    validation_first_day: date
    validation_last_day: date
    validation_days: int
    rows: int
    """Labelled validation rows; every metric is about these."""
    unlabelled_rows: int
    positives: int
    confidence: float
    bootstrap_samples: int
    bootstrap_seed: int
    models: dict[str, dict[str, Interval]]
    """`candidate`, `champion` (when there is one), `baseline`, `constant` -> metric -> interval."""
    differences: dict[str, dict[str, Interval]]
    """`candidate-champion`, `candidate-baseline` -> metric -> paired interval on the same resamples."""
    slices: tuple[SliceMetrics, ...]
    calibration: tuple[CalibrationBin, ...]
    checks: tuple[BehaviourCheck, ...]
    latency: tuple[Latency, ...]
    ece_plugin: float | None
    """ECE of the candidate before its bias is taken off."""
    inputs_digest: str
    """Digest of everything that the evidence depends on; equal inputs are evaluated once."""
    created_at_utc: str
    champion_error: str | None = None
    """Why the champion could not score these rows, when it could not."""
    evidence_key: str | None = None
    report_key: str | None = None
    single_features: tuple[FeatureAuc, ...] = ()
    """Every feature alone, highest AUC first; empty in evidence of earlier releases, which no longer passes."""
    feature_times: tuple[FeatureTimes, ...] = ()
    shape: ScoreShape | None = None
    model_checks: ModelChecks | None = None
    """None in evidence of earlier releases, which no longer passes."""


@dataclass(frozen=True)
class CanaryDay(JsonRecord):
    """Paired losses of one labelled day."""

    day: date
    rows: int
    challenger_brier: float
    champion_brier: float
    row_spread: float | None = None
    """Standard deviation of the rows' paired differences; None in evidence of earlier releases."""
    challenger_seconds: float | None = None
    """CPU-seconds for scoring the day's rows, from source row to probability."""
    champion_seconds: float | None = None
    challenger_errors: int = 0
    """Of `rows`, those that the challenger could not score: each counts as the worst prediction."""
    error_example: str = ""

    @property
    def difference(self) -> float:
        return self.challenger_brier - self.champion_brier


@dataclass(frozen=True)
class CanaryBound(JsonRecord):
    """The confidence sequence after one more day; `low` and `high` are None while it has no width yet."""

    day: date
    days: int
    mean: float
    low: float | None
    high: float | None
