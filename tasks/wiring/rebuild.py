"""What a metadata database that was lost can be given back from the object store, and what it cannot.

Only what was recorded is entered: the deployment log is nowhere else, and no event of it is made up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, Verdict, utc_now
from tasks.core.errors import NotFound, PenstockError, ServiceUnavailable
from tasks.core.object_store import ObjectInfo
from tasks.core.records import JsonRecord
from tasks.core.spec import pipeline_names
from tasks.metadata import ModelVersion
from tasks.wiring.audit_upkeep import record_actions
from tasks.wiring.context import Context, open_context
from tasks.wiring.measured import performances_of, run_by_day
from tasks.wiring.series import keep_canary, keep_performance, keep_registered

if TYPE_CHECKING:
    from tasks.inference.records import Plan
    from tasks.metadata import MetadataStore
    from tasks.registry.rebuilding import FoundInMlflow

_ACTOR = "rebuilt"


@dataclass(frozen=True)
class Rebuilt(JsonRecord):
    """Rows that one pipeline was given back; those that were there are not counted."""

    pipeline: str
    trainings: int
    verdicts: int
    versions: int
    runs: int
    publications: int
    decisions: int
    audit_actions: int
    metric_points: int
    champion: int | None
    """The live version by the deployment log; None when its log is lost or nothing was ever promoted."""
    problems: tuple[str, ...]
    next_steps: tuple[str, ...]


def rebuild_metadata(settings: Settings) -> list[dict[str, Any]]:
    """Enter what the object store (and MLflow, if it answers) knows of every pipeline and the database does not.

    Rows that are there stay as they are, so it may be run at any time and again: after a database was lost, and after an
    older backup of it was restored beside a newer store.
    """
    return [_rebuilt(open_context(settings, name)).to_json() for name in pipeline_names(settings)]


class _Moment:
    """The clock of rows that were made at a moment that a record tells."""

    def __init__(self) -> None:
        self.at = utc_now()

    def __call__(self) -> datetime:
        return self.at


@dataclass(frozen=True)
class _Found:
    """What lies in a pipeline's store."""

    trainings: tuple[dict[str, Any], ...]
    plans: tuple[Plan, ...]
    evaluations: tuple[str, ...]
    canaries: tuple[str, ...]
    validations: tuple[str, ...]
    decisions: tuple[ObjectInfo, ...]


def _rebuilt(context: Context) -> Rebuilt:
    from tasks.metadata import MetadataStore

    moment = _Moment()
    store = MetadataStore.open(context.settings, clock=moment)
    found, problems = _look(context)
    trainings = 0
    for trained in found.trainings:
        moment.at = _packaged_at(context, trained["training_id"])
        trainings += store.record_training(context.spec, trained)
    verdicts = _verdicts(context, found, store)
    in_mlflow, asked = _ask_mlflow(context, found)
    problems += asked
    versions, wrong = _versions(context, found, in_mlflow)
    problems += wrong
    runs, publications = _runs(context, found.plans, store, moment)
    decisions = _decisions(context, found, store, moment)
    before = len(context.metadata.audit_actions(context.spec, limit=1_000_000))
    record_actions(context)
    actions = len(context.metadata.audit_actions(context.spec, limit=1_000_000)) - before
    points = _points(context, found)
    live = context.metadata.live(context.spec)
    return Rebuilt(
        pipeline=context.spec.name,
        trainings=trainings,
        verdicts=verdicts,
        versions=versions,
        runs=runs,
        publications=publications,
        decisions=decisions,
        audit_actions=actions,
        metric_points=points,
        champion=live.version if live else None,
        problems=tuple(problems),
        next_steps=tuple(_next_steps(context, found.plans, in_mlflow)),
    )


def _look(context: Context) -> tuple[_Found, list[str]]:
    """One listing of the store, and the records that everything else is told by; unreadable ones are problems."""
    from tasks.inference.records import read_plan

    trainings: list[dict[str, Any]] = []
    plans: list[Plan] = []
    keys: dict[str, list[ObjectInfo]] = {
        name: [] for name in ("evidence", "canary", "validation", "decision")
    }
    problems: list[str] = []
    for info in context.store.list():
        parts = info.key.split("/")
        try:
            if parts[0] == "training" and parts[-1] == "result.json":
                trainings.append(json.loads(context.store.get(info.key)))
            elif parts[0] == "runs" and parts[2:] == ["plan.json"]:
                plans.append(read_plan(context.store, parts[1]))
        except (PenstockError, ValueError) as error:
            problems.append(f"{info.key}: {error}")
        if kind := _kind_of(parts):
            keys[kind].append(info)
    names = {kind: tuple(info.key for info in infos) for kind, infos in keys.items()}
    plans.sort(key=lambda plan: (plan.created_at_utc, plan.run_id))
    return (
        _Found(
            tuple(trainings),
            tuple(plans),
            names["evidence"],
            names["canary"],
            names["validation"],
            tuple(keys["decision"]),
        ),
        problems,
    )


