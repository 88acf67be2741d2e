"""The hot log of one node: appends from many threads, each durable before it returns, in as few commits as they need."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from tasks.audit.hot.folding import Folded, FoldInProgress, fold
from tasks.audit.hot.group_commit import Appended, GroupCommit, Waiting
from tasks.audit.hot.locks import try_lock, unlock, writer_lock
from tasks.audit.hot.recent_keys import RecentKeys
from tasks.audit.hot.rows import (
    OnlineModel,
    OnlineRow,
    OnlineRows,
    PackedRows,
    RowsDamaged,
    pack,
    store_feature_set,
)
from tasks.audit.hot.segment import (
    RETRIES,
    Segment,
    SegmentDamaged,
    SegmentGone,
    SegmentSealed,
    discard,
    hot_folder,
    node_digits,
    retry_keys,
    segment_paths,
    set_aside,
)
from tasks.core.clock import Clock, utc_now
from tasks.core.errors import (
    DataError,
    PenstockError,
    StoreUnavailable,
    TransientError,
    disk_error,
)
from tasks.core.object_store import open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

log = logging.getLogger(__name__)

_LOCK_WAIT_S = 1.0
"""A fold takes the writer's lock for a moment, to see whether the writer lives."""


class HotLogInUse(TransientError):
    """Another process writes the hot log of this node."""


@dataclass(frozen=True)
class HotLimits:
    """When a segment is sealed, how much may wait, and how long a retry is recognised."""

    seal_rows: int = 100_000
    seal_bytes: int = 64 * 2**20
    """Of packed rows."""
    seal_after_s: float = 900.0
    waiting_rows: int = 10_000
    """Appends beyond it are refused with `HotLogBusy`."""
    retry_window_s: float = 900.0
    """How long after its segment was sealed a row that comes again is recognised; 16 bytes of memory for each, and 100 for each
    of the open segment."""


