"""Workers of a training on a shared cluster: all of them or none, kept until it ends; and what it had, on any cluster."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tasks.core.errors import CommitOutcomeUnknown, PenstockError, ServiceUnavailable, TransientError
from tasks.core.tenants import load_shares
from tasks.metadata import UNDER_WAY
from tasks.wiring.admission import FAILED, FINISHED, keep_account
from tasks.wiring.context import Context
from tasks.wiring.lease_holder import NOTHING, LeaseHolder, first_lease

log = logging.getLogger(__name__)

_SAVE_S = 30.0


@contextmanager
def gang(
    context: Context,
    training_id: str,
    worked_s: Callable[[], float],
    *,
    bytes_read: int = 0,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[None]:
    """Wait for all workers of a training, keep them while the block runs, give them back; a `tasks.training` `Workers`.

    Args:
        worked_s: Wall seconds of the epochs that are kept.
        bytes_read: Of the snapshot, which every attempt reads.

    Raises:
        ConfigError: A file of `tenants/` is wrong, or the guarantees add up to more than the cluster has.
        TerminalError: It asks for what its tenant can never get; nothing was begun.
        TransientError: It has waited for `gang_wait_s`; the message says for what.
        ServiceUnavailable: The ledger of leases does not answer; nothing was begun.
        StaleAttempt: A newer attempt of the training waits in its place.
    """
    first = first_lease(context, training_id, "training")
    found = load_shares(context.settings)
    holder = None if found is None else LeaseHolder(context, first, *found, monotonic=monotonic)
    if holder is not None:
        holder.refuse_unplaceable(f"training {training_id}", "training.workers, training.gpus_per_worker")
        _wait(holder, training_id, first.least, monotonic, sleep)
    workers, begun_s, kept_s = first.least, monotonic(), worked_s()

    def account(worked: float, *, failed: bool = False) -> dict[str, Any]:
        allocated_s = workers * (monotonic() - begun_s)
        used_s = min(allocated_s, workers * max(0.0, worked - kept_s))
        return {
            **NOTHING,
            "bytes_read": bytes_read,
            "allocated_s": allocated_s,
            "used_s": used_s,
            "wasted_s": allocated_s - used_s if failed else 0.0,
            "cpu_seconds": used_s * first.cpus,
            "gpu_seconds": used_s * first.gpus,
        }

    def tell() -> None:
        if holder is None:
            keep_account(context, first, account(kept_s), UNDER_WAY)
            return
        try:
            holder.beat(account(kept_s), workers=workers, most=workers)
        except PenstockError as error:  # Ray holds its places, whatever the ledger says
            log.warning("The training goes on with its workers: %s", error)

    outcome = FAILED
    try:
        with _every(_SAVE_S if holder is None else holder.cluster.beat_s, tell):
            yield
        outcome = FINISHED
    finally:
        had = account(_worked(worked_s, kept_s), failed=outcome == FAILED)
        if holder is None:
            keep_account(context, first, had, outcome)
        else:
            holder.end(had, outcome)


def _wait(
    holder: LeaseHolder,
    training_id: str,
    workers: int,
    monotonic: Callable[[], float],
    sleep: Callable[[float], object],
) -> None:
    """Return when the ledger has granted all workers."""
    asked_s, heard_s, reason, pause_s = monotonic(), None, "", 0.0
    while True:
        try:
            mine = holder.beat(NOTHING, workers=0, most=workers)
            if mine.width >= workers:
                return
            heard_s, reason, pause_s = monotonic(), mine.waits, holder.pause_s
        except (ServiceUnavailable, CommitOutcomeUnknown) as error:
            if heard_s is None or monotonic() - heard_s > holder.cluster.lease_s + pause_s:
                raise ServiceUnavailable(
                    f"the ledger of leases does not answer: {error.what}; nothing was begun",
                    which=f"training {training_id}",
                    fix="bring the metadata database back and run again",
                ) from error
            log.warning("The ledger of leases does not answer, the training waits: %s", error.what)
            pause_s = holder.cluster.beat_s
        waited_s = monotonic() - asked_s
        if waited_s >= holder.cluster.gang_wait_s:
            holder.end(NOTHING, FAILED)
            raise TransientError(
                f"has waited {waited_s:.0f} s (gang_wait_s) for {workers} workers at once: {reason}",
                which=f"training {training_id}",
                fix="run it again when there is room, ask for fewer workers, or raise the tenant's share.guarantee",
            )
        sleep(min(pause_s, max(0.0, holder.cluster.gang_wait_s - waited_s)))


def _worked(worked_s: Callable[[], float], otherwise: float) -> float:
    try:
        return worked_s()
    except PenstockError as error:
        log.warning("Which epochs are kept is not known, none of them is counted: %s", error)
        return otherwise


@contextmanager
def _every(pause_s: float, tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` again and again in a thread while the block runs, the first time after a pause."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause_s):
            tell()

    thread = threading.Thread(target=run, name="penstock-gang", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
