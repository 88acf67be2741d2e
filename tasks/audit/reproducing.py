"""Is a recorded prediction what its model says? Features, score and attributions, computed again and compared.

What may differ, and why:

- features computed from the source row must be the recorded ones to the last bit of their float32 values;
- the score of the recorded features may differ by `GOLDEN_TOLERANCE`, as much as golden rows may on another CPU or BLAS
  (`BFLOAT16_TOLERANCE` where the run scored in bfloat16), and by what rounding the features to float32 can move it, which is
  computed for this very row;
- an attribution may differ by the bits that the table drops, `2 ** -(attribution_bits + 1)` of it (a colder tier that keeps fewer bits
  rounds what the table had rounded: both count), by `LOGIT_TOLERANCE` of all that moved the row, and by the same rounding
  of the features.

On the machine that scored it, everything but those roundings is equal bit for bit, and the answer says whether it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.audit.explaining import recorded_features, recorded_model
from tasks.audit.record import AuditRecord
from tasks.audit.rows import ATTRIBUTION_BITS, rounded
from tasks.core.errors import DataError, NotFound, PipelineCodeError
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.partitions import load_snapshot, read_partition
from tasks.core.records import JsonRecord
from tasks.core.rows import prediction_ids
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

if TYPE_CHECKING:
    from tasks.model import Scorer

LOGIT_TOLERANCE = 1e-5
"""Of the sum of a row's absolute attributions, at least of 1 logit: other CPU, other BLAS."""
_WHOLE_FRACTION = 23
"""Bits of a float32's fraction."""
_FIRST_ORDER = 2.0
"""Feature by feature the effect of rounding is measured; together they may do more than their sum."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference(JsonRecord):
    """One thing that is not what is recorded."""

    part: str
    """`identity`, `version`, `feature`, `score`, `attribution`, `base_value` or `residual`."""
    name: str | None
    """Of the feature or the version; None where there is only one."""
    recorded: Any
    computed: Any
    difference: float | None = None
    """Absolute; None where it is no number."""
    tolerance: float | None = None


@dataclass(frozen=True)
class Reproduction(JsonRecord):
    """What came out when a prediction was computed again."""

    prediction_id: str
    run_id: str
    model_version: int
    bundle_digest: str
    reproduced: bool
    """Whether nothing that could be compared differs by more than its tolerance."""
    features_from: str | None
    """`source row`, `source partition` when features.py needs the row's neighbours, or None: see `not_compared`."""
    recorded_score: float
    score: float
    """Of the recorded features."""
    score_tolerance: float
    score_bit_equal: bool
    score_of_source: float | None
    """Of the features computed from the source row, before they were rounded to float32."""
    score_of_source_bit_equal: bool | None
    attributions_compared: int
    attributions_bit_equal_once_rounded: bool | None
    """As the table rounds what it keeps, and a colder tier once more."""
    largest_attribution_difference_before_rounding: float | None
    """Logits, between what is recorded, which is rounded, and what was computed now, which is not."""
    not_compared: tuple[str, ...]
    """What could not be compared, and why."""
    differences: tuple[Difference, ...]


def reproduce(
    settings: Settings, spec: PipelineSpec, record: AuditRecord, *, bfloat16: bool = False
) -> Reproduction:
    """Compute a recorded prediction again with the recorded model, and compare.

    Args:
        settings: This installation.
        spec: The pipeline.
        record: What `by_prediction` answered.
        bfloat16: Whether the run scored in bfloat16.

    Raises:
        FeaturesErased, FeaturesNotKept: The record has no features to compute from.
        NotFound: The recorded model bundle is gone.
        DigestMismatch: The bundle is damaged, or this machine does not compute what was trained.
    """
    from tasks.model.scorer import BFLOAT16_TOLERANCE, GOLDEN_TOLERANCE

    features = recorded_features(record)
    model = recorded_model(settings, spec, record)
    rounding = _Rounding(model, features)
    found = _Found(GOLDEN_TOLERANCE if not bfloat16 else BFLOAT16_TOLERANCE)
    found.versions(record, model)
    source = _from_source(open_store(settings, prefix=spec.prefix), spec, record, model, found)
    score = rounding.score
    tolerance = found.score_tolerance + rounding.score_slack
    recorded = float("nan") if record.prediction is None else record.prediction
    found.number("score", None, recorded, float(score), tolerance)
    if source is not None:
        found.number("score", "of the source row", recorded, float(source), found.score_tolerance)
    largest, equal, compared = _attributions(record, model, rounding, found)
    return Reproduction(
        prediction_id=record.prediction_id,
        run_id=record.run_id,
        model_version=record.model_version,
        bundle_digest=record.bundle_digest,
        reproduced=not found.differences,
        features_from=found.features_from,
        recorded_score=recorded,
        score=float(score),
        score_tolerance=tolerance,
        score_bit_equal=bool(np.float32(recorded) == score),
        score_of_source=None if source is None else float(source),
        score_of_source_bit_equal=None if source is None else bool(np.float32(recorded) == source),
        attributions_compared=compared,
        attributions_bit_equal_once_rounded=equal,
        largest_attribution_difference_before_rounding=largest,
        not_compared=tuple(found.not_compared),
        differences=tuple(found.differences),
    )


