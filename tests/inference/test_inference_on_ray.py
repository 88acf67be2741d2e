"""The same protocol on a real local Ray, started for the test and ended with its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_support import upload_random_bundle
from inference_support import AUDIT, plan_stub, scoring_snapshot, table_rows

from tasks.core import PipelineSpec, Settings, open_store
from tasks.inference import plan, publish, published_records, run_plan, verify
from tasks.inference.commit import newest_token
from tasks.inference.records import published_key, shard_key
from tasks.inference.shard import DEFAULT_MODEL, ShardWorker
from tasks.model import Profile, fetch_bundle

HERE = Path(__file__).parent

pytestmark = pytest.mark.ray


def score_on_ray(settings: Settings, run_id: str, loader: str) -> tuple[dict[str, Any], str]:
    env = {
        **os.environ,
        **settings.as_environment(),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "ray_support.py"), run_id, loader],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[-1].removeprefix("RESULT ")), done.stdout + done.stderr


def test_ray_scores_what_is_missing_with_the_real_model_and_the_table_equals_a_local_run(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
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

    report, output = score_on_ray(settings, planned.run_id, DEFAULT_MODEL)
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


def test_an_error_inside_an_actor_keeps_its_class(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    report, output = score_on_ray(settings, planned.run_id, "ray_failures:load_broken")
    assert report.get("type") == "DigestMismatch", output
    assert report["which"] == "bundle dddd"
    assert table_rows(settings, toy) == []
