"""The step operator: arguments in, errors and outcomes out."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow_fakes import context_of

from plugins.approval import approval_body
from plugins.steps import PenstockStepOperator, in_words
from tasks.core import Settings
from tasks.core.errors import CommitOutcomeUnknown, DataGateFailed, StoreUnavailable


@pytest.fixture
def wiring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for `tasks.wiring`, whose steps a test writes."""
    import tasks

    module = ModuleType("tasks.wiring")
    monkeypatch.setitem(sys.modules, "tasks.wiring", module)
    monkeypatch.setattr(tasks, "wiring", module, raising=False)
    return module


def step(name: str, **kwargs: Any) -> PenstockStepOperator:
    return PenstockStepOperator(task_id="t", step=name, pipeline="toy", **kwargs)


def test_a_step_gets_its_arguments_the_form_and_the_run(installed: Settings, wiring: ModuleType) -> None:
    seen: dict[str, Any] = {}

    def promote_model(settings: Settings, pipeline: str, **kwargs: Any) -> dict[str, Any]:
        seen.update(kwargs, pipeline=pipeline, home=settings.home)
        return {"version": 3}

    wiring.promote_model = promote_model
    operator = step(
        "promote_model", arguments={"version": 3}, from_run=("actor", "reason"), from_params=("day", "none")
    )
    context = context_of(params={"day": "2024-01-01", "none": None, "reason": " better ", "actor": "Eve"})
    assert operator.execute(context) == {"version": 3}
    assert seen == {
        "version": 3,
        "day": "2024-01-01",
        "actor": "Eve (airflow:ada)",
        "reason": "better",
        "pipeline": "toy",
        "home": installed.home,
    }
    assert operator.links["model_version"].endswith("/#/models/toy/versions/3")


def test_a_terminal_error_is_not_retried_and_keeps_what_which_and_fix(
    installed: Settings, wiring: ModuleType
) -> None:
    def validate_snapshot(*_: Any, **__: Any) -> None:
        raise DataGateFailed("2 critical expectations failed", which="snapshot abc", fix="see the report")

    wiring.validate_snapshot = validate_snapshot
    operator = step("validate_snapshot", arguments={"snapshot_id": "abc"})
    with pytest.raises(AirflowFailException) as caught:
        operator.execute(context_of())
    assert str(caught.value) == "snapshot abc: 2 critical expectations failed\n  Fix: see the report"
    assert caught.value.__suppress_context__, "the room's traceback must not follow"
    assert operator.links["validation_report"].endswith("/penstock/report/toy/validation/abc/report.html")


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), CommitOutcomeUnknown("answer lost")])
def test_what_may_pass_is_retried(installed: Settings, wiring: ModuleType, error: Exception) -> None:
    def plan_scoring(*_: Any, **__: Any) -> None:
        raise error

    wiring.plan_scoring = plan_scoring
    with pytest.raises(AirflowException) as caught:
        step("plan_scoring").execute(context_of())
    assert not isinstance(caught.value, AirflowFailException)


def test_nothing_to_score_skips_the_run_with_its_reason(installed: Settings, wiring: ModuleType) -> None:
    wiring.snapshot_scoring = lambda *_, **__: {
        "nothing_to_do": True,
        "reasons": ["all published"],
        "rows": 0,
    }
    context = context_of()
    with pytest.raises(AirflowSkipException, match="all published"):
        step("snapshot_scoring").execute(context)
    assert context["ti"].xcoms["rows"] == 0


def test_a_failed_canary_fails_and_an_undecided_one_does_not(installed: Settings, wiring: ModuleType) -> None:
    wiring.canary_model = lambda *_, **__: {"outcome": "fail", "reasons": ["Brier 0.02 worse"]}
    with pytest.raises(AirflowFailException, match=r"Brier 0\.02 worse"):
        step("canary_model").execute(context_of())
    wiring.canary_model = lambda *_, **__: {"outcome": "inconclusive", "reasons": ["2 of 7 days"]}
    assert step("canary_model").execute(context_of())["outcome"] == "inconclusive"


@pytest.mark.parametrize("outcome", ["inconclusive", "hold", "something new", None])
def test_nothing_is_promoted_unless_the_canary_allows_it(
    installed: Settings, wiring: ModuleType, outcome: str | None
) -> None:
    wiring.promote_model = lambda *_, **__: pytest.fail("promoted")
    operator = step("promote_model", canary={"outcome": outcome, "reasons": ["2 of 7 days"]})
    with pytest.raises(AirflowSkipException, match="2 of 7 days"):
        operator.execute(context_of())


def test_an_asset_event_carries_the_result(installed: Settings, wiring: ModuleType) -> None:
    class Events(dict):
        def __missing__(self, key: Any) -> Any:
            self[key] = type("Event", (), {"extra": {}})()
            return self[key]

    asset = Asset("toy.champion")
    wiring.promote_model = lambda *_, **__: {"version": 3, "details": {"x": 1}}
    context = {**context_of(), "outlet_events": Events()}
    step("promote_model", canary={"outcome": "pass"}, outlets=[asset]).execute(context)
    assert context["outlet_events"][asset].extra == {"version": 3}


def test_a_run_without_a_user_names_what_started_it(installed: Settings, wiring: ModuleType) -> None:
    wiring.promote_model = lambda *_, **kwargs: kwargs
    result = step("promote_model", from_run=("actor", "reason")).execute(context_of(user=None))
    assert result == {"actor": "airflow:manual", "reason": "passed its gates in toy.train/manual__1"}


def test_an_unknown_run_value_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="not known; use: dag_run"):
        step("promote_model", from_run=("user",))


def test_results_read_well_in_the_log() -> None:
    text = in_words({"rows": 990, "auc": 0.712345678, "days": list(range(30)), "none": None, "m": {"a": 1.0}})
    assert text == "rows=990, auc=0.712346, days=30 entries, m={a=1}"


def test_the_approval_question_holds_the_evidence() -> None:
    gate = {"outcome": "pass", "findings": [{"name": "auc", "detail": "0.71 >= 0.6"}]}
    body = approval_body(
        {"version": 3, "metrics": {"auc": 0.7123, "slices": {}}, "gate": gate},
        {"outcome": "skipped", "reasons": ["no champion yet"]},
        "http://x/penstock/run/a/b",
    )
    for part in (
        "Version 3",
        "| auc | 0.7123 |",
        "auc: 0.71 >= 0.6",
        "Canary: skipped",
        "no champion yet",
        "http://x",
    ):
        assert part in body
