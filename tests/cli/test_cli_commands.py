"""The commands as a picky user meets them: every DAG step by hand, JSON alone on stdout, help for everything."""

from __future__ import annotations

import ast
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_support import Penstock, toy_folder

import plugins
from tasks import wiring
from tasks.cli.app import app
from tasks.cli.inference import RunStatus
from tasks.cli.output import show
from tasks.core import Settings
from tasks.metadata.runs import STATUSES

S, R, K, DAY = "0123456789abcdef", "fedcba9876543210", "evaluation/x/evidence.json", "2024-02-05"
WHO = "--actor ada --reason good"
COMMANDS = {
    "snapshot_training": "data snapshot toy --train-first-day 2024-01-01 --train-last-day 2024-01-20"
    " --validation-first-day 2024-01-21 --validation-last-day 2024-01-28",
    "show_snapshot": f"data show toy {S}",
    "validate_snapshot": f"validation run toy {S}",
    "train_model": f"training run toy {S} --validation-first-day {DAY}",
    "training_due": "training due toy --trigger code",
    "evaluate_model": f"evaluation run toy {S} {'d' * 64} --validation-first-day {DAY}",
    "gate_model": f"evaluation gate toy {K}",
    "waive_finding": f"evaluation waive toy calibration --until {DAY} --candidate {'d' * 64} {WHO}",
    "release_waived": f"evaluation unwaive toy 0123abcd {WHO}",
    "list_waivers": "evaluation waivers toy",
    "list_verdicts": "evaluation verdicts toy --gate evaluation --limit 20",
    "reproduce_training": f"evaluation reproduce-training toy --snapshot {S} --validation-first-day {DAY} --sample-rows 900",
    "register_model": f"registry register toy {K}",
    "canary_model": f"registry canary toy 2 --after {DAY}",
    "promote_model": f"registry promote toy 2 --replacing 1 {WHO}",
    "begin_ramp": f"registry begin-ramp toy 2 --replacing 1 {WHO}",
    "expose_model": f"registry expose toy 2 --share 0.05 --replacing 1 {WHO}",
    "withdraw_model": f"registry withdraw toy --bar {WHO}",
    "ramp_status": "registry ramp toy",
    "advance_ramp": f"registry advance toy --as-of {DAY}",
    "rollback_model": f"registry rollback toy --leaving 2 {WHO}",
    "unbar_model": f"registry unbar toy 2 {WHO}",
    "reconcile_registry": "registry reconcile toy",
    "live_model": "registry live toy --at 2024-02-05T10:00:00",
    "metric_series": f"metadata series toy auc --version 1 --since {DAY} --until {DAY} --source monitor --superseded",
    "snapshot_scoring": f"data snapshot toy --scoring --first-day {DAY} --last-day {DAY}",
    "plan_scoring": f"inference plan toy {S}",
    "score_run": f"inference run toy {R} --local",
    "resume_run": f"inference resume toy {R} --local",
    "replay_run": f"inference replay toy {R} --snapshot {S} --local",
    "publish_run": f"inference publish toy {R}",
    "verify_run": f"inference verify toy {R}",
    "run_status": f"inference status toy {R}",
    "list_runs": "inference runs toy --status scored --limit 5",
    "measure_window": f"monitoring measure toy --first-day {DAY} --last-day {DAY}",
    "join_labels": f"monitoring labels toy --first-day {DAY} --last-day {DAY} --as-of 2024-02-07",
    "decide_window": f"monitoring decide toy --first-day {DAY} --last-day {DAY}",
    "report_window": f"monitoring report toy --first-day {DAY} --last-day {DAY}",
    "monitor_window": "monitoring run toy",
    "trend_report": "monitoring trend toy --days 30",
    "list_alerts": "alerts list toy --days 9",
    "test_alert": "alerts test toy --channel slack",
    "archive_explanations": "audit retain toy --as-of 2024-02-07",
    "audit_prediction": "audit show toy 018d5e6f-0000-8000-8000-000000000000",
    "reproduce_prediction": "audit reproduce toy 018d5e6f-0000-8000-8000-000000000000",
    "audit_predictions": "audit window toy --start 2024-02-05T00:00:00 --end 2024-02-06T00:00:00 --model-version 1 "
    "--min-prediction 0.2 --max-prediction 0.8 --entity c1",
    "optimize_tables": "inference optimize toy --target-mb 64 --dry-run",
    "vacuum_tables": "inference vacuum toy --older-than-days 9 --dry-run",
    "hold_days": f"audit hold toy --first-day {DAY} --last-day {DAY} {WHO}",
    "mitigate_window": f"monitoring mitigate toy --first-day {DAY} --last-day {DAY} --as-of 2024-02-07",
    "list_cases": "monitoring cases toy",
    "show_case": "monitoring case toy fault-2024-02-10",
    "answer_case": "monitoring answer toy fault-2024-02-10 accept --actor ada --reason known",
    "revoke_case_answer": "monitoring revoke toy fault-2024-02-10 --actor ada --reason mistaken",
    "roll_back_case": "monitoring act toy damage-2024-02-10",
    "scoring_status": "monitoring holds toy",
    "release_held_scoring": f"monitoring release toy 0123abcd {WHO}",
    "release_days": f"audit release toy 0123abcd {WHO}",
    "list_holds": "audit holds toy",
    "erase_entity": f"audit erase toy --entity c1 {WHO} --dry-run",
    "restore_days": f"audit restore toy --first-day {DAY} --last-day {DAY} {WHO} --days 3",
    "cost_report": "audit cost toy --price 0.02",
    "audit_events": "audit events toy",
    "fold_online": "audit fold toy --seal",
    "hot_online": "audit hot toy",
    "maintain": "maintain toy",
    "bar_model": f"registry bar toy 2 {WHO}",
    "run_ci": "ci toy --sample-days 14 --keep",
    "blast_radius": "registry blast-radius toy 2",
    "rescore_version": "registry rescore toy 2 --local",
    "plan_rescoring": "registry rescore toy 2 --plan-only",
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that commands call; each call is checked against the step's own signature."""
    import inspect

    names: list[str] = []
    found = wiring.step

    def step(name: str) -> Any:
        real = found(name)

        def record(*args: Any, **arguments: Any) -> dict[str, Any]:
            inspect.signature(real).bind(*args, **arguments)
            names.append(name)
            return {"step": name, "value": float("nan"), "events": [{"event": 1}], "runs": []}

        return record

    monkeypatch.setattr(wiring, "step", step)
    return names


@pytest.mark.parametrize("step", COMMANDS)
def test_a_command_runs_its_step_and_prints_json_that_any_parser_reads(
    step: str, penstock: Penstock, called: list[str]
) -> None:
    ended = penstock(*COMMANDS[step].split(), "--json")
    assert (ended.code, ended.err) == (0, "")
    assert called == [step]
    assert ended.json["step"] == step and ended.json["value"] is None


@pytest.mark.parametrize(("reproduced", "code"), [(True, 0), (False, 2)])
def test_a_prediction_that_is_not_reproduced_is_exit_code_2_with_what_differs(
    reproduced: bool, code: int, penstock: Penstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"reproduced": reproduced, "differences": [{"part": "score", "recorded": 0.5}]}
    monkeypatch.setattr(wiring, "step", lambda name: lambda *args, **arguments: found)
    ended = penstock("audit", "reproduce", "toy", "018d5e6f-0000-8000-8000-000000000000", "--json")
    assert (ended.code, ended.json) == (code, found)
    assert ended.err == ""


def test_every_step_of_a_dag_can_be_run_by_hand() -> None:
    tree = ast.parse((Path(next(iter(plugins.__path__))) / "pipeline_dags.py").read_text())
    steps = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            texts = [item.value for item in (*node.args, *(word.value for word in node.keywords))
                     if isinstance(item, ast.Constant) and isinstance(item.value, str)]  # fmt: skip
            steps |= set(texts) & set(wiring.__all__)
    assert len(steps) > 15
    assert steps <= set(COMMANDS)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*item, id=" ".join(item[0])) for item in commands()]
)
def test_every_command_and_every_option_says_what_it_is_for(path: tuple[str, ...], command: Any) -> None:
    assert command.help and len(command.help) > 15
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name}"


