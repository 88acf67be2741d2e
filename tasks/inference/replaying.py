"""Score the dead letters of a published run again, once their cause is gone (docs/inference.md, "Replay").

Each replay is a run of its own, with the pinned model of the run it repairs, over a small snapshot of the rows
that failed. `runs/<run>/replays/<n>.json`, created exclusively, decides what replay n scores; n+1 is created only
after n is published, from the rows that are still missing then. So no row is in two replays that both score it.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import table_view
from tasks.core.errors import DataError, StaleAttempt, TransientError
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.partitions import load_snapshot, save_snapshot, table_schema, write_partition
from tasks.core.records import JsonRecord, PartitionFile, Snapshot
from tasks.core.rows import prediction_ids
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.engine import run_plan
from tasks.inference.planning import check_unchanged, create_plan, cut_shards, run_id_of
from tasks.inference.publishing import application_id, publish, published_ids, refuse_superseded
from tasks.inference.reading import PartitionReader
from tasks.inference.records import (
    PREDICTIONS,
    Fingerprint,
    Plan,
    ReplayRecord,
    ShardRecord,
    read_plan,
    read_published,
    read_replays,
    read_shard_records,
    replay_key,
)
from tasks.inference.shard import DEFAULT_MODEL
from tasks.inference.width import Width

log = logging.getLogger(__name__)

_NOTE = "penstock_"


@dataclass(frozen=True)
class Replayed(JsonRecord):
    """What one call of `replay` did."""

    run_id: str
    """The run whose dead letters were replayed."""
    replay_run_id: str | None
    """The follow-up run; None when there was nothing to score."""
    replay: int
    """Number of that replay, from 1; 0 when there was nothing to score."""
    dead_letters: int
    """Of the run, before any replay."""
    rows_scored: int
    """Added to the predictions table by this replay."""
    dead_letters_left: int
    """After it, all replays counted."""
    repeated: int
    """Dead letters left out because their prediction id is in the table, or occurs twice among them."""
    unmatched: int
    """Dead letters left out because they have no prediction id, or the corrected delivery lacks theirs."""
    table_version: int | None


@dataclass(frozen=True)
class _Letters:
    """Dead letters of one source day: n rows, and their prediction ids (None: the row has no identity)."""

    day: date
    rows: pa.Table
    ids: list[str | None]


def replay(
    settings: Settings,
    spec: PipelineSpec,
    run_id: str,
    *,
    corrected: Snapshot | None = None,
    local: bool = False,
    audit_table: str | None,
    load_model: str = DEFAULT_MODEL,
    width_of: Callable[[str], Width] | None = None,
    clock: Clock = utc_now,
) -> Replayed:
    """Score a published run's dead letters again and add those that can be scored now. Safe at any moment.

    A replay that was interrupted is finished first; when it was the one asked for, that is all. Rows that fail
    again stay dead letters and may be replayed again. A replay with nothing to score changes nothing.

    Args:
        settings: This installation.
        spec: The pipeline.
        run_id: A published run, not a replay.
        corrected: Take the rows from this scoring snapshot, by prediction id: the source was delivered again.
            Without it the rows are scored as they were: something else was repaired.
        local: Score in this process, without Ray.
        audit_table: As in `run_plan`.
        load_model: As in `run_plan`.
        width_of: The `width` of the follow-up run, by its id.
        clock: The time.

    Raises:
        NotFound: The run was not planned.
        DataError: The run is a replay itself, or `corrected` is no scoring snapshot of this pipeline or repeats
            a prediction id.
        TransientError: The run is not published yet.
        StaleAttempt: Another run holds the days now.
        PenstockError: As of `run_plan` and `publish`; calling again goes on.
    """
    store = open_store(settings, prefix=spec.prefix)
    parent = read_plan(store, run_id)
    _refuse_unfit(store, spec, parent, corrected)
    arguments = (settings, spec, store, parent, local, audit_table, load_model, width_of, clock)
    wanted = corrected.snapshot_id if corrected is not None else None
    while True:
        replays = read_replays(store, run_id)
        if replays and read_published(store, replays[-1].run_id) is None:
            log.info("Replay %d of run %s was interrupted; finishing it.", len(replays), run_id)
            found = _finish(replays[-1], *arguments)
            if replays[-1].corrected_snapshot_id == wanted:
                return found
            continue
        made = _choose(settings, spec, store, parent, replays, corrected, clock)
        if not made.rows:
            log.info("Run %s: no dead letter is left that can be replayed.", run_id)
            return _replayed(store, made, None)
        reached("before-replay-record")
        try:
            store.put_exclusive(replay_key(run_id, made.generation), canonical_json(made.to_json()))
        except AlreadyExists:  # another replay was faster: finish its work, then look again
            continue
        reached("after-replay-record")
        return _finish(made, *arguments)


def _refuse_unfit(store: ObjectStore, spec: PipelineSpec, parent: Plan, corrected: Snapshot | None) -> None:
    run = f"run {parent.run_id}"
    if parent.fingerprint.replay_of is not None:
        raise DataError(
            f"is replay {parent.fingerprint.replay} of run {parent.fingerprint.replay_of}",
            which=run,
            fix=f"replay run {parent.fingerprint.replay_of}: it includes the rows that failed again",
        )
    check_unchanged(spec, parent)
    if corrected is not None and (corrected.pipeline != spec.name or corrected.kind != "scoring"):
        raise DataError(
            f"is a {corrected.kind} snapshot of pipeline {corrected.pipeline}",
            which=f"snapshot {corrected.snapshot_id}",
            fix=f"take a scoring snapshot of pipeline {spec.name}",
        )
    view = table_view(store, PREDICTIONS)
    if view is None or view.transaction_version(application_id(parent.run_id)) is None:
        raise TransientError(
            "is not published yet",
            which=run,
            fix="resume it first; if too many dead letters keep it from being published, raise "
            "inference.max_dead_letter_share for that, or correct the source and start a new run",
        )


def _choose(
    settings: Settings,
    spec: PipelineSpec,
    store: ObjectStore,
    parent: Plan,
    replays: list[ReplayRecord],
    corrected: Snapshot | None,
    clock: Clock,
) -> ReplayRecord:
    """What the next replay scores. Writes its rows and their snapshot, which nothing refers to yet."""
    letters = _still_held(store, parent, _letters(store, spec, parent))
    days = {item.day for item in letters}
    there = published_ids(store, parent.run_id, [item.run_id for item in replays], days)
    repeated = unmatched = 0
    partitions: list[PartitionFile] = []
    schema: tuple[tuple[str, str], ...] = ()
    for item in letters:
        scored_before = there.replayed.get(item.day, set())
        counts = Counter(one for one in item.ids if one is not None)
        open_ids = {one for one in counts if one not in scored_before}
        good = {one for one in open_ids if counts[one] == 1 and one not in there.parent.get(item.day, set())}
        repeated += sum(counts[one] for one in open_ids - good)
        unmatched += item.ids.count(None)
        if corrected is None:
            keep = [index for index, one in enumerate(item.ids) if one in good]
            rows = item.rows.take(pa.array(keep, pa.int64()))
        else:
            rows = _corrected(settings, spec, store, corrected, item.day, good)
            unmatched += len(good) - rows.num_rows
        if rows.num_rows:
            order = pc.sort_indices(pa.array(prediction_ids(rows, spec)))
            rows = rows.take(order)
            schema = table_schema(rows)
            partitions.append(write_partition(store, item.day, rows))
    generation = len(replays) + 1
    made = ReplayRecord(
        replay_of=parent.run_id,
        generation=generation,
        run_id="",
        snapshot_id="",
        corrected_snapshot_id=corrected.snapshot_id if corrected is not None else None,
        rows=sum(partition.rows for partition in partitions),
        repeated=repeated,
        unmatched=unmatched,
        created_at_utc=iso_utc(clock()),
    )
    if not partitions:
        return replace(made, generation=0)
    identity = Snapshot.identity(spec.name, "scoring", schema, tuple(partitions))
    snapshot = save_snapshot(
        store,
        Snapshot(
            snapshot_id=identity,
            pipeline=spec.name,
            kind="scoring",
            schema=schema,
            partitions=tuple(partitions),
            created_at_utc=made.created_at_utc,
            parent_snapshot_id=made.corrected_snapshot_id or parent.fingerprint.snapshot_id,
        ),
    )
    named = replace(made, snapshot_id=snapshot.snapshot_id)
    return replace(named, run_id=run_id_of(_fingerprint(parent, named)))


def _finish(
    made: ReplayRecord,
    settings: Settings,
    spec: PipelineSpec,
    store: ObjectStore,
    parent: Plan,
    local: bool,
    audit_table: str | None,
    load_model: str,
    width_of: Callable[[str], Width] | None,
    clock: Clock,
) -> Replayed:
    """Plan, score and publish a replay that was decided: each part finds what is done already."""
    snapshot = load_snapshot(store, made.snapshot_id)
    shards = cut_shards(snapshot.partitions, spec.inference.shard_rows, spec.inference.shard_bytes)
    fingerprint = _fingerprint(parent, made)
    create_plan(store, Plan(made.run_id, fingerprint, snapshot.partitions, shards, iso_utc(clock())))
    run_plan(
        settings,
        spec,
        made.run_id,
        local=local,
        audit_table=audit_table,
        load_model=load_model,
        width=width_of(made.run_id) if width_of is not None else None,
        clock=clock,
    )
    published = publish(settings, spec, made.run_id, clock=clock)
    return _replayed(store, made, published.table_version if published.files else None)


def _fingerprint(parent: Plan, made: ReplayRecord) -> Fingerprint:
    """The parent's, with other rows and the parent's name: the same model, code and configuration."""
    return replace(
        parent.fingerprint,
        snapshot_id=made.snapshot_id,
        replay_of=parent.run_id,
        replay=made.generation,
        exposed=None,  # the champion failed on these rows, so that none of them was exposed
    )


def _replayed(store: ObjectStore, made: ReplayRecord, table_version: int | None) -> Replayed:
    parent = read_plan(store, made.replay_of)
    records = read_shard_records(store, parent.run_id, [task.shard for task in parent.shards])
    dead = sum(record.dead_letters for record in records)
    markers = {
        item.run_id: marker
        for item in read_replays(store, parent.run_id)
        if (marker := read_published(store, item.run_id)) is not None
    }
    own = markers.get(made.run_id)
    return Replayed(
        run_id=parent.run_id,
        replay_run_id=made.run_id or None,
        replay=made.generation,
        dead_letters=dead,
        rows_scored=own.rows if own else 0,
        dead_letters_left=dead - sum(marker.rows for marker in markers.values()),
        repeated=made.repeated,
        unmatched=made.unmatched,
        table_version=table_version,
    )


def _letters(store: ObjectStore, spec: PipelineSpec, parent: Plan) -> list[_Letters]:
    """The run's dead letters by source day, without the notes on why they failed."""
    by_day: dict[date, list[pa.Table]] = {}
    records: list[ShardRecord] = read_shard_records(store, parent.run_id, [t.shard for t in parent.shards])
    for record in records:
        if record.dead_letter_key:
            table = pq.read_table(io.BytesIO(store.get(record.dead_letter_key)))
            notes = [name for name in table.column_names if name.startswith(_NOTE)]
            by_day.setdefault(record.day, []).append(table.drop_columns(notes))
    tables = {day: pa.concat_tables(found) for day, found in sorted(by_day.items())}
    return [_Letters(day, table, _ids(table, spec)) for day, table in tables.items()]


