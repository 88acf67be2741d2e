"""The production profile with real flights in it, and faults that strike it in the middle of a run.

A clean run scores all days first. Each fault then strikes a run of its own, which scores some of these days again: with
the same model each row must come out as it was, and a reader sees the run before, whole, until the new one is published.
The tests use a few of `FAULTS`; `benchmarks/production_faults.py` uses all, and writes their table. Each strikes days of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from fault_proxy import Fault, FaultProxy
from installation import CHECKOUT, Installation, until
from memory_cgroup import MemoryCgroup
from services import free_port
from small_disk import SmallDisk

from tasks.core import load_pipeline, open_store
from tasks.inference.records import committed_shards, read_plan
from tasks.local import survey
from tasks.local.parts import answers, ray_folder
from tasks.local.services import _living, _services

PIPELINE = "flight_delay"
TRAIN, SCORE, MONITOR = (f"{PIPELINE}.{kind}" for kind in ("train", "score", "monitor"))
SCORE_TASK = "inference.score"
FIRST_DAY = date(2013, 2, 5)
_SMALLER = {
    "train: { first_day: 2013-01-01, last_day: 2013-03-31 }": "train: { first_day: 2013-01-01, last_day: 2013-01-21 }",
    "validation: { first_day: 2013-04-01, last_day: 2013-04-30 }": "validation: { first_day: 2013-01-22, last_day: 2013-02-04 }",
    "epochs: 40": "epochs: 6",
    "refit: true": "refit: false",
    "min_auc: 0.68": "min_auc: 0.55",
    "max_ece: 0.08": "max_ece: 0.3",
    "auc_margin_baseline: -0.01": "auc_margin_baseline: -0.2",
    "noninferiority_margin_auc: 0.01": "noninferiority_margin_auc: 0.2",
    "slices: [carrier, origin]": "slices: [origin]",
    "slice_min_auc: 0.55": "slice_min_auc: 0.5\n  bootstrap_samples: 100",
    "shard_rows: 50000": "shard_rows: SHARD_ROWS\n  min_workers: 2\n  max_workers: 2\n  placement_timeout_s: 120",
}
_HOLD = """

_calls = 0


def _wait_while_held() -> None:
    import os
    import time
    from pathlib import Path

    global _calls
    _calls += 1
    project = Path(os.environ["PENSTOCK_PROJECT"])
    while _calls > 3 and (project / "hold").exists():
        (project / "held" / str(os.getpid())).touch()
        _eat_when_told()
        time.sleep(0.1)


def _eat_when_told() -> None:
    import os
    from pathlib import Path

    import numpy

    try:
        who = Path(os.environ["PENSTOCK_PROJECT"], "hungry").read_text()
    except FileNotFoundError:
        return
    if who in ("all", str(os.getpid())):
        eaten = numpy.empty(5 << 29, numpy.uint8)
        if who != "all":
            eaten.fill(1)
"""
"""While the file `hold` is there, a process gets the features of its golden rows and of two shards, and then says in `held` that it waits.

