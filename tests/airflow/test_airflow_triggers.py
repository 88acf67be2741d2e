"""What starts a training: which DAGs and tasks there are, what they do, and that a storm of updates is one run."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from airflow_fakes import context_of

from tasks.core import Settings

ROLLING = ("split:\n  train: {first_day: 2024-01-01, last_day: 2024-01-28}\n"
           "  validation: {first_day: 2024-01-29, last_day: 2024-02-04}")  # fmt: skip


def with_triggers(settings: Settings, *triggers: str, cron: str | None = None) -> dict[str, Any]:
    """The toy pipeline's DAGs when these triggers start its training, and its windows follow the source."""
    from plugins.pipeline_dags import build_all

    path = settings.pipelines_dir / "toy" / "pipeline.yaml"
    text = path.read_text()
    assert ROLLING in text
    text = text.replace(ROLLING, "split: {train_days: 28, validation_days: 7}")
    text = text.replace("training: {", f"training: {{triggers: [{', '.join(triggers)}], ")
    path.write_text(text + (f"schedule: {{train: '{cron}'}}\n" if cron else ""))
    return build_all(settings)[0]


def asset_names(dag: Any) -> set[str]:
    return {asset.name for asset in dag.timetable.asset_condition.objects}


def test_without_triggers_nothing_is_added(installed: Settings) -> None:
    from plugins.pipeline_dags import build_all

    dags = build_all(installed)[0]
    assert "toy.watch" not in dags
    assert dags["toy.train"].timetable.can_be_scheduled is False
    assert not dags["toy.monitor"].has_task("train_for_drift")


@pytest.mark.parametrize("cron", [None, "0 2 * * 1"])
def test_any_of_the_triggers_starts_training_beside_the_clock(installed: Settings, cron: str | None) -> None:
    from airflow.sdk import AssetAny, AssetOrTimeSchedule

    dags = with_triggers(installed, "new_data", "drift", "code", cron=cron)
    train = dags["toy.train"]
    assert isinstance(train.timetable.asset_condition, AssetAny)
    assert asset_names(train) == {"toy.data", "toy.drift", "toy.code"}
    assert isinstance(train.timetable, AssetOrTimeSchedule) is (cron is not None)
    updated = {
        outlet.name: f"{dag.dag_id}/{task.task_id}"
        for dag in (dags["toy.watch"], dags["toy.monitor"])
        for task in dag.tasks
        for outlet in task.outlets
    }
    assert updated == {
        "toy.data": "toy.watch/train_for_new_data",
        "toy.code": "toy.watch/train_for_code",
        "toy.drift": "toy.monitor/train_for_drift",
    }
    assert dags["toy.monitor"].get_task("train_for_drift").upstream_task_ids >= {"decide"}
    assert dags["toy.watch"].doc_md and all(task.doc_md for task in dags["toy.watch"].tasks)


def test_drift_alone_needs_no_watch(installed: Settings) -> None:
    dags = with_triggers(installed, "drift")
    assert "toy.watch" not in dags
    assert asset_names(dags["toy.train"]) == {"toy.drift"}


def outlet_event(task: Any, context: dict[str, Any]) -> Any:
    """What Airflow would attach to the asset's event."""
    (asset,) = task.outlets
    context["outlet_events"][asset] = SimpleNamespace(extra=None)
    task.execute(context)
    return context["outlet_events"][asset].extra


@pytest.mark.parametrize("trigger", ["new_data", "code"])
def test_watching_updates_the_asset_until_a_training_run_has_begun_with_that_state(
    installed: Settings, trigger: str
) -> None:
    dags = with_triggers(installed, "new_data", "code")
    watch = dags["toy.watch"].get_task(f"train_for_{trigger}")
    for _ in range(2):  # asked for again while no run has begun
        assert "no training has begun with" in outlet_event(watch, context_of())["reason"]
    begin(dags)
    with pytest.raises(AirflowSkipException, match=r"toy\.train/manual__1 began with the same"):
        outlet_event(watch, context_of())
    change(installed, trigger)
    assert "no training has begun with" in outlet_event(watch, context_of())["reason"]
    begin(dags)
    with pytest.raises(AirflowSkipException):
        outlet_event(watch, context_of())


def begin(dags: dict[str, Any]) -> None:
    dags["toy.train"].get_task("data.snapshot").execute(context_of())


def change(settings: Settings, trigger: str) -> None:
    name, old, new = {
        "new_data": ("source.py", "LAST_DAY = date(2024, 1, 1), date(2024, 2, 20)", "LAST_DAY = date(2024, 1, 1), date(2024, 2, 21)"),
        "code": ("features.py", "return rows", "# the same, said otherwise\n    return rows"),
    }[trigger]  # fmt: skip
    path = settings.pipelines_dir / "toy" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_of_days_of_its_own_does_not_count_as_having_begun_with_new_data(installed: Settings) -> None:
    dags = with_triggers(installed, "new_data")
    own = {
        "train_first_day": "2024-01-01", "train_last_day": "2024-01-20",
        "validation_first_day": "2024-01-21", "validation_last_day": "2024-01-27",
    }  # fmt: skip
    dags["toy.train"].get_task("data.snapshot").execute(context_of(params=own))
    assert outlet_event(dags["toy.watch"].get_task("train_for_new_data"), context_of())["due"] is True


