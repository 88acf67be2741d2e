"""Leases: nothing is admitted twice, the dead give up what they held, and clocks and databases may misbehave."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from children import at_once
from database_fixtures import on_database
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from share_files import say
from sqlalchemy import update
from tenancy_support import many_wait, pipeline_of, silent

from tasks import wiring
from tasks.core import Settings
from tasks.core.errors import ConfigError, ServiceUnavailable, StaleAttempt, TerminalError
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.inference import Demand
from tasks.inference.width import WorkerTime
from tasks.metadata import MetadataStore, Scope
from tasks.metadata.database import Database
from tasks.metadata.leases import OpenLedger
from tasks.metadata.tables import leases
from tasks.tenancy import SEEN, Book, Request, Seen, decide, explained, foreseen_s, ledger_time
from tasks.wiring import lease_holder
from tasks.wiring.admission import Admission, admission
from tasks.wiring.context import open_context
from tasks.wiring.lease_holder import NOTHING
from tasks.wiring.settling import Settler

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FOUR = ClusterSpec(gpus=4, cpus=16, lease_s=60)
Shares = Mapping[str, TenantShare]
HALVES: Shares = {name: TenantShare.model_validate({"guarantee": {"gpus": 2}}) for name in ("red", "blue")}


WORKERS = {"gpus": 1.0, "cpus": 4.0, "memory_gib": 0.0, "least": 1, "most": 4, "reclaimable": True}
"""What a run asks for."""


def lease(tenant: str, run_id: str = "r", **more: object) -> Seen:
    own = {"priority": 0, "since_s": 0.0, "width": 0, "workers": 0}
    return Seen(tenant, "p", run_id, **{**WORKERS, **own, **more})  # type: ignore[arg-type]


def asks(tenant: str, run_id: str = "r", *, again: bool = True, **more: object) -> Request:
    own = {"workers": 0, "same_attempt": again, "has_heard": True}
    return Request(tenant, "p", run_id, **{**WORKERS, **own, **more})  # type: ignore[arg-type]


def widths(book: Book) -> dict[str, int]:
    return {lease.tenant: lease.width for lease in book.leases.values()}


def test_a_run_grows_only_into_what_others_have_really_given_back() -> None:
    book = Book()
    decide(FOUR, HALVES, book, [asks("red")], 0.0)
    assert widths(book) == {"red": 4}, "nobody else is there"
    decide(FOUR, HALVES, book, [asks("red", workers=4), asks("blue")], 1.0)
    assert widths(book) == {"red": 2, "blue": 0}, "red leaves at its shard boundaries"
    said, target = explained(FOUR, HALVES, book, "blue/p/r", 1.0)
    assert target == 2 and "as soon as others have finished the shards they are at" in said
    decide(FOUR, HALVES, book, [], 2.0)
    assert widths(book) == {"red": 2, "blue": 0}
    decided = decide(FOUR, HALVES, book, [asks("red", workers=3)], 3.0)
    assert widths(book) == {"red": 2, "blue": 1} and decided.changed == {"red/p/r", "blue/p/r"}
    decide(FOUR, HALVES, book, [asks("red", workers=2), asks("blue", workers=1)], 4.0)
    assert widths(book) == {"red": 2, "blue": 2}
    assert decide(FOUR, HALVES, book, [asks("blue", workers=1)], 5.0).changed == frozenset()


def test_what_a_run_was_told_that_it_may_have_counts_until_it_has_heard_otherwise() -> None:
    book = Book()
    decide(FOUR, HALVES, book, [asks("red")], 0.0, 1)
    decide(FOUR, HALVES, book, [asks("blue")], 1.0, 2)
    red = book.leases["red/p/r"]
    assert (red.width, red.workers, red.granted) == (2, 4, 2), "it may be about to start four"
    decide(FOUR, HALVES, book, [asks("red", workers=0, has_heard=False)], 2.0, 3)
    assert widths(book) == {"red": 2, "blue": 0}
    decide(FOUR, HALVES, book, [asks("red", workers=0)], 3.0, 4)
    assert widths(book) == {"red": 2, "blue": 2}


def test_what_nobody_granted_counts_for_nothing() -> None:
    book = Book()
    decide(FOUR, HALVES, book, [asks("red", workers=400, again=False)], 0.0)
    (red,) = book.leases.values()
    assert (red.width, red.workers) == (4, 0)
    decide(FOUR, HALVES, book, [asks("red", workers=400), asks("blue", workers=400, again=False)], 1.0)
    assert book.held() == Resources(4, 16), "red has its four still, and blue none"
    larger = asks("red", workers=4, gpus=2.0)
    decide(FOUR, HALVES, book, [larger], 2.0)
    assert book.held().within(FOUR.resources), "four workers that were granted are not four larger ones"
    gang = asks("green", workers=9, least=9, most=9, reclaimable=False, again=False)
    decide(FOUR, HALVES, book, [gang], 3.0)
    assert book.leases["green/p/r"].width == 0


def test_what_is_not_given_back_counts_for_a_while_and_then_not() -> None:
    book = Book()
    decide(FOUR, HALVES, book, [asks("red")], 0.0)
    for now_s in (10.0, 500.0, 910.0):
        decide(FOUR, HALVES, book, [asks("red", workers=4), asks("blue")], now_s)
        assert widths(book) == {"red": 2, "blue": 0}
    decide(FOUR, HALVES, book, [asks("red", workers=4)], 911.0)
    assert widths(book) == {"red": 2, "blue": 2}
    decide(FOUR, HALVES, book, [asks("red", workers=4)], 912.0)
    assert widths(book) == {"red": 2, "blue": 2} and book.held() == Resources(4, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": float("nan")},
        {"cpus": float("inf")},
        {"memory_gib": -1.0},
        {"gpus": 0.0, "cpus": 1e-12},
        {"gpus": 0.0, "cpus": 0.0},
        {"least": 0},
        {"most": -1},
        {"workers": -4},
        {"reclaimable": False, "least": 1, "most": 4},
    ],
)
def test_a_request_on_which_nothing_can_be_decided_is_passed_over(wrong: dict[str, object]) -> None:
    book = Book()
    decided = decide(FOUR, HALVES, book, [asks("red", **wrong), asks("blue")], 0.0)
    assert widths(book) == {"blue": 4} and decided.changed == {"blue/p/r"}


def test_a_training_whose_lease_was_lost_has_its_workers_again_where_they_are_free() -> None:
    gang = asks("red", "t", workers=2, least=2, most=2, reclaimable=False, again=False)
    book = Book()
    decide(FOUR, HALVES, book, [gang], 0.0)
    assert (book.leases[gang.key].width, book.leases[gang.key].workers) == (2, 2)
    book = Book([lease("blue", width=4, workers=4)])
    decide(FOUR, HALVES, book, [gang], 0.0)
    assert book.leases[gang.key].width == 0 and book.held() == Resources(4, 16)


def test_a_changed_priority_holds_for_runs_that_are_there() -> None:
    book = Book([lease("red", "a"), lease("blue", "b", width=4, workers=4)])
    more = {**HALVES, "red": HALVES["red"].model_copy(update={"priority": 3})}
    decided = decide(FOUR, more, book, [], 1.0)
    assert book.leases["red/p/a"].priority == 3 and decided.changed == {"red/p/a", "blue/p/b"}


def test_a_run_that_waits_says_when_it_expects_to_start() -> None:
    busy = [lease("red", "a", width=2, workers=2, most=2), lease("blue", "b", width=2, workers=2)]
    one = {**HALVES, "red": HALVES["red"].model_copy(update={"max_runs": 1})}
    book = Book(busy)
    decide(FOUR, one, book, [asks("red", "c")], 0.0)
    waits = "red/p/c"
    said = "1 runs of the tenant have workers, share.max_runs is 1"
    assert explained(FOUR, one, book, waits, 0.0) == (said, 0)
    ends = {busy[0].key: 90.0, "gone/p/r": 1.0}
    assert foreseen_s(FOUR, one, book, waits, 0.0, ends) == 90.0
    assert foreseen_s(FOUR, one, book, waits, 0.0, {"gone/p/r": 1.0}) is None


def test_the_ledgers_time_never_goes_back_and_a_jump_ends_no_lease() -> None:
    assert ledger_time(100.0, NOON, NOON + timedelta(seconds=5), lease_s=60) == 105.0
    assert ledger_time(100.0, NOON, NOON - timedelta(days=1), lease_s=60) == 100.0
    assert ledger_time(100.0, NOON, NOON + timedelta(days=1), lease_s=60) == 115.0


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 40)), max_size=60), st.booleans()
)
def test_whoever_asks_in_whatever_order_never_more_is_held_than_there_is(
    beats: list[tuple[int, int, int]], keep_book: bool
) -> None:
    """Runs ask, want more or less, take what they are granted or are slow to give back, and fall silent."""
    names = [(("red", "blue", "green")[n % 3], f"r{n}") for n in range(5)]
    book, heard, now = Book(), {}, 0.0
    for number, wants, later in beats:
        now += later
        for key in [key for key, said_s in heard.items() if now - said_s > 60]:
            book.remove(key)
            del heard[key]
        tenant, run_id = names[number]
        known = book.leases.get(f"{tenant}/p/{run_id}")
        workers = 0
        if known is not None:
            workers = known.width if wants % 2 else min(known.workers, known.width + 1) or known.width
        mine = asks(tenant, run_id, most=wants, workers=workers, again=known is not None)
        heard[mine.key] = now
        if not keep_book:
            book = Book(book.leases.values())
        decide(FOUR, HALVES, book, [mine], now)
        assert book.held().within(FOUR.resources)
        again = Book(book.leases.values())
        assert decide(FOUR, HALVES, again, [], now).changed == frozenset(), "a decision is made once"


@given(
    st.lists(
        st.tuples(st.sampled_from(["red", "blue", "green"]), st.integers(0, 8), st.integers(1, 4)),
        min_size=1,
        max_size=12,
    )
)
def test_when_all_have_given_back_each_has_what_the_policy_says(runs: list[tuple[str, int, int]]) -> None:
    """However those who were there first hold on: two decisions later the widths are those of the allocation."""
    book = Book([lease("black", "first", width=4, workers=4)])
    asked = [
        asks(tenant, f"r{n}", most=most, least=least if least <= most else 1)
        for n, (tenant, most, least) in enumerate(runs)
    ]
    found = decide(FOUR, HALVES, book, asked, 1.0).found
    kept = book.leases["black/p/first"].width
    black = replace(asks("black", "first"), workers=kept)
    decide(FOUR, HALVES, book, [black], 1.0)
    assert {key: one.width for key, one in book.leases.items() if one.width} == dict(found.widths)


def test_where_the_time_of_workers_went_adds_up() -> None:
    spent = WorkerTime()
    spent.begin("a", 0.0)
    spent.begin("b", 0.0)
    spent.work("a", 2.0)
    spent.done("a", 7.0, counts=True)
    spent.work("b", 3.0)
    spent.done("b", 4.0, counts=False)
    spent.work("a", 8.0)
    spent.end("a", 10.0)
    assert (spent.used_s, spent.wasted_s, spent.allocated_s(12.0)) == (5.0, 3.0, 22.0)


CLUSTER = "{gpus: 4, cpus: 16, beat_s: 1, lease_s: 60}"
INFERENCE = "{max_workers: 4, gpus_per_worker: 1, cpus_per_worker: 4}"
TWO = "share: {guarantee: {gpus: 2}}"


def demand(workers: int = 0, wanted: int = 4, allocated_s: float = 0.0) -> Demand:
    return Demand(workers, wanted, 10, None, allocated_s, allocated_s / 2, allocated_s / 10)


class Hands:
    """A monotonic clock that is moved by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """An installation whose ledger is empty, once on each database."""
    return on_database(request, settings)


