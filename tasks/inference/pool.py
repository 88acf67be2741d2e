"""A pool of Ray actors that score shards: `dispatch` decides, this asks Ray.

Actors and not Ray Data: an actor starts with fewer imports, a slow shard can be given to a second one, and an actor
leaves when there is nothing for it (docs/adr/0008).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any

from tasks.core.errors import ServiceUnavailable, TransientError
from tasks.core.units import GIB
from tasks.inference.actor import ActorArguments, ShardActor, failed
from tasks.inference.dispatch import Dispatch, wanted_workers
from tasks.inference.width import Demand, Made, Width, WorkerTime

log = logging.getLogger(__name__)

_POLL_S = 1.0
_NODE_NEWS_S = 10.0
_NODE_POLL_S = 0.2
_SAID_AFTER_S = 15.0
_OBJECT_STORE_BYTES = 80 << 20
"""Of a Ray that this process starts for itself: only shard numbers and a few figures pass through it."""


def score_on_ray(
    arguments: ActorArguments, shards: list[int], width: Width | None = None
) -> Generator[str, None, None]:
    """The outcome of each shard as it comes, from actors on the Ray cluster, or on one started for this call.

    With `width` the pool never has more actors than that allows, asks again after each shard, and waits while it allows none.

    Raises:
        ServiceUnavailable: Ray is away, places no worker, or keeps losing them before they score anything.
    """
    import ray
    from ray.exceptions import RayError

    ours = not ray.is_initialized() and _connect(ray)
    pool = _Pool(arguments, shards, width)
    try:
        yield from pool.outcomes()
    except RayError as error:
        raise ServiceUnavailable(
            f"Ray could not finish the run: {type(error).__name__}: {_first_line(error)}",
            which=f"run {arguments.run_id}",
            fix="run it again: committed shards are skipped; if it persists, see the Ray dashboard",
        ) from error
    finally:
        pool.close()
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> bool:
    """Join the cluster that this process belongs to; True when there was none and one was started for this run."""
    try:
        ray.init(address="auto", log_to_driver=True)
    except ConnectionError:
        # Of its own, because Ray would keep one in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=True,
        )
        return True
    return False


class _Pool:
    def __init__(self, arguments: ActorArguments, shards: list[int], width: Width | None) -> None:
        import ray

        self._width = width
        self._allowed: int | None = None if width is None else 0
        """Workers that it may have; None: as many as it wants."""
        self._time = WorkerTime()
        self._made = Made()
        self._began_s = time.monotonic()
        self._shards = len(shards)

        self._spec = arguments.spec.inference
        self._arguments = arguments
        self._dispatch = Dispatch(
            shards, attempts=self._spec.shard_attempts, slow_factor=self._spec.slow_shard_factor
        )
        # No restarts by Ray: a worker that died is replaced here, where it is known which shard it died over.
        self._actor = ray.remote(ShardActor).options(
            num_cpus=self._spec.cpus_per_worker,
            num_gpus=self._spec.gpus_per_worker or None,
            memory=int(self._spec.memory_gib_per_worker * GIB) if self._spec.memory_gib_per_worker else None,
            scheduling_strategy="SPREAD",
            max_restarts=0,
        )
        self._names = (f"worker {number}" for number in count(1))
        self._handles: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        """Node of each worker that has started."""
        self._away: set[str | None] = set()
        """Nodes that were found not to answer."""
        self._calls: dict[Any, str] = {}
        """Call that is under way -> worker."""
        self._idle: list[str] = []
        self._deaths_in_a_row = 0

    def outcomes(self) -> Iterator[str]:
        """The outcome of each shard, once."""
        without_s, said = time.monotonic(), False
        boundary = False
        while self._dispatch.unsettled:
            self._ask(boundary=boundary)
            self._grow()
            done = self._wait()
            for call in done:
                yield from self._answer(call)
            boundary = bool(done)
            if boundary:
                self._ask(boundary=True)
            self._hand_out()
            waited_s = time.monotonic() - without_s
            if self._allowed == 0 or any(worker in self._nodes for worker in self._handles):
                without_s, said = time.monotonic(), False
            elif waited_s > self._spec.placement_timeout_s:
                raise self._unplaced()
            elif waited_s > _SAID_AFTER_S and not said:
                said = True
                log.warning("Waiting for a worker: %s", self._unplaced().what)

    def close(self) -> None:
        """End all workers; a duplicate that is still at work would only find its shard committed."""
        for worker in list(self._handles):
            self._end(worker)
        if self._width is not None:
            self._width.leave(self._demand())

    def _wanted(self) -> int:
        return wanted_workers(
            self._dispatch.unsettled, least=self._spec.min_workers, most=self._spec.max_workers
        )

    def _demand(self) -> Demand:
        now_s, left = time.monotonic(), self._dispatch.unsettled
        settled = self._shards - left
        return Demand(
            workers=len(self._handles),
            wanted=self._wanted(),
            shards_left=left,
            ends_in_s=(now_s - self._began_s) / settled * left if settled else None,
            allocated_s=self._time.allocated_s(now_s),
            used_s=self._time.used_s,
            wasted_s=self._time.wasted_s,
            made=self._made,
        )

    def _ask(self, *, boundary: bool) -> None:
        """How many workers it may have; those that have not begun anything leave at once, others when their shard is done."""
        if self._width is None:
            return
        self._allowed = self._width.allowed(self._demand(), boundary=boundary)
        for call, worker in list(self._calls.items()):
            if len(self._handles) <= self._allowed:
                return
            if worker not in self._nodes:
                del self._calls[call]
                self._end(worker)

    def _wait(self) -> list[Any]:
        """Calls that have ended."""
        import ray

        if not self._calls:
            time.sleep(_POLL_S)
            return []
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=_POLL_S)
        return list(done)

    def _grow(self) -> None:
        wanted = self._wanted() if self._allowed is None else min(self._dispatch.unsettled, self._allowed)
        while len(self._handles) < wanted:
            worker = next(self._names)
            self._time.begin(worker, time.monotonic())
            self._handles[worker] = self._actor.remote(self._arguments)
            self._calls[self._handles[worker].where.remote()] = worker

    def _answer(self, call: Any) -> Iterator[str]:
        import ray
        from ray.exceptions import RayError

        worker = self._calls.pop(call)
        try:
            text: str = ray.get(call)
        except RayError as error:
            yield from self._lost(worker, error)
            return
        self._idle.append(worker)
        if worker not in self._nodes:  # its first answer says where it is
            self._nodes[worker] = text
            return
        self._deaths_in_a_row = 0
        now_s = time.monotonic()
        first = self._dispatch.settle(worker, now_s) is not None
        scored = json.loads(text).get("ok")
        self._time.done(worker, now_s, counts=first and scored is not None)
        if first:
            self._made = self._made.less() if scored is None else self._made.plus(scored)
            yield text

    def _lost(self, worker: str, error: Exception) -> Iterator[str]:
        died = self._died_by_itself(worker, error)
        log.warning("Lost %s%s: %s", worker, "" if died else " with its node", _first_line(error))
        self._end(worker)
        self._deaths_in_a_row += 1
        shard = self._dispatch.lose(worker, counts=died)
        if shard is not None:
            self._made = self._made.less()
            yield failed(shard, self._deadly(shard, error))
        if self._deaths_in_a_row > self._spec.max_workers + self._spec.shard_attempts:
            raise ServiceUnavailable(
                f"{self._deaths_in_a_row} workers in a row died before one finished a shard: {_first_line(error)}",
                which=f"run {self._arguments.run_id}",
                fix="see the workers' logs in the Ray dashboard; a worker that is out of memory needs a lower "
                "inference.shard_rows or fewer workers on a node",
            )

    def _died_by_itself(self, worker: str, error: Exception) -> bool:
        """Whether the worker's process ended on a node that lives, so that its shard may be to blame.

        Ray says so at once when it is so. It takes many seconds to call a node dead that does not answer; until then the
        node's workers are unavailable, and those are given up here.
        """
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

        node = self._nodes.get(worker)
        until_s = time.monotonic() + (0.0 if node in self._away else _NODE_NEWS_S)
        while isinstance(error, ActorUnavailableError):
            if time.monotonic() >= until_s:
                self._away.add(node)
                return False
            time.sleep(_NODE_POLL_S)
            try:
                ray.get(self._handles[worker].where.remote(), timeout=_NODE_NEWS_S)
                return False  # it was out of reach for a moment
            except ActorDiedError as final:
                error = final
            except (ActorUnavailableError, GetTimeoutError):
                continue
        if getattr(error, "preempted", False):
            return False
        return node is None or any(found["NodeID"] == node and found["Alive"] for found in ray.nodes())

    def _hand_out(self) -> None:
        now_s = time.monotonic()
        waiting = []
        for worker in self._idle:
            if self._allowed is not None and len(self._handles) > self._allowed:
                log.info("%s leaves: the run may have %d workers now.", worker, self._allowed)
                self._dispatch.lose(worker, counts=False)  # what it has read ahead is for others
                self._end(worker)
                continue
            given = self._dispatch.assign(worker, now_s)
            if given is None:
                waiting.append(worker)
                continue
            if given.duplicate:
                log.info("Shard %d is slow; %s scores it as well.", given.shard, worker)
            self._time.work(worker, now_s)
            self._calls[self._handles[worker].outcome.remote(given.shard, given.then)] = worker
        # One idle worker waits for a shard that turns out slow or loses its worker; others can have the rest.
        self._idle = waiting[:1]
        for worker in waiting[1:]:
            self._end(worker)

    def _end(self, worker: str) -> None:
        import ray

        self._time.end(worker, time.monotonic())
        ray.kill(self._handles.pop(worker), no_restart=True)

    def _deadly(self, shard: int, error: Exception) -> TransientError:
        return TransientError(
            f"ended its worker process {self._spec.shard_attempts} times: {_first_line(error)} {self._memory()}",
            which=f"shard {shard:05d} of run {self._arguments.run_id}",
            fix="see the worker's log in the Ray dashboard; a process that the kernel ends for memory writes nothing there: with "
            "inference.memory_gib_per_worker it fails with the figure instead. Raise that, or lower inference.shard_rows",
        )

    def _memory(self) -> str:
        import ray

        limit = self._spec.memory_gib_per_worker
        each = f"{limit:g} GiB" if limit else "no limit"
        nodes = [node["Resources"].get("memory", 0.0) / GIB for node in ray.nodes() if node["Alive"]]
        return (
            f"(Memory: a worker has {each} (inference.memory_gib_per_worker), and Ray counts "
            f"{max(nodes, default=0.0):.1f} GiB on the largest node.)"
        )

    def _unplaced(self) -> ServiceUnavailable:
        import ray

        each = f"{self._spec.cpus_per_worker:g} CPU"
        if self._spec.gpus_per_worker:
            each += f" and {self._spec.gpus_per_worker:g} GPU"
        if self._spec.memory_gib_per_worker:
            each += f" and {self._spec.memory_gib_per_worker:g} GiB"
        total, free = (
            {
                "CPU": round(found.get("CPU", 0.0), 2),
                "GPU": round(found.get("GPU", 0.0), 2),
                "GiB": round(found.get("memory", 0.0) / GIB, 1),
            }
            for found in (ray.cluster_resources(), ray.available_resources())
        )
        return ServiceUnavailable(
            f"Ray has placed no worker (limit {self._spec.placement_timeout_s:g} s): each needs {each} on one node; "
            f"the whole cluster has {total}, of which {free} are free",
            which=f"run {self._arguments.run_id}",
            fix="wait for other jobs, add nodes, or lower inference.cpus_per_worker and gpus_per_worker; "
            "then run it again",
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
