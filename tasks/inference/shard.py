"""Read, score and commit one shard. A plain class: it runs in a Ray actor and in a test alike."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import FileName, TableFile
from tasks.core.errors import ConfigError, DataError, OutcomeUnknown, PenstockError, TransientError
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.scored import ScoredRows
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.commit import check_fence, commit_shard, discard
from tasks.inference.deadline import TimeIsUp, interrupted_after
from tasks.inference.reading import PartitionReader
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    Plan,
    ShardPlan,
    ShardRecord,
    dead_letter_key,
    read_shard_record,
)
from tasks.inference.scoring import DeadLetters, ScoredBatch, ShardModel, dead_letter_budget, score_rows
from tasks.inference.tables import (
    AUDIT_GROUP_ROWS,
    PREDICTION_GROUP_ROWS,
    by_event_date,
    prediction_table,
    write_table_file,
)

log = logging.getLogger(__name__)

DEFAULT_MODEL = "tasks.inference.bundle_model:load_bundle_model"

AuditTable = Callable[[ObjectStore, PipelineSpec, ScoredRows], pa.Table]
LoadModel = Callable[[Settings, PipelineSpec, Plan], ShardModel]

_EXAMPLES = 3
_GRACE_S = 30.0


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


class ShardWorker:
    """Scores shards of one run under one fencing token. The model is loaded at the first shard.

    Args:
        settings: This installation.
        spec: The pipeline.
        plan: The run.
        token: Fencing token of this attempt.
        load_model: `module:function` of `(settings, spec, plan) -> ShardModel`.
        audit_table: `module:function` of `(store, spec, scored) -> pa.Table`; None writes no audit rows.
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
        self._model: ShardModel | None = None

    @property
    def model(self) -> ShardModel:
        """The pinned model."""
        if self._model is None:
            load: LoadModel = resolve(self._load_model)
            self._model = load(self.settings, self.spec, self.plan)
        return self._model

    def run(self, shard: int) -> ShardRecord:
        """Score and commit a shard; retries what may pass, up to `inference.shard_attempts` times.

        Raises:
            StaleAttempt: A newer attempt of the run exists.
            TransientError, OutcomeUnknown: The store kept failing.
            TerminalError: The shard cannot be scored; the class says why.
        """
        for attempt in range(1, self.spec.inference.shard_attempts + 1):
            try:
                return self.run_once(shard)
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

    def run_once(self, shard: int) -> ShardRecord:
        """One attempt; `run` describes the errors."""
        committed = read_shard_record(self.store, self.plan.run_id, shard)
        if committed is not None:
            return committed
        check_fence(self.store, self.plan.run_id, self.token)
        started, cpu_started = time.monotonic(), time.process_time()
        limit_s = self.spec.inference.shard_timeout_s
        task = self.plan.shards[shard]
        attempt = f"a{self.token:04d}-{secrets.token_hex(5)}"
        own: list[str] = []
        try:
            grace_s = max(_GRACE_S, limit_s) if self._own_process else None
            with interrupted_after(limit_s, end_process_after=grace_s):
                scored, source, dead, profile = self._score(task)
                reached("before-data-file")
                files = self._write(
                    PREDICTIONS,
                    prediction_table(scored, source, self.spec),
                    task,
                    attempt,
                    PREDICTION_GROUP_ROWS,
                    own,
                )
                reached("after-data-file")
                audit_files: tuple[TableFile, ...] = ()
                if self._audit_table is not None and scored.prediction_ids:
                    rows = self._audit_table(self.store, self.spec, scored)
                    audit_files = self._write(AUDIT, rows, task, attempt, AUDIT_GROUP_ROWS, own)
                reached("after-audit-file")
                letters_key = self._write_dead_letters(dead, task, attempt, own)
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
            rows=len(scored.prediction_ids),
            dead_letters=len(dead.letters),
            dead_letter_key=letters_key,
            dead_letter_examples=tuple(dead.letters[:_EXAMPLES]),
            files=files,
            audit_files=audit_files,
            profile=profile,
            cpu_seconds=round(time.process_time() - cpu_started, 4),
            wall_s=round(wall_s, 4),
            gpu_seconds=round(wall_s * self.spec.inference.gpus_per_worker, 4),
            node=socket.gethostname(),
            committed_at_utc=iso_utc(self._clock()),
        )
        return commit_shard(self.store, record, own)

    def _score(self, task: ShardPlan) -> tuple[ScoredRows, pa.Table, DeadLetters, dict[str, Any] | None]:
        which = f"shard {task.shard:05d} of run {self.plan.run_id} (day {task.day})"
        replay = self.plan.fingerprint.replay_of is not None  # of rows that failed before: all may fail again
        budget = task.rows if replay else dead_letter_budget(self.spec, self.plan.rows)
        dead = DeadLetters(budget, which)
        rows = self._read(task)
        batches = score_rows(self.model, self.spec, rows, first_row=task.row_start, dead=dead)
        if not batches:  # every row failed, within the budget
            return self._scored_rows(task, []), rows.slice(0, 0), dead, None
        source = pa.concat_tables([batch.rows for batch in batches])
        features = pa.concat_tables([batch.features for batch in batches])
        scored = self._scored_rows(task, batches)
        profile = self.model.profile(features, scored.scores)
        order = pc.sort_indices(pa.array(scored.prediction_ids, pa.string()))
        ordered = _reordered(scored, features, order.to_numpy())
        _refuse_duplicates(ordered.prediction_ids, which)
        return ordered, source.take(order), dead, profile

    def _read(self, task: ShardPlan) -> pa.Table:
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

    def _scored_rows(self, task: ShardPlan, batches: Sequence[ScoredBatch]) -> ScoredRows:
        fingerprint = self.plan.fingerprint
        names = self.model.feature_names
        moments = [batch.rows.column(self.spec.event_time) for batch in batches]
        kind = pa.timestamp("us", tz="UTC")
        times = [column.cast(kind, safe=False).combine_chunks() for column in moments]
        bases = [batch.base_value for batch in batches if batch.explained.any()]

        def joined(name: str, empty: Any) -> Any:
            parts = [getattr(batch, name) for batch in batches]
            return np.concatenate(parts) if parts else empty

        return ScoredRows(
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
            prediction_ids=[item for batch in batches for item in batch.prediction_ids],
            event_times=pa.concat_arrays(times) if times else pa.array([], kind),
            entity_ids=[item for batch in batches for item in batch.entity_ids],
            source_rows=joined("source_rows", np.zeros(0, np.int64)),
            scores=joined("scores", np.zeros(0, np.float32)),
            features=pa.concat_tables([batch.features for batch in batches]) if batches else pa.table({}),
            explained=joined("explained", np.zeros(0, bool)),
            attributions=joined("attributions", np.zeros((0, len(names)), np.float32)),
            base_value=bases[0] if bases else float("nan"),
            residual=joined("residual", np.zeros(0, np.float32)),
            explainer=self.model.explainer,
            explainer_version=self.model.explainer_version,
            background_id=self.model.background_id,
        )

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


def _reordered(scored: ScoredRows, features: pa.Table, order: Any) -> ScoredRows:
    indices = pa.array(order)
    changed = {
        "prediction_ids": [scored.prediction_ids[i] for i in order],
        "event_times": scored.event_times.take(indices),
        "entity_ids": [scored.entity_ids[i] for i in order],
        "source_rows": scored.source_rows[order],
        "scores": scored.scores[order],
        "features": features.take(indices),
        "explained": scored.explained[order],
        "attributions": scored.attributions[order],
        "residual": scored.residual[order],
    }
    return ScoredRows(**{**scored.__dict__, **changed})


def _refuse_duplicates(ordered_ids: list[str], which: str) -> None:
    twice = [a for a, b in pairwise(ordered_ids) if a == b]
    if twice:
        raise DataError(
            f"holds {len(twice)} rows whose entity key and event time repeat, for example {twice[0]}",
            which=which,
            fix="make entity_key in pipeline.yaml identify a row, or remove the repeated rows",
        )
