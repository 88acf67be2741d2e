"""`penstock job`: every way to end leaves an outcome in the store and says it by its exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli_support import Penstock

from tasks import wiring
from tasks.core import Settings, open_store
from tasks.core.errors import CommitOutcomeUnknown, DataError, ServiceUnavailable

KEY = "jobs/toy-1.json"


def outcome(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(open_store(settings).get(KEY))
    return found


def test_a_done_job_leaves_its_steps_result(penstock: Penstock, settings: Settings) -> None:
    ended = penstock("job", "snapshot_training", "toy", "--result", KEY)
    assert ended.code == 0 and ended.out == ""
    kept = outcome(settings)
    assert kept["ok"] is True and kept["result"]["rows"] == 4200
    assert "4,200 rows" in ended.err and "alembic" not in ended.err


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (DataError("lacks column x", which="file.parquet", fix="add it"), "terminal", 2),
        (ServiceUnavailable("does not answer", which="MLflow", fix="start it"), "transient", 75),
        (CommitOutcomeUnknown("timed out", which="run 1", fix="look it up"), "unknown", 76),
    ],
)
def test_an_error_is_left_whole_with_its_kind(
    penstock: Penstock,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    error: Any,
    kind: str,
    code: int,
) -> None:
    def fails(settings: Settings, pipeline: str) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(wiring, "step", lambda name: fails)
    ended = penstock("job", "train_model", "toy", "--result", KEY)
    assert ended.code == code
    assert outcome(settings) == {"ok": False, "error": error.as_record(), "kind": kind}
    assert str(error) in ended.err and "Traceback" not in ended.err


def test_an_error_that_nobody_expected_is_transient_and_its_traceback_is_in_the_log(
    penstock: Penstock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(settings: Settings, pipeline: str) -> dict[str, Any]:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(wiring, "step", lambda name: breaks)
    ended = penstock("job", "train_model", "toy", "--result", KEY)
    assert ended.code == 75
    kept = outcome(settings)
    assert (kept["ok"], kept["kind"]) == (False, "transient")
    assert "unexpected ZeroDivisionError" in kept["error"]["what"]
    assert "Traceback" in ended.err


@pytest.mark.parametrize(
    ("step", "arguments", "named"),
    [
        ("no_such_step", "{}", "no_such_step"),
        ("train_model", "{", "--arguments"),
        ("train_model", "[1]", "--arguments"),
        ("train_model", '{"snapshot": "x"}', "snapshot"),
    ],
)
def test_a_job_that_cannot_start_is_terminal(
    penstock: Penstock, settings: Settings, step: str, arguments: str, named: str
) -> None:
    ended = penstock("job", step, "toy", "--result", KEY, "--arguments", arguments)
    assert ended.code == 2
    kept = outcome(settings)
    assert kept["kind"] == "terminal" and named in json.dumps(kept["error"])


def test_a_result_that_is_not_json_is_an_error_and_not_silence(
    penstock: Penstock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "step", lambda name: lambda settings, pipeline: {"auc": float("nan")})
    assert penstock("job", "train_model", "toy", "--result", KEY).code == 75
    assert outcome(settings)["ok"] is False