def _still_held(store: ObjectStore, parent: Plan, letters: list[_Letters]) -> list[_Letters]:
    """Those of days that the run still holds. Raises `StaleAttempt` when it holds none of them."""
    view = table_view(store, PREDICTIONS)
    assert view is not None, "the run is published"
    held: list[_Letters] = []
    refusal: StaleAttempt | None = None
    for item in letters:
        try:
            refuse_superseded(store, view, parent, {item.day})
            held.append(item)
        except StaleAttempt as error:
            refusal = error
    if refusal is not None and not held:
        raise refusal
    return held


def _ids(rows: pa.Table, spec: PipelineSpec) -> list[str | None]:
    """The prediction id of each row; None for a row that has none."""
    found: list[str | None] = []
    for index in range(rows.num_rows):
        try:
            found += prediction_ids(rows.slice(index, 1), spec)
        except DataError:
            found.append(None)
    return found


def _corrected(
    settings: Settings,
    spec: PipelineSpec,
    store: ObjectStore,
    corrected: Snapshot,
    day: date,
    wanted: set[str],
) -> pa.Table:
    """The rows of `corrected` on `day` with these prediction ids, read a row group at a time."""
    reader = PartitionReader(store, settings.cache_dir)
    kept: list[pa.Table] = []
    for partition in corrected.partitions:
        if partition.day != day or not wanted:
            continue
        for group in range(len(partition.row_group_rows)):
            rows = _with_identity(reader.read(partition, [group]), spec)
            ids = prediction_ids(rows, spec)
            kept.append(rows.take(pa.array([i for i, one in enumerate(ids) if one in wanted], pa.int64())))
    if not kept:
        return pa.table({})
    rows = pa.concat_tables(kept)
    twice = [one for one, count in Counter(prediction_ids(rows, spec)).items() if count > 1]
    if twice:
        raise DataError(
            f"holds {len(twice)} of the rows to replay more than once, for example {twice[0]}",
            which=f"snapshot {corrected.snapshot_id}",
            fix="remove the repeated rows from the source and take the snapshot again",
        )
    return rows


def _with_identity(rows: pa.Table, spec: PipelineSpec) -> pa.Table:
    """Without rows that lack a part of their identity: no dead letter can be matched to them."""
    for name in (*spec.entity_key, spec.event_time):
        rows = rows.filter(pc.is_valid(rows.column(name)))
    return rows
