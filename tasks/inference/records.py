"""What the inference room writes into the store: plan, shard records, published marker, and its reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from tasks.core.delta import TableFile
from tasks.core.errors import NotFound
from tasks.core.object_store import ObjectStore
from tasks.core.records import JsonRecord, PartitionFile
from tasks.core.stored import read_record

PREDICTIONS = "tables/predictions"
AUDIT = "tables/audit"

_READERS = 16
_NEVER_REWRITTEN = "restore the object from a backup; it is never rewritten"


def plan_key(run_id: str) -> str:
    return f"runs/{run_id}/plan.json"


def shard_key(run_id: str, shard: int) -> str:
    return f"runs/{run_id}/shard-{shard:05d}.json"


def published_key(run_id: str) -> str:
    return f"runs/{run_id}/published.json"


def attempt_key(run_id: str, token: int) -> str:
    return f"runs/{run_id}/attempts/{token:05d}.json"


def replay_key(run_id: str, generation: int) -> str:
    return f"runs/{run_id}/replays/{generation:05d}.json"


def merge_key(run_id: str, attempt: str) -> str:
    return f"runs/{run_id}/merges/{attempt}.json"


def dead_letter_key(run_id: str, shard: int, attempt: str) -> str:
    return f"runs/{run_id}/dead-letters/shard-{shard:05d}-{attempt}.parquet"


@dataclass(frozen=True)
class Exposed(JsonRecord):
    """A challenger that scores a share of the entities of a run in the champion's place."""

    model_version: int
    bundle_digest: str
    feature_version: str
    share: float
    """Of entities, by hash of their key (`tasks.core.sampling.in_slice`)."""


@dataclass(frozen=True)
class Fingerprint(JsonRecord):
    """Everything that decides what a run's predictions are (I1). `run_id` is its digest."""

    pipeline: str
    snapshot_id: str
    model_version: int
    bundle_digest: str
    feature_version: str
    scoring_config: dict[str, Any]
    replay_of: str | None = None
    """The run whose dead letters this run scores again; None for a run that scores a snapshot."""
    replay: int = 0
    """Which replay of that run, from 1."""
    exposed: Exposed | None = None

    def differences(self, other: Fingerprint) -> list[str]:
        """`field: mine != theirs` for every field that differs."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{name}: {mine[name]} != {theirs[name]}" for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True)
class ShardPlan(JsonRecord):
    """Rows `[row_start, row_stop)` of one partition file, and the row groups that hold them."""

    shard: int
    day: date
    partition: int
    """Index into `Plan.partitions`."""
    row_start: int
    row_stop: int
    row_groups: tuple[int, ...]
    skip_rows: int
    """Rows of the first of `row_groups` that come before `row_start`."""

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start


@dataclass(frozen=True)
class Plan(JsonRecord):
    """What a run scores, cut into shards; created once, never changed."""

    run_id: str
    fingerprint: Fingerprint
    partitions: tuple[PartitionFile, ...]
    shards: tuple[ShardPlan, ...]
    created_at_utc: str
    protocol: int = 1

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def days(self) -> tuple[date, ...]:
        """Source days, ascending, each once."""
        return tuple(sorted({shard.day for shard in self.shards}))

    @cached_property
    def rows_by_day(self) -> Counter[date]:
        """Rows of each source day, in all of its shards."""
        found: Counter[date] = Counter()
        for shard in self.shards:
            found[shard.day] += shard.rows
        return found

    def bytes_read(self, shard: int) -> int:
        """What a shard reads: of its partition's bytes, the part that the rows of its row groups are of all rows."""
        task = self.shards[shard]
        partition = self.partitions[task.partition]
        rows = sum(partition.row_group_rows[group] for group in task.row_groups)
        return round(partition.size_bytes * rows / max(1, partition.rows))


@dataclass(frozen=True)
class DeadLetter(JsonRecord):
    """Why one row could not be scored."""

    source_row: int
    stage: str
    """`identity`, `features`, `encode`, `predict` or `explain`."""
    error_class: str
    reason: str
    prediction_id: str | None = None
    """None when the row has no identity: a part of its key or its event time is missing or unusable."""


@dataclass(frozen=True)
class ExposedRows(JsonRecord):
    """What a shard's exposed challenger did."""

    rows: int
    """Rows of the shard that hold its predictions."""
    errors: int
    """Rows of its slice that it could not score: they hold the champion's predictions."""
    error_examples: tuple[str, ...]
    cpu_seconds: float
    """Of the shard's, what the challenger took."""


@dataclass(frozen=True)
class ShardRecord(JsonRecord):
    """The commit of one shard (I2): it exists once, and what it lists is what the run holds."""

    run_id: str
    shard: int
    day: date
    attempt: str
    token: int
    rows: int
    """Rows scored; `rows + dead_letters` is what the plan gave."""
    dead_letters: int
    dead_letter_key: str | None
    dead_letter_examples: tuple[DeadLetter, ...]
    files: tuple[TableFile, ...]
    audit_files: tuple[TableFile, ...]
    profile: dict[str, Any] | None
    """`tasks.model.profile.Profile` of the scored rows."""
    cpu_seconds: float
    wall_s: float
    gpu_seconds: float
    node: str
    committed_at_utc: str
    explained_rows: int = 0
    inexact_explanations: int = 0
    """Explained rows whose attributions leave more than `COMPLETENESS_TOLERANCE` logits unexplained."""
    exposed: ExposedRows | None = None
    """None where the run exposes no challenger."""