@pytest.fixture
def two(settings: Settings) -> Settings:
    say(settings, CLUSTER, red=TWO, blue=TWO)
    for tenant in ("red", "blue"):
        pipeline_of(settings, tenant, INFERENCE)
    return settings


def asked(settings: Settings, tenant: str, run_id: str = "r1", hands: Hands | None = None) -> Admission:
    found = admission(open_context(settings, f"{tenant}_toy"), run_id)
    assert isinstance(found, Admission)
    if hands is not None:
        found._monotonic = found.holder._monotonic = hands
    return found


def test_before_a_run_are_those_of_its_tenant_that_asked_earlier_and_as_many_of_each_other() -> None:
    waits = [lease("red", f"r{n}", since_s=float(n)) for n in range(4)]
    others = [lease("blue", f"b{n}", since_s=9.0) for n in range(2)]
    book = Book([lease("red", "has", width=1, workers=1, most=4), *waits, *others])
    assert [book.ahead(one.key) for one in waits] == [0, 2, 4, 5]
    assert book.ahead(others[1].key) == 2


def test_without_a_cluster_file_no_run_is_admitted_and_no_ledger_is_read(settings: Settings) -> None:
    pipeline_of(settings, "red", INFERENCE)
    free = admission(open_context(settings, "red_toy"), "r1")
    assert free.allowed(demand(wanted=7), boundary=False) == 7
    free.leave(demand(allocated_s=4.0))
    store = MetadataStore.open(settings)
    assert store.lease_rows() == [] and store.seen_size() is None
    (line,) = wiring.cost_ledger(settings)["lines"]
    assert (line["allocated_s"], line["outcome"]) == (4.0, "failed"), "ten shards were left"


