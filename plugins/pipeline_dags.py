"""The DAGs of a pipeline, built from its `pipeline.yaml`. Wiring only: no I/O, no connection, no heavy import."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    TaskGroup,
    chain,
    get_parsing_context,
)

from plugins import dag_docs
from plugins.ray_job import PenstockRayJobOperator
from plugins.steps import PenstockStepOperator
from plugins.triggers import WATCH, train_schedule, trigger_asset
from tasks.core.errors import ConfigError, PenstockError
from tasks.core.pools import STEP_POOL
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, load_pipeline, pipeline_names

DEFAULTS: dict[str, Any] = {
    "retries": 4,  # 15, 30, 60 and 120 s: a service may be gone for three minutes
    "retry_delay": timedelta(seconds=15),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "pool": STEP_POOL,
}
_CLOCK_FREE: dict[str, Any] = {"catchup": False, "max_active_runs": 1, "start_date": None}


def build_all(settings: Settings) -> tuple[dict[str, DAG], dict[str, PenstockError]]:
    """DAGs by id of every pipeline whose file is right, and the errors of those whose file is not, by name.

    When Airflow parses for one DAG only (to run a task), only that pipeline is built.
    """
    specs, broken = _load_all(settings)
    dags: dict[str, DAG] = {}
    for name, spec in specs.items():
        dags |= {dag.dag_id: dag for dag in (make(spec) for make in PIPELINE_DAGS)}
        if {"new_data", "code"} & set(spec.training.triggers):
            dags[f"{name}.watch"] = watch_dag(spec)
    return dags, broken


def _load_all(settings: Settings) -> tuple[dict[str, PipelineSpec], dict[str, PenstockError]]:
    specs: dict[str, PipelineSpec] = {}
    broken: dict[str, PenstockError] = {}
    wanted = get_parsing_context().dag_id
    for name in pipeline_names(settings):
        if wanted and wanted.rsplit(".", 1)[0] != name:
            continue
        try:
            specs[name] = load_pipeline(settings, name)
        except PenstockError as error:
            broken[name] = error
    return specs, broken


def raise_broken(settings: Settings) -> None:
    """Raise one `ConfigError` that names every broken pipeline file, field and fix; return when all are right.

    It builds no DAG: Airflow takes each one that is built while a file is parsed for that file's own.
    """
    _, broken = _load_all(settings)
    if not broken:
        return
    if len(broken) == 1:
        raise next(iter(broken.values())).with_traceback(None) from None
    listed = "\n".join(f"{error}" for error in broken.values())
    raise ConfigError(
        f"{len(broken)} pipelines cannot be loaded:\n{listed}", fix="correct each file named"
    ) from None


def champion_asset(spec: PipelineSpec) -> Asset:
    """Updated by a promotion."""
    return Asset(
        name=dag_docs.champion_asset_name(spec), uri=f"penstock://{spec.prefix}/champion", group="penstock"
    )


def predictions_asset(spec: PipelineSpec) -> Asset:
    """Updated when a scoring run is published."""
    return Asset(
        name=dag_docs.predictions_asset_name(spec),
        uri=f"penstock://{spec.prefix}/predictions",
        group="penstock",
    )


def train_dag(spec: PipelineSpec) -> DAG:
    """`<name>.train`."""
    days = ("train_first_day", "train_last_day", "validation_first_day", "validation_last_day")
    with _dag(
        spec,
        "train",
        doc=dag_docs.train_doc(spec),
        schedule=train_schedule(spec, _cron(spec.schedule.train)),
        params={**_days(*days), **_text("reason", "actor")},
    ) as dag:
        snapshot, validate = _data(spec, "snapshot_training", days, from_run=("causes",))
        with TaskGroup("model", tooltip="Make a model and judge it"):
            split = {
                "snapshot_id": validate.output["snapshot_id"],
                "validation_first_day": snapshot.output["validation_first_day"],
            }
            train = _ray(spec, "train", "train_model", split)
            evaluate = _step(
                spec,
                "evaluate",
                "evaluate_model",
                {**split, "bundle_digest": train.output["bundle_digest"]},
            )
            gate = _step(
                spec,
                "gate",
                "gate_model",
                {"evaluation_key": evaluate.output["evaluation_key"]},
            )
        with TaskGroup("release", tooltip="Challenger, canary, champion"):
            register = _step(
                spec,
                "register",
                "register_model",
                {"trained": train.output, "evaluation_key": evaluate.output["evaluation_key"]},
                from_run=("links",),
            )
            canary = _step(
                spec,
                "canary",
                "canary_model",
                {
                    "version": register.output["version"],
                    "validation_last_day": snapshot.output["last_day"],
                },
            )
            asked = spec.promotion.mode == "approval"
            approve = _approval(spec, register, evaluate, gate, canary) if asked else None
            answer = {name: approve.output[name] for name in ("actor", "reason")} if approve else {}
            chosen = {
                "version": register.output["version"],
                "expected": canary.output["champion_version"],
                **answer,
            }
            said = () if asked else ("actor", "reason")
            promoted = {**chosen, "despite_case": True} if asked else chosen  # a person has read the evidence
            expose = (
                _step(spec, "expose", "begin_ramp", chosen, from_run=said, canary=canary.output)
                if spec.canary.ramp
                else None
            )
            promote = _step(
                spec,
                "promote",
                "promote_model",
                promoted,
                from_run=said,
                canary=(expose or canary).output,
                outlets=[champion_asset(spec)],
            )
            last = [task for task in (canary, approve, expose, promote) if task is not None]
        chain(snapshot, validate, train, evaluate, gate, register, *last)
    return dag


def score_dag(spec: PipelineSpec) -> DAG:
    """`<name>.score`."""
    days = ("first_day", "last_day")
    with _dag(
        spec,
        "score",
        doc=dag_docs.score_doc(spec),
        schedule=_asset_or_cron(champion_asset(spec), spec.schedule.score),
        params=_days(*days),
    ) as dag:
        snapshot, validate = _data(spec, "snapshot_scoring", days)
        with TaskGroup("inference", tooltip="Score exactly once"):
            plan = _step(spec, "plan", "plan_scoring", {"snapshot_id": validate.output["snapshot_id"]})
            run = {"run_id": plan.output["run_id"]}
            score = _ray(spec, "score", "score_run", run)
            back = {"take_back_from": plan.output["takes_back_from"]}
            publish = _step(
                spec, "publish", "publish_run", {**run, **back}, outlets=[predictions_asset(spec)]
            )
            verify = _step(spec, "verify", "verify_run", run)
        chain(snapshot, validate, plan, score, publish, verify)
    return dag


def monitor_dag(spec: PipelineSpec) -> DAG:
    """`<name>.monitor`."""
    with _dag(
        spec,
        "monitor",
        doc=dag_docs.monitor_doc(spec),
        schedule=_asset_or_cron(predictions_asset(spec), spec.schedule.monitor),
        params=_days("first_day", "last_day", "as_of"),
    ) as dag:
        measure = _step(spec, "measure", "measure_window", from_params=("first_day", "last_day"))
        window = {"first_day": measure.output["first_day"], "last_day": measure.output["last_day"]}
        labels = _step(spec, "labels", "join_labels", window, from_params=("as_of",))
        decide = _step(spec, "decide", "decide_window", window)
        report = _step(spec, "report", "report_window", window)
        mitigate = _step(spec, "mitigate", "mitigate_window", window, from_params=("as_of",))
        chain(measure, labels, decide, [report, mitigate])
        chain([report, mitigate], _start_case(spec))
        if spec.canary.ramp:
            chain(mitigate, *_ramp(spec))
        if "drift" in spec.training.triggers:
            chain(decide, _due(spec, "drift", window))
        _step(spec, "archive", "archive_explanations", from_params=("as_of",))
    return dag


def _start_case(spec: PipelineSpec) -> Any:
    """The task that starts the run of `<name>.case`, also when `mitigate` has failed to call somebody.

    A teardown, so that it does not make a success of a run whose `mitigate` failed.
    """
    from plugins.case_question import StartCase

    return StartCase(
        task_id="case",
        pipeline=spec.name,
        case_id="{{ ti.xcom_pull(task_ids='mitigate', key='case_id') or '' }}",
        started_dag=f"{spec.name}.case",
        doc_md=dag_docs.STEPS["start_case"],
    ).as_teardown()


def case_dag(spec: PipelineSpec) -> DAG:
    """`<name>.case`."""
    from plugins.case_question import CaseQuestion, RetrainForCase

    with _dag(
        spec,
        "case",
        doc=dag_docs.case_doc(spec),
        schedule=None,
        params={
            "case_id": Param(
                type="string",
                pattern="^[a-z]+-[0-9-]+$",
                title=dag_docs.FIELDS["case_id"][0],
                description=dag_docs.FIELDS["case_id"][1],
            )
        },
        max_active_runs=16,
        is_paused_upon_creation=False,  # it is only started by the monitor, and then must ask
    ) as dag:
        case_id = "{{ params.case_id }}"
        case = _step(spec, "case", "show_case", from_params=("case_id",))
        ask = CaseQuestion(
            task_id="ask",
            subject=f"What is to be done about a case of {spec.name}?",
            pipeline=spec.name,
            case_id=case_id,
            responders=spec.drift.responders,
            drift_timeout=timedelta(days=spec.drift.answer_days),
            doc_md=dag_docs.STEPS["ask"],
        )
        said = {name: ask.output[name] for name in ("answer", "actor", "reason", "until")}
        answer = _step(spec, "answer", "answer_case", said, from_params=("case_id",))
        back = _step(
            spec, "roll_back", "roll_back_case", from_params=("case_id",), outlets=[champion_asset(spec)]
        )
        retrain = RetrainForCase(
            task_id="retrain",
            pipeline=spec.name,
            case_id=case_id,
            started_dag=f"{spec.name}.train",
            doc_md=dag_docs.STEPS["begin_retraining"],
        )
        chain(case, ask, answer, [back, retrain])
    return dag


def _ramp(spec: PipelineSpec) -> tuple[PenstockStepOperator, PenstockStepOperator]:
    """The tasks that look after an exposed challenger, and promote it after its last share."""
    ramp = _step(spec, "ramp", "advance_ramp", from_params=("as_of",))
    chosen = {
        "version": ramp.output["version"],
        "expected": ramp.output["champion_version"],
        "actor": "canary ramp",
        "reason": f"Came through the exposures of canary.ramp in {spec.name}.monitor.",
    }
    promote = _step(
        spec, "promote", "promote_model", chosen, canary=ramp.output, outlets=[champion_asset(spec)]
    )
    return ramp, promote


def watch_dag(spec: PipelineSpec) -> DAG:
    """`<name>.watch`, of a pipeline whose training is started by new data or changed code."""
    with _dag(spec, "watch", doc=dag_docs.watch_doc(spec), schedule=_cron(WATCH), params={}) as dag:
        for trigger in spec.training.triggers:
            if trigger != "drift":
                _due(spec, trigger)
    return dag


def rollback_dag(spec: PipelineSpec) -> DAG:
    """`<name>.rollback`."""
    with _dag(
        spec,
        "rollback",
        doc=dag_docs.rollback_doc(spec),
        schedule=None,
        params={
            "expected": _number("expected", required=True),
            "to_version": _number("to_version"),
            "rescore": Param(
                False,
                type="boolean",
                title=dag_docs.FIELDS["rescore"][0],
                description=dag_docs.FIELDS["rescore"][1],
            ),
            **_text("reason", "actor"),
        },
    ) as dag:
        rollback = _step(
            spec,
            "rollback",
            "rollback_model",
            from_params=("expected", "to_version"),
            from_run=("actor", "reason"),
            outlets=[champion_asset(spec)],
        )
        left = {"version": rollback.output["previous_version"]}
        plan = _step(spec, "plan_rescoring", "plan_rescoring", left, from_params=("rescore",))
        rescore = _ray(spec, "rescore", "rescore_version", left, outlets=[predictions_asset(spec)])
        chain(rollback, plan, rescore)
    return dag


PIPELINE_DAGS = (train_dag, score_dag, monitor_dag, case_dag, rollback_dag)


def maintenance_dag(settings: Settings) -> DAG:
    """`platform.maintenance`: one task per pipeline, broken ones left out (they show as an import error)."""
    with DAG(
        dag_id="platform.maintenance",
        description="Sweep, vacuum, alias check and merge of small files, for every pipeline",
        doc_md=dag_docs.maintenance_doc(),
        schedule=CronTriggerTimetable("17 3 * * *", timezone="UTC", run_immediately=timedelta(0)),
        tags={"penstock", "maintenance"},
        default_args={**DEFAULTS, "owner": "platform"},
        **_CLOCK_FREE,
    ) as dag:
        for name in pipeline_names(settings):
            with suppress(PenstockError):
                PenstockStepOperator(
                    task_id=f"maintain_{load_pipeline(settings, name).name}",
                    step="maintain",
                    pipeline=name,
                    from_run=("dag_run",),
                    doc_md=dag_docs.STEPS["maintain"],
                )
    return dag


def _dag(
    spec: PipelineSpec, kind: str, *, doc: str, schedule: Any, params: dict[str, Param], **kwargs: Any
) -> DAG:
    return DAG(
        dag_id=f"{spec.name}.{kind}",
        description=f"{dag_docs.PURPOSES[kind]} {spec.description}",
        doc_md=doc,
        schedule=schedule,
        params=params,
        tags={"penstock", spec.name, kind, *spec.tags},
        default_args={**DEFAULTS, "owner": spec.owner},
        **{**_CLOCK_FREE, **kwargs},
    )


def _step(
    spec: PipelineSpec,
    task_id: str,
    step: str,
    arguments: Any = None,
    *,
    from_run: Sequence[str] = (),
    **kwargs: Any,
) -> PenstockStepOperator:
    return PenstockStepOperator(
        task_id=task_id,
        step=step,
        pipeline=spec.name,
        model_name=spec.model_name,
        arguments=arguments,
        from_run=("dag_run", *from_run),
        doc_md=dag_docs.STEPS[step],
        **kwargs,
    )


def _data(
    spec: PipelineSpec, step: str, days: Sequence[str], *, from_run: Sequence[str] = ()
) -> tuple[PenstockStepOperator, PenstockStepOperator]:
    """The group in which rows are frozen by `step` and then checked: (snapshot, validate)."""
    with TaskGroup("data", tooltip="Freeze and check the rows"):
        snapshot = _step(spec, "snapshot", step, from_params=days, from_run=from_run)
        given = {"snapshot_id": snapshot.output["snapshot_id"]}
        validate = _step(spec, "validate", "validate_snapshot", given)
    return snapshot, validate


def _due(spec: PipelineSpec, trigger: str, window: Any = None) -> PenstockStepOperator:
    """The task that updates a trigger's asset when a training is due, and is skipped when none is."""
    return _step(
        spec,
        f"train_for_{trigger}",
        "training_due",
        {"trigger": trigger, **(window or {})},
        outlets=[trigger_asset(spec, trigger)],
    )


