"""The DAG files: what they build, what they cost to parse, and how a broken pipeline shows."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core import Settings

DAGS = Path(__file__).resolve().parents[2] / "dags"
CHAINS = {
    "toy.train": [
        "data.snapshot",
        "data.validate",
        "model.train",
        "model.evaluate",
        "model.gate",
        "release.register",
        "release.canary",
        "release.promote",
    ],
    "toy.score": [
        "data.snapshot",
        "data.validate",
        "inference.plan",
        "inference.score",
        "inference.publish",
        "inference.verify",
    ],
    "toy.monitor": ["measure", "labels", "decide", "report"],  # mitigate stands beside report
    "toy.case": ["case", "ask", "answer", "roll_back"],  # retrain stands beside roll_back
    "toy.rollback": ["rollback", "plan_rescoring", "rescore"],
}


def edit_toy(settings: Settings, old: str, new: str) -> None:
    path = settings.pipelines_dir / "toy" / "pipeline.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def break_pipeline(settings: Settings, name: str = "broken") -> None:
    folder = settings.pipelines_dir / name
    folder.mkdir()
    text = (settings.pipelines_dir / "toy" / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text.replace("name: toy", f"name: {name}") + "\nlables: x\n")


def build(settings: Settings):
    from plugins.pipeline_dags import build_all

    return build_all(settings)


@pytest.mark.parametrize("dag_id", CHAINS)
def test_each_dag_runs_its_steps_in_the_order_of_the_chain(installed: Settings, dag_id: str) -> None:
    dag = build(installed)[0][dag_id]
    chain = CHAINS[dag_id]
    assert set(chain) <= set(dag.task_ids)
    for before, after in itertools.pairwise(chain):
        assert after in {task.task_id for task in dag.get_task(before).get_flat_relatives(upstream=False)}, (
            f"{after} does not come after {before}"
        )


def test_archiving_does_not_hide_a_failed_monitor_run(installed: Settings) -> None:
    dag = build(installed)[0]["toy.monitor"]
    case = dag.get_task("case")
    assert case.is_teardown and not case.on_failure_fail_dagrun, "Airflow leaves it out of a run's outcome"
    leaves = {task.task_id for task in dag.tasks if task.downstream_task_ids <= {"case"}} - {"case"}
    assert leaves == {"report", "mitigate", "archive"}


def test_every_dag_and_task_says_what_it_does_and_who_owns_it(installed: Settings) -> None:
    from plugins.pipeline_dags import maintenance_dag
    from tasks.core.pools import POOLS

    for dag in [*build(installed)[0].values(), maintenance_dag(installed)]:
        assert dag.doc_md
        assert dag.description
        assert "penstock" in dag.tags
        assert dag.max_active_runs == (16 if dag.dag_id == "toy.case" else 1), "cases wait side by side"
        assert dag.catchup is False
        for task in dag.tasks:
            assert task.doc_md, task.task_id
            assert task.owner in ("tests", "platform")
            waits_s = [
                task.retry_delay.total_seconds() * task.retry_exponential_backoff**n
                for n in range(task.retries)
            ]
            assert sum(waits_s) > 180, "a service that is started again is waited for"
            assert task.pool in POOLS


def test_ray_jobs_have_a_pool_of_their_own_that_counts_deferred_tasks(installed: Settings) -> None:
    from tasks.core.pools import POOLS, RAY_POOL

    dags = build(installed)[0]
    assert dags["toy.train"].get_task("model.train").pool == RAY_POOL
    assert dags["toy.score"].get_task("inference.score").pool == RAY_POOL
    assert POOLS[RAY_POOL].include_deferred


@pytest.mark.parametrize("value", ["yesterday", "2024-13-01", 5])
def test_a_day_of_the_form_must_be_a_date(installed: Settings, value: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = build(installed)[0]["toy.score"].params.get_param("first_day")
    with pytest.raises(ParamValidationError):
        param.resolve(value)
    assert param.resolve("2024-02-05") == "2024-02-05"
    assert param.resolve(None) is None
    assert param.description


def test_a_rollback_needs_the_version_to_leave_and_starts_scoring_and_monitoring(installed: Settings) -> None:
    from airflow.sdk.exceptions import AirflowException

    dag = build(installed)[0]["toy.rollback"]
    expected = dag.params.get_param("expected")
    with pytest.raises((AirflowException, ValueError)):
        expected.resolve()
    assert expected.resolve(3) == 3
    assert dag.params["rescore"] is False and dag.params["to_version"] is None
    assert {asset.name for asset in dag.get_task("rollback").outlets} == {"toy.champion"}
    assert {asset.name for asset in dag.get_task("rescore").outlets} == {"toy.predictions"}
    assert dag.timetable.can_be_scheduled is False


def test_a_promotion_starts_scoring_and_a_publication_starts_monitoring(installed: Settings) -> None:
    dags = build(installed)[0]
    promoted = {asset.name for asset in dags["toy.train"].get_task("release.promote").outlets}
    published = {asset.name for asset in dags["toy.score"].get_task("inference.publish").outlets}

    def starts(dag_id: str) -> set[str]:
        return {asset.name for asset in dags[dag_id].timetable.asset_condition.objects}

    assert promoted == starts("toy.score") == {"toy.champion"}
    assert published == starts("toy.monitor") == {"toy.predictions"}
    assert dags["toy.train"].timetable.can_be_scheduled is False


def test_a_cron_expression_starts_scoring_next_to_the_asset(installed: Settings) -> None:
    from airflow.sdk import AssetOrTimeSchedule

    edit_toy(installed, "drift:", "schedule: {train: '0 2 * * 1', score: '0 4 * * *'}\ndrift:")
    dags = build(installed)[0]
    assert isinstance(dags["toy.score"].timetable, AssetOrTimeSchedule)
    assert dags["toy.train"].timetable.can_be_scheduled is True


def test_approval_stands_between_canary_and_promotion_only_when_asked_for(installed: Settings) -> None:
    assert not build(installed)[0]["toy.train"].has_task("release.approve")
    edit_toy(installed, "drift:", "promotion: {mode: approval}\ndrift:")
    approve = build(installed)[0]["toy.train"].get_task("release.approve")
    assert "release.canary" in approve.upstream_task_ids
    assert approve.downstream_task_ids == {"release.promote"}
    assert approve.defaults == ["Reject"]
    promote = build(installed)[0]["toy.train"].get_task("release.promote")
    assert {"actor", "reason"} <= set(promote.arguments), "the approver is the actor"
    assert "actor" not in promote.from_run


def test_a_ramp_puts_an_exposure_before_the_promotion_and_the_monitor_promotes(installed: Settings) -> None:
    assert not build(installed)[0]["toy.monitor"].has_task("ramp")
    edit_toy(installed, "drift:", "canary: {ramp: [0.01, 0.25]}\npromotion: {mode: approval}\ndrift:")
    dags = build(installed)[0]
    expose, promote = (dags["toy.train"].get_task(f"release.{name}") for name in ("expose", "promote"))
    assert expose.upstream_task_ids >= {"release.canary", "release.approve"}
    assert promote.upstream_task_ids >= {"release.expose"} and promote.canary.operator is expose
    assert not expose.outlets, "scoring starts when the champion changes"
    ramp, last = (dags["toy.monitor"].get_task(name) for name in ("ramp", "promote"))
    assert ramp.upstream_task_ids == {"mitigate"} and last.upstream_task_ids == {"ramp"}
    assert [asset.name for asset in last.outlets] == ["toy.champion"]
    assert "1 %, 25 %" in dags["toy.train"].doc_md


def test_building_twice_serialises_the_same_so_that_no_dag_version_is_made(installed: Settings) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    edit_toy(installed, "drift:", "promotion: {mode: approval}\nschedule: {score: '0 4 * * *'}\ndrift:")

    def dump() -> dict[str, object]:
        return {name: DagSerialization.to_dict(dag) for name, dag in build(installed)[0].items()}

    assert dump() == dump()


def test_a_broken_pipeline_leaves_the_others_and_names_file_field_and_fix(installed: Settings) -> None:
    from airflow.dag_processing.dagbag import DagBag

    break_pipeline(installed)
    bag = DagBag(dag_folder=str(DAGS), include_examples=False, collect_dags=True)
    assert set(bag.dags) == {*CHAINS, "platform.maintenance"}
    assert bag.dags["platform.maintenance"].task_ids == ["maintain_toy"]
    (where, error), *more = bag.import_errors.items()
    assert not more
    assert where.endswith("penstock_broken_pipelines.py")
    assert "broken/pipeline.yaml: lables" in error
    assert "did you mean 'label'" in error
    assert "Fix:" in error


def test_each_dag_belongs_to_one_file(installed: Settings) -> None:
    from airflow.dag_processing.dagbag import DagBag

    found: dict[str, list[str]] = {}
    for file in sorted(DAGS.glob("*.py")):
        for dag_id in DagBag(dag_folder=str(file), include_examples=False, collect_dags=True).dags:
            found.setdefault(dag_id, []).append(file.name)
    assert found == {
        **{dag_id: ["penstock_pipelines.py"] for dag_id in CHAINS},
        "platform.maintenance": ["platform_maintenance.py"],
    }


def test_all_broken_pipelines_are_named_together(installed: Settings) -> None:
    from plugins.pipeline_dags import raise_broken
    from tasks.core.errors import ConfigError

    raise_broken(installed)
    break_pipeline(installed, "one")
    break_pipeline(installed, "two")
    with pytest.raises(ConfigError, match=r"(?s)2 pipelines.*one/pipeline\.yaml.*two/pipeline\.yaml"):
        raise_broken(installed)


def test_parsing_opens_no_connection_and_imports_no_heavy_library(installed: Settings) -> None:
    program = """
