"""The same protocol on a real local Ray, started for the test and ended with its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bundle_support import upload_random_bundle
from inference_support import (
    AUDIT,
    FIRST_DAY,
    STUB,
    plan_stub,
    run_stub,
    scoring_snapshot,
    table_rows,
    with_prices,
)
from ray_failures import DEADLY_PRICE
from receivers import receiving
from toy_installation import install_toy

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store
from tasks.core.errors import ServiceUnavailable, TransientError
from tasks.inference import Plan, plan, publish, published_records, run_plan, verify
from tasks.inference.commit import newest_token
from tasks.inference.records import published_key, shard_key
from tasks.inference.shard import DEFAULT_MODEL, ShardWorker
from tasks.model import Profile, fetch_bundle

HERE = Path(__file__).parent
PATH = os.pathsep.join([str(HERE), str(HERE.parents[1])])

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """Address of a Ray of two CPUs and no GPU, which this process has joined, whose actors find the modules of the tests."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = (
        PATH  # not by a runtime environment: each of its processes would import Ray twice
    )
    ray.init(
        address="local",  # never another one of this machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def with_inference(spec: PipelineSpec, **fields: Any) -> PipelineSpec:
    return spec.model_copy(update={"inference": spec.inference.model_copy(update=fields)})


def planned_with_a_deadly_row(settings: Settings, spec: PipelineSpec) -> Plan:
    """Six shards of 60 rows; the fourth has the row."""

    def change(rows: pa.Table) -> pa.Table:
        second = rows.column("asked_at")[60].as_py().date() == FIRST_DAY + timedelta(days=1)
        return with_prices({100: DEADLY_PRICE})(rows) if second else rows

    return plan_stub(settings, spec, scoring_snapshot(settings, spec, change=change))


def score_on_ray(settings: Settings, run_id: str, loader: str, *, address: str) -> tuple[dict[str, Any], str]:
    """A driver in a process of its own, on the Ray at `address`; its result and all that it said."""
    (result,), said = driver(settings, "ray_support.py", run_id, loader, RAY_ADDRESS=address)
    return result, said


def driver(settings: Settings, script: str, *arguments: str, **more: str) -> tuple[list[dict[str, Any]], str]:
    """The results of a script of these tests in a process of its own, and all that it said."""
    env = {
        **os.environ,
        **settings.as_environment(),
        "PYTHONPATH": PATH,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(HERE / script), *arguments]
    try:
        done = subprocess.run(command, env={**env, **more}, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"") + (late.stderr or b"")  # bytes, whatever was asked for
        pytest.fail(f"{script} was not over after 240 s:\n{said.decode()}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    return [json.loads(line.removeprefix("RESULT ")) for line in lines], done.stdout + done.stderr


def test_ray_scores_what_is_missing_with_the_real_model_and_the_table_equals_a_local_run(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, local_ray: str
) -> None:
    digest, version = upload_random_bundle(settings, toy, tmp_path / "bundle")
    planned = plan(
        settings,
        toy,
        scoring_snapshot(settings, toy),
        model_version=1,
        bundle_digest=digest,
        feature_version=version,
    )
    run_plan(settings, toy, planned.run_id, local=True, audit_table=AUDIT)
    publish(settings, toy, planned.run_id)
    wanted = {name: table_rows(settings, toy, name) for name in ("predictions", "audit")}
    store = open_store(settings, prefix=toy.prefix)
    for info in list(store.list("tables")):
        store.delete(info.key)
    for shard in (0, 1, 2, 3, 4, 5):
        store.delete(shard_key(planned.run_id, shard))
    store.delete(published_key(planned.run_id))
    ShardWorker(settings, toy, planned, newest_token(store, planned.run_id), audit_table=AUDIT).run(3)

    report, output = score_on_ray(settings, planned.run_id, DEFAULT_MODEL, address=local_ray)
    assert (report.get("shards_committed"), report.get("shards_skipped")) == (5, 1), output
    assert "Shard 5 of 5" in output
    assert {name: table_rows(settings, toy, name) for name in wanted} == wanted
    assert verify(settings, toy, planned.run_id).ok
    grid = fetch_bundle(store, digest, settings.cache_dir / "bundles").profile_spec
    profiles = [
        Profile.from_json(grid, record.profile)
        for record in published_records(settings, toy, planned.days)
        if record.profile
    ]
    assert Profile.merged(grid, profiles).rows == 360


def test_an_error_inside_an_actor_keeps_its_class(
    settings: Settings, toy: PipelineSpec, local_ray: str
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    report, output = score_on_ray(settings, planned.run_id, "ray_failures:load_broken", address=local_ray)
    assert report.get("type") == "DigestMismatch", output
    assert report["which"] == "bundle dddd"
    assert table_rows(settings, toy) == []


def test_a_worker_that_is_killed_is_replaced_and_its_shard_scored_again(
    settings: Settings, toy: PipelineSpec, local_ray: str
) -> None:
    spec = with_inference(toy, min_workers=2, max_workers=2)
    planned = planned_with_a_deadly_row(settings, spec)
    report = run_plan(
        settings, spec, planned.run_id, audit_table=AUDIT, load_model="ray_failures:load_killed_once"
    )
    assert (settings.home / "killed").exists()
    assert (report.shards_committed, report.rows_scored, report.dead_letters) == (6, 360, 0)
    publish(settings, spec, planned.run_id)
    assert verify(settings, spec, planned.run_id).ok
    assert len(table_rows(settings, spec)) == 360


def test_a_shard_that_kills_each_of_its_workers_fails_by_name_and_the_others_are_kept(
    settings: Settings, toy: PipelineSpec, local_ray: str
) -> None:
    spec = with_inference(toy, max_workers=2, shard_attempts=2)
    planned = planned_with_a_deadly_row(settings, spec)
    with pytest.raises(TransientError, match="ended its worker process 2 times") as caught:
        run_plan(
            settings, spec, planned.run_id, audit_table=AUDIT, load_model="ray_failures:load_killed_always"
        )
    assert f"shard 00003 of run {planned.run_id}" in str(caught.value)
    assert "a worker has no limit (inference.memory_gib_per_worker)" in str(caught.value)
    assert "5 of 6 shards are committed" in str(caught.value)
    with pytest.raises(TransientError):
        publish(settings, spec, planned.run_id)
    assert run_stub(settings, spec, planned.run_id).shards_committed == 1


def test_a_worker_that_stands_still_does_not_hold_the_run(
    settings: Settings, toy: PipelineSpec, local_ray: str
) -> None:
    spec = with_inference(toy, min_workers=2, max_workers=2, slow_shard_factor=2.0)
    planned = planned_with_a_deadly_row(settings, spec)
    report = run_plan(
        settings, spec, planned.run_id, audit_table=AUDIT, load_model="ray_failures:load_stopped_once"
    )
    assert (settings.home / "stopped").exists()
    assert (report.shards_committed, report.rows_scored) == (6, 360)
    publish(settings, spec, planned.run_id)
    assert verify(settings, spec, planned.run_id).ok


def test_a_run_that_no_node_can_place_ends_with_what_it_needs(
    settings: Settings, toy: PipelineSpec, local_ray: str
) -> None:
    spec = with_inference(toy, gpus_per_worker=1.0, placement_timeout_s=2.0)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1))
    with pytest.raises(ServiceUnavailable, match=r"each needs 1 CPU and 1 GPU on one node") as caught:
        run_plan(settings, spec, planned.run_id, audit_table=AUDIT, load_model=STUB)
    assert "'GPU': 0" in str(caught.value)
    assert run_stub(settings, spec, planned.run_id).shards_committed == 2


@dataclass(frozen=True)
class Lost:
    """Two runs on one Ray of two nodes: the first lost one of them in its middle, the second the last one."""

    settings: Settings
    spec: PipelineSpec
    runs: tuple[str, str]
    reports: list[dict[str, Any]]
    said: str


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    settings = install_toy(tmp_path_factory.mktemp("nodes"))
    spec = load_pipeline(settings, "toy")
    snapshot = scoring_snapshot(settings, spec, days=4)
    first, second = (plan_stub(settings, spec, snapshot, version).run_id for version in (1, 2))
    reports, said = driver(settings, "ray_nodes.py", first, second)
    return Lost(settings, spec, (first, second), reports, said)


def test_a_node_that_is_taken_away_costs_only_the_shard_it_was_at(lost: Lost) -> None:
    report = lost.reports[0]
    assert report.get("shards_committed") == 8, lost.said
    assert report["taken_at"] < 8, "the node went when the run was over already"
    assert verify(lost.settings, lost.spec, lost.runs[0]).ok
    assert len(table_rows(lost.settings, lost.spec)) == 480


def test_a_run_whose_last_node_is_taken_away_ends_and_keeps_what_was_committed(lost: Lost) -> None:
    report = lost.reports[1]
    assert report.get("type") == "ServiceUnavailable", lost.said
    assert "each needs 1 CPU on one node; the whole cluster has" in report["what"]
    assert 0 < run_stub(lost.settings, lost.spec, lost.runs[1]).shards_committed < 8


def test_workers_write_lines_with_their_ids_and_the_driver_tells_their_spans(
    settings: Settings, toy: PipelineSpec, local_ray: str
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=2))
    with receiving() as collector:
        seen = replace(settings, log_format="json", otlp_url=collector.url)
        report, said = score_on_ray(seen, planned.run_id, STUB, address=local_ray)
    assert report["shards_committed"] == len(planned.shards)
    lines = [
        json.loads(line[line.index("{") :])
        for line in said.splitlines()
        if "(ShardActor" in line and "{" in line
    ]
    scored = {line["shard"]: line for line in lines if line["message"].endswith(" s.")}
    assert set(scored) == {task.shard for task in planned.shards}
    for line in scored.values():
        assert (line["tenant"], line["pipeline"], line["run_id"]) == ("default", "toy", planned.run_id)
        assert line["attempt"].startswith("a0001-") and line["token"] == 1
    assert collector.spans == []  # nothing was around this driver's work: no trace is begun for shards alone
