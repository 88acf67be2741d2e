"""Who scores what: every shard is settled exactly once, whatever workers do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tasks.inference.dispatch import Assignment, Dispatch, wanted_workers


def test_shards_are_handed_out_in_order_and_the_next_is_named_while_there_is_enough() -> None:
    dispatch = Dispatch(range(4), attempts=3, slow_factor=0)
    assert dispatch.assign("a", 0.0) == Assignment(0, then=1)
    assert dispatch.assign("b", 0.0) == Assignment(2, then=None), (
        "the last shard is for whoever is free first"
    )
    assert dispatch.settle("b", 1.0) == 2
    assert dispatch.assign("b", 1.0) == Assignment(3, then=None)
    assert dispatch.settle("a", 2.0) == 0
    assert dispatch.assign("a", 2.0) == Assignment(1, then=None)
    assert (dispatch.settle("a", 3.0), dispatch.settle("b", 3.0)) == (1, 3)
    assert dispatch.unsettled == 0


def test_a_shard_that_a_busy_worker_reads_ahead_goes_to_an_idle_one() -> None:
    dispatch = Dispatch(range(2), attempts=3, slow_factor=0)
    assert dispatch.assign("a", 0.0) == Assignment(0, then=1)
    assert dispatch.assign("b", 0.0) == Assignment(1, then=None)
    assert dispatch.settle("a", 1.0) == 0
    assert dispatch.assign("a", 1.0) is None


def test_a_slow_shard_is_scored_twice_and_settled_by_the_first_answer() -> None:
    dispatch = Dispatch(range(5), attempts=3, slow_factor=3.0)
    dispatch.assign("slow", 0.0)
    for turn in range(4):
        assert dispatch.assign("fast", 5.0 * turn) is not None
        dispatch.settle("fast", 5.0 * turn + 5.0)
    assert dispatch.assign("fast", 14.9) is None, "three medians are not over"
    assert dispatch.assign("fast", 20.0) == Assignment(0, then=None, duplicate=True)
    assert dispatch.assign("third", 20.0) is None, "two copies are enough"
    assert dispatch.settle("fast", 25.0) == 0
    assert dispatch.settle("slow", 26.0) is None
    assert dispatch.unsettled == 0


def test_nothing_is_slow_before_there_is_something_to_compare_with_or_when_it_is_switched_off() -> None:
    for factor, finished in ((3.0, 2), (0.0, 4)):
        dispatch = Dispatch(range(finished + 1), attempts=3, slow_factor=factor)
        dispatch.assign("slow", 0.0)
        for _ in range(finished):
            dispatch.assign("fast", 0.0)
            dispatch.settle("fast", 1.0)
        assert dispatch.assign("fast", 1e6) is None


def test_a_shard_that_costs_too_many_workers_fails_and_others_go_on() -> None:
    dispatch = Dispatch([7, 8], attempts=2, slow_factor=0)
    assert dispatch.assign("a", 0.0) == Assignment(7, then=8)
    assert dispatch.lose("a") is None
    assert dispatch.assign("b", 1.0) == Assignment(7, then=8), "what it cost is tried again first"
    assert dispatch.lose("b", counts=False) is None, "a node that was taken away is no fault of the shard"
    assert dispatch.assign("c", 2.0) == Assignment(7, then=8)
    assert dispatch.lose("c") == 7
    assert dispatch.assign("d", 3.0) == Assignment(8, then=None)
    assert dispatch.settle("d", 4.0) == 8
    assert dispatch.lose("never seen") is None


def test_a_shard_whose_other_copy_is_at_work_does_not_fail_with_one_of_them() -> None:
    dispatch = Dispatch(range(4), attempts=1, slow_factor=2.0)
    dispatch.assign("slow", 0.0)
    for _ in range(3):
        dispatch.assign("fast", 0.0)
        dispatch.settle("fast", 1.0)
    assert dispatch.assign("fast", 100.0) == Assignment(0, then=None, duplicate=True)
    assert dispatch.lose("slow") is None
    assert dispatch.settle("fast", 101.0) == 0


@given(st.integers(0, 500), st.integers(1, 20), st.integers(0, 20))
def test_a_run_wants_between_the_least_and_the_most_and_never_more_than_it_has_shards(
    unsettled: int, least: int, more: int
) -> None:
    wanted = wanted_workers(unsettled, least=least, most=least + more)
    assert wanted <= unsettled
    assert wanted == unsettled or least <= wanted <= least + more


class AnyWorkers(RuleBasedStateMachine):
    """Workers come, answer, die and are slow in any order."""

    @initialize(shards=st.integers(1, 12), attempts=st.integers(1, 3), factor=st.sampled_from([0.0, 2.0]))
    def start(self, shards: int, attempts: int, factor: float) -> None:
        self.dispatch = Dispatch(range(shards), attempts=attempts, slow_factor=factor)
        self.shards, self.attempts = shards, attempts
        self.now = 0.0
        self.busy: dict[str, Assignment] = {}
        self.settled: list[int] = []
        self.deaths: dict[int, int] = {}

    @rule(name=st.sampled_from("abcde"), wait=st.floats(0, 30))
    def assign(self, name: str, wait: float) -> None:
        self.now += wait
        if name in self.busy:
            return
        given_now = self.dispatch.assign(name, self.now)
        if given_now is None:
            assert not self.dispatch.unsettled or self.busy, "an idle worker, shards left, and nobody at work"
            return
        assert given_now.shard not in self.settled
        self.busy[name] = given_now
        copies = [item.shard for item in self.busy.values()].count(given_now.shard)
        assert copies == 1 + given_now.duplicate

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.busy)))
        shard = self.busy.pop(name).shard
        first = self.dispatch.settle(name, self.now)
        assert (first is None) == (shard in self.settled)
        if first is not None:
            self.settled.append(first)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), counts=st.booleans())
    def die(self, data: st.DataObject, counts: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.busy)))
        shard = self.busy.pop(name).shard
        failed = self.dispatch.lose(name, counts=counts)
        if failed is not None:
            assert failed == shard
            self.settled.append(failed)

    @invariant()
    def every_shard_is_settled_once(self) -> None:
        if hasattr(self, "settled"):
            assert len(self.settled) == len(set(self.settled))
            assert self.dispatch.unsettled == self.shards - len(self.settled)

    def teardown(self) -> None:
        """Whatever happened: workers that live finish the run."""
        if not hasattr(self, "dispatch"):
            return
        for name in list(self.busy):
            self.dispatch.lose(name, counts=False)
        while self.dispatch.unsettled:
            given_now = self.dispatch.assign("last", self.now)
            assert given_now is not None
            first = self.dispatch.settle("last", self.now)
            assert first is not None
            self.settled.append(first)
        assert sorted(self.settled) == list(range(self.shards))


TestAnyWorkers = AnyWorkers.TestCase
TestAnyWorkers.settings = settings(max_examples=200, stateful_step_count=40)
