"""Erase an entity: its rows in every tier, and in the predictions table, become tombstones (docs/audit.md).

The request is recorded first, then every file that holds the entity is replaced by one that does not, then what came
of it is recorded. Each part finds what an earlier call has done, so a call that died is finished by the next one.
Dates with a hold are left alone; `complete_erasures` takes them up after the release.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.audit.archive import ArchivedDate, archived_date, archived_dates, data_key, has_moved_on, record
from tasks.audit.cold import COLD_FORMAT, EXPLANATION, check_copy, cold_marks, cold_rows, encode
from tasks.audit.reader import forget_reader
from tasks.audit.rows import AUDIT_SCHEMA, AUDIT_TABLE, online_scored_at
from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import Change, TableView, commit_change, table_view
from tasks.core.erasures import (
    Erasure,
    ErasureOutcome,
    Matches,
    entity_digest,
    erasures,
    has_digest,
    is_entity,
    record_outcome,
    request_erasure,
    without,
)
from tasks.core.errors import ConfigError, DataError, NotFound, StoreUnavailable
from tasks.core.holds import holds, is_held
from tasks.core.ids import digest_bytes
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.rows import entity_column
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

log = logging.getLogger(__name__)

KEPT_OF_AUDIT = frozenset(
    {
        "prediction_id",
        "event_time",
        "pipeline",
        "model_version",
        "bundle_digest",
        "run_id",
        "shard_id",
        "feature_set_version",
        "feature_computation_version",
        "source_snapshot",
        "scored_at",
        "erasure_id",
    }
)
"""What remains of an erased row: which model and run made a prediction then, and that it was erased."""

_MARKER = "penstock:erasure"
"""Application id under which an erasure moves the audit table on, so that a restore under way decides anew."""
_Read = TypeVar("_Read")
_TURNS = 20
_ELSEWHERE = ("archive/audit", "bundles", "data", "evaluation", "runs", "training", "validation")
_LATER = (
    "Replaced files are in no table any more; their bytes leave the disk when vacuum runs (penstock inference vacuum, "
    "a week after), or at once with --now."
)
_OUT_OF_REACH = (
    "Not reached: rows of the source itself, files named under unreached_keys, online rows that a node has not folded "
    "yet, backups, exports. Erase the entity at its source first: scoring its days again brings it back."
)


class Tombstoned(Protocol):
    """What became of one table."""

    @property
    def rows(self) -> dict[str, int]:
        """By event date."""
        ...

    @property
    def files(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def held_dates(self) -> tuple[date, ...]: ...


class Tables(Protocol):
    """How the files of a Delta table are replaced: the inference room's, which knows whose they are."""

    def tombstone(
        self,
        predictions: bool,
        matches: Matches,
        *,
        erasure_id: str,
        dates: Collection[date] | None,
        dry_run: bool,
    ) -> Tombstoned:
        """Make matching rows of a table tombstones."""
        ...

    def let_go(self, matches: Matches) -> tuple[list[str], list[str]]:
        """Keys of both tables' files with matching rows: (waiting for vacuum, of runs that are not published)."""
        ...


@dataclass(frozen=True)
class Erased(JsonRecord):
    """What `erase` did, or with `dry_run` would do."""

    erasure_id: str
    state: str
    """`erased`, `deferred` while a hold keeps some dates, `nothing found`, or `dry run`."""
    erased_dates: tuple[date, ...]
    deferred_dates: tuple[date, ...]
    warm_rows: int
    cold_rows: int
    prediction_rows: int
    replaced_files: int
    replaced_bytes: int
    waiting_keys: tuple[str, ...]
    """Files that are in no table any more and still hold the entity until vacuum runs."""
    deleted_keys: tuple[str, ...]
    """Such files that `now` deleted."""
    unreached_keys: tuple[str, ...]
    """Other objects of the pipeline that hold the entity."""
    unreadable_keys: tuple[str, ...]
    """Objects that could not be searched."""
    dry_run: bool
    note: str


@dataclass
class _Done:
    """What one call changed so far."""

    warm: dict[date, int] = field(default_factory=dict)
    cold: dict[date, int] = field(default_factory=dict)
    predictions: dict[date, int] = field(default_factory=dict)
    deferred: set[date] = field(default_factory=set)
    files: int = 0
    size_bytes: int = 0

    @property
    def dates(self) -> tuple[date, ...]:
        return tuple(sorted({*self.warm, *self.cold, *self.predictions}))


