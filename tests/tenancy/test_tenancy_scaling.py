"""How many workers a run should ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tenancy import Load, ScalingPolicy, Target, target_workers

POLICY = ScalingPolicy(least=1, most=10)
LOAD = Load(pending_shards=100, workers=4, shards_per_worker_s=0.1)


def test_idle_capacity_is_released_at_once() -> None:
    assert target_workers(POLICY, Load(0, 8, 0.1, since_change_s=0)) == Target(0, "nothing is pending")


def test_a_deadline_asks_for_what_meets_it_and_a_lost_one_for_the_most() -> None:
    assert target_workers(POLICY, replace(LOAD, deadline_in_s=300)).workers == 4
    assert target_workers(POLICY, replace(LOAD, deadline_in_s=3000)).workers == 1
    lost = target_workers(POLICY, replace(LOAD, deadline_in_s=30))
    assert lost == Target(10, "the deadline in 30 s cannot be met with the most")
    assert target_workers(POLICY, replace(LOAD, deadline_in_s=-5)) == Target(10, "the deadline is over")


def test_before_a_rate_is_known_and_without_a_deadline_shards_decide() -> None:
    assert target_workers(POLICY, Load(6, 0, None, deadline_in_s=60)).workers == 3
    assert target_workers(POLICY, Load(1, 0, None)).workers == 1


def test_fewer_workers_only_after_the_cool_down_and_more_at_any_time() -> None:
    relaxed = replace(LOAD, deadline_in_s=3000, workers=8, since_change_s=10)
    assert target_workers(POLICY, relaxed).workers == 8
    assert target_workers(POLICY, replace(relaxed, since_change_s=120)).workers == 1
    assert target_workers(POLICY, replace(relaxed, deadline_in_s=30)).workers == 10


def test_a_budget_caps_what_runs_at_a_time() -> None:
    poor = replace(LOAD, budget_left=0.03, worker_hour=3.6)
    assert target_workers(POLICY, poor) == Target(3, "the budget left, 0.03, pays for 3")
    assert target_workers(POLICY, replace(poor, budget_left=0.0)).workers == 0


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="no bounds"):
        target_workers(ScalingPolicy(3, 2), LOAD)


loads = st.builds(
    Load,
    pending_shards=st.integers(0, 500),
    workers=st.integers(0, 40),
    shards_per_worker_s=st.none() | st.floats(0.0, 5),
    deadline_in_s=st.none() | st.floats(-100, 1e5),
    budget_left=st.none() | st.floats(0, 10),
    worker_hour=st.floats(0, 5),
    since_change_s=st.floats(0, 1000),
)


@given(loads, st.integers(0, 10), st.integers(0, 30))
def test_any_target_is_within_its_bounds_and_more_work_never_asks_for_less(
    load: Load, least: int, more: int
) -> None:
    policy = ScalingPolicy(least, least + more)
    found = target_workers(policy, load)
    assert 0 <= found.workers <= min(policy.most, load.pending_shards) and found.reason
    grown = replace(load, pending_shards=load.pending_shards + 7)
    assert target_workers(policy, grown).workers >= found.workers
