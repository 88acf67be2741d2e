"""Read, score and commit one shard. A plain class: it runs in a Ray actor and in a test alike."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import FileName, TableFile
from tasks.core.errors import (
    ConfigError,
    DataError,
    OutcomeUnknown,
    PenstockError,
    TerminalError,
    TransientError,
)
from tasks.core.log_lines import bound
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.prediction_ids import PredictionIds
from tasks.core.sampling import CountedRows, counted_among, rows_counted_as_one
from tasks.core.scored import COMPLETENESS_TOLERANCE, ScoredRows
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.table_files import AUDIT_GROUP_ROWS, by_event_date, write_table_file
from tasks.inference.commit import check_fence, commit_shard, discard
from tasks.inference.deadline import TimeIsUp, interrupted_after
from tasks.inference.exposing import as_challenger, score_slice
from tasks.inference.reading import PartitionReader
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    ExposedRows,
    Plan,
    ShardPlan,
    ShardRecord,
    dead_letter_key,
    read_shard_record,
)
from tasks.inference.scoring import DeadLetters, ScoredBatch, ShardModel, dead_letter_budget, score_rows
from tasks.inference.tables import PREDICTION_GROUP_ROWS, prediction_table

log = logging.getLogger(__name__)

DEFAULT_MODEL = "tasks.inference.bundle_model:load_bundle_model"

AuditTable = Callable[[ObjectStore, ScoredRows], pa.Table]
LoadModel = Callable[[Settings, PipelineSpec, Plan], ShardModel]

_EXAMPLES = 3
_GRACE_S = 30.0
_POLL_S = 1.0


def resolve(reference: str) -> Any:
    """The object that `module:name` names; it must be importable wherever shards run.

    Raises:
        ConfigError: There is no such module or name.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"cannot be imported: {error}", which=reference, fix="give it as module:name"
        ) from error


@dataclass(frozen=True)
class _Part:
    """The rows of a shard that one model scored."""

    scored: ScoredRows
    identity: pa.Table
    """The source's key columns, rows as in `scored`."""


@dataclass(frozen=True)
class _Found:
    """What scoring a shard gave."""

    parts: tuple[_Part, ...]
    """The champion's, then those of an exposed challenger; empty when every row failed."""
    dead: DeadLetters
    profile: dict[str, Any] | None
    """Of all rows as the champion scored them."""
    exposed: ExposedRows | None = None

    @cached_property
    def ids(self) -> PredictionIds:
        return PredictionIds.concat([part.scored.prediction_ids for part in self.parts])

    @cached_property
    def order(self) -> pa.Array:
        """Positions of the rows of all parts in order of prediction id."""
        return pa.array(self.ids.order())

    @property
    def rows(self) -> int:
        return sum(len(part.scored.prediction_ids) for part in self.parts)

    @property
    def explained_rows(self) -> int:
        return sum(int(part.scored.explained.sum()) for part in self.parts)

    def table(self, rows_of: Callable[[_Part], pa.Table]) -> pa.Table | None:
        """`rows_of` every part, in order of prediction id; None without any."""
        tables = [rows_of(part) for part in self.parts]
        if len(tables) < 2:
            return tables[0] if tables else None
        whole = pa.concat_tables(tables).unify_dictionaries()
        return whole.take(self.order)