def test_a_lease_lives_from_the_first_beat_to_the_end_and_leaves_its_account(two: Settings) -> None:
    hands = Hands()
    red = asked(two, "red", hands=hands)
    assert red.allowed(demand(), boundary=False) == 4
    hands.now_s = 1.5
    assert red.allowed(demand(4, allocated_s=6.0), boundary=True) == 4
    (row,) = MetadataStore.open(two).lease_rows()
    assert (row["width"], row["workers"], row["tenant"]) == (4, 4, "red")
    red.leave(demand(0, 0, allocated_s=20.0))
    assert MetadataStore.open(two).lease_rows() == []
    ledger = wiring.cost_ledger(two)
    (line,) = ledger["lines"]
    assert (line["allocated_s"], line["used_s"], line["idle_s"], line["wasted_s"]) == (20.0, 10.0, 8.0, 2.0)
    (whole,) = ledger["by_tenant"]
    assert whole["gpu_seconds"] == 20.0 and whole["cpu_seconds"] == 80.0


def test_two_drivers_of_one_run_are_one_lease_and_the_older_one_stops(two: Settings) -> None:
    hands = Hands()
    old, new = asked(two, "red", hands=hands), asked(two, "red")
    assert old.allowed(demand(), boundary=False) == 4
    assert new.allowed(demand(), boundary=False) == 4
    assert len(MetadataStore.open(two).lease_rows()) == 1
    hands.now_s = 2.0
    with pytest.raises(StaleAttempt, match="newer attempt"):
        old.allowed(demand(4), boundary=False)
    old.leave(demand())
    assert len(MetadataStore.open(two).lease_rows()) == 1, "the newer attempt's lease stays"


