"""What many pipelines on one installation cost where all of them are looked at.

    python benchmarks/many_pipelines.py [--pipelines 1 10 100] [--write]

Copies of the tests' toy pipeline, ten to a tenant, each with 20 published, measured and decided days in SQLite. CPU is that of the calling
process, the least of five calls after one that is not counted; Airflow's part is timed in a process of its own, without its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULT = Path(__file__).parent / "results" / "many_pipelines.md"
DAYS, CALLS, OF_A_TENANT = 20, 5, 10
NOW = datetime(2024, 2, 22, tzinfo=UTC)
ASKED = {
    "all `pipeline.yaml` read": "by each of the following",
    "DAG file read: all DAGs": "DAG processor, each `min_file_process_interval` (30 s)",
    "their serialized form": "DAG processor, with it",
    "DAG file read for one task": "each start of a task",
    "`penstock metrics`": "node-exporter's file, each minute",
    "`penstock alerts send`": "`platform.alerts`, each 5 minutes",
    "page of all pipelines": "a person",
    "page of all deployments": "a person",
    "page of all tenants": "a person",
}
"""What is timed, and who asks for it how often."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipelines", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    parser.add_argument("--airflow", metavar="PROJECT", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.airflow:
        print(json.dumps(airflow_took(Path(asked.airflow))))
        return
    found = {count: took(count) for count in asked.pipelines}
    text = table(found)
    print(text)
    if asked.write:
        RESULT.write_text(text)


def took(count: int) -> dict[str, float]:
    """CPU milliseconds of everything in `ASKED` with so many pipelines."""
    from toy_installation import install_toy

    from tasks import wiring
    from tasks.core import load_pipeline, pipeline_names

    with tempfile.TemporaryDirectory() as tmp:
        settings = install_toy(Path(tmp))
        names = multiply(settings.pipelines_dir, count)
        for name in names:
            live_for_days(settings, name)
        (settings.pipelines_dir / "alerts.yaml").write_text("{}\n")
        wiring.send_alerts(settings, now=NOW)  # what is new is taken in once
        own: dict[str, Callable[[], object]] = {
            "all `pipeline.yaml` read": lambda: [
                load_pipeline(settings, name) for name in pipeline_names(settings)
            ],
            "`penstock metrics`": lambda: wiring.batch_metrics(settings, now=NOW),
            "`penstock alerts send`": lambda: wiring.send_alerts(settings, now=NOW),
            "page of all pipelines": lambda: wiring.overview(settings),
            "page of all deployments": lambda: wiring.deployments_overview(settings),
            "page of all tenants": lambda: wiring.tenancy_status(settings),
        }
        done = subprocess.run(
            [sys.executable, __file__, "--airflow", str(settings.project)],
            env={
                **os.environ,
                "AIRFLOW_HOME": f"{tmp}/airflow",
                "PENSTOCK_HOME": str(settings.home),
                "PENSTOCK_PROJECT": str(settings.project),
            },
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        airflow = json.loads(done.stdout.splitlines()[-1])
        return {what: airflow[what] if what in airflow else least_cpu_ms(own[what]) for what in ASKED}


def airflow_took(project: Path) -> dict[str, float]:
    """CPU milliseconds of Airflow's reading of the DAG file of a project, in this process."""
    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
    from airflow.serialization.serialized_objects import DagSerialization

    from plugins.pipeline_dags import build_all
    from tasks.core.settings import Settings

    settings = Settings.from_environment()
    assert settings.project == project
    dags, broken = build_all(settings)
    assert not broken, broken

    def for_one() -> None:
        with _airflow_parsing_context_manager(dag_id=next(iter(dags)), task_id="any"):
            assert len(build_all(settings)[0]) < 10

    return {
        "DAG file read: all DAGs": least_cpu_ms(lambda: build_all(settings)),
        "their serialized form": least_cpu_ms(
            lambda: [DagSerialization.to_dict(dag) for dag in dags.values()]
        ),
        "DAG file read for one task": least_cpu_ms(for_one),
    }


def multiply(folder: Path, count: int) -> list[str]:
    """Make so many pipelines of the toy's folder, ten to a tenant; returns their names."""
    import shutil

    names = ["toy", *(f"toy_{number}" for number in range(1, count))]
    for number, name in enumerate(names[1:], 1):
        shutil.copytree(folder / "toy", folder / name)
        file = folder / name / "pipeline.yaml"
        text = file.read_text().replace("name: toy\n", f"name: {name}\ntenant: team{number // OF_A_TENANT}\n")
        file.write_text(text)
    return names


def live_for_days(settings: Any, name: str) -> None:
    """Enter what a pipeline leaves in the metadata store in 20 days: a model, a run, a measurement and a decision each day."""
    from tasks.core import Finding, Verdict, load_pipeline
    from tasks.metadata import MetadataStore, ModelVersion, NewMetric
    from tasks.metadata.deployments import NewEvent

    spec, store = load_pipeline(settings, name), MetadataStore.open(settings, clock=lambda: NOW)
    bundle = "b" * 64
    store.record_model_version(spec, ModelVersion(1, bundle, "1+x", "s", "t", "toy", None, None, "", NOW, {}))
    store.append_events(spec, lambda _: [NewEvent("promote", 1, bundle, "1+x", None, "ada", "first")])
    for gate in ("data", "evaluation"):
        said = Verdict(gate, name, "x", "pass", (Finding("auc", "pass", "0.8"),), NOW.isoformat())
        store.record_verdict(spec, said)
    for number in range(DAYS):
        day, run = date(2024, 2, 1) + timedelta(number), f"run{number}"
        store.record_run(
            spec, run, status="published", model_version=1, bundle_digest=bundle, first_day=day, last_day=day,
            rows=900, shards=3, dead_letters=0, cpu_seconds=4.5, gpu_seconds=0.0, wall_s=9.0,
        )  # fmt: skip
        store.record_publication(spec, run, table_version=number, rows=900, files=3, days=[day])
        store.record_signals(spec, day=day, run_id=run, model_version=1, signals={"expected_auc": 0.75})
        store.record_metrics(spec, [NewMetric("auc", 1, day, 0.7, "monitor", run)])
        store.record_decision(
            spec, action="nothing", verdict="healthy", reasons=["nothing moved"], first_day=day, last_day=day
        )


def least_cpu_ms(call: Callable[[], object]) -> float:
    """CPU milliseconds of this process for a call: the least of several after one that is not counted."""
    call()
    found = []
    for _ in range(CALLS):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return 1000 * min(found)


def table(found: dict[int, dict[str, float]]) -> str:
    """The page of results."""
    counts = list(found)
    lines = [
        "# Many pipelines on one installation",
        "",
        "Made by `python benchmarks/many_pipelines.py --write`. CPU-ms of the process that asks, on SQLite.",
        "",
        f"| pipelines | {' | '.join(map(str, counts))} | asked by |",
        f"|---|{'---:|' * len(counts)}---|",
    ]
    for what, who in ASKED.items():
        figures = " | ".join(f"{found[count][what]:,.1f}" for count in counts)
        lines.append(f"| {what} | {figures} | {who} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
