"""`penstock up`, `down` and `status`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from tasks.cli.output import console, show
from tasks.core.errors import PenstockError
from tasks.core.pools import POOLS
from tasks.core.settings import Settings
from tasks.local import AirflowClient, start_services, stop_services, survey
from tasks.local.services import airflow_login, local_settings


def start(settings: Settings) -> Settings:
    """Start all services and Airflow's pools, and say where they are; ends what it started when interrupted."""
    try:
        local = start_services(settings, _timed_progress())
        client = AirflowClient(local.airflow_url, *airflow_login(local))
        for name, pool in POOLS.items():
            client.ensure_pool(name, pool)
        client.close()
    except (KeyboardInterrupt, PenstockError):
        stop_services(settings, _timed_progress())
        raise
    show_urls(local)
    return local


def stop(settings: Settings) -> None:
    ended = stop_services(settings, _timed_progress())
    console.print("services ended" if ended else "no service was running")


def show_status(settings: Settings, *, as_json: bool) -> bool:
    """Print the services; True when all are healthy."""
    states = survey(settings)
    rows = [{**asdict(state), "log": _relative(state.log)} for state in states]
    show(rows, as_json=as_json, title="Services")
    return all(state.healthy for state in states)


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def show_urls(settings: Settings) -> None:
    """Where a person goes next."""
    local = local_settings(settings)
    user, password = airflow_login(local)
    console.print(f"\n  Airflow  {local.airflow_url}   login [bold]{user}[/] / [bold]{password}[/]")
    console.print(f"  MLflow   {local.mlflow_url}")
    console.print(f"  Ray      {local.ray_jobs_url}")
    console.print("  make status shows them, make down ends them.\n")


def cli_settings() -> Settings:
    """Settings of this terminal: the environment's, and where it is silent the local services' URLs."""
    settings = Settings.from_environment()
    local = local_settings(settings)
    if local.airflow_url.endswith(":0"):
        return settings
    return replace(
        settings,
        mlflow_url=settings.mlflow_url if os.environ.get("PENSTOCK_MLFLOW_URL") else local.mlflow_url,
        ray_jobs_url=settings.ray_jobs_url if os.environ.get("PENSTOCK_RAY_JOBS_URL") else local.ray_jobs_url,
        airflow_url=settings.airflow_url if os.environ.get("PENSTOCK_AIRFLOW_URL") else local.airflow_url,
    )


def _timed_progress() -> Callable[[str], None]:
    begun = time.monotonic()

    def progress(message: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {message}")

    return progress
