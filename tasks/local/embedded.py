"""The profile `embedded`: Airflow and MLflow on SQLite, folders as the store, and a Ray head of one node."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks.core.mlflow_login import ADMIN, Login
from tasks.core.settings import Settings
from tasks.local.parts import (
    LOOPBACK,
    MLFLOW_WALLS,
    Preparation,
    Progress,
    Service,
    airflow_addresses,
    airflow_home,
    airflow_reading,
    airflow_services,
    inherited,
    load_ports,
    make_login,
    mlflow_asks_for_logins,
    mlflow_credentials,
    mlflow_service,
    own_programs,
    prepare_all,
    ray_credentials,
    ray_folder,
    ray_head_service,
    secret,
    url_at,
)


def settings_of(settings: Settings) -> Settings:
    """`settings` with the URLs of the local services."""
    ports = load_ports(settings)
    return replace(
        settings,
        mlflow_url=url_at(ports["mlflow"]),
        ray_jobs_url=url_at(ports["ray_dashboard"]),
        airflow_url=url_at(ports["airflow"]),
    )


def services(local: Settings) -> list[Service]:
    mlflow = mlflow_service(
        local,
        *("--backend-store-uri", _sqlite(_mlflow_database(local))),
        *("--artifacts-destination", str(local.home / "mlflow" / "artifacts")),
        own_env=partial(_mlflow_environment, local),
        admin=mlflow_admin(local),
        password=_mlflow_password(local),
    )
    return [
        ray_head_service(local, cpus=max(2, os.cpu_count() or 2), token=_ray_token(local)),
        mlflow,
        *airflow_services(local),
    ]


def environment(local: Settings) -> dict[str, str]:
    """What every service is given; MLflow gets more."""
    home = airflow_home(local)
    return {
        **inherited("PENSTOCK_", "AIRFLOW_", "MLFLOW_AUTH_"),
        **local.as_environment(),
        **own_programs(),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(local.project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{local.airflow_url}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": _sqlite(_airflow_database(local)),
        **airflow_addresses(local),
        "AIRFLOW__API__BASE_URL": local.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secret(home / "api_secret"),
        "AIRFLOW__API_AUTH__JWT_SECRET": secret(home / "jwt_secret"),
        "AIRFLOW__CORE__FERNET_KEY": "",
        **airflow_reading(local),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        "AIRFLOW__API__DEFAULT_WRAP": "True",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__PENSTOCK__RAY_HAS_SECRETS": "True",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "NO_PROXY": "127.0.0.1,localhost",
        **joining_ray(local),
    }


def _mlflow_environment(local: Settings) -> dict[str, str]:
    """What MLflow's server alone is given: its admin's password is for no program."""
    return {
        **mlflow_asks_for_logins(
            local,
            database_url=_sqlite(_logins_database(local)),
            admin=mlflow_admin(local),
            secret_key=secret(local.home / "mlflow_secret_key"),
        ),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **MLFLOW_WALLS,
    }


def mlflow_admin(local: Settings) -> Login:
    """Of people, and of who makes MLflow's users."""
    return ADMIN, secret(local.home / "mlflow_password")


def joining_ray(local: Settings) -> dict[str, str]:
    """The variables by which a program joins this Ray."""
    return {
        **credentials(local),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"{LOOPBACK}:{load_ports(local)['ray_gcs']}",
    }


def credentials(local: Settings) -> dict[str, str]:
    """The token of its Ray, which listens at every address of the machine whatever it is told, and MLflow's login."""
    return {**ray_credentials(_ray_token(local)), **mlflow_credentials(_mlflow_password(local))}


def _ray_token(local: Settings) -> str:
    return secret(local.home / "ray_auth_token")


def _mlflow_password(local: Settings) -> str:
    return secret(local.home / "mlflow_service_password")


def prepare_stores(local: Settings, progress: Progress) -> None:
    """Nothing: its stores are files."""


def prepare(local: Settings, env: dict[str, str], progress: Progress) -> None:
    """Bring Airflow's database up to date, and make those of Airflow, MLflow and its logins where there is none yet.

    A database is made under another name and then renamed: neither service can go on from one whose making was
    interrupted half-way. All at once, since each spends its time on imports.
    """
    airflow, mlflow, logins = _airflow_database(local), _mlflow_database(local), _logins_database(local)
    for folder in (airflow.parent, mlflow.parent / "artifacts", ray_folder(local)):
        folder.mkdir(parents=True, exist_ok=True)
    make_login(local)
    progress("preparing Airflow's database")
    tables = "tasks.local.mlflow_tables"
    made: dict[Path, tuple[str, ...]] = {airflow: ("airflow", "db", "migrate")}
    if not mlflow.exists():
        made[mlflow] = (tables,)
    if not logins.exists():
        made[logins] = (tables, "logins")
    prepare_all([_preparation(path, module, env) for path, module in made.items()], cwd=local.home)
    for path in made:
        if not path.exists():
            unfinished(path).chmod(0o600)  # logins and connections are in them
            unfinished(path).replace(path)


def _preparation(path: Path, module: tuple[str, ...], env: dict[str, str]) -> Preparation:
    for left in path.parent.glob(f"{unfinished(path).name}*"):  # of an interrupted start, with its journal
        left.unlink()
    url = _sqlite(path if path.exists() else unfinished(path))
    return Preparation(
        f"the database {path}",
        (sys.executable, "-m", *module),
        {
            **env,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "MLFLOW_BACKEND_STORE_URI": url,
            "PENSTOCK_SERVICE": "database-preparation",
        },
        fix=f"read the message; if the database is damaged, remove {path}",
    )


def _airflow_database(settings: Settings) -> Path:
    return airflow_home(settings) / "airflow.db"


def _mlflow_database(settings: Settings) -> Path:
    return settings.home / "mlflow" / "mlflow.db"


def _logins_database(settings: Settings) -> Path:
    return settings.home / "mlflow" / "logins.db"


def unfinished(path: Path) -> Path:
    """The name of a database while it is made."""
    return path.with_name(f"{path.stem}-unfinished{path.suffix}")


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path}"
