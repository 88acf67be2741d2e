"""The torture finds nothing in the protocol as it is, and finds every bug that is planted in it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import children
import pytest
from torture_bugs import work_with

from tasks.core import Settings, open_store
from tasks.core.errors import ConfigError, PenstockError
from tasks.inference.torture import TortureReport, torture
from tasks.inference.torture.faults import (
    AT_POINT,
    AT_RANDOM,
    BUSY,
    CRASH_POINTS,
    DISK_FAULTS,
    LATE,
    LOST_ANSWERS,
    PAUSED,
    REFUSED,
    RESET_READ,
    RESET_WRITE,
    S3_FAULTS,
    SILENT,
    TWO,
    StoreFault,
    Undisturbed,
    choose,
    faults,
)
from tasks.inference.torture.s3_faults import s3_faults
from tasks.inference.torture.store_uses import Uses


@pytest.fixture(scope="module", autouse=True)
def _forked_as_others_are() -> None:
    """The server that forks the drivers is the one that forks other tests' processes, with all that those need."""
    children.serve()


def with_bug(settings: Settings, bug: str, *faults: str, kills: int = 1) -> TortureReport:
    report = torture(settings, kills=kills, work=partial(work_with, bug), only=lambda fault: fault in faults)
    assert not report.ok
    assert report.failures
    return report


def test_every_kind_of_fault_finds_nothing_and_leaves_nothing_behind(settings: Settings) -> None:
    report = torture(settings, kills=12, seed=5)
    assert report.failures == ()
    assert report.ok and report.kept is None and report.kills >= 12
    found = {line.fault for line in report.faults}
    assert {AT_RANDOM, TWO, f"{AT_POINT} before-data-file", f"{PAUSED} at before-data-file"} <= found
    assert found & set(DISK_FAULTS)
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


def test_a_disk_that_fails_in_any_way_loses_nothing(settings: Settings) -> None:
    every = len(DISK_FAULTS) + 1  # one of them may meet two drivers
    report = torture(settings, kills=every, seed=2, only=lambda name: name in DISK_FAULTS)
    assert report.failures == ()
    assert report.ok and {line.fault for line in report.faults if line.times} == set(DISK_FAULTS)


def test_files_that_are_deleted_because_an_answer_was_lost_are_found(settings: Settings) -> None:
    (line,) = with_bug(settings, "deleted-on-a-doubt", LOST_ANSWERS[2]).faults
    assert line.fault == "lost answer, shard record"
    assert line.lost > 0 and line.problems > 0


def test_a_driver_whose_disk_fails_while_a_table_is_made_asks_to_be_repeated(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalake import DeltaTable

    from tasks.core.errors import error_kind
    from tasks.inference.torture.workload import drive, torture_pipeline

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DeltaTable, "create", full)
    with pytest.raises(PenstockError) as failed:
        drive(settings, torture_pipeline())
    assert error_kind(failed.value) != "terminal"


def test_a_listing_that_the_disk_interrupts_is_an_error_of_the_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(settings)
    store.put("folder/file", b"1")
    look = Path.stat

    def broken(path: Path, **more: bool) -> os.stat_result:
        if path.name == "file":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return look(path, **more)

    monkeypatch.setattr(Path, "stat", broken)
    with pytest.raises(PenstockError):
        list(store.list("folder"))


def test_all_crash_points_and_faults_of_the_store_have_their_turn() -> None:
    names = set(islice(faults(S3_FAULTS), 160))
    assert {f"{AT_POINT} {point}" for point in CRASH_POINTS} <= names
    assert {f"{PAUSED} at {point}" for point in CRASH_POINTS} <= names
    assert set(S3_FAULTS) <= names
    assert len(CRASH_POINTS) == 10
    assert set(DISK_FAULTS) <= set(islice(faults(DISK_FAULTS), 160))


def test_a_seed_decides_every_choice() -> None:
    known = Undisturbed(
        2.0, {"after-record": 6}, {"create shard record": 6, "create data file": 14, "read plan": 9}
    )
    names = list(islice(faults(DISK_FAULTS), 60))
    chosen = [choose(3, number, name, known) for number, name in enumerate(names)]
    assert chosen == [choose(3, number, name, known) for number, name in enumerate(names)]
    assert chosen != [choose(4, number, name, known) for number, name in enumerate(names)]
    lost = [found.strike for found in chosen if found.fault == "lost answer, shard record"]
    assert lost and all(isinstance(one, StoreFault) and 1 <= one.nth <= 6 for one in lost)


def test_another_store_than_local_or_s3_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        torture(settings, kills=1, store="/somewhere")


@pytest.mark.s3
def test_a_fresh_prefix_on_s3_is_tortured_and_emptied_again(settings: Settings, s3_url: str) -> None:
    import s3_endpoint

    remote = replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=s3_url)
    wanted = {f"{AT_POINT} after-data-file", "lost answer, shard record"}
    report = torture(remote, kills=2, store=remote.store_url, only=lambda fault: fault in wanted)
    assert report.failures == ()
    assert report.ok and report.kills >= 2
    assert {line.fault for line in report.faults} == wanted
    assert list(open_store(remote).list()) == []


@pytest.mark.s3
def test_an_s3_endpoint_fails_as_told_and_only_then(settings: Settings, s3_url: str) -> None:
    """With botocore's own repeats off, so that each fault is seen."""
    import boto3
    import s3_endpoint
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(retries={"total_max_attempts": 1}, read_timeout=2, s3={"addressing_style": "path"})
    bucket, folder = s3_endpoint.fresh_store_url().removeprefix("s3://").split("/")
    key = f"{folder}/runs/r/shard-00000.json"
    real = boto3.client("s3", endpoint_url=s3_url, config=once)
    real.put_object(Bucket=bucket, Key=key, Body=b"before " * 1000)

    def there() -> bytes:
        return real.get_object(Bucket=bucket, Key=key)["Body"].read()

    def through(kind: str, call: str, *, done: bool = True, body: bytes = b"") -> Uses:
        uses = Uses(StoreFault(kind, None, nth=2, for_s=0, done=done))
        with s3_faults(s3_url, f"s3://{bucket}/{folder}", uses) as url:
            client = boto3.client("s3", endpoint_url=url, config=once)

            def ask() -> None:
                more = {"Body": body} if call == "put_object" else {}
                answer = getattr(client, call)(Bucket=bucket, Key=key, **more)
                if call == "get_object":
                    answer["Body"].read()

            ask()
            real.put_object(Bucket=bucket, Key=key, Body=b"before " * 1000)
            with pytest.raises((BotoCoreError, ClientError)):
                ask()
            assert uses.struck == 1
            client.head_object(Bucket=bucket, Key=key)
            client.close()
        return uses

    for done in (True, False):
        through(LOST_ANSWERS[2], "put_object", done=done, body=b"after")
        assert there() == b"after", "the write is done, whatever its caller was told"
    for kind in (RESET_WRITE, REFUSED, BUSY):
        through(kind, "put_object", body=b"after")
        assert there() == b"before " * 1000, kind
    through(LATE, "put_object", body=b"late")
    assert there() == b"late", "it is done by the time that the proxy is gone"
    uses = through(RESET_READ, "get_object")
    assert uses.seen["read shard record"] == 2
    for done, content in ((True, b"silent"), (False, b"before " * 1000)):
        through(SILENT, "put_object", done=done, body=b"silent")
        assert there() == content
