"""Send good and bad challengers on real flights through the real `flight_delay.train`, and see how each ends.

    .penstock/venv/bin/python benchmarks/challengers.py            (or: make challengers)

It starts an installation of its own under `.penstock/challengers` (removed first, so that every call is the same),
makes a champion, then changes the pipeline's folder as people do by mistake, triggers `flight_delay.train` over
Airflow's REST API, and compares what happened with what must happen. Exit code 1 when one ends otherwise.
`--keep` leaves the services running, to look at the pages. Then a week is scored, the live version is rolled back and
the week is scored anew, through `flight_delay.rollback`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.local import AirflowClient
from tasks.local.services import airflow_login, local_settings
from tasks.metadata import MetadataStore
from tasks.registry import champion

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = "flight_delay"
TRAIN = f"{PIPELINE}.train"
APPROVE, PROMOTE, GATE = "release.approve", "release.promote", "model.gate"
PATIENCE_S = 600.0
RESULTS = ROOT / "benchmarks" / "results" / "challengers.md"
HEADER = """# Challengers, good and bad, through the real DAG

Made by `make challengers` (`benchmarks/challengers.py`): an installation of its own, real flights, each change of the
pipeline's folder sent through `flight_delay.train` in Airflow; then a rollback with re-scoring through
`flight_delay.rollback`. What each means: [docs/delivery.md](../../docs/delivery.md).

"""

Edits = dict[str, dict[str, str]]
"""File -> text in it -> its replacement."""


@dataclass(frozen=True)
class Challenger:
    """A change of the pipeline's folder, and what must become of it."""

    name: str
    story: str
    edits: Edits
    decided_by: str
    """The task that says yes or no."""
    refusal: str | None
    """Regular expression that the log of that task must match; None: it must be promoted."""
    tamper: bool = False
    """Whether a byte of the registered bundle changes in the store while a person is asked."""


_ZERO = """def _zero(rows: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([np.zeros(rows.num_rows)])


def _signed_root("""
_LOST = """def _lost(rows: pa.Table, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(rows["carrier"], "WN"), pa.scalar(0.0), values)


def _signed_root("""

FIRST = Challenger(
    "first", "The pipeline as it is; nothing is live yet.", {}, decided_by=PROMOTE, refusal=None
)
CHALLENGERS = (
    Challenger(
        "good",
        "A somewhat larger network, trained with another seed.",
        {"pipeline.yaml": {"hidden: [32]": "hidden: [40]", "seed: 7": "seed: 11"}},
        decided_by=PROMOTE,
        refusal=None,
    ),
    Challenger(
        "worse",
        "A refactoring lost what other flights did: the columns are there, and always 0.",
        {
            "features.py": {
                "_signed_root(rows[name]) for name": "_signed_root(_zero(rows)) for name",
                "pc.cast(rows[name], pa.float64()) for name": (
                    'pc.cast(_zero(rows) if "share" in name or "overdue" in name else rows[name], pa.float64()) for name'
                ),
                'pc.sqrt(pc.cast(rows["origin_overdue_min"], pa.float64()))': "pc.sqrt(_zero(rows))",
                "def _signed_root(": _ZERO,
            }
        },
        decided_by=GATE,
        refusal=r"no_worse_than_champion",
    ),
    Challenger(
        "worse for one carrier",
        "A join finds nothing for one carrier of thirteen, and a default of 0 is filled in for what other flights did.",
        {
            "features.py": {
                "_signed_root(rows[name]) for name": "_lost(rows, _signed_root(rows[name])) for name",
                "pc.cast(rows[name], pa.float64()) for name": (
                    '(_lost(rows, pc.cast(rows[name], pa.float64())) if "share" in name or "overdue" in name '
                    "else pc.cast(rows[name], pa.float64())) for name"
                ),
                'pc.sqrt(pc.cast(rows["origin_overdue_min"], pa.float64()))': (
                    '_lost(rows, pc.sqrt(pc.cast(rows["origin_overdue_min"], pa.float64())))'
                ),
                "def _signed_root(": _LOST,
            }
        },
        decided_by=GATE,
        refusal=r"slice carrier=WN against the champion",
    ),
    Challenger(
        "leaking",
        "The source delivers the flight's own departure delay, which nobody knows an hour before.",
        {
            "source.py": {
                "            # -- the weather an hour before\n": (
                    '            "dep_delay_min": flights["dep_delay"].cast(pa.int32()),\n'
                    "            # -- the weather an hour before\n"
                )
            },
            "features.py": {
                '    "last_aircraft_age_years",\n': '    "last_aircraft_age_years",\n    "dep_delay_min",\n'
            },
            "pipeline.yaml": {
                "    - last_aircraft_age_years\n": "    - last_aircraft_age_years\n    - dep_delay_min\n"
            },
        },
        decided_by=GATE,
        refusal=r"leakage: dep_delay_min",
    ),
    Challenger(
        "tampered",
        "A good model whose weights change in the object store while a person is asked to approve it.",
        {
            "pipeline.yaml": {
                "hidden: [32]": "hidden: [36]",
                "seed: 7": "seed: 12",
                "mode: automatic": "mode: approval",
            }
        },
        decided_by=PROMOTE,
        refusal=r"the manifest says",
        tamper=True,
    ),
)


