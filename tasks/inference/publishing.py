"""Make a finished run visible: one Delta transaction for each table (I3)."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import Change, LiveFile, TableFile, TableView, commit_change, table_view
from tasks.core.errors import DataError, NotFound, StaleAttempt, TransientError
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.engine import refuse_dead_letters
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    Plan,
    Published,
    ShardRecord,
    published_key,
    read_plan,
    read_published,
    read_replays,
    read_shard_records,
)

log = logging.getLogger(__name__)


def application_id(run_id: str) -> str:
    """The Delta application transaction id under which a run is published."""
    return f"penstock:{run_id}"


def publish(
    settings: Settings,
    spec: PipelineSpec,
    run_id: str,
    *,
    replace_newer: bool = False,
    clock: Clock = utc_now,
) -> Published:
    """Publish a run whose shards are all committed: its rows appear at once, those they replace vanish.

    Audit rows are added first, in a transaction of their own, so that no prediction is ever visible without
    its audit row. Then one transaction adds the prediction files and removes the files of other runs for the
    same source days. Repeating the call finishes what a crash left, and otherwise does nothing.

    Args:
        settings: This installation.
        spec: The pipeline.
        run_id: A run that `run_plan` finished.
        replace_newer: Also replace rows of runs that were planned later, and bring back a run that another
            one superseded, for example after a rollback.
        clock: The time.

    Raises:
        NotFound: The run was not planned, or a data file that a record names is gone.
        TransientError: Shards are missing: `run_plan` has to finish first.
        DataError: Too many dead letters, or the table's columns have other types.
        StaleAttempt: A run planned later has published these days.
        CommitOutcomeUnknown: The store failed during a commit; repeat the call.
    """
    store = open_store(settings, prefix=spec.prefix)
    marker = read_published(store, run_id)
    if marker is not None and not replace_newer:
        return replace(marker, already_published=True)
    planned = read_plan(store, run_id)
    records = read_shard_records(store, run_id, [task.shard for task in planned.shards])
    if len(records) < len(planned.shards):
        raise TransientError(
            f"{len(planned.shards) - len(records)} of {len(planned.shards)} shards are not committed",
            which=f"run {run_id}",
            fix="score the run first: committed shards are skipped",
        )
    refuse_dead_letters(spec, planned, records)
    files = tuple(file for record in records for file in record.files)
    audit_files = tuple(file for record in records for file in record.audit_files)
    superseded: tuple[LiveFile, ...] = ()
    if files:
        _refuse_missing(store, PREDICTIONS, files)
        _publish_audit(store, run_id, audit_files)
        if planned.fingerprint.replay_of is None:
            superseded = _publish_predictions(store, planned, files, replace_newer=replace_newer)
        else:
            _publish_replay(store, planned, files)
    elif planned.fingerprint.replay_of is None:
        raise DataError("has no scored row", which=f"run {run_id}", fix="see its dead letters")
    published = _published(store, planned, records, superseded, clock)
    return _mark(store, published, overwrite=replace_newer)


@dataclass(frozen=True)
class PublishedIds:
    """Prediction ids by source day."""

    parent: dict[date, set[str]]
    replayed: dict[date, set[str]]


def published_ids(
    store: ObjectStore, run_id: str, replay_run_ids: Sequence[str], days: Collection[date]
) -> PublishedIds:
    """The prediction ids that a run and its replays scored on these source days."""

    def ids(run: str) -> dict[date, set[str]]:
        found: dict[date, set[str]] = {}
        shards = [task.shard for task in read_plan(store, run).shards if task.day in days]
        for record in read_shard_records(store, run, shards):
            for file in record.files:
                data = io.BytesIO(store.get(f"{PREDICTIONS}/{file.path}"))
                column = pq.read_table(data, columns=["prediction_id"]).column("prediction_id")
                found.setdefault(record.day, set()).update(column.to_pylist())
        return found

    replayed: dict[date, set[str]] = {}
    for run in replay_run_ids:
        for day, some in ids(run).items():
            replayed.setdefault(day, set()).update(some)
    return PublishedIds(ids(run_id), replayed)


def refuse_superseded(store: ObjectStore, view: TableView, parent: Plan, days: Collection[date]) -> None:
    """Refuse to repair days that another run holds now.

    Raises:
        StaleAttempt: The table lacks files of `parent` of these days, or holds files of another run on them.
    """
    family = {parent.run_id, *(item.run_id for item in read_replays(store, parent.run_id))}
    shards = [task.shard for task in parent.shards if task.day in days]
    own = {f.path for record in read_shard_records(store, parent.run_id, shards) for f in record.files}
    names = [file.name for file in view.files]
    others = sorted(
        {name.run_id for name in names if name and name.day in days and name.run_id not in family}
    )
    if others or not own <= {file.path for file in view.files}:
        by = f"superseded by run {', '.join(others)}" if others else "no longer in the table"
        raise StaleAttempt(
            f"is {by} on days that are to be repaired",
            which=f"run {parent.run_id}",
            fix="replay the run that holds these days now, or publish this one again with replace_newer",
        )


def published_days(settings: Settings, spec: PipelineSpec) -> dict[date, str]:
    """Source days whose predictions are published, with the run that holds them now; replays are part of it."""
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, PREDICTIONS)
    names = [file.name for file in view.files] if view else []
    holders: dict[date, set[str]] = {}
    for name in names:
        if name is not None:
            holders.setdefault(name.day, set()).add(name.run_id)
    roots = roots_of(store, {run for runs in holders.values() if len(runs) > 1 for run in runs})
    return {day: min(roots.get(run, run) for run in runs) for day, runs in sorted(holders.items())}


def published_records(settings: Settings, spec: PipelineSpec, days: Sequence[date]) -> list[ShardRecord]:
    """Shard records behind the published predictions of these source days, with their profiles."""
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, PREDICTIONS)
    wanted = set(days)
    shards: dict[str, set[int]] = {}
    for file in view.files if view else ():
        if file.name is not None and file.name.day in wanted:
            shards.setdefault(file.name.run_id, set()).add(file.name.shard)
    return [
        record
        for run_id, numbers in sorted(shards.items())
        for record in read_shard_records(store, run_id, sorted(numbers))
    ]


def read_predictions(
    settings: Settings, spec: PipelineSpec, days: Sequence[date], columns: Sequence[str] | None = None
) -> pa.Table:
    """Published predictions of these source days, in order of prediction id within each file.

    Args:
        settings: This installation.
        spec: The pipeline.
        days: Source days (local days of the pipeline's time zone).
        columns: Columns of the predictions table, without `event_date`; all when None.

    Raises:
        NotFound: Nothing of these days is published.
    """
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, PREDICTIONS)
    wanted = set(days)
    paths = [file.path for file in (view.files if view else ()) if file.name and file.name.day in wanted]
    if not paths:
        raise NotFound(
            "no predictions of these days are published",
            which=f"pipeline {spec.name}, {min(wanted, default='no day')} to {max(wanted, default='no day')}",
            fix="score and publish these days first",
        )
    tables = []
    for path in paths:
        data = io.BytesIO(store.get(f"{PREDICTIONS}/{path}"))
        tables.append(pq.read_table(data, columns=list(columns) if columns is not None else None))
    return pa.concat_tables(tables)


def _publish_audit(store: ObjectStore, run_id: str, files: tuple[TableFile, ...]) -> None:
    """Add the run's audit rows. Rows of earlier runs stay: what was once published must stay explainable."""
    application = application_id(run_id)

    def decide(view: TableView) -> Change | None:
        if view.transaction_version(application) is not None:
            return None
        _refuse_missing(store, AUDIT, files)
        _refuse_other_types(store, AUDIT, files, view)
        return Change(add=files, transaction=(application, 1), note={"penstock_run": run_id})

    if files:
        commit_change(
            store,
            AUDIT,
            schema=_schema_of(store, AUDIT, files),
            decide=decide,
            points=("before-audit-commit", "after-audit-commit"),
        )


def _publish_predictions(
    store: ObjectStore, planned: Plan, files: tuple[TableFile, ...], *, replace_newer: bool
) -> tuple[LiveFile, ...]:
    """Add the run's files and remove those they supersede; returns the removed ones."""
    application = application_id(planned.run_id)
    if replace_newer:
        repaired = _published_replays(store, planned)
        _refuse_missing(store, PREDICTIONS, repaired)
        files = (*files, *repaired)
    own = {file.path for file in files}
    days = set(planned.days)
    removed: tuple[LiveFile, ...] = ()

    def decide(view: TableView) -> Change | None:
        nonlocal removed
        version = view.transaction_version(application)
        live = {file.path for file in view.files}
        if version is not None and (not replace_newer or own <= live):
            return None
        others = tuple(
            file
            for file in view.files
            if file.path not in own and file.name is not None and file.name.day in days
        )
        if not replace_newer:
            _refuse_newer(store, planned, others)
        _refuse_other_types(store, PREDICTIONS, files, view)
        removed = others
        runs = sorted({file.name.run_id for file in others if file.name})
        return Change(
            add=tuple(file for file in files if file.path not in live),
            remove=others,
            transaction=(application, (version or 0) + 1),
            note={
                "penstock_run": planned.run_id,
                "penstock_superseded_runs": ",".join(runs),
                "penstock_superseded_files": str(len(others)),
            },
        )

    commit_change(
        store,
        PREDICTIONS,
        schema=_schema_of(store, PREDICTIONS, files),
        decide=decide,
        points=("before-delta-commit", "after-delta-commit"),
    )
    return removed


def roots_of(store: ObjectStore, run_ids: Collection[str]) -> dict[str, str]:
    """For each run itself, or the run that it replays."""

    def root(run_id: str) -> str:
        try:
            return read_plan(store, run_id).fingerprint.replay_of or run_id
        except NotFound:
            return run_id

    return {run_id: root(run_id) for run_id in sorted(run_ids)}


def _publish_replay(store: ObjectStore, planned: Plan, files: tuple[TableFile, ...]) -> None:
    """Add a replay's files beside those of the run that it repairs, as long as that run holds the days."""
    application = application_id(planned.run_id)
    parent = read_plan(store, planned.fingerprint.replay_of or "")

    def decide(view: TableView) -> Change | None:
        if view.transaction_version(application) is not None:
            return None
        refuse_superseded(store, view, parent, planned.days)
        _refuse_other_types(store, PREDICTIONS, files, view)
        note = {"penstock_run": planned.run_id, "penstock_replay_of": parent.run_id}
        return Change(add=files, transaction=(application, 1), note=note)

    commit_change(
        store,
        PREDICTIONS,
        schema=_schema_of(store, PREDICTIONS, files),
        decide=decide,
        points=("before-delta-commit", "after-delta-commit"),
    )


def _published_replays(store: ObjectStore, planned: Plan) -> tuple[TableFile, ...]:
    """Files of the replays of a run that were published: what comes back with it."""
    files: list[TableFile] = []
    view = table_view(store, PREDICTIONS)
    for item in read_replays(store, planned.run_id):
        # The transaction, not the marker: a crash may have come between the two.
        if view is not None and view.transaction_version(application_id(item.run_id)) is not None:
            shards = [task.shard for task in read_plan(store, item.run_id).shards]
            files += [f for record in read_shard_records(store, item.run_id, shards) for f in record.files]
    return tuple(files)


def _published(
    store: ObjectStore, planned: Plan, records: list[ShardRecord], removed: tuple[LiveFile, ...], clock: Clock
) -> Published:
    view = table_view(store, PREDICTIONS)
    note = view.commit_note("penstock_run", planned.run_id) if view else None
    # The commit's own note, not `removed`: after a crash this call did not make the commit.
    runs = (note or {}).get("penstock_superseded_runs", "")
    count = (note or {}).get("penstock_superseded_files", str(len(removed)))
    return Published(
        run_id=planned.run_id,
        rows=sum(record.rows for record in records),
        files=sum(len(record.files) for record in records),
        audit_files=sum(len(record.audit_files) for record in records),
        days=planned.days,
        superseded_runs=tuple(run for run in runs.split(",") if run),
        superseded_files=int(count),
        replay_of=planned.fingerprint.replay_of,
        dead_letters=sum(record.dead_letters for record in records),
        table_version=int((note or {}).get("version", view.version if view else 0)),
        published_at_utc=iso_utc(clock()),
    )


def _mark(store: ObjectStore, published: Published, *, overwrite: bool) -> Published:
    key, data = published_key(published.run_id), canonical_json(published.to_json())
    if overwrite:
        store.put(key, data)
    else:
        try:
            store.put_exclusive(key, data)
        except AlreadyExists:  # another publisher of this run was faster
            found = read_published(store, published.run_id)
            return replace(found or published, already_published=True)
    reached("after-published-marker")
    log.info(
        "Published run %s: %s rows in %d files, table version %d; %d files of earlier runs were replaced.",
        published.run_id,
        f"{published.rows:,}",
        published.files,
        published.table_version,
        published.superseded_files,
    )
    return published


def _refuse_newer(store: ObjectStore, planned: Plan, others: tuple[LiveFile, ...]) -> None:
    # A replay is as old as the run that it repairs: it must not outlive that run's successor.
    roots = roots_of(store, {file.name.run_id for file in others if file.name})
    for run in sorted(set(roots.values())):
        try:
            other = read_plan(store, run)
        except NotFound:
            continue
        if other.created_at_utc > planned.created_at_utc:
            raise StaleAttempt(
                f"was planned at {planned.created_at_utc}; run {run}, planned at {other.created_at_utc} with "
                f"model version {other.fingerprint.model_version}, has published the same days since",
                which=f"run {planned.run_id}",
                fix="nothing to do, unless these rows are wanted back: then publish with replace_newer",
            )


def _refuse_missing(store: ObjectStore, folder: str, files: tuple[TableFile, ...]) -> None:
    """A file that is gone would break every reader of the table: look before adding, one listing a date."""
    dates = sorted({file.event_date for file in files})
    there = {
        info.key.removeprefix(f"{folder}/"): info.size_bytes
        for event_date in dates
        for info in store.list(f"{folder}/event_date={event_date}")
    }
    bad = [file.path for file in files if there.get(file.path) != file.size_bytes]
    if bad:
        raise NotFound(
            f"{len(bad)} data files that shard records name are gone or have another size",
            which=store.url(f"{folder}/{bad[0]}"),
            fix="restore them, or delete those shards' records and score them again",
        )


def _schema_of(store: ObjectStore, folder: str, files: tuple[TableFile, ...]) -> Callable[[], pa.Schema]:
    def schema() -> pa.Schema:
        with store.open(f"{folder}/{files[0].path}") as file:
            found = pq.read_schema(file).remove_metadata()
        at = found.get_field_index("event_time") + 1
        return found.insert(at, pa.field("event_date", pa.date32()))

    return schema


def _refuse_other_types(
    store: ObjectStore, folder: str, files: tuple[TableFile, ...], view: TableView
) -> None:
    table, new = view.schema, _schema_of(store, folder, files)()
    kinds = {field.name: field.type for field in table}
    bad = [
        f"{field.name} ({field.type}, in the table {kinds.get(field.name, 'absent')})"
        for field in new
        if not kinds.get(field.name, pa.null()).equals(field.type)
    ]
    if bad:
        raise DataError(
            f"the new rows' columns do not fit the table: {', '.join(bad)}",
            which=store.url(folder),
            fix="give the entity key the types it had, or write to a pipeline of another name",
        )
