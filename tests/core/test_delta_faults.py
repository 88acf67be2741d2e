"""What Delta's library says, as one of our errors in one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tasks.core.delta import Change, TableView, commit_change, table_view
from tasks.core.delta_faults import said, surely_had_no_effect, typed
from tasks.core.errors import (
    AccessDenied,
    DiskFull,
    NotFound,
    PenstockError,
    StoreUnavailable,
    TerminalError,
)
from tasks.core.object_store import LocalStore

SCHEMA = pa.schema([("x", pa.int64()), ("event_date", pa.date32())])
LOG = "t/_delta_log/00000000000000000000.json"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store with an empty table `t`."""
    store = LocalStore(tmp_path / "store")
    commit_change(store, "t", schema=lambda: SCHEMA, decide=lambda view: None)
    assert table_view(store, "t") is not None
    return store


def answer(status: str, code: str, *, retries: str = "") -> OSError:
    """As the library told of a request to S3, word for word but for the host."""
    arrow = "\n          \x1b[31m↳\x1b[0m "
    return OSError(
        f"Generic S3 error{arrow}Error performing PUT http://127.0.0.1:1/b/t/_delta_log/1.json in 43.7ms{retries} "
        f"- Server returned non-2xx status code{arrow} {status}{arrow}  <?xml version='1.0'?><Error>"
        f"<Code>{code}</Code><Message>no</Message></Error>\n"
    )


@pytest.mark.parametrize(
    ("status", "code", "wanted", "certain"),
    [
        ("403 Forbidden", "AccessDenied", AccessDenied, True),
        ("401 Unauthorized", "ExpiredToken", AccessDenied, True),
        ("403 Forbidden", "RequestTimeTooSkewed", TerminalError, True),
        ("400 Bad Request", "InvalidRequest", TerminalError, True),
        ("404 Not Found", "NoSuchBucket", NotFound, True),
        ("409 Conflict", "ConditionalRequestConflict", StoreUnavailable, False),
        ("500 Internal Server Error", "InternalError", StoreUnavailable, False),
        ("503 Service Unavailable", "SlowDown", StoreUnavailable, False),
    ],
)
def test_an_answer_of_s3_has_the_class_that_the_object_store_gives_it(
    status: str, code: str, wanted: type[PenstockError], certain: bool
) -> None:
    error = answer(status, code)
    found = typed(error, "s3://b/t")
    assert type(found) is wanted
    assert found.which == "s3://b/t"
    assert "\n" not in found.what
    assert "\x1b" not in found.what
    assert f"status code: {status}: <?xml" in said(error)
    assert surely_had_no_effect(error, found) is certain
    again = answer(status, code, retries=", after 2 retries, max_retries: 2")
    assert not surely_had_no_effect(again, typed(again, "s3://b/t")), "the first send may have landed"


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "Generic LocalFileSystem error\n   \x1b[31m↳\x1b[0m Unable to copy data to file\n"
            "    \x1b[31m↳\x1b[0m No space left on device (os error 28)\n",
            DiskFull,
        ),
        (
            "Could not create local directory: /v\nError: Os { code: 30, kind: ReadOnlyFilesystem, message: "
            '"Read-only file system" }',
            AccessDenied,
        ),
    ],
    ids=["full", "read-only"],
)
def test_a_fault_of_the_disk_has_the_class_that_the_object_store_gives_it(
    message: str, wanted: type[PenstockError]
) -> None:
    assert type(typed(OSError(message), "/store/t")) is wanted
    assert isinstance(typed(OSError(message), "s3://b/t"), StoreUnavailable), "no disk of the store's"


def test_a_damaged_log_is_named_in_one_short_line(store: LocalStore) -> None:
    store.put(LOG, b"{garbage")
    with pytest.raises(
        StoreUnavailable, match="the table's log cannot be used: Kernel error: Json"
    ) as caught:
        table_view(store, "t")
    assert caught.value.which == store.url("t")
    assert len(caught.value.what) < 200
    assert "unknown" not in caught.value.what, "the stack of the library is left out"
    assert "\n" not in caught.value.what


def test_a_log_that_is_a_file_is_in_the_way(store: LocalStore) -> None:
    store.delete(LOG)
    (store.root / "t" / "_delta_log").rmdir()
    store.put("t/_delta_log", b"")
    with pytest.raises(TerminalError, match="another kind is in the way"):
        table_view(store, "t")


def test_a_message_without_words_has_the_name_of_its_class_and_a_long_one_is_cut() -> None:
    assert said(TimeoutError()) == "TimeoutError"
    assert said(OSError("a" * 10_000)) == "a" * 497 + "..."


def test_a_probe_that_a_dead_process_left_in_the_log_disturbs_nobody(store: LocalStore) -> None:
    store.put("t/_delta_log/_probe-0123456789abcdef", b"")
    made = commit_change(
        store, "t", schema=lambda: SCHEMA, decide=lambda view: Change(transaction=("me", view.version + 1))
    )
    assert made is not None
    view = table_view(store, "t")
    assert view is not None
    assert (view.version, view.transaction_version("me")) == (1, 1)


def test_a_commit_whose_checkpoint_fails_afterwards_is_found_in_the_log(store: LocalStore) -> None:
    """The library writes a checkpoint after each hundredth commit, and tells of its failure as of the commit's."""
    for version in range(1, 99):
        commit_change(
            store, "t", schema=lambda: SCHEMA, decide=lambda view, n=version: Change(transaction=("me", n))
        )
    (store.root / "t" / "_delta_log" / f"{99:020d}.checkpoint.parquet").mkdir()
    asked: list[int | None] = []

    def decide(view: TableView) -> Change | None:
        asked.append(view.transaction_version("you"))
        return None if asked[-1] else Change(transaction=("you", 1))

    assert commit_change(store, "t", schema=lambda: SCHEMA, decide=decide) is None
    assert asked == [None, 1]