class ShardWorker:
    """Scores shards of one run under one fencing token. The model is loaded at the first shard.

    Args:
        settings: This installation.
        spec: The pipeline.
        plan: The run.
        token: Fencing token of this attempt.
        load_model: `module:function` of `(settings, spec, plan) -> ShardModel`.
        audit_table: `module:function` of `(store, scored) -> pa.Table`; None writes no audit rows.
        own_process: Whether this process may be ended when an attempt hangs in a call that cannot be interrupted.
        clock: The time.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PipelineSpec,
        plan: Plan,
        token: int,
        *,
        load_model: str = DEFAULT_MODEL,
        audit_table: str | None = None,
        own_process: bool = False,
        clock: Clock = utc_now,
    ) -> None:
        self.settings = settings
        self.spec = spec
        self.plan = plan
        self.token = token
        self.store = open_store(settings, prefix=spec.prefix)
        self._load_model = load_model
        self._audit_table: AuditTable | None = resolve(audit_table) if audit_table else None
        self._own_process = own_process
        self._clock = clock
        self._reader = PartitionReader(self.store, settings.cache_dir)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[int, Future[pa.Table]] | None = None
        self._models: dict[str, ShardModel] = {}
        self._refused: TerminalError | None = None

    @property
    def model(self) -> ShardModel:
        """The pinned model."""
        return self._loaded(self.plan)

    def _loaded(self, plan: Plan) -> ShardModel:
        digest = plan.fingerprint.bundle_digest
        if digest not in self._models:
            load: LoadModel = resolve(self._load_model)
            self._models[digest] = load(self.settings, self.spec, plan)
        return self._models[digest]

    def _challenger(self, plan: Plan) -> ShardModel:
        """As `_loaded`; a challenger that cannot be loaded is not fetched again for every shard."""
        if self._refused is not None:
            raise self._refused
        try:
            return self._loaded(plan)
        except TerminalError as error:
            self._refused = error
            raise

    def run(self, shard: int, *, then: int | None = None) -> ShardRecord:
        """Score and commit a shard; retries what may pass, up to `inference.shard_attempts` times.

        Args:
            shard: Its number in the plan.
            then: The shard that comes next; its rows are read and decoded while this one is scored.

        Raises:
            StaleAttempt: A newer attempt of the run exists.
            TransientError, OutcomeUnknown: The store kept failing.
            TerminalError: The shard cannot be scored; the class says why.
        """
        for attempt in range(1, self.spec.inference.shard_attempts + 1):
            try:
                return self.run_once(shard, then=then)
            except (TransientError, OutcomeUnknown) as error:
                if attempt == self.spec.inference.shard_attempts:
                    raise type(error)(
                        f"{error.what} (attempt {attempt} of inference.shard_attempts {attempt})",
                        which=error.which,
                        fix=error.fix,
                    ) from error
                log.warning("Shard %d, attempt %d: %s; trying again.", shard, attempt, error.what)
                time.sleep(min(30.0, 0.2 * 2**attempt))
        raise AssertionError("shard_attempts is at least 1")

    def run_once(self, shard: int, *, then: int | None = None) -> ShardRecord:
        """One attempt; `run` describes the arguments and the errors."""
        committed = read_shard_record(self.store, self.plan.run_id, shard)
        if committed is not None:
            return committed
        check_fence(self.store, self.plan.run_id, self.token)
        attempt = f"a{self.token:04d}-{secrets.token_hex(5)}"
        with bound(attempt=attempt):
            return self._attempt(shard, attempt, then)

    def _attempt(self, shard: int, attempt: str, then: int | None) -> ShardRecord:
        started, cpu_started = time.monotonic(), time.process_time()
        limit_s = self.spec.inference.shard_timeout_s
        task = self.plan.shards[shard]
        own: list[str] = []
        try:
            grace_s = max(_GRACE_S, limit_s) if self._own_process else None
            with interrupted_after(limit_s, end_process_after=grace_s):
                found = self._score(task, then)
                reached("before-data-file")
                files = self._write_predictions(found, task, attempt, own)
                reached("after-data-file")
                audit_files = self._write_audit(found, task, attempt, own)
                reached("after-audit-file")
                letters_key = self._write_dead_letters(found.dead, task, attempt, own)
            wall_s = time.monotonic() - started
            if wall_s > limit_s:
                raise TimeIsUp
        except TimeIsUp:
            discard(self.store, own)  # no record was tried: certainly nobody refers to them
            raise TransientError(
                f"took {time.monotonic() - started:.0f} s, more than inference.shard_timeout_s "
                f"({limit_s:g} s), and was interrupted",
                which=f"shard {shard:05d} of run {self.plan.run_id}",
                fix="raise inference.shard_timeout_s or lower inference.shard_rows",
            ) from None
        except PenstockError:
            discard(self.store, own)
            raise
        record = ShardRecord(
            run_id=self.plan.run_id,
            shard=shard,
            day=task.day,
            attempt=attempt,
            token=self.token,
            rows=found.rows,
            dead_letters=len(found.dead.letters),
            dead_letter_key=letters_key,
            dead_letter_examples=tuple(found.dead.letters[:_EXAMPLES]),
            files=files,
            audit_files=audit_files,
            profile=found.profile,
            cpu_seconds=round(time.process_time() - cpu_started, 4),
            wall_s=round(wall_s, 4),
            gpu_seconds=round(wall_s * self.spec.inference.gpus_per_worker, 4),
            node=socket.gethostname(),
            committed_at_utc=iso_utc(self._clock()),
            explained_rows=found.explained_rows,
            inexact_explanations=sum(self._inexact(part.scored, task) for part in found.parts),
            exposed=found.exposed,
        )
        pa.default_memory_pool().release_unused()  # a worker's memory is that of one shard, not of its largest one
        return commit_shard(self.store, record, own)

    def _score(self, task: ShardPlan, then: int | None) -> _Found:
        which = f"shard {task.shard:05d} of run {self.plan.run_id} (day {task.day})"
        replay = self.plan.fingerprint.replay_of is not None  # of rows that failed before: all may fail again
        budget = task.rows if replay else dead_letter_budget(self.spec, self.plan.rows)
        dead = DeadLetters(budget, which)
        rows = self._read(task)
        if then is not None:
            self._read_ahead(self.plan.shards[then])
        audited = self._audit_table is not None
        one_of = rows_counted_as_one(self.spec, self.plan.rows_by_day[task.day])
        batches = score_rows(
            self.model,
            self.spec,
            rows,
            first_row=task.row_start,
            dead=dead,
            explain=audited,
            counted=counted_among(task.rows, one_of),
        )
        exposed = self.plan.fingerprint.exposed
        if not batches:  # every row failed, within the budget
            return _Found((), dead, None, ExposedRows(0, 0, (), 0.0) if exposed else None)
        features = pa.concat_tables([batch.features for batch in batches])
        profile = self.model.profile(
            features,
            np.concatenate([batch.scores for batch in batches]),
            np.concatenate([batch.explained for batch in batches]),
            np.concatenate([batch.attributions for batch in batches]),
            _scored_rows(rows, task, batches),
            _counted_rows(batches, features),
        )
        if exposed is None:
            parts = [self._ordered(task, self.plan, batches, features if audited else features.slice(0, 0))]
            _refuse_duplicates(parts[0].scored.prediction_ids, which)
            return _Found(tuple(parts), dead, profile)
        other = as_challenger(self.plan, exposed)
        kept, taken, figures = score_slice(
            lambda: self._challenger(other), self.spec, exposed, rows, first_row=task.row_start,
            champion=batches, output_names=self.model.output_names, explain=audited, which=which,
        )  # fmt: skip
        parts = []
        for plan, part in ((self.plan, kept), (other, taken)):
            if sum(len(batch.scores) for batch in part):
                of_part = pa.concat_tables([batch.features for batch in part])
                parts.append(self._ordered(task, plan, part, of_part if audited else of_part.slice(0, 0)))
        found = _Found(tuple(parts), dead, profile, figures)
        _refuse_duplicates(found.ids.take(found.order.to_numpy()), which)
        return found

    def _inexact(self, scored: ScoredRows, task: ShardPlan) -> int:
        """How many explained rows have attributions that leave too much unexplained; says so in the log."""
        if not scored.explained.any():
            return 0
        left = np.abs(scored.residual[scored.explained])
        count = int((~(left <= COMPLETENESS_TOLERANCE)).sum())  # NaN is not small
        if count:
            log.warning(
                "Shard %d: attributions of %d of %d explained rows leave more than %g logits unexplained (up to %.3g): "
                "%s does not fit this network well.",
                task.shard, count, len(left), COMPLETENESS_TOLERANCE, float(left.max()), scored.explainer,
            )  # fmt: skip
        return count

    def _read(self, task: ShardPlan) -> pa.Table:
        """The shard's rows, from the read that was started ahead or from the store."""
        if self._ahead is None or self._ahead[0] != task.shard:
            return self._read_now(task)
        _, reading = self._ahead
        while not wait([reading], timeout=_POLL_S).done:
            pass  # short waits: a wait without end cannot be interrupted by the shard's deadline
        self._ahead = None
        return reading.result()

    def _read_ahead(self, task: ShardPlan) -> None:
        """Start reading another shard's rows beside this shard's computing. One at a time, so memory stays bounded."""
        if self._ahead is None or self._ahead[0] != task.shard:
            self._ahead = (task.shard, self._reading.submit(self._read_now, task))

    def _read_now(self, task: ShardPlan) -> pa.Table:
        partition = self.plan.partitions[task.partition]
        table = self._reader.read(partition, task.row_groups)
        rows = table.slice(task.skip_rows, task.rows)
        if rows.num_rows != task.rows:
            raise DataError(
                f"holds {table.num_rows} rows in row groups {list(task.row_groups)}, the plan needs "
                f"{task.skip_rows + task.rows}",
                which=self.store.url(partition.key),
                fix="the partition changed after the plan was made: restore it, or take a new snapshot",
            )
        return rows

    def _ordered(
        self, task: ShardPlan, plan: Plan, batches: Sequence[ScoredBatch], features: pa.Table
    ) -> _Part:
        """All rows of these batches in order of prediction id, scored by the model that `plan` pins.

        `features` comes with all of their rows, or with none when nobody wants them.
        """
        fingerprint, model = plan.fingerprint, self._loaded(plan)
        ids = PredictionIds.concat([batch.prediction_ids for batch in batches])
        order = ids.order()
        indices = pa.array(order)
        identity = pa.concat_tables([batch.identity for batch in batches]).take(indices)
        explained = np.concatenate([batch.explained for batch in batches])
        explained_order = (np.cumsum(explained) - 1)[order][explained[order]]
        bases = [batch.base_value for batch in batches if batch.explained.any()]

        def joined(name: str) -> Any:
            return np.concatenate([getattr(batch, name) for batch in batches])[order]

        scored = ScoredRows(
            pipeline=self.spec.name,
            run_id=self.plan.run_id,
            shard=task.shard,
            day=task.day,
            model_version=fingerprint.model_version,
            bundle_digest=fingerprint.bundle_digest,
            feature_version=fingerprint.feature_version,
            source_snapshot=fingerprint.snapshot_id,
            source_key=self.plan.partitions[task.partition].key,
            scored_at=self._clock(),
            prediction_ids=ids.take(order),
            event_times=identity.column(self.spec.event_time)
            .cast(pa.timestamp("us", tz="UTC"), safe=False)
            .combine_chunks(),
            entity_ids=pa.concat_arrays([batch.entity_ids for batch in batches]).take(indices),
            source_rows=joined("source_rows"),
            scores=joined("scores"),
            output_names=model.output_names,
            outputs=joined("outputs"),
            features=features.take(indices) if features.num_rows else features,
            explained=explained[order],
            attributions=np.concatenate([batch.attributions for batch in batches])[explained_order],
            base_value=bases[0] if bases else float("nan"),
            residual=joined("residual"),
            explainer=model.explainer,
            explainer_version=model.explainer_version,
            background_id=model.background_id,
        )
        return _Part(scored, identity)

    def _write_predictions(
        self, found: _Found, task: ShardPlan, attempt: str, own: list[str]
    ) -> tuple[TableFile, ...]:
        table = found.table(lambda part: prediction_table(part.scored, part.identity, self.spec))
        if table is None:
            return ()
        return self._write(PREDICTIONS, table, task, attempt, PREDICTION_GROUP_ROWS, own)

    def _write_audit(
        self, found: _Found, task: ShardPlan, attempt: str, own: list[str]
    ) -> tuple[TableFile, ...]:
        rows_of = self._audit_table
        if rows_of is None:
            return ()
        table = found.table(lambda part: rows_of(self.store, part.scored))
        if table is None:
            return ()
        return self._write(AUDIT, table, task, attempt, AUDIT_GROUP_ROWS, own)

    def _write(
        self,
        folder: str,
        table: pa.Table,
        task: ShardPlan,
        attempt: str,
        group_rows: int,
        own: list[str],
    ) -> tuple[TableFile, ...]:
        files = []
        for event_date, rows in by_event_date(table):
            name = FileName(event_date, self.plan.run_id, task.day, task.shard, attempt)
            own.append(f"{folder}/{name}")
            files.append(write_table_file(self.store, folder, name, rows, group_rows=group_rows))
        return tuple(files)

    def _write_dead_letters(
        self, dead: DeadLetters, task: ShardPlan, attempt: str, own: list[str]
    ) -> str | None:
        table = dead.table()
        if table is None:
            return None
        key = dead_letter_key(self.plan.run_id, task.shard, attempt)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        own.append(key)
        self.store.put(key, sink.getvalue().to_pybytes())
        log.warning("Shard %d: %d rows could not be scored; see %s.", task.shard, table.num_rows, key)
        return key


