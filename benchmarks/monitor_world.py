"""The real flights of 2013 for `monitor_decisions.py`: a model trained on one half of the year, and what a monitor sees of the other.

Everything is the pipeline's own code: its snapshot, its training step (in this process, without MLflow), its bundle with the
profile grid and the reference days, its scorer, its profiles. What was trained is kept under `.penstock/monitor_decisions`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from monitor_faults import LABEL, Fault, Moment
from monitor_year import AS_IT_WAS, PIPELINE, Year
from monitor_year import HOME as HOME
from monitor_year import ROOT as ROOT

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store
from tasks.core.partitions import read_partition
from tasks.core.spec import Window
from tasks.data import take_snapshot
from tasks.model import Profile, Scorer, fetch_bundle
from tasks.model.attribution_sums import ExplainedRows, selection_of
from tasks.model.encoder import Matrix
from tasks.monitoring import DayPerformance, Monitor, performance
from tasks.training.in_process import fit_in_process
from tasks.training.tracking import Tracked
from tasks.training.trainer import train

REFERENCE, MONITORED = AS_IT_WAS.reference, AS_IT_WAS.monitored
HISTORY = timedelta(days=60)

Floats = npt.NDArray[np.float64]


def days_between(first: date, last: date) -> list[date]:
    return [first + timedelta(days=index) for index in range((last - first).days + 1)]


@dataclass(frozen=True)
class Scored:
    """One day's rows as the model saw them."""

    day: date
    rows: pa.Table
    """As the source had them, or a fault."""
    features: pa.Table
    scores: Floats
    labels: Floats
    """NaN: no outcome."""
    attributions: npt.NDArray[np.float32]
    """Of every row, as the pipeline's `explanations` have it."""

    def performance(self, spec: PipelineSpec) -> DayPerformance:
        """What the labels say, once they are known."""
        ids = pa.array(np.arange(len(self.scores)).astype(str))
        labels = pa.array(self.labels, from_pandas=True)
        return performance(
            spec,
            day=self.day,
            scored=pa.table({"prediction_id": ids, "prediction": self.scores}),
            labels=pa.table({"prediction_id": ids, "label": labels}),
            as_of=spec.label.known_from(self.day),
        )


@dataclass
class World:
    """A trained model and the days around it."""

    spec: PipelineSpec
    scorer: Scorer
    year: Year
    validation_first_day: date
    rows: dict[date, pa.Table]
    """Raw rows with labels, by day, from the first of the reference on."""
    _scored: dict[date, Scored] = field(default_factory=dict)
    _spreads: dict[str, float] = field(default_factory=dict)
    _profiles: dict[date, Profile] = field(default_factory=dict)

    @cached_property
    def monitor(self) -> Monitor:
        bundle = self.scorer.bundle
        return Monitor.of(self.spec, bundle.profile_spec, bundle.reference_profiles)

    @cached_property
    def usual(self) -> list[DayPerformance]:
        """Realised performance of the validation days: the reference of tier 3."""
        days = days_between(self.validation_first_day, self.year.reference[1])
        return [self.scored(day).performance(self.spec) for day in days]

    def scored(self, day: date) -> Scored:
        if day not in self._scored:
            self._scored[day] = self.score(day, self.rows[day])
        return self._scored[day]

    def score(self, day: date, rows: pa.Table) -> Scored:
        features = self.scorer.features(rows)
        return self._scored_as(day, rows, features, self.scorer.encode(features))

    def _scored_as(self, day: date, rows: pa.Table, features: pa.Table, encoded: Matrix) -> Scored:
        scores = self.scorer.predict(encoded).astype(np.float64)
        return Scored(day, rows, features, scores, labels_of(rows), self.scorer.explain(encoded).attributions)

    def faulty(self, fault: Fault, start: date, variant: str, day: date) -> Scored:
        """The day with the fault in it."""
        seed = [start.toordinal(), day.toordinal(), *fault.name.encode()]
        moment = Moment(
            day, start, variant, np.random.default_rng(seed), self.rows.__getitem__, self.scorer, self.spread
        )
        if fault.rows is not None:
            return self.score(day, fault.rows(self.rows[day], moment))
        clean = self.scored(day)
        if fault.labels is not None:
            return replace(clean, labels=fault.labels(clean.labels, moment))
        assert fault.encoded is not None
        encoded = fault.encoded(self.scorer.encode(clean.features), clean.features, moment)
        return self._scored_as(day, clean.rows, clean.features, encoded)

    def spread(self, column: str) -> float:
        if column not in self._spreads:
            days = days_between(self.validation_first_day, self.year.reference[1])
            values = pa.concat_tables([self.rows[day].select([column]) for day in days])[column]
            self._spreads[column] = float(pc.stddev(values.cast(pa.float64())).as_py())
        return self._spreads[column]

    def clean_profile(self, day: date) -> Profile:
        """Of the day as it came."""
        if day not in self._profiles:
            self._profiles[day] = self.profile(self.scored(day))
        return self._profiles[day]

    def profile(self, scored: Scored) -> Profile:
        """As a shard writes it."""
        every = np.ones(len(scored.scores), dtype=np.bool_)
        explained = ExplainedRows(every, scored.attributions, selection_of(self.spec))
        grid = self.scorer.bundle.profile_spec
        return Profile.of(grid, scored.features, scored.scores, explained, scored.rows)


def labels_of(rows: pa.Table) -> Floats:
    column = rows[LABEL].cast(pa.float64())
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(), dtype=np.float64)


def make_world(
    *, validation: tuple[date, date], hidden: Sequence[int] | None = None, year: Year = AS_IT_WAS
) -> World:
    """Train on the days from the first of the reference to `validation`, or find what was trained before; read every day of the year.

    Args:
        hidden: Layers in place of the pipeline's, trained for one epoch: enough to measure what scoring with them costs.
    """
    settings = Settings.at_home(year.home, project=year.project())
    spec = load_pipeline(settings, PIPELINE)
    if hidden:
        other = {"hidden": tuple(hidden), "epochs": 1, "patience": 1, "refit": False}
        spec = spec.model_copy(update={"training": spec.training.model_copy(update=other)})
    store = open_store(settings, prefix=spec.prefix)
    snapshot = take_snapshot(
        settings, spec, kind="training", window=_window(year.reference[0], validation[1])
    )
    trained = train(
        settings, spec, snapshot, validation_first_day=validation[0], fit=fit_in_process, show=_nowhere
    )
    logging.info("trained until %s: %s", validation[0], trained.metrics)
    scorer = Scorer(fetch_bundle(store, trained.bundle_digest, settings.cache_dir))
    return World(spec, scorer, year, validation[0], rows_of(year))


@lru_cache(maxsize=1)
def rows_of(year: Year) -> dict[date, pa.Table]:
    """The rows of every day, as a training snapshot keeps them."""
    settings = Settings.at_home(year.home, project=year.project())
    spec = load_pipeline(settings, PIPELINE)
    store = open_store(settings, prefix=spec.prefix)
    whole = take_snapshot(
        settings, spec, kind="training", window=_window(year.reference[0], year.monitored[1])
    )
    return {partition.day: read_partition(store, partition) for partition in whole.partitions}


def _window(first: date, last: date) -> Window:
    return Window(first_day=first, last_day=last)


def _nowhere(*_: Any, **__: Any) -> Tracked:
    """In the place of MLflow."""
    return Tracked("", "", "")