`hungry` makes features ask for 2.5 GiB: in every process, or in one that takes them.
"""


def days(first: int, count: int = 2) -> tuple[str, str]:
    """First and last of `count` days, the first of all having number 0."""
    begin = FIRST_DAY + timedelta(days=first)
    return str(begin), str(begin + timedelta(days=count - 1))


class Line:
    """The installation, driven as people drive it, and hit where it hurts."""

    def __init__(self, root: Path, *, shard_rows: int = 60) -> None:
        self.installation = Installation(root, CHECKOUT)
        for folder in (self.installation.project / "pipelines").iterdir():
            if folder.is_dir() and folder.name != PIPELINE:
                shutil.rmtree(folder)
        smaller = {old: new.replace("SHARD_ROWS", str(shard_rows)) for old, new in _SMALLER.items()}
        self.installation.edit(PIPELINE, "pipeline.yaml", smaller)
        features = self.installation.project / "pipelines" / PIPELINE / "features.py"
        head = 'in its order."""\n'
        text = features.read_text()
        assert head in text
        features.write_text(
            text.replace(head, f"{head}    _wait_while_held()\n    _eat_when_told()\n") + _HOLD
        )
        (self.installation.project / "held").mkdir()
        self.clean: pa.Table | None = None
        self._runs = 0

    @property
    def airflow(self) -> Any:
        return self.installation.airflow

    # -- services

    def up(self) -> str:
        """`penstock up --profile production`; what it printed."""
        done = self.installation.penstock("up", "--profile", "production")
        assert done.returncode == 0, done.stdout
        return done.stdout

    def state(self, name: str) -> Any:
        return next(state for state in survey(self.installation.settings) if state.name == name)

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a service, as when its machine is gone."""
        for process in [p for p, service in _living(self.installation.settings).items() if service == name]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        until(lambda: not self.state(name).running or None, f"{name} to be gone")

    def end(self, name: str) -> None:
        """End a service in order, as when somebody stops it."""
        service = next(s for s in _services(self.installation.settings) if s.name == name)
        psutil.Process(self.state(name).pid).send_signal(service.ends_by)
        until(lambda: not self.state(name).running or None, f"{name} to end")

    @contextmanager
    def store_behind_a_proxy(self) -> Iterator[FaultProxy]:
        """The S3 endpoint moves to another port, and a proxy that can misbehave takes its place."""
        settings = self.installation.settings
        service = next(s for s in _services(settings) if s.name == "objects")
        assert service.url and service.env
        port, other = int(service.url.rpartition(":")[2]), free_port()
        self.end("objects")
        moved = subprocess.Popen(
            service.command,
            env={**service.env, "GATEWAY_PORT": str(other)},
            cwd=service.cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until(lambda: answers(f"http://127.0.0.1:{other}/_ministack/health")() or None, "the store")
            with FaultProxy(f"http://127.0.0.1:{other}", port=port) as proxy:
                yield proxy
        finally:
            moved.terminate()
            moved.wait(timeout=30)
        self.up()

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """The folder that copies of S3 partitions go to is a disk of its own, and full."""
        folder = self.installation.settings.cache_dir / "partitions"
        shutil.rmtree(folder, ignore_errors=True)
        disk = SmallDisk(folder, kib=1024)
        try:
            disk.fill()
            yield
        finally:
            disk.unmount()

    def ray_logs(self) -> list[Path]:
        """Everything that Ray has written into a log."""
        return list(ray_folder(self.installation.settings).glob("session_*/logs/**/*"))

    # -- runs

    def train(self, run_id: str) -> None:
        self.installation.trigger(TRAIN, run_id)

    def score(self, first: int, count: int = 2) -> str:
        """Trigger a scoring of days; the id of the DAG run."""
        self._runs += 1
        run_id = f"days-{self._runs}"
        begin, end = days(first, count)
        self.installation.trigger(SCORE, run_id, first_day=begin, last_day=end)
        return run_id

    def run_of(self, dag_run: str) -> str:
        """The scoring run of a DAG run."""
        return str(self.airflow.xcom(SCORE, dag_run, "inference.plan", "run_id"))

    @contextmanager
    def scoring_held(self, first: int) -> Iterator[str]:
        """The id of a scoring's DAG run; while the block runs, both workers have committed shards, and each waits over another."""
        hold = self.installation.project / "hold"
        for mark in self.held().values():  # of an earlier run
            mark.unlink()
        hold.touch()
        try:
            dag_run = self.score(first)
            self.installation.task_in(SCORE, dag_run, SCORE_TASK, "deferred")
            until(lambda: len(self.held()) == 2 or None, "both workers to have begun")
            store = open_store(
                self.installation.settings, prefix=load_pipeline(self.installation.settings, PIPELINE).prefix
            )
            run_id = self.run_of(dag_run)
            assert 2 <= len(committed_shards(store, run_id)) <= len(read_plan(store, run_id).shards) - 2
            yield dag_run
        finally:
            hold.unlink()

    def held(self) -> dict[int, Path]:
        """Pid -> mark of the scoring processes that have come to the hold."""
        return {int(path.name): path for path in (self.installation.project / "held").iterdir()}

    def until_the_driver_says(self, dag_run: str, pattern: str) -> None:
        """Wait for a line of the log of the run's scoring job."""

        def look() -> bool | None:
            return bool(re.search(pattern, self.installation.ray_job_log(SCORE, dag_run))) or None

        until(look, f"the driver of {dag_run} to say {pattern!r}")

    def live_version(self) -> Any:
        from tasks import wiring

        (found,) = wiring.overview(self.installation.settings)
        return found["champion"]["version"]

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """The logs of all attempts of a task."""
        tries = self.installation.task(dag_id, run_id, task_id)["try_number"]
        return "\n".join(self.airflow.log(dag_id, run_id, task_id, number) for number in range(1, tries + 1))

    # -- rows

    def rows(self) -> pa.Table:
        """What a reader sees, in a fixed order, without what tells one scoring of a row from another."""
        table = self.installation.predictions(PIPELINE)
        return table.sort_by("prediction_id")

    def clean_run(self, count: int) -> int:
        """Train, and score `count` days without a fault; how many rows that are."""
        until(lambda: {TRAIN, SCORE} <= set(self.airflow.dags()) or None, "the DAGs to be read")
        self.train("clean")
        self.installation.succeeded(TRAIN, "clean")
        self.installation.succeeded(SCORE, self.score(0, count))
        self.clean = self.rows()
        return int(self.clean.num_rows)

    def check_rows(self, dag_run: str | None, first: int, count: int = 2) -> str:
        """Every row is there once and as the clean run made it; the days of `dag_run` are of its run. In words."""
        assert self.clean is not None
        now = self.rows()
        ids = now["prediction_id"].to_pylist()
        assert len(set(ids)) == len(ids), "a row is there twice"
        assert ids == self.clean["prediction_id"].to_pylist(), "a row is lost"
        scores = now["score"].to_pylist()
        assert scores == self.clean["score"].to_pylist(), "a row was scored otherwise"
        begin, end = (date.fromisoformat(day) for day in days(first, count))
        told = zip(now["run_id"].to_pylist(), now["day"].to_pylist(), strict=True)
        runs = {run for run, day in told if begin <= day <= end}
        if dag_run is not None:
            assert runs == {self.run_of(dag_run)}, "the days are not of the run that was struck"
        return f"{len(ids):,} rows, each once, with the clean run's scores"