def erase(
    settings: Settings,
    spec: PipelineSpec,
    tables: Tables,
    *,
    entity: str,
    actor: str,
    reason: str,
    dry_run: bool = False,
    now: bool = False,
    clock: Clock = utc_now,
) -> Erased:
    """Make every row about an entity a tombstone: in the audit table, in the archive, in the predictions table.

    A repeated call continues the same erasure, also takes what was scored since, and is a no-op when nothing is left.

    Args:
        settings: This installation.
        spec: The pipeline.
        tables: How the tables' files are replaced.
        entity: The `entity_id` of its rows: the values of the entity key, joined by `|`.
        actor: Who decides; kept in the record.
        reason: Why; kept in the record. The entity is not: do not name it here.
        dry_run: Only say what would go.
        now: Also delete, at once, files that the tables let go and that hold the entity. A query that began before
            on such a file fails, and a superseded run that it belongs to does not verify any more.
        clock: The time, for records.

    Raises:
        ConfigError: `entity`, `actor` or `reason` is empty.
        DataError, DigestMismatch: A file or hold cannot be read; what came before it is done, repeat the call.
        StoreUnavailable: The store failed, or other upkeep kept coming first; repeat the call.
    """
    for name, text in (("entity", entity), ("actor", actor), ("reason", reason)):
        if not text.strip():
            raise ConfigError("is empty", which=name, fix="say it: the record is all that remains")
    store = open_store(settings, prefix=spec.prefix)
    digest = entity_digest(spec.name, entity)
    erasure_id, matches = digest[:16], is_entity(entity)
    found = _found(store, tables, erasure_id, matches)
    done = found
    known = next((item for item in erasures(store) if item[0].erasure_id == erasure_id), None)
    if not dry_run and (found.dates or found.deferred or known):
        wanted = Erasure(
            erasure_id=erasure_id,
            entity_digest=digest,
            reason=reason,
            actor=actor,
            requested_at_utc=iso_utc(clock()),
            dates=found.dates,
            audit_rows=sum(found.warm.values()) + sum(found.cold.values()),
            prediction_rows=sum(found.predictions.values()),
            deferred_dates=tuple(sorted(found.deferred)),
        )
        request = request_erasure(store, wanted)
        reached("after-erasure-request")
        done = _work(store, spec, tables, request, matches, None, actor=actor, reason=reason, clock=clock)
    waiting, unpublished = tables.let_go(matches)
    deleted = _delete(store, waiting) if now and not dry_run else ()
    unreached, unreadable = _elsewhere(store, spec, matches)
    forget_reader(spec)
    state = "deferred" if done.deferred else "erased" if done.dates or known else "nothing found"
    return Erased(
        erasure_id=erasure_id,
        state="dry run" if dry_run else state,
        erased_dates=done.dates,
        deferred_dates=tuple(sorted(done.deferred)),
        warm_rows=sum(done.warm.values()),
        cold_rows=sum(done.cold.values()),
        prediction_rows=sum(done.predictions.values()),
        replaced_files=done.files,
        replaced_bytes=done.size_bytes,
        waiting_keys=tuple(key for key in waiting if key not in deleted),
        deleted_keys=deleted,
        unreached_keys=(*unpublished, *unreached),
        unreadable_keys=unreadable,
        dry_run=dry_run,
        note=f"{_LATER} {_OUT_OF_REACH}",
    )


def complete_erasures(
    settings: Settings, spec: PipelineSpec, tables: Tables, *, clock: Clock = utc_now
) -> tuple[str, ...]:
    """Finish erasures that a hold kept from some dates, or that died; returns the ids of those that it worked on.

    The entities are known by their digests alone.

    Raises:
        DataError, DigestMismatch, StoreUnavailable: As `erase`.
    """
    store = open_store(settings, prefix=spec.prefix)
    worked: list[str] = []
    for request, outcomes in erasures(store):
        dates: set[date] | None = None
        if outcomes:
            standing = holds(store)
            dates = {day for day in outcomes[-1].deferred_dates if not is_held(standing, day)}
            if not dates:
                continue
        matches = has_digest(spec.name, request.entity_digest)
        _work(
            store,
            spec,
            tables,
            request,
            matches,
            dates,
            actor="retention",
            reason=request.reason,
            clock=clock,
        )
        worked.append(request.erasure_id)
    return tuple(worked)


