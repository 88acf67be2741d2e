"""The bounded queue against a model, in recorded histories of many threads, and under load."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from fresh_imports import imported_by
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queue_support import Call, Recorder, UnlockedQueue, in_threads, linearizable, switching_at_every_line

from tasks.serving import BoundedQueue


class QueueAgainstAModel(RuleBasedStateMachine):
    """Every call of one thread answers as a plain deque with a limit would."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: BoundedQueue[Any] | None = None

    @precondition(lambda self: self.queue is None)
    @rule(max_size=st.integers(1, 6))
    def create(self, max_size: int) -> None:
        self.queue = BoundedQueue(max_size)
        self.max_size, self.items, self.high, self.closed = max_size, deque[Any](), 0, False

    @precondition(lambda self: self.queue is not None)
    @rule(item=st.integers() | st.text(max_size=2) | st.just(0) | st.just(False))
    def enqueue(self, item: Any) -> None:
        room = len(self.items) < self.max_size and not self.closed
        assert self.queue.enqueue(item) is room
        if room:
            self.items.append(item)
            self.high = max(self.high, len(self.items))

    @precondition(lambda self: self.queue is not None)
    @rule(timeout_s=st.sampled_from([0.0, -1.0, 1e-6]))
    def dequeue(self, timeout_s: float) -> None:
        expected = self.items.popleft() if self.items else None
        found = self.queue.dequeue(timeout_s=timeout_s)
        assert found is expected or found == expected

    @precondition(lambda self: self.queue is not None)
    @rule(
        max_items=st.integers(1, 9),
        max_wait_s=st.sampled_from([0.0, 1e-6]),
        idle_wait_s=st.sampled_from([0.0, 1e-6]),
    )
    def dequeue_batch(self, max_items: int, max_wait_s: float, idle_wait_s: float) -> None:
        expected = [self.items.popleft() for _ in range(min(max_items, len(self.items)))]
        assert self.queue.dequeue_batch(max_items, max_wait_s, idle_wait_s=idle_wait_s) == expected

    @precondition(lambda self: self.queue is not None)
    @rule()
    def drain(self) -> None:
        assert self.queue.drain() == list(self.items)
        self.items.clear()

    @precondition(lambda self: self.queue is not None and len(self.items) > 2)
    @rule()
    def close(self) -> None:
        self.queue.close()
        self.closed = True

    @invariant()
    def figures_agree(self) -> None:
        if self.queue is not None:
            assert len(self.queue) == len(self.items)
            assert self.queue.high_water_mark == self.high
            assert self.queue.closed is self.closed
            assert self.queue.max_size == self.max_size


TestQueueAgainstAModel = QueueAgainstAModel.TestCase
TestQueueAgainstAModel.settings = hypothesis_settings(max_examples=150, stateful_step_count=40)


def test_none_is_refused_and_false_values_are_items() -> None:
    queue: BoundedQueue[Any] = BoundedQueue(3)
    with pytest.raises(TypeError, match="None"):
        queue.enqueue(None)
    assert [queue.enqueue(item) for item in (0, "", False)] == [True] * 3
    assert [queue.dequeue() for _ in range(4)] == [0, "", False, None]


@pytest.mark.parametrize("max_size", [0, -3])
def test_a_queue_without_room_for_an_item_is_refused(max_size: int) -> None:
    with pytest.raises(ValueError, match=str(max_size)):
        BoundedQueue(max_size)
    with pytest.raises(ValueError, match=str(max_size)):
        BoundedQueue(1).dequeue_batch(max_size)


def test_it_imports_nothing_but_the_standard_library() -> None:
    code = "from tasks.serving import BoundedQueue; BoundedQueue(1)"
    assert imported_by(code, "torch", "pyarrow", "numpy", "pydantic", "fastapi") == []


def test_of_threads_that_fill_it_at_once_exactly_as_many_succeed_as_there_is_room() -> None:
    queue: BoundedQueue[int] = BoundedQueue(7)
    accepted: list[bool] = []

    def fill() -> None:
        accepted.extend(queue.enqueue(n) for n in range(10))

    with switching_at_every_line("bounded_queue.py"):
        in_threads([fill] * 6)
    assert (sum(accepted), len(queue), queue.high_water_mark) == (7, 7, 7)


