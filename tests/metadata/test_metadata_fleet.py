"""All pipelines of a tenant at once answer as each of them does alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from metadata_support import event

from tasks.core import Settings
from tasks.metadata import MetadataStore, Scope

NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
NAMES = [Scope(name, tenant) for tenant in ("acme", "default", "zoo") for name in ("a", "b", "b_2", "z")]


def grown(settings: Settings) -> MetadataStore:
    """Every tenant's pipelines with a log of their own length, a minute an event."""
    moments = iter(NOON + timedelta(minutes=minute) for minute in range(1000))
    store = MetadataStore.open(settings, clock=lambda: next(moments))
    for turn in range(1, 4):
        for place, of in enumerate(NAMES):
            if place % 4 < turn:
                kind = "promote" if of.name != "z" else "bar"
                store.append_events(of, lambda _, turn=turn, kind=kind: [event(turn, kind)])  # type: ignore[misc]
    return store


def test_what_is_live_everywhere_is_what_is_live_in_each(settings: Settings) -> None:
    store = grown(settings)
    for tenant in ("acme", "default", "zoo", "nobody"):
        mine = [of for of in NAMES if of.tenant == tenant]
        alone = {of.name: live for of in mine if (live := store.live(of))}
        assert store.live_everywhere(tenant) == alone
    assert sorted(store.live_everywhere("acme")) == ["a", "b", "b_2"]


def test_what_was_live_everywhere_at_a_moment_is_what_was_live_in_each(settings: Settings) -> None:
    store = grown(settings)
    for minutes in (-1, 0, 1, 5, 9, 20, 500):
        moment = NOON + timedelta(minutes=minutes)
        for tenant in ("acme", "zoo"):
            mine = [of for of in NAMES if of.tenant == tenant]
            alone = {of.name: live for of in mine if (live := store.live_at(of, moment))}
            assert store.live_everywhere(tenant, at=moment) == alone


def test_events_everywhere_are_one_tenants_newest_first_between_two_moments(settings: Settings) -> None:
    store = grown(settings)
    since, until = NOON + timedelta(minutes=2), NOON + timedelta(minutes=15)
    wanted = [
        (of.name, found)
        for of in NAMES
        if of.tenant == "acme"
        for found in store.history(of)
        if since <= found.at_utc < until
    ]
    wanted.sort(key=lambda item: item[1].at_utc, reverse=True)
    found = store.events_everywhere("acme", since=since, until=until)
    assert found == wanted and len(found) > 2
    assert store.events_everywhere("acme", since=since, until=until, limit=2) == wanted[:2]


def test_an_empty_log_has_nothing_live_anywhere(store: MetadataStore) -> None:
    assert store.live_everywhere() == {}
    assert store.events_everywhere(since=NOON) == []