def _found(store: ObjectStore, tables: Tables, erasure_id: str, matches: Matches) -> _Done:
    """What there is to erase; nothing is changed."""
    done = _Done()
    for predictions, rows in ((False, done.warm), (True, done.predictions)):
        told = tables.tombstone(predictions, matches, erasure_id=erasure_id, dates=None, dry_run=True)
        _count(done, rows, told)
    standing = holds(store)
    for day in archived_dates(store):
        archived, (count, _) = _newest_counts(store, day, matches, erasure_id)
        if archived is None:
            continue
        if count and is_held(standing, day):
            done.deferred.add(day)
        elif count:
            done.cold[day] = count
            done.files += 1
            done.size_bytes += archived.size_bytes
    return done


def _count(done: _Done, rows: dict[date, int], told: Tombstoned) -> None:
    for day, count in told.rows.items():
        rows[date.fromisoformat(day)] = rows.get(date.fromisoformat(day), 0) + count
    done.deferred |= set(told.held_dates)
    done.files += told.files
    done.size_bytes += told.size_bytes


def _work(
    store: ObjectStore,
    spec: PipelineSpec,
    tables: Tables,
    request: Erasure,
    matches: Matches,
    dates: Collection[date] | None,
    *,
    actor: str,
    reason: str,
    clock: Clock,
) -> _Done:
    """Erase on these dates, or on all, and record the outcome unless it says nothing new."""
    done = _Done()
    erasure_id = request.erasure_id
    # Predictions last: a prediction whose audit row is erased is the state that a crash may leave, not the reverse.
    looked_at = dates
    for _ in range(_TURNS):
        warm = tables.tombstone(False, matches, erasure_id=erasure_id, dates=looked_at, dry_run=False)
        _count(done, done.warm, warm)
        moved = _erase_cold(store, spec, matches, erasure_id, looked_at, done, clock)
        if not moved:
            break
        # A restore that read a date before it changed must not commit any more; one that did is seen next turn.
        _move_on(store, clock)
        looked_at = moved
    else:
        raise StoreUnavailable(
            "other upkeep kept coming first", which=f"erasure {erasure_id}", fix="repeat the call"
        )
    predictions = tables.tombstone(True, matches, erasure_id=erasure_id, dates=dates, dry_run=False)
    _count(done, done.predictions, predictions)
    _record_outcome(store, request, done, dates, actor=actor, reason=reason, clock=clock)
    log.info("Erasure %s: %d dates, %d deferred.", erasure_id, len(done.dates), len(done.deferred))
    return done


def _record_outcome(
    store: ObjectStore,
    request: Erasure,
    done: _Done,
    dates: Collection[date] | None,
    *,
    actor: str,
    reason: str,
    clock: Clock,
) -> None:
    """Record what there is now. Told from the tiers and not from this call alone: one before it may have died."""
    reached("before-erasure-done")
    for _ in range(_TURNS):
        outcomes = next(known for one, known in erasures(store) if one.erasure_id == request.erasure_id)
        tombstones = _tombstones(store, request.erasure_id)
        deferred = set(done.deferred)
        if outcomes and dates is not None:
            deferred |= set(outcomes[-1].deferred_dates) - set(dates)
        predictions = sum(done.predictions.values())
        if not outcomes and not predictions:
            predictions = request.prediction_rows  # an earlier call erased them and died before it said so
        made = ErasureOutcome(
            erasure_id=request.erasure_id,
            number=len(outcomes) + 1,
            actor=actor,
            reason=reason,
            at_utc=iso_utc(clock()),
            dates=tuple(sorted({*tombstones, *done.dates})),
            audit_rows=sum(tombstones.values()),
            prediction_rows=predictions,
            deferred_dates=tuple(sorted(deferred)),
        )
        last = outcomes[-1] if outcomes else None
        if last is not None and not done.dates:
            told = (last.audit_rows, last.deferred_dates)
            if told == (made.audit_rows, made.deferred_dates):
                return
        if record_outcome(store, made):
            return
    raise StoreUnavailable(
        "other calls kept recording first", which=f"erasure {request.erasure_id}", fix="repeat the call"
    )