@dataclass
class Ended:
    """What became of a challenger."""

    challenger: Challenger
    run_id: str
    states: dict[str, str]
    before: int
    after: int
    reasons: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Installation:
    """A project and a home of their own, driven by the `penstock` command and Airflow's REST API."""

    def __init__(self, root: Path) -> None:
        self.home, self.project = root / "home", root / "project"

    def make(self) -> None:
        """A fresh copy of this checkout's pipeline; what an earlier call left is ended and removed."""
        if self.home.exists():
            self.penstock("down")
        shutil.rmtree(self.home.parent, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("pipelines", "great_expectations", "dags"):
            shutil.copytree(ROOT / name, self.project / name, ignore=ignored)

    @property
    def settings(self) -> Settings:
        return local_settings(Settings.at_home(self.home, project=self.project))

    @property
    def airflow(self) -> Airflow:
        return Airflow(self.settings.airflow_url, *airflow_login(self.settings))

    def penstock(self, *arguments: str) -> None:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK_", "AIRFLOW_"))
        } | {"PENSTOCK_HOME": str(self.home), "PENSTOCK_PROJECT": str(self.project)}
        command = [str(Path(sys.executable).parent / "penstock"), *arguments]
        subprocess.run(command, env=environment, cwd=self.project, check=True)

    def folder_as(self, edits: Edits) -> None:
        """The pipeline's folder as in the checkout, with `edits` made.

        Raises:
            ValueError: A text to replace is not there: the pipeline has changed and the challenger must too.
        """
        folder = self.project / "pipelines" / PIPELINE
        for path in sorted((ROOT / "pipelines" / PIPELINE).glob("*.*")):
            text = path.read_text(encoding="utf-8")
            for old, new in edits.get(path.name, {}).items():
                if old not in text:
                    raise ValueError(f"{path.name} no longer contains {old!r}")
                text = text.replace(old, new)
            (folder / path.name).write_text(text, encoding="utf-8")

    def live(self) -> int:
        """The champion's version; 0: none yet."""
        found = champion(self.settings, load_pipeline(self.settings, PIPELINE))
        return found.version if found else 0


class Airflow(AirflowClient):
    """What a person does in the UI."""

    def approve(self, run_id: str) -> None:
        self._call(
            "PATCH",
            f"/api/v2/dags/{TRAIN}/dagRuns/{run_id}/taskInstances/{APPROVE}/-1/hitlDetails",
            json={"chosen_options": ["Approve"], "params_input": {"reason": "better, and read twice"}},
        )

    def task_ids(self, dag_id: str) -> list[str]:
        return [task["task_id"] for task in self._call("GET", f"/api/v2/dags/{dag_id}/tasks")["tasks"]]

    def states(self, run_id: str) -> dict[str, str]:
        """Task -> state."""
        return {task["task_id"]: task["state"] or "" for task in self.task_instances(TRAIN, run_id)}

    def newest_log(self, run_id: str, task_id: str) -> str:
        tries = {task["task_id"]: task["try_number"] for task in self.task_instances(TRAIN, run_id)}
        return self.log(TRAIN, run_id, task_id, tries[task_id])


