"""`penstock metrics`: numbers for Prometheus."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

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
