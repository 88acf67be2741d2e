"""How many replicas the load asks for, and what replicas say together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tasks.serving.replicas import FORGOTTEN_AFTER_S, Board, merged
from tasks.serving.scaling import by_load, replicas_wanted


@pytest.mark.parametrize(
    ("waiting", "busy", "wanted"),
    [
        ([0.0], [0.1], 1),
        ([0.0], [0.69], 1),
        ([0.0], [0.9], 2),  # busier than it should be
        ([0.5], [1.0], 2),  # a queue: at most twice as many at once
        ([0.5, 0.5], [1.0, 1.0], 4),
        ([0.11, 0.11], [0.5, 0.5], 3),  # a short queue: one more
        ([0.0, 0.0], [0.3, 0.3], 1),
        ([0.0, 0.0], [0.4, 0.4], 2),
        ([0.0] * 8, [0.05] * 8, 1),
    ],
)
def test_what_waits_asks_for_more_and_idleness_for_fewer(
    waiting: list[float], busy: list[float], wanted: int
) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"waiting_s": dict(enumerate(waiting)), "busy_share": dict(enumerate(busy))},
        target_num_replicas=len(busy),
    )
    assert by_load(context) == (wanted, {})


def test_replicas_that_said_nothing_yet_change_nothing() -> None:
    for told in (None, {}, {"waiting_s": {}}):
        assert by_load(SimpleNamespace(aggregated_metrics=told, target_num_replicas=3)) == (3, {})


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 1)), min_size=1, max_size=20),
    st.floats(0, 60),
)
def test_more_load_never_asks_for_fewer(loads: list[tuple[float, float]], more: float) -> None:
    waiting = {number: one for number, (one, _) in enumerate(loads)}
    busy = {number: one for number, (_, one) in enumerate(loads)}
    found = replicas_wanted(waiting, busy)
    assert 0 <= found <= 2 * len(loads) + 1
    assert replicas_wanted({name: value + more for name, value in waiting.items()}, busy) >= found


def said(rows: int) -> bytes:
    registry = CollectorRegistry()
    Counter("rows", "Rows.", ["model_version"], registry=registry).labels("1").inc(rows)
    Histogram("wait_seconds", "Wait.", registry=registry, buckets=(0.1, 1.0)).observe(rows / 10)
    return generate_latest(registry)


def test_samples_of_all_replicas_come_in_one_text_each_with_its_replica() -> None:
    text = merged({"b": said(4), "a": said(3)}).decode()
    assert text.count("# TYPE rows_total counter") == 1
    samples = {
        (sample.name, sample.labels["replica"], sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert (samples["rows_total", "a", None], samples["rows_total", "b", None]) == (3, 4)
    assert samples["wait_seconds_bucket", "b", "+Inf"] == 1
    assert samples["wait_seconds_sum", "a", None] == 0.3


def test_the_board_forgets_who_left_and_who_is_silent() -> None:
    now = [0.0]
    board = Board(clock=lambda: now[0])
    board.put("a", b"1")
    board.put("b", b"2")
    assert board.all() == {"a": b"1", "b": b"2"}
    board.remove("a")
    board.remove("a")
    assert board.all() == {"b": b"2"}
    now[0] = FORGOTTEN_AFTER_S + 1
    board.put("c", b"3")
    assert board.all() == {"c": b"3"}
