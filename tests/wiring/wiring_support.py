"""What the wiring's tests call: the chain step by step, and counts of everything that a repeat must not add."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_load import measured_here
from sqlalchemy import create_engine, text
from toy_installation import install_toy

from tasks import wiring
from tasks.core import Settings, open_store
from tasks.core.delta import table_view

DAYS = ("2024-01-01", "2024-02-25")
"""Days that the source of these tests has."""
PIPELINE_EDITS = {
    "inference: {shard_rows: 100, batch_rows: 64}": (
        "inference: {shard_rows: 100, batch_rows: 64, max_days_per_run: 4}\n"
        "canary: {margin_brier: 0.2, days: 5}\n"
        "explanations: {warm_days: 2, expire_days: 400}"
    )
}
DAYS_FUNCTION = f"""

def days() -> list[date]:
    first, last = (date.fromisoformat(day) for day in {DAYS!r})
    return [first + timedelta(days=i) for i in range((last - first).days + 1)]
"""


def install(root: Path, mlflow_url: str) -> Settings:
    """An installation under `root` whose toy pipeline has a source that ends, and runs of four days."""
    settings = install_toy(root)
    folder = settings.pipelines_dir / "toy"
    with (folder / "source.py").open("a") as file:
        file.write(DAYS_FUNCTION)
    edit(folder / "pipeline.yaml", PIPELINE_EDITS)
    return replace(settings, mlflow_url=mlflow_url)


def copy_of(settings: Settings, root: Path) -> Settings:
    """The same installation as it is now, in another place: what a test does there stays there."""
    shutil.copytree(settings.home, root / "home")
    shutil.copytree(settings.project, root / "project")
    return replace(Settings.at_home(root / "home", project=root / "project"), mlflow_url=settings.mlflow_url)


def edit(path: Path, changes: dict[str, str]) -> None:
    """Replace texts of a file; each must be there."""
    content = path.read_text()
    for old, new in changes.items():
        assert old in content, f"{old!r} is not in {path}"
        content = content.replace(old, new)
    path.write_text(content)


def pipeline_file(settings: Settings) -> Path:
    return settings.pipelines_dir / "toy" / "pipeline.yaml"


def train_here() -> Callable[..., Any]:
    """`tasks.training.train` without Ray."""
    from tasks.training.in_process import fit_in_process
    from tasks.training.trainer import train

    return functools.partial(train, fit=fit_in_process)


LATER = "2024-12-31"
"""A date on which every label of the toy's days is known."""
LABEL = "    bought = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)\n"
"""Where the toy's source draws labels, for tests that spoil them."""
PRICE = "np.where(rng.random(n) < 0.03, np.nan, price)"
"""Where it leaves prices out."""
BROKEN = "np.where(rng.random(n) < (0.3 if day == date(2024, 2, 10) else 0.03), np.nan, price)"
"""The same with many missing prices on 10 February."""


def step(settings: Settings, name: str, **arguments: Any) -> dict[str, Any]:
    return wiring.step(name)(settings, "toy", **arguments)


def source(settings: Settings, old: str, new: str) -> None:
    edit(settings.pipelines_dir / "toy" / "source.py", {old: new})


def days_of(run: dict[str, Any]) -> dict[str, str]:
    return {"first_day": run["first_day"], "last_day": run["last_day"]}


def monitored(settings: Settings, days: dict[str, str]) -> dict[str, Any]:
    """Measure, join labels, decide; then act."""
    step(settings, "measure_window", **days)
    step(settings, "join_labels", **days, as_of=LATER)
    step(settings, "decide_window", **days)
    return step(settings, "mitigate_window", **days, as_of=LATER)


@dataclass(frozen=True)
class Twice:
    """A step's two results, and what was there after each."""

    first: dict[str, Any]
    second: dict[str, Any]
    after_first: dict[str, Any]
    after_second: dict[str, Any]


def contents(settings: Settings, prefix: str = "default/toy") -> dict[str, Any]:
    """Rows of every metadata table, version of every Delta table and every key of the store.

    Left out: fencing tokens, of which every attempt draws one.
    """
    found: dict[str, Any] = {}
    engine = create_engine(settings.metadata_url)
    with engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE name LIKE 'penstock_%'"))
        for (name,) in names.all():
            with suppress(Exception):
                found[name] = connection.execute(text(f"SELECT count(*) FROM {name}")).scalar()
    engine.dispose()
    store = open_store(settings, prefix=prefix)
    for table in ("tables/predictions", "tables/audit"):
        view = table_view(store, table)
        found[table] = view.version if view else None
    found["keys"] = sorted(info.key for info in store.list() if "/attempts/" not in info.key)
    return found


