"""Two tenants on one real Ray with four logical GPUs: guarantee, borrowing, reclaim at a shard boundary, nothing lost or repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from inference_support import plan_stub, scoring_snapshot, table_rows
from share_files import say
from tenancy_support import pipeline_of

from tasks import wiring
from tasks.core import Settings, open_store, utc_now
from tasks.inference import verify
from tasks.inference.records import read_shard_records
from tasks.metadata import MetadataStore
from tasks.training.tracking import Tracked
from tasks.training.trainer import train
from tasks.wiring.context import open_context
from tasks.wiring.gang import gang

HERE = Path(__file__).parent
PATH = os.pathsep.join([str(HERE), str(HERE.parent / "inference"), str(HERE.parents[1])])
INFERENCE = "{shard_rows: 20, batch_rows: 64, max_workers: 4, gpus_per_worker: 1, cpus_per_worker: 1, slow_shard_factor: 0}"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray of eight CPUs and four logical GPUs, which ends with this process and whose actors find the modules of the tests."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = (
        PATH  # not by a runtime environment: each of its processes would import Ray twice
    )
    ray.init(
        address="local",  # never another one of this machine
        num_cpus=8,
        num_gpus=4,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def start_driver(
    settings: Settings, address: str, pipeline: str, run_id: str, gate: Path, *model: str
) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        **settings.as_environment(),
        "PYTHONPATH": PATH,
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(HERE / "tenancy_support.py"), pipeline, run_id, str(gate), *model]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result_of(driver: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = driver.communicate(timeout=240)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    assert lines, output
    return json.loads(lines[-1].removeprefix("RESULT "))  # type: ignore[no-any-return]


class Ledger:
    """What the ledger said at each look: by tenant, (granted, there)."""

    def __init__(self, settings: Settings) -> None:
        self._store = MetadataStore.open(settings)
        self.seen: list[dict[str, tuple[int, int]]] = []

    def look(self) -> dict[str, tuple[int, int]]:
        found = {row["tenant"]: (row["width"], row["workers"]) for row in self._store.lease_rows()}
        self.seen.append(found)
        return found

    def watch(self, over: threading.Event) -> None:
        while not over.wait(0.05):
            self.look()

    def until(self, what: Callable[[dict[str, tuple[int, int]]], bool], *, limit_s: float = 120) -> None:
        end_s = time.monotonic() + limit_s
        while not what(self.look()):
            assert time.monotonic() < end_s, f"it did not come to that: {self.seen[-1]}"
            time.sleep(0.05)


def test_an_idle_guarantee_is_lent_and_taken_back_at_a_shard_boundary_and_no_shard_is_lost_or_repeated(
    settings: Settings, tmp_path: Path, ray_address: str
) -> None:
    say(
        settings,
        "{gpus: 4, cpus: 8, beat_s: 0.5}",
        red="share: {guarantee: {gpus: 2}}",
        blue="share: {guarantee: {gpus: 2}}",
    )
    red, blue = (pipeline_of(settings, tenant, INFERENCE) for tenant in ("red", "blue"))
    plans = {
        spec.tenant: (spec, plan_stub(settings, spec, scoring_snapshot(settings, spec, days=days)))
        for spec, days in ((red, 11), (blue, 3))
    }
    gates = {name: tmp_path / f"go-{name}" for name in plans}
    drivers = {
        name: start_driver(settings, ray_address, spec.name, planned.run_id, gates[name])
        for name, (spec, planned) in plans.items()
    }
    ledger = Ledger(settings)
    try:
        gates["red"].touch()
        ledger.until(lambda now: now.get("red") == (4, 4))  # borrows what blue leaves idle
        status = wiring.tenancy_status(settings)
        assert next(one for one in status["shares"] if one["tenant"] == "red")["borrows"] == "2 GPUs"
        gates["blue"].touch()
        ledger.until(lambda now: now.get("blue", (0, 0))[0] >= 1)
        ledger.until(lambda now: now.get("blue") == (2, 2) and now.get("red") == (2, 2))
        ledger.until(lambda now: "blue" not in now)
        ledger.until(lambda now: now.get("red", (4, 4)) == (4, 4) or "red" not in now)  # lent again
        reports = {name: result_of(driver) for name, driver in drivers.items()}
    finally:
        for driver in drivers.values():
            driver.kill()
            driver.wait()
    for now in ledger.seen:
        assert sum(max(one) for one in now.values()) <= 4, f"more than there is: {now}"
    for name, (spec, planned) in plans.items():
        report = reports[name]
        assert report.get("shards_committed") == len(planned.shards), report
        assert verify(settings, spec, planned.run_id).ok
        assert len(table_rows(settings, spec)) == planned.rows
        store = open_store(settings, prefix=spec.prefix)
        written = [info.key for info in store.list("tables/predictions") if info.key.endswith(".parquet")]
        records = read_shard_records(store, planned.run_id, [task.shard for task in planned.shards])
        assert len(written) == sum(len(record.files) for record in records), "a file of a repeated shard"
    now = utc_now()
    kept = MetadataStore.open(settings).allocation_rows(
        since=now - timedelta(hours=1), until=now + timedelta(hours=1)
    )
    assert {row["tenant"]: row["outcome"] for row in kept} == {"red": "finished", "blue": "finished"}
    for row in kept:
        assert row["allocated_s"] == pytest.approx(row["used_s"] + row["idle_s"] + row["wasted_s"])
        assert row["used_s"] > 0 and row["wasted_s"] == 0, "giving workers back wastes nothing"
    assert MetadataStore.open(settings).lease_rows() == []


def test_a_training_gets_all_of_its_workers_from_a_run_that_borrows_them_and_keeps_them(
    settings: Settings, tmp_path: Path, ray_address: str
) -> None:
    say(
        settings,
        "{cpus: 4, beat_s: 0.5}",
        red="share: {guarantee: {cpus: 2}}",
        blue="share: {guarantee: {cpus: 2}}",
    )
    red = pipeline_of(settings, "red", INFERENCE.replace("gpus_per_worker: 1, ", ""))
    blue = pipeline_of(settings, "blue", "{}")
    path = settings.pipelines_dir / blue.name / "pipeline.yaml"
    path.write_text(path.read_text().replace("training: {epochs: 6", "training: {workers: 2, epochs: 2"))
    context = open_context(settings, blue.name)
    snapshot = wiring.step("snapshot_training")(settings, blue.name)
    planned = plan_stub(settings, red, scoring_snapshot(settings, red, days=8))
    gate = tmp_path / "go"
    driver = start_driver(settings, ray_address, red.name, planned.run_id, gate)
    ledger = Ledger(settings)
    over = threading.Event()
    try:
        gate.touch()
        ledger.until(lambda now: now.get("red") == (4, 4))
        watch = threading.Thread(target=ledger.watch, args=(over,))
        watch.start()
        model = train(
            settings,
            context.spec,
            context.snapshot(snapshot["snapshot_id"]),
            validation_first_day=date.fromisoformat(snapshot["validation_first_day"]),
            show=lambda *_, **__: Tracked("r", "e", "m"),
            workers=partial(gang, context),
        )
        over.set()
        watch.join()
        report = result_of(driver)
    finally:
        over.set()
        driver.kill()
        driver.wait()
    assert model.workers == 2 and model.epochs == 2
    granted = [now.get("blue", (0, 0))[0] for now in ledger.seen]
    assert set(granted) == {0, 2}, "all or none"
    assert "020" not in "".join(map(str, granted)).replace("22", "2").strip("0"), "kept to the end"
    for now in ledger.seen:
        assert sum(max(one) for one in now.values()) <= 4, f"more than there is: {now}"
    assert report.get("shards_committed") == len(planned.shards), report
    assert verify(settings, red, planned.run_id).ok
    lines = {line["kind"]: line for line in wiring.cost_ledger(settings)["lines"]}
    for line in lines.values():
        assert line["outcome"] == "finished" and line["used_s"] > 0
        assert line["allocated_s"] == pytest.approx(line["used_s"] + line["idle_s"] + line["wasted_s"])
    assert lines["scoring"]["rows"] == planned.rows and lines["scoring"]["bytes_written"] > 0
    assert lines["training"]["cpu_seconds"] == pytest.approx(lines["training"]["allocated_s"])


def test_a_worker_that_takes_more_memory_than_its_own_fails_and_its_neighbour_goes_on(
    settings: Settings, tmp_path: Path, ray_address: str
) -> None:
    limited = INFERENCE.replace("max_workers: 4", "max_workers: 1, memory_gib_per_worker: GIB")
    runs = {}
    gate = tmp_path / "go"
    for tenant, gib, model in (
        ("red", 2, "load_hungry"),
        ("blue", 4, "load_slow"),
        ("green", 4, "load_hungry"),
    ):
        spec = pipeline_of(
            settings,
            tenant,
            limited.replace("GIB", str(gib)).replace("gpus_per_worker: 1", "gpus_per_worker: 0"),
        )
        planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1))
        runs[tenant] = (
            spec,
            planned,
            start_driver(settings, ray_address, spec.name, planned.run_id, gate, model),
        )
    try:
        gate.touch()
        reports = {tenant: result_of(driver) for tenant, (_, _, driver) in runs.items()}
    finally:
        for _, _, driver in runs.values():
            driver.kill()
            driver.wait()
    assert reports["red"]["type"] == "OutOfMemory", reports["red"]
    assert "needs more memory than its 2 GiB (inference.memory_gib_per_worker)" in reports["red"]["what"]
    for tenant in ("blue", "green"):  # green eats as much as red, and may
        spec, planned, _ = runs[tenant]
        assert reports[tenant].get("shards_committed") == len(planned.shards), reports[tenant]
        assert verify(settings, spec, planned.run_id).ok