def test_a_run_that_asks_for_what_it_can_never_get_is_refused_with_limit_and_figure(
    settings: Settings,
) -> None:
    say(settings, "{gpus: 4, cpus: 16, nodes: [{count: 4, gpus: 1, cpus: 4}]}", red=TWO)
    pipeline_of(settings, "red", "{gpus_per_worker: 2, cpus_per_worker: 1}")
    with pytest.raises(
        TerminalError, match="a worker needs 2 GPUs, 1 CPU on one node; the largest node has 1 GPU"
    ):
        admission(open_context(settings, "red_toy"), "r1")


def test_guarantees_above_the_cluster_refuse_every_run_before_it_begins(two: Settings) -> None:
    say(two, None, blue="share: {guarantee: {gpus: 3}}")
    with pytest.raises(ConfigError, match="guarantees add up to 5: blue 3, red 2"):
        admission(open_context(two, "red_toy"), "r1")


def test_changed_shares_hold_at_the_next_beat_and_a_broken_file_changes_nothing(two: Settings) -> None:
    hands = Hands()
    red = asked(two, "red", hands=hands)
    assert red.allowed(demand(), boundary=False) == 4
    say(two, None, red="share: {guarantee: {gpus: 1}, borrow: {gpus: 2}}")
    hands.now_s = 2.0
    assert red.allowed(demand(4), boundary=False) == 3
    say(two, None, red="share: [")
    hands.now_s = 4.0
    assert red.allowed(demand(3), boundary=False) == 3


