"""Steps of `<pipeline>.train`: snapshot, validate, train, evaluate, gate."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from tasks.core import Finding, Settings, Verdict, utc_now
from tasks.core.errors import DataError, GateFailed, NotFound
from tasks.core.partitions import read_partition
from tasks.core.records import Snapshot
from tasks.core.spec import pipeline_folder
from tasks.wiring.budget import release_budget, reserve_budget
from tasks.wiring.context import Context, days_without_rows, in_short, open_context, parse_day, window
from tasks.wiring.gang import gang
from tasks.wiring.waivers import waived_verdict

_TRIED_ROWS = 1_000


def snapshot_training(
    settings: Settings,
    pipeline: str,
    *,
    train_first_day: str | None = None,
    train_last_day: str | None = None,
    validation_first_day: str | None = None,
    validation_last_day: str | None = None,
    causes: list[str] | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Freeze the training and validation windows, by default those of pipeline.yaml, into one snapshot.

    `causes` says why the run was started; it is kept on its page.

    Raises:
        ConfigError: pipeline.yaml names a suite that is not there.
        PipelineCodeError: features.py returns other columns than pipeline.yaml lists. Both would show only steps later.
    """
    from tasks.data import take_snapshot
    from tasks.validation import require_suite
    from tasks.wiring.triggers import note_start

    context = open_context(settings, pipeline)
    defaults = split_windows(context)
    asked = (train_first_day, train_last_day, validation_first_day, validation_last_day)
    names = ("train_first_day", "train_last_day", "validation_first_day", "validation_last_day")
    first, train_last, validation_first, last = (
        parse_day(text, name) or default for text, name, default in zip(asked, names, defaults, strict=True)
    )
    window(first, train_last)
    window(validation_first, last)
    if validation_first <= train_last:
        raise DataError(
            f"{validation_first} is not after the last training day {train_last}",
            which="validation_first_day",
            fix="choose windows that do not overlap: a model must not be judged on days it has seen",
        )
    require_suite(settings, context.spec)
    snapshot = take_snapshot(settings, context.spec, kind="training", window=window(first, last))
    features_raise = try_features(context, snapshot)
    result = {
        "snapshot_id": snapshot.snapshot_id,
        "rows": snapshot.rows,
        "days": len(snapshot.days),
        "days_without_rows": days_without_rows(first, last, snapshot.days),
        "features_raise": features_raise,
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "validation_first_day": validation_first.isoformat(),
        "url": context.store.url(f"snapshots/{snapshot.snapshot_id}.json"),
    }
    if causes:
        context.evidence(dag_run, "started by", {"causes": causes})
    note_start(context, dag_run=dag_run, own_days=any(asked))
    context.evidence(dag_run, "snapshot", result)
    return result


def try_features(context: Context, snapshot: Snapshot) -> str:
    """Try features.py and null conditions on the first rows of a training snapshot; returns what features.py raised on them, or nothing.

    Raises:
        PipelineCodeError: features.py has other names than those listed.
        ConfigError: `drift.null_when` asks what these rows cannot answer.
    """
    from tasks.model import FeatureCode
    from tasks.model.null_conditions import check_null_conditions

    spec = context.spec
    rows = read_partition(context.store, snapshot.partitions[0]).slice(0, _TRIED_ROWS)
    known_then = [name for name in rows.column_names if name not in spec.label.known_afterwards]
    code = FeatureCode.from_file(pipeline_folder(context.settings, spec.name) / "features.py")
    raised = code.error_on(rows.select(known_then), spec.features)
    check_null_conditions(spec, rows.select(known_then))
    return raised


