"""What the Delta tables of a backup need, told from the logs in the backup alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tasks.recovery.cut import LOG_ENTRY
from tasks.recovery.manifest import KeptObject, Manifest
from tasks.recovery.place import BackupPlace

_SHOWN = 5


def table_problems(place: BackupPlace, manifest: Manifest, scratch: Path) -> Iterator[str]:
    """Files that a table holds at its version and the backup lacks, and logs that cannot be read."""
    there = {kept.key: kept for kept in manifest.objects}
    for table, version in manifest.tables.items():
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            log = Path(folder) / "_delta_log"
            log.mkdir()
            for kept in manifest.objects:
                entry = LOG_ENTRY.match(kept.key)
                if entry and entry["table"] == table:
                    place.fetch(kept, log / kept.key.rsplit("/", 1)[-1])
            yield from _missing(Path(folder), table, version, there)


def _missing(folder: Path, table: str, version: int, there: dict[str, KeptObject]) -> Iterator[str]:
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        opened = DeltaTable(str(folder))
        found = pa.table(opened.get_add_actions(flatten=True))
    except (DeltaError, OSError) as error:
        yield f"{table}: its log cannot be read: {' '.join(str(error).split())[:300]}"
        return
    if opened.version() != version:
        yield f"{table}: its log ends at version {opened.version()}, and {version} was kept"
    lost = []
    for path, size in zip(found["path"].to_pylist(), found["size_bytes"].to_pylist(), strict=True):
        kept = there.get(f"{table}/{unquote(path)}")
        if kept is None:
            lost.append(f"{table}: {path} is not in the backup")
        elif kept.size_bytes != size:
            lost.append(f"{table}: {path} has {kept.size_bytes:,} bytes, and the table says {size:,}")
    yield from lost[:_SHOWN]
    if len(lost) > _SHOWN:
        yield f"{table}: and {len(lost) - _SHOWN:,} more files"