def _tombstones(store: ObjectStore, erasure_id: str) -> dict[date, int]:
    """Rows of this erasure by event date, each once although it may be warm and cold."""
    found: dict[date, set[tuple[str, str, object]]] = {}
    columns = ["prediction_id", "run_id", "erasure_id", "source_snapshot", "scored_at"]

    def add(day: date, table: pa.Table | None) -> None:
        if table is None:
            return
        mine = table.filter(pc.fill_null(pc.equal(table.column("erasure_id"), erasure_id), False))
        if mine.num_rows:
            keys = (mine["prediction_id"], mine["run_id"], online_scored_at(mine))
            found.setdefault(day, set()).update(zip(*(column.to_pylist() for column in keys), strict=True))

    view = table_view(store, AUDIT_TABLE)
    for file in view.files if view else ():
        try:
            with store.open(f"{AUDIT_TABLE}/{file.path}") as raw:
                parquet = pq.ParquetFile(raw)
                if "erasure_id" not in parquet.schema_arrow.names:
                    continue
                marks = parquet.read(columns=["erasure_id"], use_threads=False).column("erasure_id")
                if pc.any(pc.equal(marks, erasure_id)).as_py():
                    add(file.event_date, parquet.read(columns=columns, use_threads=False))
        except NotFound:  # moved meanwhile
            continue
    for day in archived_dates(store):
        if _newest_counts(store, day, None, erasure_id)[1][1]:
            add(day, _following(store, day, lambda archived: cold_rows(store, archived, "", "~", columns))[1])
    return {day: len(pairs) for day, pairs in sorted(found.items())}


def _cold_counts(
    store: ObjectStore, archived: ArchivedDate, matches: Matches | None, erasure_id: str
) -> tuple[int, int]:
    """(rows of the entity, tombstones of this erasure) in a date's file."""
    alive = gone = 0
    for entities, marks in cold_marks(store, archived):
        if matches is not None:
            alive += pc.sum(matches(entities)).as_py() or 0
        gone += pc.sum(pc.fill_null(pc.equal(marks, erasure_id), False)).as_py() or 0
    return alive, gone


def _newest_counts(
    store: ObjectStore, day: date, matches: Matches | None, erasure_id: str
) -> tuple[ArchivedDate | None, tuple[int, int]]:
    """(what the archive holds of a date, `_cold_counts` of it)."""
    archived, counts = _following(
        store, day, lambda archived: _cold_counts(store, archived, matches, erasure_id)
    )
    return archived, counts if counts is not None else (0, 0)


def _following(
    store: ObjectStore, day: date, read: Callable[[ArchivedDate], _Read]
) -> tuple[ArchivedDate | None, _Read | None]:
    """What `read` makes of a date's newest generation; nothing when the archive holds nothing of it."""
    for _ in range(_TURNS):
        archived = archived_date(store, day)
        if archived is None or archived.state != "archived":
            return None, None
        try:
            return archived, read(archived)
        except NotFound:
            if not has_moved_on(store, archived):
                raise
    raise StoreUnavailable(
        "other upkeep of this date kept coming first", which=f"audit date {day}", fix="repeat the call"
    )


def _erase_cold(
    store: ObjectStore,
    spec: PipelineSpec,
    matches: Matches,
    erasure_id: str,
    dates: Collection[date] | None,
    done: _Done,
    clock: Clock,
) -> set[date]:
    """Rewrite the dates whose file holds the entity; returns them."""
    moved: set[date] = set()
    for day in archived_dates(store):
        if dates is not None and day not in dates:
            continue
        for _ in range(_TURNS):
            archived = archived_date(store, day)
            if archived is None or archived.state != "archived":
                break
            try:
                count, _ = _cold_counts(store, archived, matches, erasure_id)
                if not count:
                    break
                if is_held(holds(store), day):
                    done.deferred.add(day)
                    break
                made = _rewrite(store, spec, archived, matches, erasure_id, clock)
            except NotFound:
                if has_moved_on(store, archived):
                    continue
                raise
            if made:
                done.cold[day] = done.cold.get(day, 0) + count
                done.files += 1
                done.size_bytes += archived.size_bytes
                moved.add(day)
                break
        else:
            raise StoreUnavailable(
                "other upkeep of this date kept coming first",
                which=f"audit date {day}",
                fix="repeat the call",
            )
    return moved