def test_the_same_contest_breaks_a_queue_without_a_lock() -> None:
    for _ in range(50):
        queue = UnlockedQueue(7)
        with switching_at_every_line("queue_support.py"):
            in_threads([lambda queue=queue: [queue.enqueue(n) for n in range(10)] and None] * 6)
        if len(queue.items) > 7:
            return
    pytest.fail("the contest does not find the fault it is there for")


@pytest.mark.parametrize("seed", range(60))
def test_histories_of_many_threads_are_linearizable(seed: int) -> None:
    queue: BoundedQueue[int] = BoundedQueue(1 + seed % 3)
    rng = random.Random(seed)
    recorders = [Recorder(queue) for _ in range(4)]

    def play(recorder: Recorder, kinds: list[str], first: int) -> None:
        for number, kind in enumerate(kinds, first):
            if kind == "enqueue":
                recorder.enqueue(number)
            elif kind == "dequeue":
                recorder.dequeue()
            else:
                recorder.batch(2)

    plans = [rng.choices(["enqueue", "dequeue", "batch"], [5, 3, 2], k=6) for _ in recorders]
    with switching_at_every_line("bounded_queue.py"):
        in_threads(
            [
                partial(play, recorder, plan, 100 * index)
                for index, (recorder, plan) in enumerate(zip(recorders, plans, strict=True))
            ]
        )
    history = [call for recorder in recorders for call in recorder.calls]
    assert len(history) == 24
    assert linearizable(history, queue.max_size), history


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([Call("enqueue", 1, True, 0, 1), Call("enqueue", 2, True, 2, 3)], False),  # beyond the limit of one
        ([Call("enqueue", 1, True, 0, 1), Call("dequeue", None, None, 2, 3)], False),  # it was not empty
        ([Call("enqueue", 1, True, 0, 3), Call("dequeue", None, None, 1, 2)], True),  # they overlap
        ([Call("enqueue", 1, False, 0, 1)], False),  # there was room
        (
            [Call("enqueue", 1, True, 0, 1), Call("dequeue", None, 1, 2, 3), Call("dequeue", None, 1, 4, 5)],
            False,
        ),
        ([Call("dequeue", None, 1, 0, 1), Call("enqueue", 1, True, 2, 3)], False),  # before it came
        (
            [Call("enqueue", 1, True, 0, 1), Call("batch", 2, (1,), 2, 3), Call("enqueue", 2, True, 4, 5)],
            True,
        ),
    ],
)
def test_the_checker_tells_possible_histories_from_impossible_ones(
    history: list[Call], verdict: bool
) -> None:
    assert linearizable(history, 1) is verdict


def test_the_checker_finds_items_that_overtake() -> None:
    calls = [Call("enqueue", 1, True, 0, 1), Call("enqueue", 2, True, 2, 3), Call("dequeue", None, 2, 4, 5)]
    assert not linearizable(calls, 2)


def test_a_soak_of_producers_and_every_kind_of_consumer_loses_and_doubles_nothing() -> None:
    queue: BoundedQueue[tuple[int, int]] = BoundedQueue(16)
    producers, each = 4, 15_000
    taken: list[list[tuple[int, int]]] = []

    def produce(name: int) -> None:
        for number in range(each):
            while not queue.enqueue((name, number)):
                time.sleep(0)

    def consume(take: Any) -> None:
        mine: list[tuple[int, int]] = []
        taken.append(mine)
        while True:
            found = take()
            if found:
                mine.extend(found)
            elif queue.closed:
                return

    def one() -> list[tuple[int, int]]:
        item = queue.dequeue(timeout_s=math.inf)
        return [item] if item is not None else []

    def several() -> list[tuple[int, int]]:
        return queue.dequeue_batch(5, 0.0005, idle_wait_s=math.inf)

    finished = threading.Barrier(producers)

    def produce_and_close(name: int) -> None:
        produce(name)
        if finished.wait() == 0:
            queue.close()

    consumers = [one, one, several, several, lambda: queue.dequeue_batch(3, idle_wait_s=math.inf)]
    in_threads(
        [partial(produce_and_close, name) for name in range(producers)]
        + [partial(consume, take) for take in consumers]
    )
    everything = [item for mine in taken for item in mine]
    assert sorted(everything) == [(name, number) for name in range(producers) for number in range(each)]
    assert queue.high_water_mark <= 16
    for mine in taken:  # of one producer, a consumer sees a later item after an earlier one
        for name in range(producers):
            numbers = [number for who, number in mine if who == name]
            assert all(before < after for before, after in pairwise(numbers))