def _scored_rows(rows: pa.Table, task: ShardPlan, batches: Sequence[ScoredBatch]) -> pa.Table:
    """The source rows of the batches, in their order."""
    if sum(len(batch.source_rows) for batch in batches) == rows.num_rows:
        return rows
    return rows.take(pa.array(np.concatenate([batch.source_rows for batch in batches]) - task.row_start))


def _counted_rows(batches: Sequence[ScoredBatch], features: pa.Table) -> CountedRows | None:
    """Of all batches, whose features these are, in their order; None: all of their rows."""
    counted = [batch.counted for batch in batches if batch.counted is not None]
    if not counted:
        return None
    starts = np.cumsum([0, *(len(batch.scores) for batch in batches)])
    places = np.concatenate(
        [of_batch.places + start for of_batch, start in zip(counted, starts, strict=False)]
    )
    taken = [batch.counted_features for batch in batches if batch.counted_features is not None]
    found = pa.concat_tables(taken).combine_chunks() if taken else features.take(pa.array(places))
    return CountedRows(counted[0].one_of, places, found)


def _refuse_duplicates(ordered: PredictionIds, which: str) -> None:
    repeated = ordered.repeated()
    if len(repeated):
        raise DataError(
            f"holds {len(repeated)} rows whose entity key and event time repeat, "
            f"for example {repeated.texts()[0]}",
            which=which,
            fix="make entity_key in pipeline.yaml identify a row, or remove the repeated rows",
        )
