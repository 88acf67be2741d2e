"""The same application on Ray Serve: as many replicas as the load asks for, behind Ray's HTTP proxy.

Each replica is a whole server: it follows the deployment log, admits and refuses by its own queue, and writes to the audit store
by itself. Ray starts, watches and ends replicas and passes requests on; it decides nothing about them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.core.errors import ConfigError, ServiceUnavailable
from tasks.serving.app import PredictionApp
from tasks.serving.limits import ServingLimits
from tasks.serving.replicas import Board, Teller, merged
from tasks.serving.running import SWITCH_INTERVAL_S
from tasks.serving.scaling import BUSY_SHARE, WAITING_S, Scale, by_load
from tasks.serving.server import ModelServer

log = logging.getLogger(__name__)

Build = Callable[[], tuple[ModelServer, str]]
"""Makes a replica's server, and a name for it that no other replica has."""
_NAMESPACE = "penstock"
_PREFIX = "penstock-"
_BOARD_TIMEOUT_S = 5.0
_KNOCK_TIMEOUT_S = 5.0
_CODE = str(Path(__file__).resolve().parents[2])


class Replica:
    """One replica. Ray Serve runs the application's lifespan, and so starts and stops the server.

    Args:
        build: Runs in the replica's process.
        board: Where replicas say their metrics.
        every_s: How often they do.
    """

    def __init__(self, build: Build, board: Any, every_s: float) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._server, self.name = build()
        self._server.follow_once()
        self._board = board
        self._teller = Teller(self._tell, every_s)
        self._asked_at, self._busy_s, self._cpu_s = time.monotonic(), 0.0, time.process_time()

    def __serve_build_asgi_app__(self) -> PredictionApp:  # Ray Serve calls it
        return PredictionApp(self._server, metrics=self._metrics)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load since it was asked last, for `scaling.by_load`.

        A small model leaves its thread idle while the rest of the process is the limit, so the busier of both counts.
        """
        now, busy_s, cpu_s = time.monotonic(), self._server.busy_s, time.process_time()
        passed_s = max(1e-3, now - self._asked_at)
        share = max(busy_s - self._busy_s, cpu_s - self._cpu_s) / passed_s
        self._asked_at, self._busy_s, self._cpu_s = now, busy_s, cpu_s
        return {WAITING_S: self._server.waiting_s, BUSY_SHARE: min(1.0, share)}

    async def __del__(self) -> None:
        await asyncio.to_thread(self._teller.close)
        self._board.remove.remote(self.name)

    def _tell(self) -> None:
        try:
            self._board.put.remote(self.name, self._server.metrics.text())
        except Exception as error:
            log.warning("Metrics are not told: %s", error)

    def _metrics(self) -> bytes:
        """Those of all replicas, its own as they are now."""
        import ray

        said = {}
        try:
            said = ray.get(self._board.all.remote(), timeout=_BOARD_TIMEOUT_S)
        except Exception as error:  # its own are better than none
            log.warning("The other replicas' metrics are not known: %s", error)
        return merged({**said, self.name: self._server.metrics.text()})


class RayServe:
    """A connection to a Ray cluster, on which pipelines are deployed.

    Args:
        address: Of its head; "auto": what `RAY_ADDRESS` says, or a cluster on this machine.

    Raises:
        ServiceUnavailable: None answers there.
    """

    def __init__(self, address: str = "auto") -> None:
        import ray

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        named = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
        shown = "this machine" if named == "auto" else named
        try:
            _knock(named)
            ray.init(
                address=address,
                namespace=_NAMESPACE,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
            )
        except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and its own
            raise ServiceUnavailable(
                f"no Ray cluster answers: {_first_line(error)}",
                which=shown,
                fix="start one (`penstock up`, or `ray start --head`) and name it in RAY_ADDRESS, or leave out --ray",
            ) from error

    def close(self) -> None:
        """Leave the cluster."""
        import ray

        ray.shutdown()

    def check_room(self, scale: Scale) -> None:
        """See that the first replicas find room.

        Raises:
            ConfigError: The cluster is too small for them.
            ServiceUnavailable: Others hold what is needed.
        """
        import ray

        needed = scale.min_replicas * scale.cpus
        for name, need in (("CPU", needed), ("GPU", scale.min_replicas * scale.gpus)):
            whole = ray.cluster_resources().get(name, 0.0)
            free = ray.available_resources().get(name, 0.0)
            if need > whole:
                raise ConfigError(
                    f"{scale.min_replicas} replicas need {need:g} {name}s and the cluster has {whole:g}",
                    which="--min-replicas",
                    fix="ask for fewer, or add nodes",
                )
            if need > free:
                raise ServiceUnavailable(
                    f"{scale.min_replicas} replicas need {need:g} {name}s and {free:g} of {whole:g} are free",
                    which="the Ray cluster",
                    fix="wait until what runs there has ended, ask for fewer, or add nodes",
                )

    @contextmanager
    def deployed(
        self, pipeline: str, build: Build, *, host: str, port: int, scale: Scale, limits: ServingLimits
    ) -> Iterator[str]:
        """The pipeline's deployment while the block runs; its URL. Afterwards no request is taken, what was is answered and recorded.

        Raises:
            ConfigError: Serve listens elsewhere already, or the pipeline is deployed there.
            ServiceUnavailable: The replicas did not get ready.
        """
        import ray
        from ray import serve

        name = _PREFIX + pipeline
        serve_was_there = _serve_is_there(serve)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            serve.start(http_options={"host": host, "port": port})
        try:
            url = _checked_address(host, port)
            for other in serve.status().applications:
                if other.startswith(_PREFIX):
                    raise ConfigError(
                        "is deployed on this Ray cluster already",
                        which=other.removeprefix(_PREFIX),
                        fix=f"a cluster answers one pipeline: end that `penstock serve --ray`, or `serve.delete({other!r})`",
                    )
            board = ray.remote(Board).options(num_cpus=0).remote()
            try:
                _run(serve, name, _application(build, board, scale, limits))
                _wait_until_it_runs(serve, name, scale.ready_within_s)
                yield url
            finally:
                serve.delete(name)  # waits for the replicas, and they for what they have
                ray.kill(board)
        finally:
            if not serve_was_there and not serve.status().applications:
                serve.shutdown()


def _application(build: Build, board: Any, scale: Scale, limits: ServingLimits) -> Any:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # its other way of saying metrics_interval_s is the environment of each process
        autoscaling = AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=max(scale.min_replicas, scale.max_replicas),
            look_back_period_s=scale.look_back_s,
            metrics_interval_s=scale.every_s,
            upscale_delay_s=scale.up_after_s,
            downscale_delay_s=scale.down_after_s,
            policy=AutoscalingPolicy(policy_function=by_load),
        )
    deployment = serve.deployment(
        name="replica",
        # Beyond what a replica's own queue takes: it, and not Ray's router, refuses what is too much.
        max_ongoing_requests=2 * limits.queue_requests + limits.batch_rows,
        max_queued_requests=limits.queue_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
        autoscaling_config=autoscaling,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        graceful_shutdown_wait_loop_s=max(0.1, limits.drain_delay_s),
        graceful_shutdown_timeout_s=2 * limits.drain_timeout_s,
    )(serve.ingress()(Replica))
    return deployment.bind(build, board, scale.every_s)


def _run(serve: Any, name: str, application: Any) -> None:
    from ray.serve.api import RunTarget

    serve.run_many([RunTarget(application, name=name)], wait_for_applications_running=False)


def _wait_until_it_runs(serve: Any, name: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        found = serve.status().applications.get(name)
        status = str(found.status.value) if found else "NOT_STARTED"
        if status == "RUNNING":
            return
        said = "; ".join(one.message for one in found.deployments.values() if one.message) if found else ""
        if status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise ServiceUnavailable(
                f"the replicas do not get ready ({status}): {(said or (found.message if found else '')).strip()[-600:]}",
                which=name,
                fix="see the message; the replicas' logs lie in the Ray session's folder, under logs/serve",
            )
        time.sleep(0.2)


def _serve_is_there(serve: Any) -> bool:
    from ray.serve.exceptions import RayServeException

    try:
        serve.context._get_global_client()
    except RayServeException:
        return False
    return True


def _checked_address(host: str, port: int) -> str:
    from ray import serve

    there = serve.context._get_global_client().http_config
    if there.port != port or there.host != host:
        raise ConfigError(
            f"Ray Serve listens on {there.host}:{there.port} on this cluster already",
            which=f"{host}:{port}",
            fix="use that --host and --port: one address serves all that is deployed on a cluster",
        )
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _knock(address: str) -> None:
    """Raise `OSError` when nobody listens there; Ray itself would try for minutes."""
    host, found, port = address.removeprefix("ray://").rpartition(":")
    if found and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def _python_path() -> str:
    """Replicas import what this process imports; on another machine the installed package is found instead."""
    return os.pathsep.join([_CODE, *filter(None, [os.environ.get("PYTHONPATH")])])


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