import socket, sys
import airflow
from airflow.sdk import DAG
def refuse(*args, **kwargs): raise SystemExit("a DAG file opened a socket")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
import penstock_pipelines, penstock_broken_pipelines, platform_maintenance
assert "toy.train" in penstock_pipelines.dags
new = {name.split(".")[0] for name in set(sys.modules) - before}
heavy = new & set("torch ray mlflow great_expectations pandas pyarrow numpy sklearn matplotlib scipy deltalake duckdb "
                  "captum s3fs boto3 botocore httpx aiohttp fastapi sqlalchemy alembic".split())
heavy |= {name for name in sys.modules if name == "tasks.wiring"}
assert not heavy, f"DAG files import {sorted(heavy)}"
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(DAGS)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_parsing_for_one_task_builds_only_its_pipeline(
    installed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plugins.pipeline_dags as module

    monkeypatch.setattr(module, "get_parsing_context", lambda: type("C", (), {"dag_id": "other.train"}))
    assert build(installed)[0] == {}
    monkeypatch.setattr(module, "get_parsing_context", lambda: type("C", (), {"dag_id": "toy.score"}))
    assert "toy.score" in build(installed)[0]


def test_a_question_has_fields_of_its_own_beside_those_of_its_dag(installed: Settings) -> None:
    edit_toy(installed, "drift:", "promotion: {mode: approval}\ndrift:")
    dags = build(installed)[0]
    assert set(dags["toy.case"].get_task("ask").serialized_params) == {"reason", "mute_until"}
    assert set(dags["toy.train"].get_task("release.approve").serialized_params) == {"reason"}
    assert dags["toy.train"].get_task("release.promote").arguments["despite_case"] is True
