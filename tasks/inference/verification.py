"""Check a run against its plan, its records, its files and the table; and say how far it is."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.delta import TableFile, TableView, table_view
from tasks.core.errors import NotFound
from tasks.core.ids import digest_bytes
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.commit import newest_token
from tasks.inference.exposing import run_exposure
from tasks.inference.merged import current_files
from tasks.inference.publishing import application_id, roots_of
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    Plan,
    RunExposure,
    ShardRecord,
    attempt_key,
    committed_shards,
    read_plan,
    read_published,
    read_replays,
    read_shard_records,
)

_READERS = 8
_NAMED = 5
_BAR = 30


@dataclass(frozen=True)
class Verification(JsonRecord):
    """What `verify` found. `ok` when `problems` is empty."""

    run_id: str
    ok: bool
    problems: tuple[str, ...]
    planned_rows: int
    scored_rows: int
    dead_letters: int
    distinct_prediction_ids: int
    files_checked: int
    published: bool
    superseded_by: tuple[str, ...]
    """Runs that hold this run's days in the table now."""


@dataclass(frozen=True)
class NodeShare(JsonRecord):
    """What one node committed of a run."""

    node: str
    shards: int
    rows: int
    cpu_seconds: float
    gpu_seconds: float


@dataclass(frozen=True)
class RunStatus(JsonRecord):
    """How far a run is."""

    run_id: str
    shards: int
    shards_done: int
    rows: int
    rows_done: int
    dead_letters: int
    attempts: int
    cpu_seconds: float
    gpu_seconds: float
    rows_per_cpu_second: float | None
    rows_per_s: float | None
    """Of the newest attempt that committed, from its start to its last commit; None before its first."""
    eta_s: float | None
    nodes: dict[str, int]
    """Shards by node."""
    published: bool
    share_done: float
    """Of the planned rows, 0 to 1."""
    replays: int
    rows_replayed: int
    """Of the dead letters, those that replays scored since."""
    by_node: tuple[NodeShare, ...]
    exposed: RunExposure | None = None

    def line(self) -> str:
        """The run in one line, with a bar."""
        filled = int(self.share_done * _BAR)
        rate = f", {self.rows_per_s:,.0f} rows/s" if self.rows_per_s else ""
        left = f", about {_duration(self.eta_s)} left" if self.eta_s else ""
        dead = f", {self.dead_letters - self.rows_replayed:,} dead letters" if self.dead_letters else ""
        gpu = f" and {self.gpu_seconds:,.1f} GPU-s" if self.gpu_seconds else ""
        state = "published" if self.published else f"{self.shards_done} of {self.shards} shards"
        return (
            f"|{'#' * filled}{'.' * (_BAR - filled)}| {math.floor(self.share_done * 100):3d} %  {state}, "
            f"{self.rows_done:,} of {self.rows:,} rows{rate}{left}{dead}, "
            f"{self.cpu_seconds:,.1f} CPU-s{gpu} so far"
        )


def verify(settings: Settings, spec: PipelineSpec, run_id: str) -> Verification:
    """Check counts, digests, uniqueness and what the table holds. Reads every file of the run once.

    Where small files were merged, the merged file is read instead; its record says which files it was merged
    from, and those have to be exactly the ones that the shard records name.

    Raises:
        NotFound: The run was not planned.
    """
    store = open_store(settings, prefix=spec.prefix)
    planned = read_plan(store, run_id)
    records = read_shard_records(store, run_id, [task.shard for task in planned.shards])
    problems = _count_problems(planned, records)
    view = table_view(store, PREDICTIONS)
    scored_files = [file for record in records for file in record.files]
    files = list(current_files(store, PREDICTIONS, run_id, scored_files, view))
    audit_files = [file for record in records for file in record.audit_files]
    distinct, found = _file_problems(store, files)
    problems += found
    held, listed = sum(file.rows for file in files), sum(file.rows for file in scored_files)
    if held != listed:
        problems.append(f"shard records list {listed} rows, the files merged from theirs {held}")
    published = view is not None and view.transaction_version(application_id(run_id)) is not None
    superseded: tuple[str, ...] = ()
    if published and view is not None:
        days = set(planned.days)
        roots = roots_of(store, {f.name.run_id for f in view.files if f.name and f.name.day in days})
        superseded, found = _table_problems(view, planned, files, roots)
        problems += found
        problems += _audit_problems(store, run_id, audit_files)
        problems += _repeated_by_replays(store, planned, files, view)
    elif planned.fingerprint.replay_of is not None and not files:
        published = read_published(store, run_id) is not None  # every row failed again: nothing to add
    elif read_published(store, run_id) is not None:
        problems.append("the run is marked as published, but no transaction of it is in the table")
    scored = sum(record.rows for record in records)
    return Verification(
        run_id=run_id,
        ok=not problems,
        problems=tuple(problems),
        planned_rows=planned.rows,
        scored_rows=scored,
        dead_letters=sum(record.dead_letters for record in records),
        distinct_prediction_ids=distinct,
        files_checked=len(files),
        published=published,
        superseded_by=superseded,
    )


