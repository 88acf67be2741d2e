"""Measure a candidate on the validation days, beside the champion and a logistic regression."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core import (
    Clock,
    ObjectStore,
    PartitionFile,
    PenstockError,
    PipelineSpec,
    Settings,
    Snapshot,
    iso_utc,
    open_store,
    utc_now,
)
from tasks.core.errors import DataError
from tasks.core.ids import canonical_json, digest_json
from tasks.core.object_store import AlreadyExists
from tasks.core.partitions import read_partition
from tasks.evaluation import behaviour, distribution, leakage, resampling
from tasks.evaluation.baseline import Baseline
from tasks.evaluation.check_records import ModelChecks
from tasks.evaluation.folder_tests import tests_digest
from tasks.evaluation.leakage import SingleFeatures
from tasks.evaluation.model_checks import check_model
from tasks.evaluation.records import (
    BehaviourCheck,
    Evaluation,
    FeatureTimes,
    Interval,
    Latency,
    SliceMetrics,
)
from tasks.evaluation.scoring import ScoredDays, inputs_of, labels_of, load_scorer
from tasks.evaluation.slices import slice_column, slice_values
from tasks.model import metrics
from tasks.model.metrics import FloatArray

if TYPE_CHECKING:
    from tasks.model import Scorer

log = logging.getLogger(__name__)

FORMAT = 3
"""Raised when the evidence changes for equal inputs, so that older evidence is not taken for it."""
CANDIDATE, CHAMPION, BASELINE, CONSTANT = "candidate", "champion", "baseline", "constant"
DIFFERENCE = f"{CANDIDATE}-{CHAMPION}"


def evaluate(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    *,
    candidate_digest: str,
    champion_digest: str | None,
    validation_first_day: date,
    clock: Clock = utc_now,
    check: Callable[..., ModelChecks] = check_model,
) -> Evaluation:
    """Measure a candidate and keep the evidence; equal inputs are evaluated once.

    Writes `evidence.json`, `report.html` and `scores.parquet` under
    `evaluation/<candidate>-<snapshot>/<inputs>/` of the pipeline's store; the evidence goes last, by exclusive
    create, so evidence that can be read is whole and is never replaced.

    Args:
        settings: This installation.
        spec: The pipeline; its gates decide intervals and slices.
        snapshot: Training-kind snapshot with train and validation days.
        candidate_digest: Bundle to judge.
        champion_digest: Bundle that is live now, if any.
        validation_first_day: Days from here on are validation, days before fit the baseline.
        clock: Stamps the evidence.
        check: `check_model`, or a function of its signature.

    Raises:
        DataError: No validation or train days, no labels, or labels of one class.
        ConfigError: `gates.slices` names an unknown column.
        NotFound, DigestMismatch, PipelineCodeError: The candidate cannot be loaded or cannot score.
    """
    store = open_store(settings, prefix=spec.prefix)
    inputs = digest_json(
        [
            FORMAT,
            candidate_digest,
            champion_digest,
            snapshot.snapshot_id,
            validation_first_day,
            spec.label.model_dump(),
            spec.gates.model_dump(),
            tests_digest(settings, spec),
        ]
    )
    folder = f"evaluation/{candidate_digest[:16]}-{snapshot.snapshot_id}/{inputs[:12]}"
    key = f"{folder}/evidence.json"
    if store.exists(key):
        log.info("evaluation: these inputs were evaluated before, evidence %s", store.url(key))
        return load_evaluation(store, key)

    train = [part for part in snapshot.partitions if part.day < validation_first_day]
    validation = [part for part in snapshot.partitions if part.day >= validation_first_day]
    _require_days(snapshot, train, validation, validation_first_day)
    candidate = load_scorer(settings, spec, candidate_digest)
    champion, champion_error = _champion(settings, spec, candidate, champion_digest)
    fitted = _fit(store, spec, candidate, train)
    scored, champion_error, times = _score(
        store, spec, validation, candidate, champion, fitted, champion_error
    )
    _require_classes(scored, spec, snapshot)
    checks, latency = _behave(store, spec, candidate, validation, scored)
    evaluation = replace(
        measure(spec, scored, checks=checks, latency=latency),
        snapshot_id=snapshot.snapshot_id,
        candidate_digest=candidate_digest,
        champion_digest=champion_digest,
        champion_error=champion_error,
        feature_version=candidate.feature_version,
        train_first_day=train[0].day,
        train_last_day=train[-1].day,
        train_rows=fitted.rows,
        feature_times=leakage.add_times([*fitted.times, *times]),
        model_checks=check(settings, spec, snapshot, candidate, champion),
        inputs_digest=inputs,
        created_at_utc=iso_utc(clock()),
        evidence_key=key,
        report_key=f"{folder}/report.html",
    )
    return _keep(store, spec, evaluation, scored, folder)


def load_evaluation(store: ObjectStore, key: str) -> Evaluation:
    """The evidence at `key` of a pipeline's store. Raises `NotFound`."""
    return Evaluation.from_json(json.loads(store.get(key)))


