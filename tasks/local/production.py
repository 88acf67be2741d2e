"""The profile `production`: what docker-compose.yml runs, as processes of this machine.

PostgreSQL, an S3 endpoint, MLflow, a Ray head and a second Ray node at an address of its own, and Airflow's parts, with the
settings and secrets that the containers have. Programs get their secrets in their environment, from files that only
their owner may read: not in a list of processes, and not in a log.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import Any

from tasks.core.errors import ConfigError, TerminalError
from tasks.core.mlflow_login import ADMIN, Login
from tasks.core.settings import Settings
from tasks.core.shares import cluster_file
from tasks.local.parts import (
    LOOPBACK,
    MLFLOW_WALLS,
    RAY_STARTS,
    Preparation,
    Progress,
    Service,
    airflow_addresses,
    airflow_home,
    airflow_reading,
    airflow_services,
    answers,
    bearer,
    inherited,
    load_ports,
    make_login,
    marks,
    mlflow_asks_for_logins,
    mlflow_credentials,
    mlflow_service,
    own_programs,
    prepare_all,
    ray_credentials,
    ray_folder,
    ray_has_node,
    ray_head_service,
    ray_start,
    secret,
    state_folder,
    tail,
    url_at,
)

BUCKET = "penstock"
STORE = f"s3://{BUCKET}/store"
WORKER_ADDRESS = "127.0.0.2"
"""Of the second Ray node: another address of Linux' loopback, and so another machine as far as Ray knows."""
SECRETS = (
    "postgres_password",
    "airflow_secret_key",
    "airflow_jwt_secret",
    "airflow_fernet_key",
    "ray_auth_token",
    "mlflow_password",
    "mlflow_service_password",
    "mlflow_secret_key",
    "s3_access_key",
    "s3_secret_key",
)
ON_THIS_MACHINE = frozenset(
    {
        "AIRFLOW__API__HOST",
        "AIRFLOW__API__PORT",
        "AIRFLOW__CORE__PARALLELISM",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT",
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT",
        "AIRFLOW__LOGGING__TRIGGERER_LOG_SERVER_PORT",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT",
        "NO_PROXY",
        "PENSTOCK_S3_REGION",
    }
)
"""Variables that containers need not have, since each of them has its ports for itself, and Airflow's own number of task processes."""

DECIDED_S = 120.0
"""Age of the last decision at which who decides counts as well no more; docker-compose.yml has the same."""
_DATABASES = ("penstock", "airflow", "mlflow")
_PREPARE_STORE = Path(__file__).resolve().parents[2] / "docker" / "prepare_store.py"


def settings_of(settings: Settings) -> Settings:
    """`settings` with the URLs of the local services; a store or metadata database of one's own stays."""
    ports = load_ports(settings)
    default = Settings.at_home(settings.home, project=settings.project)
    own = _has_own_objects(settings)
    ours = _database_url(settings, "penstock")
    return replace(
        settings,
        store_url=STORE if settings.store_url == default.store_url else settings.store_url,
        metadata_url=ours if settings.metadata_url == default.metadata_url else settings.metadata_url,
        s3_endpoint=url_at(ports["objects"]) if own else settings.s3_endpoint,
        mlflow_url=url_at(ports["mlflow"]),
        ray_jobs_url=url_at(ports["ray_dashboard"]),
        airflow_url=url_at(ports["airflow"]),
    )


def services(local: Settings) -> list[Service]:
    port = load_ports(local)["mlflow"]
    mlflow = mlflow_service(
        local,
        *("--allowed-hosts", f"{LOOPBACK}:{port},localhost:{port}"),
        *("--artifacts-destination", f"s3://{_bucket(local)}/mlflow"),
        own_env=partial(_mlflow_environment, local),
        admin=mlflow_admin(local),
        password=_secret(local, "mlflow_service_password"),
    )
    cpus, token = max(2, os.cpu_count() or 2), _secret(local, "ray_auth_token")
    return [
        _postgres(local),
        *([_objects(local)] if _has_own_objects(local) else []),
        mlflow,
        ray_head_service(local, cpus=1, token=token),
        _worker_service(local, cpus, token),
        *airflow_services(local),
        *([_keeper(local)] if cluster_file(local).exists() else []),
    ]