def _rewrite(
    store: ObjectStore,
    spec: PipelineSpec,
    archived: ArchivedDate,
    matches: Matches,
    erasure_id: str,
    clock: Clock,
) -> bool:
    """Make the date's next generation without the entity. False when somebody else made it first."""
    whole = cold_rows(store, archived, "", "~").drop_columns([EXPLANATION.name]).combine_chunks()
    gone = matches(whole.column("entity_id").combine_chunks())
    table = without(whole, gone, kept=KEPT_OF_AUDIT)
    marks = pc.if_else(gone, pa.scalar(erasure_id), table.column("erasure_id"))
    table = table.set_column(table.schema.get_field_index("erasure_id"), "erasure_id", marks)
    top_k = archived.top_k if archived.top_k is not None else spec.explanations.top_k
    data = encode(table, top_k=top_k, values=archived.values_kept)
    sha256 = digest_bytes(data)
    key = data_key(archived.event_date, sha256)
    store.put(key, data)
    check_copy(store, key, sha256, table.num_rows)
    reached("after-erase-cold-file")
    made = replace(
        archived,
        generation=archived.generation + 1,
        key=key,
        size_bytes=len(data),
        sha256=sha256,
        recorded_at_utc=iso_utc(clock()),
        format=COLD_FORMAT,
        top_k=top_k,
        explained_rows=table.num_rows - table.column("attributions").null_count,
        cause="erasure",
    )
    try:
        record(store, made)
    except AlreadyExists:
        return False
    reached("after-erase-cold-record")
    store.delete(archived.key)
    return True


def _move_on(store: ObjectStore, clock: Clock) -> None:
    """Commit something to the audit table, so that whatever was decided from an older version is decided anew."""
    if table_view(store, AUDIT_TABLE) is None:
        return
    moment = int(clock().timestamp() * 1000)
    sent = False

    def decide(view: TableView) -> Change | None:
        nonlocal sent
        if sent and (view.transaction_version(_MARKER) or 0) >= moment:
            return None
        sent = True
        version = max(moment, (view.transaction_version(_MARKER) or 0) + 1)
        return Change(transaction=(_MARKER, version), note={"penstock_erasure": "archive changed"})

    commit_change(store, AUDIT_TABLE, schema=lambda: AUDIT_SCHEMA, decide=decide)


def _delete(store: ObjectStore, keys: list[str]) -> tuple[str, ...]:
    """Delete files that the tables let go, unless their date has a hold."""
    standing = holds(store)
    deleted = []
    for key in keys:
        day = date.fromisoformat(key.split("event_date=")[1][:10])
        if not is_held(standing, day):
            store.delete(key)
            deleted.append(key)
    return tuple(deleted)


def _elsewhere(
    store: ObjectStore, spec: PipelineSpec, matches: Matches
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(keys of other Parquet files of the pipeline that hold the entity, keys of those that cannot be read)."""
    current = {item.key for item in archived_dates(store).values()}
    found: list[str] = []
    unreadable: list[str] = []
    for folder in _ELSEWHERE:
        for info in store.list(folder):
            if not info.key.endswith(".parquet") or info.key in current:
                continue  # of a held date the archive's file is named by `deferred_dates`
            try:
                ids = _entities(store, spec, info.key)
                if ids is not None and pc.any(matches(ids)).as_py():
                    found.append(info.key)
            except NotFound:
                continue
            except (pa.ArrowException, OSError, DataError):
                unreadable.append(info.key)
    return tuple(found), tuple(unreadable)


def _entities(store: ObjectStore, spec: PipelineSpec, key: str) -> pa.Array | None:
    """The entity ids of a file; None when it has no such columns."""
    with store.open(key) as raw:
        file = pq.ParquetFile(raw)
        there = set(file.schema_arrow.names)
        if "entity_id" in there:
            return file.read(columns=["entity_id"]).column("entity_id").combine_chunks().cast(pa.string())
        if not set(spec.entity_key) <= there:
            return None
        table = file.read(columns=list(spec.entity_key))
    for name in spec.entity_key:
        table = table.filter(pc.is_valid(table.column(name)))
    return entity_column(table, spec)
