"""A store that fails: each fault has its class, is waited for a known time, and never passes for another answer."""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3_endpoint
from fault_proxy import Fault, FaultProxy
from small_disk import SmallDisk, small_disk  # noqa: F401

from tasks.core import ObjectStore, Settings, open_store
from tasks.core.delta import table_view
from tasks.core.errors import (
    AccessDenied,
    CommitOutcomeUnknown,
    DiskFull,
    NotFound,
    PenstockError,
    StoreUnavailable,
    TerminalError,
)
from tasks.core.object_store import AlreadyExists, LocalStore, S3Store, probe
from tasks.core.s3_faults import Patience, patiently

QUICK = Patience(connect_s=2, answer_s=0.5, sends=3, first_pause_s=0.02, give_up_s=10)
Call = Callable[[ObjectStore], Any]
READS: dict[str, Call] = {
    "HeadObject": lambda store: store.exists("there"),
    "GetObject": lambda store: store.get("there"),
    "ListObjects": lambda store: list(store.list()),
}
WRITES: dict[str, Call] = {
    "PutObject": lambda store: store.put("new", b"1"),
    "DeleteObject": lambda store: store.delete("there"),
}
CALLS = READS | WRITES


@pytest.fixture
def store(proxy: FaultProxy) -> S3Store:
    """A store behind the proxy, with the object `there`."""
    store = S3Store(s3_endpoint.fresh_store_url(), endpoint=proxy.url, region="us-east-1", patience=QUICK)
    store.put("there", b"some bytes")
    proxy.forget()
    return store


@pytest.mark.s3
@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (403, "AccessDenied", AccessDenied),
        (400, "InvalidRequest", TerminalError),
        (500, "InternalError", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (503, "ServiceUnavailable", StoreUnavailable),
    ],
)
def test_an_answer_that_refuses_has_its_class_and_names_the_object(
    proxy: FaultProxy, store: S3Store, operation: str, status: int, code: str, wanted: type[PenstockError]
) -> None:
    proxy.add(Fault(operation, "", "answer", status=status, code=code))
    with pytest.raises(PenstockError) as caught:
        CALLS[operation](store)
    assert type(caught.value) is wanted
    assert store.root in caught.value.which
    assert caught.value.fix
    sends = QUICK.sends if wanted is StoreUnavailable else 1
    assert proxy.met("answer") in (sends, 2 * sends)  # botocore asks a HEAD with 400 for the region first


@pytest.mark.s3
def test_a_missing_object_and_a_missing_bucket_are_not_found(proxy: FaultProxy, store: S3Store) -> None:
    proxy.add(Fault("*", "", "answer", status=404, code="NoSuchKey"))
    assert not store.exists("there")
    for call in (READS["GetObject"], WRITES["PutObject"]):
        with pytest.raises(NotFound, match=store.root):
            call(store)
    assert len(proxy.seen) == 3, "what is not there is not asked for again"


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["reset", "hang", "lose-answer"])
@pytest.mark.parametrize("operation", CALLS)
def test_a_request_without_answer_is_sent_a_known_number_of_times(
    proxy: FaultProxy, store: S3Store, operation: str, kind: Any
) -> None:
    proxy.add(Fault(operation, "", kind))
    with pytest.raises(StoreUnavailable, match=re.escape(store.root)):
        CALLS[operation](store)
    # aiohttp sends once more by itself when a connection that it had kept open is reset.
    assert QUICK.sends <= proxy.met(kind) <= 2 * QUICK.sends


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["answer", "reset", "hang", "lose-answer"])
@pytest.mark.parametrize("operation", CALLS)
def test_a_fault_that_passes_is_waited_for(
    proxy: FaultProxy, store: S3Store, operation: str, kind: Any
) -> None:
    proxy.add(Fault(operation, "", kind, times=QUICK.sends - 1))
    CALLS[operation](store)
    assert proxy.met(kind) == QUICK.sends - 1
    if operation == "PutObject":
        assert store.get("new") == b"1"


@pytest.mark.s3
def test_half_an_answer_is_never_taken_for_a_whole(proxy: FaultProxy, store: S3Store, tmp_path: Path) -> None:
    def opened() -> bytes:
        with store.open("there") as file:
            return file.read()

    def copied() -> bytes:
        store.get_file("there", tmp_path / "copy")
        return (tmp_path / "copy").read_bytes()

    for read in (lambda: store.get("there"), opened, copied):
        proxy.add(Fault("GetObject", "", "cut-answer", times=1))
        assert read() == b"some bytes"
        (tmp_path / "copy").unlink(missing_ok=True)
        proxy.add(Fault("GetObject", "", "cut-answer"))
        with pytest.raises(StoreUnavailable, match=re.escape(store.root)):
            read()
        proxy.clear()
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.s3
def test_a_reader_that_is_open_survives_a_fault_and_keeps_its_place(
    proxy: FaultProxy, store: S3Store
) -> None:
    with store.open("there") as file:
        proxy.add(Fault("GetObject", "", "reset", times=2))
        file.seek(5)
        assert file.read() == b"bytes"
        assert file.tell() == 10
    assert proxy.met("reset") == 2