def status(settings: Settings, spec: PipelineSpec, run_id: str) -> RunStatus:
    """How far a run is, from its records alone.

    Raises:
        NotFound: The run was not planned.
    """
    store = open_store(settings, prefix=spec.prefix)
    planned = read_plan(store, run_id)
    records = read_shard_records(store, run_id, sorted(committed_shards(store, run_id)))
    done = sum(record.rows + record.dead_letters for record in records)
    cpu = sum(record.cpu_seconds for record in records)
    rate = _rate(store, run_id, records)
    by_node = tuple(
        NodeShare(
            node=node,
            shards=len(found),
            rows=sum(record.rows for record in found),
            cpu_seconds=round(sum(record.cpu_seconds for record in found), 3),
            gpu_seconds=round(sum(record.gpu_seconds for record in found), 3),
        )
        for node in sorted({record.node for record in records})
        if (found := [record for record in records if record.node == node])
    )
    replays = read_replays(store, run_id)
    markers = [read_published(store, item.run_id) for item in replays]
    return RunStatus(
        run_id=run_id,
        shards=len(planned.shards),
        shards_done=len(records),
        rows=planned.rows,
        rows_done=done,
        dead_letters=sum(record.dead_letters for record in records),
        attempts=newest_token(store, run_id),
        cpu_seconds=round(cpu, 3),
        gpu_seconds=round(sum(record.gpu_seconds for record in records), 3),
        rows_per_cpu_second=round(done / cpu, 1) if cpu else None,
        rows_per_s=round(rate, 1) if rate else None,
        eta_s=round((planned.rows - done) / rate, 1) if rate else None,
        nodes={item.node: item.shards for item in by_node},
        published=read_published(store, run_id) is not None,
        share_done=round(done / planned.rows, 6),
        replays=len(replays),
        rows_replayed=sum(marker.rows for marker in markers if marker is not None),
        by_node=by_node,
        exposed=run_exposure(planned.fingerprint, records),
    )


def _rate(store: ObjectStore, run_id: str, records: list[ShardRecord]) -> float | None:
    """Rows per second of the newest attempt that committed: pauses between attempts are no part of a rate."""
    if not records:
        return None
    token = max(record.token for record in records)
    own = [record for record in records if record.token == token]
    try:
        started = datetime.fromisoformat(json.loads(store.get(attempt_key(run_id, token)))["taken_at_utc"])
    except (NotFound, ValueError, KeyError):
        return None
    seconds = (max(datetime.fromisoformat(r.committed_at_utc) for r in own) - started).total_seconds()
    return sum(record.rows + record.dead_letters for record in own) / seconds if seconds > 0 else None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _count_problems(planned: Plan, records: list[ShardRecord]) -> list[str]:
    problems = []
    there = {record.shard for record in records}
    missing = [task.shard for task in planned.shards if task.shard not in there]
    if missing:
        named = ", ".join(map(str, missing[:_NAMED]))
        problems.append(f"{len(missing)} of {len(planned.shards)} shards have no record: {named}")
    for record in records:
        wanted = planned.shards[record.shard].rows
        if record.rows + record.dead_letters != wanted:
            problems.append(
                f"shard {record.shard} holds {record.rows} rows and {record.dead_letters} dead letters; "
                f"the plan gave it {wanted} rows"
            )
        listed = sum(file.rows for file in record.files)
        if listed != record.rows:
            problems.append(f"shard {record.shard} says {record.rows} rows, its files {listed}")
    return problems


def _file_problems(store: ObjectStore, files: list[TableFile]) -> tuple[int, list[str]]:
    """(distinct prediction ids, problems); ids are compared within an event date, which they name."""
    problems: list[str] = []
    distinct = 0
    by_date: dict[date, list[TableFile]] = {}
    for file in files:
        by_date.setdefault(file.event_date, []).append(file)
    with ThreadPoolExecutor(_READERS) as pool:
        for event_date in sorted(by_date):
            ids: list[pa.ChunkedArray] = []
            for found, column in pool.map(lambda file: _check_file(store, file), by_date[event_date]):
                problems += found
                if column is not None:
                    ids.append(column)
            chunks = [chunk for column in ids for chunk in column.chunks]
            whole = pa.chunked_array(chunks, pa.string())
            unique = pc.count_distinct(whole).as_py()
            distinct += unique
            if unique != len(whole):
                problems.append(f"{len(whole) - unique} prediction ids occur twice on {event_date}")
    return distinct, problems


