"""Which alerts open, go on and are over, and which messages are due."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from tasks.core import Settings
from tasks.core.errors import ConfigError
from tasks.metadata import StoredDecision
from tasks.monitoring.alert_rules import AlertRules, load_rules
from tasks.monitoring.alert_sources import of_decision, of_verdict
from tasks.monitoring.alert_text import write_message
from tasks.monitoring.alerts import GONE, OVER, Alert, Batch, Delivery, Observation, batches, due, fold

NOW = datetime(2024, 3, 8, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RULES = AlertRules.model_validate(
    {
        "channels": {"team": {"kind": "slack", "connection": "s"}},
        "routes": {"page": ["team"], "warn": ["team"]},
    }
)


def decision(number: int, action: str, verdict: str, day: int = 5) -> StoredDecision:
    at, on = NOW + number * HOUR, date(2024, 3, day)
    return StoredDecision(number, action, verdict, on, on, 1, ("nulls",), "monitor", None, {}, at)


def folded(*decisions: StoredDecision, known: tuple[Alert, ...] = ()) -> list[Alert]:
    seen = [item for found in decisions for item in of_decision(found, {})]
    return fold("default", "toy", known, seen)


def sent(delivery: Delivery, at: datetime) -> Delivery:
    return replace(delivery, status="sent", sent_at_utc=at)


def test_an_incident_that_goes_on_is_one_alert_and_a_repeat_changes_nothing() -> None:
    first, second = decision(1, "hold_scoring", "data fault"), decision(2, "hold_scoring", "data fault", 6)
    [alert] = folded(first, second)
    assert (alert.kind, alert.incident, alert.severity, alert.status) == (
        "data fault",
        "decision 1",
        "page",
        "open",
    )
    assert folded(first, second, known=(alert,)) == []


def test_what_was_done_is_told_in_the_words_of_what_was_found() -> None:
    said = "The data of 2024-03-05 breaks the training contract (still open). The model is not the cause."
    found = replace(
        decision(1, "hold_scoring", "data fault"),
        reasons=(said, "2024-03-05: 33.0% of price is null"),
        record={"mitigation": {"outcome": "held"}, "next_steps": ["Ask the owner of the feed."]},
    )
    [alert] = folded(found)
    assert alert.headline == said
    assert list(alert.record["reasons"]) == ["2024-03-05: 33.0% of price is null"]
    assert list(alert.record["next_steps"]) == ["Ask the owner of the feed."]


def test_a_healthy_decision_resolves_and_one_that_cannot_judge_does_not() -> None:
    [alert] = folded(decision(1, "ask_person", "performance damage"))
    assert folded(decision(2, "note", "cannot judge", 6), known=(alert,)) == []
    [over] = folded(decision(3, "nothing", "healthy", 6), known=(alert,))
    assert over.status == "resolved" and over.resolved_at_utc == NOW + 3 * HOUR


def test_a_decision_about_older_days_resolves_no_newer_incident() -> None:
    [alert] = folded(decision(1, "hold_scoring", "data fault", 7))
    assert folded(decision(2, "nothing", "healthy", 3), known=(alert,)) == []


def test_holding_scoring_says_nothing_of_damage_that_was_open() -> None:
    damage = folded(decision(1, "ask_person", "performance damage"))[0]
    [fault] = folded(decision(2, "hold_scoring", "data fault", 6), known=(damage,))
    assert fault.kind == "data fault"
    changed = folded(decision(3, "ask_person", "performance damage", 7), known=(damage, fault))
    assert {(item.kind, item.status) for item in changed} == {
        ("data fault", "resolved"),
        ("performance damage", "open"),
    }


def test_after_it_was_over_the_same_trouble_is_another_incident() -> None:
    found = folded(
        decision(1, "alert", "drift, no damage seen"),
        decision(2, "nothing", "healthy", 6),
        decision(3, "alert", "drift, no damage seen", 7),
    )
    assert {item.incident: item.status for item in found} == {"decision 1": "resolved", "decision 3": "open"}


def test_a_gate_refusal_is_over_when_the_gate_passes() -> None:
    given: dict[str, Any] = {"gate": "data", "subject": "s" * 64, "reasons": [], "links": {}}
    refused = of_verdict(**given, outcome="fail", at_utc=NOW, dag_run="toy.score/run 1")
    passed = of_verdict(**given, outcome="pass", at_utc=NOW + HOUR, dag_run="toy.score/run 2")
    assert refused is not None and passed is not None and refused.severity == "page"
    [alert] = fold("default", "toy", (), [refused])
    assert fold("default", "toy", [alert], [refused, passed])[0].status == "resolved"


def test_an_alert_is_told_once_reminded_and_told_when_over() -> None:
    [alert] = folded(decision(0, "hold_scoring", "data fault"))
    [opened] = due(RULES, [alert], [], NOW)
    assert opened.phase == "opened"
    told = sent(opened, NOW)
    assert due(RULES, [alert], [told], NOW + 11 * HOUR) == []
    [reminder] = due(RULES, [alert], [told], NOW + 12 * HOUR)
    assert reminder.phase == "reminder 1"
    over = replace(alert, status="resolved", resolved_at_utc=NOW + 13 * HOUR)
    [last] = due(RULES, [over], [told, sent(reminder, NOW + 12 * HOUR)], NOW + 13 * HOUR)
    assert last.phase == "resolved"
    assert due(RULES, [over], [told, sent(last, NOW + 13 * HOUR)], NOW + 99 * HOUR) == []


def test_what_was_over_before_it_could_be_sent_is_told_late_only_if_it_is_a_page() -> None:
    for action, verdict, phases in (
        ("hold_scoring", "data fault", ["opened dropped", "over already pending"]),
        ("alert", "drift, no damage seen", ["opened dropped"]),
    ):
        [alert] = folded(decision(0, action, verdict))
        waiting = due(RULES, [alert], [], NOW)
        over = replace(alert, status="resolved", resolved_at_utc=NOW + HOUR)
        found = due(RULES, [over], waiting, NOW + 50 * HOUR)
        assert [f"{item.phase} {item.status}" for item in found] == phases


def test_a_backfill_of_old_days_wakes_nobody() -> None:
    [alert] = folded(decision(1, "hold_scoring", "data fault"), decision(2, "nothing", "healthy", 6))
    assert due(RULES, [alert], [], NOW + 40 * HOUR) == []
    news = Observation("rollback", NOW, True, "event 3", once=True)
    [told] = fold("default", "toy", (), [news])
    assert due(RULES, [told], [], NOW + 40 * HOUR) == [] and len(due(RULES, [told], [], NOW + HOUR)) == 1


def many(count: int) -> tuple[dict[Any, Alert], list[Delivery]]:
    alert = folded(decision(0, "alert", "drift, no damage seen"))[0]
    alerts = [replace(alert, pipeline=f"p{number}") for number in range(count)]
    return {item.key: item for item in alerts}, [
        found for item in alerts for found in due(RULES, [item], [], NOW)
    ]


def test_many_pipelines_are_one_message_with_the_most_severe_first() -> None:
    alerts, waiting = many(30)
    key = waiting[7].alert_key
    alerts[key] = replace(alerts[key], severity="page")
    [batch] = batches(RULES, alerts, waiting, {}, NOW)
    assert len(batch.items) == 30 and batch.items[0][0].pipeline == "p7"
    message = write_message(batch, "m1")
    assert message.subject == "[Penstock] 30 open: p0, p1, p10 and 27 more"
    assert all(f"p{number}" in message.text for number in range(30))


def test_a_channel_waits_for_its_group_and_its_limit_and_loses_nothing() -> None:
    alerts, waiting = many(2)
    assert batches(RULES, alerts, waiting, {"team": [NOW - timedelta(minutes=4)]}, NOW) == []
    spread = [NOW - timedelta(minutes=6 + 4 * number) for number in range(12)]
    assert batches(RULES, alerts, waiting, {"team": spread}, NOW) == []
    [batch] = batches(RULES, alerts, waiting, {"team": spread}, NOW + 30 * timedelta(minutes=1))
    assert len(batch.items) == 2


def test_a_message_says_what_since_when_and_what_to_do_and_forges_nothing() -> None:
    evil = "x\r\nBcc: a@b.c <!channel> <script>"
    record = {
        "reasons": [evil],
        "next_steps": ["Hold scoring."],
        "links": {"report": "http://a/r"},
        "case": "C-7",
    }
    alert = replace(
        folded(decision(0, "hold_scoring", "data fault"))[0], headline=evil, kind=evil, record=record
    )
    delivery = due(RULES, [alert], [], NOW)[0]
    message = write_message(Batch("team", ((alert, delivery),)), "m1")
    assert "\n" not in message.subject and "\r" not in message.subject
    assert "<!channel>" not in message.slack and "<script>" not in message.html
    for part in ("Since 2024-03-05.", "1. Hold scoring.", "Case: C-7", "Report: http://a/r"):
        assert part in message.text


def test_a_message_that_something_is_over_does_not_say_that_it_is_open_or_that_somebody_must_decide() -> None:
    said = (
        "On 2024-03-05 the model ranked worse than its own scores promise (still open). A person must decide."
    )
    links = {"case": "http://a/cases/p/C-7", "DAG run": "http://a/run"}
    [alert] = folded(decision(0, "ask_person", "performance damage"))
    alert = replace(alert, headline=said, record={"case": "C-7", "links": links})
    delivery = due(RULES, [alert], [], NOW)[0]
    assert said in write_message(Batch("team", ((alert, delivery),)), "m1").text
    for phase in (OVER, GONE):
        over = replace(alert, status="resolved", resolved_at_utc=NOW)
        text = write_message(Batch("team", ((over, replace(delivery, phase=phase)),)), "m1").text
        assert "ranked worse than its own scores promise." in text
        assert "still open" not in text and "must decide" not in text
        assert "Case: http://a/cases/p/C-7\n" in text and "DAG run: http://a/run" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("routes: {page: [nobody]}", "nobody"),
        ("chanels: {}", "chanels"),
        ("channels: {m: {kind: email, connection: c}}", "`to`"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_field_named(settings: Settings, text: str, said: str) -> None:
    (settings.pipelines_dir / "alerts.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_rules(settings)
