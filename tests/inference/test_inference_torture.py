"""The torture finds nothing in the protocol as it is, and finds every bug that is planted in it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.core import Settings, open_store
from tasks.core.errors import ConfigError
from tasks.inference.torture import AT_POINT, AT_RANDOM, CRASH_POINTS, PAUSED, TWO, TortureReport, torture

BUGS = Path(__file__).parent / "torture_bugs.py"


def with_bug(settings: Settings, bug: str, *faults: str, kills: int = 1) -> TortureReport:
    report = torture(
        settings, kills=kills, driver=(sys.executable, str(BUGS), bug), only=lambda fault: fault in faults
    )
    assert not report.ok
    assert report.failures
    return report


def test_every_kind_of_fault_finds_nothing_and_leaves_nothing_behind(settings: Settings) -> None:
    report = torture(settings, kills=12, seed=5)
    assert report.failures == ()
    assert report.ok and report.kept is None and report.kills >= 12
    found = {line.fault for line in report.faults}
    assert {AT_RANDOM, TWO, f"{AT_POINT} before-data-file", f"{PAUSED} at before-data-file"} <= found
    assert sum(line.orphans_swept for line in report.faults) > 0, "killed drivers leave files"
    assert all(line.looks >= line.times for line in report.faults)
    assert not (settings.home / "torture").exists()
    assert not (settings.home / "store").exists(), "nothing of this installation is touched"


def test_rows_that_are_published_twice_are_found(settings: Settings) -> None:
    (line,) = with_bug(settings, "twice", f"{AT_POINT} after-delta-commit").faults
    assert line.doubled > 0 and line.lost == 0


def test_rows_that_are_forgotten_are_found(settings: Settings) -> None:
    (line,) = with_bug(settings, "without-the-last", f"{AT_POINT} after-delta-commit").faults
    assert line.lost > 0 and line.doubled == 0
    assert line.partial_seen > 0


def test_a_publication_in_two_transactions_is_seen_in_part(settings: Settings) -> None:
    (line,) = with_bug(settings, "in-halves", f"{AT_POINT} after-delta-commit", kills=4).faults
    assert line.partial_seen > 0
    assert line.lost == line.doubled == 0, "the resume heals it, so only a look in between can find it"


def test_a_record_that_a_woken_driver_overwrites_is_found_and_its_store_is_kept(settings: Settings) -> None:
    report = with_bug(settings, "not-exclusive", f"{PAUSED} at before-record")
    assert report.faults[0].problems > 0
    assert report.kept is not None
    (kept,) = Path(report.kept).iterdir()
    assert kept.name.startswith("round-") and (kept / "store").is_dir() and (kept / "drivers.log").is_file()


def test_all_crash_points_of_scoring_and_publishing_are_struck() -> None:
    from itertools import islice

    from tasks.inference.torture import _faults

    faults = set(islice(_faults(bool), 120))
    assert {f"{AT_POINT} {point}" for point in CRASH_POINTS} <= faults
    assert {f"{PAUSED} at {point}" for point in CRASH_POINTS} <= faults
    assert len(CRASH_POINTS) == 10


def test_another_store_than_local_or_s3_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        torture(settings, kills=1, store="/somewhere")


@pytest.mark.s3
def test_a_fresh_prefix_on_s3_is_tortured_and_emptied_again(settings: Settings, s3_url: str) -> None:
    import s3_endpoint

    remote = replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=s3_url)
    report = torture(remote, kills=4, store=remote.store_url)
    assert report.failures == ()
    assert report.ok and report.kills >= 4
    assert list(open_store(remote).list()) == []
