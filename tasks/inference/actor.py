"""What runs beside the driver: a process that scores the shards it is given. Its imports are kept few."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass

from tasks.core.cpu_share import take_own_share
from tasks.core.errors import PenstockError, TransientError
from tasks.core.log_lines import bound, handler
from tasks.core.memory_limit import limit_memory, out_of_memory, ran_out_of_memory
from tasks.core.object_store import open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.records import Plan, ShardRecord, read_plan
from tasks.inference.shard import ShardWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardOutcome:
    """What a driver learns of one shard."""

    shard: int
    attempt: str
    rows: int
    dead_letters: int
    cpu_seconds: float
    gpu_seconds: float
    wall_s: float
    bytes_read: int
    bytes_written: int
    node: str
    committed_at_utc: str

    @classmethod
    def of(cls, record: ShardRecord, planned: Plan) -> ShardOutcome:
        return cls(
            record.shard,
            record.attempt,
            record.rows,
            record.dead_letters,
            record.cpu_seconds,
            record.gpu_seconds,
            record.wall_s,
            planned.bytes_read(record.shard),
            sum(file.size_bytes for file in (*record.files, *record.audit_files)),
            record.node,
            record.committed_at_utc,
        )


@dataclass(frozen=True)
class ActorArguments:
    """What an actor needs to know; small, because it is sent to each of them."""

    settings: Settings
    spec: PipelineSpec
    run_id: str
    token: int
    load_model: str
    audit_table: str | None


class ShardActor:
    """Scores shards of one run, one after the other. A Ray actor, or an object of the driver's own process.

    Errors go back as records, because Ray would wrap them: so they keep their class.

    Args:
        arguments: The run and its attempt.
        own_process: Whether this process may be ended when an attempt hangs.
    """

    def __init__(self, arguments: ActorArguments, *, own_process: bool = True) -> None:
        self._own_process = own_process
        self._arguments = arguments
        self._worker: ShardWorker | None = None
        if (
            own_process and arguments.settings.log_format == "json"
        ):  # else Ray's own way with log lines is as good
            lines = handler(sys.stderr, arguments.settings.log_format)
            logging.basicConfig(level=logging.INFO, handlers=[lines], force=True)

    def where(self) -> str:
        """Id of the Ray node that this actor runs on; answers as soon as the process runs."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def outcome(self, shard: int, then: int | None = None) -> str:
        """Score one shard: JSON with either `ok`, a `ShardOutcome`, or `error`, a `PenstockError` record."""
        asked = self._arguments
        with bound(
            tenant=asked.spec.tenant,
            pipeline=asked.spec.name,
            run_id=asked.run_id,
            token=asked.token,
            shard=shard,
        ):
            return self._outcome(shard, then)

    def _outcome(self, shard: int, then: int | None) -> str:
        try:
            worker = self._ready()
            done = ShardOutcome.of(worker.run(shard, then=then), worker.plan)
            if self._own_process:  # the driver tells of its own
                with bound(attempt=done.attempt):
                    log.info("Shard %d: %d rows in %.2f s.", shard, done.rows, done.wall_s)
            return json.dumps({"ok": done.__dict__})
        except PenstockError as error:
            return failed(shard, error)
        except Exception as error:
            if ran_out_of_memory(error):
                return failed(shard, out_of_memory(error, which=f"shard {shard:05d}"))
            log.exception("Shard %d failed.", shard)
            wrapped = TransientError(
                f"failed with {type(error).__name__}: {error}",
                which=f"shard {shard:05d}",
                fix="see the traceback in the worker's log; a retry scores only what is missing",
            )
            return failed(shard, wrapped)

    def _ready(self) -> ShardWorker:
        """The worker, made at the first shard so that its errors are shard outcomes too."""
        if self._worker is None:
            asked = self._arguments
            limit = asked.spec.inference.memory_gib_per_worker
            if limit is not None and self._own_process:
                limit_memory(limit, field="inference.memory_gib_per_worker")
            if self._own_process:
                take_own_share()
            planned = read_plan(open_store(asked.settings, prefix=asked.spec.prefix), asked.run_id)
            self._worker = ShardWorker(
                asked.settings,
                asked.spec,
                planned,
                asked.token,
                load_model=asked.load_model,
                audit_table=asked.audit_table,
                own_process=self._own_process,
            )
        return self._worker


def failed(shard: int, error: PenstockError) -> str:
    """The outcome of a shard that could not be scored."""
    return json.dumps({"shard": shard, "error": error.as_record()})
