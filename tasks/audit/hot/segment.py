"""One segment of the hot log: a SQLite file in WAL mode that rows are appended to, in blocks, until it is sealed.

A block is all rows of one model in one commit, packed. Rows one by one had taken most of an append's time: their places in the
primary key's tree lie far apart, and each touched page is written whole, twice.

Sealing is a transaction in the file itself, and every append looks for it in its own transaction. So anybody may seal
any segment at any time, and from then on its rows are what they are: that is what makes folding safe beside a writer.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from tasks.audit.hot import earlier
from tasks.audit.hot.rows import ID_BYTES, OnlineModel, PackedRows, millis_between, within
from tasks.core.crash_points import reached
from tasks.core.errors import (
    AccessDenied,
    CommitOutcomeUnknown,
    DataError,
    DiskFull,
    PenstockError,
    StoreUnavailable,
    disk_error,
)
from tasks.core.ids import canonical_json, digest_json
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

SUFFIX = ".db"
DAMAGED = ".damaged"
FOLDED = ".folded"
RETRIES = ".retries"

_NAME = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}-[0-9a-f]{8}")
_BUSY_S = 10.0
_WAL_PARTS = ("-wal", "-shm")
_KEY_BYTES = 16
_TABLES = """
CREATE TABLE segment (node TEXT NOT NULL, opened_at TEXT NOT NULL, seal_after_s REAL NOT NULL, sealed INTEGER NOT NULL);
CREATE TABLE models (number INTEGER PRIMARY KEY, model TEXT NOT NULL);
CREATE TABLE blocks (
    number INTEGER PRIMARY KEY, model INTEGER NOT NULL, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
    ids BLOB NOT NULL, body BLOB NOT NULL
);
"""
_EARLIER_TABLE = "rows"
"""What segments of earlier releases have instead of `blocks`."""


class SegmentDamaged(DataError):
    """A segment cannot be read: it was set aside, all others go on."""


class SegmentSealed(Exception):
    """An append found its segment sealed; it belongs into the next one. Never leaves this room."""


class SegmentGone(Exception):
    """The segment was folded and deleted meanwhile: its rows are in the table. Never leaves this room."""


@dataclass(frozen=True)
class Facts:
    """What a segment says of itself."""

    node: str
    opened_at: datetime
    seal_after_s: float
    sealed: bool


def hot_folder(settings: Settings, spec: PipelineSpec) -> Path:
    """Where this machine keeps online predictions of a pipeline that are not folded yet."""
    return settings.home / "hot" / spec.prefix


def node_digits(node: str) -> str:
    """8 hex digits for a node's name, which may hold anything."""
    return digest_json(node)[:8]