def measure(
    spec: PipelineSpec,
    scored: ScoredDays,
    *,
    checks: tuple[BehaviourCheck, ...],
    latency: tuple[Latency, ...] = (),
) -> Evaluation:
    """Every metric, difference and slice of scored rows; no I/O. Identities and keys are left blank."""
    if not np.isfinite(scored.scores[CANDIDATE]).all():
        return _unmeasurable(measure(spec, _finite(scored), checks=checks, latency=latency))
    gates = spec.gates
    days = len(scored.days)
    weights = resampling.draw_days(days, gates.bootstrap_samples)
    estimates = {
        name: resampling.measure(scored.labels, scores, scored.day, weights)
        for name, scores in scored.scores.items()
    }
    candidate = estimates[CANDIDATE]
    differences = {
        f"{CANDIDATE}-{other}": {
            metric: resampling.interval(estimate - estimates[other][metric], days, gates.confidence)
            for metric, estimate in candidate.items()
        }
        for other in (CHAMPION, BASELINE)
        if other in estimates
    }
    scores = scored.scores[CANDIDATE]
    plugin = metrics.ece(scored.labels, scores)
    return Evaluation(
        pipeline=spec.name,
        snapshot_id="",
        candidate_digest="",
        champion_digest=None,
        feature_version="",
        train_first_day=None,
        train_last_day=None,
        train_rows=0,
        validation_first_day=scored.days[0],
        validation_last_day=scored.days[-1],
        validation_days=days,
        rows=len(scored.labels),
        unlabelled_rows=scored.unlabelled_rows,
        positives=int(scored.labels.sum()),
        confidence=gates.confidence,
        bootstrap_samples=gates.bootstrap_samples,
        bootstrap_seed=resampling.SEED,
        models={
            name: {
                metric: resampling.interval(estimate, days, gates.confidence)
                for metric, estimate in found.items()
            }
            for name, found in estimates.items()
        },
        differences=differences,
        slices=_measure_slices(spec, scored, weights),
        calibration=resampling.calibration_bins(scored.labels, scores, scored.day, weights, gates.confidence),
        checks=checks,
        latency=latency,
        ece_plugin=plugin if np.isfinite(plugin) else None,
        single_features=leakage.measure_alone(
            scored.labels, scored.alone, scored.day, weights, gates.confidence
        ),
        shape=distribution.measure_shape(
            scored.labels, scores, scored.scores.get(CHAMPION), scored.day, weights, gates.confidence
        ),
        inputs_digest="",
        created_at_utc="",
    )


def _finite(scored: ScoredDays) -> ScoredDays:
    """The same rows with 0.5 wherever the candidate predicts nothing finite: only for drawing."""
    candidate = scored.scores[CANDIDATE]
    drawn = np.where(np.isfinite(candidate), candidate, 0.5)
    return replace(scored, scores={**scored.scores, CANDIDATE: drawn})


def _unmeasurable(evaluation: Evaluation) -> Evaluation:
    """The evidence on a candidate with predictions that are not finite: no metric of it is defined."""
    undefined = dict.fromkeys(evaluation.models[CANDIDATE], Interval(None))
    return replace(
        evaluation,
        models={**evaluation.models, CANDIDATE: undefined},
        differences=dict.fromkeys(evaluation.differences, undefined),
        slices=(),
        calibration=(),
        ece_plugin=None,
        shape=None,
    )


def _measure_slices(spec: PipelineSpec, scored: ScoredDays, weights: FloatArray) -> tuple[SliceMetrics, ...]:
    confidence = spec.gates.confidence
    found = []
    for column, values in scored.slices.items():
        for value in sorted(set(values)):
            inside = values == value
            labels, day = scored.labels[inside], scored.day[inside]
            days = len(np.unique(day))

            estimates = {
                name: resampling.auc_estimate(labels, scored.scores[name][inside], day, weights)
                for name in (CANDIDATE, CHAMPION, BASELINE)
                if name in scored.scores
            }
            if CHAMPION in estimates:
                estimates[DIFFERENCE] = estimates[CANDIDATE] - estimates[CHAMPION]
            bounds = {name: resampling.interval(one, days, confidence) for name, one in estimates.items()}
            gap = resampling.mean_estimate(scored.scores[CANDIDATE][inside] - labels, day, weights)
            found.append(
                SliceMetrics(
                    column=column,
                    value=str(value),
                    rows=int(inside.sum()),
                    days=days,
                    positives=int(labels.sum()),
                    auc=bounds[CANDIDATE],
                    calibration_gap=resampling.interval(gap, days, confidence),
                    champion_auc=bounds.get(CHAMPION),
                    baseline_auc=bounds.get(BASELINE),
                    champion_difference=bounds.get(DIFFERENCE),
                )
            )
    return tuple(found)