def show_snapshot(settings: Settings, pipeline: str, *, snapshot_id: str) -> dict[str, Any]:
    """A snapshot's identity and its partitions, one line each."""
    snapshot = open_context(settings, pipeline).snapshot(snapshot_id)
    return {
        "snapshot_id": snapshot.snapshot_id,
        "kind": snapshot.kind,
        "rows": snapshot.rows,
        "cleaned_from": snapshot.parent_snapshot_id,
        "created_at_utc": snapshot.created_at_utc,
        "columns": [f"{name}: {kind}" for name, kind in snapshot.schema],
        "partitions": [
            f"{part.day}  {part.rows:,} rows  {part.size_bytes:,} bytes  sha256 {part.sha256[:16]}"
            for part in snapshot.partitions
        ],
    }


def validate_snapshot(
    settings: Settings, pipeline: str, *, snapshot_id: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Judge a snapshot by its suite; returns the clean snapshot, without the quarantined rows.

    Raises:
        DataGateFailed: A critical expectation failed, or the validation cannot be trusted.
    """
    from tasks.validation import require, validate

    context = open_context(settings, pipeline)
    result = validate(settings, context.spec, context.snapshot(snapshot_id))
    verdict = result.verdict
    context.metadata.record_verdict(context.spec, verdict, dag_run=dag_run)
    summary = {
        "snapshot_id": result.clean_snapshot_id,
        "rows": result.rows - result.quarantined_rows,
        "quarantined_rows": result.quarantined_rows,
        "quarantine_key": result.quarantine_key,
        "outcome": verdict.outcome,
        "findings": len(verdict.findings),
        "report_key": verdict.report_key,
        "report_url": context.report_url(verdict.report_key),
    }
    context.evidence(dag_run, "data gate", {**summary, **in_short(verdict)})
    require(result)
    return summary


def train_model(
    settings: Settings,
    pipeline: str,
    *,
    snapshot_id: str,
    validation_first_day: str,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Train on the days before `validation_first_day`; the same inputs are trained once.

    On a shared cluster it waits until all of its workers are free for it.
    """
    from tasks.training import train

    context = open_context(settings, pipeline)
    warning = reserve_budget(context, "training", snapshot_id)
    snapshot = context.snapshot(snapshot_id)
    size = sum(part.size_bytes for part in snapshot.partitions)
    trained = train(
        settings,
        context.spec,
        snapshot,
        validation_first_day=_required_day(validation_first_day, "validation_first_day"),
        workers=partial(gang, context, bytes_read=size),
    ).to_json()
    is_new = context.metadata.record_training(context.spec, trained, dag_run=dag_run)
    release_budget(context, "training", snapshot_id)
    found = (
        {}
        if is_new
        else {"note": f"training {trained['training_id']} had the same inputs: nothing was trained"}
    )
    if warning:
        found["budget"] = warning
    context.evidence(dag_run, "training", {**found, **trained})
    return trained


def evaluate_model(
    settings: Settings,
    pipeline: str,
    *,
    snapshot_id: str,
    bundle_digest: str,
    validation_first_day: str,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Measure a model on the validation days against the champion, logistic regression and a constant."""
    from tasks.evaluation import evaluate
    from tasks.registry import champion

    context = open_context(settings, pipeline)
    live = champion(settings, context.spec)
    evaluation = evaluate(
        settings,
        context.spec,
        context.snapshot(snapshot_id),
        candidate_digest=bundle_digest,
        champion_digest=live.bundle_digest if live and live.bundle_digest != bundle_digest else None,
        validation_first_day=_required_day(validation_first_day, "validation_first_day"),
    )
    metrics = {name: interval.value for name, interval in evaluation.models["candidate"].items()}
    for model in ("baseline", "champion"):
        metrics |= {f"{model}_{name}": item.value for name, item in evaluation.models.get(model, {}).items()}
    result = {
        "evaluation_key": evaluation.evidence_key,
        "report_key": evaluation.report_key,
        "report_url": context.report_url(evaluation.report_key),
        "rows": evaluation.rows,
        "validation_days": evaluation.validation_days,
        "metrics": metrics,
    }
    context.evidence(dag_run, "evaluation", result)
    return result


def gate_model(
    settings: Settings, pipeline: str, *, evaluation_key: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Judge an evaluation and keep the verdict.

    Raises:
        GateFailed: The model is refused or the evidence does not suffice; the champion stays as it is.
    """
    context = open_context(settings, pipeline)
    verdict = evaluation_verdict(context, evaluation_key)
    context.metadata.record_verdict(context.spec, verdict, dag_run=dag_run)
    url = context.report_url(verdict.report_key)
    context.evidence(
        dag_run,
        "evaluation gate",
        {"outcome": verdict.outcome, **in_short(verdict), "report_url": url},
    )
    if not verdict.passed:
        reasons = "\n  ".join(verdict.reasons())
        raise GateFailed(
            f"the evaluation gate says {verdict.outcome}; the champion stays:\n  {reasons}",
            which=f"{pipeline}, model {verdict.subject[:16]}",
            fix=f"read the evaluation report {url}; then improve the model, change gates in pipeline.yaml "
            f"in a reviewed commit, or waive a finding (penstock evaluation waive {pipeline}) and run this step again",
        )
    return {**verdict.to_json(), "reasons": verdict.reasons()}


def evaluation_verdict(context: Context, evaluation_key: str) -> Verdict:
    """The verdict on a kept evaluation: a pure function of its evidence, the data gate's word and the pipeline's gates.

    It carries the evidence's time, so that judging again is the same verdict and not one more. Only the age of the
    data (`gates.max_staleness_days`) is counted to today, and waivers as they stand now: judged after one, it is a new verdict.
    """
    from tasks.evaluation import judge, load_evaluation

    try:
        evaluation = load_evaluation(context.store, evaluation_key)
    except NotFound as error:
        raise NotFound(
            "is not a kept evaluation",
            which=f"{context.spec.name} {evaluation_key}",
            fix="pass the evaluation_key that the evaluate step printed, or evaluate the model first",
        ) from error
    verdict = judge(
        context.spec,
        evaluation,
        clock=lambda: datetime.fromisoformat(evaluation.created_at_utc),
        as_of=utc_now().date(),  # evidence is kept, but the data behind it grows old
        further=(_data_gate(context, evaluation.snapshot_id),),
    )
    return waived_verdict(context, verdict)


def _data_gate(context: Context, snapshot_id: str) -> Finding:
    """Whether the data gate has let the snapshot through on which the model was trained and judged."""
    judged = context.snapshot(snapshot_id).parent_snapshot_id or snapshot_id
    known = context.metadata.verdicts(context.spec, subject=judged, gate="data")
    passed = next((item.verdict for item in known if item.verdict.passed), None)
    if passed is not None:
        detail = f"snapshot {judged} passed on {passed.decided_at_utc[:10]}"
        return Finding("data gate", "pass", f"{detail}; {len(passed.findings)} findings")
    why = f"the data gate says {known[0].verdict.outcome}" if known else "the data gate has not seen it"
    return Finding(
        "data gate",
        "fail",
        f"snapshot {judged}: {why}; run `penstock validation run {context.spec.name} {judged}`, and train and "
        "evaluate on the snapshot that it prints",
    )


def _required_day(text: str, name: str) -> date:
    day = parse_day(text, name)
    if day is None:
        raise NotFound("is missing", which=name, fix="pass it as YYYY-MM-DD")
    return day


def split_windows(context: Context) -> tuple[date, date, date, date]:
    """First and last training day, first and last validation day, as pipeline.yaml says."""
    split = context.spec.split
    if split.train and split.validation:
        return (
            split.train.first_day,
            split.train.last_day,
            split.validation.first_day,
            split.validation.last_day,
        )
    from tasks.data import source_days

    days = source_days(context.settings, context.spec)
    if not days:
        raise DataError(
            "has no days", which=f"source {context.spec.source.uri}", fix="check the source in pipeline.yaml"
        )
    assert split.train_days and split.validation_days
    last = days[-1]
    validation_first = last - timedelta(days=split.validation_days - 1)
    train_last = validation_first - timedelta(days=1)
    return train_last - timedelta(days=split.train_days - 1), train_last, validation_first, last