class HotLog:
    """Where the online server writes its predictions. One for each pipeline and node; open it after forking.

    Args:
        settings: This installation; segments lie in `<home>/hot/<tenant>/<pipeline>/`.
        spec: The pipeline.
        node: Name of this node; it may not change while its segments are not folded. Default: the host's name.
        limits: See there.
        clock: The time.

    Raises:
        HotLogInUse: Another process has it open.
        AccessDenied, DiskFull, TerminalError: The folder cannot be made or written.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PipelineSpec,
        *,
        node: str | None = None,
        limits: HotLimits | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._settings = settings
        self._spec = spec
        self._limits = limits or HotLimits()
        self._clock = clock
        self.node = node or socket.gethostname()
        self.folder = hot_folder(settings, spec)
        self._lock = _writer_lock(self.folder, self.node)
        self._group = GroupCommit(self._write, self._limits.waiting_rows, str(self.folder))
        self._file = threading.Lock()
        """Guards the segment and the known keys."""
        self._segment: Segment | None = None
        self._opened_at = clock()
        self._rows = self._bytes = 0
        self._keys: set[bytes] = set()
        """Of the open segment."""
        self._earlier = self._no_keys()
        """Of those before it."""
        self._recovered = False
        self._told: set[OnlineModel] = set()
        self._folder_thread: threading.Thread | None = None
        self._stop = threading.Event()
        try:
            with self._file:
                self._recover()
        except BaseException:
            unlock(self._lock)
            raise

    def __enter__(self) -> HotLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, rows: Sequence[OnlineRow | OnlineRows]) -> Appended:
        """Keep these predictions, single ones or columns of many; all of them are on the disk when this returns, or none is on an error.

        A row whose model version, `prediction_id` and `request_id` are there already, or were folded a short while ago
        (`HotLimits.retry_window_s`), is not added again: after any error, and when an answer was lost, the
        client retries with the same request id. When another version answers the retry, that answer is added.
        From any number of threads.

        Raises:
            DataError: A row is incomplete, or of another pipeline; nothing of this append was kept.
            HotLogBusy: Too many rows wait; nothing was taken.
            DiskFull, AccessDenied, StoreUnavailable: Nothing was kept.
            CommitOutcomeUnknown: The disk failed during the commit; retry with the same request ids.
            HotLogClosed: After `close`.
        """
        for row in rows:
            if row.model not in self._told:
                self._tell(row.model)
        packed = [pack(row) for row in rows]
        return self._group.run(Waiting(packed)) if packed else Appended(0, 0)

    def seal(self) -> bool:
        """Close the open segment to further rows, so that it can be folded; False when there is none."""
        with self._file:
            return self._seal()

    def fold(self, *, seal: bool = False, wait_s: float = 0.0) -> Folded:
        """Fold what is sealed into the audit table; with `seal`, everything that was appended before the call.

        Raises:
            FoldInProgress: Another fold on this machine is at it, for longer than `wait_s`.
            PenstockError: As `tasks.audit.hot.fold` says.
        """
        if seal:
            self.seal()
        return fold(
            self._settings,
            self._spec,
            retry_window_s=self._limits.retry_window_s,
            wait_s=wait_s,
            clock=self._clock,
        )

    def start_folding(self, *, every_s: float = 60.0) -> None:
        """Seal by age and fold, every so often in a thread of its own. What fails is logged and tried again."""
        if self._folder_thread is not None:
            return
        self._folder_thread = threading.Thread(
            target=self._keep_folding, args=(every_s,), name=f"fold-{self._spec.name}", daemon=True
        )
        self._folder_thread.start()

    def close(self) -> None:
        """Finish what was handed in, end the folding thread, seal. Nothing is folded: the next fold finds it."""
        if not self._group.close():
            return
        self._stop.set()
        if self._folder_thread is not None:
            self._folder_thread.join()
        try:
            with self._file:
                self._seal()
        except PenstockError as error:
            log.warning("A segment stays open; the next start or fold seals it. %s", error)
        finally:
            unlock(self._lock)

    def _write(self, batch: list[Waiting]) -> None:
        """Make every append of the batch durable, or raise for all."""
        with self._file:
            self._write_new(batch)

    def _write_new(self, batch: list[Waiting]) -> None:
        for _ in range(3):
            self._recover()
            known = self._known([key for one in batch for _, keys in one.packed for key in keys])
            taken: set[bytes] = set()
            new: dict[OnlineModel, list[PackedRows]] = {}
            results = []
            for one in batch:
                added = 0
                for rows, keys in one.packed:
                    fresh = _not_yet(rows, keys, known, taken)
                    if len(fresh):
                        new.setdefault(rows.model, []).append(fresh)
                        added += len(fresh)
                results.append(Appended(added, one.rows - added))
            if new and not self._added([PackedRows.joined(parts) for parts in new.values()]):
                continue
            self._keys |= taken
            for one, result in zip(batch, results, strict=True):
                one.result = result
            if new:
                self._rows += len(taken)
                self._seal_if_due()
            return
        raise StoreUnavailable(
            "segments kept being sealed under the writer", which=str(self.folder), fix="retry"
        )

    def _added(self, blocks: list[PackedRows]) -> bool:
        """Append to the open segment, or say that it is none any more; then its keys are known, and another is opened."""
        try:
            if self._segment is None:
                self._opened_at = self._clock()
                self._rows = self._bytes = 0
                self._segment = Segment.create(
                    self.folder, self.node, self._opened_at, self._limits.seal_after_s
                )
            self._bytes += self._segment.add(blocks)
        except (SegmentSealed, SegmentGone):  # by a fold that was asked to seal: its rows stay as they are
            self._let_go()
            return False
        except SegmentDamaged as error:
            log.error("%s", error)
            assert self._segment is not None
            path = self._segment.path
            self._let_go()
            set_aside(path)
            return False
        except BaseException:
            # What became of the transaction shows when the file is opened again.
            self._let_go()
            self._recovered = False
            raise
        return True

    def _known(self, keys: list[bytes]) -> set[bytes]:
        """Those of the keys whose rows are durable."""
        return self._keys.intersection(keys) | self._earlier.among(keys)

    def _seal_if_due(self) -> None:
        age_s = (self._clock() - self._opened_at).total_seconds()
        limits = self._limits
        if self._rows >= limits.seal_rows or self._bytes >= limits.seal_bytes or age_s >= limits.seal_after_s:
            try:
                self._seal()
            except PenstockError as error:  # the rows are durable all the same
                log.warning("A segment is not sealed yet. %s", error)
                self._let_go()
                self._recovered = False

    def _seal(self) -> bool:
        if self._segment is None:
            return False
        with suppress(SegmentGone):
            self._segment.seal()
        self._let_go()
        return True

    def _let_go(self) -> None:
        """Append to this segment no more; its keys are known for a while yet."""
        if self._segment is not None:
            self._segment.close()
        self._segment = None
        now = self._clock()
        self._earlier.forget(now)
        self._earlier.add(now, self._keys)
        self._keys = set()

    def _recover(self) -> None:
        """After a start or an error: seal what this node left open, and learn which rows are durable."""
        if self._recovered:
            return
        now, own = self._clock(), f"-{node_digits(self.node)}-"
        window, earlier = timedelta(seconds=self._limits.retry_window_s), self._no_keys()
        for path in segment_paths(self.folder):
            if own not in path.stem:
                continue
            try:
                last_written = datetime.fromtimestamp(path.stat().st_mtime, tz=now.tzinfo)
                segment = Segment.open(path)
            except (SegmentGone, FileNotFoundError):
                continue
            try:
                facts = segment.facts()
                if facts is not None and not facts.sealed:
                    last_written = now
                    segment.seal()
                if facts is None:  # its maker died before a row was in it
                    discard(segment)
                elif now - last_written < window:
                    earlier.add(now, segment.keys())
            except SegmentGone:
                continue
            except (SegmentDamaged, RowsDamaged) as error:
                log.error("%s", error)
                set_aside(path)
            finally:
                segment.close()
        for path in self.folder.glob(
            f"*{own}*{RETRIES}"
        ):  # after the segments: what is folded meanwhile is here
            try:
                moment = datetime.fromtimestamp(path.stat().st_mtime, tz=now.tzinfo)
                if now - moment < window:
                    earlier.add(moment, retry_keys(path))
            except FileNotFoundError:  # its time was over
                continue
            except OSError as error:
                raise disk_error(error, str(path)) from error
        self._earlier = earlier
        self._keys = set()
        self._recovered = True

    def _no_keys(self) -> RecentKeys:
        return RecentKeys(timedelta(seconds=self._limits.retry_window_s))

    def _tell(self, model: OnlineModel) -> None:
        """Store what a model's feature positions mean before rows of it are there to be read."""
        if model.pipeline != self._spec.name:
            raise DataError(
                f"is a model of pipeline {model.pipeline}",
                which=f"the hot log of pipeline {self._spec.name}",
                fix="hand its rows to that pipeline's own log",
            )
        try:
            store_feature_set(open_store(self._settings, prefix=self._spec.prefix), model)
        except PenstockError as error:  # the disk here keeps rows also while the store does not answer
            log.warning("The feature set of online rows is not stored yet; the fold will. %s", error)
        self._told.add(model)

    def _keep_folding(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                with self._file:
                    if self._segment is not None:
                        self._seal_if_due()
                self.fold()
            except FoldInProgress:
                continue
            except PenstockError as error:
                log.warning("Not folded; tried again in %g s. %s", every_s, error)
            except Exception:
                log.exception("Not folded; tried again in %g s.", every_s)


def _not_yet(rows: PackedRows, keys: list[bytes], known: set[bytes], taken: set[bytes]) -> PackedRows:
    """The rows that are neither known nor taken; their keys are taken with it."""
    if known.isdisjoint(keys) and taken.isdisjoint(keys) and len(set(keys)) == len(keys):
        taken.update(keys)
        return rows
    fresh = []
    for key in keys:
        fresh.append(key not in known and key not in taken)
        taken.update([key] if fresh[-1] else [])
    return rows.where(np.array(fresh, np.bool_))


def _writer_lock(folder: Path, node: str) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, str(folder)) from error
    handle = try_lock(writer_lock(folder, node_digits(node)), wait_s=_LOCK_WAIT_S)
    if handle is None:
        raise HotLogInUse(
            f"another process writes the hot log of node {node}",
            which=str(folder),
            fix="let it end first, or give this one a node name of its own",
        )
    return handle