@dataclass
class Struck:
    """What came of a fault."""

    seen: list[str] = field(default_factory=list)
    """What the user sees: states of tasks, and lines of their logs."""
    rows: str = ""


@dataclass(frozen=True)
class Blow:
    """A fault, and what a person does about it."""

    name: str
    fault: str
    strike: Callable[[Line, int, Struck], None]
    do: str


def _attempt(line: Line, dag_id: str, run_id: str, task_id: str) -> str:
    task = line.installation.task(dag_id, run_id, task_id)
    return f"`{task_id}` is {task['state']} on try {task['try_number']}"


def _said(struck: Struck, log: str, pattern: str) -> None:
    """The log must say so; its line is kept."""
    found = re.search(rf"^.*{pattern}.*$", log, re.MULTILINE)
    assert found, f"nothing like {pattern!r} in:\n{log[-6000:]}"
    struck.seen.append(f"the task's log: “{_shortened(found.group())}”")


def _shortened(text: str) -> str:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    shown = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b", r"\1…", shown)
    shown = re.sub(r"/\S+/home/", "<home>/", shown)
    return shown if len(shown) <= 240 else f"{shown[:240]}…"


def _ends_well(line: Line, first: int, struck: Struck, run: str) -> str:
    """The run must end well by itself, with all rows; the log of all attempts at scoring."""
    line.installation.succeeded(SCORE, run)
    struck.seen.append(_attempt(line, SCORE, run, SCORE_TASK))
    struck.rows = line.check_rows(run, first)
    return line.log(SCORE, run, SCORE_TASK)


def _is_retried(line: Line, first: int, struck: Struck, run: str) -> None:
    """Scoring must wait for a retry, and a reader see the run before, whole."""
    line.installation.task_in(SCORE, run, SCORE_TASK, "up_for_retry")
    struck.seen.append(_attempt(line, SCORE, run, SCORE_TASK))
    line.check_rows(None, first)


def worker_node_killed(line: Line, first: int, struck: Struck) -> None:
    with line.scoring_held(first) as run:
        line.kill("ray-worker")
        line.until_the_driver_says(run, r"Lost worker \d+")
    log = _ends_well(line, first, struck, run)
    _said(struck, log, r"Lost worker \d+ with its node")
    line.up()
    assert line.state("ray-worker").healthy


