"""`penstock serve --ray`: the model server of a pipeline as a deployment of Ray Serve."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from types import FrameType

from tasks.core import PipelineSpec, Settings
from tasks.serving import ModelServer, Scale, ServingLimits
from tasks.wiring.context import open_context
from tasks.wiring.serving import ENTITY_DAYS, DeploymentLog, HotJournal, server_of


def serve_on_ray(
    settings: Settings,
    pipeline: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: ServingLimits | None = None,
    scale: Scale | None = None,
    audit: bool = True,
    shadow: bool = False,
    entity_days: int = ENTITY_DAYS,
    address: str = "auto",
    started: Callable[[str, int | None], None] | None = None,
) -> None:
    """Answer predictions on a Ray cluster until SIGTERM or SIGINT, with as many replicas as the load asks for.

    Args:
        host: Where Ray's HTTP proxies listen, one on each machine that has a replica.
        port: 0: one that is free on this machine.
        scale: See there.
        address: As `RayServe`.
        started: Called with the URL and the live version when replicas answer.

    Raises:
        ConfigError, ServiceUnavailable: As `RayServe`: no cluster, no room, another address, replicas that do not get ready.
        NotFound: There is no such pipeline.
    """
    from tasks.serving import RayServe, listen

    spec = open_context(settings, pipeline).spec
    limits, scale = limits or ServingLimits(), scale or Scale()
    ended = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ended.set()

    cluster = RayServe(address)
    handlers = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        cluster.check_room(scale)
        if port == 0:
            with listen(host, 0) as free:
                port = free.getsockname()[1]
        build = partial(replica, settings, spec, limits, audit=audit, shadow=shadow, entity_days=entity_days)
        with cluster.deployed(pipeline, build, host=host, port=port, scale=scale, limits=limits) as url:
            if started is not None:
                exposure = DeploymentLog(settings, spec).exposure()
                started(url, exposure.champion.version if exposure else None)
            ended.wait()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        cluster.close()


def replica(
    settings: Settings,
    spec: PipelineSpec,
    limits: ServingLimits,
    *,
    audit: bool,
    shadow: bool,
    entity_days: int,
) -> tuple[ModelServer, str]:
    """A replica's server, and its name; runs in the replica's process."""
    from tasks.audit.hot.log import HotLogInUse

    host = socket.gethostname()
    server = partial(server_of, settings, spec, limits=limits, shadow=shadow, entity_days=entity_days)
    if not audit:
        return server(None), f"{host}-{os.getpid()}"
    # Names are used again, so what a replica that was killed left unfolded is taken up by the next one.
    for number in count():
        name = f"{host}-ray-{number}"
        try:
            journal = HotJournal(settings, spec, name)
        except HotLogInUse:
            continue
        return server(journal), name
    raise AssertionError("unreachable")