def send(installation: Installation, challenger: Challenger) -> Ended:
    """Trigger the DAG with the challenger's folder, wait for the end and compare it with what must happen."""
    airflow, before = installation.airflow, installation.live()
    installation.folder_as(challenger.edits)
    _wait_until_parsed(installation, challenger)
    run_id = challenger.name.replace(" ", "-")
    airflow.trigger(TRAIN, run_id, {"reason": challenger.story, "actor": "challengers"})
    if challenger.tamper:
        until(lambda: airflow.states(run_id).get(APPROVE) in ("deferred", "awaiting_input"), "the question")
        with _flipped_byte(installation):
            airflow.approve(run_id)
            ended = _ended(installation, challenger, run_id, before)
        airflow.clear(TRAIN, run_id, [PROMOTE])
        until(lambda: airflow.run(TRAIN, run_id)["state"] == "success", "the promotion of the whole bundle")
        if installation.live() == before:
            ended.problems.append("with the bundle whole again, a retry did not promote it")
        return ended
    return _ended(installation, challenger, run_id, before)


def _wait_until_parsed(installation: Installation, challenger: Challenger) -> None:
    """A change of `promotion.mode` changes the DAG's tasks: a run must not start with the former ones."""
    asks = any("mode: approval" in new for edits in challenger.edits.values() for new in edits.values())
    airflow = installation.airflow
    until(lambda: TRAIN in airflow.dags(), "the DAG to be read")
    airflow.unpause(TRAIN)

    def as_wanted() -> bool:
        return (APPROVE in airflow.task_ids(TRAIN)) == asks

    until(as_wanted, "the DAG to be read again")


def _ended(installation: Installation, challenger: Challenger, run_id: str, before: int) -> Ended:
    airflow = installation.airflow
    until(lambda: airflow.run(TRAIN, run_id)["state"] in ("success", "failed"), f"{run_id} to end")
    ended = Ended(challenger, run_id, airflow.states(run_id), before, installation.live())
    log = airflow.newest_log(run_id, challenger.decided_by)
    ended.reasons = _reasons(installation, challenger, log)
    state = ended.states[challenger.decided_by]
    if challenger.refusal is None:
        if state != "success" or ended.after <= before:
            ended.problems.append(
                f"{challenger.decided_by} {state}, version {ended.after} is live: not promoted"
            )
        return ended
    if state != "failed":
        ended.problems.append(f"{challenger.decided_by} is {state}, not failed")
    if not re.search(challenger.refusal, "\n".join([log, *ended.reasons])):
        ended.problems.append(f"the reason is not {challenger.refusal!r}: {log[-600:]}")
    if ended.after != before:
        ended.problems.append(f"version {ended.after} is live, was {before}")
    return ended


def _reasons(installation: Installation, challenger: Challenger, log: str) -> list[str]:
    """What the gate wrote of its refusal; of a promotion, the error's line."""
    if challenger.refusal is None:
        return []
    spec = load_pipeline(installation.settings, PIPELINE)
    if challenger.decided_by == GATE:
        newest = (
            MetadataStore.open(installation.settings).verdicts(spec, gate="evaluation", limit=1)[0].verdict
        )
        return [f"{item.name}: {item.detail}" for item in newest.findings if item.status != "pass"]
    found = [line.strip() for line in log.splitlines() if re.search(challenger.refusal, line)][:1]
    return [line.replace(installation.settings.store_url, "store") for line in found]


@contextmanager
def _flipped_byte(installation: Installation) -> Iterator[None]:
    """One bit of the newest version's weights is another one in the store."""
    settings = installation.settings
    spec = load_pipeline(settings, PIPELINE)
    newest = MetadataStore.open(settings).model_versions(spec, limit=1)[0]
    (weights,) = Path(settings.store_url).rglob(f"bundles/{newest.bundle_digest}/weights*")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        yield
    finally:
        weights.write_bytes(whole)


