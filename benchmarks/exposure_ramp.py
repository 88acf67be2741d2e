"""Expose a good and a stumbling challenger on real flights, through the real train, score and monitor DAGs.

    .penstock/venv/bin/python benchmarks/exposure_ramp.py

It starts an installation of its own under `.penstock/exposure` (removed first), whose pipeline has
`canary.ramp: [0.01, 0.05, 0.25]`, makes a champion, and sends two challengers after it. Days are scored window by
window; each publication starts `flight_delay.monitor`, which decides what becomes of the exposure. Exit code 1 when
one ends otherwise than it must. All the while clients ask a model server, which follows the same log: none of their requests
may be dropped, and each answered one must be in the audit store. `--keep` leaves the services running, to look at the pages.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from challengers import FIRST, PIPELINE, ROOT, TRAIN, Edits, Installation, send, until
from live_traffic import LiveTraffic

from tasks import wiring
from tasks.core import load_pipeline
from tasks.inference import read_predictions
from tasks.metadata import CanaryStep, MetadataStore

SCORE, MONITOR = f"{PIPELINE}.score", f"{PIPELINE}.monitor"
WINDOW_DAYS, MOST_WINDOWS = 4, 8
TRAFFIC_DAY = date(2013, 5, 2)
RESULTS = ROOT / "benchmarks" / "results" / "exposure_ramp.md"
HEADER = """# Two challengers through the exposure ramp