def environment(local: Settings) -> dict[str, str]:
    """What every service is given but the two that keep state; MLflow gets more."""
    ports = load_ports(local)
    own = _has_own_objects(local)
    endpoint = {"MLFLOW_S3_ENDPOINT_URL": local.s3_endpoint} if local.s3_endpoint else {}
    return {
        **inherited("PENSTOCK_", "AIRFLOW_", "MLFLOW_", "RAY_", *(("AWS_",) if own else ())),
        **local.as_environment(),
        **own_programs(),
        "AWS_REGION": local.s3_region,
        "AIRFLOW_HOME": str(airflow_home(local)),
        "AIRFLOW__CORE__DAGS_FOLDER": str(local.project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{local.airflow_url}/execution/",
        "AIRFLOW__CORE__FERNET_KEY": _secret(local, "airflow_fernet_key"),
        **_airflow_database(local, "airflow"),
        "AIRFLOW__API__BASE_URL": local.airflow_url,
        "AIRFLOW__API__SECRET_KEY": _secret(local, "airflow_secret_key"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(local, "airflow_jwt_secret"),
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "True",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": LOOPBACK,
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(ports["airflow_scheduler_health"]),
        "AIRFLOW__API__DEFAULT_WRAP": "True",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__PENSTOCK__RAY_HAS_SECRETS": "True",
        **airflow_addresses(local),
        **airflow_reading(local),
        **endpoint,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": f"{LOOPBACK},{WORKER_ADDRESS},localhost",
        **credentials(local),
    }


def _mlflow_environment(local: Settings) -> dict[str, str]:
    """What MLflow's server alone is given: its admin's password is for no program."""
    database_url = _database_url(local, "mlflow")
    return {
        "MLFLOW_BACKEND_STORE_URI": database_url,
        **mlflow_asks_for_logins(
            local,
            database_url=database_url,
            admin=mlflow_admin(local),
            secret_key=_secret(local, "mlflow_secret_key"),
        ),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **MLFLOW_WALLS,
    }


def mlflow_admin(local: Settings) -> Login:
    """Of people, and of who makes MLflow's users."""
    return ADMIN, _secret(local, "mlflow_password")


def credentials(local: Settings) -> dict[str, str]:
    """The secrets by which a program of this machine uses store, cluster and MLflow."""
    keys = {
        "AWS_ACCESS_KEY_ID": _secret(local, "s3_access_key"),
        "AWS_SECRET_ACCESS_KEY": _secret(local, "s3_secret_key"),
    }
    return {
        **(keys if _has_own_objects(local) else {}),
        **ray_credentials(_secret(local, "ray_auth_token")),
        **mlflow_credentials(_secret(local, "mlflow_service_password")),
    }


def joining_ray(local: Settings) -> dict[str, str]:
    """The variables by which a program joins this Ray."""
    return {
        **credentials(local),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"{LOOPBACK}:{load_ports(local)['ray_gcs']}",
    }


def prepare_stores(local: Settings, progress: Progress) -> None:
    """Make PostgreSQL's data folder where there is none.

    Raises:
        ConfigError: The store is none on S3, PostgreSQL or the S3 endpoint is not installed, or PostgreSQL may not
            enter its folder.
    """
    binaries, user = _check_programs(local)
    data = _postgres_data(local)
    data.parent.mkdir(parents=True, exist_ok=True)
    if user is not None:
        os.chown(data.parent, user.pw_uid, user.pw_gid)
        _check_may_enter(data.parent, user)
    if data.exists():
        return
    progress("making PostgreSQL's data folder")
    unfinished, password = data.with_name("data-unfinished"), data.with_name("password")
    shutil.rmtree(unfinished, ignore_errors=True)
    password.unlink(missing_ok=True)
    with open(password, "w", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
        file.write(_secret(local, "postgres_password"))
    try:
        if user is not None:
            os.chown(password, user.pw_uid, user.pw_gid)
        done = subprocess.run(
            [
                *(binaries / "initdb", "-D", unfinished, "-U", "penstock", "-E", "UTF8"),
                *("--auth=scram-sha-256", f"--pwfile={password}"),
            ],
            env=_postgres_environment(local),
            cwd=data.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **_as(user),
        )
    finally:
        password.unlink(missing_ok=True)
    if done.returncode:
        raise TerminalError(
            f"initdb could not make the data folder:\n{tail(done.stdout)}",
            which=f"PostgreSQL at {data}",
            fix="read the message, then start again",
        )
    unfinished.replace(data)


def prepare(local: Settings, env: dict[str, str], progress: Progress) -> None:
    """Databases, the bucket, and Airflow's tables; what is there stays.

    A database gets its name when its tables are there: neither Airflow nor MLflow goes on from a half made one.
    """
    ray_folder(local).mkdir(parents=True, exist_ok=True)
    make_login(local)
    known = {name for (name,) in _ask(local, "SELECT datname FROM pg_database")}
    if "penstock" not in known:
        _ask(local, "CREATE DATABASE penstock")
    progress("preparing the bucket and the databases of Airflow and MLflow")
    commands: dict[str, tuple[str, ...]] = {
        "objects": (sys.executable, str(_PREPARE_STORE)),
        "airflow": (sys.executable, "-m", "airflow", "db", "migrate"),
    }
    if "mlflow" not in known:
        commands["mlflow"] = (sys.executable, "-m", "tasks.local.mlflow_tables")
    made: dict[str, str] = {}
    for name in _DATABASES[1:]:
        made[name] = name
        if name not in known:
            made[name] = f"{name}_unfinished"
            _ask(local, f"DROP DATABASE IF EXISTS {made[name]} WITH (FORCE)")
            _ask(local, f"CREATE DATABASE {made[name]}")
    given = {
        **env,
        **_airflow_database(local, made["airflow"]),
        "MLFLOW_BACKEND_STORE_URI": _database_url(local, made["mlflow"]),
        **marks(local, "preparation"),
    }
    fix = f"read the message; the services' logs are in {state_folder(local) / 'logs'}"
    prepare_all(
        [
            Preparation(f"{name} of the production profile", command, given, fix)
            for name, command in commands.items()
        ],
        cwd=local.home,
    )
    for name, temporary in made.items():
        if name != temporary:
            _rename(local, temporary, name)


# -- PostgreSQL


def _postgres(local: Settings) -> Service:
    port = load_ports(local)["postgres"]
    data = _postgres_data(local)
    program = (_postgres_binaries() or Path()) / "postgres"
    command = (
        *(str(program), "-D", str(data), "-h", LOOPBACK, "-p", str(port)),
        *("-c", "unix_socket_directories="),
    )
    return Service(
        "postgres",
        command,
        f"postgresql://penstock@{LOOPBACK}:{port}/penstock",
        lambda: _accepts(local),
        keeps_state=True,
        env=_postgres_environment(local),
        cwd=data.parent,
        user=_postgres_user(),
        ends_by=SIGINT,  # at once and in order; TERM would wait for every client
    )


def _check_programs(local: Settings) -> tuple[Path, pwd.struct_passwd | None]:
    """The folder of PostgreSQL's programs, and who is to run them."""
    if not local.store_url.startswith("s3://"):
        raise ConfigError(
            "is no store on S3, and the profile production has no other",
            which=f"PENSTOCK_STORE={local.store_url}",
            fix="unset it, or name s3://bucket/prefix",
        )
    if _has_own_objects(local) and not _ministack().exists():
        raise ConfigError(
            f"is not installed: there is no {_ministack()}",
            which="the S3 endpoint of the profile production",
            fix="start it by `make up PROFILE=production`, which installs it, or name a store of your own by "
            "PENSTOCK_STORE and PENSTOCK_S3_ENDPOINT",
        )
    binaries, user = _postgres_binaries(), _postgres_user()
    if binaries is None:
        raise ConfigError(
            "is not installed: there is no `initdb` on PATH or below /usr/lib/postgresql",
            which="PostgreSQL",
            fix="apt-get install postgresql, or put its server's programs on PATH",
        )
    if user is None and os.geteuid() == 0:
        raise ConfigError(
            "does not run as root, and there is no user `postgres` or `nobody`",
            which="PostgreSQL",
            fix="run `penstock up` as another user, or make the user `postgres`",
        )
    return binaries, user


def _postgres_binaries() -> Path | None:
    """The folder that holds `initdb` and `postgres`."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True
    )
    if found := shutil.which("initdb"):
        folders.insert(0, Path(found).resolve().parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _postgres_data(settings: Settings) -> Path:
    return state_folder(settings) / "postgres" / "data"


def _postgres_user() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL where we are root, which it refuses to run as."""
    for name in ("postgres", "nobody") if os.geteuid() == 0 else ():
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _check_may_enter(folder: Path, user: pwd.struct_passwd) -> None:
    for parent in reversed(folder.parents):
        status = parent.stat()
        if not (status.st_mode & 0o001 or (status.st_uid == user.pw_uid and status.st_mode & 0o100)):
            raise ConfigError(
                f"does not run as root, and its user {user.pw_name} may not enter {parent}",
                which=f"PostgreSQL at {folder}",
                fix=f"chmod o+x {parent}, or set PENSTOCK_HOME to a folder that everybody may enter",
            )


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _postgres_environment(local: Settings) -> dict[str, str]:
    """It runs as another user, who is to see nothing of the others' environment."""
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", **marks(local, "postgres")}


def _database_url(settings: Settings, name: str) -> str:
    password, port = _secret(settings, "postgres_password"), load_ports(settings)["postgres"]
    return f"postgresql+psycopg://penstock:{password}@{LOOPBACK}:{port}/{name}"


def _airflow_database(local: Settings, name: str) -> dict[str, str]:
    """Airflow would take another driver for its asynchronous connections, one that is not installed."""
    url = _database_url(local, name)
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": url,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "tasks.core.postgres.UNPREPARED",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS_ASYNC": "tasks.core.postgres.UNPREPARED",
    }


def _ask(local: Settings, statement: str) -> list[tuple[Any, ...]]:
    """What the server answers to a statement of ours, outside of any transaction."""
    import psycopg

    with psycopg.connect(
        host=LOOPBACK,
        port=load_ports(local)["postgres"],
        user="penstock",
        password=_secret(local, "postgres_password"),
        dbname="postgres",
        connect_timeout=5,
        autocommit=True,
    ) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def _accepts(local: Settings) -> bool:
    import psycopg

    try:
        return _ask(local, "SELECT 1") == [(1,)]
    except psycopg.Error:
        return False


def _rename(local: Settings, old: str, new: str) -> None:
    """Once who made its tables is gone, which the server learns of a moment later."""
    import psycopg

    for attempt in range(50):
        try:
            _ask(local, f"ALTER DATABASE {old} RENAME TO {new}")
            return
        except psycopg.errors.ObjectInUse:
            if attempt == 49:
                raise
            time.sleep(0.1)


# -- the S3 endpoint


def _has_own_objects(settings: Settings) -> bool:
    """Whether the store is the one that this profile starts; not where the settings name another."""
    default = Settings.at_home(settings.home, project=settings.project)
    ours = url_at(load_ports(settings)["objects"])
    return settings.store_url in (default.store_url, STORE) and settings.s3_endpoint in (None, ours)


def _bucket(local: Settings) -> str:
    return local.store_url.removeprefix("s3://").split("/")[0]


def _objects(local: Settings) -> Service:
    """The endpoint that the tests run against, in RustFS' place: it honours conditional puts and keeps objects as files.

    It does not check keys; who may reach its port may read and write.
    """
    port = load_ports(local)["objects"]
    folder = state_folder(local) / "objects"
    return Service(
        "objects",
        (str(_ministack()),),
        url_at(port),
        answers(f"{url_at(port)}/_ministack/health"),
        keeps_state=True,
        env={
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "BIND_HOST": LOOPBACK,
            "GATEWAY_PORT": str(port),
            "SERVICES": "s3",
            "S3_DATA_DIR": str(folder / "data"),
            "S3_PERSIST": "1",
            "LOG_LEVEL": "WARNING",
            **marks(local, "objects"),
        },
        cwd=folder,
    )


def _ministack() -> Path:
    beside = Path(sys.prefix).parent / "venv-s3" / "bin" / "ministack"
    found = None if beside.exists() else shutil.which("ministack")
    return Path(found) if found else beside


# -- Ray


def _worker(local: Settings, cpus: int) -> tuple[str, ...]:
    ports = load_ports(local)
    return ray_start(
        f"--address={LOOPBACK}:{ports['ray_gcs']}",
        f"--node-ip-address={WORKER_ADDRESS}",
        f"--num-cpus={cpus}",
        f"--dashboard-agent-listen-port={ports['worker_agent']}",
        f"--dashboard-agent-grpc-port={ports['worker_agent_grpc']}",
        f"--metrics-export-port={ports['worker_metrics']}",
        f"--runtime-env-agent-port={ports['worker_runtime_env']}",
        f"--node-manager-port={ports['worker_node_manager']}",
        f"--object-manager-port={ports['worker_object_manager']}",
    )


def _worker_service(local: Settings, cpus: int, token: str) -> Service:
    """The second node. It says itself that it is well: of a node that has just died the head does not know yet.

    Ray gives it half a minute to join, which a head that is still starting may not keep.
    """
    says = answers(f"http://{WORKER_ADDRESS}:{load_ports(local)['worker_agent']}/api/local_raylet_healthz")
    counted = ray_has_node(local, lambda node: bool(node["ip"] == WORKER_ADDRESS), headers=bearer(token))
    return Service(
        "ray-worker",
        _worker(local, cpus),
        None,
        lambda: says() and counted(),
        starts=RAY_STARTS,
        follows=True,
    )


# -- who decides what runs of tenants may have


def _keeper(local: Settings) -> Service:
    """It is well while it decides, and is given the database alone."""
    beat = state_folder(local) / "tenancy-keeper" / "decided"
    return Service(
        "tenancy-keeper",
        (sys.executable, "-m", "tasks.cli", "tenancy", "keep", "--beat-file", str(beat)),
        None,
        lambda: _age_s(beat) < DECIDED_S,
        env={
            **inherited("PENSTOCK_", "AIRFLOW_", "MLFLOW_", "RAY_", "AWS_"),
            **local.as_environment(),
            **own_programs(),
        },
        cwd=beat.parent,
        beat_file=beat,
    )


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


# -- secrets


def secrets_folder(settings: Settings) -> Path:
    return state_folder(settings) / "secrets"


def _secret(settings: Settings, name: str) -> str:
    return secret(secrets_folder(settings) / name, fernet=name == "airflow_fernet_key")
