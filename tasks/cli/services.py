"""`penstock up`, `down` and `status`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tasks.cli.output import console, errors, show
from tasks.core.errors import ConfigError, PenstockError
from tasks.core.settings import Settings
from tasks.core.tenants import pools_of
from tasks.local import AirflowClient, credentials, profile_of, start_services, stop_services, survey
from tasks.local.parts import PRODUCTION
from tasks.local.production import secrets_folder
from tasks.local.services import airflow_login, local_settings, mlflow_admin


def start(settings: Settings, profile: str | None = None) -> Settings:
    """Start all services and Airflow's pools, and say where they are.

    When it fails or is interrupted, what did not run before is ended.
    """
    pools = pools_of(settings)
    ran = {state.name for state in survey(settings) if state.running}
    try:
        local = start_services(settings, _timed_progress(), profile=profile)
        client = AirflowClient(local.airflow_url, *airflow_login(local))
        for name, pool in pools.items():
            client.ensure_pool(name, pool)
        client.close()
    except KeyboardInterrupt:
        stop_quietly(settings, "interrupted: ending the services", keep=ran)
        raise
    except ConfigError:  # nothing was started
        raise
    except (PenstockError, OSError):
        stop_quietly(settings, keep=ran)
        raise
    show_urls(local)
    return local


def stop(settings: Settings) -> None:
    ended = stop_services(settings, _timed_progress())
    console.print("services ended" if ended else "no service was running")


def stop_quietly(settings: Settings, message: str = "", *, keep: Collection[str] = ()) -> None:
    """End the services, but not those of `keep`, even when nobody can read what is said about it."""

    def say(text: str) -> None:
        with suppress(OSError):
            errors.print(text)

    if message:
        say(f"\n{message}")
    stop_services(settings, say, keep=keep)


def show_status(settings: Settings, *, as_json: bool) -> bool:
    """Print the services; True when all are healthy."""
    states = survey(settings)
    rows = [{**asdict(state), "log": _relative(state.log)} for state in states]
    show(rows, as_json=as_json, title="Services")
    local = local_settings(settings)
    if not as_json and not any(state.running for state in states):
        errors.print(f"None of them runs from {settings.home}: `penstock up` starts them on this machine.")
        told = Settings.from_environment(defaults=local)
        if told.mlflow_url != local.mlflow_url:
            errors.print(f"The environment names services elsewhere, which this command does not look at: MLflow {told.mlflow_url}, "
                f"Ray {told.ray_jobs_url}, Airflow {told.airflow_url}.")  # fmt: skip
    return all(state.healthy for state in states)


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def show_urls(settings: Settings) -> None:
    """Where a person goes next."""
    local = local_settings(settings)
    user, password = airflow_login(local)
    console.print(f"\n  Airflow  {local.airflow_url}   login [bold]{user}[/] / [bold]{password}[/]")
    user, password = mlflow_admin(local)
    console.print(f"  MLflow   {local.mlflow_url}   login [bold]{user}[/] / [bold]{password}[/]")
    embedded = profile_of(settings) != PRODUCTION
    token = f"   token in {_relative(local.home / 'ray_auth_token')}" if embedded else ""
    console.print(f"  Ray      {local.ray_jobs_url}{token}")
    if not embedded:
        console.print(f"  S3       {local.s3_endpoint or 'AWS'}   {local.store_url}")
        console.print(f"  Secrets  {_relative(secrets_folder(settings))}   Ray asks for its token")
    console.print("  make status shows them, make down ends them.\n")


def cli_settings() -> Settings:
    """Settings of this terminal: the environment's, and where it is silent the local services' URLs and secrets."""
    settings = Settings.from_environment()
    local = local_settings(settings)
    if local.airflow_url.endswith(":0"):
        return settings
    seen = Settings.from_environment(defaults=local)
    for name, value in credentials(local).items():
        # another MLflow is not told the password of this one
        if seen.mlflow_url == local.mlflow_url or not name.startswith("MLFLOW_"):
            os.environ.setdefault(name, value)
    return seen


def _timed_progress() -> Callable[[str], None]:
    begun = time.monotonic()

    def progress(message: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {message}")

    return progress
