"""A snapshot as matrices: who trains, who tunes, who validates.

Days divide the rows three ways, in time order:

    | fit days ........................ | tuning days | validation days |

The network learns from the fit days. The tuning days, the last 15 % of the training window (1 to 14 days),
choose the epoch and the calibration. The validation days are touched by neither, so what evaluation measures
on them is honest. Rows without a label are scored and profiled, and never learnt from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.object_store import ObjectStore
from tasks.core.partitions import read_partition
from tasks.core.records import PartitionFile, Snapshot
from tasks.core.spec import PipelineSpec
from tasks.model.encoder import FeatureEncoder, Matrix
from tasks.model.feature_code import FeatureCode
from tasks.model.network_spec import NetworkSpec

logger = logging.getLogger(__name__)

_TUNING_SHARE, _TUNING_DAYS = 0.15, 14
_ONE_DAY_TUNING = 5
"""With a single training day every fifth row tunes."""

Labels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Labelled rows: encoded matrix `[n, width]` and labels `[n]`, 0 or 1."""

    x: Matrix
    y: Labels


@dataclass(frozen=True)
class Day:
    """All rows of one day: source rows without outcomes, features, labels (NaN: no outcome)."""

    day: date
    rows: pa.Table
    features: pa.Table
    labels: Labels


@dataclass(frozen=True)
class TrainingData:
    """Everything that training needs of a snapshot."""

    train_days: tuple[Day, ...]
    """Fit and tuning days."""
    validation_days: tuple[Day, ...]
    encoder: FeatureEncoder
    network: NetworkSpec
    fit: Part
    tuning: Part
    validation: Part
    tuning_first_day: date


def load_training_data(
    store: ObjectStore,
    spec: PipelineSpec,
    snapshot: Snapshot,
    feature_code: FeatureCode,
    *,
    validation_first_day: date,
) -> TrainingData:
    """Read, compute features, encode and divide.

    Raises:
        DataError: Days, the label column or one of its classes are missing; a partition is damaged.
        PipelineCodeError: features.py fails.
    """
    before = [part for part in snapshot.partitions if part.day < validation_first_day]
    after = [part for part in snapshot.partitions if part.day >= validation_first_day]
    if not before or not after:
        side = "before" if not before else "from"
        raise DataError(
            f"has no day {side} {validation_first_day}, where "
            + ("training ends" if not before else "validation starts"),
            which=f"snapshot {snapshot.snapshot_id}",
            fix="widen the split windows in pipeline.yaml, or pass other days",
        )
    train_days = tuple(_days(store, spec, feature_code, before))
    validation_days = tuple(_days(store, spec, feature_code, after))
    fit_rows, tuning_rows, tuning_first_day = _divide(train_days)

    features = pa.concat_tables(day.features for day in train_days)
    labels = np.concatenate([day.labels for day in train_days])
    validation_labels = np.concatenate([day.labels for day in validation_days])
    known = np.isfinite(validation_labels)
    parts = {"fit": labels[fit_rows], "tuning": labels[tuning_rows], "validation": validation_labels[known]}
    for name, found in parts.items():
        _need_both_classes(name, found, spec, snapshot)
    encoder = FeatureEncoder.fit(features.filter(pa.array(fit_rows)), spec.features)
    encoded = encoder.encode(features)
    network = NetworkSpec(
        numeric=encoder.numeric_width,
        cardinalities=encoder.cardinalities,
        embedding_dims=tuple(column.embedding_dim for column in spec.features.categorical.values()),
        hidden=spec.training.hidden,
        dropout=spec.training.dropout,
        wide=True,
    )
    validation_encoded = encoder.encode(pa.concat_tables(day.features for day in validation_days))
    data = TrainingData(
        train_days=train_days,
        validation_days=validation_days,
        encoder=encoder,
        network=network,
        fit=Part(encoded[fit_rows], parts["fit"]),
        tuning=Part(encoded[tuning_rows], parts["tuning"]),
        validation=Part(validation_encoded[known], parts["validation"]),
        tuning_first_day=tuning_first_day,
    )
    logger.info(
        "%d fit rows, %d tuning rows (from %s), %d validation rows (from %s); %d encoded columns; "
        "%.1f %% positive",
        *(len(data.fit.y), len(data.tuning.y), tuning_first_day, len(data.validation.y)),
        *(validation_first_day, encoder.width, 100 * float(data.fit.y.mean())),
    )
    return data


def _days(
    store: ObjectStore, spec: PipelineSpec, feature_code: FeatureCode, partitions: Iterable[PartitionFile]
) -> Iterable[Day]:
    outcomes = spec.label.known_afterwards
    for partition in partitions:
        table = read_partition(store, partition)
        labels = _labels(table, spec, where=store.url(partition.key))
        rows = table.select([name for name in table.column_names if name not in outcomes])
        yield Day(partition.day, rows, feature_code.compute(rows, spec.features), labels)


def _labels(table: pa.Table, spec: PipelineSpec, *, where: str) -> Labels:
    name = spec.label.column
    if name not in table.column_names:
        raise DataError(
            f"has no label column {name!r}",
            which=where,
            fix="take a snapshot of kind training, or correct label.column",
        )
    try:
        values = pc.fill_null(table[name].cast(pa.float32()), float("nan")).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _bad_label(where, name, str(table[name].type)) from error
    wrong = values[np.isfinite(values) & (values != 0) & (values != 1)]
    if len(wrong):
        raise _bad_label(where, name, f"the value {wrong[0]:g}")
    return np.asarray(values, dtype=np.float32)


def _bad_label(where: str, name: str, found: str) -> DataError:
    return DataError(
        f"label column {name!r} holds {found}", which=where, fix="store 0, 1 or null (no outcome)"
    )


def _divide(days: tuple[Day, ...]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], date]:
    """Masks of fit and tuning rows over all training rows, labelled rows only, and the first tuning day."""
    known = np.concatenate([np.isfinite(day.labels) for day in days])
    if len(days) == 1:
        tunes = np.arange(len(known)) % _ONE_DAY_TUNING == _ONE_DAY_TUNING - 1
    else:
        count = min(_TUNING_DAYS, max(1, round(_TUNING_SHARE * len(days))))
        sizes = [len(day.labels) for day in days]
        tunes = np.arange(len(known)) >= sum(sizes[:-count])
        return known & ~tunes, known & tunes, days[-count].day
    return known & ~tunes, known & tunes, days[0].day


def _need_both_classes(name: str, labels: Labels, spec: PipelineSpec, snapshot: Snapshot) -> None:
    positive = int(labels.sum())
    if 0 < positive < len(labels):
        return
    what = f"all {len(labels)} labels are {positive // len(labels)}" if len(labels) else "no row has a label"
    raise DataError(
        f"{what} in the {name} rows: a model needs both classes",
        which=f"label column {spec.label.column!r} of snapshot {snapshot.snapshot_id}",
        fix="widen the split windows in pipeline.yaml, or correct label.column",
    )