def update(kind: str, dag_id: str | None, reason: str | None) -> Any:
    """An asset event as a running task sees it."""
    from airflow.sdk.api.datamodels._generated import AssetReferenceAssetEventDagRun
    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult

    asset = AssetReferenceAssetEventDagRun(name=f"toy.{kind}", uri=f"penstock://default/toy/{kind}", extra={})
    return AssetEventDagRunReferenceResult(
        asset=asset,
        extra={"reason": reason} if reason else {},
        source_dag_id=dag_id,
        source_aliases=[],
        timestamp=datetime(2024, 2, 1, tzinfo=UTC),
    )


def test_the_page_of_a_run_says_what_started_it(installed: Settings) -> None:
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

    from tasks.wiring import dag_run_evidence

    dags = with_triggers(installed, "new_data", "drift")
    events = TriggeringAssetEventsAccessor.build(
        [
            update("data", "toy.watch", "day 1"),
            update("data", "toy.watch", "day 2"),
            update("drift", None, None),
        ]
    )
    context = {**context_of(), "triggering_asset_events": events}
    dags["toy.train"].get_task("data.snapshot").execute(context)
    entries = {entry["kind"]: entry for entry in dag_run_evidence(installed, "toy.train", "manual__1")}
    assert entries["started by"]["title"] == "Started by"
    assert entries["started by"]["summary"]["causes"] == [
        "new data, 2 updates: day 2 (toy.watch)",
        "drift: asset toy.drift was updated (by hand)",
    ]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"triggering_user_name": "ada", "run_type": "manual"}, "by hand, ada"),
        (
            {"triggering_user_name": "ada", "run_type": "manual", "conf": {"reason": "new partner"}},
            "by hand, ada: new partner",
        ),
        ({"triggering_user_name": None, "run_type": "scheduled", "conf": None}, "the schedule"),
        (
            {
                "triggering_user_name": None,
                "run_type": "manual",
                "conf": {"actor": "ada", "reason": "case damage-2024-02-12: labels turned"},
            },
            "case damage-2024-02-12: labels turned",
        ),
    ],
)
def test_a_run_without_asset_updates_names_the_person_the_case_or_the_clock(
    run: dict[str, Any], said: str
) -> None:
    from plugins.triggers import causes

    assert causes({"dag_run": SimpleNamespace(**run)}) == [said]


@pytest.fixture(scope="module")
def airflow_database() -> None:
    """Airflow's own tables, in the temporary AIRFLOW_HOME of these tests."""
    from airflow.utils.db import initdb

    initdb()


@pytest.mark.usefixtures("airflow_database")
def test_a_storm_of_updates_is_one_run_and_those_during_a_run_are_one_more(installed: Settings) -> None:
    from airflow.assets.manager import asset_manager
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.serialization.definitions.assets import SerializedAsset
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session
    from airflow.utils.sqlalchemy import prohibit_commit
    from airflow.utils.state import DagRunState
    from sqlalchemy import select

    train = with_triggers(installed, "new_data", "drift", "code", cron="0 2 1 1 *")["toy.train"]
    with create_session() as session:
        session.merge(DagBundleModel(name="penstock"))
        session.flush()
        update_dag_parsing_results_in_db(
            "penstock", None, [LazyDeserializedDAG.from_dag(train)], {}, None, set(), session
        )
        session.get(DagModel, "toy.train").is_paused = False
    runner = SchedulerJobRunner(Job())
    runner.job.id = None

    def storm(times: int) -> None:
        with create_session() as session:
            for number in range(times):
                name = ("data", "drift", "code")[number % 3]
                asset = SerializedAsset(name=f"toy.{name}", uri=f"penstock://default/toy/{name}", group="penstock", extra={}, watchers=[])  # fmt: skip
                asset_manager.register_asset_change(
                    asset=asset, extra={"reason": f"{number}"}, session=session
                )

    def schedule() -> list[DagRun]:
        for _ in range(3):  # several turns of the scheduler's loop
            with create_session() as session, prohibit_commit(session) as guard:
                runner._create_dagruns_for_dags(guard, session)
        with create_session() as session:
            runs = list(
                session.scalars(select(DagRun).where(DagRun.dag_id == "toy.train").order_by(DagRun.id))
            )
            for run in runs:
                run.updates = len(run.consumed_asset_events)
            session.expunge_all()
            return runs

    def finish() -> None:
        with create_session() as session:
            for run in session.scalars(select(DagRun)):
                run.state = DagRunState.SUCCESS

    storm(20)
    (first,) = schedule()
    # Airflow shows on a run those updates that came before the newest asset was queued first; the others are
    # answered by it too, as it begins after them, and no run follows for them.
    assert (first.run_type, first.updates) == ("asset_triggered", 3)
    storm(20)
    assert len(schedule()) == 1  # the second waits while the first works
    finish()
    assert [run.updates for run in schedule()] == [3, 20]
    finish()
    assert len(schedule()) == 2