@pytest.mark.s3
def test_an_invalid_request_is_not_taken_for_an_object_that_exists(proxy: FaultProxy, store: S3Store) -> None:
    proxy.add(Fault("PutObject", "", "answer", status=400, code="InvalidRequest"))
    with pytest.raises(TerminalError, match="refuses the request") as caught:
        store.put_exclusive("new", b"1")
    assert not isinstance(caught.value, AlreadyExists)
    proxy.clear()
    assert not store.exists("new")


@pytest.mark.s3
@pytest.mark.parametrize("how", ["bytes", "file"])
@pytest.mark.parametrize("times", [1, 2, 100])
def test_a_create_whose_answer_was_lost_finds_its_own_object(
    proxy: FaultProxy, store: S3Store, tmp_path: Path, how: str, times: int
) -> None:
    (tmp_path / "file").write_bytes(b"ours")
    proxy.add(Fault("PutObject", "new", "lose-answer", times=times))
    if how == "bytes":
        store.put_exclusive("new", b"ours")
    else:
        store.put_file_exclusive("new", tmp_path / "file")
    assert min(times, QUICK.sends) <= proxy.met("lose-answer") <= times
    proxy.clear()
    assert store.get("new") == b"ours"
    with pytest.raises(AlreadyExists):  # equal bytes of another call are not ours
        store.put_exclusive("new", b"ours")


@pytest.mark.s3
def test_a_create_whose_answer_was_lost_after_somebody_elses_is_refused(
    proxy: FaultProxy, store: S3Store
) -> None:
    store.put_exclusive("new", b"theirs")
    proxy.add(Fault("PutObject", "new", "lose-answer", times=1))
    with pytest.raises(AlreadyExists):
        store.put_exclusive("new", b"ours")
    assert store.get("new") == b"theirs"


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["hang", "reset"])
def test_a_create_that_is_never_answered_is_of_unknown_outcome(
    proxy: FaultProxy, store: S3Store, kind: Any
) -> None:
    proxy.add(Fault("PutObject", "new", kind))
    with pytest.raises(CommitOutcomeUnknown, match="new"):
        store.put_exclusive("new", b"ours")
    proxy.clear()
    assert not store.exists("new")


@pytest.mark.s3
def test_a_create_that_finds_an_object_and_cannot_ask_whose_it_is_is_of_unknown_outcome(
    proxy: FaultProxy, store: S3Store
) -> None:
    proxy.add(Fault("PutObject", "new", "lose-answer", times=1), Fault("HeadObject", "new", "answer"))
    with pytest.raises(CommitOutcomeUnknown, match="new"):
        store.put_exclusive("new", b"ours")


@pytest.mark.s3
def test_a_create_that_the_store_refused_each_time_surely_had_no_effect(
    proxy: FaultProxy, store: S3Store
) -> None:
    proxy.add(Fault("PutObject", "new", "answer"))
    with pytest.raises(StoreUnavailable):
        store.put_exclusive("new", b"ours")
    proxy.clear()
    assert not store.exists("new")


@pytest.mark.s3
def test_a_create_that_meets_another_one_under_way_waits(proxy: FaultProxy, store: S3Store) -> None:
    conflict = "ConditionalRequestConflict"
    proxy.add(Fault("PutObject", "new", "answer", status=409, code=conflict, times=2))
    store.put_exclusive("new", b"ours")
    assert proxy.met("answer") == 2


@pytest.mark.s3
def test_a_machine_whose_clock_is_off_is_told_so(proxy: FaultProxy, store: S3Store) -> None:
    proxy.add(Fault("*", "", "answer", status=403, code="RequestTimeTooSkewed"))
    with pytest.raises(TerminalError, match="clock is wrong") as caught:
        store.get("there")
    assert "NTP" in caught.value.fix


@pytest.mark.s3
def test_the_probe_says_what_the_store_refused(proxy: FaultProxy, store: S3Store) -> None:
    for operation in ("PutObject", "DeleteObject"):
        proxy.add(Fault(operation, "", "answer", status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied, match="twice"):
        probe(store)


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["answer", "hang", "reset"])
def test_delta_waits_for_the_store_as_long_as_we_do(proxy: FaultProxy, store: S3Store, kind: Any) -> None:
    proxy.add(Fault("*", "_delta_log", kind, status=500, code="InternalError"))
    with pytest.raises(StoreUnavailable, match="tables/x"):
        table_view(store, "tables/x")
    assert proxy.met(kind) == QUICK.sends