def segment_paths(folder: Path) -> list[Path]:
    """Segments that are not folded yet, oldest first; none when there is no folder."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise disk_error(error, str(folder)) from error
    return [
        folder / name
        for name in sorted(names)
        if name.endswith(SUFFIX) and _NAME.fullmatch(name[: -len(SUFFIX)])
    ]


class Segment:
    """An open segment file. Not for several threads at once."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._numbers: dict[OnlineModel, int] = {}

    @property
    def name(self) -> str:
        return self.path.stem

    @classmethod
    def create(cls, folder: Path, node: str, now: datetime, seal_after_s: float) -> Segment:
        """A new, empty segment that outlives a power cut.

        Raises:
            DiskFull, AccessDenied, StoreUnavailable, TerminalError: The disk does not allow it.
        """
        millis = int(now.timestamp() * 1000)
        path = folder / f"{millis:012x}-{node_digits(node)}-{secrets.token_hex(4)}{SUFFIX}"
        with _typed(path, creating=True):
            connection = _connect(path, "rwc")
            segment = cls(path, connection)
            try:
                if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                    raise StoreUnavailable(
                        "its file system has no shared memory for a write-ahead log",
                        which=str(folder),
                        fix="put PENSTOCK_HOME on a local disk",
                    )
                connection.executescript(f"BEGIN; {_TABLES}")
                connection.execute(
                    "INSERT INTO segment VALUES (?, ?, ?, 0)", (node, now.isoformat(), seal_after_s)
                )
                connection.execute("COMMIT")
                _sync_folder(folder)
            except BaseException:
                discard(segment)
                raise
        return segment

    @classmethod
    def open(cls, path: Path, mode: Literal["ro", "rw"] = "rw") -> Segment:
        """An existing segment.

        Raises:
            SegmentGone: It was folded meanwhile.
            SegmentDamaged: It is no segment.
            DiskFull, AccessDenied, StoreUnavailable: The disk does not allow it.
        """
        with _typed(path):
            segment = cls(path, _connect(path, mode))
            if mode == "ro" and not path.with_name(f"{path.name}-wal").exists():
                segment._read_only_place()
            return segment

    def _read_only_place(self) -> None:
        """Where nobody may write, SQLite cannot read a segment that was closed unless it is told that nobody does."""
        try:
            self._connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            self.close()
            self._connection = _connect(self.path, "ro&immutable=1")

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()

    def facts(self) -> Facts | None:
        """What it says of itself; None while it is being made, or when whoever made it died before anything was in it.

        Raises:
            SegmentDamaged: It cannot be read.
        """
        with _typed(self.path):
            if not self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return None
            found = self._connection.execute(
                "SELECT node, opened_at, seal_after_s, sealed FROM segment"
            ).fetchone()
            try:
                return Facts(found[0], datetime.fromisoformat(found[1]), float(found[2]), bool(found[3]))
            except (TypeError, ValueError) as error:
                raise _damaged(self.path, "it does not say whose it is") from error

    def add(self, blocks: Sequence[PackedRows]) -> int:
        """Append rows in one transaction, which is on the disk when this returns; how many bytes they are.

        After an error the segment must not be written any more: open it again and look what is there.

        Raises:
            SegmentSealed: It was sealed; nothing was added.
            DiskFull, AccessDenied, StoreUnavailable, SegmentDamaged: Nothing was added.
            CommitOutcomeUnknown: The disk failed during the commit.
        """
        execute = self._connection.execute
        size = 0
        with _typed(self.path):
            execute("BEGIN IMMEDIATE")
            if execute("SELECT sealed FROM segment").fetchone()[0]:
                execute("ROLLBACK")
                raise SegmentSealed
            for rows in blocks:
                body = rows.body
                size += len(rows.ids) + len(body)
                execute(
                    "INSERT INTO blocks (model, first_ms, last_ms, ids, body) VALUES (?, ?, ?, ?, ?)",
                    (self._number(rows.model), *rows.millis, rows.ids, body),
                )
        reached("before-append-commit")
        with _typed(self.path, committing=True):
            execute("COMMIT")
        reached("after-append-commit")
        return size

    def seal(self) -> None:
        """No row is added from now on. Sealing again changes nothing."""
        with _typed(self.path):
            self._connection.execute("UPDATE segment SET sealed = 1 WHERE sealed = 0")
        reached("after-segment-seal")

    def rows(self, low: str = "", high: str = "~") -> list[PackedRows]:
        """Rows with low <= prediction_id <= high, as of one moment.

        Raises:
            RowsDamaged: A block does not hold what was written.
            SegmentDamaged, AccessDenied, StoreUnavailable: It cannot be read.
        """
        with _typed(self.path):
            self._connection.execute("BEGIN")
            try:
                models = {
                    number: OnlineModel.from_json(json.loads(text))
                    for number, text in self._connection.execute("SELECT number, model FROM models")
                }
                of_table = self._earlier_rows if self._is_earlier() else self._blocks
                return of_table(models, low, high)
            except (KeyError, ValueError, TypeError) as error:
                raise _damaged(self.path, f"it is inconsistent: {error!r}") from error
            finally:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")

    def keys(self) -> frozenset[bytes]:
        """The identities of its rows."""
        return frozenset(key for rows in self.rows() for key in rows.identities())

    def count(self) -> int:
        count = (
            "SELECT count(*) FROM rows"
            if self._is_earlier()
            else f"SELECT coalesce(sum(length(ids)), 0) / {ID_BYTES} FROM blocks"
        )
        with _typed(self.path):
            rows: int = self._connection.execute(count).fetchone()[0]
            return rows

    def _is_earlier(self) -> bool:
        with _typed(self.path):
            asked = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
            return bool(self._connection.execute(asked, (_EARLIER_TABLE,)).fetchone()[0])

    def _blocks(self, models: Mapping[int, OnlineModel], low: str, high: str) -> list[PackedRows]:
        execute = self._connection.execute
        first, last = millis_between(low, high)
        found = []
        for number, model, first_ms, last_ms, ids in execute(
            "SELECT number, model, first_ms, last_ms, ids FROM blocks WHERE last_ms >= ? AND first_ms <= ? ORDER BY number",
            (first, last),
        ).fetchall():
            whole = (first < first_ms and last_ms < last) or (low == "" and high == "~")
            wanted = None if whole else within(ids, low, high)
            if wanted is None or wanted.any():
                body = execute("SELECT body FROM blocks WHERE number = ?", (number,)).fetchone()[0]
                rows = PackedRows.of_body(models[model], ids, body, f"block {number} of {self.path}")
                found.append(rows if wanted is None else rows.where(wanted))
        return found

    def _earlier_rows(self, models: Mapping[int, OnlineModel], low: str, high: str) -> list[PackedRows]:
        found: dict[int, list[earlier.Stored]] = {}
        for identifier, request_id, number, explained, body in self._connection.execute(
            "SELECT * FROM rows WHERE prediction_id BETWEEN ? AND ?", (low, high)
        ):
            found.setdefault(number, []).append((identifier, request_id, bool(explained), body))
        return [earlier.packed(models[number], rows) for number, rows in found.items()]

    def _number(self, model: OnlineModel) -> int:
        number = self._numbers.get(model)
        if number is None:
            number = self._numbers[model] = len(self._numbers) + 1
            self._connection.execute(
                "INSERT INTO models VALUES (?, ?)", (number, canonical_json(model.to_json()).decode())
            )
        return number


