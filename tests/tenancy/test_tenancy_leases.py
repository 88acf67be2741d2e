"""Leases: nothing is admitted twice, the dead give up what they held, and clocks and databases may misbehave."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from children import at_once
from database_fixtures import on_database
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from share_files import say
from tenancy_support import pipeline_of

from tasks import wiring
from tasks.core import Settings
from tasks.core.errors import ConfigError, ServiceUnavailable, StaleAttempt, TerminalError
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.inference import Demand
from tasks.inference.width import WorkerTime
from tasks.metadata import MetadataStore, Scope
from tasks.metadata.leases import OpenLedger
from tasks.tenancy import SEEN, Book, Lease, beat, foreseen_s, ledger_time
from tasks.wiring import lease_holder
from tasks.wiring.admission import Admission, admission
from tasks.wiring.context import open_context
from tasks.wiring.lease_holder import NOTHING

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FOUR = ClusterSpec(gpus=4, cpus=16, lease_s=60)
Shares = Mapping[str, TenantShare]
HALVES: Shares = {name: TenantShare.model_validate({"guarantee": {"gpus": 2}}) for name in ("red", "blue")}


def lease(tenant: str, run_id: str = "r", **more: object) -> Lease:
    moments = dict.fromkeys(("asked_at_utc", "beat_at_utc"), NOON)
    numbers = dict.fromkeys(("allocated_s", "used_s", "wasted_s", "since_s", "beat_s", "memory_gib"), 0.0)
    counts = {"least": 1, "most": 4, "priority": 0, "width": 0, "workers": 0}
    made: dict[str, object] = {
        "starts_in_s": None,
        "rows": 0,
        "bytes_read": 0,
        "bytes_written": 0,
        "cpu_seconds": 0.0,
        "gpu_seconds": 0.0,
    }
    rest = {
        "kind": "scoring",
        "holder": "h",
        "gpus": 1.0,
        "cpus": 4.0,
        "reclaimable": True,
        "ends_in_s": None,
        "reason": "",
    }
    return Lease(
        tenant=tenant, pipeline="p", run_id=run_id, **{**moments, **numbers, **made, **counts, **rest, **more}
    )  # type: ignore[arg-type]


def granted(leases: Iterable[Lease], mine: Lease, now_s: float, tenants: Shares = HALVES) -> Lease:
    """One beat beside these leases."""
    return beat(FOUR, tenants, Book(one.seen for one in leases), mine, now_s)


def test_a_run_grows_only_into_what_others_have_really_given_back() -> None:
    red = granted([], lease("red"), 0.0)
    assert red.width == 4, "nobody else is there"
    red = replace(red, workers=4)
    blue = granted([red], lease("blue", since_s=1.0), 1.0)
    assert blue.width == 0 and "as soon as others have finished the shards they are at" in blue.reason
    red = granted([red, blue], red, 2.0)
    assert (red.width, red.workers) == (2, 4), "it leaves at its shard boundaries"
    assert granted([red, blue], blue, 3.0).width == 0
    red = replace(red, workers=3)
    blue = granted([red, blue], blue, 3.0)
    assert (blue.width, blue.reason) == (1, "")
    assert granted([replace(red, workers=2), blue], replace(blue, workers=1), 4.0).width == 2


def test_a_run_that_waits_says_when_it_expects_to_start() -> None:
    busy = [
        lease("red", "a", width=2, workers=2, most=2),
        lease("blue", "b", width=2, workers=2),
    ]
    one = {**HALVES, "red": HALVES["red"].model_copy(update={"max_runs": 1})}
    waits, book = lease("red", "c"), Book(each.seen for each in busy)
    waits = beat(FOUR, one, book, waits, 0.0)
    said = "1 runs of the tenant have workers, share.max_runs is 1"
    assert waits.waits == f"{said}; start not foreseen"
    wait_s = foreseen_s(FOUR, one, book, waits, 0.0, {busy[0].key: 90.0, "gone/p/r": 1.0})
    assert (
        beat(FOUR, one, book, replace(waits, starts_in_s=wait_s), 1.0).waits
        == f"{said}; expected in about 90 s"
    )
    assert foreseen_s(FOUR, one, book, waits, 0.0, {"gone/p/r": 1.0}) is None


def test_the_ledgers_time_never_goes_back_and_a_jump_ends_no_lease() -> None:
    assert ledger_time(100.0, NOON, NOON + timedelta(seconds=5), lease_s=60) == 105.0
    assert ledger_time(100.0, NOON, NOON - timedelta(days=1), lease_s=60) == 100.0
    assert ledger_time(100.0, NOON, NOON + timedelta(days=1), lease_s=60) == 115.0


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 40)), max_size=60), st.booleans()
)
def test_whoever_beats_in_whatever_order_never_more_is_held_than_there_is(
    beats: list[tuple[int, int, int]], keep_book: bool
) -> None:
    """Runs beat, want more or less, take what they are granted or are slow to give back, and fall silent."""
    runs = {n: lease(("red", "blue", "green")[n % 3], f"r{n}") for n in range(5)}
    held: dict[int, Lease] = {}
    book = Book()
    now = 0.0
    for number, wants, later in beats:
        now += later
        mine = held.get(number, replace(runs[number], since_s=now))
        workers = mine.width if wants % 2 else min(mine.workers, mine.width + 1) or mine.width
        held = {n: one for n, one in held.items() if now - one.beat_s <= 60 or n == number}
        beats_now = replace(mine, most=wants, workers=workers, beat_s=now)
        if keep_book:  # kept from beat to beat
            for key in set(book.queue.runs) - {one.key for one in held.values()}:
                book.remove(key)
            held[number] = beat(FOUR, HALVES, book, beats_now, now)
        else:
            held[number] = granted(held.values(), beats_now, now)
        total = Resources()
        for one in held.values():
            total = total.plus(one.holds)
        assert total.within(FOUR.resources)


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
        TerminalError, match="a worker needs 2 GPUs, 1 CPUs on one node; the largest node has 1 GPUs"
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

    monkeypatch.setattr(MetadataStore, "lease_ledger", away)
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
            with store.lease_ledger() as ledger:
                for row in store.lease_rows():
                    if row["run_id"] == name:
                        ledger.put({**row, "beat_s": row["beat_s"] - 61})
        else:
            had = known.holder._book
            known.holder.beat(NOTHING, workers=draw.randrange(3), most=draw.randrange(5))
            kept += had is not None and known.holder._book is had
        if number % 10 == 0:
            seldom.holder.beat(NOTHING, workers=0, most=1)
            with store.lease_ledger() as ledger:
                there = Book(ledger.rows(SEEN))
            book = seldom.holder._book
            assert book is not None and book.queue.runs == there.queue.runs
            assert book.queue.groups == there.queue.groups and book.held_beside("") == there.held_beside("")
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
    assert red.holder._book is None
    assert red.holder.beat(NOTHING, workers=4, most=4).width == 4


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


def test_among_many_a_run_that_waits_asks_less_often_and_still_within_its_lease(two: Settings) -> None:
    hands = Hands()
    red = asked(two, "red", hands=hands)
    assert red.allowed(demand(), boundary=False) == 4 and red.holder.pause_s == 1.0
    first = red.holder._first
    with MetadataStore.open(two).lease_ledger() as ledger:
        for number in range(400):
            waits = replace(first, run_id=f"w{number}", holder=f"w{number}", beat_s=ledger.clock_s)
            ledger.put(lease_holder.lease_row(waits))
    blue = asked(two, "blue", hands=hands)
    assert blue.allowed(demand(), boundary=False) == 0
    assert blue.holder.pause_s == pytest.approx(402 * 0.02, abs=0.05)
    asked_s, beat_s = hands.now_s, blue._beat_s
    hands.now_s = asked_s + 5.0
    blue.allowed(demand(), boundary=False)
    assert blue._beat_s == beat_s
    hands.now_s = asked_s + 9.0
    blue.allowed(demand(), boundary=False)
    assert blue._beat_s == hands.now_s
