"""The eight things that are measured of a server, by Prometheus' conventions; docs/serving.md has the reason for each.

Labels are tenant, pipeline and model version; of versions the last few are kept, of causes and features there is a
fixed set. So the number of series does not grow with traffic or with time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tasks.serving.models import ServedModel
from tasks.serving.refusals import CAUSES

if TYPE_CHECKING:
    from tasks.model.profile import Profile

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KEPT_VERSIONS = 6
MAX_FEATURES = 100
WINDOW_ROWS = 5_000
LEAST_ROWS = 200
"""Fewer scores say nothing of a distribution."""

_OWNER = ("tenant", "pipeline")
_MODEL = (*_OWNER, "model_version")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAITS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_DIFFERENCES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class ModelMetrics:
    """What is measured of one version; its series are looked up once."""

    def __init__(self, whole: ServingMetrics, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.duration = whole.duration.labels(*labels)
        self.predictions = whole.predictions.labels(*labels)
        self.wait = whole.wait.labels(*labels)
        self.batch_rows = whole.batch_rows.labels(*labels)
        self.busy = whole.busy.labels(*labels)
        self.fallbacks = whole.fallbacks.labels(*labels)
        self.input_rows = whole.input_rows.labels(*labels)
        self.differences = whole.shadow_difference.labels(*labels)
        self.shadow_failed = whole.shadow_failed.labels(*labels)
        self.recent = np.zeros((2, 0), np.int64)
        """Score histograms of the last window and of the one that is filling."""


class ServingMetrics:
    """All metrics of one server, in a registry of their own.

    Args:
        tenant: Label of every series.
        pipeline: The same.
    """

    def __init__(self, tenant: str, pipeline: str) -> None:
        self.registry = CollectorRegistry()
        self.owner = (tenant, pipeline)
        self._models: dict[int, ModelMetrics] = {}
        self._loaded: frozenset[int] = frozenset()
        self._lock = threading.Lock()

        def make(kind: type[Any], name: str, text: str, labels: tuple[str, ...], **more: Any) -> Any:
            return kind(f"penstock_serving_{name}", text, labels, registry=self.registry, **more)

        self.duration = make(
            Histogram,
            "request_duration_seconds",
            "From the request's first byte to its answer.",
            _MODEL,
            buckets=_SECONDS,
        )
        self.predictions = make(Counter, "predictions", "Rows that were answered.", _MODEL)
        self.fallbacks = make(
            Counter,
            "fallback_rows",
            "Rows that an exposed challenger could not score and the champion answered.",
            _MODEL,
        )
        self.errors = make(Counter, "errors", "Requests without a prediction, by cause.", (*_MODEL, "cause"))
        self.depth = make(Gauge, "queue_depth_requests", "Requests that wait for the model.", _OWNER).labels(
            *self.owner
        )
        self.size = make(Gauge, "queue_size_requests", "How many may wait.", _OWNER).labels(*self.owner)
        self.high = make(Gauge, "queue_high_water_requests", "The most that ever waited.", _OWNER).labels(
            *self.owner
        )
        self.wait = make(
            Histogram, "queue_wait_seconds", "From admission to scoring.", _MODEL, buckets=_WAITS
        )
        self.batch_rows = make(
            Histogram, "batch_rows", "Rows that were scored at once.", _MODEL, buckets=_ROWS
        )
        self.busy = make(
            Counter,
            "scoring_seconds",
            "Time that the scoring thread spent in the model; its rate is the device's utilisation.",
            _MODEL,
        )
        self.accelerator = make(
            Gauge, "accelerator_utilization_ratio", "Of the GPU, as its driver says; absent on a CPU.", _OWNER
        )
        self.input_values = make(
            Counter,
            "input_anomalies",
            "Values that are null, out of the training range or unseen.",
            (*_MODEL, "feature", "kind"),
        )
        self.input_rows = make(Counter, "input_rows", "Rows whose values were counted.", _MODEL)
        self.event_lag = make(
            Gauge,
            "event_time_lag_seconds",
            "Now minus the newest event time: how old the features are.",
            _MODEL,
        )
        self.drift = make(
            Gauge,
            "prediction_drift_distance",
            "Jensen-Shannon distance of recent scores to the validation days, 0 to 1.",
            _MODEL,
        )
        self.live_since = make(
            Gauge, "model_live_since_timestamp_seconds", "When it began to answer.", _MODEL
        )
        self.trained_until = make(
            Gauge, "model_trained_until_timestamp_seconds", "End of its training days.", _MODEL
        )
        self.quality = make(
            Gauge, "model_quality", "Newest measured value, from labels or estimated.", (*_MODEL, "metric")
        )
        self.share = make(
            Gauge, "challenger_share_ratio", "Share of entities that the challenger answers.", _OWNER
        ).labels(*self.owner)
        self.shadow_difference = make(
            Histogram,
            "shadow_difference",
            "Distance of a shadow challenger's score to the answer.",
            _MODEL,
            buckets=_DIFFERENCES,
        )
        self.shadow_failed = make(
            Counter,
            "shadow_failed_rows",
            "Rows that were answered and that a shadow challenger could not score.",
            _MODEL,
        )
        self.shadow_shed = make(
            Counter, "shadow_shed", "Copies that were not scored because of the load.", _OWNER
        ).labels(*self.owner)
        self.follow_failures = make(
            Counter,
            "follow_failures",
            "Times that the deployment log or a new version could not be used.",
            (*_OWNER, "cause"),
        )
        self.backlog = make(
            Gauge, "unrecorded_rows", "Rows that are not in the audit store yet.", _OWNER
        ).labels(*self.owner)
        self.recorded = make(Counter, "recorded_rows", "Rows that the audit store has.", _OWNER).labels(
            *self.owner
        )
        self.explained = make(
            Counter, "explained_rows", "Of them, those with an explanation.", _OWNER
        ).labels(*self.owner)
        self.explanations_shed = make(
            Counter, "explanations_shed", "Explanations that were left out because of the load.", _OWNER
        ).labels(*self.owner)
        self.record_failures = make(
            Counter, "record_failures", "Appends to the audit store that failed.", _OWNER
        ).labels(*self.owner)
        self.lost = make(
            Counter, "unrecordable_rows", "Answered rows that the audit store refused for good.", _OWNER
        ).labels(*self.owner)
        self._states = (self.event_lag, self.drift, self.live_since, self.trained_until, self.quality)
        self._causes: dict[tuple[int, str], Any] = {}

    def loaded(self, models: Sequence[tuple[ServedModel, datetime]]) -> None:
        """Show the state of these versions, a shadow's too, and no more that of others: what one was like last is not how it is.

        What was counted of the others stays, as a rate needs it.

        Args:
            models: Each with the moment since which it does so.
        """
        with self._lock:
            kept = frozenset(model.deployed.version for model, _ in models)
            for version in self._loaded - kept:
                self._hide_state(version)
            for version in (
                kept - self._loaded
            ) & self._models.keys():  # it is back: its scores of then are not those of now
                self._models[version].recent = np.zeros_like(self._models[version].recent)
            self._loaded = kept
            for model, since in models:
                labels = (*self.owner, str(model.deployed.version))
                self.live_since.labels(*labels).set(since.timestamp())
                self.trained_until.labels(*labels).set(model.trained_until.timestamp())

    def of(self, model: ServedModel) -> ModelMetrics:
        """The series of a version, made at its first use; when there are too many, the first made of those not loaded goes."""
        number = model.deployed.version
        found = self._models.get(number)
        if found is not None:
            return found
        with self._lock:
            if number not in self._models:
                made = ModelMetrics(self, (*self.owner, str(number)))
                made.recent = np.zeros((2, len(model.reference_scores)), np.int64)
                self._models[number] = made
                while len(self._models) > KEPT_VERSIONS:
                    self._forget(next(version for version in self._models if version not in self._loaded))
            return self._models[number]

    def refused(self, cause: str, version: int = 0) -> None:
        """Count a request without a prediction; version 0: no model was asked."""
        counter = self._causes.get((version, cause))
        if counter is None:
            assert cause in CAUSES, cause
            counter = self._causes[version, cause] = self.errors.labels(*self.owner, str(version), cause)
        counter.inc()

    def observe(self, model: ServedModel, profile: Profile, newest_event_lag_s: float | None) -> None:
        """Count what answered rows looked like. By one thread."""
        mine = self.of(model)
        mine.input_rows.inc(profile.rows)
        if newest_event_lag_s is not None:
            self._show(self.event_lag, model, newest_event_lag_s)
        for name, kind, count in _anomalies(profile):
            if count:
                self.input_values.labels(*mine.labels, name, kind).inc(count)
        mine.recent[1] += profile.score.counts
        scores = mine.recent.sum(axis=0)
        if scores.sum() >= LEAST_ROWS:
            self._show(self.drift, model, jensen_shannon(model.reference_scores, scores))
        if mine.recent[1].sum() >= WINDOW_ROWS:
            mine.recent = np.stack([mine.recent[1], np.zeros_like(mine.recent[1])])

    def measured(self, model: ServedModel, values: Mapping[str, float]) -> None:
        """Show what the metadata store knows of a version's quality."""
        for name, value in values.items():
            self._show(self.quality, model, value, name)

    def accelerator_used(self, share: float) -> None:
        """Show how busy the GPU is."""
        self.accelerator.labels(*self.owner).set(share)

    def text(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self.registry)

    def _show(self, gauge: Gauge, model: ServedModel, value: float, *more: str) -> None:
        """Of a version that is loaded: rows that another one answered may be counted after it went."""
        version = model.deployed.version
        with self._lock:
            if version in self._loaded:
                gauge.labels(*self.owner, str(version), *more).set(value)

    def _hide_state(self, version: int) -> None:
        labels = dict(zip(_MODEL, (*self.owner, str(version)), strict=True))
        for gauge in self._states:
            gauge.remove_by_labels(labels)

    def _forget(self, version: int) -> None:
        labels = dict(zip(_MODEL, self._models.pop(version).labels, strict=True))
        for metric in (
            *(
                self.duration,
                self.predictions,
                self.errors,
                self.wait,
                self.batch_rows,
                self.busy,
                self.fallbacks,
                self.input_values,
            ),
            self.input_rows,
            self.shadow_difference,
            self.shadow_failed,
        ):
            metric.remove_by_labels(labels)
        for key in [key for key in self._causes if key[0] == version]:
            del self._causes[key]


def _anomalies(profile: Profile) -> list[tuple[str, str, int]]:
    found = []
    for name, numeric in list(profile.numeric.items())[:MAX_FEATURES]:
        found += [(name, "null", numeric.nulls), (name, "out_of_range", numeric.out_of_range)]
    for name, text in list(profile.categorical.items())[:MAX_FEATURES]:
        found += [(name, "null", text.nulls), (name, "unseen", text.unseen)]
    return found


def jensen_shannon(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Jensen-Shannon distance of two histograms, base 2: 0 for equal shares, 1 for none in common; NaN for an empty one."""
    if not first.sum() or not second.sum():
        return float("nan")
    one, other = first / first.sum(), second / second.sum()
    middle = (one + other) / 2

    def divergence(shares: npt.NDArray[np.float64]) -> float:
        there = shares > 0
        return float((shares[there] * np.log2(shares[there] / middle[there])).sum())

    return float(np.sqrt(max(0.0, (divergence(one) + divergence(other)) / 2)))


def seconds_since(moment: datetime, now: datetime) -> float:
    return (now - moment).total_seconds()
