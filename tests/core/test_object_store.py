"""One contract for every object store: these tests run over a local folder and over S3."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.core import ObjectStore, Settings, open_store
from tasks.core.errors import ConfigError, NotFound, StoreUnavailable, TerminalError
from tasks.core.object_store import AlreadyExists, LocalStore, probe, store_now


@pytest.fixture
def store(store_settings: Settings) -> ObjectStore:
    return open_store(store_settings, prefix="default/toy")


def race(racers: int, action: object) -> list[BaseException | None]:
    """Let `racers` threads call `action(i)` at the same moment; what each raised."""
    barrier = threading.Barrier(racers)

    def one(index: int) -> BaseException | None:
        barrier.wait()
        try:
            action(index)  # type: ignore[operator]
        except AlreadyExists as error:
            return error
        return None

    with ThreadPoolExecutor(racers) as pool:
        return list(pool.map(one, range(racers)))


def test_what_was_put_is_what_is_read(store: ObjectStore) -> None:
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two")
    assert store.get("a/b.bin") == b"two"
    assert store.exists("a/b.bin")
    with store.open("a/b.bin") as file:
        file.seek(1)
        assert file.read() == b"wo"


def test_a_range_is_read_at_its_place_and_ends_where_the_object_ends(store: ObjectStore) -> None:
    store.put("a/b.bin", b"0123456789")
    with store.open_range("a/b.bin", 2, 6) as file:
        file.seek(3)
        assert file.read(2) == b"34"
        assert file.tell() == 5
    with store.open_range("a/b.bin", 8, 50) as file:
        file.seek(8)
        assert file.read() == b"89"
    with store.open_range("a/b.bin", 20, 50) as file:
        file.seek(20)
        assert file.read() == b""
    with pytest.raises(NotFound):
        store.open_range("a/none", 0, 5)


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put_exclusive("empty", b"")
    assert store.exists("empty")
    assert store.get("empty") == b""
    with pytest.raises(AlreadyExists):
        store.put_exclusive("empty", b"more")


def test_an_exclusive_create_never_replaces(store: ObjectStore, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"second")
    store.put_exclusive("once", b"first")
    with pytest.raises(AlreadyExists):
        store.put_exclusive("once", b"second")
    with pytest.raises(AlreadyExists):
        store.put_file_exclusive("once", other)
    assert store.get("once") == b"first"


def test_of_racing_creates_one_wins_and_its_bytes_stay(store: ObjectStore) -> None:
    for turn in range(5):
        key = f"race/{turn}"
        lost = race(8, lambda i, key=key: store.put_exclusive(key, f"writer {i}".encode()))
        winners = [index for index, error in enumerate(lost) if error is None]
        assert len(winners) == 1
        assert store.get(key) == f"writer {winners[0]}".encode()


def test_of_racing_file_creates_one_wins(store: ObjectStore, tmp_path: Path) -> None:
    paths = [tmp_path / str(index) for index in range(4)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 100_000)
    lost = race(4, lambda i: store.put_file_exclusive("file-race", paths[i]))
    winners = [index for index, error in enumerate(lost) if error is None]
    assert len(winners) == 1
    assert store.get("file-race") == paths[winners[0]].read_bytes()


def test_a_reader_never_sees_half_an_object(store: ObjectStore) -> None:
    old, new = b"o" * 300_000, b"n" * 300_000
    store.put("whole", old)
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(store.get("whole"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        store.put("whole", new)
        store.put("whole", old)
    done.set()
    reader.join()
    assert seen
    assert set(seen) <= {old, new}


def test_the_probe_accepts_this_store_and_leaves_nothing(store: ObjectStore) -> None:
    probe(store)
    assert list(store.list()) == []


def test_the_probe_refuses_a_store_that_overwrites(tmp_path: Path) -> None:
    class Overwriting(LocalStore):
        def put_exclusive(self, key: str, data: bytes) -> None:
            self.put(key, data)

    with pytest.raises(ConfigError, match="does not honour exclusive create"):
        probe(Overwriting(tmp_path))


def test_a_listing_is_in_key_order_with_sizes_and_times(store: ObjectStore) -> None:
    for key in ("b/2", "a/10", "a/1", "a-b/1", "b/1/x"):
        store.put(key, key.encode())
    found = list(store.list())
    assert [info.key for info in found] == sorted(["b/2", "a/10", "a/1", "a-b/1", "b/1/x"])
    assert [info.size_bytes for info in found] == [len(info.key) for info in found]
    assert all(abs(datetime.now(UTC) - info.modified_at_utc) < timedelta(hours=1) for info in found)


def test_a_listing_of_a_folder_holds_that_folder_only(store: ObjectStore) -> None:
    for key in ("a/1", "ab/1", "a/sub/2", "c"):
        store.put(key, b"x")
    assert [info.key for info in store.list("a")] == ["a/1", "a/sub/2"]
    assert [info.key for info in store.list("a/")] == ["a/1", "a/sub/2"]
    assert list(store.list("nothing-here")) == []


def test_a_listing_sees_what_was_just_written_and_deleted(store: ObjectStore) -> None:
    assert list(store.list("new")) == []
    store.put("new/1", b"")
    assert [info.key for info in store.list("new")] == ["new/1"]
    store.delete("new/1")
    assert list(store.list("new")) == []


@pytest.mark.parametrize("key", ["/etc/passwd", "../up", "a/../../up", "a\\b", "nul\0"])
def test_a_key_that_leaves_the_store_is_refused(store: ObjectStore, key: str) -> None:
    for action in (
        lambda: store.put(key, b""),
        lambda: store.put_exclusive(key, b""),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: list(store.list(key)),
        lambda: store.url(key),
    ):
        with pytest.raises(TerminalError, match="not a key inside the store"):
            action()


@pytest.mark.parametrize("key", ["", ".", "./"])
def test_the_root_is_a_folder_and_no_object(store: ObjectStore, key: str) -> None:
    for action in (
        lambda: store.put(key, b"x"),
        lambda: store.put_exclusive(key, b"x"),
        lambda: store.delete(key),
    ):
        with pytest.raises(TerminalError):
            action()


@pytest.mark.parametrize(
    "key", ["with space", "per%20cent", "plus+and=equals", "ümlaut/ß", "a.b", "hash#1", "q?x=1"]
)
def test_unusual_keys_come_back_as_they_were(store: ObjectStore, key: str) -> None:
    store.put_exclusive(key, key.encode())
    assert store.get(key) == key.encode()
    assert [info.key for info in store.list()] == [key]
    store.delete(key)
    assert not store.exists(key)


def test_what_is_absent_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    store.put("folder/file", b"")
    for key in ("absent", "folder", "folder/file/below"):
        assert not store.exists(key)
        with pytest.raises(NotFound):
            store.get(key)
        with pytest.raises(NotFound), store.open(key) as file:
            file.read()
        with pytest.raises(NotFound):
            store.get_file(key, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.delete("absent")


def test_a_file_arrives_whole_in_a_folder_that_did_not_exist(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2_000_000))
    store.put_file("big", source)
    target = tmp_path / "new" / "copy"
    store.get_file("big", target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_a_copy_that_fails_leaves_the_earlier_file(store: ObjectStore, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"earlier")
    with pytest.raises(NotFound):
        store.get_file("absent", target)
    assert target.read_bytes() == b"earlier"
    assert [path.name for path in target.parent.glob("*copy*")] == ["copy"]


def test_a_local_file_that_is_absent_is_named(store: ObjectStore, tmp_path: Path) -> None:
    for action in (store.put_file, store.put_file_exclusive):
        with pytest.raises(TerminalError, match="absent-file"):
            action("key", tmp_path / "absent-file")
    assert not store.exists("key")


def test_a_store_survives_pickling(store: ObjectStore) -> None:
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"


def test_urls_join_below_the_root(store: ObjectStore) -> None:
    assert store.url("a/b") == f"{store.url()}/a/b"
    assert store.url().endswith("default/toy")


def test_prefixes_do_not_see_each_other(store_settings: Settings) -> None:
    one, two = open_store(store_settings, prefix="t/one"), open_store(store_settings, prefix="t/two")
    one.put("key", b"1")
    assert not two.exists("key")
    assert [info.key for info in open_store(store_settings).list()] == ["t/one/key"]


def test_an_unknown_scheme_is_refused(settings: Settings) -> None:
    import dataclasses

    with pytest.raises(ConfigError, match="neither a folder nor"):
        open_store(dataclasses.replace(settings, store_url="ftp://host/x"))


def test_half_written_local_files_are_hidden_and_swept_when_old(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"1")
    (tmp_path / "a" / ".b.0123456789ab.part").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["a/b"]
    assert store.sweep_staged(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.sweep_staged(datetime.now(UTC) + timedelta(hours=1)) == 1
    assert store.get("a/b") == b"1"


def test_a_folder_in_the_way_of_a_local_key_is_a_typed_error(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"1")
    for key in ("a", "a/b/c"):
        with pytest.raises((TerminalError, StoreUnavailable)):
            store.put(key, b"2")
    assert store.get("a/b") == b"1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; runs for a normal user")
def test_a_read_only_folder_is_a_terminal_error(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "locked")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(TerminalError, match="write access"):
        store.put_exclusive("key", b"")


def test_a_store_below_a_file_is_a_typed_error_for_root_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(tmp_path / "file" / "store")
    with pytest.raises((TerminalError, StoreUnavailable)):
        store.put_exclusive("key", b"")
    with pytest.raises(NotFound):
        store.get("key")


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_url: str, settings: Settings) -> None:
    import dataclasses

    lost = dataclasses.replace(settings, store_url="s3://no-such-bucket-here/x", s3_endpoint=s3_url)
    with pytest.raises(NotFound, match="no-such-bucket-here"):
        open_store(lost).put_exclusive("key", b"")


def test_an_endpoint_that_does_not_answer_is_unavailable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    dead = dataclasses.replace(settings, store_url="s3://bucket/x", s3_endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        open_store(dead).get("key")


def test_the_store_s_time_is_that_of_its_stamps(store: ObjectStore) -> None:
    store.put("earlier", b"x")
    now = store_now(store)
    store.put("later", b"x")
    stamps = {info.key: info.modified_at_utc for info in store.list()}
    assert set(stamps) == {"earlier", "later"}, "asking leaves nothing behind"
    assert stamps["earlier"] <= now <= stamps["later"]
