"""What the evidence pages show of a record, and how."""

from __future__ import annotations

import pytest

from plugins.evidence_view import facts, link_label, reason_groups
from plugins.pages import said, summary_of


def shown(summary: dict[str, object]) -> dict[str, str]:
    return {fact.label: fact.text for fact in facts(summary)}


def test_a_digest_is_shortened_and_kept_whole_for_the_tooltip() -> None:
    (bundle,) = facts({"bundle digest": "5c86d5d51a1d3789" * 4})
    assert bundle.text == "5c86d5d51a1d3789…"
    assert bundle.whole == "5c86d5d51a1d3789" * 4


def test_numbers_have_separators_and_units() -> None:
    found = shown({"rows": 109119, "wall s": 6.9581, "hot bytes freed": 169790, "share": 0.123456})
    assert found == {
        "Rows": "109,119",
        "Wall time": "7.0 s",
        "Hot bytes freed": "170 kB",
        "Share": "0.1235",
    }


def test_first_and_last_day_are_one_window_and_a_stamp_is_readable() -> None:
    found = shown(
        {
            "first day": "2013-05-01",
            "last day": "2013-05-31",
            "days": 31,
            "published at utc": "2026-11-21T04:13:37.612Z",
        }
    )
    assert found == {
        "Window": "2013-05-01 to 2013-05-31",
        "Days": "31",
        "Published at": "2026-11-21 04:13:37 UTC",
    }
    assert shown({"first day": "2013-05-01", "last day": "2013-05-01"}) == {"Day": "2013-05-01"}


def test_what_says_nothing_is_left_out_but_zero_stays() -> None:
    assert shown(
        {
            "nothing to do": False,
            "superseded by": None,
            "problems": [],
            "report key": "validation/s1/report.html",
            "quarantined rows": 0,
            "published": True,
            "gpus per worker": 0,
            "champion version": 0,
        }
    ) == {"Quarantined rows": "0", "Published": "yes"}
    assert shown({"gpus per worker": 1, "champion version": 3}) == {
        "GPUs per worker": "1",
        "Champion version": "3",
    }


def test_of_the_metrics_the_gates_own_are_shown_and_a_trainings_calibration_error_is_not_taken_for_the_gates() -> (
    None
):
    metrics = {"validation_auc": 0.73043, "tuning_auc": 0.75, "validation_ece": 0.0642, "fit_rows": 5.0}
    assert shown({"metrics": metrics}) == {"AUC": "0.7304", "Calibration error, 15 bins": "0.0642"}
    evaluated = {"auc": 0.73043, "ece": 0.0612, "baseline_auc": 0.7}
    assert shown({"metrics": evaluated}) == {"AUC": "0.7304", "Calibration error (ECE)": "0.0612"}


@pytest.mark.parametrize(
    ("label", "url", "words"),
    [
        ("report", "http://airflow/penstock/report/toy/validation/s1/report.html", "Validation report"),
        ("report", "http://airflow/penstock/report/toy/monitoring/d/report.html", "Drift report"),
        ("report", "http://airflow/penstock/report/toy/evaluation/a-b/report.html", "Evaluation report"),
        ("report", "http://airflow/penstock/report/toy/evaluation/a-b/canary-c.html", "Canary report"),
        ("url", "http://mlflow/#/models/toy/versions/3", "Model version in MLflow"),
        ("My notes", "http://mlflow/#/models/toy/versions/3", "My notes"),
    ],
)
def test_a_link_is_named_by_what_it_opens(label: str, url: str, words: str) -> None:
    assert link_label(label, url) == words


def test_passed_checks_are_told_from_the_others() -> None:
    open_, passed = reason_groups(["[pass] rows: 10", "[fail] nulls: too many", "no champion yet"])
    assert open_ == [("fail", "nulls: too many"), ("", "no champion yet")]
    assert passed == ["rows: 10"]


def test_a_run_that_passed_says_what_it_brought_about() -> None:
    promoted = {"kind": "promotion", "outcome": "", "summary": {"version": 4}}
    assert summary_of([promoted]) == ("pass", "Every gate passed: version 4 is the champion.")
    published = {"kind": "publication", "outcome": "", "summary": {"rows": 28796}}
    assert summary_of([published]) == ("pass", "28,796 predictions are published.")


def test_a_refused_promotion_says_who_refused_and_that_the_champion_stays() -> None:
    gate = {"kind": "evaluation gate", "outcome": "pass", "summary": {}}
    refused = {
        "kind": "approval",
        "outcome": "rejected",
        "summary": {"version": 4},
        "reasons": ["nobody answered in time"],
    }
    assert summary_of([gate, refused]) == (
        "warn",
        "Not promoted: nobody answered in time. The champion stays.",
    )


def test_a_training_that_found_its_model_live_says_so() -> None:
    registered = {"kind": "registration", "outcome": "", "summary": {"version": 1}}
    canary = {"kind": "canary", "outcome": "skipped", "summary": {"champion version": 1}}
    assert summary_of([registered, canary]) == ("pass", "The same model again: version 1 is live already.")
    canary["summary"] = {"champion version": 0}
    assert summary_of([registered, canary])[1] == "Everything recorded so far has passed."


def test_a_rollback_says_what_readers_still_see_of_the_version_left() -> None:
    back = {"version": 1, "previous version": 2, "affected rows": 6517}
    item = {"kind": "rollback", "outcome": "", "summary": back}
    said_now = "Rolled back: version 1 is the champion"
    assert summary_of([item])[1] == f"{said_now}; readers still see 6,517 predictions of version 2."
    anew = {"kind": "re-scoring", "outcome": "", "summary": {"rows": 6517}}
    published = {"kind": "publication", "outcome": "", "summary": {"rows": 6517}}
    assert summary_of([item, published, anew])[1] == (
        f"{said_now}, and 6,517 predictions of version 2 were scored anew."
    )
    item["summary"] = {**back, "affected rows": 0}
    assert summary_of([item])[1] == f"{said_now}."


def test_what_the_monitor_found_is_said_and_is_no_stop() -> None:
    steps = ["Ask the owner of the feed.", "Deliver the days again."]
    found = {"headline": "The data of 2024-01-02 breaks the training contract.", "next steps": steps}
    item = {"kind": "decision", "title": "Decision", "outcome": "data fault", "summary": found}
    assert summary_of([item]) == ("fail", "The data of 2024-01-02 breaks the training contract.")
    assert "Ask the owner of the feed. Deliver the days again." in [fact.text for fact in facts(found)]


def test_a_verification_that_found_a_problem_fails_the_run() -> None:
    broken = {"kind": "verification", "title": "Verification", "summary": {"ok": False}}
    assert said(broken) == "fail"
    assert summary_of([{"kind": "publication", "summary": {"rows": 1}}, broken]) == (
        "fail",
        "Stopped by: Verification.",
    )