def _check_file(store: ObjectStore, file: TableFile) -> tuple[list[str], pa.ChunkedArray | None]:
    try:
        data = store.get(f"{PREDICTIONS}/{file.path}")
    except NotFound:
        return [f"{file.path} is gone"], None
    if digest_bytes(data) != file.sha256:
        return [f"{file.path} is damaged: its SHA-256 is not the recorded one"], None
    ids = _id_column(data)
    if len(ids) != file.rows:
        return [f"{file.path} holds {len(ids)} rows, its record says {file.rows}"], ids
    return [], ids


def _table_problems(
    view: TableView, planned: Plan, files: list[TableFile], roots: dict[str, str]
) -> tuple[tuple[str, ...], list[str]]:
    days = set(planned.days)
    root = planned.fingerprint.replay_of or planned.run_id
    own = {file.path: file for file in files}
    holders: dict[date, set[str]] = {}
    live_own: set[str] = set()
    for live in view.files:
        name = live.name
        if name is None or name.day not in days:
            continue
        holders.setdefault(name.day, set()).add(roots[name.run_id])
        if name.run_id == planned.run_id:
            live_own.add(live.path)
    problems = [
        f"day {day} is held by {len(runs)} runs at once: {', '.join(sorted(runs))}"
        for day, runs in sorted(holders.items())
        if len(runs) > 1
    ]
    superseded = tuple(sorted({run for runs in holders.values() for run in runs} - {root}))
    unknown = live_own - set(own)
    if unknown:
        problems.append(f"the table holds {len(unknown)} files of this run that no record accounts for")
    lost_days = sorted(
        day
        for day in days
        if root not in holders.get(day, set())
        and not holders.get(day)
        and any(f"_{day}_" in path for path in own)
    )
    if lost_days:
        problems.append(f"the table holds no rows of {len(lost_days)} days, for example {lost_days[0]}")
    for day in sorted(days):
        if holders.get(day) == {root}:
            absent = [path for path in own if f"_{day}_" in path and path not in live_own]
            if absent:
                problems.append(
                    f"day {day}: {len(absent)} of the run's files are not in the table, {absent[0]}"
                )
    return superseded, problems


def _repeated_by_replays(
    store: ObjectStore, planned: Plan, files: list[TableFile], view: TableView
) -> list[str]:
    """Prediction ids that a run shares with its replays, or a replay with the run and its other replays."""
    root = planned.fingerprint.replay_of or planned.run_id
    family = [root, *(item.run_id for item in read_replays(store, root))]
    others: list[TableFile] = []
    for run in family:
        if run != planned.run_id and (run == root or read_published(store, run) is not None):
            shards = [task.shard for task in read_plan(store, run).shards]
            scored = [f for record in read_shard_records(store, run, shards) for f in record.files]
            others += current_files(store, PREDICTIONS, run, scored, view)
    problems = []
    for mine in files:
        near = [file for file in others if file.event_date == mine.event_date]
        if near:
            ids = _ids_of(store, mine)
            shared = sum(pc.sum(pc.is_in(_ids_of(store, file), ids)).as_py() or 0 for file in near)
            if shared:
                problems.append(f"{shared} prediction ids of {mine.path} are in other runs of run {root} too")
    return problems


def _ids_of(store: ObjectStore, file: TableFile) -> pa.Array:
    return _id_column(store.get(f"{PREDICTIONS}/{file.path}")).combine_chunks()


def _id_column(data: bytes) -> pa.ChunkedArray:
    # Not `read_table`: it makes a data set of the one file, which takes longer than reading it.
    file = pq.ParquetFile(pa.BufferReader(data))
    return file.read(columns=["prediction_id"], use_threads=False).column("prediction_id")


def _audit_problems(store: ObjectStore, run_id: str, files: list[TableFile]) -> list[str]:
    if not files:
        return []
    view = table_view(store, AUDIT)
    if view is None or view.transaction_version(application_id(run_id)) is None:
        return ["the run's audit rows are not in the audit table"]
    live = {file.path for file in view.files}
    current = current_files(store, AUDIT, run_id, files, view)
    held, listed = sum(file.rows for file in current), sum(file.rows for file in files)
    if held != listed:
        return [f"shard records list {listed} audit rows, the files merged from theirs {held}"]
    lost = [
        file.path
        for file in current
        if file.path not in live and next(iter(store.list(f"archive/audit/{file.event_date}")), None) is None
    ]
    return [f"{len(lost)} audit files are neither in the table nor archived: {lost[0]}"] if lost else []