def _require_days(
    snapshot: Snapshot,
    train: Sequence[PartitionFile],
    validation: Sequence[PartitionFile],
    validation_first_day: date,
) -> None:
    which = f"snapshot {snapshot.snapshot_id} ({snapshot.kind})"
    if snapshot.kind != "training":
        raise DataError("holds no labels", which=which, fix="evaluate on a snapshot of kind training")
    for part, name in ((train, "train"), (validation, "validation")):
        if not part:
            raise DataError(
                f"has no {name} day: validation starts {validation_first_day}",
                which=which,
                fix="correct the windows under split: in pipeline.yaml",
            )


def _require_classes(scored: ScoredDays, spec: PipelineSpec, snapshot: Snapshot) -> None:
    rows, positives = len(scored.labels), int(scored.labels.sum())
    if 0 < positives < rows:
        return
    found = f"all {rows:,} labels are {scored.labels[0]}" if rows else "no row has a label"
    raise DataError(
        f"{found} on the validation days {scored.days[0]} to {scored.days[-1]}",
        which=f"label column {spec.label.column} of snapshot {snapshot.snapshot_id}",
        fix="choose validation days with both outcomes, or correct label.column",
    )


def _champion(
    settings: Settings, spec: PipelineSpec, candidate: Scorer, digest: str | None
) -> tuple[Scorer | None, str | None]:
    """The champion's scorer, or why there is none: a broken champion must not stop its replacement's evaluation."""
    if digest is None:
        return None, None
    if digest == candidate.digest:
        return candidate, None
    try:
        return load_scorer(settings, spec, digest), None
    except PenstockError as error:
        log.warning("evaluation: the champion %s cannot be loaded: %s", digest[:16], error)
        return None, f"{error.which}: {error.what}"


@dataclass(frozen=True)
class _Fitted:
    """What is fitted on the train days."""

    baseline: Baseline
    alone: SingleFeatures
    rows: int
    label_rate: float
    times: list[tuple[FeatureTimes, ...]]


def _fit(
    store: ObjectStore, spec: PipelineSpec, candidate: Scorer, train: Sequence[PartitionFile]
) -> _Fitted:
    matrices, labels, times = [], [], []
    for partition in train:
        rows = read_partition(store, partition)
        found, known = labels_of(rows, spec)
        inputs = inputs_of(rows, spec)
        features = candidate.features(inputs)
        times.append(leakage.times_of(rows, features, spec))
        matrices.append(candidate.encode(features)[known])
        labels.append(found[known])
    encoded, target = np.concatenate(matrices), np.concatenate(labels)
    if not 0 < int(target.sum()) < len(target):
        raise DataError(
            f"has one class in all {len(target):,} labelled rows of the train days",
            which=f"label column {spec.label.column}",
            fix="choose train days with both outcomes, or correct label.column",
        )
    baseline = Baseline.fit(encoded, target, candidate.encoder.cardinalities)
    log.info("evaluation: logistic regression fitted on %s rows of %s days", f"{len(target):,}", len(train))
    alone = SingleFeatures.fit(encoded, target, candidate.encoder)
    return _Fitted(baseline, alone, len(target), float(target.mean()), times)