def _kind_of(parts: list[str]) -> str | None:
    if parts[0] == "evaluation" and parts[-1] == "evidence.json":
        return "evidence"
    if parts[0] == "evaluation" and parts[-1].startswith("canary-") and parts[-1].endswith(".json"):
        return "canary"
    if parts[0] == "validation" and parts[-1] == "evidence.json":
        return "validation"
    if parts[0] == "monitoring" and parts[-1] == "decision.json":
        return "decision"
    return None


def _packaged_at(context: Context, training_id: str) -> datetime:
    try:
        return datetime.fromisoformat(context.store.get(f"training/{training_id}/packaged_at_utc").decode())
    except NotFound:
        return utc_now()


def _verdicts(context: Context, found: _Found, store: MetadataStore) -> int:
    """Verdicts of the data gate and of canaries, which are kept with their evidence; in the order they were given."""
    kept = [json.loads(context.store.get(key))["result"]["verdict"] for key in found.validations]
    kept += [json.loads(context.store.get(key))["verdict"] for key in found.canaries]
    added = 0
    for verdict in sorted(map(Verdict.from_json, kept), key=lambda one: one.decided_at_utc):
        known = store.verdicts(context.spec, subject=verdict.subject, gate=verdict.gate)
        if not any(one.verdict.decided_at_utc == verdict.decided_at_utc for one in known):
            added += store.record_verdict(context.spec, verdict)
    return added


def _ask_mlflow(context: Context, found: _Found) -> tuple[FoundInMlflow | None, list[str]]:
    from tasks.registry.rebuilding import found_in_mlflow

    digests = [str(trained["bundle_digest"]) for trained in found.trainings]
    try:
        return found_in_mlflow(context.settings, context.spec, digests), []
    except ServiceUnavailable as error:
        return None, [
            f"{error.what}: versions that never scored were not found. Run this again when it answers"
        ]


def _versions(context: Context, found: _Found, in_mlflow: FoundInMlflow | None) -> tuple[int, list[str]]:
    """Registered versions: those that scored by their runs' plans, the others by their tags in MLflow."""
    from tasks.registry.rebuilding import version_url

    used: dict[int, str] = {}
    for plan in found.plans:
        pinned = plan.fingerprint
        used[pinned.model_version] = pinned.bundle_digest
        if pinned.exposed:
            used[pinned.exposed.model_version] = pinned.exposed.bundle_digest
    tagged = in_mlflow.versions if in_mlflow else {}
    problems = [
        f"version {number} scored with bundle {used[number][:16]}, and MLflow's version {number} has {digest[:16]}: the runs are right"
        for number, digest in tagged.items()
        if used.get(number, digest) != digest
    ]
    trained = {str(one["bundle_digest"]): one for one in found.trainings}
    added = 0
    for number, digest in sorted({**tagged, **used}.items()):
        if context.metadata.model_version(context.spec, number) is not None:
            continue
        if digest not in trained:
            problems.append(
                f"version {number}: no training in the store made bundle {digest[:16]}; it was not entered"
            )
            continue
        context.metadata.record_model_version(
            context.spec,
            _version(
                context, number, trained[digest], url=version_url(context.settings, context.spec, number)
            ),
        )
        added += 1
    return added, problems


def _version(context: Context, number: int, trained: Mapping[str, Any], *, url: str) -> ModelVersion:
    return ModelVersion(
        version=number,
        bundle_digest=trained["bundle_digest"],
        feature_version=trained["feature_version"],
        snapshot_id=trained["snapshot_id"],
        training_id=trained["training_id"],
        mlflow_model_name=context.spec.model_name,
        mlflow_run_id=trained.get("mlflow_run_id"),
        mlflow_model_uri=trained.get("mlflow_model_uri"),
        url=url,
        created_at_utc=_packaged_at(context, trained["training_id"]),
        metrics=dict(trained.get("metrics") or {}),
    )


