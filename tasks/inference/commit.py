"""Fencing and the shard commit (I2, I4): data first, record last, by exclusive create."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Iterable

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.errors import CommitOutcomeUnknown, DiskFull, PenstockError, StaleAttempt
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.inference.records import ShardRecord, attempt_key, read_shard_record, shard_key

log = logging.getLogger(__name__)

_CREATES = 2
"""Of one record; the store itself sends a create again before it gives up."""


def take_token(store: ObjectStore, run_id: str, *, clock: Clock = utc_now) -> int:
    """The next fencing token of a run; every attempt with a lower one is stale from now on.

    Tokens are 1, 2, 3, ... without a gap: each is an exclusive create, tried only after its predecessor exists.
    """
    token = newest_token(store, run_id) + 1
    while True:
        holder = {"token": token, "node": socket.gethostname(), "taken_at_utc": iso_utc(clock())}
        try:
            # The nonce makes every holder's bytes its own, so that a lost answer can be looked up.
            data = canonical_json({**holder, "nonce": secrets.token_hex(8)})
            _create_or_look_up(store, attempt_key(run_id, token), data)
        except AlreadyExists:
            token += 1
            continue
        return token


def newest_token(store: ObjectStore, run_id: str) -> int:
    """The highest token taken so far, 0 when none was."""
    names = [info.key.rsplit("/", 1)[-1] for info in store.list(f"runs/{run_id}/attempts")]
    return max((int(name.removesuffix(".json")) for name in names), default=0)


def check_fence(store: ObjectStore, run_id: str, token: int) -> None:
    """Refuse an attempt that a newer one has replaced. One look-up, because tokens have no gaps.

    Raises:
        StaleAttempt: A higher token exists.
    """
    if store.exists(attempt_key(run_id, token + 1)):
        raise StaleAttempt(
            f"holds fencing token {token}, and token {newest_token(store, run_id)} has been taken since",
            which=f"an attempt of run {run_id}",
            fix="leave the run to the newer attempt, or start another attempt; committed shards are kept",
        )


def commit_shard(store: ObjectStore, record: ShardRecord, own_files: Iterable[str]) -> ShardRecord:
    """Make `record` the shard's commit, or adopt the one that is there.

    Args:
        store: The pipeline's store.
        record: Names files that are in the store already.
        own_files: Keys of those files; deleted when, and only when, another attempt's record is the commit.

    Returns:
        The record that is the commit of this shard from now on.

    Raises:
        StaleAttempt: A newer attempt of the run exists; own files are deleted.
        DiskFull: There is no space for the record; own files are deleted.
        CommitOutcomeUnknown: Nobody can tell now whether the record was created; nothing was deleted.
    """
    try:
        check_fence(store, record.run_id, record.token)
    except PenstockError:
        discard(store, own_files)  # no record was tried: certainly nobody refers to them
        raise
    reached("before-record")
    key = shard_key(record.run_id, record.shard)
    try:
        _create_or_look_up(store, key, canonical_json(record.to_json()))
    except DiskFull:
        discard(
            store, own_files
        )  # a link without space is no link: nobody refers to them, and they take space
        raise
    except AlreadyExists:
        winner = read_shard_record(store, record.run_id, record.shard)
        if winner is None or winner.attempt == record.attempt:  # never seen; nothing is deleted on a doubt
            raise CommitOutcomeUnknown(
                "was reported as existing and then could not be read",
                which=store.url(key),
                fix="run again: the shard's record is looked up first",
            ) from None
        discard(store, own_files)
        log.info("Shard %d was committed by attempt %s; adopting it.", record.shard, winner.attempt)
        return winner
    reached("after-record")
    return record


def discard(store: ObjectStore, keys: Iterable[str]) -> None:
    """Delete files that no record names. A failure leaves an orphan for `sweep_orphans` and is not an error."""
    for key in keys:
        try:
            store.delete(key)
        except PenstockError as error:
            log.warning("Left %s behind for the sweep: %s", key, error.what)


def _create_or_look_up(store: ObjectStore, key: str, data: bytes) -> None:
    """Exclusive create whose outcome is known when it returns: `data` is there, by us.

    `data` must be unlike any other caller's, which is how a create with a lost answer is recognised (I4).

    Raises:
        AlreadyExists: The key holds somebody else's bytes.
        CommitOutcomeUnknown: The store answers neither the create nor the look-up.
    """
    for attempt in range(1, _CREATES + 1):
        try:
            store.put_exclusive(key, data)
            return
        except AlreadyExists:
            # Ours, when a create before this one took effect after all.
            if store.get(key) == data:
                return
            raise
        except CommitOutcomeUnknown:
            if store.exists(key):
                if store.get(key) == data:
                    return
                raise AlreadyExists("exists already", which=store.url(key)) from None
            if attempt == _CREATES:
                raise
