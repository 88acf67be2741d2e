"""What decides for all runs where tenants have logins of their own, which cannot: `penstock tenancy keep`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks.core import Settings, utc_now
from tasks.core.errors import (
    AccessDenied,
    CommitOutcomeUnknown,
    PenstockError,
    ServiceUnavailable,
    disk_error,
)
from tasks.core.mlflow_login import tenant_user
from tasks.core.tenants import require_shares, tenant_names
from tasks.metadata import MetadataStore
from tasks.wiring.settling import Settler

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_TRANSACTION_S = 60.0
"""No work of Penstock's leaves a transaction open for so long."""


def keep_leases(
    settings: Settings,
    *,
    once: bool = False,
    beat_file: Path | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """Settle the ledger of leases every `beat_s`, and end transactions of tenants' logins that last too long; until interrupted.

    Any number of processes may do so: the ledger's lock lets one decide at a time.

    Args:
        once: Return after one decision.
        beat_file: Written anew after each decision, and not there before the first and after the end: its age says whether this
            process decides.

    Returns:
        Of the last decision: runs that are known, those whose width it changed, and the transactions that were ended.

    Raises:
        ConfigError: There is no cluster to share out, or a file of `tenants/` is wrong at the start.
        AccessDenied: This login may not decide.
        ServiceUnavailable: The database does not answer at the start, or with `once`.
        DiskFull: There is no space for `beat_file`. Where it cannot be written for another reason: another error of ours that names it.
    """
    with _beating(beat_file) as beat:
        store = MetadataStore.open(settings, patience_s=_PATIENCE_S)
        if not store.may_settle():
            raise AccessDenied(
                "may not decide what runs are granted",
                which="PENSTOCK_METADATA_URL",
                fix="use the login that owns Penstock's tables, not a tenant's",
            )
        settler, shares = Settler(), require_shares(settings)
        while True:
            try:
                decision = settler.settle(store, *shares)
                ended = _end_transactions(settings, store)
            except (ServiceUnavailable, CommitOutcomeUnknown) as error:
                if once:
                    raise
                log.warning("Nothing is decided for now: %s", error.what)
            else:
                beat()
                if once:
                    return {
                        "runs": 0 if settler.book is None else len(settler.book),
                        "changed": sorted(decision.changed) if decision else [],
                        "transactions_ended": ended,
                    }
            sleep(shares[0].beat_s)
            try:
                shares = require_shares(settings)
            except PenstockError as error:
                log.warning("Shares stay as they were: %s", error)


@contextmanager
def _beating(path: Path | None) -> Iterator[Callable[[], None]]:
    """What writes the file anew, which is not there before and afterwards."""

    def write() -> None:
        if path is None:
            return
        try:
            path.write_text(f"{utc_now():%FT%TZ}\n")
        except OSError as error:
            raise disk_error(error, str(path)) from error

    def remove() -> None:
        with suppress(OSError):
            if path is not None:
                path.unlink()

    remove()
    try:
        yield write
    finally:
        remove()


def _end_transactions(settings: Settings, store: MetadataStore) -> int:
    """What a tenant's login holds for too long keeps others from nothing that is decided here, but upgrades and vacuum from their work."""
    users = [tenant_user(name) for name in tenant_names(settings)]
    try:
        ended = store.end_transactions(users, longer_than_s=_TRANSACTION_S)
    except AccessDenied as error:  # a login that somebody made by hand: deciding does not wait for it
        log.warning("Transactions of tenants' logins that last too long are not ended: %s", error.what)
        return 0
    for user, age_s in ended:
        log.warning("A transaction of %s was %.0f s old: its connection was ended.", user, age_s)
    return len(ended)
