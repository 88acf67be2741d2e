"""The deployment log itself: numbering, order in time, and one head."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tasks.core import Settings
from tasks.metadata import MetadataStore, Scope
from tasks.metadata.deployments import LogHead, NewEvent

TOY = Scope("toy")
NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


def event(version: int, kind: str = "promote") -> NewEvent:
    return NewEvent(kind, version, "b" * 64, "1", None, "tests", "because")


def test_events_are_numbered_without_gaps_for_each_pipeline(store: MetadataStore) -> None:
    for of in (TOY, Scope("other"), TOY):
        store.append_events(of, lambda head: [event(head.event_id + 1)])
    assert [item.event_id for item in store.history(TOY)] == [2, 1]
    assert [item.event_id for item in store.history(Scope("other"))] == [1]


def test_time_never_runs_backwards_in_the_log(settings: Settings) -> None:
    MetadataStore.open(settings, clock=lambda: NOON).append_events(TOY, lambda _: [event(1)])
    behind = MetadataStore.open(settings, clock=lambda: NOON - timedelta(hours=1))
    behind.append_events(TOY, lambda _: [event(2)])
    assert [item.at_utc for item in behind.history(TOY)] == [NOON, NOON]
    live = behind.live_at(TOY, NOON)
    assert live is not None and live.version == 2
    assert behind.live_at(TOY, NOON - timedelta(seconds=1)) is None


def test_what_was_live_is_known_for_every_moment(settings: Settings) -> None:
    for hour, kind, version in [(1, "promote", 1), (2, "promote", 2), (3, "bar", 9), (4, "rollback", 1)]:
        moment = NOON + timedelta(hours=hour)
        store = MetadataStore.open(settings, clock=lambda at=moment: at)
        store.append_events(TOY, lambda _, v=version, k=kind: [event(v, k)])
    seen = [store.live_at(TOY, NOON + timedelta(hours=hour, minutes=30)) for hour in range(5)]
    assert [item and item.version for item in seen] == [None, 1, 2, 2, 1]
    assert len(store.history(TOY, since=NOON + timedelta(hours=3))) == 2
    assert [item.previous_version for item in store.history(TOY)] == [2, 2, 1, None]


def test_two_events_of_one_decision_land_together_or_not_at_all(store: MetadataStore) -> None:
    class Refused(Exception):
        pass

    def decide(head: LogHead) -> Sequence[NewEvent]:
        raise Refused

    with pytest.raises(Refused):
        store.append_events(TOY, decide)
    store.append_events(TOY, lambda _: [event(1), event(2, "bar")])
    assert store.head(TOY).barred == {2}
    assert store.head(TOY).event_id == 2


def test_a_decision_is_asked_again_when_another_writer_was_first(store: MetadataStore) -> None:
    """Many writers, each appending only if it saw the newest head: nobody's event is lost, no number is used twice."""
    seen: list[int] = []

    def append() -> None:
        [made] = store.append_events(TOY, lambda head: [event(head.event_id + 1)])
        seen.append(made.version)

    threads = [threading.Thread(target=append) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 21))
    assert all(item.version == item.event_id for item in store.history(TOY))


def test_a_write_that_can_never_succeed_is_not_repeated_for_ever(store: MetadataStore) -> None:
    broken = NewEvent("promote", 1, None, "1", None, "tests", "because")  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)not.null"):
        store.append_events(TOY, lambda _: [broken])