def test_without_the_ledger_nothing_is_begun_and_what_runs_goes_on_until_its_lease_may_be_over(
    two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = Hands()
    red = asked(two, "red", hands=hands)
    assert red.allowed(demand(), boundary=False) == 4

    def away(*_: object, **__: object) -> None:
        raise ServiceUnavailable("the metadata database does not answer: connection refused", which="db")

    monkeypatch.setattr(MetadataStore, "lease_request", away)
    hands.now_s = 30.0
    assert red.allowed(demand(3), boundary=False) == 3, "it does not grow"
    hands.now_s = 61.0
    with pytest.raises(ServiceUnavailable, match="the lease may be over"):
        red.allowed(demand(3), boundary=False)
    with pytest.raises(ServiceUnavailable, match="nothing was begun"):
        asked(two, "blue").allowed(demand(), boundary=False)
    red.leave(demand())


def test_the_status_shows_who_borrows_and_why_a_run_waits(two: Settings) -> None:
    red, blue = asked(two, "red"), asked(two, "blue")
    assert red.allowed(demand(), boundary=False) == 4
    assert blue.allowed(demand(), boundary=False) == 0
    found = wiring.tenancy_status(two)
    shares = {one["tenant"]: one for one in found["shares"]}
    assert (shares["red"]["has"], shares["red"]["borrows"]) == ("4 GPUs, 16 CPUs", "2 GPUs, 8 CPUs")
    assert shares["blue"]["waiting"] == 1
    waits = next(run["waits"] for run in found["runs"] if run["tenant"] == "blue")
    assert waits.startswith("gets 2 workers as soon as others have finished the shards they are at")


def test_processes_that_ask_at_the_same_moment_never_get_more_than_there_is(two: Settings) -> None:
    """Eight drivers of two tenants beat as fast as they can; each takes what it is granted and gives some of it back."""
    MetadataStore.open(two)

    def driver(number: int) -> float:
        red = asked(two, ("red", "blue")[number % 2], f"r{number}")
        draw, workers, most_seen = random.Random(number), 0, 0.0
        for _ in range(12):
            try:
                width = red.holder.beat(NOTHING, workers=workers, most=draw.randint(1, 4)).width
            except ServiceUnavailable:  # others have held the lock for seconds: it goes on with what it has
                continue
            workers = max(min(workers, width), width if draw.random() < 0.7 else min(workers, width))
            held = sum(max(row["width"], row["workers"]) for row in MetadataStore.open(two).lease_rows())
            most_seen = max(most_seen, held)
        while any(row["run_id"] == f"r{number}" for row in MetadataStore.open(two).lease_rows()):
            red.holder.end({**NOTHING, "allocated_s": 1.0}, "finished")
        return most_seen

    found = at_once(*[partial(driver, number) for number in range(8)])
    assert all(isinstance(one, int | float) and 0 < one <= 4 for one in found), found
    store = MetadataStore.open(two)
    assert store.lease_rows() == []
    kept = store.allocation_rows(
        since=datetime(2000, 1, 1, tzinfo=UTC), until=datetime(2200, 1, 1, tzinfo=UTC)
    )
    assert sorted(row["run_id"] for row in kept) == [f"r{n}" for n in range(8)], "each has ended once"


def test_what_a_driver_keeps_from_beat_to_beat_is_what_the_ledger_holds(two: Settings) -> None:
    """Attempts come, change, end, die, and take each other's place, in any order; who looks seldom sees it all the same."""
    store, draw, hands = MetadataStore.open(two), random.Random(7), Hands()
    drivers: dict[str, Admission] = {}
    seldom, kept = asked(two, "red", "seldom", hands), 0
    for number in range(150):
        hands.now_s += 1.0
        name = f"r{draw.randrange(5)}"
        known = drivers.get(name)
        what = draw.random()
        if known is None or what < 0.15:  # a newer attempt, beside one that may still think it has the lease
            known = drivers[name] = asked(two, ("red", "blue")[int(name[1]) % 2], name, hands)
        if what > 0.9:
            drivers.pop(name).holder.end({**NOTHING, "allocated_s": draw.choice([0.0, 1.0])}, "finished")
        elif what > 0.8:
            drivers.pop(name)
            silent(two, name)
        else:
            had = known.holder._settler.book
            known.holder.beat(NOTHING, workers=draw.randrange(3), most=draw.randrange(5))
            kept += had is not None and known.holder._settler.book is had
        if number % 10 == 0:
            seldom.holder.beat(NOTHING, workers=0, most=1 + number % 20 // 10)
            with store.lease_view() as view:
                assert view is not None
                there = Book(Seen(*row) for row in view.rows(SEEN))
            book = seldom.holder._settler.book
            assert book is not None and book.leases == there.leases and book.holding == there.holding
            assert book.queue.runs == there.queue.runs and book.queue.groups == there.queue.groups
    assert kept > 20 and "seldom" in {row["run_id"] for row in store.lease_rows()}


def test_a_beat_that_fails_leaves_nothing_of_it_in_memory(
    two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = asked(two, "red")
    red.holder.beat(NOTHING, workers=0, most=4)

    def breaks(*_: object) -> None:
        raise ServiceUnavailable("the connection broke", which="db")

    with monkeypatch.context() as patch, pytest.raises(ServiceUnavailable):
        patch.setattr(OpenLedger, "flush", breaks)
        red.holder.beat(NOTHING, workers=4, most=2)
    assert red.holder._settler.book is None
    assert red.holder.beat(NOTHING, workers=4, most=4).width == 4


def test_a_run_for_which_nothing_has_changed_decides_for_nobody_until_nobody_has_decided_for_a_while(
    two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(two, CLUSTER.replace("beat_s: 1,", "beat_s: 30,"))
    red, blue = asked(two, "red"), asked(two, "blue")
    red.holder.beat(NOTHING, workers=0, most=4)
    red.holder.beat(NOTHING, workers=4, most=4)
    waits = blue.holder.beat(NOTHING, workers=0, most=4)
    decided: list[bool] = []
    settle = Settler.settle

    def counted(self: Settler, *arguments: Any, wait: bool) -> Any:
        decided.append(wait)
        return settle(self, *arguments, wait=wait)

    monkeypatch.setattr(Settler, "settle", counted)
    for _ in range(3):
        again = blue.holder.beat(NOTHING, workers=0, most=4)
        assert (again.width, again.reason) == (0, waits.reason) and not decided
    blue.holder.beat(NOTHING, workers=0, most=3)
    assert decided == [True], "what it asks for has changed"
    with Database(two.metadata_url).write() as connection:
        connection.execute(update(leases).where(leases.c.tenant == "*").values(beat_at_utc=NOON))
    blue.holder.beat(NOTHING, workers=0, most=3)
    blue.holder.beat(NOTHING, workers=0, most=3)
    assert decided == [True, False], "the first to see that nobody has decided does, and need not wait for it"


def test_whoever_keeps_the_ledger_goes_on_without_a_database_and_with_a_broken_file(
    two: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    red = asked(two, "red").holder
    monkeypatch.setattr(red, "_may_settle", False)
    assert red.beat(NOTHING, workers=0, most=4).width == 0, "its login may not decide"
    paused: list[float] = []

    def away(*_: object, **__: object) -> None:
        raise ServiceUnavailable("the metadata database does not answer", which="db")

    def sleep(pause_s: float) -> None:
        paused.append(pause_s)
        if len(paused) == 1:
            assert red.beat(NOTHING, workers=0, most=3).width == 4
            say(two, None, red="share: [")
            monkeypatch.setattr(MetadataStore, "lease_ledger", away)
        elif len(paused) == 2:
            assert "Shares stay as they were" in caplog.text
            monkeypatch.undo()
        else:
            assert "Nothing is decided for now" in caplog.text
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wiring.keep_leases(two, sleep=sleep)
    assert paused == [1.0, 1.0, 1.0]
    (row,) = MetadataStore.open(two).lease_rows()
    assert row["width"] == 3, "what it asked for meanwhile was decided afterwards"


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_while_somebody_decides_others_beat(two: Settings) -> None:
    red, blue = asked(two, "red"), asked(two, "blue")
    red.holder.beat(NOTHING, workers=0, most=4)
    red.holder.beat(NOTHING, workers=4, most=4)
    blue.holder.beat(NOTHING, workers=0, most=4)
    with Database(two.metadata_url).write() as connection:
        connection.execute(update(leases).where(leases.c.tenant == "*").values(beat_at_utc=NOON))
    with MetadataStore.open(two).lease_ledger():
        assert blue.holder.beat({**NOTHING, "rows": 7}, workers=0, most=4).width == 0
        assert {row["rows"] for row in MetadataStore.open(two).lease_rows() if row["tenant"] == "blue"} == {7}
        with MetadataStore.open(two).lease_ledger_if_free() as second:
            assert second is None


def test_a_file_that_promises_more_than_ray_has_is_said_with_both_figures_and_what_ray_has_is_shared_out(
    two: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease_holder, "ray_size", lambda: Resources(2.0, 16.0, 30.0))
    red = asked(two, "red")
    with caplog.at_level("WARNING"):
        assert red.allowed(demand(), boundary=False) == 2
    said = "tenants/_cluster.yaml says 4 GPUs, 16 CPUs; Ray has 2 GPUs, 16 CPUs: what Ray has is shared out"
    assert said in caplog.text
    assert wiring.tenancy_status(two)["short"].startswith(said)
    red.leave(demand(0, 0))
    say(two, CLUSTER.replace("{gpus", "{autoscaled: true, gpus"))
    assert asked(two, "red", "r2").allowed(demand(), boundary=False) == 4, "Ray brings the nodes"
    assert wiring.tenancy_status(two)["short"] is None


def test_with_a_deadline_a_run_asks_for_the_workers_that_meet_it(two: Settings) -> None:
    file = two.pipelines_dir / "red_toy" / "pipeline.yaml"
    file.write_text(file.read_text().replace("{max_workers: 4", "{deadline_hours: 1, max_workers: 4"))
    MetadataStore.open(two).record_run(Scope("red_toy", "red"), "r1", status="planned")
    red = asked(two, "red")
    red._changed_s = -1000.0  # the cool-down is over
    slow = replace(demand(2), shards_left=10, ends_in_s=1800.0)  # two workers would need half of the hour
    assert red.allowed(slow, boundary=True) == 2
    late = replace(demand(2), shards_left=10, ends_in_s=36_000.0)
    red._beat_s = None
    assert red.allowed(late, boundary=True) == 4


def test_among_many_a_run_that_waits_asks_less_often_says_so_and_keeps_its_place(two: Settings) -> None:
    hands = Hands()
    red = asked(two, "red", hands=hands)
    assert red.allowed(demand(), boundary=False) == 4 and red.holder.pause_s == 1.0
    first = asked(two, "blue", "a1", hands=hands)
    blue = asked(two, "blue", "x1", hands=hands)
    many_wait(two, blue.holder._first, 1000)
    for at_s, pause_s in ((0.0, 1.0), (1.0, 1001 * 0.1)):
        hands.now_s = at_s
        for one in (first, blue):
            assert one.allowed(demand(), boundary=False) == 0
            one.holder._foreseen = (at_s, None)
        assert blue.holder.pause_s == pytest.approx(pause_s), "not longer before it has said so"
        assert first.holder.pause_s == 1.0, "it is the next of its tenant"
    hands.now_s = 70.0
    blue.allowed(demand(), boundary=False)
    assert blue._beat_s == 1.0
    with Database(two.metadata_url).write() as connection:  # as if so much time had passed for the ledger
        clock = update(leases).where(leases.c.tenant == "*")
        connection.execute(clock.values(beat_s=leases.c.beat_s + 100))
    wiring.keep_leases(two, once=True)
    assert [row["tenant"] for row in MetadataStore.open(two).lease_rows()] == ["blue"], (
        "others had not said so"
    )
    blue.holder._foreseen = (70.0, 300.0)
    assert blue.holder.pause_s == 30.0, "it asks sooner when it may start sooner"
