"""Alerts and their deliveries: a claim is all or none, and what was sent is not unsaid."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.core import Settings
from tasks.metadata import MetadataStore

NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)


def alert(pipeline: str = "toy") -> dict[str, Any]:
    return {
        "tenant": "default",
        "pipeline": pipeline,
        "kind": "drift",
        "incident": "decision 1",
        "severity": "warn",
        "status": "open",
        "headline": "moved",
        "since": "2024-03-01",
        "opened_at_utc": NOW,
        "observed_at_utc": NOW,
        "resolved_at_utc": None,
        "record": {"reasons": ["a"]},
    }


def delivery(phase: str = "opened", **changed: Any) -> dict[str, Any]:
    key = {name: alert()[name] for name in ("tenant", "pipeline", "kind", "incident")}
    told = {"channel": "team", "phase": phase, "status": "pending", "due_at_utc": NOW, "attempts": 0}
    return {**key, **told, **changed}


def opened(settings: Settings, at: datetime = NOW) -> MetadataStore:
    return MetadataStore.open(settings, clock=lambda: at)


def test_a_claim_takes_all_deliveries_or_none(settings: Settings) -> None:
    store = opened(settings)
    store.keep_alerts([alert()], [delivery(), delivery("reminder 1")])
    assert store.claim_deliveries([delivery()], "m1")
    assert not store.claim_deliveries([delivery("reminder 1"), delivery()], "m2")
    states = {row["phase"]: (row["status"], row["message_id"]) for row in store.delivery_rows("default")}
    assert states == {"opened": ("sending", "m1"), "reminder 1": ("pending", None)}


def test_of_many_senders_one_gets_the_claim(settings: Settings) -> None:
    opened(settings).keep_alerts([alert()], [delivery()])
    gate, got = threading.Barrier(6), []

    def claim(number: int) -> None:
        store = opened(settings)
        gate.wait()
        got.append(store.claim_deliveries([delivery()], f"m{number}"))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 5 + [True]


def test_a_claim_of_a_sender_that_died_ends_and_what_was_sent_is_never_claimed_again(
    settings: Settings,
) -> None:
    store = opened(settings)
    store.keep_alerts([alert()], [delivery()])
    assert store.claim_deliveries([delivery()], "m1")
    later = opened(settings, NOW + timedelta(minutes=16))
    assert not opened(settings, NOW + timedelta(minutes=14)).claim_deliveries([delivery()], "m2")
    assert later.claim_deliveries([delivery()], "m1")
    later.finish_deliveries([delivery()])
    assert not opened(settings, NOW + timedelta(days=9)).claim_deliveries([delivery()], "m3")
    assert later.sent_messages(NOW) == {"team": [NOW + timedelta(minutes=16)]}
    later.keep_alerts([], [delivery(status="dropped")])
    [row] = later.delivery_rows("default")
    assert (row["status"], row["attempts"]) == ("sent", 2)


def test_a_repeat_keeps_what_is_there_and_a_drop_takes_only_what_waits(settings: Settings) -> None:
    store = opened(settings)
    for _ in range(2):
        store.keep_alerts([alert()], [delivery()])
    store.keep_alerts([{**alert(), "status": "resolved"}], [delivery(status="dropped")])
    [kept] = store.alert_rows("default", pipeline="toy")
    [row] = store.delivery_rows("default")
    assert (kept["status"], row["status"], kept["record"]) == ("resolved", "dropped", {"reasons": ["a"]})
    assert (
        store.alert_rows("acme") == [] and store.delivery_rows("default", since=NOW + timedelta(days=1)) == []
    )


def test_open_alerts_and_waiting_deliveries_are_counted(settings: Settings) -> None:
    store = opened(settings)
    store.keep_alerts([alert(), {**alert("other"), "severity": "page"}], [delivery()])
    assert store.open_alert_counts("default", "toy") == {"warn": 1}
    assert (
        store.waiting_deliveries("default", "toy") == 1 and store.waiting_deliveries("default", "other") == 0
    )