def test_exit_codes_are_in_the_help(penstock: Penstock) -> None:
    ended = penstock("--help")
    assert ended.code == 0
    for code in ("0 done", "2 wrong input", "75 try again", "76 the outcome is unknown", "130 interrupted"):
        assert code in " ".join(ended.out.split())


def test_wrong_usage_is_exit_code_2(penstock: Penstock) -> None:
    ended = penstock("data", "snapshot")
    assert (ended.code, ended.out) == (2, "")
    assert "pipeline" in ended.err.lower()


def test_a_service_that_is_down_is_exit_code_75(penstock: Penstock, frozen: tuple[Settings, str]) -> None:
    from dataclasses import replace

    settings, snapshot = frozen
    down = replace(settings, mlflow_url="http://127.0.0.1:9")
    ended = penstock("training", "run", "toy", snapshot, "--validation-first-day", "2024-01-29", at=down)
    assert ended.code == 75
    assert ended.err.startswith("ServiceUnavailable") and "127.0.0.1:9" in ended.err


def test_progress_goes_to_stderr_and_libraries_keep_quiet(penstock: Penstock) -> None:
    ended = penstock("-v", "data", "snapshot", "toy", "--json")
    assert ended.json["rows"] == 4200
    assert "4,200 rows" in ended.err
    history = penstock("-v", "registry", "history", "toy", "--json")
    assert history.json == {"events": []}
    assert "metadata store" in history.err and "alembic" not in history.err