def remove(segment: Segment, keys: frozenset[bytes]) -> None:
    """Delete a folded segment. What remains for a while is `keys`: digests by which a retry is recognised.

    A reader may have it open: it goes on reading what it opened.
    """
    path = segment.path
    segment.close()
    try:
        retries = path.with_suffix(RETRIES)
        staged = retries.with_suffix(".staged")
        staged.write_bytes(b"".join(sorted(keys)))
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.rename(retries)
        reached("before-segment-delete")
        path.rename(path.with_suffix(FOLDED))  # from here on it is no segment for anybody
        _sync_folder(path.parent)
        reached("during-segment-delete")
        _drop_parts(path)
    except OSError as error:
        raise disk_error(error, str(path)) from error


def discard(segment: Segment) -> None:
    """Delete a segment that never had a row."""
    segment.close()
    for part in ("", *_WAL_PARTS):
        segment.path.with_name(segment.path.name + part).unlink(missing_ok=True)


def drop_remains(folder: Path) -> None:
    """Delete what a crash during `remove` left. Only for who holds the folding lock."""
    for path in folder.glob(f"*{FOLDED}"):
        _drop_parts(path.with_suffix(SUFFIX))
    for path in folder.glob("*.staged"):
        path.unlink(missing_ok=True)


def retry_keys(path: Path) -> frozenset[bytes]:
    """The identities in a file of recently folded rows."""
    data = path.read_bytes()
    return frozenset(data[at : at + _KEY_BYTES] for at in range(0, len(data), _KEY_BYTES))


def set_aside(path: Path) -> Path:
    """Rename a damaged segment so that nobody meets it again; a person may look into it. Returns its new path."""
    kept = path.with_suffix(DAMAGED)
    with suppress(FileNotFoundError):
        path.rename(kept)
    for part in _WAL_PARTS:
        with suppress(FileNotFoundError):
            path.with_name(path.name + part).rename(kept.with_name(kept.name + part))
    return kept


def _drop_parts(path: Path) -> None:
    for part in _WAL_PARTS:
        path.with_name(path.name + part).unlink(missing_ok=True)
    path.with_suffix(FOLDED).unlink(missing_ok=True)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    if mode in ("rw", "rwc"):  # a commit is on the disk before it returns, also in WAL mode
        connection.execute("PRAGMA synchronous=FULL")
    return connection


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _typed(path: Path, *, creating: bool = False, committing: bool = False) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if not creating and not path.exists():
            raise SegmentGone from error
        raise _error(error, path, committing) from error
    except OSError as error:
        raise disk_error(error, str(path)) from error


def _error(error: sqlite3.Error, path: Path, committing: bool) -> PenstockError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return DiskFull(
            "the disk is full", which=str(path), fix="free space, then retry: what was acknowledged stays"
        )
    if primary in (
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    ):
        return AccessDenied(
            f"cannot be read or written: {error}",
            which=str(path),
            fix="give this user write access to the folder",
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable("another process holds it", which=str(path), fix="retry")
    if primary == sqlite3.SQLITE_IOERR:
        if committing:
            return CommitOutcomeUnknown(
                f"the disk failed during the commit: {error}",
                which=str(path),
                fix="retry with the same request ids: what is there already is not added again",
            )
        return StoreUnavailable(f"the disk failed: {error}", which=str(path), fix="retry; check the disk")
    if primary in (None, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return _damaged(path, str(error))  # without a code: a text that is no UTF-8
    return StoreUnavailable(f"SQLite failed: {error}", which=str(path), fix="retry")


def _damaged(path: Path, what: str) -> SegmentDamaged:
    return SegmentDamaged(
        f"a segment of online predictions is damaged: {what}",
        which=str(path),
        fix="it is kept under the name *.damaged: recover it (docs/audit.md) or restore it from a backup",
    )
