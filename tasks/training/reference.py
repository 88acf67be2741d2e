"""What a bundle carries to be monitored by: a profile of each training and validation day, as this model sees it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core.prediction_ids import PredictionIds
from tasks.core.rows import entity_column, event_micros
from tasks.core.sampling import CountedRows, SampledRows, explained_rows, rows_counted_as_one
from tasks.core.spec import PipelineSpec
from tasks.model.attribution import Explainer, explained
from tasks.model.attribution_sums import ANY_ROW, ExplainedRows, explains, selection_of
from tasks.model.bundle import Calibration
from tasks.model.encoder import Matrix
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
    that the monitor knows on what the scores of such a day rest. Of a day with many rows as many are counted as scoring will
    count, so that what chance does to a sample is part of what is normal.

    Args:
        network: In evaluation mode, on the CPU.
    """
    days = (*data.train_days, *data.validation_days)
    asked = _Asked(spec, network, data) if explains(spec.explanations) else None
    scores = {}
    for day in days:
        encoded = data.encoder.encode(day.features)
        scores[day.day] = predict(network, encoded, calibration)
        if asked is not None:
            asked.choose(day, encoded, scores[day.day])
    found = asked.explained(calibration) if asked is not None else {}
    profiles = {
        day.day: Profile.of(
            grid,
            day.features,
            scores[day.day],
            found.get(day.day),
            day.rows,
            CountedRows.among(day.features, rows_counted_as_one(spec, day.features.num_rows)),
        )
        for day in days
    }
    _say_idle(grid, profiles)
    return profiles


def _say_idle(grid: ProfileSpec, profiles: Mapping[date, Profile]) -> None:
    """Null conditions that hold for no null of these days are logged: most likely a value is misspelt."""
    for condition in grid.null_conditions:
        name = condition.feature
        nulls = sum((day.numeric.get(name) or day.categorical[name]).nulls for day in profiles.values())
        if nulls and not any(day.expected_nulls[name] for day in profiles.values()):
            logger.warning(
                "drift.null_when.%s: of its %d nulls on %d reference days none is where %s",
                *(name, nulls, len(profiles), condition.in_words),
            )


class _Asked:
    """The rows of reference days to explain. All at once: rows pass the network in blocks, and a day fills less than one."""

    def __init__(self, spec: PipelineSpec, network: Any, data: TrainingData) -> None:
        self._spec = spec
        self._selection = selection_of(spec)
        with one_thread():
            self._explainer = Explainer(network, data.encoder)
        slow = self._explainer.name.startswith("permutation")
        self._most = EXPLAINED_A_DAY_SLOWLY if slow else EXPLAINED_A_DAY
        self._masks: dict[date, npt.NDArray[np.bool_]] = {}
        self._rows: list[Matrix] = []

    def choose(self, day: Day, encoded: Matrix, scores: Any) -> None:
        """Take evenly spaced rows of a day."""
        chosen = self._chosen(day, scores)
        count = min(self._most, len(chosen))
        picked = chosen[np.linspace(0, max(len(chosen) - 1, 0), count).astype(np.int64)]
        mask = np.zeros(len(encoded), dtype=np.bool_)
        mask[picked] = True
        self._masks[day.day] = mask
        self._rows.append(encoded[mask])

    def explained(self, calibration: Calibration) -> dict[date, ExplainedRows]:
        """Attributions by day; none where the method fails on this network, as scoring goes on without them too."""
        started = time.monotonic()
        rows = np.concatenate(self._rows)
        try:
            found = explained(self._explainer, rows, calibration).attributions
        except Exception as error:  # a model without reference attributions is still a model
            logger.warning(
                "reference days were not explained, so attribution drift will not be judged: %s: %s",
                *(type(error).__name__, error),
            )
            return {}
        logger.info(
            "%d rows of %d days explained in %.1f s", len(rows), len(self._masks), time.monotonic() - started
        )
        ends = np.cumsum([mask.sum() for mask in self._masks.values()])[:-1]
        return {
            day: ExplainedRows(mask, part, self._selection)
            for (day, mask), part in zip(self._masks.items(), np.split(found, ends), strict=True)
        }

    def _chosen(self, day: Day, scores: Any) -> npt.NDArray[np.int64]:
        """Positions of the rows that scoring would explain; of all when it takes any, for more of them are steadier."""
        if self._selection == ANY_ROW:
            return np.arange(day.rows.num_rows)
        spec, rows = self._spec, day.rows
        entities = entity_column(rows, spec)
        ids = PredictionIds.of(entities, event_micros(rows, spec), spec)
        keys: pa.Table = rows.select(list(dict.fromkeys((spec.event_time, *spec.entity_key))))
        return np.flatnonzero(explained_rows(spec, SampledRows(ids, entities, keys, day.features, scores)))
