"""Steps of `<pipeline>.score`: snapshot, plan, score on Ray, publish, verify; and upkeep of the tables."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import Settings
from tasks.core.clock import iso_utc
from tasks.core.day_span import every_day
from tasks.core.errors import DataError, NoRows, ServiceUnavailable, TerminalError
from tasks.wiring.admission import admission
from tasks.wiring.audit_online import fold_for_upkeep
from tasks.wiring.budget import release_budget, reserve_budget
from tasks.wiring.context import Context, days_without_rows, listed_days, open_context, parse_day, window
from tasks.wiring.mitigation import refuse_held
from tasks.wiring.storage import look_at_storage

if TYPE_CHECKING:
    from tasks.core.spec import Window
    from tasks.inference import Exposed
    from tasks.registry import Deployment

_VACUUM_AGE = timedelta(days=7)
AUDIT_TABLE = "tasks.audit:audit_table"
"""What the shard worker calls to build audit rows; by name, since it runs in another process."""


def snapshot_scoring(
    settings: Settings,
    pipeline: str,
    *,
    first_day: str | None = None,
    last_day: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Freeze the days to score; without days, the oldest that are not published yet and have a row.

    Days before the first champion's evaluation ended are never chosen by themselves: they were trained on.
    """
    from tasks.data import take_snapshot
    from tasks.validation import require_suite

    context = open_context(settings, pipeline)
    context.require_champion()
    first, last = parse_day(first_day, "first_day"), parse_day(last_day, "last_day")
    asked = first or last
    windows = [window(asked, last or asked)] if asked else _unpublished_windows(context)
    if windows:
        require_suite(settings, context.spec)
    empty: list[date] = []
    for chosen in windows:
        try:
            snapshot = take_snapshot(settings, context.spec, kind="scoring", window=chosen)
        except NoRows:
            empty += every_day(chosen.first_day, chosen.last_day)
            # That nothing new came has to be known; a hole among days that are published must not keep newer ones from being scored.
            if asked or (chosen is windows[-1] and empty[-1] > max(_published(context), default=date.min)):
                raise
        else:
            break
    else:
        reason = "every day of the source is published"
        if empty:
            reason += f", without those that have no row ({listed_days(empty)})"
        nothing: dict[str, Any] = {"nothing_to_do": True, "reason": reason}
        context.evidence(dag_run, "snapshot", nothing)
        return nothing
    result: dict[str, Any] = {
        "snapshot_id": snapshot.snapshot_id,
        "rows": snapshot.rows,
        "days": len(snapshot.days),
        "days_without_rows": days_without_rows(chosen.first_day, chosen.last_day, snapshot.days, empty),
        "first_day": snapshot.days[0].isoformat(),
        "last_day": snapshot.days[-1].isoformat(),
        "nothing_to_do": False,
    }
    context.evidence(dag_run, "snapshot", result)
    return result