@pytest.mark.s3
def test_an_upload_may_take_longer_than_the_wait_for_an_answer(proxy: FaultProxy, store: S3Store) -> None:
    # What the kernel's buffers hold counts as sent: so a body that is much larger.
    data = b"0123456789abcdef" * (2 << 20)
    store = S3Store(
        store.root, endpoint=proxy.url, region="us-east-1", patience=dataclasses.replace(QUICK, answer_s=5.0)
    )
    proxy.add(Fault("PutObject", "slow", "trickle", delay_s=7.0))
    store.put("slow", data)
    assert (proxy.met("trickle"), store.get("slow") == data) == (1, True)


def test_waiting_ends_after_its_time_however_many_sends_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr("tasks.core.s3_faults.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tasks.core.s3_faults.time.sleep", lambda seconds: None)

    def fail() -> None:
        calls.append(now[0])
        now[0] += 30.0
        raise OSError(errno.EBUSY, "slow down")

    with pytest.raises(StoreUnavailable):
        patiently("s3://bucket/key", fail, patience=Patience(sends=1000, give_up_s=60.0))
    assert calls == [0.0, 30.0]


def test_a_mistake_of_the_program_is_not_taken_for_a_fault_of_the_store() -> None:
    with pytest.raises(ZeroDivisionError):
        patiently("s3://bucket/key", lambda: 1 / 0, patience=QUICK)


def test_equal_bytes_of_another_create_are_refused(store_settings: Settings) -> None:
    store = open_store(store_settings)
    store.put_exclusive("once", b"equal")
    with pytest.raises(AlreadyExists):
        store.put_exclusive("once", b"equal")


def test_a_full_disk_is_typed_leaves_nothing_half_written_and_keeps_what_was_there(
    small_disk: SmallDisk,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = LocalStore(small_disk.path / "store")
    store.put("there", b"before")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 100_000)
    small_disk.fill(leave_kib=8)
    for write in (
        lambda: store.put("there", big.read_bytes()),
        lambda: store.put_exclusive("new", big.read_bytes()),
        lambda: store.put_file("there", big),
        lambda: store.put_file_exclusive("new", big),
    ):
        with pytest.raises(DiskFull, match="the disk is full") as caught:
            write()
        assert "free space" in caught.value.fix
    assert store.get("there") == b"before"
    assert [path.name for path in store.root.iterdir()] == ["there"]
    small_disk.make_space()
    store.put_exclusive("new", big.read_bytes())


@pytest.mark.s3
def test_a_full_disk_that_a_copy_goes_to_is_not_blamed_on_the_store(
    proxy: FaultProxy,
    store: S3Store,
    small_disk: SmallDisk,  # noqa: F811
) -> None:
    store.put("big", b"x" * 1_000_000)
    small_disk.fill(leave_kib=100)
    for source in (store, LocalStore(small_disk.path.parent / "local")):
        source.put("big", b"x" * 1_000_000)
        proxy.forget()
        with pytest.raises(DiskFull, match=re.escape(str(small_disk.path))):
            source.get_file("big", small_disk.path / "copy")
        assert [path.name for path in small_disk.path.iterdir()] == ["ballast"]
    assert proxy.count("GetObject") == 0


def test_a_read_only_store_can_be_read_and_says_who_may_not_write(
    small_disk: SmallDisk,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = LocalStore(small_disk.path / "store")
    store.put("there", b"before")
    source = tmp_path / "source"
    source.write_bytes(b"")
    small_disk.read_only(True)
    for write in (
        lambda: store.put("there", b""),
        lambda: store.put_exclusive("new", b""),
        lambda: store.put_file_exclusive("new", source),
        lambda: store.delete("there"),
        lambda: probe(store),
    ):
        with pytest.raises(AccessDenied, match="cannot be read or written") as caught:
            write()
        assert str(store.root) in caught.value.which
        assert "write access" in caught.value.fix
    assert (store.get("there"), store.exists("there"), len(list(store.list()))) == (b"before", True, 1)


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    store = LocalStore(tmp_path)
    store.put("runs/a", b"")
    real = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("runs"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AccessDenied, match="runs"):
        list(store.list())


def test_a_disk_that_fails_after_the_link_leaves_the_outcome_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tasks.core.object_store._sync_folder", fail)
    with pytest.raises(CommitOutcomeUnknown, match="after the object was created"):
        store.put_exclusive("new", b"1")


def test_the_new_errors_cross_a_process_boundary_in_their_class() -> None:
    from tasks.core.errors import error_from_record

    for error in (DiskFull("a", which="b", fix="c"), AccessDenied("a", which="b", fix="c")):
        back = error_from_record(error.as_record())
        assert (type(back), back.args) == (type(error), error.args)