class _Found:
    """Differences as they come up."""

    def __init__(self, score_tolerance: float) -> None:
        self.score_tolerance = score_tolerance
        self.differences: list[Difference] = []
        self.not_compared: list[str] = []
        self.features_from: str | None = None

    def number(
        self, part: str, name: str | None, recorded: float | None, computed: float, tolerance: float
    ) -> None:
        away = float("nan") if recorded is None else abs(computed - recorded)
        if not away <= tolerance:  # NaN is away from everything
            shown = away if np.isfinite(away) else None
            self.differences.append(Difference(part, name, recorded, computed, shown, tolerance))

    def versions(self, record: AuditRecord, model: Scorer) -> None:
        pairs = [("feature_computation_version", record.feature_computation_version, model.feature_version)]
        if record.attributions is not None:
            pairs.append(("background_id", record.background_id or "", model.background_id))
        for name, recorded, computed in pairs:
            if recorded != computed:
                self.differences.append(Difference("version", name, recorded, computed))


class _Rounding:
    """The recorded features' score and attributions, and how far rounding them to float32 can have moved those."""

    def __init__(self, model: Scorer, features: pa.Table) -> None:
        variants = [features, *_half_a_step_away(model, features)]
        encoded = model.encode(pa.concat_tables(variants))
        scores = model.predict(encoded)
        why = model.explain(encoded)
        self.score: np.float32 = scores[0]
        self.score_slack = float(_FIRST_ORDER * _by_feature(scores[:, None])[0])
        self.attributions: Floats = why.attributions[0]
        self.attribution_slack = _FIRST_ORDER * _by_feature(why.attributions)
        self.base_value = why.base_value
        logits = why.base_value + why.attributions.sum(axis=1, dtype=np.float64) + why.residual
        self.residual = float(why.residual[0])
        self.logit = float(logits[0])
        self.logit_slack = float(_FIRST_ORDER * _by_feature(logits[:, None])[0])
        self.logit_tolerance = LOGIT_TOLERANCE * max(1.0, float(np.abs(self.attributions).sum()))


def _half_a_step_away(model: Scorer, features: pa.Table) -> list[pa.Table]:
    """For each numeric value the row with it moved by half a float32 step down, and the one with it moved up."""
    rows = []
    for column in model.encoder.numeric:
        value = features[column.name][0].as_py()
        if value is None or not np.isfinite(value):
            moved = [value, value]
        else:
            moved = [
                (value + float(np.nextafter(np.float32(value), np.float32(end)))) / 2
                for end in (-np.inf, np.inf)
            ]
        place = features.column_names.index(column.name)
        rows += [features.set_column(place, column.name, pa.array([one], pa.float64())) for one in moved]
    return rows