@dataclass(frozen=True)
class ReplayRecord(JsonRecord):
    """What one replay of a run scores; created once, by exclusive create, never changed."""

    replay_of: str
    generation: int
    run_id: str
    """The follow-up run."""
    snapshot_id: str
    """The rows to score, as a snapshot of their own."""
    corrected_snapshot_id: str | None
    """The delivery that the rows were taken from; None: the rows as they failed."""
    rows: int
    repeated: int
    """Dead letters left out because their prediction id is in the table, or occurs twice among them."""
    unmatched: int
    """Dead letters left out because they have no prediction id, or the delivery lacks theirs."""
    created_at_utc: str


@dataclass(frozen=True)
class MergedInput(JsonRecord):
    """A file of one shard whose rows are in a merged file."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Merge(JsonRecord):
    """One merged file and what it was merged from: files of one run, source day and event date."""

    inputs: tuple[MergedInput, ...]
    output: TableFile


@dataclass(frozen=True)
class MergeRecord(JsonRecord):
    """Merged files of one run, written before the transaction that puts them in place of their inputs.

    It proves what a merged file holds. Whether readers see the file is the table's log alone to say.
    """

    run_id: str
    folder: str
    attempt: str
    """As in the names of its files."""
    merges: tuple[Merge, ...]
    started_at_utc: str
    created_at_utc: str


@dataclass(frozen=True)
class RunExposure(JsonRecord):
    """What a run's exposed challenger did in the shards that are committed."""

    model_version: int
    share: float
    rows: int
    errors: int
    error_examples: tuple[str, ...]
    cpu_seconds: float
    days: dict[str, int]
    """Source day -> rows that hold the challenger's predictions."""


@dataclass(frozen=True)
class RunReport(JsonRecord):
    """What one call of `run_plan` did."""

    run_id: str
    token: int | None
    """Fencing token of this attempt; None when there was nothing left to do."""
    shards: int
    shards_committed: int
    shards_skipped: int
    """Shards that were committed before this call."""
    rows_scored: int
    dead_letters: int
    """Of the whole run."""
    cpu_seconds: float
    """Of the shards that this call committed; of shard work only."""
    gpu_seconds: float
    wall_s: float


@dataclass(frozen=True)
class Published(JsonRecord):
    """What `publish` left in the tables."""

    run_id: str
    rows: int
    files: int
    audit_files: int
    days: tuple[date, ...]
    superseded_runs: tuple[str, ...]
    """Runs whose rows of these days left the predictions table in the same transaction."""
    superseded_files: int
    dead_letters: int
    table_version: int
    published_at_utc: str
    already_published: bool = False
    replay_of: str | None = None
    """The run whose dead letters these rows were."""


def read_plan(store: ObjectStore, run_id: str) -> Plan:
    """The plan of a run.

    Raises:
        NotFound: No run of that id was planned.
        DataError: The plan cannot be read.
    """
    try:
        return read_record(
            store,
            plan_key(run_id),
            Plan,
            what="a readable plan",
            fix="restore the object from a backup; a plan is never rewritten",
        )
    except NotFound as error:
        raise NotFound(
            "is not a planned run of this pipeline",
            which=f"run {run_id}",
            fix=f"list them: penstock inference runs NAME; their plans lie below {store.url('runs')}",
        ) from error


def read_shard_record(store: ObjectStore, run_id: str, shard: int) -> ShardRecord | None:
    """The record of a shard; None when the shard is not committed.

    Raises:
        DataError: The record cannot be read.
    """
    with suppress(NotFound):
        return read_record(
            store,
            shard_key(run_id, shard),
            ShardRecord,
            what="a readable shard record",
            fix="restore the object from a backup; deleting it makes the shard be scored again",
        )
    return None


def read_replays(store: ObjectStore, run_id: str) -> list[ReplayRecord]:
    """The replays of a run, oldest first; their numbers have no gaps.

    Raises:
        DataError: A record cannot be read.
    """
    return [
        read_record(store, info.key, ReplayRecord, what="a readable replay record", fix=_NEVER_REWRITTEN)
        for info in store.list(f"runs/{run_id}/replays")
    ]


def read_merge_record(store: ObjectStore, run_id: str, attempt: str) -> MergeRecord | None:
    """The record that merged files of this attempt belong to; None when it was never written.

    Raises:
        DataError: The record cannot be read.
    """
    key = merge_key(run_id, attempt)
    with suppress(NotFound):
        return read_record(
            store, key, MergeRecord, what="a readable record of merged files", fix=_NEVER_REWRITTEN
        )
    return None


def read_merge_records(store: ObjectStore, run_id: str, folder: str) -> list[MergeRecord]:
    """The records of a run's merged files of one table, in no order that means anything."""
    attempts = [
        info.key.rsplit("/", 1)[-1].removesuffix(".json") for info in store.list(f"runs/{run_id}/merges")
    ]
    found = (read_merge_record(store, run_id, attempt) for attempt in attempts)
    return [record for record in found if record is not None and record.folder == folder]


def committed_shards(store: ObjectStore, run_id: str) -> set[int]:
    """Numbers of the shards that have a record: one listing, no reads."""
    names = (info.key.rsplit("/", 1)[-1] for info in store.list(f"runs/{run_id}"))
    return {
        int(name[6:-5])
        for name in names
        if name.startswith("shard-") and name.endswith(".json") and name[6:-5].isdigit()
    }


def read_shard_records(store: ObjectStore, run_id: str, shards: Iterable[int]) -> list[ShardRecord]:
    """The records of these shards, in the order asked for, without those that are not committed."""
    wanted = list(shards)
    if not wanted:
        return []
    with ThreadPoolExecutor(min(_READERS, len(wanted))) as pool:
        found = pool.map(lambda shard: read_shard_record(store, run_id, shard), wanted)
        return [record for record in found if record is not None]


def read_published(store: ObjectStore, run_id: str) -> Published | None:
    """The published marker; None when the run has none."""
    try:
        return Published.from_json(json.loads(store.get(published_key(run_id))))
    except NotFound:
        return None