def _score(
    store: ObjectStore,
    spec: PipelineSpec,
    validation: Sequence[PartitionFile],
    candidate: Scorer,
    champion: Scorer | None,
    fitted: _Fitted,
    champion_error: str | None,
) -> tuple[ScoredDays, str | None, list[tuple[FeatureTimes, ...]]]:
    """Labelled rows of the validation days, scored by every model; why the champion failed if it did; feature times."""
    names = list(dict.fromkeys(spec.gates.slices))
    scores: dict[str, list[FloatArray]] = {CANDIDATE: [], CHAMPION: [], BASELINE: []}
    slices: dict[str, list[pa.Array]] = {name: [] for name in names}
    days: list[date] = []
    day_index, labels, unlabelled = [], [], 0
    alone: dict[str, list[FloatArray]] = {}
    times: list[tuple[FeatureTimes, ...]] = []
    for partition in validation:
        rows = read_partition(store, partition)
        found, known = labels_of(rows, spec)
        unlabelled += int((~known).sum())
        if not known.any():
            log.info("evaluation: %s has no labelled row", partition.day)
            continue
        inputs = inputs_of(rows, spec)
        features = candidate.features(inputs)
        encoded = candidate.encode(features)
        scores[CANDIDATE].append(candidate.predict(encoded).astype(np.float64)[known])
        scores[BASELINE].append(fitted.baseline.predict(encoded[known]))
        for name, values in fitted.alone.scores(encoded[known]).items():
            alone.setdefault(name, []).append(values)
        times.append(leakage.times_of(rows, features, spec))
        if champion is not None and champion_error is None:
            try:
                theirs = champion.predict(champion.encode(champion.features(inputs)))
                if not np.isfinite(theirs[known]).all():
                    raise DataError(
                        "predicts values that are not finite", which=f"champion {champion.digest}"
                    )
                scores[CHAMPION].append(theirs.astype(np.float64)[known])
            except PenstockError as error:
                champion_error = f"{error.which}: {error.what}"
                log.warning("evaluation: the champion cannot score %s: %s", partition.day, error)
        mask = pa.array(known)
        for name in names:
            slices[name].append(slice_column(name, rows, features, partition.day, spec).filter(mask))
        labels.append(found[known])
        day_index.append(np.full(int(known.sum()), len(days)))
        days.append(partition.day)
    if not days:
        raise DataError(
            f"no row has a label on the validation days {validation[0].day} to {validation[-1].day}",
            which=f"label column {spec.label.column}",
            fix="choose validation days whose labels are known",
        )
    keep_champion = champion is not None and champion_error is None
    joined = {
        name: np.concatenate(parts) for name, parts in scores.items() if name != CHAMPION or keep_champion
    }
    joined[CONSTANT] = np.full(len(joined[CANDIDATE]), fitted.label_rate)
    log.info(
        "evaluation: scored %s labelled rows of %s validation days with %s",
        f"{len(joined[CANDIDATE]):,}", len(days), ", ".join(joined),
    )  # fmt: skip
    return (
        ScoredDays(
            days=tuple(days),
            day=np.concatenate(day_index),
            labels=np.concatenate(labels),
            scores=joined,
            slices={name: slice_values(parts) for name, parts in slices.items()},
            unlabelled_rows=unlabelled,
            alone={name: np.concatenate(parts) for name, parts in alone.items()},
        ),
        champion_error,
        times,
    )


def _behave(
    store: ObjectStore,
    spec: PipelineSpec,
    candidate: Scorer,
    validation: Sequence[PartitionFile],
    scored: ScoredDays,
) -> tuple[tuple[BehaviourCheck, ...], tuple[Latency, ...]]:
    rows = read_partition(store, max(validation, key=lambda part: part.rows))
    checks = (*behaviour.sanity(scored.scores[CANDIDATE]), *behaviour.probe(candidate, rows, spec))
    for check in checks:
        log.info(
            "evaluation: behaviour %s %s: %s", "ok" if check.passed else "FAIL", check.name, check.detail
        )
    return checks, behaviour.latency(candidate, rows, spec)


def _keep(
    store: ObjectStore, spec: PipelineSpec, evaluation: Evaluation, scored: ScoredDays, folder: str
) -> Evaluation:
    from tasks.evaluation.gate import judge
    from tasks.evaluation.report import render_evaluation

    assert evaluation.evidence_key and evaluation.report_key
    store.put(
        f"{folder}/scores.parquet", _scores_parquet(scored.days, scored.day, scored.labels, scored.scores)
    )
    verdict = judge(spec, evaluation)
    store.put(evaluation.report_key, render_evaluation(spec, evaluation, verdict, _finite(scored)).encode())
    try:
        store.put_exclusive(evaluation.evidence_key, canonical_json(evaluation.to_json()))
    except AlreadyExists:  # the same inputs were evaluated at the same time: the first evidence stands
        return load_evaluation(store, evaluation.evidence_key)
    auc = evaluation.models[CANDIDATE]["auc"]
    log.info(
        "evaluation: AUC %s, verdict %s, report %s",
        auc.text,
        verdict.outcome,
        store.url(evaluation.report_key),
    )
    return evaluation


def _scores_parquet(
    days: Sequence[date],
    day: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int8],
    scores: Mapping[str, FloatArray],
) -> bytes:
    """Day, label and each model's probability of every labelled validation row, in snapshot order."""
    columns = {
        "day": pa.array(days, pa.date32()).take(pa.array(day)),
        "label": pa.array(labels, pa.int8()),
        **{name: pa.array(values, pa.float32()) for name, values in scores.items()},
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