def _by_feature(results: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Largest move of each result by each feature's rounding, summed over features; `results` as `_Rounding` makes them."""
    moved = np.abs(results[1:].astype(np.float64) - results[0].astype(np.float64))
    total: npt.NDArray[np.float64] = moved.reshape(-1, 2, results.shape[1]).max(axis=1).sum(axis=0)
    return total


def _attributions(
    record: AuditRecord, model: Scorer, rounding: _Rounding, found: _Found
) -> tuple[float | None, bool | None, int]:
    """(largest difference, whether all are equal once rounded, how many were compared)."""
    if record.attributions is None or record.attribution_bits is None:
        found.not_compared.append("attributions: the prediction was not explained")
        return None, None, 0
    if (record.explainer, record.explainer_version) != (model.explainer, model.explainer_version):
        found.not_compared.append(
            f"attributions: they were made by {record.explainer} {record.explainer_version}, this release computes "
            f"{model.explainer} {model.explainer_version}"
        )
        return None, None, 0
    # A tier that keeps fewer bits than the table got what the table had rounded before.
    steps = [bits for bits in (ATTRIBUTION_BITS, record.attribution_bits) if bits >= record.attribution_bits]
    as_stored = rounding.attributions[None, :]
    for bits in steps:
        as_stored, _ = rounded(as_stored, np.zeros(1, np.float32), bits)
    dropped = sum(2.0 ** -(bits + 1) for bits in set(steps) if bits < _WHOLE_FRACTION)
    largest, equal = 0.0, True
    for place, name in enumerate(model.feature_names):
        if name not in record.attributions:
            continue  # the cold tier keeps the largest ones
        recorded, computed = record.attributions[name], float(rounding.attributions[place])
        tolerance = (
            dropped * abs(computed) + rounding.logit_tolerance + float(rounding.attribution_slack[place])
        )
        found.number("attribution", name, recorded, computed, tolerance)
        largest = max(largest, abs(computed - recorded))
        equal = equal and bool(np.float32(recorded) == as_stored[0, place])
    slack = rounding.logit_tolerance + rounding.logit_slack
    found.number("base_value", None, record.base_value, float(rounding.base_value), rounding.logit_tolerance)
    left = rounding.logit - (record.base_value or 0.0) - sum(record.attributions.values())
    found.number("residual", None, record.residual, left, slack)
    return largest, equal, len(record.attributions)


def _from_source(
    store: ObjectStore, spec: PipelineSpec, record: AuditRecord, model: Scorer, found: _Found
) -> np.float32 | None:
    """Compare the features with those of the source row; the score of the latter, None when they cannot be had."""
    rows = _partition(store, record, found)
    if rows is None or record.source_row is None:
        return None
    if not 0 <= record.source_row < rows.num_rows:
        found.differences.append(
            Difference("identity", "source_row", record.source_row, f"0 to {rows.num_rows - 1}")
        )
        return None
    row = rows.slice(record.source_row, 1)
    try:
        identity = prediction_ids(row, spec)[0]
        if identity != record.prediction_id:
            found.differences.append(Difference("identity", None, record.prediction_id, identity))
        computed = model.features(row)
    except (DataError, PipelineCodeError) as error:
        found.not_compared.append(f"features: {error.which}: {error.what}")
        return None
    found.features_from = "source row"
    differences = _other_features(record, computed)
    if differences:
        # features.py should compute each row alone. One that looks at neighbours gives what the shard gave only with them.
        try:
            among_others = model.features(rows).slice(record.source_row, 1)
        except PipelineCodeError:
            among_others = computed
        fewer = _other_features(record, among_others)
        if len(fewer) < len(differences):
            computed, differences = among_others, fewer
            found.features_from = "source partition"
            if fewer:
                found.not_compared.append(
                    "features: features.py computes this row from its neighbours, and the shard that scored it saw "
                    "others than the whole partition"
                )
    found.differences += differences
    score: np.float32 = model.predict(model.encode(computed))[0]
    return score


def _partition(store: ObjectStore, record: AuditRecord, found: _Found) -> pa.Table | None:
    if record.source_snapshot is None:
        found.not_compared.append(
            "features: the prediction was made online, no snapshot holds its source row"
        )
        return None
    try:
        snapshot = load_snapshot(store, record.source_snapshot)
        named = [partition for partition in snapshot.partitions if partition.key == record.source_key]
        if not named:
            found.not_compared.append(
                f"features: snapshot {record.source_snapshot} has no partition {record.source_key}"
            )
            return None
        return read_partition(store, named[0])
    except (NotFound, DataError) as error:
        found.not_compared.append(f"features: {error.which}: {error.what}")
        return None


def _other_features(record: AuditRecord, computed: pa.Table) -> list[Difference]:
    found = []
    for name, recorded in record.features.items():
        value = computed[name][0].as_py()
        if isinstance(value, float):
            value = None if np.isnan(value) else float(np.float32(value))
        if value != recorded:
            away = abs(value - recorded) if isinstance(value, float) and isinstance(recorded, float) else None
            found.append(Difference("feature", name, recorded, value, away, 0.0))
    return found
