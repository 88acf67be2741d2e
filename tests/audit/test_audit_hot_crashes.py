"""Nothing acknowledged is lost and nothing is there twice, wherever the process that writes and folds dies."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from children import Script, assert_killed
from hot_support import EACH, columns_of, everywhere, online_row, warm_rows

from tasks.audit.hot import HotLog, fold, hot_rows, hot_status
from tasks.core import PipelineSpec, Settings
from tasks.core.crash_points import POINTS

HERE = Path(__file__).parent
HOT_POINTS = [point for point in POINTS if any(part in point for part in ("append", "segment", "fold"))]
THREADS = 6
IN_HANDS = THREADS * EACH
"""Rows that may be on their way at once, at most."""


def start(settings: Settings, told: Path, point: str, nth: int, first: int) -> Script:
    path = os.pathsep.join(str(path) for path in (HERE, HERE.parent / "inference", HERE.parents[1]))
    env = {**os.environ, **settings.as_environment(), "PYTHONPATH": path}
    return Script(HERE / "hot_child.py", point, str(nth), str(THREADS), str(first), str(told), env=env)


def acknowledged(told: Path) -> list[int]:
    return [int(line) for line in told.read_text().splitlines()] if told.exists() else []


def recover_and_check(settings: Settings, toy: PipelineSpec, told: Path) -> None:
    """As the next start would: the reader sees all at once, then retries add nothing, then all is folded."""
    rows = hot_rows(settings, toy, "", "~").to_pylist() + warm_rows(settings, toy)
    seen = {(row["prediction_id"], row["run_id"], row["source_key"]) for row in rows}
    wanted = {online_row(number).request_id for number in acknowledged(told)}
    assert wanted <= {request_id for *_, request_id in seen}
    assert len({(identifier, request_id) for identifier, _, request_id in seen}) == len(seen)
    last = max(acknowledged(told))
    with HotLog(settings, toy, node="child") as log:
        again = [online_row(number) for number in acknowledged(told)[-IN_HANDS:]]
        assert log.append(again).added == 0
        in_hands = [online_row(number) for number in range(last - IN_HANDS, last + IN_HANDS)]
        log.append([columns_of(in_hands)])  # clients retry what was not answered
        assert log.append(in_hands).repeated == len(in_hands)
        log.fold(seal=True)
    found = Counter((row["prediction_id"], row["source_key"]) for row in warm_rows(settings, toy))
    assert set(found.values()) == {1}
    assert {online_row(number).request_id for number in acknowledged(told)} <= {name for _, name in found}
    assert {(row.prediction_id, row.request_id) for row in in_hands} <= set(found)
    assert hot_status(settings, toy).segments == ()


@pytest.mark.parametrize("point", HOT_POINTS)
def test_a_process_that_dies_at_any_point_loses_and_doubles_no_acknowledged_row(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, point: str
) -> None:
    told = tmp_path / "told"
    child = start(settings, told, point, 90 if "append" in point else 2, 1)
    assert_killed(child)
    assert len(acknowledged(told)) >= 40
    recover_and_check(settings, toy, told)


def test_processes_killed_at_random_moments_one_after_the_other_lose_and_double_nothing(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    dice = random.Random(4)
    for _ in range(4):
        before = acknowledged(told)
        child = start(settings, told, "-", 0, max(before, default=0) + IN_HANDS + 1)
        while len(acknowledged(told)) < len(before) + 30 and child.poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.ended()
    assert len(acknowledged(told)) >= 120
    fold(settings, toy, seal=True)
    found = everywhere(settings, toy)
    wanted = {(row.prediction_id, row.request_id) for row in map(online_row, acknowledged(told))}
    assert wanted <= set(found)
    assert set(found.values()) == {1}
    assert len(found) - len(wanted) <= 4 * IN_HANDS