def test_a_title_is_one_line_however_narrow_its_table_is_and_a_list_has_no_head(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show({"version": None}, as_json=False, title="a_pipeline_with_a_long_name: live model")
    show(["bar them again", "measure again"], as_json=False, title="Next")
    assert capsys.readouterr().out.splitlines() == [
        "a_pipeline_with_a_long_name: live model",
        "version  -",
        "Next",
        "bar them again",
        "measure again",
    ]


def test_a_table_in_a_pipe_has_one_unbroken_line_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    show({"report_url": "x" * 400, "rows": 3}, as_json=False, title="toy: report")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["toy: report", f"report url  {'x' * 400}", "rows        3"]


def test_pipelines_lists_a_broken_one_with_its_problem(penstock: Penstock, settings: Settings) -> None:
    (settings.pipelines_dir / "odd").mkdir()
    (settings.pipelines_dir / "odd" / "pipeline.yaml").write_text("name: [odd\n")
    found = {line["pipeline"]: line for line in penstock("pipelines", "--json").json}
    assert "odd/pipeline.yaml" in found["odd"]["error"] and "error" not in found["toy"]
    assert "odd/pipeline.yaml" in penstock("pipelines").out


def test_rollback_without_a_version_says_which_one_is_live(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "step", lambda name: lambda *_, **__: {"version": 3})
    ended = penstock("registry", "rollback", "toy", *WHO.split())
    assert ended.code == 2 and "add: --leaving 3" in ended.err


def test_the_environment_wins_over_the_local_services(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    local = replace(settings, mlflow_url="http://127.0.0.1:5", airflow_url="http://127.0.0.1:6")
    seen = Settings.from_environment({"PENSTOCK_MLFLOW_URL": "http://mlflow:5000"}, defaults=local)
    assert seen == replace(local, mlflow_url="http://mlflow:5000")


def test_status_says_that_it_looks_at_this_machine_alone(penstock: Penstock, settings: Settings) -> None:
    elsewhere = dataclasses.replace(settings, mlflow_url="http://mlflow.example:5000")
    done = penstock("status", at=elsewhere)
    assert done.code == 1 and "airflow-scheduler" in done.out
    said = " ".join(done.err.split())
    assert "`penstock up` starts them on this machine" in said
    assert "does not look at: MLflow http://mlflow.example:5000, Ray" in said
    assert penstock("status", "--json", at=elsewhere).err == ""


def test_another_process_sees_every_setting_by_its_environment(settings: Settings) -> None:
    from dataclasses import fields, replace

    given = {
        item.name: "json" if item.name == "log_format" else f"{item.name}-given"
        for item in fields(settings)
        if item.name not in ("home", "project")
    }
    there = replace(settings, **given)
    assert Settings.from_environment(there.as_environment()) == there
    assert Settings.from_environment({}, defaults=there) == there


def test_a_format_of_log_lines_that_there_is_not_is_refused_with_those_there_are(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_LOG_FORMAT", "xml")
    ended = penstock("pipelines")
    assert ended.code == 2 and "PENSTOCK_LOG_FORMAT=xml" in ended.err and "text, json" in ended.err


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_with_130_and_without_a_traceback(settings: Settings) -> None:
    source = toy_folder(settings) / "source.py"
    flag = settings.project / "begun"
    source.write_text(
        f"import pathlib, time\n\n\ndef load(first_day, last_day):\n    pathlib.Path({str(flag)!r}).touch()\n"
        "    time.sleep(120)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.cli", "data", "snapshot", "toy"],
        env={**os.environ, **settings.as_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that puts the tests in the background has them, and so this child, ignore Ctrl-C.
        preexec_fn=_heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err


def test_ci_writes_junit_and_markdown_and_ends_with_the_code_of_the_checks(
    penstock: Penstock, settings: Settings
) -> None:
    features = toy_folder(settings) / "features.py"
    features.write_text(features.read_text() + "\nraise RuntimeError('broken on purpose')\n")
    made = settings.project / "out"
    files = ["--junit", str(made / "ci.xml"), "--markdown", str(made / "ci.md")]
    ended = penstock("ci", "toy", *files)
    assert ended.code == 2
    assert "broken on purpose" in ended.out and "Fix: correct that line" in ended.out
    assert "fail     code" in ended.err
    assert (
        "broken on purpose" in (made / "ci.xml").read_text()
        and "features.py:" in (made / "ci.md").read_text()
    )
    assert not settings.home.exists()


def test_runs_are_listed_by_every_status_that_a_run_may_have() -> None:
    assert [status.value for status in RunStatus] == list(STATUSES)