def _runs(context: Context, plans: Iterable[Plan], store: MetadataStore, moment: _Moment) -> tuple[int, int]:
    """Runs and publications; a replay is part of the run that it repaired."""
    from tasks.inference import status
    from tasks.inference.records import read_published

    runs, published = 0, []
    for plan in plans:
        if plan.fingerprint.replay_of is not None:
            continue
        if marker := read_published(context.store, plan.run_id):
            published.append(marker)
        if store.run(context.spec, plan.run_id) is not None:
            continue
        pinned = plan.fingerprint
        whole = status(context.settings, context.spec, plan.run_id)
        moment.at = datetime.fromisoformat(plan.created_at_utc)
        scored = whole.shards_done == whole.shards
        store.record_run(
            context.spec,
            plan.run_id,
            status="published" if marker else "scored" if scored else "planned",
            snapshot_id=pinned.snapshot_id,
            model_version=pinned.model_version,
            bundle_digest=pinned.bundle_digest,
            feature_version=pinned.feature_version,
            exposed_version=pinned.exposed.model_version if pinned.exposed else None,
            first_day=plan.days[0],
            last_day=plan.days[-1],
            rows=plan.rows,
            shards=len(plan.shards),
            dead_letters=whole.dead_letters if scored else None,
            cpu_seconds=whole.cpu_seconds if scored else None,
            gpu_seconds=whole.gpu_seconds if scored else None,
            record={"exposed": whole.exposed.to_json()} if whole.exposed else None,
        )
        runs += 1
    known = {item.run_id for item in store.publications(context.spec, limit=1_000_000)}
    for marker in sorted(published, key=lambda one: one.table_version):
        moment.at = datetime.fromisoformat(marker.published_at_utc)
        store.record_publication(  # also of a known one: it was published again since
            context.spec,
            marker.run_id,
            table_version=marker.table_version,
            rows=marker.rows,
            files=marker.files,
            days=marker.days,
            record=marker.to_json(),
        )
    return runs, len({one.run_id for one in published} - known)


def _decisions(context: Context, found: _Found, store: MetadataStore, moment: _Moment) -> int:
    """The last decision on each window, dated by the object that holds it."""
    known = {
        (one.first_day, one.last_day, one.action, one.verdict)
        for one in store.decisions(context.spec, limit=1_000_000)
    }
    added = 0
    for info in sorted(found.decisions, key=lambda info: info.modified_at_utc):
        record = json.loads(context.store.get(info.key))
        first, last = (date.fromisoformat(text) for text in info.key.split("/")[1].split("_"))
        if (first, last, record["action"], record["verdict"]) in known:
            continue
        moment.at = info.modified_at_utc
        added += store.record_decision(
            context.spec,
            action=record["action"],
            verdict=record["verdict"],
            reasons=record["reasons"],
            first_day=first,
            last_day=last,
            actor=_ACTOR,
            record=record,
        )
    return added


def _points(context: Context, found: _Found) -> int:
    """Metric series of training, evaluation, canary and realised performance; those of drift come from measuring again."""
    from tasks.evaluation import load_evaluation

    def count() -> int:
        return sum(
            len(context.metadata.series(context.spec, name))
            for name in context.metadata.metric_names(context.spec)
        )

    before = count()
    trained = {str(one["bundle_digest"]): one for one in found.trainings}
    for key in found.evaluations:
        digest = load_evaluation(context.store, key).candidate_digest
        version = context.metadata.model_version_of_bundle(context.spec, digest)
        if version and digest in trained:
            keep_registered(context, version.version, trained[digest], key)
    for key in found.canaries:
        verdict = Verdict.from_json(json.loads(context.store.get(key))["verdict"])
        version = context.metadata.model_version_of_bundle(context.spec, verdict.subject)
        if version:
            keep_canary(context, version.version, verdict)
    if days := sorted(context.metadata.published_days(context.spec)):
        performances = performances_of(context, days[0], days[-1])
        keep_performance(context, performances, run_by_day(context, [one.day for one in performances]))
    return count() - before


def _next_steps(context: Context, plans: Iterable[Plan], in_mlflow: FoundInMlflow | None) -> Iterable[str]:
    name = context.spec.name
    if context.metadata.live(context.spec) is None:
        if in_mlflow and in_mlflow.champion is not None:
            yield (
                f"the deployment log is empty, and MLflow's alias says that version {in_mlflow.champion} was live: "
                f"penstock registry promote {name} {in_mlflow.champion}"
            )
        elif newest := [plan.fingerprint.model_version for plan in plans]:
            yield (
                f"the deployment log is empty, and the newest run was planned with version {newest[-1]}: "
                f"penstock registry promote {name} {newest[-1]}"
            )
        for version, said in sorted(in_mlflow.barred.items() if in_mlflow else ()):
            yield (
                f"MLflow's tag says that version {version} was barred ({said}): "
                f"penstock registry bar {name} {version} --reason ..."
            )
        if in_mlflow is None:
            yield "versions that were barred are not known without MLflow: bar them again before anybody promotes"
    days = sorted(context.metadata.published_days(context.spec))
    measured = {one.day for one in context.metadata.signals(context.spec)} if days else set()
    if missing := [day for day in days if day not in measured]:
        yield (
            "drift signals are measured again from the profiles: "
            f"penstock monitoring measure {name} --first-day {missing[0]} --last-day {missing[-1]}"
        )
