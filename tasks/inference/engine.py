"""Score a planned run: on Ray, or in this process.

Rows never cross Ray's object store: an actor is given a shard's number, reads, scores and commits it by itself, and
gives back a few figures.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

from tasks.core.clock import Clock, utc_now
from tasks.core.errors import (
    ConfigError,
    DataError,
    DigestMismatch,
    FingerprintMismatch,
    PenstockError,
    PipelineCodeError,
    StaleAttempt,
    TransientError,
    error_from_record,
    error_kind,
)
from tasks.core.object_store import ObjectStore, open_store, probe
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.traces import Span, current
from tasks.inference.actor import ActorArguments, ShardActor, ShardOutcome
from tasks.inference.commit import take_token
from tasks.inference.planning import check_unchanged
from tasks.inference.pool import score_on_ray
from tasks.inference.records import (
    DeadLetter,
    Plan,
    RunReport,
    ShardRecord,
    committed_shards,
    read_plan,
    read_shard_records,
)
from tasks.inference.scoring import describe
from tasks.inference.shard import DEFAULT_MODEL
from tasks.inference.width import Demand, Made, Width, WorkerTime

log = logging.getLogger(__name__)

_EXAMPLES = 3
_PROGRESS_S = 5.0
_GIVE_UP = 8
_EVERY_SHARDS_FAULT = (StaleAttempt, DigestMismatch, FingerprintMismatch, PipelineCodeError, ConfigError)


def run_plan(
    settings: Settings,
    spec: PipelineSpec,
    run_id: str,
    *,
    local: bool = False,
    audit_table: str | None,
    load_model: str = DEFAULT_MODEL,
    width: Width | None = None,
    clock: Clock = utc_now,
) -> RunReport:
    """Score and commit every shard of a run that has no record yet. Calling it again finishes what is missing.

    When all shards are committed nothing is started, no token taken. Otherwise this call is the run's newest
    attempt: attempts that are still under way elsewhere are refused at their next commit.

    Args:
        settings: This installation.
        spec: The pipeline.
        run_id: A planned run.
        local: Score in this process, without Ray.
        audit_table: `module:function` that builds the audit rows, `tasks.audit:audit_table`; None writes none.
        load_model: `module:function` that loads the model.
        width: How many workers on Ray the run may have at a time; None: as many as the pipeline says. Of a run in this
            process it hears the end alone.
        clock: The time.

    Raises:
        NotFound: The run was not planned.
        FingerprintMismatch: The pipeline was edited since.
        StaleAttempt: A newer attempt took over.
        DataError: More rows than `inference.max_dead_letter_share` could not be scored, or input is damaged.
        ConfigError: The store does not honour exclusive create.
        PenstockError: What stopped a shard after `inference.shard_attempts` attempts, in its own class, with the
            shard's name and the last cause. The other shards are scored first, unless the cause is that of
            every shard: a stale attempt, a damaged model, wrong code or settings, or a store that is away.
    """
    started = time.monotonic()
    store = open_store(settings, prefix=spec.prefix)
    planned = read_plan(store, run_id)
    check_unchanged(spec, planned)
    done = committed_shards(store, run_id)
    missing = [task.shard for task in planned.shards if task.shard not in done]
    if not missing:
        log.info("Run %s: all %d shards are committed; nothing to do.", run_id, len(planned.shards))
        return _report(planned, store, None, [], len(done), started, spec)
    probe(store)
    token = take_token(store, run_id, clock=clock)
    log.info(
        "Run %s, attempt %d: %d of %d shards to score, %d committed before.",
        run_id,
        token,
        len(missing),
        len(planned.shards),
        len(done),
    )
    arguments = ActorArguments(settings, spec, run_id, token, load_model, audit_table)
    outcomes: list[ShardOutcome] = []
    failures = _Failures(planned)
    progress = _Progress(planned, missing)
    around = current(settings)
    score = _score_here if local else score_on_ray
    with closing(score(arguments, missing, width)) as texts:  # its workers end with the first error
        for text in texts:
            found = json.loads(text)
            if "error" in found:
                now = clock()
                around.child(
                    "shard", now, now, failed=found["error"]["what"], run_id=run_id, shard=found["shard"]
                )
                failures.add(int(found["shard"]), error_from_record(found["error"]))
                continue
            failures.reset()
            outcomes.append(ShardOutcome(**found["ok"]))
            _trace(around, run_id, outcomes[-1])
            progress.add(outcomes[-1])
    failures.raise_if_any(len(done) + len(outcomes))
    return _report(planned, store, token, outcomes, len(done), started, spec)


def _trace(around: Span, run_id: str, done: ShardOutcome) -> None:
    """A shard's span, told by its outcome: workers send nothing and load nothing for it."""
    ended = datetime.fromisoformat(done.committed_at_utc)
    around.child(
        "shard",
        ended - timedelta(seconds=done.wall_s),
        ended,
        run_id=run_id,
        shard=done.shard,
        attempt=done.attempt,
        rows=done.rows,
        dead_letters=done.dead_letters,
        cpu_seconds=done.cpu_seconds,
        node=done.node,
    )


def refuse_dead_letters(
    store: ObjectStore, spec: PipelineSpec, planned: Plan, records: list[ShardRecord]
) -> None:
    """Refuse a run in which more rows failed than the pipeline allows (I8).

    Raises:
        DataError: Names the count, the limit and examples.
    """
    if planned.fingerprint.replay_of is not None:
        return  # these rows failed before, and the run that they failed in was judged
    count = sum(record.dead_letters for record in records)
    share, limit = count / planned.rows, spec.inference.max_dead_letter_share
    if share <= limit:
        return
    examples: list[DeadLetter] = [item for record in records for item in record.dead_letter_examples]
    keys = [record.dead_letter_key for record in records if record.dead_letter_key]
    raise DataError(
        f"{count:,} of {planned.rows:,} rows ({share:.2%}) could not be scored, more than "
        f"inference.max_dead_letter_share ({limit:.2%}); for example "
        + "; ".join(describe(item) for item in examples[:_EXAMPLES]),
        which=f"run {planned.run_id}",
        fix=f"nothing was published; read {store.url(keys[0])}, then correct the source or the features, "
        "or raise inference.max_dead_letter_share and publish",
    )


