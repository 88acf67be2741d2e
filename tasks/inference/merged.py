"""Which files hold a run's rows now: those that its shards wrote, or files that upkeep merged from them."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.core.delta import TableFile, TableView
from tasks.core.object_store import ObjectStore
from tasks.inference.records import Merge, read_merge_records


def current_files(
    store: ObjectStore, folder: str, run_id: str, files: Sequence[TableFile], view: TableView | None
) -> tuple[TableFile, ...]:
    """The files in which the rows of `files` are, each row once, with what is recorded of them.

    A merged file stands for the files it was merged from when the table holds it, or when the table let both go
    and the merged file is still there. It must have been merged from exactly the files that the shard records
    name: a shard that was scored again since is not in it.

    Args:
        store: The pipeline's store.
        folder: Key of the table's folder.
        run_id: The run that scored them.
        files: Files that shard records of the run name, of whole source days.
        view: The table; None when there is none yet.
    """
    named = {file.path: file.sha256 for file in files}
    records = read_merge_records(store, run_id, folder) if view is not None else []
    # Newest first: of a merged file and what an erasure left of it, the latter counts.
    merges = [
        merge
        for record in sorted(records, key=lambda one: one.created_at_utc, reverse=True)
        for merge in record.merges
        if all(named.get(item.path) == item.sha256 for item in merge.inputs)
    ]
    if not merges or view is None:
        return tuple(files)
    live = {file.path for file in view.files}
    stand_ins: dict[str, TableFile] = {}

    def stand_in(merge: Merge) -> None:
        stand_ins.update(dict.fromkeys((item.path for item in merge.inputs), merge.output))

    for merge in merges:
        if merge.output.path in live:
            stand_in(merge)
    gone = {path for path in named if path not in live and path not in stand_ins}
    for merge in merges:
        inputs = {item.path for item in merge.inputs}
        if (
            inputs <= gone
            and merge.output.path in view.let_go
            and store.exists(f"{folder}/{merge.output.path}")
        ):
            stand_in(merge)
            gone -= inputs
    found = {(one := stand_ins.get(file.path, file)).path: one for file in files}
    return tuple(found.values())
