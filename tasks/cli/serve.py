"""`penstock serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tasks.cli.options import Pipeline
from tasks.cli.output import console
from tasks.cli.services import cli_settings
from tasks.local import ray_environment


def serve(
    pipeline: Pipeline,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the API has no log-in of its own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    timeout_ms: Annotated[
        float, typer.Option(min=1, max=30_000, help="Deadline of requests that name none.")
    ] = 1000,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            min=0, max=1000, help="Most that a batch waits for as many requests as came together before it."
        ),
    ] = 2,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get 429.")] = 1024,
    poll_s: Annotated[
        float, typer.Option(min=0.05, help="How often the deployment log is asked what is live.")
    ] = 2.0,
    audit: Annotated[
        bool, typer.Option("--audit/--no-audit", help="Keep every answer in the audit store.")
    ] = True,
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Let the registered challenger score copies, and answer nothing."),
    ] = False,
    entity_days: Annotated[
        int,
        typer.Option(min=0, help="Newest published days whose rows can be asked for by entity key; 0: none."),
    ] = 7,
    entity_max_age_s: Annotated[
        float | None, typer.Option(min=0, help="Refuse an entity whose newest row is older.")
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="On Ray Serve, with as many replicas as the load asks for; RAY_ADDRESS names the cluster.",
        ),
    ] = False,
    min_replicas: Annotated[int, typer.Option(min=1, help="With --ray.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="With --ray.")] = 4,
    replica_gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each replica.")] = 0,
) -> None:
    """Answer predictions over HTTP with the live model, until SIGTERM; follows promotions by itself.

    One process is one replica: start several on different ports behind a load balancer, or let --ray do both.
    """
    from tasks import wiring
    from tasks.serving import Scale, ServingLimits

    def started(url: str, version: int | None) -> None:
        model = f"version {version}" if version else "no version yet"
        console.print(f"{pipeline}: {model} on {url}, described at {url}/docs", soft_wrap=True, markup=False)

    settings = cli_settings()
    limits = ServingLimits(
        queue_requests=queue,
        max_wait_s=max_wait_ms / 1000,
        default_timeout_s=timeout_ms / 1000,
        poll_s=poll_s,
        entity_max_age_s=entity_max_age_s,
    )
    if not ray:
        wiring.serve(
            settings,
            pipeline,
            host=host,
            port=port,
            limits=limits,
            audit=audit,
            shadow=shadow,
            entity_days=entity_days,
            started=started,
        )
        return
    if max_replicas < min_replicas:
        raise typer.BadParameter(f"{max_replicas} is below --min-replicas", param_hint="--max-replicas")
    if "RAY_ADDRESS" not in os.environ:
        os.environ.update(ray_environment(settings))
    wiring.serve_on_ray(
        settings,
        pipeline,
        host=host,
        port=port,
        limits=limits,
        scale=Scale(min_replicas=min_replicas, max_replicas=max_replicas, gpus=replica_gpus),
        audit=audit,
        shadow=shadow,
        entity_days=entity_days,
        started=started,
    )
