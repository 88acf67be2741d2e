"""`penstock metrics` for Prometheus, and `penstock monitoring trend`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.options import Json, Pipeline, run
from tasks.cli.services import cli_settings
from tasks.core.errors import disk_error


def metrics(
    to: Annotated[
        Path | None,
        typer.Option(help="Replace this file at once; default: standard output.", show_default=False),
    ] = None,
) -> None:
    """Metrics of batch runs and decisions of every pipeline in Prometheus' text format, for node-exporter's textfile collector."""
    from tasks import wiring

    text = wiring.batch_metrics(cli_settings())
    if to is None:
        sys.stdout.write(text)
        return
    beside = to.with_name(f".{to.name}.{os.getpid()}")  # the collector reads *.prom, so never half a file
    try:
        beside.write_text(text)
        beside.replace(to)
    except OSError as error:
        raise disk_error(error, str(to)) from error


def trend(
    pipeline: Pipeline,
    days: Annotated[int, typer.Option(min=1, max=730, help="Up to the newest published day.")] = 90,
    as_json: Json = False,
) -> None:
    """One page of a pipeline's days: decisions, drift, scores, performance, volume, deployments."""
    run("trend_report", pipeline, as_json, days=days)
