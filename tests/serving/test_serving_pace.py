"""What a server expects a batch to take, by what the last ones took."""

from __future__ import annotations

import pytest

from tasks.serving.pace import LEAST_ROWS, Pace


def paced(*batches: tuple[int, float], times: int = 2, now: float = 0.0) -> Pace:
    """After batches of (rows, seconds), each so many times."""
    pace = Pace()
    for rows, spent_s in batches:
        for _ in range(times):
            pace.add(rows, spent_s, now)
    return pace


def test_lone_rows_say_what_a_small_batch_takes_and_nothing_of_a_large_one() -> None:
    pace = paced((1, 0.04), times=100)
    assert pace.batch_s(1) == pytest.approx(0.04) == pace.batch_s(LEAST_ROWS - 1)
    assert pace.batch_s(1_000) == pytest.approx(0.04)
    assert pace.batch_s(0) == pace.batch_s(-3) == 0.0


def test_of_a_size_that_was_seen_the_newest_batches_say_most() -> None:
    pace = paced((100, 0.1))
    assert pace.batch_s(100) == pytest.approx(0.1)
    for _ in range(50):
        pace.add(100, 0.01, 0.0)
    assert pace.batch_s(100) == pytest.approx(0.01, rel=0.1)


def test_where_a_large_batch_takes_no_longer_than_a_small_one_nobody_is_refused_for_its_rows() -> None:
    pace = paced(
        (LEAST_ROWS, 0.027), times=500
    )  # a block of 4,096 rows on a GPU, however few of them are asked for
    assert pace.batch_s(1_000) == pytest.approx(0.027)
    pace.add(1_000, 0.028, 0.0)
    pace.add(1_000, 0.028, 0.0)
    assert pace.batch_s(1_000) == pytest.approx(0.028)
    assert pace.batch_s(500) == pytest.approx(0.027)


def test_where_rows_cost_by_row_large_and_small_batches_are_told_apart() -> None:
    pace = paced((LEAST_ROWS, 0.022), (1_000, 0.7))
    assert pace.batch_s(LEAST_ROWS) == pytest.approx(0.0224, rel=0.05)
    assert pace.batch_s(1_000) == pytest.approx(0.7)
    assert pace.batch_s(500) == pytest.approx(0.35)
    assert pace.batch_s(1) == pytest.approx(0.0224, rel=0.05), "as small ones are not known"


def test_one_slow_moment_is_not_taken_for_a_pace() -> None:
    pace = Pace()
    pace.add(300, 5.0, 0.0)  # a kernel was compiled
    assert pace.batch_s(300) < 0.01
    for _ in range(20):
        pace.add(300, 0.03, 0.0)
    assert pace.batch_s(300) == pytest.approx(0.03, rel=0.01) or pace.batch_s(300) <= 0.06
    pace.add(300, 5.0, 0.0)  # the process was stopped
    assert pace.batch_s(300) <= 0.06
    pace.add(300, 5.0, 0.0)
    assert pace.batch_s(300) > 0.6, "twice is a pace"


def test_what_an_idle_server_knows_grows_old_so_that_nobody_is_refused_for_ever() -> None:
    now = 100.0
    pace = paced((1, 0.5), (300, 3.0), now=now)
    for rows in (1, 300):
        known = pace.batch_s(rows)
        assert pace.batch_s(rows, now) == known
        assert pace.batch_s(rows, now + 5) == pytest.approx(known / 2)
        assert pace.batch_s(rows, now + 50) < known / 100
        assert pace.batch_s(rows) == known, "at work it holds"


def test_what_it_knows_of_a_size_grows_old_while_it_scores_others() -> None:
    pace = paced((1_000, 2.0), now=100.0)
    for second in range(20):
        pace.add(1, 0.005, 100.0 + second)
        pace.add(1, 0.005, 100.0 + second)
    assert pace.batch_s(1_000) < 0.6
    assert pace.batch_s(1) == pytest.approx(0.005)


def behind_s(pace: Pace, rows: int, *, waiting: list[int], most_rows: int = 64) -> float:
    return pace.behind_s(rows, waiting_rows=sum(waiting), waiting_requests=len(waiting), most_rows=most_rows)


def test_what_waits_goes_as_fast_as_the_last_batches_went() -> None:
    assert 0.0 < behind_s(Pace(), 32, waiting=[32] * 300) < 1.0, "a guess, before any"
    pace = paced((64, 0.016), times=50)
    assert behind_s(pace, 0, waiting=[64] * 100) == pytest.approx(1.6)
    assert behind_s(pace, 64, waiting=[64] * 100) == pytest.approx(1.616)
    assert behind_s(pace, 0, waiting=[]) == 0.0


def test_a_request_that_is_scored_with_those_that_wait_is_waited_for_once() -> None:
    pace = paced((64, 0.1), (500, 0.1))
    assert behind_s(pace, 100, waiting=[200, 200], most_rows=512) == pytest.approx(0.1)
    assert behind_s(pace, 200, waiting=[200, 200], most_rows=512) == pytest.approx(0.2)


def test_behind_one_request_of_many_rows_a_lone_row_waits_for_one_batch() -> None:
    pace = paced((1, 0.027), (1_000, 0.028))
    for _ in range(200):
        pace.add(1, 0.027, 0.0)
    assert behind_s(pace, 1, waiting=[1_000]) == pytest.approx(0.055)
    assert behind_s(pace, 1, waiting=[1_000, *[1] * 15]) < 0.5


def test_a_batch_is_as_large_as_fits_its_time_and_doubles_into_what_is_not_known() -> None:
    assert Pace().rows_within(0.02) == pytest.approx(1_000, abs=1)
    assert paced((1, 0.002)).rows_within(0.02) == 2 * LEAST_ROWS
    assert paced((64, 0.016)).rows_within(0.02) == 128
    assert paced((64, 0.016), (128, 0.032)).rows_within(0.02) == pytest.approx(80, abs=1)
    assert paced((1, 1.0), (40, 1.3)).rows_within(0.02) == 80, "little more than the least batch"
    assert paced((1, 1.0), (64, 2.0)).rows_within(0.02) == 40


@pytest.mark.parametrize("batch_s", [0.005, 0.027, 0.175])
@pytest.mark.parametrize("first", [1, LEAST_ROWS, 512])
def test_where_rows_cost_nothing_batches_grow_to_all_that_wait_and_stay_so(
    batch_s: float, first: int
) -> None:
    pace, rows, now = paced((first, batch_s)), 0, 0.0
    for _ in range(60):
        rows, now = min(512, pace.rows_within(0.02)), now + batch_s
        pace.add(rows, batch_s, now)
    assert rows == 512
    for _ in range(1_000):
        pace.add(rows := min(512, pace.rows_within(0.02)), batch_s, now := now + batch_s)
        assert rows == 512


def test_where_rows_cost_by_row_a_batch_takes_its_time_whatever_was_tried() -> None:
    pace, now, taken = Pace(), 0.0, []
    for _ in range(500):
        rows = min(512, pace.rows_within(0.02))
        spent_s = rows * 0.00025
        pace.add(rows, spent_s, now := now + spent_s)
        taken.append(spent_s)
    assert sorted(taken[20:])[len(taken) // 2] == pytest.approx(0.02, rel=0.2)
    assert max(taken[20:]) < 0.05