def _ray(
    spec: PipelineSpec, task_id: str, step: str, arguments: Any, **kwargs: Any
) -> PenstockRayJobOperator:
    return PenstockRayJobOperator(
        task_id=task_id,
        step=step,
        pipeline=spec.name,
        tenant=spec.tenant,
        arguments=arguments,
        from_run=("dag_run",),
        pool=spec.ray_pool,
        doc_md=dag_docs.STEPS[step],
        **kwargs,
    )


def _approval(spec: PipelineSpec, register: Any, evaluate: Any, gate: Any, canary: Any) -> Any:
    from plugins.approval import PromotionApproval

    return PromotionApproval(
        task_id="approve",
        subject=f"Promote {spec.model_name} to champion?",
        pipeline=spec.name,
        version=register.output["version"],
        evaluation_key=evaluate.output["evaluation_key"],
        gate=gate.output,
        canary=canary.output,
        approvers=spec.promotion.approvers,
        response_timeout=timedelta(hours=spec.promotion.approval_timeout_hours),
        doc_md=dag_docs.STEPS["approve"],
    )


def _days(*names: str) -> dict[str, Param]:
    return {
        name: Param(
            None,
            type=["null", "string"],
            format="date",
            title=dag_docs.FIELDS[name][0],
            description=dag_docs.FIELDS[name][1],
        )
        for name in names
    }


def _number(name: str, *, required: bool = False) -> Param:
    title, description = dag_docs.FIELDS[name]
    if required:  # without a default the form and the REST API ask for it
        return Param(type="integer", minimum=1, title=title, description=description)
    return Param(None, type=["null", "integer"], minimum=1, title=title, description=description)


def _text(*names: str) -> dict[str, Param]:
    return {
        name: Param(
            None,
            type=["null", "string"],
            maxLength=400,
            title=dag_docs.FIELDS[name][0],
            description=dag_docs.FIELDS[name][1],
        )
        for name in names
    }


def _cron(expression: str | None) -> CronTriggerTimetable | None:
    return CronTriggerTimetable(expression, timezone="UTC") if expression else None


def _asset_or_cron(asset: Asset, expression: str | None) -> AssetOrTimeSchedule | Sequence[Asset]:
    timetable = _cron(expression)
    return AssetOrTimeSchedule(timetable=timetable, assets=[asset]) if timetable else [asset]