def _report(
    planned: Plan,
    store: Any,
    token: int | None,
    outcomes: list[ShardOutcome],
    skipped: int,
    started: float,
    spec: PipelineSpec,
) -> RunReport:
    records = read_shard_records(store, planned.run_id, [task.shard for task in planned.shards])
    if len(records) < len(planned.shards):
        raise TransientError(
            f"only {len(records)} of {len(planned.shards)} shards have a record",
            which=f"run {planned.run_id}",
            fix="run it again: committed shards are skipped",
        )
    refuse_dead_letters(store, spec, planned, records)
    report = RunReport(
        run_id=planned.run_id,
        token=token,
        shards=len(planned.shards),
        shards_committed=len(outcomes),
        shards_skipped=skipped,
        rows_scored=sum(item.rows for item in outcomes),
        dead_letters=sum(record.dead_letters for record in records),
        cpu_seconds=round(sum(item.cpu_seconds for item in outcomes), 3),
        gpu_seconds=round(sum(item.gpu_seconds for item in outcomes), 3),
        wall_s=round(time.monotonic() - started, 3),
    )
    if outcomes:
        log.info(
            "Run %s: scored %s rows in %d shards, %.1f CPU-s, %.1f s; %d dead letters.",
            planned.run_id,
            f"{report.rows_scored:,}",
            report.shards_committed,
            report.cpu_seconds,
            report.wall_s,
            report.dead_letters,
        )
    return report


class _Failures:
    """Shards that could not be scored. One of them does not keep the others from finishing."""

    def __init__(self, planned: Plan) -> None:
        self._planned = planned
        self._errors: dict[int, PenstockError] = {}
        self._in_a_row = 0

    def reset(self) -> None:
        """A shard succeeded: the fault is not everywhere."""
        self._in_a_row = 0

    def add(self, shard: int, error: PenstockError) -> None:
        """Keep a shard's failure.

        Raises:
            PenstockError: `error` itself, when every other shard would fail for the same reason; or the failure
                of this shard, when so many failed in a row that the store must be away.
        """
        log.error("Run %s, shard %d failed: %s", self._planned.run_id, shard, error.what)
        if isinstance(error, _EVERY_SHARDS_FAULT):
            raise error
        self._errors[shard] = error
        self._in_a_row = 0 if isinstance(error, DataError) else self._in_a_row + 1
        if self._in_a_row >= _GIVE_UP:
            self.raise_if_any(None)

    def raise_if_any(self, committed: int | None) -> None:
        """Raise the failure that matters most: one that a retry does not heal, of the lowest shard."""
        if not self._errors:
            return
        order = {"terminal": 0, "unknown": 1, "transient": 2}
        shard, error = min(self._errors.items(), key=lambda item: (order[error_kind(item[1])], item[0]))
        others = sorted(set(self._errors) - {shard})
        what = error.what
        if others:
            named = ", ".join(f"{number:05d}" for number in others[:_EXAMPLES])
            what += f"; {len(others)} more shards failed: {named}{', ...' if len(others) > _EXAMPLES else ''}"
        if committed is not None:
            what += f"; {committed} of {len(self._planned.shards)} shards are committed and kept"
        which = f"shard {shard:05d} of run {self._planned.run_id}"
        if error.which and which not in error.which:
            which += f" ({error.which})"
        raise type(error)(what, which=which, fix=error.fix) from error


class _Progress:
    """Log lines: shard k of n, rows/s, time left."""

    def __init__(self, planned: Plan, missing: list[int]) -> None:
        self._total = len(missing)
        self._rows = sum(planned.shards[shard].rows for shard in missing)
        self._done = 0
        self._done_rows = 0
        self._started = time.monotonic()
        self._said = 0.0

    def add(self, outcome: ShardOutcome) -> None:
        self._done += 1
        self._done_rows += outcome.rows + outcome.dead_letters
        now = time.monotonic()
        if self._done < self._total and now - self._said < _PROGRESS_S:
            return
        self._said = now
        rate = self._done_rows / max(now - self._started, 1e-9)
        log.info(
            "Shard %d of %d (%s of %s rows), %s rows/s, about %.0f s left.",
            self._done,
            self._total,
            f"{self._done_rows:,}",
            f"{self._rows:,}",
            f"{rate:,.0f}",
            (self._rows - self._done_rows) / rate if rate else 0.0,
        )


def _score_here(
    arguments: ActorArguments, shards: list[int], width: Width | None
) -> Generator[str, None, None]:
    actor = ShardActor(arguments, own_process=False)
    spent, made, left = WorkerTime(), Made(), len(shards)
    spent.begin("here", time.monotonic())
    try:
        for shard, then in zip(shards, [*shards[1:], None], strict=True):
            spent.work("here", time.monotonic())
            text = actor.outcome(shard, then)
            scored = json.loads(text).get("ok")
            spent.done("here", time.monotonic(), counts=scored is not None)
            made, left = made.less() if scored is None else made.plus(scored), left - 1
            yield text
    finally:
        spent.end("here", time.monotonic())
        if width is not None:
            allocated_s = spent.allocated_s(time.monotonic())
            width.leave(Demand(0, 0, left, None, allocated_s, spent.used_s, spent.wasted_s, made))
