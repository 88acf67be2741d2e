"""Holds: placed with a reason, over when released, and kept as records either way."""

from __future__ import annotations

from datetime import date

import pytest

from tasks.core import ObjectStore, Settings, open_store
from tasks.core.errors import ConfigError, DataError, NotFound
from tasks.core.holds import holds, is_held, place_hold, release_hold

DAY, NEXT = date(2024, 3, 1), date(2024, 3, 2)


@pytest.fixture
def store(store_settings: Settings) -> ObjectStore:
    return open_store(store_settings, prefix="default/toy")


def test_a_hold_is_about_its_days_until_it_is_released(store: ObjectStore) -> None:
    assert holds(store) == []
    hold = place_hold(store, first_day=DAY, last_day=NEXT, reason="complaint 12", actor="ada")
    assert holds(store) == [hold]
    assert [is_held(holds(store), date(2024, 3, day)) for day in (1, 2, 3)] == [True, True, False]
    other = place_hold(store, first_day=NEXT, last_day=NEXT, reason="court", actor="ada")
    over = release_hold(store, hold.hold_id, reason="settled", actor="bob")
    assert (over.released_by, over.release_reason, over.reason) == ("bob", "settled", "complaint 12")
    assert {one.hold_id for one in holds(store)} == {hold.hold_id, other.hold_id}
    assert [is_held(holds(store), day) for day in (DAY, NEXT)] == [False, True]


def test_a_second_release_leaves_the_first_as_it_is(store: ObjectStore) -> None:
    hold = place_hold(store, first_day=DAY, last_day=DAY, reason="complaint 12", actor="ada")
    first = release_hold(store, hold.hold_id, reason="settled", actor="bob")
    assert release_hold(store, hold.hold_id, reason="again", actor="eve") == first
    assert holds(store) == [first]


def test_holds_without_a_reason_a_window_or_a_name_are_refused(store: ObjectStore) -> None:
    with pytest.raises(ConfigError, match="before it starts"):
        place_hold(store, first_day=NEXT, last_day=DAY, reason="complaint 12", actor="ada")
    with pytest.raises(ConfigError, match="is empty"):
        place_hold(store, first_day=DAY, last_day=DAY, reason=" ", actor="ada")
    with pytest.raises(NotFound, match="is no hold"):
        release_hold(store, "0123abcd", reason="settled", actor="bob")
    assert holds(store) == []


def test_a_hold_that_cannot_be_read_stops_whoever_wants_to_delete(store: ObjectStore) -> None:
    hold = place_hold(store, first_day=DAY, last_day=DAY, reason="complaint 12", actor="ada")
    store.put(f"holds/{hold.hold_id}/placed.json", b"{")
    with pytest.raises(DataError, match="not a readable hold"):
        holds(store)