def test_every_item_wakes_one_of_the_waiting_whatever_they_wait_for() -> None:
    """Consumers of one item never sleep beside an item that a batch consumer left lying."""
    for _ in range(100):
        queue: BoundedQueue[int] = BoundedQueue(8)
        got: list[int] = []

        def one(queue: BoundedQueue[int] = queue, got: list[int] = got) -> None:
            item = queue.dequeue(timeout_s=30)
            assert item is not None
            got.append(item)

        def batch(queue: BoundedQueue[int] = queue, got: list[int] = got) -> None:
            got.extend(queue.dequeue_batch(8, 30, idle_wait_s=30))

        def produce(queue: BoundedQueue[int] = queue, got: list[int] = got) -> None:
            for n in range(3):
                queue.enqueue(n)
            while len(got) < 3:  # the three that want one item have them; the batch consumer waits on
                time.sleep(0)
            queue.close()

        in_threads([batch, one, one, one, produce])
        assert sorted(got) == [0, 1, 2]


def test_several_batch_consumers_get_every_item_once_and_in_order() -> None:
    queue: BoundedQueue[int] = BoundedQueue(64)
    batches: list[list[int]] = []

    def consume() -> None:
        while batch := queue.dequeue_batch(8, idle_wait_s=math.inf) or not queue.closed:
            if isinstance(batch, list):
                batches.append(batch)

    def produce() -> None:
        for n in range(20_000):
            while not queue.enqueue(n):
                time.sleep(0)
        queue.close()

    in_threads([consume, consume, consume, produce])
    assert all(len(batch) <= 8 and batch == list(range(batch[0], batch[0] + len(batch))) for batch in batches)
    assert sorted(item for batch in batches for item in batch) == list(range(20_000))


def test_a_batch_ends_when_it_is_full_and_not_when_its_time_is_over() -> None:
    queue: BoundedQueue[int] = BoundedQueue(8)
    found: list[list[int]] = []

    def produce() -> None:
        for n in range(3):
            queue.enqueue(n)

    in_threads([lambda: found.append(queue.dequeue_batch(3, max_wait_s=1e9)), produce])
    assert found == [[0, 1, 2]]


def test_a_batch_ends_when_there_is_enough_and_takes_more_if_more_is_there() -> None:
    queue: BoundedQueue[int] = BoundedQueue(8)
    found: list[list[int]] = []
    in_threads(
        [
            lambda: found.append(queue.dequeue_batch(8, max_wait_s=1e9, enough=2)),
            lambda: [queue.enqueue(n) for n in range(2)] and None,
        ]
    )
    assert found == [[0, 1]]
    for n in range(5):
        queue.enqueue(n)
    assert queue.dequeue_batch(4, max_wait_s=1e9, enough=2) == [0, 1, 2, 3]


def test_a_batch_larger_than_the_queue_ends_when_the_queue_is_full() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    found: list[list[int]] = []
    in_threads(
        [
            lambda: found.append(queue.dequeue_batch(100, max_wait_s=1e9, idle_wait_s=math.inf)),
            lambda: [queue.enqueue(n) for n in range(2)] and None,
        ]
    )
    assert found == [[0, 1]]


def test_waiting_ends_with_nothing_when_the_time_is_over() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    assert queue.dequeue(timeout_s=0.01) is None
    assert queue.dequeue_batch(2, max_wait_s=0.01, idle_wait_s=0.01) == []


def test_closing_wakes_everybody_refuses_items_and_keeps_what_is_inside() -> None:
    queue: BoundedQueue[str] = BoundedQueue(4)
    ends: list[Any] = []
    waiters = [
        lambda: ends.append(queue.dequeue(timeout_s=math.inf)),
        lambda: ends.append(queue.dequeue_batch(4, 1e9, idle_wait_s=math.inf) or None),
        lambda: ends.append(queue.dequeue_batch(4, 1e9) or None),
    ]

    def close() -> None:
        while queue._waiting < len(waiters):
            time.sleep(0)
        queue.close()

    in_threads([*waiters, close])
    assert ends == [None, None, None]

    full: BoundedQueue[str] = BoundedQueue(4)
    for item in "abc":
        full.enqueue(item)
    full.close()
    full.close()
    assert full.enqueue("d") is False
    assert full.dequeue(timeout_s=math.inf) == "a"
    assert full.drain() == ["b", "c"]
    assert full.dequeue(timeout_s=math.inf) is None
    assert full.dequeue_batch(2, 1e9, idle_wait_s=math.inf) == []
