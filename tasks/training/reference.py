"""What a bundle carries to be monitored by: a profile of each training and validation day, as this model sees it."""

from __future__ import annotations

import logging
import time
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.core.prediction_ids import PredictionIds
from tasks.core.rows import entity_column, event_micros
from tasks.core.sampling import SampledRows, explained_rows
from tasks.core.spec import PipelineSpec
from tasks.model.attribution import Explainer, explained
from tasks.model.attribution_sums import ANY_ROW, ExplainedRows, explains, selection_of
from tasks.model.bundle import Calibration
from tasks.model.execution import one_thread, predict
from tasks.model.profile import Profile, ProfileSpec
from tasks.training.dataset import Day, TrainingData

logger = logging.getLogger(__name__)

EXPLAINED_A_DAY = 1000
"""Rows explained of a reference day at most, evenly spaced over the day."""
EXPLAINED_A_DAY_SLOWLY = 200
"""The same for permutation Shapley, which costs some fifty times as much a row."""


def reference_profiles(
    spec: PipelineSpec, data: TrainingData, grid: ProfileSpec, network: Any, calibration: Calibration
) -> dict[date, Profile]:
    """One profile for each training and validation day, with this network's scores.

    Where the pipeline explains predictions, some rows of each day are explained, chosen as scoring will choose them, so
    that the monitor knows on what the scores of such a day rest.

    Args:
        network: In evaluation mode, on the CPU.
    """
    explaining = _Explaining(spec, data, network, calibration) if explains(spec.explanations) else None
    profiles = {}
    for day in (*data.train_days, *data.validation_days):
        encoded = data.encoder.encode(day.features)
        scores = predict(network, encoded, calibration)
        profiles[day.day] = Profile.of(
            grid, day.features, scores, explaining.of(day, encoded, scores) if explaining else None
        )
    if explaining:
        logger.info(
            "%d rows of %d days explained in %.1f s", explaining.rows, len(profiles), explaining.taken_s
        )
    return profiles


class _Explaining:
    """Explains rows of reference days, and knows what that cost."""

    def __init__(
        self, spec: PipelineSpec, data: TrainingData, network: Any, calibration: Calibration
    ) -> None:
        self._spec = spec
        self._selection = selection_of(spec)
        self._calibration = calibration
        with one_thread():
            self._explainer = Explainer(network, data.encoder)
        slow = self._explainer.name.startswith("permutation")
        self._most = EXPLAINED_A_DAY_SLOWLY if slow else EXPLAINED_A_DAY
        self.rows = 0
        self.taken_s = 0.0

    def of(self, day: Day, encoded: Any, scores: Any) -> ExplainedRows:
        started = time.monotonic()
        chosen = self._chosen(day, scores)
        count = min(self._most, len(chosen))
        picked = chosen[np.unique(np.linspace(0, max(len(chosen) - 1, 0), count).astype(np.int64))]
        mask = np.zeros(len(encoded), dtype=np.bool_)
        mask[picked] = True
        found = explained(self._explainer, encoded[picked], self._calibration)
        self.rows += len(picked)
        self.taken_s += time.monotonic() - started
        return ExplainedRows(mask, found.attributions, self._selection)

    def _chosen(self, day: Day, scores: Any) -> Any:
        """Positions of the rows that scoring would explain; of all when it takes any, for more of them are steadier."""
        if self._selection == ANY_ROW:
            return np.arange(day.rows.num_rows)
        spec, rows = self._spec, day.rows
        entities = entity_column(rows, spec)
        ids = PredictionIds.of(entities, event_micros(rows, spec), spec)
        keys: pa.Table = rows.select(list(dict.fromkeys((spec.event_time, *spec.entity_key))))
        return np.flatnonzero(explained_rows(spec, SampledRows(ids, entities, keys, day.features, scores)))