Made by `benchmarks/exposure_ramp.py`: an installation of its own, real flights, `canary.ramp: [0.01, 0.05, 0.25]`; each challenger through
`flight_delay.train`, then windows of four days through `flight_delay.score`, each followed by `flight_delay.monitor`. What it means:
[docs/delivery.md](../../docs/delivery.md#the-exposure-ramp).

"""
RAMP = {"  margin_brier: 0.005": "  margin_brier: 0.005\n  ramp: [0.01, 0.05, 0.25]"}
GOOD: Edits = {"pipeline.yaml": {**RAMP, "hidden: [32]": "hidden: [40]", "seed: 7": "seed: 11"}}
STUMBLING: Edits = {
    "pipeline.yaml": {**RAMP, "hidden: [32]": "hidden: [44]", "seed: 7": "seed: 13"},
    "features.py": {
        "    day_share = pc.divide(": (
            '    if "WN" in rows["carrier"].to_pylist() and pc.max(rows["sched_dep"]).as_py().month >= 9:\n'
            '        raise ValueError("no entry for WN in the table of the autumn timetable")\n'
            "    day_share = pc.divide("
        )
    },
}


@dataclass
class Ended:
    """What became of an exposed challenger."""

    version: int
    steps: list[dict[str, Any]]
    shown: dict[str, dict[int, int]]
    """Window -> version -> published rows."""
    problems: list[str]


def ramp(installation: Installation, name: str, edits: Edits, first_day: date) -> Ended:
    """Send a challenger, and score windows from `first_day` on until its exposure has ended."""
    airflow, champion = installation.airflow, installation.live()
    installation.folder_as(edits)
    until(lambda: "release.expose" in airflow.task_ids(TRAIN), "the DAG to be read again")
    airflow.trigger(TRAIN, name, {"reason": f"a {name} challenger", "actor": "exposure"})
    until(lambda: airflow.run(TRAIN, name)["state"] in ("success", "failed"), f"{name} to be trained")
    settings, spec = installation.settings, load_pipeline(installation.settings, PIPELINE)
    begun = wiring.step("ramp_status")(settings, PIPELINE)["exposed"]
    if begun is None:
        return Ended(0, [], {}, [f"it was not exposed: {airflow.states(name)}"])
    version = begun["version"]
    problems = [] if installation.live() == champion else ["the champion moved before the ramp ended"]
    shown: dict[str, dict[int, int]] = {}
    for window in range(MOST_WINDOWS):
        days = [first_day + timedelta(days=window * WINDOW_DAYS + n) for n in range(WINDOW_DAYS)]
        looks = len(_steps(installation, version))
        _score(installation, f"{name}-{window}", days)
        rows = read_predictions(settings, spec, days, ["prediction_id", "model_version"])
        versions = rows["model_version"].to_pylist()
        shown[f"{days[0]} to {days[-1]}"] = {found: versions.count(found) for found in sorted(set(versions))}
        if len(set(rows["prediction_id"].to_pylist())) != rows.num_rows:
            problems.append(f"{days[0]}: a prediction is there twice")
        _await_look(installation, version, looks)
        action = _steps(installation, version)[-1].action
        if action == "promote":
            until(lambda: installation.live() == version, "the promotion")
        if action in ("promote", "withdraw"):
            break
    steps = [step.to_json() for step in _steps(installation, version)]
    return Ended(version, steps, shown, problems)


def _score(installation: Installation, run_id: str, days: list[date]) -> None:
    airflow = installation.airflow
    airflow.trigger(SCORE, run_id, {"first_day": str(days[0]), "last_day": str(days[-1])})
    until(lambda: airflow.run(SCORE, run_id)["state"] in ("success", "failed"), f"{run_id} to be scored")


def _steps(installation: Installation, version: int) -> list[CanaryStep]:
    """Looks at the exposed version, oldest first."""
    spec = load_pipeline(installation.settings, PIPELINE)
    return MetadataStore.open(installation.settings).canary_steps(spec, version=version)[::-1]


def _await_look(installation: Installation, version: int, looks: int) -> None:
    until(lambda: len(_steps(installation, version)) > looks, "the monitor to look at the exposure")


def report(name: str, ended: Ended) -> str:
    """What happened, as Markdown."""
    lines = [f"## {name.capitalize()}: version {ended.version}", ""]
    lines += ["| looked at | share | what followed | exposed rows | errors | labelled days | reasons |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for number, step in enumerate(ended.steps, start=1):
        seen = step["evidence"]
        to = f" to {seen['next_share']:.0%}" if seen["next_share"] else ""
        lines.append(
            f"| {number} | {step['share']:.0%} | {step['action']}{to} | {seen['rows']:,} | {seen['errors']:,} "
            f"| {seen['judged_days']} | {'; '.join(step['reasons'])} |"
        )
    lines += ["", "| window | published rows by version |", "|---|---|"]
    for window, rows in ended.shown.items():
        by_version = ", ".join(f"version {version}: {count:,}" for version, count in rows.items())
        lines.append(f"| {window} | {by_version} |")
    lines += [f"\nPROBLEM: {problem}" for problem in ended.problems]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="leave the services running")
    parser.add_argument("--home", type=Path, default=ROOT / ".penstock" / "exposure")
    options = parser.parse_args()
    installation = Installation(options.home.resolve())
    installation.make()
    installation.penstock("up")
    try:
        first = send(installation, FIRST)
        for dag in (SCORE, MONITOR):
            installation.airflow.unpause(dag)
        traffic = _traffic(installation)
        with traffic:
            good = ramp(installation, "good", GOOD, date(2013, 7, 1))
            if installation.live() != good.version:
                good.problems.append(f"version {installation.live()} is live, not version {good.version}")
            stumbling = ramp(installation, "stumbling", STUMBLING, date(2013, 9, 2))
            time.sleep(10)  # the server asks the log every two seconds
        unaudited = traffic.unaudited()
        if installation.live() != good.version:
            stumbling.problems.append(f"version {installation.live()} is live after it")
        if not stumbling.steps or stumbling.steps[-1]["action"] != "withdraw":
            stumbling.problems.append("it was not withdrawn")
    finally:
        if not options.keep:
            installation.penstock("down")
    answered = ", ".join(f"version {version}: {count:,}" for version, count in traffic.by_version.items())
    live = [
        "## Live traffic meanwhile",
        "",
        f"Four clients asked a model server all the while for the flights of {TRAFFIC_DAY}: {sum(traffic.answered.values()):,} requests answered "
        f"({answered}), {len(traffic.failures)} failed or dropped, {unaudited} not found in the audit store.",
        "",
    ]
    text = "\n".join(report(name, ended) for name, ended in (("good", good), ("stumbling", stumbling)))
    text += "\n" + "\n".join([*live, *(f"PROBLEM: {failure}" for failure in traffic.failures[:5])])
    text = text.replace(f"{installation.settings.cache_dir}/", "")
    print(text)
    RESULTS.write_text(HEADER + text, encoding="utf-8")
    return int(bool(first.problems or good.problems or stumbling.problems or traffic.failures or unaudited))


def _traffic(installation: Installation) -> LiveTraffic:
    """A server of its own port beside the services, under load while champions and challengers change."""
    settings = installation.settings
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return LiveTraffic(
        settings,
        load_pipeline(settings, PIPELINE),
        port=port,
        day=TRAFFIC_DAY,
        log=installation.home / "serve.log",
    )


if __name__ == "__main__":
    sys.exit(main())
