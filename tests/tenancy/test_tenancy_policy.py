"""Who gets how many workers: what holds for any cluster, any tenants and any runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.shares import NodeType, Resources
from tasks.tenancy import (
    Allocation,
    Cluster,
    Queue,
    Run,
    Share,
    allocate,
    expected_wait_s,
    never_fits,
    why_waiting,
)

EIGHT = Cluster(Resources(8, 64), turn_s=0)
ONE_GPU = Resources(1, 4)
NAMES = ("red", "green", "blue")


def share(gpus: float = 0, *, of: Cluster = EIGHT, most: float | None = None, **more: float) -> Share:
    part = of.whole.times(gpus / of.whole.gpus)
    limit = of.whole if most is None else of.whole.times(most / of.whole.gpus)
    return Share(part, limit, **more)  # type: ignore[arg-type]


def ask(run_id: str, tenant: str, most: int = 8, **more: object) -> Run:
    return Run(run_id, tenant, ONE_GPU, most, **more)  # type: ignore[arg-type]


def given_to(
    tenants: dict[str, Share], *runs: Run, now_s: float = 0.0, of: Cluster = EIGHT
) -> dict[str, int]:
    return dict(allocate(of, tenants, Queue(runs), now_s).widths)


def test_idle_capacity_is_lent_and_goes_back_when_its_owner_asks() -> None:
    tenants = {"red": share(4), "green": share(4)}
    assert given_to(tenants, ask("a", "red")) == {"a": 8}
    assert given_to(tenants, ask("a", "red", width=8), ask("b", "green")) == {"a": 4, "b": 4}
    assert given_to(tenants, ask("a", "red", width=8), ask("b", "green", most=1)) == {"a": 7, "b": 1}


def test_what_is_lent_follows_weights_and_stops_at_what_a_tenant_may_have() -> None:
    tenants = {"red": share(weight=3.0), "green": share(weight=1.0)}
    assert given_to(tenants, ask("a", "red"), ask("b", "green")) == {"a": 6, "b": 2}
    tenants["red"] = share(weight=3.0, most=4)
    assert given_to(tenants, ask("a", "red"), ask("b", "green")) == {"a": 4, "b": 4}


def test_a_higher_priority_is_lent_to_first_and_its_guarantee_is_not_larger() -> None:
    tenants = {"red": share(2, priority=1), "green": share(4)}
    assert given_to(tenants, ask("a", "red"), ask("b", "green")) == {"a": 4, "b": 4}


def test_runs_of_one_tenant_share_its_part_and_start_by_priority_and_age() -> None:
    tenants = {"red": share(8, max_runs=2)}
    runs = [ask("first", "red", since_s=0), ask("late", "red", since_s=20), ask("next", "red", since_s=10)]
    assert given_to(tenants, *runs) == {"first": 4, "next": 4}
    urgent = ask("urgent", "red", since_s=500, priority=1)
    assert given_to(tenants, *runs, urgent) == {"first": 4, "urgent": 4}
    assert given_to(tenants, *runs, replace(urgent, since_s=700)) == {"first": 4, "next": 4}


def test_a_gang_gets_all_of_its_workers_or_none() -> None:
    tenants = {"red": share(4), "green": share(4)}
    gang = ask("gang", "red", most=4, least=4, reclaimable=False)
    assert given_to(tenants, gang, ask("b", "green")) == {"gang": 4, "b": 4}
    assert given_to(tenants, replace(gang, most=5, least=5), ask("b", "green")) == {"b": 8}, "4 are promised"


def test_a_gang_that_runs_keeps_what_it_has_whoever_asks() -> None:
    tenants = {"red": share(), "green": share(4)}
    gang = ask("gang", "red", most=4, least=4, reclaimable=False, width=4)
    assert given_to(tenants, gang, ask("b", "green"), ask("c", "red", priority=9)) == {"gang": 4, "b": 4}


def test_a_gang_beyond_patience_comes_before_lending_and_before_any_younger_gang() -> None:
    tenants = {"red": share(), "green": share()}
    old = ask("old", "red", most=8, least=8, reclaimable=False, since_s=0)
    running = ask("running", "green", most=4, least=4, reclaimable=False, width=4)
    young = ask("young", "green", most=4, least=4, reclaimable=False, since_s=3000)
    elastic = ask("elastic", "green", since_s=3000)
    assert given_to(tenants, old, running, young, now_s=3500) == {"running": 4, "young": 4}
    waiting = allocate(EIGHT, tenants, Queue([old, running, young, elastic]), 3700)
    assert dict(waiting.widths) == {"running": 4, "elastic": 4}, "only what gives back may have the rest"
    assert waiting.reserved_for == "old"
    assert given_to(tenants, old, young, replace(elastic, width=4), now_s=3700) == {"old": 8}


def test_after_the_loss_of_nodes_every_guarantee_shrinks_alike() -> None:
    tenants = {"red": share(4), "green": share(4)}
    half = Cluster(Resources(4, 32))
    assert given_to(tenants, ask("a", "red"), ask("b", "green"), of=half) == {"a": 2, "b": 2}


def test_a_tenant_that_nobody_has_heard_of_borrows_only() -> None:
    assert given_to({"red": share(6)}, ask("a", "red"), ask("b", "stranger")) == {"a": 6, "b": 2}


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (
            ask("a", "red", least=9, most=9),
            "it needs 9 workers at once with 1 GPU, 4 CPUs each on one node; the nodes have room for 8",
        ),
        (ask("a", "red", least=7, most=7), "the tenant may have 6 GPUs"),
        (ask("a", "red", least=6, most=6, reclaimable=False), "promised to nobody come to 4 GPUs"),
        (
            Run("a", "red", Resources(5, 4), 1),
            "a worker needs 5 GPUs, 4 CPUs on one node; the largest node has 4 GPUs",
        ),
        (Run("a", "red", Resources(3, 4), 3, least=3), "the nodes have room for 2"),
        (ask("a", "red", least=4, most=4, reclaimable=False), None),
    ],
)
def test_what_can_never_be_placed_is_said_with_limit_and_figure(run: Run, says: str | None) -> None:
    cluster = replace(EIGHT, nodes=(NodeType(count=2, gpus=4, cpus=32),))
    found = never_fits(cluster, share(3, most=6), share(7).guarantee, run)
    assert (found is None) if says is None else (found is not None and says in found)


def test_a_run_that_waits_is_told_why_and_when() -> None:
    tenants = {"red": share(4), "green": share(4, max_runs=1)}
    queue = Queue(
        [
            ask("a", "red", width=4, most=4),
            ask("b", "green", width=4, most=4),
            ask("c", "green", since_s=5),
            ask("gang", "red", since_s=5, least=4, most=4, reclaimable=False),
        ]
    )
    found = allocate(EIGHT, tenants, queue, 10)
    why = {name: why_waiting(EIGHT, tenants, queue, found, queue.runs[name], 10) for name in ("c", "gang")}
    assert why["c"] == "1 runs of the tenant have workers, share.max_runs is 1"
    assert "needs 4 GPUs, 16 CPUs; the tenant uses 4 GPUs" in why["gang"]
    assert "in 3595 s it comes before anything is lent" in why["gang"]
    ends = {"a": 70.0, "b": 30.0}
    assert expected_wait_s(EIGHT, tenants, queue, queue.runs["c"], 10, ends) == 30.0
    assert expected_wait_s(EIGHT, tenants, queue, queue.runs["gang"], 10, ends) == 70.0
    assert expected_wait_s(EIGHT, tenants, queue, queue.runs["gang"], 10, {}) is None


amounts = st.sampled_from(
    [Resources(1, 1), Resources(1, 4), Resources(0.5, 2), Resources(0, 1), Resources(2, 8)]
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Cluster, dict[str, Share], list[Run], float]:
    whole = Resources(draw(st.integers(1, 24)), draw(st.integers(8, 96)))
    cluster = Cluster(whole, patience_s=100, turn_s=draw(st.sampled_from([0, 30])))
    left = 1.0
    tenants = {}
    for name in NAMES:
        part = draw(st.floats(0, left))
        left -= part
        guarantee = cluster.whole.times(part)
        more = draw(st.sampled_from([0.0, 0.25, 1.0]))
        most = Resources(*(min(w, g + w * more) for w, g in zip(cluster.whole, guarantee, strict=True)))
        tenants[name] = Share(
            guarantee,
            most,
            draw(st.sampled_from([0.5, 1.0, 3.0])),
            draw(st.integers(0, 1)),
            draw(st.sampled_from([None, None, 1, 3])),
        )
    runs = []
    for number in range(draw(st.integers(0, 14))):
        gang = draw(st.integers(0, 3)) == 0
        least = draw(st.integers(1, 4)) if gang else 1
        runs.append(
            Run(
                f"r{number:02d}",
                draw(st.sampled_from(NAMES)),
                draw(amounts),
                least if gang else draw(st.integers(0, 12)),
                least,
                reclaimable=not gang,
                priority=draw(st.integers(0, 1)),
                since_s=draw(st.floats(0, 200)),
            )
        )
    return cluster, tenants, runs, draw(st.floats(-50, 400))


def total(runs: Sequence[Run], found: Allocation, tenant: str | None = None) -> Resources:
    used = Resources()
    for run in runs:
        if tenant in (None, run.tenant):
            used = used.plus(run.each.times(found.width(run.run_id)))
    return used


def fits(need: Resources, room: Resources) -> bool:
    return all(a <= b + 1e-5 for a, b in zip(need, room, strict=True))


@settings(max_examples=400)
@given(worlds())
def test_any_allocation_stays_within_its_limits_and_is_the_same_in_any_order(
    world: tuple[Cluster, dict[str, Share], list[Run], float],
) -> None:
    cluster, tenants, runs, now = world
    found = allocate(cluster, tenants, Queue(runs), now)
    assert found == allocate(cluster, tenants, Queue(reversed(runs)), now)
    assert fits(total(runs, found), cluster.whole)
    for name, part in tenants.items():
        assert fits(total(runs, found, name), part.most)
        busy = sum(run.tenant == name and found.width(run.run_id) > 0 for run in runs)
        assert part.max_runs is None or busy <= part.max_runs
    for run in runs:
        width = found.width(run.run_id)
        assert width == 0 or run.least <= width <= run.most


@settings(max_examples=400)
@given(worlds())
def test_any_allocation_leaves_nothing_idle_that_a_run_could_use(
    world: tuple[Cluster, dict[str, Share], list[Run], float],
) -> None:
    cluster, tenants, runs, now = world
    found = allocate(cluster, tenants, Queue(runs), now)
    left = Resources(*(a - b for a, b in zip(cluster.whole, total(runs, found), strict=True)))
    for run in runs:
        width, part = found.width(run.run_id), tenants[run.tenant]
        busy = sum(one.tenant == run.tenant and found.width(one.run_id) > 0 for one in runs)
        if width >= run.most or run.most < run.least or not run.reclaimable:
            continue
        if width == 0 and part.max_runs is not None and busy >= part.max_runs:
            continue
        need = run.each.times(run.least if width == 0 else 1)
        tight = Resources(*(amount - 1e-4 if amount else -1.0 for amount in need))
        room = fits(tight.plus(Resources(2e-4, 2e-4, 1)), left) and fits(
            total(runs, found, run.tenant).plus(need).plus(Resources(2e-4, 2e-4, 0)), part.most
        )
        assert not room, f"{run} could have more"


@settings(max_examples=400)
@given(worlds())
def test_a_tenant_that_asks_for_its_guarantee_has_it_whatever_others_do(
    world: tuple[Cluster, dict[str, Share], list[Run], float],
) -> None:
    """Alone with nothing but its guarantee, a tenant would get this; beside others it never gets less."""
    cluster, tenants, runs, now = world
    elastic = [run for run in runs if run.reclaimable]
    found = allocate(cluster, tenants, Queue(elastic), now)
    for name, part in tenants.items():
        own = [run for run in elastic if run.tenant == name]
        alone = {name: replace(part, most=part.guarantee)}
        least = allocate(cluster, alone, Queue(own), now)
        assert fits(
            Resources(total(own, least).dominant(cluster.whole)),
            Resources(total(own, found).dominant(cluster.whole)),
        )


@settings(max_examples=300)
@given(worlds())
def test_nobody_is_lent_a_worker_while_an_equal_with_a_lower_level_could_use_it(
    world: tuple[Cluster, dict[str, Share], list[Run], float],
) -> None:
    """No envy beyond weights: with one worker back, the lender would not give it to somebody who has more already.

    Two workers apart at the most: one that cannot be divided, and a head start of less than one that changes by turns.
    """
    cluster, tenants, runs, now = world
    same = [replace(run, each=Resources(1, 1), most=run.most) for run in runs if run.reclaimable]
    tenants = {
        name: replace(part, priority=0, max_runs=None, most=cluster.whole) for name, part in tenants.items()
    }
    found = allocate(replace(cluster, patience_s=1e9), tenants, Queue(same), now)
    level = {
        name: total(same, found, name).dominant(cluster.whole) / part.weight for name, part in tenants.items()
    }
    for name, part in tenants.items():
        if not any(found.width(run.run_id) < run.most for run in same if run.tenant == name):
            continue
        for other, theirs in tenants.items():
            borrowed = not fits(total(same, found, other), theirs.guarantee)
            before = level[other] - Resources(1, 1).dominant(cluster.whole) / theirs.weight
            head = Resources(1, 1).dominant(cluster.whole) / part.weight
            assert not borrowed or level[name] + head >= before - 1e-5, (name, other, level, part)


def test_what_cannot_be_divided_goes_to_each_in_turn() -> None:
    tenants = {name: share() for name in NAMES}
    queue = Queue(ask(name, name) for name in NAMES)
    taken = dict.fromkeys(NAMES, 0)
    turns = 300
    for turn in range(turns):
        for name, width in allocate(replace(EIGHT, turn_s=10), tenants, queue, 10.0 * turn).widths.items():
            taken[name] += width
    assert all(abs(taken[name] / turns - 8 / 3) < 0.1 for name in NAMES), taken


def test_in_the_long_run_every_share_is_the_one_that_it_is_entitled_to() -> None:
    """Sixty tenants of one to three workers each, which cannot be divided, over four days of turns."""
    cluster = Cluster(Resources(130, 1040))
    tenants = {f"team {n}": share(of=cluster, weight=1 + n % 3) for n in range(60)}
    queue = Queue(ask(name, name, most=130) for name in tenants)
    taken = dict.fromkeys(tenants, 0)
    turns = 384
    for turn in range(turns):
        for name, width in allocate(cluster, tenants, queue, turn * cluster.turn_s).widths.items():
            taken[name] += width
    level = 130 / sum(one.weight for one in tenants.values())
    errors = {name: taken[name] / turns / (level * one.weight) - 1 for name, one in tenants.items()}
    assert max(map(abs, errors.values())) < 0.015, errors


@settings(max_examples=200)
@given(worlds(), st.integers(1, 8))
def test_a_larger_guarantee_never_gives_a_tenant_less(
    world: tuple[Cluster, dict[str, Share], list[Run], float], more: int
) -> None:
    cluster, tenants, runs, now = world
    elastic = [replace(run, each=Resources(1, 1)) for run in runs if run.reclaimable]
    promised = sum(part.guarantee.dominant(cluster.whole) for part in tenants.values())
    part = tenants["red"]
    bigger = cluster.whole.times(min(more / 16, max(0.0, 1 - promised)) * 0.999)
    larger = part.guarantee.plus(bigger)
    grown = replace(part, guarantee=larger, most=Resources(*map(max, part.most, larger)))
    before = total(elastic, allocate(cluster, tenants, Queue(elastic), now), "red")
    after = total(elastic, allocate(cluster, {**tenants, "red": grown}, Queue(elastic), now), "red")
    assert fits(before, after)


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(0, 2), st.booleans())
def test_no_run_waits_for_ever_whoever_comes_after_it(random: Random, handicap: int, gang: bool) -> None:
    """An adversary sends five times what the cluster can do, of higher priorities, for ever.

    The bound: those that came before the victim's patience was over and its rank the lowest, each alone on the
    cluster, and the longest gang after that.
    """
    cluster = replace(EIGHT, ageing_s=50, patience_s=100)
    tenants = {"red": share(priority=0), "green": share(priority=5)}
    size = 4 if gang else 1
    victim = ask("victim", "red", most=size, least=size, reclaimable=not gang)
    queue = Queue([victim], ageing_s=cluster.ageing_s)
    ends: dict[str, float] = {}
    alone_until = handicap * cluster.ageing_s + cluster.patience_s
    bound = alone_until + 100 * (alone_until / 20 + 2)
    now = 0.0
    while now <= bound:
        for name in [name for name, at in ends.items() if at <= now]:
            queue.remove(name)
            del ends[name]
        count, other_gang = random.randint(1, 8), random.random() < 0.5
        queue.put(
            ask(
                f"at {now}",
                random.choice(["red", "green"]),
                most=count,
                least=count if other_gang else 1,
                reclaimable=not other_gang,
                priority=handicap,
                since_s=now,
            )
        )
        found = allocate(cluster, tenants, queue, now)
        if found.width("victim"):
            return
        for run_id, run in list(queue.runs.items()):
            queue.put(replace(run, width=found.width(run_id)))
            if found.width(run_id):
                ends.setdefault(run_id, now + 100)
        now += 20
    raise AssertionError("the victim never started")


@settings(max_examples=100)
@given(worlds(), st.data())
def test_a_queue_that_changed_often_is_the_queue_of_what_is_left(
    world: tuple[Cluster, dict[str, Share], list[Run], float], data: st.DataObject
) -> None:
    cluster, tenants, runs, now = world
    queue, kept = Queue(), {}
    for run in runs:
        queue.put(run)
        kept[run.run_id] = run
        if data.draw(st.booleans()):
            changed = replace(run, width=data.draw(st.sampled_from([0, run.least])))
            queue.put(changed)
            kept[run.run_id] = changed
        if kept and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(kept)))
            queue.remove(gone)
            del kept[gone]
    queue.remove("never there")
    assert allocate(cluster, tenants, queue, now) == allocate(cluster, tenants, Queue(kept.values()), now)
