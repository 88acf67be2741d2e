"""Make a finished run visible: one Delta transaction for each table (I3)."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import Change, FileName, LiveFile, TableFile, TableView, commit_change, table_view
from tasks.core.errors import DataError, NotFound, StaleAttempt, TransientError
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.columns import NewColumns
from tasks.inference.engine import refuse_dead_letters
from tasks.inference.merged import current_files
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

_NONE: tuple[LiveFile, ...] = ()


def application_id(run_id: str) -> str:
    """The Delta application transaction id under which a run is published."""
    return f"penstock:{run_id}"


def publish(
    settings: Settings,
    spec: PipelineSpec,
    run_id: str,
    *,
    replace_newer: bool = False,
    take_back_from: Collection[str] = (),
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
            one superseded, for example after a rollback. Shards that were scored again since the run was
            published take the place of what they held.
        take_back_from: Bring a run back that these runs superseded, as long as nobody else holds its days: of days that were
            delivered anew and then as they had been before, their first run is right again.
        clock: The time.

    Raises:
        NotFound: The run was not planned, or a data file that a record names is gone; with `replace_newer` also
            when `vacuum` has removed the run's files.
        TransientError: Shards are missing: `run_plan` has to finish first.
        DataError: Too many dead letters, or the rows' columns do not fit the table: nothing was published.
        StaleAttempt: A run planned later has published these days.
        CommitOutcomeUnknown: The store failed during a commit; repeat the call.
    """
    store = open_store(settings, prefix=spec.prefix)
    marker = read_published(store, run_id)
    rivals = None if replace_newer or marker is None else frozenset(take_back_from)
    if marker is not None and rivals is not None and not (rivals and _holders(store, marker) <= rivals):
        return replace(marker, already_published=True)
    again = replace_newer or rivals is not None
    planned = read_plan(store, run_id)
    records = read_shard_records(store, run_id, [task.shard for task in planned.shards])
    if len(records) < len(planned.shards):
        raise TransientError(
            f"{len(planned.shards) - len(records)} of {len(planned.shards)} shards are not committed",
            which=f"run {run_id}",
            fix="score the run first: committed shards are skipped",
        )
    refuse_dead_letters(store, spec, planned, records)
    files = tuple(file for record in records for file in record.files)
    audit_files = tuple(file for record in records for file in record.audit_files)
    superseded: tuple[LiveFile, ...] = ()
    if files:
        view = table_view(store, PREDICTIONS)
        if view is None or view.transaction_version(application_id(run_id)) is None:
            _refuse_missing(store, PREDICTIONS, files)
            _refuse_unfit(store, files, audit_files, view)
        _publish_audit(store, run_id, audit_files, again=again)
        if planned.fingerprint.replay_of is None:
            superseded = _publish_predictions(store, planned, files, again=again, rivals=rivals)
        else:
            _publish_replay(store, planned, files, again=again)
    elif planned.fingerprint.replay_of is None:
        raise DataError("has no scored row", which=f"run {run_id}", fix="see its dead letters")
    published = _published(store, planned, records, superseded, clock)
    return _mark(store, published, overwrite=again)


@dataclass(frozen=True)
class PublishedIds:
    """Prediction ids by source day."""

    parent: dict[date, set[str]]
    replayed: dict[date, set[str]]


def published_ids(
    store: ObjectStore, run_id: str, replay_run_ids: Sequence[str], days: Collection[date]
) -> PublishedIds:
    """The prediction ids that a run and its replays scored on these source days."""
    view = table_view(store, PREDICTIONS)

    def ids(run: str) -> dict[date, set[str]]:
        found: dict[date, set[str]] = {}
        for file in current_files(store, PREDICTIONS, run, _scored_files(store, run, days), view):
            name = FileName.parse(file.path)
            assert name is not None, "shard records name files as we do"
            data = io.BytesIO(store.get(f"{PREDICTIONS}/{file.path}"))
            column = pq.read_table(data, columns=["prediction_id"]).column("prediction_id")
            found.setdefault(name.day, set()).update(column.to_pylist())
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
    scored = _scored_files(store, parent.run_id, days)
    own = {file.path for file in current_files(store, PREDICTIONS, parent.run_id, scored, view)}
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


