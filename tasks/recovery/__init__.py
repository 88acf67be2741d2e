"""Backup and restore of an installation: the object store, the metadata database and online rows not folded yet.

`docs/recovery.md` says what is kept, in which order, and what is not.
"""

from tasks.recovery.backing_up import BackupReport, back_up
from tasks.recovery.place import BackupPlace, BackupSummary, RemovedBackup
from tasks.recovery.restoring import PARTS, RestoreReport, restore
from tasks.recovery.verifying import BackupCheck, verify_backup

__all__ = [
    "PARTS",
    "BackupCheck",
    "BackupPlace",
    "BackupReport",
    "BackupSummary",
    "RemovedBackup",
    "RestoreReport",
    "back_up",
    "restore",
    "verify_backup",
]
