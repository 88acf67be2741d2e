"""Ray's own autoscaler brings nodes for the workers that the ledger grants, and ends them when the workers have left.

The nodes are processes of this machine, by the provider that Ray tests itself with; what decides on them is the autoscaler of a real cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from inference_support import plan_stub, scoring_snapshot, table_rows
from installation import until
from ray.util import get_node_ip_address
from services import free_port
from share_files import say
from tenancy_support import pipeline_of
from test_tenancy_on_ray import INFERENCE, PATH, result_of, start_driver

from tasks.core import Settings
from tasks.inference import verify
from tasks.metadata import MetadataStore

pytestmark = pytest.mark.ray

HEAD = "f" * 51 + "00000"
"""The provider knows the head by this id."""
MOST_NODES = 3
STORE_BYTES = 80 << 20


@pytest.fixture
def growing_ray(tmp_path: Path) -> Iterator[str]:
    """Address of a head without CPUs, to which up to three nodes with a CPU and a logical GPU each may come."""
    port = free_port()
    address = f"{get_node_ip_address()}:{port}"
    node = {"CPU": 1, "GPU": 1, "object_store_memory": STORE_BYTES}
    config = {
        "cluster_name": "growing",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        **{f"{part}setup_commands": [] for part in ("", "head_", "worker_")},
        **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
        **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
        "file_mounts": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
        },
    }
    file, log = tmp_path / "autoscaling.json", tmp_path / "ray.log"
    file.write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += [f"--ray-client-server-port={free_port()}", f"--autoscaling-config={file}"]
    command += ["--num-cpus=0", "--num-gpus=0", f"--object-store-memory={STORE_BYTES}"]
    folder = tempfile.mkdtemp(
        prefix="penstock-ray-"
    )  # in Ray's own, its address would be taken for that of the machine's cluster
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    env = {
        **os.environ,
        "AUTOSCALER_METRIC_PORT": str(free_port()),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": PATH,
        "RAY_AUTH_MODE": "disabled",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_enable_autoscaler_v2": "1",
    }
    with log.open("wb") as sink:
        head = subprocess.Popen(command, env=env, stdout=sink, stderr=subprocess.STDOUT)
    try:
        until(
            lambda: "block forever" in log.read_text() or head.poll() is not None or None, f"the head ({log})"
        )
        assert head.poll() is None, log.read_text()
        yield address
    finally:
        head.terminate()
        head.wait(90)
        for process in psutil.process_iter():  # nodes that a failed test has left
            try:
                if any(address in word for word in process.cmdline()):
                    process.kill()
            except psutil.Error:
                continue
        shutil.rmtree(folder, ignore_errors=True)


def test_nodes_come_for_workers_that_are_granted_and_go_when_these_have_left(
    settings: Settings, tmp_path: Path, growing_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    say(
        settings,
        f"{{autoscaled: true, gpus: {MOST_NODES}, cpus: {MOST_NODES}, beat_s: 0.5}}",
        red="share: {guarantee: {gpus: 2}, borrow: {gpus: 0}}",
    )
    red = pipeline_of(settings, "red", INFERENCE)
    planned = plan_stub(settings, red, scoring_snapshot(settings, red, days=3))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(address=growing_ray, log_to_driver=False)
    seen: set[int] = set()

    def gpus() -> int:
        there = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
        seen.add(int(there))
        return int(there)

    driver = None
    try:
        assert gpus() == 0
        gate = tmp_path / "go"
        gate.touch()
        driver = start_driver(settings, growing_ray, red.name, planned.run_id, gate)
        until(lambda: gpus() == 2 or None, "two nodes")
        report = result_of(driver)
        until(lambda: gpus() == 0 or None, "the end of both nodes")
    finally:
        if driver is not None:
            driver.kill()
            driver.wait()
        ray.shutdown()
    assert max(seen) == 2, "the tenant may have two, and the third that the cluster could bring stays away"
    assert report.get("shards_committed") == len(planned.shards), report
    assert verify(settings, red, planned.run_id).ok
    assert len(table_rows(settings, red)) == planned.rows
    assert MetadataStore.open(settings).lease_rows() == []
