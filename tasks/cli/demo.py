"""`penstock demo`: the whole chain on real flights through Airflow, then a table of what happened.

Everything goes over Airflow's public REST API, as a user's own scripts would. A step that an earlier demo
finished is named and skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasks.cli.interrupts import one_interrupt
from tasks.cli.output import console, errors
from tasks.cli.services import show_urls, start, stop_quietly
from tasks.core.errors import NotFound, PenstockError, ServiceUnavailable
from tasks.core.settings import Settings
from tasks.local import AirflowClient
from tasks.local.services import airflow_login

PIPELINE = "flight_delay"
_FIRST_DAY, _LAST_DAY, _AS_OF = "2013-05-01", "2013-05-31", "2013-06-01"
_DONE = {"success", "skipped", "failed", "upstream_failed", "removed"}
_STYLE = {
    "success": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "upstream_failed": ("✗", "red"),
    "skipped": ("-", "yellow"),
    "running": ("▸", "cyan"),
    "deferred": ("▸", "cyan"),
    "up_for_retry": ("↻", "magenta"),
}


@dataclass(frozen=True)
class _Stage:
    dag: str
    title: str
    conf: dict[str, Any]

    @property
    def dag_id(self) -> str:
        return f"{PIPELINE}.{self.dag}"


_STAGES = (
    _Stage("train", "train, gate and promote on January to April", {}),
    _Stage("score", "score May 2013", {"first_day": _FIRST_DAY, "last_day": _LAST_DAY}),
    _Stage(
        "monitor",
        "measure May 2013 and archive explanations",
        {"first_day": _FIRST_DAY, "last_day": _LAST_DAY, "as_of": _AS_OF},
    ),
)


class _RunFailed(Exception):
    """A DAG run of the demo failed; it has been shown already."""


def run_demo(settings: Settings) -> int:
    """Run the demo; returns the exit code. Ctrl-C, TERM and a closed terminal end every service."""
    begun = time.monotonic()
    with one_interrupt():
        try:
            local = start(settings)
            client = AirflowClient(local.airflow_url, *airflow_login(local))
            _wait_for_dags(client)
            runs = [(stage, _run_stage(client, stage)) for stage in _STAGES]
            _summary(client, runs, time.monotonic() - begun)
            show_urls(settings)
        except (KeyboardInterrupt, OSError):  # OSError: whoever read our output is gone
            stop_quietly(settings, "interrupted: ending the services; `make demo` goes on where this stopped")
            return 130
        except _RunFailed:
            show_urls(settings)
            return 1
        except PenstockError:
            show_urls_if_up(settings)
            raise
    return 0


def show_urls_if_up(settings: Settings) -> None:
    try:
        show_urls(settings)
    except PenstockError:
        return


def _wait_for_dags(client: AirflowClient, timeout_s: float = 120.0) -> None:
    wanted = {stage.dag_id for stage in _STAGES}
    deadline = time.monotonic() + timeout_s
    with console.status("waiting until Airflow has read the DAGs"):
        while not wanted <= set(client.dags()):
            broken = client.import_errors()
            if broken or time.monotonic() > deadline:
                trace = broken[0]["stack_trace"] if broken else "it has not parsed them in time"
                raise ServiceUnavailable(
                    trace.strip(), which="Airflow's DAGs", fix="correct the file named above"
                )
            time.sleep(0.5)


def _run_stage(client: AirflowClient, stage: _Stage) -> str:
    """Follow the stage's run until it has succeeded; returns its run id."""
    console.rule(f"[bold]{stage.dag_id}[/]  {stage.title}", align="left")
    run_id, state = _newest_run(client, stage)
    if state == "success":
        console.print(f"  done before, as run {run_id}: skipped")
        return run_id
    client.unpause(stage.dag_id)
    if state not in ("queued", "running"):
        run_id = f"demo-{stage.dag}-{_run_number(run_id) + 1}"
        client.trigger(stage.dag_id, run_id, stage.conf)
    state = _follow(client, stage, run_id)
    if state != "success":
        _show_failure(client, stage, run_id)
        raise _RunFailed
    return run_id


def _newest_run(client: AirflowClient, stage: _Stage) -> tuple[str, str]:
    ours = [run for run in client.runs(stage.dag_id) if run["dag_run_id"].startswith(f"demo-{stage.dag}-")]
    if not ours:
        return "", ""
    newest = max(ours, key=lambda run: _run_number(run["dag_run_id"]))
    return newest["dag_run_id"], newest["state"]


def _run_number(run_id: str) -> int:
    tail = run_id.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0


def _follow(client: AirflowClient, stage: _Stage, run_id: str) -> str:
    """Show the run's tasks as they go; returns the final state of the run."""
    seen: dict[str, str] = {}
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while True:
            state = str(client.run(stage.dag_id, run_id)["state"])
            tasks = _in_order(client.task_instances(stage.dag_id, run_id))
            if console.is_terminal:
                live.update(_task_table(tasks))
            else:
                _print_changes(tasks, seen)
            if state in ("success", "failed"):
                return state
            time.sleep(1.0)


