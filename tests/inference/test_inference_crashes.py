"""SIGKILL at every named point, then resume: the tables equal those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from children import Script, assert_killed
from inference_support import plan_stub, run_stub, scoring_snapshot, table_rows

from tasks.core import PipelineSpec, Settings
from tasks.core.crash_points import POINTS
from tasks.core.errors import StaleAttempt
from tasks.inference import publish, verify

HERE = Path(__file__).parent
INFERENCE_POINTS = [
    point
    for point in POINTS
    if not any(
        part in point
        for part in (
            *("append", "archive", "eras", "expired", "fold", "optimize"),
            *("replay", "restore", "returned", "segment"),
        )
    )
]


def start_child(
    settings: Settings, run_id: str, point: str, nth: int, *, script: str = "crash_child.py"
) -> Script:
    env = {**os.environ, **settings.as_environment()}
    return Script(HERE / script, run_id, point, str(nth), env=env)


def undisturbed(settings: Settings, spec: PipelineSpec, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of the same run in a store of its own."""
    elsewhere = Settings.at_home(tmp_path / "undisturbed", project=settings.project)
    planned = plan_stub(elsewhere, spec, scoring_snapshot(elsewhere, spec))
    run_stub(elsewhere, spec, planned.run_id)
    publish(elsewhere, spec, planned.run_id)
    return {name: table_rows(elsewhere, spec, name) for name in ("predictions", "audit")}


def assert_resumes(settings: Settings, spec: PipelineSpec, run_id: str, wanted: dict[str, list[Any]]) -> None:
    run_stub(settings, spec, run_id)
    publish(settings, spec, run_id)
    assert {name: table_rows(settings, spec, name) for name in wanted} == wanted
    found = verify(settings, spec, run_id)
    assert found.ok, found.problems


@pytest.mark.parametrize("point", INFERENCE_POINTS)
def test_a_run_killed_at_any_point_loses_and_repeats_nothing(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, point: str
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    child = start_child(settings, planned.run_id, point, 1 if "commit" in point or "marker" in point else 3)
    assert_killed(child)
    committed = point in ("after-delta-commit", "after-published-marker")
    assert len(table_rows(settings, toy)) == (360 if committed else 0), "a reader sees all of a run or none"
    assert_resumes(settings, toy, planned.run_id, undisturbed(settings, toy, tmp_path))


@pytest.mark.s3
@pytest.mark.parametrize("point", ["after-data-file", "after-record", "after-delta-commit"])
def test_a_run_killed_on_s3_loses_and_repeats_nothing(
    s3_url: str, settings: Settings, toy: PipelineSpec, tmp_path: Path, point: str
) -> None:
    import dataclasses

    import s3_endpoint

    remote = dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=s3_url)
    planned = plan_stub(remote, toy, scoring_snapshot(remote, toy))
    child = start_child(remote, planned.run_id, point, 1)
    assert_killed(child)
    assert_resumes(remote, toy, planned.run_id, undisturbed(settings, toy, tmp_path))


def test_two_drivers_at_once_lose_and_repeat_nothing(
    store_settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    planned = plan_stub(store_settings, toy, scoring_snapshot(store_settings, toy))
    children = [start_child(store_settings, planned.run_id, "none", 1) for _ in range(2)]
    for code, said in [child.ended() for child in children]:
        assert code == 0 or StaleAttempt.__name__ in said, said
    assert_resumes(store_settings, toy, planned.run_id, undisturbed(store_settings, toy, tmp_path))


def test_a_paused_driver_that_wakes_up_late_is_refused(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    import time

    from tasks.core import open_store
    from tasks.inference.commit import newest_token

    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    store = open_store(settings, prefix=toy.prefix)
    child = start_child(settings, planned.run_id, "none", 1)
    while newest_token(store, planned.run_id) == 0:
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGSTOP)
    try:
        assert_resumes(settings, toy, planned.run_id, undisturbed(settings, toy, tmp_path))
    finally:
        child.send_signal(signal.SIGCONT)
    code, said = child.ended()
    assert code == 0 or StaleAttempt.__name__ in said, said
    assert_resumes(settings, toy, planned.run_id, undisturbed(settings, toy, tmp_path / "again"))