def out_of_memory(line: Line, first: int, struck: Struck) -> None:
    hungry = line.installation.project / "hungry"
    cgroup = MemoryCgroup(mib=512)
    try:
        with line.scoring_held(first) as run:
            victim = min(line.held())
            cgroup.take(victim)
            hungry.write_text(str(victim))
            line.until_the_driver_says(run, r"Lost worker \d+")
        log = _ends_well(line, first, struck, run)
        assert cgroup.killed == 1, "the kernel has ended nobody"
    finally:
        hungry.unlink(missing_ok=True)
        cgroup.remove()
    _said(struck, log, r"Lost worker \d+: ")


def memory_limit(line: Line, first: int, struck: Struck) -> None:
    hungry = line.installation.project / "hungry"
    without, low, high = "  min_workers: 2", "  memory_gib_per_worker: 3\n", "  memory_gib_per_worker: 8\n"
    line.installation.edit(PIPELINE, "pipeline.yaml", {without: f"{low}{without}"})
    hungry.write_text("all")
    try:
        run = line.score(first)
        _is_retried(line, first, struck, run)
        _said(
            struck,
            line.log(SCORE, run, SCORE_TASK),
            r"needs more memory than its 3 GiB \(inference\.memory_gib",
        )
        line.installation.edit(PIPELINE, "pipeline.yaml", {low: high})
        _ends_well(line, first, struck, run)
    finally:
        hungry.unlink()
    line.installation.edit(PIPELINE, "pipeline.yaml", {f"{high}{without}": without})


def ray_head_killed(line: Line, first: int, struck: Struck) -> None:
    with line.scoring_held(first) as run:
        line.kill("ray")
        struck.seen.append(f"`penstock status`: exit code {line.installation.penstock('status').returncode}")
        line.check_rows(None, first)
        line.up()
    _ends_well(line, first, struck, run)
    _said(struck, line.log(SCORE, run, SCORE_TASK), r"Ray no longer knows the job")


def postgres_restarted(line: Line, first: int, struck: Struck) -> None:
    with line.scoring_held(first) as run:
        line.end("postgres")
        struck.seen.append(f"`penstock status`: exit code {line.installation.penstock('status').returncode}")
        line.up()
    _ends_well(line, first, struck, run)


def store_slow(line: Line, first: int, struck: Struck) -> None:
    with line.store_behind_a_proxy() as proxy:
        with line.scoring_held(first) as run:
            proxy.add(
                Fault("GetObject", "", "delay", delay_s=0.5, times=20),
                Fault("PutObject", "", "trickle", delay_s=2.0, times=20),
            )
        log = _ends_well(line, first, struck, run)
        _said(struck, log, r"scored [\d,]+ rows in \d+ shards")
        assert proxy.met("delay") and proxy.met("trickle")


def store_errs(line: Line, first: int, struck: Struck) -> None:
    with line.store_behind_a_proxy() as proxy:
        with line.scoring_held(first) as run:
            proxy.add(Fault("*", "", "answer", status=500, code="InternalError", times=12))
        log = _ends_well(line, first, struck, run)
        _said(struck, log, r"InternalError.*send \d of \d follows")


def store_resets(line: Line, first: int, struck: Struck) -> None:
    with line.store_behind_a_proxy() as proxy:
        with line.scoring_held(first) as run:
            proxy.add(
                Fault("PutObject", r"/shard-\d+\.json$", "lose-answer", times=4),
                Fault("*", "", "reset", times=8),
            )
        log = _ends_well(line, first, struck, run)
        assert proxy.met("lose-answer") == 4 and proxy.met("reset") == 8
        _said(struck, log, r"send \d of \d follows")


def store_throttles(line: Line, first: int, struck: Struck) -> None:
    with line.store_behind_a_proxy() as proxy:
        with line.scoring_held(first) as run:
            proxy.add(Fault("PutObject", r"/(runs|tables)/", "answer", status=503, code="SlowDown"))
        _is_retried(line, first, struck, run)
        _said(struck, line.log(SCORE, run, SCORE_TASK), r"SlowDown")
        proxy.clear()
        _ends_well(line, first, struck, run)