def _in_order(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        tasks, key=lambda task: (task["start_date"] is None, task["start_date"] or "", task["task_id"])
    )


def _task_table(tasks: list[dict[str, Any]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    for task in tasks:
        mark, style = _STYLE.get(task["state"] or "", ("·", "dim"))
        seconds = _seconds(task)
        table.add_row(
            Text(mark, style),
            Text(task["task_id"], "" if task["state"] else "dim"),
            Text(task["state"] or "waiting", style),
            Text(f"{seconds:.1f} s" if seconds is not None else ""),
        )
    return table


def _print_changes(tasks: list[dict[str, Any]], seen: dict[str, str]) -> None:
    for task in tasks:
        state = task["state"] or ""
        if state and state != seen.get(task["task_id"]) and state in {*_DONE, "running", "up_for_retry"}:
            seconds = _seconds(task)
            took = f"  {seconds:.1f} s" if seconds is not None and state in _DONE else ""
            console.print(f"  {_STYLE.get(state, ('·', ''))[0]} {task['task_id']}  {state}{took}")
            seen[task["task_id"]] = state


def _seconds(task: dict[str, Any]) -> float | None:
    if not task["start_date"]:
        return None
    ended = _moment(task["end_date"]) if task["end_date"] else datetime.now().astimezone()
    return (ended - _moment(task["start_date"])).total_seconds()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _show_failure(client: AirflowClient, stage: _Stage, run_id: str) -> None:
    errors.print(f"\n[bold red]{stage.dag_id} failed[/]: {client.url}/dags/{stage.dag_id}/runs/{run_id}")
    for task in client.task_instances(stage.dag_id, run_id):
        if task["state"] == "failed":
            log = client.log(stage.dag_id, run_id, task["task_id"], task["try_number"])
            errors.print(f"  the end of the log of {task['task_id']}:")
            for line in log.splitlines()[-25:]:
                errors.print(f"    {line}", markup=False)


def _summary(client: AirflowClient, runs: list[tuple[_Stage, str]], wall_s: float) -> None:
    facts: dict[str, Any] = {}
    steps: list[tuple[str, float]] = []
    for stage, run_id in runs:
        for task in _in_order(client.task_instances(stage.dag_id, run_id)):
            seconds = _seconds(task)
            if seconds is not None and task["end_date"]:
                steps.append((f"{stage.dag} · {task['task_id']}", seconds))
            name = f"{stage.dag}.{task['task_id'].rsplit('.', 1)[-1]}"
            try:
                facts[name] = client.xcom(stage.dag_id, run_id, task["task_id"])
            except NotFound:
                continue
    console.rule("[bold]What happened[/]", align="left")
    table = Table(show_header=False, box=None, padding=(0, 3, 0, 2))
    table.add_column(style="bold")
    for label, value in _results(facts):
        table.add_row(label, value)
    console.print(table)
    console.rule("[bold]Wall time by step[/]", align="left")
    times = Table(show_header=False, box=None, padding=(0, 3, 0, 2))
    times.add_column()
    times.add_column(justify="right")
    for label, seconds in steps:
        times.add_row(label, f"{seconds:.1f} s")
    times.add_row("[bold]this command[/]", f"[bold]{wall_s:.0f} s[/]")
    console.print(times)


def _results(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of the closing table, from what the tasks returned."""

    def fact(task: str, field: str, default: Any = None) -> Any:
        found = facts.get(task)
        return found.get(field, default) if isinstance(found, dict) else default

    validated = fact("train.validate", "rows", 0) + fact("train.validate", "quarantined_rows", 0)
    scored_in = fact("score.validate", "rows", 0) + fact("score.validate", "quarantined_rows", 0)
    yield "rows validated", f"{validated:,} for training, {scored_in:,} for scoring"
    yield (
        "rows quarantined",
        f"{fact('train.validate', 'quarantined_rows', 0):,} and {fact('score.validate', 'quarantined_rows', 0):,}",
    )
    metrics = fact("train.evaluate", "metrics", {})
    for name, label in (("auc", "AUC"), ("brier", "Brier score"), ("ece", "calibration error")):
        if name in metrics:
            base = metrics.get(f"baseline_{name}")
            yield (
                label,
                f"{metrics[name]:.4f}" + (f"   logistic regression {base:.4f}" if base is not None else ""),
            )
    yield "gate verdict", str(fact("train.gate", "outcome", "-"))
    yield "champion", f"version {fact('train.promote', 'version', '-')}"
    yield "shards committed", f"{fact('score.score', 'shards_committed', 0):,}"
    yield "rows scored", f"{fact('score.publish', 'rows', 0):,}"
    yield "drift verdict", str(fact("monitor.decide", "verdict", "-"))
    yield "explanations archived", f"{fact('monitor.archive', 'archived_rows', 0):,}"
