"""The step operator: arguments in, errors and outcomes out."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow_fakes import context_of

from plugins.approval import PromotionApproval, approval_body
from plugins.steps import PenstockStepOperator, in_words
from tasks.core import Settings
from tasks.core.errors import (
    CommitOutcomeUnknown,
    DataGateFailed,
    NotFound,
    ServiceUnavailable,
    StoreUnavailable,
)


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


def test_a_parameter_that_the_dag_does_not_have_stops_the_run(
    installed: Settings, wiring: ModuleType
) -> None:
    ran: list[str] = []
    wiring.snapshot_scoring = lambda *_, **__: ran.append("ran") or {}
    operator = step("snapshot_scoring", from_params=("first_day", "last_day"))
    fields = {"first_day": None, "last_day": "2024-01-02"}
    with pytest.raises(AirflowFailException) as caught:
        operator.execute(
            context_of(params=fields, conf={"frist_day": "2024-01-01", "last_day": "2024-01-02"})
        )
    assert str(caught.value) == (
        "toy.train: frist_day: is no parameter of this DAG, did you mean 'first_day'?\n"
        "  Fix: trigger it again with: first_day, last_day"
    )
    assert ran == []
    operator.execute(context_of(params=fields, conf={"last_day": "2024-01-02"}))
    assert ran == ["ran"]


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


@pytest.mark.parametrize(
    ("try_number", "max_tries", "says"),
    [
        (1, 2, "start it; the task tries again by itself: this was try 1 of 3"),
        (2, 2, "start it; the task tries again by itself: this was try 2 of 3"),
        (3, 2, "start it; no try is left, this was the last of 3: clear the task when the cause is gone"),
        (4, 5, "start it; the task tries again by itself: this was try 4 of 6"),  # cleared after three
        (1, 0, "start it"),
    ],
)
def test_a_task_that_fails_says_whether_it_tries_again_by_itself(
    installed: Settings, wiring: ModuleType, try_number: int, max_tries: int, says: str
) -> None:
    def plan_scoring(*_: Any, **__: Any) -> None:
        raise ServiceUnavailable("does not answer", which="MLflow", fix="start it")

    wiring.plan_scoring = plan_scoring
    with pytest.raises(AirflowException) as caught:
        step("plan_scoring").execute(context_of(try_number=try_number, max_tries=max_tries))
    assert str(caught.value) == f"MLflow: does not answer\n  Fix: {says}"


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
    said = {"outcome": "fail", "reasons": ["Brier 0.02 worse"], "report_url": "http://a/report.html"}
    wiring.canary_model = lambda *_, **__: said
    with pytest.raises(AirflowFailException) as caught:
        step("canary_model").execute(context_of())
    assert str(caught.value) == (
        "toy: the canary refused the challenger; the champion stays:\n  Brier 0.02 worse\n"
        "  Fix: compare the slices of both in the canary's report http://a/report.html and train a better model; "
        "nothing is urgent"
    )
    wiring.canary_model = lambda *_, **__: {"outcome": "inconclusive", "reasons": ["2 of 7 days"]}
    assert step("canary_model").execute(context_of())["outcome"] == "inconclusive"


def test_an_exposure_that_did_harm_fails_its_task_and_one_that_goes_on_does_not(
    installed: Settings, wiring: ModuleType
) -> None:
    wiring.advance_ramp = lambda *_, **__: {"outcome": "withdrawn", "version": 4, "reasons": ["30 errors"]}
    context = context_of()
    with pytest.raises(AirflowFailException) as caught:
        step("advance_ramp").execute(context)
    assert str(caught.value) == (
        "toy: the exposed challenger was withdrawn and barred; the champion stays:\n  30 errors\n"
        "  Fix: repair what the reasons name and train again; readers keep the rows that it published until "
        "`penstock registry rescore toy 4`"
    )
    wiring.advance_ramp = lambda *_, **__: {"outcome": "advance", "next_share": 0.05, "reasons": ["all well"]}
    assert step("advance_ramp").execute(context_of())["next_share"] == 0.05
    with pytest.raises(AirflowSkipException, match=r"the outcome is advance.*all well"):
        step("promote_model", canary={"outcome": "advance", "reasons": ["all well"]}).execute(context_of())


_CASE = {"case_id": "fault-2024-01-02", "case_url": "http://a/cases/toy/fault-2024-01-02"}
_ANSWER = "answer case fault-2024-01-02 (Required Actions, or http://a/cases/toy/fault-2024-01-02)"
_AGAIN = (
    "have 2024-01-02 to 2024-01-04 delivered again, and run toy.score for exactly these days and toy.monitor"
)


@pytest.mark.parametrize(
    ("result", "says", "fix"),
    [
        (
            {"outcome": "held", "days": ["2024-01-02", "2024-01-03", "2024-01-04"], **_CASE},
            "scoring and promotions are held for a data fault",
            f"{_ANSWER}; or {_AGAIN}",
        ),
        (
            {"outcome": "held", "days": ["2024-01-02", "2024-01-04"], "case_id": "", "case_url": ""},
            "scoring and promotions are held for a data fault",
            _AGAIN,
        ),
        (
            {"outcome": "asked", **_CASE},
            "the champion is worse than its scores promise; a person must decide",
            _ANSWER,
        ),
        (
            {"outcome": "rolled_back", "version": 2, "left": 3, "case_id": "", "case_url": ""},
            "the champion was worse and was rolled back to version 2",
            "find out what was wrong with version 3, which is barred now; score anew what it published with "
            "`penstock registry rescore toy 3`",
        ),
    ],
    ids=["held", "held and answered", "asked", "rolled back"],
)
def test_a_mitigation_that_somebody_has_to_know_of_fails_its_task_and_says_why_and_what_to_do(
    installed: Settings, wiring: ModuleType, result: dict[str, Any], says: str, fix: str
) -> None:
    wiring.mitigate_window = lambda *_, **__: {**result, "reasons": ["nulls in price", "moved: price"]}
    context = context_of()
    with pytest.raises(AirflowFailException) as caught:
        step("mitigate_window").execute(context)
    assert str(caught.value) == f"toy: {says}:\n  nulls in price\n  moved: price\n  Fix: {fix}"
    assert context["ti"].xcoms["outcome"] == result["outcome"]
    for quiet in ("nothing", "released"):
        wiring.mitigate_window = lambda *_, quiet=quiet, **__: {"outcome": quiet, "reasons": ["all well"]}
        assert step("mitigate_window").execute(context_of())["outcome"] == quiet


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


EVIDENCE: dict[str, Any] = {
    "version": 3,
    "champion": {"version": 2, "since": "2024-01-01 10:00 UTC", "reason": "better | faster"},
    "validation": "9,000 labelled rows of 7 days, 2024-01-01 to 2024-01-07",
    "metrics": [
        {
            "name": "AUC",
            "candidate": "0.7123 [0.7000, 0.7200]",
            "champion": "0.7000 [0.6900, 0.7100]",
            "difference": "0.0123 [0.0010, 0.0200]",
        }
    ],
    "slices": [{"name": "shop=7", "rows": "300", "candidate": "0.6100 [0.5500, 0.6600]", "champion": ""}],
    "monitor": [
        {
            "days": "2024-01-01 to 2024-01-07",
            "verdict": "noise",
            "action": "none",
            "reasons": "within its band",
        }
    ],
    "report_url": "http://x/penstock/report/toy/evaluation/a",
}


def test_the_approval_question_holds_the_evidence() -> None:
    gate = {"outcome": "pass", "findings": [{"name": "auc", "detail": "0.71 >= 0.6"}]}
    canary = {"outcome": "skipped", "reasons": ["no champion yet"]}
    body = approval_body(EVIDENCE, gate, canary, "http://x/penstock/run/a/b")
    for part in (
        "Version 3",
        "version 2, since 2024-01-01 10:00 UTC (better \\| faster)",
        "| AUC | 0.7123 [0.7000, 0.7200] | 0.7000 [0.6900, 0.7100] | 0.0123 [0.0010, 0.0200] |",
        "| shop=7 | 300 | 0.6100 [0.5500, 0.6600] |  |",
        "auc: 0.71 >= 0.6",
        "Canary: skipped",
        "no champion yet",
        "| 2024-01-01 to 2024-01-07 | noise | none | within its band |",
        "http://x/penstock/report/toy/evaluation/a",
        "http://x/penstock/run/a/b",
    ):
        assert part in body


def test_the_approval_question_says_that_a_gate_passed_by_waiver() -> None:
    held = {"name": "calibration", "detail": "0.12 > 0.1", "waived": "ada until 2024-02-01: late labels"}
    gate = {"outcome": "pass", "findings": [{"name": "auc", "detail": "0.71", "waived": None}, held]}
    assert "**Evaluation gate: pass by waiver**" in approval_body(EVIDENCE, gate, None, "http://x")
    gate["findings"] = gate["findings"][:1]
    assert "**Evaluation gate: pass**" in approval_body(EVIDENCE, gate, None, "http://x")


def test_nobody_is_asked_about_the_version_that_is_live(installed: Settings, wiring: ModuleType) -> None:
    live = {**EVIDENCE["champion"], "version": 3}
    wiring.approval_evidence = lambda *_, **__: {**EVIDENCE, "champion": live}
    with pytest.raises(AirflowSkipException, match="version 3 is live already, since 2024-01-01 10:00 UTC"):
        approval().execute(context_of())


def test_the_reason_of_an_answer_is_not_that_of_the_run(
    installed: Settings, wiring: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskDeferred

    asked: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **kwargs: asked.update(kwargs))
    wiring.approval_evidence = lambda *_, **__: EVIDENCE
    operator = approval()
    operator.params["reason"] = "a holiday went by"  # as Airflow does with the run's configuration
    with pytest.raises(TaskDeferred):
        operator.execute({**context_of(), "task_instance": SimpleNamespace(id="7")})
    assert asked["params"]["reason"]["value"] == ""
    assert asked["params"]["reason"]["description"] == "Goes into the deployment log with your name."


def answer(chosen: str, user: dict[str, str] | None, reason: str = "") -> dict[str, Any]:
    return {
        "chosen_options": [chosen],
        "params_input": {"reason": reason},
        "responded_at": datetime(2024, 1, 1, tzinfo=UTC),
        "responded_by_user": user,
    }


def approval() -> PromotionApproval:
    return PromotionApproval(
        task_id="t", subject="Promote?", pipeline="toy", version=3, evaluation_key="evaluation/a"
    )


def test_whoever_approves_becomes_the_actor_of_the_promotion(installed: Settings, wiring: ModuleType) -> None:
    told = approval().execute_complete(
        context_of(), answer("Approve", {"id": "7", "name": "bob"}, " it is better on Mondays ")
    )
    assert (told["actor"], told["reason"]) == ("airflow:bob", "approved: it is better on Mondays")


@pytest.mark.parametrize(
    ("user", "reason", "actor", "recorded"),
    [
        (
            {"id": "7", "name": "bob"},
            "not before the holiday",
            "airflow:bob",
            "rejected: not before the holiday",
        ),
        ({"id": "7", "name": ""}, "", "airflow:7", "rejected: no reason was given"),
        (None, "", "nobody", "nobody answered in time"),
    ],
)
def test_a_refusal_is_recorded_with_who_and_why(
    installed: Settings,
    wiring: ModuleType,
    user: dict[str, str] | None,
    reason: str,
    actor: str,
    recorded: str,
) -> None:
    seen: dict[str, Any] = {}

    def reject_model(settings: Settings, pipeline: str, **kwargs: Any) -> dict[str, Any]:
        seen.update(kwargs, pipeline=pipeline)
        return {}

    wiring.reject_model = reject_model
    approval().execute_complete(context_of(), answer("Reject", user, reason))
    assert seen == {
        "pipeline": "toy",
        "version": 3,
        "actor": actor,
        "reason": recorded,
        "dag_run": "toy.train/manual__1",
    }


def test_a_wrong_evaluation_ends_the_question_with_what_and_fix(
    installed: Settings, wiring: ModuleType
) -> None:
    def approval_evidence(*_: Any, **__: Any) -> dict[str, Any]:
        raise NotFound("is not a kept evaluation", which="toy evaluation/a", fix="evaluate the model first")

    wiring.approval_evidence = approval_evidence
    with pytest.raises(AirflowFailException, match="Fix: evaluate the model first"):
        approval().execute(context_of())