def disk_full(line: Line, first: int, struck: Struck) -> None:
    run = line.score(first)
    line.installation.task_in(SCORE, run, "inference.plan", "running")
    with line.full_disk():
        _is_retried(line, first, struck, run)
        _said(struck, line.log(SCORE, run, SCORE_TASK), r"DiskFull: .*the disk is full")
    _ends_well(line, first, struck, run)


def scheduler_killed(line: Line, first: int, struck: Struck) -> None:
    with line.scoring_held(first) as run:
        line.kill("airflow-scheduler")
        struck.seen.append(f"`penstock status`: exit code {line.installation.penstock('status').returncode}")
        line.check_rows(None, first)
    line.up()
    _ends_well(line, first, struck, run)


def mlflow_down(line: Line, first: int, struck: Struck) -> None:
    live = line.live_version()
    line.end("mlflow")
    run = line.score(first)
    line.installation.succeeded(SCORE, run)
    struck.seen.append("scoring goes on: it needs no MLflow")
    struck.rows = line.check_rows(run, first)
    line.installation.edit(PIPELINE, "pipeline.yaml", {"seed: 7": "seed: 8"})
    line.train("without-mlflow")
    line.installation.task_in(TRAIN, "without-mlflow", "model.train", "up_for_retry")
    struck.seen.append(_attempt(line, TRAIN, "without-mlflow", "model.train"))
    _said(struck, line.log(TRAIN, "without-mlflow", "model.train"), r"MLflow does not answer as it should")
    assert line.live_version() == live
    line.up()
    line.installation.ended(TRAIN, "without-mlflow")
    trained = line.airflow.xcom(TRAIN, "without-mlflow", "model.train")
    versions = line.installation.mlflow("model-versions/search", filter=f"name='{PIPELINE}'")[
        "model_versions"
    ]
    of_this = [v for v in versions if trained["bundle_digest"] in str(v)]
    assert len(of_this) == 1, versions
    struck.seen.append(_attempt(line, TRAIN, "without-mlflow", "model.train"))
    struck.rows += "; the new model is registered once"


FAULTS = (
    Blow(
        "worker_node_killed",
        "A Ray node is killed in the middle of a run",
        worker_node_killed,
        "Start the node again; the run does not wait for it.",
    ),
    Blow(
        "out_of_memory",
        "Features ask for 2.5 GiB in a scoring process whose control group may have 512 MiB more: the kernel's OOM killer ends it",
        out_of_memory,
        "Nothing. Where it comes back: `inference.memory_gib_per_worker`, a lower `inference.shard_rows`, or fewer workers on a node.",
    ),
    Blow(
        "memory_limit",
        "Features ask for 2.5 GiB in every attempt, with `memory_gib_per_worker: 3`",
        memory_limit,
        "Raise `inference.memory_gib_per_worker` (here to 8), or lower `inference.shard_rows`; the retry goes on.",
    ),
    Blow(
        "ray_head_killed",
        "The Ray head is killed in the middle of a run",
        ray_head_killed,
        "`make up` starts head and nodes again; the retry goes on from what is committed.",
    ),
    Blow(
        "postgres_restarted",
        "PostgreSQL is stopped in the middle of a run, and started again",
        postgres_restarted,
        "`make up`.",
    ),
    Blow(
        "store_slow",
        "S3 is slow: half a second more for each answer, two seconds for each upload",
        store_slow,
        "Nothing.",
    ),
    Blow("store_errs", "S3 answers 500, twelve times", store_errs, "Nothing."),
    Blow(
        "store_resets",
        "S3 resets connections, and the answers to four shard commits are lost",
        store_resets,
        "Nothing.",
    ),
    Blow(
        "store_throttles",
        "S3 answers 503 SlowDown to every upload, until the task has given up",
        store_throttles,
        "Nothing, or clear the task when its retries are used up.",
    ),
    Blow(
        "scheduler_killed", "The scheduler is killed in the middle of a run", scheduler_killed, "`make up`."
    ),
    Blow(
        "disk_full",
        "The disk of the workers' copies of S3 partitions is full",
        disk_full,
        "Make space; the retry goes on.",
    ),
    # last: it may promote another model, and its scores are others
    Blow("mlflow_down", "MLflow is stopped", mlflow_down, "`make up`; the retry goes on."),
)