def until(look: Callable[[], bool], what: str) -> None:
    """Wait for it. Raises `TimeoutError` after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.5)


def go_back(installation: Installation) -> tuple[list[str], list[str]]:
    """Score a week with the live version, leave that version by `flight_delay.rollback`, and re-score the week.

    Returns what happened, and what was not as it must be.
    """
    airflow, leaving = installation.airflow, installation.live()
    score, back = f"{PIPELINE}.score", f"{PIPELINE}.rollback"
    airflow.unpause(score)
    airflow.trigger(score, "a-week", {"first_day": "2013-05-01", "last_day": "2013-05-07"})
    until(lambda: airflow.run(score, "a-week")["state"] in ("success", "failed"), "a week to be scored")
    settings = installation.settings
    before = wiring.step("blast_radius")(settings, PIPELINE, version=leaving)
    airflow.unpause(back)
    conf = {"expected": leaving, "rescore": True, "reason": "wrong on Mondays", "actor": "challengers"}
    airflow.trigger(back, "back", conf)
    until(lambda: airflow.run(back, "back")["state"] in ("success", "failed"), "the rollback")
    now = installation.live()
    after = wiring.step("blast_radius")(settings, PIPELINE, version=leaving)
    taken = wiring.step("blast_radius")(settings, PIPELINE, version=now)
    (week,) = before["runs"]
    instead = [run for run in taken["runs"] if run["days"] == week["days"]]  # other days are scored as well
    told = [
        f"version {leaving} had published {before['visible_rows']:,} rows of {before['visible_days']} days "
        f"({before['first_day']} to {before['last_day']})",
        f"`{back}` with `{json.dumps(conf)}`: {airflow.run(back, 'back')['state']}, version {now} is live",
        f"afterwards readers see {after['visible_rows']:,} rows of version {leaving}, and on {week['days']} "
        f"{sum(run['rows'] for run in instead):,} of version {now}",
    ]
    problems = []
    if [run["rows"] for run in instead] != [week["rows"]] or after["visible_rows"]:
        problems.append("the rows were not replaced one by one")
    if now == leaving:
        problems.append("nothing was rolled back")
    return told, problems


def report(endings: list[Ended]) -> str:
    """What happened, as Markdown."""
    lines = [
        "| challenger | what somebody did | run | live before | live after | as it must be |",
        "|---|---|---|---|---|---|",
    ]
    for item in endings:
        task = item.challenger.decided_by
        lines.append(
            f"| {item.challenger.name} | {item.challenger.story} | `{task}` {item.states[task]} "
            f"| {item.before or '-'} | {item.after or '-'} | {'yes' if not item.problems else 'NO'} |"
        )
    for item in endings:
        if item.reasons or item.problems:
            lines += ["", f"**{item.challenger.name}**", ""]
            lines += [f"- {reason}" for reason in item.reasons]
            lines += [f"- PROBLEM: {problem}" for problem in item.problems]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=None, help="names of challengers; all when left out")
    parser.add_argument("--keep", action="store_true", help="leave the services running")
    parser.add_argument("--home", type=Path, default=ROOT / ".penstock" / "challengers")
    options = parser.parse_args()
    installation = Installation(options.home.resolve())
    installation.make()
    installation.penstock("up")
    try:
        endings = []
        for challenger in (FIRST, *CHALLENGERS):
            if options.only is not None and challenger is not FIRST and challenger.name not in options.only:
                continue
            ended = send(installation, challenger)
            endings.append(ended)
            print(f"{challenger.name}: {'; '.join(ended.problems) or 'as it must be'}", flush=True)
        told, problems = go_back(installation)
        print(f"rollback: {'; '.join(problems) or 'as it must be'}", flush=True)
    finally:
        if not options.keep:
            installation.penstock("down")
    print()
    lines = [report(endings), "**Rollback**", "", *(f"- {line}" for line in told)]
    lines += [f"- PROBLEM: {problem}" for problem in problems]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.only is None:
        RESULTS.write_text(HEADER + text, encoding="utf-8")
    return int(bool(problems) or any(item.problems for item in endings))


if __name__ == "__main__":
    sys.exit(main())