def plan_scoring(
    settings: Settings,
    pipeline: str,
    *,
    snapshot_id: str,
    expose: bool = True,
    despite_hold: bool = False,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Pin the champion, and an exposed challenger, and cut the snapshot into shards; equal work is the same run (I1).

    With `expose` false all rows are the champion's, whatever is exposed; `despite_hold` plans rows that are published already.
    `takes_back_from` names the runs that have superseded this one since it was published, as when days come again as they had been
    before a bad delivery: given to `publish_run`, it takes its days back from them.

    Raises:
        TerminalError: A data fault holds the pipeline, and these are not its days; or its tenant's budget does not suffice.
        TransientError: What the tenant has under way may need the rest of its budget.
    """
    from tasks.inference import plan, superseding_runs

    context = open_context(settings, pipeline)
    warning = ""
    if not despite_hold:
        snapshot = context.snapshot(snapshot_id)
        refuse_held(context, "scoring", snapshot.days)
        warning = reserve_budget(context, "scoring", snapshot_id, rows=snapshot.rows)
    live, beside = _pinned(context)
    exposed = beside if expose else None
    planned = plan(
        settings,
        context.spec,
        context.snapshot(snapshot_id),
        model_version=live.version,
        bundle_digest=live.bundle_digest,
        feature_version=live.feature_version,
        exposed=exposed,
    )
    context.metadata.record_run(
        context.spec,
        planned.run_id,
        status="planned",
        snapshot_id=snapshot_id,
        model_version=live.version,
        bundle_digest=live.bundle_digest,
        feature_version=live.feature_version,
        exposed_version=exposed.model_version if exposed else None,
        first_day=planned.days[0],
        last_day=planned.days[-1],
        rows=planned.rows,
        shards=len(planned.shards),
        dag_run=dag_run,
    )
    result = {
        "run_id": planned.run_id,
        "shards": len(planned.shards),
        "rows": planned.rows,
        "first_day": planned.days[0].isoformat(),
        "last_day": planned.days[-1].isoformat(),
        "model_version": live.version,
        "takes_back_from": list(superseding_runs(settings, context.spec, planned.run_id)),
    }
    if warning:
        result["budget"] = warning
    if exposed:
        result |= {"exposed_version": exposed.model_version, "exposed_share": exposed.share}
    context.evidence(dag_run, "plan", result)
    return result


def score_run(
    settings: Settings, pipeline: str, *, run_id: str, local: bool = False, dag_run: str | None = None
) -> dict[str, Any]:
    """Score what is not committed yet, on Ray or in this process; shards committed before are skipped."""
    from tasks.inference import run_plan, status

    context = open_context(settings, pipeline)
    width = admission(context, run_id, local=local)
    report = run_plan(settings, context.spec, run_id, local=local, audit_table=AUDIT_TABLE, width=width)
    whole = status(
        settings, context.spec, run_id
    )  # of all attempts: a resumed run has cost more than this call
    recorded = context.metadata.record_run(
        context.spec,
        run_id,
        status="scored",
        dead_letters=whole.dead_letters,
        cpu_seconds=whole.cpu_seconds,
        gpu_seconds=whole.gpu_seconds,
        wall_s=report.wall_s if report.shards_committed else None,
        record={"exposed": whole.exposed.to_json()} if whole.exposed else None,
        dag_run=dag_run,
    )
    release_budget(context, "scoring", recorded.snapshot_id)
    result = report.to_json()
    if whole.exposed:
        result |= {
            "exposed_version": whole.exposed.model_version,
            "exposed_rows": whole.exposed.rows,
            "exposed_errors": whole.exposed.errors,
        }
    context.evidence(dag_run, "scoring", result)
    return result


def publish_run(
    settings: Settings,
    pipeline: str,
    *,
    run_id: str,
    replace_newer: bool = False,
    take_back_from: Sequence[str] | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Add a finished run to the predictions table in one transaction (I3); a repeat changes nothing.

    With `replace_newer` the run takes its days back from all runs that were planned later, with `take_back_from` from these. Where it
    was published before and stays so, `superseded_by` names who holds days of it now.

    Raises:
        TerminalError: The run's model version was barred since it was planned, and it is not published yet.
    """
    from tasks.inference import publish, superseding_runs

    context = open_context(settings, pipeline)
    _refuse_barred(context, run_id)
    published = publish(
        settings, context.spec, run_id, replace_newer=replace_newer, take_back_from=take_back_from or ()
    )
    record = published.to_json()
    context.metadata.record_publication(
        context.spec,
        run_id,
        table_version=published.table_version,
        rows=published.rows,
        files=published.files,
        days=published.days,
        record=record,
    )
    context.metadata.record_run(context.spec, run_id, status="published", dag_run=dag_run)
    result = {
        **{key: value for key, value in record.items() if key != "days"},
        "first_day": published.days[0].isoformat(),
        "last_day": published.days[-1].isoformat(),
        "table": context.store.url("tables/predictions"),
    }
    if published.already_published and (others := superseding_runs(settings, context.spec, run_id)):
        result["superseded_by"] = list(others)
    context.evidence(dag_run, "publication", result)
    return result


def verify_run(
    settings: Settings, pipeline: str, *, run_id: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Check a published run: counts, digests, uniqueness, plan against table.

    Raises:
        DataError: Something is wrong; every problem is listed.
    """
    from tasks.inference import verify

    context = open_context(settings, pipeline)
    verification = verify(settings, context.spec, run_id)
    result = verification.to_json()
    context.evidence(dag_run, "verification", result)
    _refuse_problems(run_id, verification.problems)
    context.metadata.record_run(context.spec, run_id, status="verified", dag_run=dag_run)
    return result


def run_status(settings: Settings, pipeline: str, *, run_id: str) -> dict[str, Any]:
    """How far a run is: shards, rows, rate, time left, work by node, dead letters, cost so far."""
    from tasks.inference import status

    found = status(settings, open_context(settings, pipeline).spec, run_id)
    return {"progress": found.line(), **found.to_json()}


def list_runs(
    settings: Settings, pipeline: str, *, status: str | None = None, limit: int = 20
) -> dict[str, Any]:
    """Scoring runs of a pipeline, newest plan first, with how far each got.

    Args:
        status: Only those that got so far and no further: `planned`, `scored`, `published` or `verified`.
        limit: At most so many.
    """
    context = open_context(settings, pipeline)
    return {
        "runs": [
            {
                "run_id": run.run_id,
                "status": run.status,
                "planned_at": iso_utc(run.planned_at_utc)[:19] + "Z",
                "first_day": run.first_day,
                "last_day": run.last_day,
                "version": run.model_version,
                "rows": run.rows,
                "dead_letters": run.dead_letters,
                "wall_s": run.wall_s,
                "dag_run": run.dag_run,
            }
            for run in context.metadata.runs(context.spec, status=status, limit=limit)
        ]
    }


def resume_run(
    settings: Settings, pipeline: str, *, run_id: str, local: bool = False, dag_run: str | None = None
) -> dict[str, Any]:
    """Score what is missing, publish and verify: whatever stopped a run, and wherever.

    What is done already is found and not done again. A driver that is still at work on the run elsewhere is
    refused at its next commit.
    """
    scored = score_run(settings, pipeline, run_id=run_id, local=local, dag_run=dag_run)
    published = publish_run(settings, pipeline, run_id=run_id, dag_run=dag_run)
    verified = verify_run(settings, pipeline, run_id=run_id, dag_run=dag_run)
    return {
        "run_id": run_id,
        "shards": scored["shards"],
        "shards_committed": scored["shards_committed"],
        "shards_skipped": scored["shards_skipped"],
        "rows": published["rows"],
        "dead_letters": published["dead_letters"],
        "already_published": published["already_published"],
        "table_version": published["table_version"],
        "table": published["table"],
        "ok": verified["ok"],
    }


def replay_run(
    settings: Settings,
    pipeline: str,
    *,
    run_id: str,
    snapshot_id: str | None = None,
    local: bool = False,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Score a published run's dead letters again, as they were or as `snapshot_id` has them, and add them."""
    from tasks.inference import replay, verify

    context = open_context(settings, pipeline)
    corrected = context.snapshot(snapshot_id) if snapshot_id else None
    replayed = replay(
        settings,
        context.spec,
        run_id,
        corrected=corrected,
        local=local,
        audit_table=AUDIT_TABLE,
        width_of=lambda follow_up: admission(context, follow_up, local=local),
    )
    result = replayed.to_json()
    if replayed.replay_run_id is not None:
        verification = verify(settings, context.spec, replayed.replay_run_id)
        _refuse_problems(replayed.replay_run_id, verification.problems)
        context.metadata.record_run(
            context.spec, run_id, status="published", record={f"replay_{replayed.replay}": result}
        )
    context.evidence(dag_run, "replay", result)
    return result


def optimize_tables(
    settings: Settings, pipeline: str, *, target_mb: float = 32.0, dry_run: bool = False
) -> dict[str, Any]:
    """Merge small files of the predictions and audit tables; rows, runs and days stay as they are."""
    from tasks.inference import optimize

    spec = open_context(settings, pipeline).spec
    return optimize(settings, spec, target_bytes=int(target_mb * 2**20), dry_run=dry_run).to_json()


def vacuum_tables(
    settings: Settings, pipeline: str, *, older_than_days: int = _VACUUM_AGE.days, dry_run: bool = False
) -> dict[str, Any]:
    """Delete files that the tables let go that many days ago, except of held days."""
    from tasks.inference import vacuum

    spec = open_context(settings, pipeline).spec
    return vacuum(settings, spec, retention=timedelta(days=older_than_days), dry_run=dry_run).to_json()


def maintain(
    settings: Settings, pipeline: str, *, safe_age_hours: float = 24.0, dag_run: str | None = None
) -> dict[str, Any]:
    """Daily upkeep: remove files that nothing refers to, align MLflow's aliases with the log, fold online rows, add up what is stored, merge small files.

    Orphans go when they are `safe_age_hours` old and no attempt can commit them any more; files that a table let
    go stay a week for readers of older versions. Days with a hold stay as they are. MLflow being down is told in
    `registry`, it is no failure.
    """
    from tasks.inference import optimize, sweep_orphans, vacuum
    from tasks.wiring.release import reconcile_registry

    context = open_context(settings, pipeline)
    last_commit = timedelta(seconds=2 * context.spec.inference.shard_timeout_s)
    swept = sweep_orphans(
        settings, context.spec, older_than=max(timedelta(hours=safe_age_hours), last_commit)
    )
    vacuumed = vacuum(settings, context.spec, retention=_VACUUM_AGE)
    try:
        registry = reconcile_registry(settings, pipeline)["changes"] or ["in line with the log"]
    except ServiceUnavailable as error:
        registry = [f"not reconciled, the next maintenance will: {error.which}: {error.what}"]
    folded = fold_for_upkeep(settings, context.spec)
    stored = look_at_storage(context)
    context.metadata.forget_reservations()
    # Last: a damaged file makes it fail loudly, and must not keep the rest from being done.
    optimized = optimize(settings, context.spec)
    result = {
        **swept.to_json(),
        "vacuumed_files": vacuumed.files,
        "held_files": vacuumed.held_files,
        **folded,
        "stored_bytes": stored,
        "merged_files": optimized.merged_files,
        "written_files": optimized.written_files,
        "registry": registry,
    }
    context.evidence(dag_run, "maintenance", result)
    return result


def _pinned(context: Context) -> tuple[Deployment, Exposed | None]:
    """The champion and the challenger beside it, as of one moment of the log."""
    from tasks.inference import Exposed
    from tasks.registry import Deployment, Exposure

    head = context.metadata.head(context.spec)
    if head.live is None:
        return context.require_champion(), None
    found = Exposure.of(head)
    if found is None:
        return Deployment.of(head.live), None
    exposed = Exposed(found.version, found.bundle_digest, found.feature_version, found.share)
    return Deployment.of(head.live), exposed


def _refuse_barred(context: Context, run_id: str) -> None:
    """A run that a rollback overtook must not bring the bad version's rows after it; what is visible stays."""
    from tasks.inference.records import read_published

    run = context.metadata.run(context.spec, run_id)
    used = {run.model_version, run.exposed_version} if run else set()
    barred = [version for version in context.metadata.head(context.spec).barred if version in used]
    if not barred:
        return
    if read_published(context.store, run_id) is None:
        raise TerminalError(
            f"was planned with version {barred[0]}, which has been barred since: nothing was published",
            which=f"run {run_id}",
            fix=f"score its days again with the version that is live now ({context.spec.name}.score does); or, if version "
            f"{barred[0]} is right after all, `penstock registry unbar {context.spec.name} {barred[0]} --reason ...`",
        )


def _refuse_problems(run_id: str, problems: Sequence[str]) -> None:
    if problems:
        listed = "\n  ".join(problems)
        raise DataError(
            f"does not hold what it should:\n  {listed}",
            which=f"run {run_id}",
            fix="do not use its rows; see docs/inference.md on repairing a run",
        )


def _unpublished_windows(context: Context) -> list[Window]:
    """The days of the source after the first champion's snapshot that have no published predictions, oldest first.

    A window has no published day inside it, and at most `inference.max_days_per_run` days of the source.
    """
    from tasks.data import source_days
    from tasks.registry import history
    from tasks.registry import version as registered

    first = history(context.settings, context.spec)[-1]
    seen_until = context.snapshot(registered(context.settings, context.spec, first.version).snapshot_id).days[
        -1
    ]
    holders = _published(context)
    published = sorted(holders)
    found: list[list[date]] = []
    for day in source_days(context.settings, context.spec):
        if day <= seen_until or day in holders:
            continue
        place = bisect(published, day)
        same = bool(found) and len(found[-1]) < context.spec.inference.max_days_per_run
        if same and place == bisect(published, found[-1][-1]):
            found[-1].append(day)
        else:
            found.append([day])
    return [window(days[0], days[-1]) for days in found]


def _published(context: Context) -> dict[date, str]:
    return context.metadata.published_days(context.spec)
