"""Two tenants with a pipeline each, and one of their drivers in a process of its own: `tenancy_support.py PIPELINE RUN_ID GATE [LOADER]`."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from inference_support import AUDIT, StubModel
from sqlalchemy import insert, select, update

from tasks.core import PenstockError, PipelineSpec, Settings, load_pipeline
from tasks.inference import Plan, publish, run_plan
from tasks.metadata.database import Database
from tasks.metadata.tables import lease_requests, leases
from tasks.tenancy import Lease
from tasks.wiring.admission import admission
from tasks.wiring.context import open_context

SHARD_S = 1.0


class Slow(StubModel):
    """Takes a second for a shard."""

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        time.sleep(SHARD_S)
        return super().predict(encoded)


class Hungry(StubModel):
    """Takes two GiB for a batch, and writes into all of it."""

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        eaten = np.ones((2 << 30) // 8)
        return super().predict(encoded) * np.float32(eaten[-1])


def load_hungry(settings: Settings, spec: PipelineSpec, planned: Plan) -> Hungry:
    return Hungry(planned.fingerprint.model_version)


def load_slow(settings: Settings, spec: PipelineSpec, planned: Plan) -> Slow:
    return Slow(planned.fingerprint.model_version)


def pipeline_of(settings: Settings, tenant: str, inference: str) -> PipelineSpec:
    """A copy of the toy pipeline that belongs to `tenant`, under the name `<tenant>_toy`."""
    name = f"{tenant}_toy"
    folder = settings.pipelines_dir / name
    shutil.copytree(settings.pipelines_dir / "toy", folder)
    path = folder / "pipeline.yaml"
    lines = [
        line
        for line in path.read_text().splitlines()
        if not line.startswith(("name:", "tenant:", "inference:"))
    ]
    path.write_text(
        "\n".join([f"name: {name}", f"tenant: {tenant}", f"inference: {inference}", *lines]) + "\n"
    )
    return load_pipeline(settings, name)


def many_wait(settings: Settings, like: Lease, count: int) -> None:
    """So many more requests like that one, each of a run and an attempt of its own, heard of just now."""
    with Database(settings.metadata_url).write() as connection:
        clock = select(leases.c.beat_s).where(leases.c.tenant == "*")
        row = {name: value for name, value in vars(like).items() if name in lease_requests.c}
        row |= {
            "ended": False,
            "heard": 0,
            "pause_s": 0.0,
            "beat_s": connection.execute(clock).scalar() or 0.0,
        }
        names = [f"w{number:06d}" for number in range(count)]
        rows = [{**row, "run_id": name, "holder": name} for name in names]
        # What a statement returns makes SQLAlchemy put many rows into one; at each of them PostgreSQL counts all of a tenant's.
        connection.execute(insert(lease_requests).returning(lease_requests.c.run_id), rows)


def silent(settings: Settings, run_id: str, tenant: str | None = None) -> None:
    """Make the run one that was heard of last longer ago than a lease of a minute lasts."""
    with Database(settings.metadata_url).write() as connection:
        mine = update(lease_requests).where(lease_requests.c.run_id == run_id)
        if tenant is not None:
            mine = mine.where(lease_requests.c.tenant == tenant)
        connection.execute(mine.values(beat_s=lease_requests.c.beat_s - lease_requests.c.pause_s - 61))


def main() -> None:
    import ray

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings.from_environment()
    pipeline, run_id, gate, *more = sys.argv[1:]
    model = more[0] if more else "load_slow"
    context = open_context(settings, pipeline)
    ray.init(address="auto", log_to_driver=False)
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    while not Path(gate).exists():
        time.sleep(0.05)
    try:
        width = admission(context, run_id)
        report = run_plan(
            settings,
            context.spec,
            run_id,
            audit_table=AUDIT,
            load_model=f"tenancy_support:{model}",
            width=width,
        )
        publish(settings, context.spec, run_id)
        sys.stdout.write("RESULT " + json.dumps(report.to_json()) + "\n")
    except PenstockError as error:
        sys.stdout.write("RESULT " + json.dumps(error.as_record()) + "\n")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
