"""What a server expects a batch to take, by what the last ones took."""

from __future__ import annotations

import pytest

from tasks.serving.pace import LEAST_ROWS, Pace


def test_lone_rows_say_what_a_small_batch_takes_and_nothing_of_a_large_one() -> None:
    pace = Pace()
    before = pace.batch_s(1_000)
    for _ in range(100):
        pace.add(1, 0.04, 0.0)
    assert pace.batch_s(1) == pytest.approx(0.04) == pace.batch_s(LEAST_ROWS - 1)
    assert pace.batch_s(1_000) == before < 0.6


def test_large_batches_say_what_a_row_takes_the_newest_most() -> None:
    pace = Pace()
    pace.add(100, 0.1, 0.0)
    assert pace.batch_s(1_000) == pytest.approx(1.0)
    assert pace.batch_s(1) == pytest.approx(LEAST_ROWS * 0.001), "as small ones are not known"
    for _ in range(50):
        pace.add(100, 0.01, 0.0)
    assert pace.batch_s(1_000) == pytest.approx(0.1, rel=0.1)
    assert pace.batch_s(0) == pace.batch_s(-3) == 0.0


def test_what_an_idle_server_knows_grows_old_so_that_nobody_is_refused_for_ever() -> None:
    pace = Pace()
    pace.add(300, 3.0, now := 100.0)
    pace.add(1, 0.5, now)
    for rows in (1, 300):
        known = pace.batch_s(rows)
        assert pace.batch_s(rows, now) == known
        assert pace.batch_s(rows, now + 5) == pytest.approx(known / 2)
        assert pace.batch_s(rows, now + 50) < known / 1_000
        assert pace.batch_s(rows) == known, "at work it holds"


def test_a_batch_is_as_large_as_fits_its_time_and_careful_at_first() -> None:
    pace = Pace()
    assert pace.rows_within(0.02) == pytest.approx(1_000, abs=1)
    pace.add(1, 0.002, 0.0)
    assert pace.rows_within(0.02) == pytest.approx(320, abs=1)
    pace.add(1, 1.0, 0.0)
    assert pace.rows_within(0.02) == LEAST_ROWS
    pace.add(512, 0.0512, 0.0)
    assert pace.rows_within(0.02) == pytest.approx(200, abs=1)