class Chain:
    """Runs steps twice and keeps what they returned."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.done: dict[str, Twice] = {}

    def __call__(self, step: str, **arguments: Any) -> dict[str, Any]:
        function = wiring.step(step)
        first = function(self.settings, "toy", **arguments)
        after_first = contents(self.settings)
        second = function(self.settings, "toy", **arguments)
        self.done[step] = Twice(first, second, after_first, contents(self.settings))
        return first

    def train(self, **days: str) -> dict[str, Any]:
        """From snapshot to challenger; returns what the canary needs."""
        snapshot = self("snapshot_training", **days)
        clean = self("validate_snapshot", snapshot_id=snapshot["snapshot_id"])
        split = {
            "snapshot_id": clean["snapshot_id"],
            "validation_first_day": snapshot["validation_first_day"],
        }
        trained = self("train_model", **split)
        with measured_here():
            evaluated = self("evaluate_model", **split, bundle_digest=trained["bundle_digest"])
        self("gate_model", evaluation_key=evaluated["evaluation_key"])
        registered = self(
            "register_model",
            trained=trained,
            evaluation_key=evaluated["evaluation_key"],
            links={"Airflow run": "http://127.0.0.1:8080/run"},
        )
        return {"version": registered["version"], "validation_last_day": snapshot["last_day"]}

    def release(self, challenger: dict[str, Any]) -> dict[str, Any]:
        self("canary_model", **challenger)
        return self("promote_model", version=challenger["version"], actor="ada", reason="first model")

    def score(self, **days: str) -> str:
        """Returns the run id."""
        snapshot = self("snapshot_scoring", **days)
        clean = self("validate_snapshot", snapshot_id=snapshot["snapshot_id"])
        run = {"run_id": self("plan_scoring", snapshot_id=clean["snapshot_id"])["run_id"]}
        self("score_run", **run, local=True)
        self("publish_run", **run)
        self("verify_run", **run)
        return run["run_id"]

    def monitor(self, as_of: str) -> dict[str, Any]:
        measured = self("measure_window")
        window = {"first_day": measured["first_day"], "last_day": measured["last_day"]}
        self("join_labels", **window, as_of=as_of)
        self("decide_window", **window)
        self("report_window", **window)
        self("archive_explanations", as_of=as_of)
        return window


@dataclass(frozen=True)
class Finished:
    """An installation whose first model is live and has scored and measured four days."""

    chain: Chain
    version: int
    run_id: str
    window: dict[str, str]

    @property
    def settings(self) -> Settings:
        return self.chain.settings


def score(settings: Settings, **days: str) -> dict[str, Any]:
    """One scoring run, each step once; returns what publishing said."""
    snapshot = wiring.step("snapshot_scoring")(settings, "toy", **days)
    if snapshot["nothing_to_do"]:
        return snapshot
    clean = wiring.step("validate_snapshot")(settings, "toy", snapshot_id=snapshot["snapshot_id"])
    return score_snapshot(settings, clean["snapshot_id"])


def score_snapshot(settings: Settings, snapshot_id: str) -> dict[str, Any]:
    """The same from a clean snapshot on."""
    planned = wiring.step("plan_scoring")(settings, "toy", snapshot_id=snapshot_id)
    wiring.step("score_run")(settings, "toy", run_id=planned["run_id"], local=True)
    published = wiring.step("publish_run")(
        settings, "toy", run_id=planned["run_id"], take_back_from=planned["takes_back_from"]
    )
    return {**published, "model_version": planned["model_version"]}


def plan_next_days(settings: Settings) -> str:
    """Plan what comes next and stop there; the run's id."""
    snapshot = wiring.step("snapshot_scoring")(settings, "toy")
    clean = wiring.step("validate_snapshot")(settings, "toy", snapshot_id=snapshot["snapshot_id"])
    run_id: str = wiring.step("plan_scoring")(settings, "toy", snapshot_id=clean["snapshot_id"])["run_id"]
    return run_id


def ids_by_version(settings: Settings) -> dict[int, list[str]]:
    """Model version -> ids of the predictions that a reader of the table sees."""
    from deltalake import DeltaTable

    from tasks.core import load_pipeline

    store = open_store(settings, prefix=load_pipeline(settings, "toy").prefix)
    table = DeltaTable(store.url("tables/predictions").removeprefix("file://")).to_pyarrow_table()
    found: dict[int, list[str]] = {}
    for version, identifier in zip(
        table["model_version"].to_pylist(), table["prediction_id"].to_pylist(), strict=True
    ):
        found.setdefault(int(version), []).append(identifier)
    return found