def _scored_files(store: ObjectStore, run_id: str, days: Collection[date] | None = None) -> list[TableFile]:
    """The prediction files that a run's shard records name, of these source days or of all."""
    shards = [task.shard for task in read_plan(store, run_id).shards if days is None or task.day in days]
    return [file for record in read_shard_records(store, run_id, shards) for file in record.files]


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


def visible_rows(settings: Settings, spec: PipelineSpec) -> dict[tuple[str, date], int]:
    """(run, source day) -> rows that readers of the predictions table see; a replay's rows count for its run."""
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, PREDICTIONS)
    found: Counter[tuple[str, date]] = Counter()
    for file in view.files if view else ():
        if file.name is not None:
            found[file.name.run_id, file.name.day] += file.rows
    holders = Counter(day for _, day in found)
    roots = roots_of(store, {run for run, day in found if holders[day] > 1})  # a replay shares its day
    of_roots: Counter[tuple[str, date]] = Counter()
    for (run, day), rows in found.items():
        of_roots[roots.get(run, run), day] += rows
    return dict(of_roots)


def published_records(settings: Settings, spec: PipelineSpec, days: Sequence[date]) -> list[ShardRecord]:
    """Shard records behind the published predictions of these source days, with their profiles."""
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, PREDICTIONS)
    wanted = set(days)
    held: dict[str, set[date]] = {}
    for file in view.files if view else ():
        if file.name is not None and file.name.day in wanted:
            held.setdefault(file.name.run_id, set()).add(file.name.day)
    shards = {
        run_id: [task.shard for task in read_plan(store, run_id).shards if task.day in of]
        for run_id, of in sorted(held.items())
    }
    # A run's rows of a day come and go together, so the plan says which shards; a merged file's name does not.
    return [
        record
        for run_id, numbers in shards.items()
        for record in read_shard_records(store, run_id, numbers)
        if record.files
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
    assert view is not None
    tables = []
    for path in paths:
        file = pq.ParquetFile(pa.BufferReader(store.get(f"{PREDICTIONS}/{path}")))
        there = [name for name in columns or file.schema_arrow.names if name in file.schema_arrow.names]
        tables.append(file.read(columns=there))
    table = pa.concat_tables(tables, promote_options="default")
    for name in columns or ():
        if name not in table.column_names:  # none of these days' rows has it; the table may
            kind = view.schema.field(name).type
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table.select(list(columns)) if columns is not None else table


def _publish_audit(store: ObjectStore, run_id: str, files: tuple[TableFile, ...], *, again: bool) -> None:
    """Add the run's audit rows. Rows of earlier runs stay: what was once published must stay explainable.

    `again` also puts the rows of shards that were scored again in place of those they held before.
    """
    application = application_id(run_id)

    def decide(view: TableView) -> Change | None:
        version = view.transaction_version(application)
        if version is not None and not again:
            return None
        new, stale = files, _NONE
        if version is not None:
            new, stale = _rescored(store, AUDIT, run_id, files, view)
            # Of a date that moved to the archive, the archive has the run's rows; adding them would repeat them.
            dates = {file.event_date for file in new}
            moved = {date for date in dates if next(store.list(f"archive/audit/{date}"), None) is not None}
            new = tuple(file for file in new if file.event_date not in moved)
            if not new and not stale:
                return None
        _refuse_missing(store, AUDIT, new)
        return Change(
            add=new,
            remove=stale,
            transaction=(application, (version or 0) + 1),
            note={"penstock_run": run_id},
            widen=NewColumns.of(store, AUDIT, new).missing_in(view.schema) if new else (),
        )

    if files:
        commit_change(
            store,
            AUDIT,
            schema=lambda: NewColumns.of(store, AUDIT, files).table_schema(),
            decide=decide,
            points=("before-audit-commit", "after-audit-commit"),
        )


def _rescored(
    store: ObjectStore, folder: str, run_id: str, files: tuple[TableFile, ...], view: TableView
) -> tuple[tuple[TableFile, ...], tuple[LiveFile, ...]]:
    """(files of the run that the table lacks, files of the run that it holds and no shard record stands for)."""
    current = current_files(store, folder, run_id, files, view)
    own, live = {file.path for file in current}, {file.path for file in view.files}
    return (
        tuple(file for file in current if file.path not in live),
        tuple(
            file for file in view.files if file.name and file.name.run_id == run_id and file.path not in own
        ),
    )


def _publish_predictions(
    store: ObjectStore,
    planned: Plan,
    files: tuple[TableFile, ...],
    *,
    again: bool,
    rivals: frozenset[str] | None,
) -> tuple[LiveFile, ...]:
    """Add the run's files and remove those they supersede; returns the removed ones.

    Args:
        again: Also when they were there before, and in the place of runs that were planned later.
        rivals: With `again`, only these runs' files; None: anybody's.
    """
    application = application_id(planned.run_id)
    families = {planned.run_id: list(files)}
    if again:
        families |= _published_replays(store, planned)
    days = set(planned.days)
    removed: tuple[LiveFile, ...] = ()

    def decide(view: TableView) -> Change | None:
        nonlocal removed
        version = view.transaction_version(application)
        if version is not None and not again:
            return None
        wanted = tuple(
            file
            for run_id, scored in families.items()
            for file in current_files(store, PREDICTIONS, run_id, scored, view)
        )
        own, live = {file.path for file in wanted}, {file.path for file in view.files}
        new = tuple(file for file in wanted if file.path not in live)
        if version is not None and not new:
            return None
        others = tuple(
            file
            for file in view.files
            if file.path not in own and file.name is not None and file.name.day in days
        )
        if rivals is not None and not _roots(store, others) <= rivals:
            return None  # somebody else has published these days meanwhile
        if again:
            _refuse_missing(store, PREDICTIONS, new)
        else:
            _refuse_newer(store, planned, others)
        removed = others
        runs = sorted({file.name.run_id for file in others if file.name})
        return Change(
            add=new,
            remove=others,
            transaction=(application, (version or 0) + 1),
            note={
                "penstock_run": planned.run_id,
                "penstock_superseded_runs": ",".join(runs),
                "penstock_superseded_files": str(len(others)),
            },
            widen=columns().missing_in(view.schema),
        )

    @cache  # files are never changed, and reading one of them once is enough
    def columns() -> NewColumns:
        view = table_view(store, PREDICTIONS)
        current = current_files(store, PREDICTIONS, planned.run_id, files, view)
        return NewColumns.of(store, PREDICTIONS, current)

    commit_change(
        store,
        PREDICTIONS,
        schema=lambda: columns().table_schema(),
        decide=decide,
        points=("before-delta-commit", "after-delta-commit"),
    )
    return removed


def superseding_runs(settings: Settings, spec: PipelineSpec, run_id: str) -> tuple[str, ...]:
    """Runs that hold days of a published run in its place; none while it is not published, or holds them all."""
    store = open_store(settings, prefix=spec.prefix)
    marker = read_published(store, run_id)
    return () if marker is None else tuple(sorted(_holders(store, marker)))


def _holders(store: ObjectStore, marker: Published) -> frozenset[str]:
    """The runs, without this one, that hold its days now."""
    view = table_view(store, PREDICTIONS)
    days = set(marker.days)
    files = [file for file in view.files if file.name and file.name.day in days] if view else []
    return _roots(store, files) - {marker.run_id}


def _roots(store: ObjectStore, files: Collection[LiveFile]) -> frozenset[str]:
    """Whose files they are; a replay's are those of the run that it repairs."""
    return frozenset(roots_of(store, {file.name.run_id for file in files if file.name}).values())


def roots_of(store: ObjectStore, run_ids: Collection[str]) -> dict[str, str]:
    """For each run itself, or the run that it replays."""

    def root(run_id: str) -> str:
        try:
            return read_plan(store, run_id).fingerprint.replay_of or run_id
        except NotFound:
            return run_id

    return {run_id: root(run_id) for run_id in sorted(run_ids)}


def _publish_replay(store: ObjectStore, planned: Plan, files: tuple[TableFile, ...], *, again: bool) -> None:
    """Add a replay's files beside those of the run that it repairs, as long as that run holds the days.

    `again` also puts the files of shards that were scored again in place of those they had before.
    """
    application = application_id(planned.run_id)
    parent = read_plan(store, planned.fingerprint.replay_of or "")

    def decide(view: TableView) -> Change | None:
        version = view.transaction_version(application)
        if version is not None and not again:
            return None
        new, stale = files, _NONE
        if version is not None:
            new, stale = _rescored(store, PREDICTIONS, planned.run_id, files, view)
            if not new and not stale:
                return None
        refuse_superseded(store, view, parent, planned.days)
        if version is not None:
            _refuse_missing(store, PREDICTIONS, new)
        return Change(
            add=new,
            remove=stale,
            transaction=(application, (version or 0) + 1),
            note={"penstock_run": planned.run_id, "penstock_replay_of": parent.run_id},
            widen=NewColumns.of(store, PREDICTIONS, new).missing_in(view.schema) if new else (),
        )

    commit_change(
        store,
        PREDICTIONS,
        schema=lambda: NewColumns.of(store, PREDICTIONS, files).table_schema(),
        decide=decide,
        points=("before-delta-commit", "after-delta-commit"),
    )


def _published_replays(store: ObjectStore, planned: Plan) -> dict[str, list[TableFile]]:
    """Files of the replays of a run that were published, by run: what comes back with it."""
    view = table_view(store, PREDICTIONS)
    # The transaction, not the marker: a crash may have come between the two.
    return {
        item.run_id: _scored_files(store, item.run_id)
        for item in read_replays(store, planned.run_id)
        if view is not None and view.transaction_version(application_id(item.run_id)) is not None
    }


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
    for run in sorted(_roots(store, others)):
        try:
            other = read_plan(store, run)
        except NotFound:
            continue
        if _age_order(other) > _age_order(planned):
            raise StaleAttempt(
                f"was planned at {planned.created_at_utc}; run {run}, planned at {other.created_at_utc} with "
                f"model version {other.fingerprint.model_version}, has published the same days since",
                which=f"run {planned.run_id}",
                fix="nothing to do, unless these rows are wanted back: then publish with replace_newer",
            )


def _age_order(planned: Plan) -> tuple[datetime, int, str]:
    """Sorts plans from old to new, and never calls two of them equal.

    Times have milliseconds, in which several plans fit. With a tie each of two runs would take the other's place, and
    the slower publisher would decide which one stays.
    """
    moment = datetime.fromisoformat(planned.created_at_utc)
    return moment, planned.fingerprint.model_version, planned.run_id


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
            fix="restore them, or delete those shards' records and score them again; what vacuum removed after "
            "a later run took its place has to be scored again",
        )


def _refuse_unfit(
    store: ObjectStore,
    files: tuple[TableFile, ...],
    audit_files: tuple[TableFile, ...],
    predictions: TableView | None,
) -> None:
    """Look at the columns for both tables before either is touched: audit rows are published first."""
    views = {PREDICTIONS: predictions, AUDIT: table_view(store, AUDIT)}
    for folder, some in ((PREDICTIONS, files), (AUDIT, audit_files)):
        if some:
            columns, view = NewColumns.of(store, folder, some), views[folder]
            columns.missing_in(view.schema if view else columns.table_schema())
