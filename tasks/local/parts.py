"""What a set of services is made of: a service, the ports, folders and secrets of this installation, Airflow's parts.

A home has one profile at a time. `embedded` keeps everything in SQLite files and folders under the home; `production`
runs what docker-compose.yml runs, with its state under `<home>/production`.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import httpx

from tasks.core.errors import TerminalError, disk_error
from tasks.core.ids import digest_bytes
from tasks.core.mlflow_login import ADMIN_PASSWORD, PASSWORD, SERVICE_USER, USER, Login
from tasks.core.settings import Settings
from tasks.core.spec import pipeline_names

Progress = Callable[[str], None]

EMBEDDED, PRODUCTION = "embedded", "production"
PROFILES = (EMBEDDED, PRODUCTION)
LOOPBACK = "127.0.0.1"
MLFLOW_LOGINS = """\
[mlflow]
admin_username = {user}
default_permission = NO_PERMISSIONS
database_uri = {database_url}
auth_cache_ttl_seconds = 300
"""
"""Settings of MLflow's logins, as docker-compose.yml has them. A password is costly to compare, so it is remembered."""
MLFLOW_WALLS = {
    "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "^(models|runs):/",
    "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "0",
}
"""A user names no place that MLflow reads or writes with its own credentials: a version is made from a run or a model, for
which MLflow asks for a right, and an experiment's artifacts lie where it puts them."""
RAY_STARTS = 3
AIRFLOW_PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")
_FORKING = ("scheduler", "dag-processor")
"""Those of them that fork a process for each task, or for each reading of a DAG file."""
HEAD_PORTS = (
    "ray_gcs",
    "ray_dashboard",
    "ray_agent",
    "ray_agent_grpc",
    "ray_client",
    "ray_metrics",
    "ray_runtime_env",
    "ray_node_manager",
    "ray_object_manager",
)
PORTS = {
    EMBEDDED: ("airflow", "airflow_worker_log", "airflow_trigger_log", "mlflow", *HEAD_PORTS),
    PRODUCTION: (
        *("postgres", "objects", "mlflow", *HEAD_PORTS),
        *("worker_agent", "worker_agent_grpc", "worker_metrics", "worker_runtime_env"),
        *("worker_node_manager", "worker_object_manager"),
        *("airflow", "airflow_worker_log", "airflow_trigger_log", "airflow_scheduler_health"),
    ),
}


@dataclass(frozen=True)
class Service:
    """A program that is kept running."""

    name: str
    command: tuple[str, ...]
    url: str | None
    healthy: Callable[[], bool]
    beat: Callable[[], datetime | None] | None = None
    """When it last wrote into the database that it lives by; None where nobody can say."""
    timeout_s: float = 180.0
    starts: int = 1
    """How often it is started before it is given up, when it ends by itself before it is well."""
    keeps_state: bool = False
    """Whether others keep their state in it: it starts before them and ends after them."""
    follows: bool = False
    """Whether it starts when those that stand before it are healthy, and not with them."""
    env: Mapping[str, str] | None = None
    """All it is given, where it is not to have what the others have."""
    cwd: Path | None = None
    beat_file: Path | None = None
    """What it writes anew while it is well; one of a process before is removed when it starts."""
    user: pwd.struct_passwd | None = None
    """Who runs it, where that is not who runs this."""
    ends_by: signal.Signals = signal.SIGTERM
    own_env: Callable[[], Mapping[str, str]] | None = None
    """What it is given beside that and nobody else, asked for when it starts."""
    settle: Callable[[], None] | None = None
    """What has to be so in it before others use it, asked for as soon as it is healthy."""


@dataclass(frozen=True)
class Preparation:
    """A program that makes something before services start, and ends."""

    which: str
    """What it makes."""
    command: tuple[str, ...]
    env: Mapping[str, str]
    fix: str
    """What to do when it fails."""


class Profile(Protocol):
    """A set of services, and what its members and their users are given."""

    def settings_of(self, settings: Settings) -> Settings:
        """`settings` with the URLs of the local services."""

    def services(self, local: Settings) -> list[Service]:
        """All of them, in the order in which they start."""

    def prepare_stores(self, local: Settings, progress: Progress) -> None:
        """What has to be there before those start that keep state."""

    def prepare(self, local: Settings, env: dict[str, str], progress: Progress) -> None:
        """What has to be there before the others start."""

    def environment(self, local: Settings) -> dict[str, str]:
        """What every service is given that has no environment of its own."""

    def credentials(self, local: Settings) -> dict[str, str]:
        """The secrets by which a program of this machine uses store, cluster and MLflow."""

    def joining_ray(self, local: Settings) -> dict[str, str]:
        """The variables by which a program joins this Ray."""

    def mlflow_admin(self, local: Settings) -> Login:
        """Of people, and of who makes MLflow's users."""


def answers(
    url: str, *, part: str | None = None, headers: Mapping[str, str] | None = None
) -> Callable[[], bool]:
    """Whether `url` answers 200 and, where `part` is given, Airflow's health document calls that part healthy."""

    def look() -> bool:
        try:
            answer = _asking().get(url, headers=headers)
            if answer.status_code != 200:
                return False
            return part is None or bool(answer.json().get(part, {}).get("status") == "healthy")
        except (httpx.HTTPError, json.JSONDecodeError):
            return False

    return look


@functools.cache
def _asking() -> httpx.Client:
    """One for all questions to services: a client reads the authorities' certificates first, which costs a hundred times what a question does.

    No connection outlives its question, since a service may be started anew before the next.
    """
    return httpx.Client(timeout=5.0, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def prepare_all(preparations: Collection[Preparation], *, cwd: Path) -> None:
    """Run programs at once, since each spends its time on imports, and wait for all; when one fails the others are ended.

    Raises:
        TerminalError: One failed; the message holds the end of what it said.
    """
    running: list[tuple[Preparation, subprocess.Popen[str]]] = []
    try:
        for preparation in preparations:
            process = subprocess.Popen(
                preparation.command,
                env=dict(preparation.env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            running.append((preparation, process))
        for preparation, process in running:
            output, _ = process.communicate()
            if process.returncode != 0:
                raise TerminalError(
                    f"could not be prepared:\n{tail(output)}", which=preparation.which, fix=preparation.fix
                )
    finally:
        for _, process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()


# -- the profile and its folders


def profile_of(settings: Settings) -> str:
    """The profile that was started last; `embedded` where none was."""
    file = settings.home / "profile"
    try:
        found = file.read_text().strip()
    except FileNotFoundError:
        return EMBEDDED
    except OSError as error:
        raise disk_error(error, str(file)) from error
    return found if found in PROFILES else EMBEDDED


def choose_profile(settings: Settings, profile: str) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    _replace(settings.home / "profile", profile)


def state_folder(settings: Settings) -> Path:
    """Where the profile keeps its logs and the state of its services."""
    return settings.home / PRODUCTION if profile_of(settings) == PRODUCTION else settings.home


def airflow_home(settings: Settings) -> Path:
    return state_folder(settings) / "airflow"


def log_of(settings: Settings, name: str) -> Path:
    return state_folder(settings) / "logs" / f"{name}.log"


def ray_folder(settings: Settings) -> Path:
    """Ray's sessions; its socket paths must stay below 107 bytes, so a long home gets a short folder."""
    inside = settings.home / "ray"
    if len(str(inside)) <= 40:
        return inside
    return (
        Path(tempfile.gettempdir())
        / f"penstock-{os.getuid()}-{digest_bytes(str(settings.home).encode())[:8]}"
    )


# -- ports


def url_at(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def load_ports(settings: Settings) -> dict[str, int]:
    """The ports that were chosen last; 0 where none was."""
    try:
        ports = json.loads(_ports_file(settings).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        ports = {}
    return {name: int(ports.get(name, 0)) for name in PORTS[profile_of(settings)]}


def choose_ports(settings: Settings) -> None:
    """Keep the ports of last time where they are free, so that bookmarks stay good; else take free ones."""
    before = load_ports(settings)
    taken: list[socket.socket] = []
    chosen: dict[str, int] = {}
    try:
        for name in before:
            held = _bind(before[name]) or _bind(0)
            assert held is not None
            taken.append(held)
            chosen[name] = held.getsockname()[1]
    finally:
        for held in taken:
            held.close()
    settings.home.mkdir(parents=True, exist_ok=True)
    _replace(_ports_file(settings), json.dumps(chosen, indent=1))


def _ports_file(settings: Settings) -> Path:
    return settings.home / "ports.json"


def _bind(port: int) -> socket.socket | None:
    held = socket.socket()
    if port:  # connections that a service of before has closed linger on its port; they are in nobody's way
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError:
        held.close()
        return None
    return held


def _replace(path: Path, text: str, *, opener: Callable[[str, int], int] | None = None) -> None:
    staged = path.with_suffix(".part")
    staged.unlink(missing_ok=True)  # of an interrupted call, maybe with other rights
    with open(staged, "w", opener=opener) as file:
        file.write(text)
    staged.replace(path)


# -- secrets


def secret(path: Path, *, fernet: bool = False) -> str:
    """The secret in the file at `path`, which only its owner may read; a random one when there is none yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = base64.urlsafe_b64encode(os.urandom(32)).decode() if fernet else secrets.token_hex(24)
    try:
        with open(path, "x", opener=_for_the_owner) as created:
            created.write(key)
    except FileExistsError:
        pass
    return path.read_text()


def write_for_owner(path: Path, text: str) -> None:
    """Put a file that only its owner may read in the place of what is at `path`; whole or not at all."""
    _replace(path, text, opener=_for_the_owner)


def _for_the_owner(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


# -- MLflow's logins, as both profiles keep them


def mlflow_server(local: Settings, *options: str) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "tasks.local.mlflow_server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", LOOPBACK, "--port", str(load_ports(local)["mlflow"]), *options),
    )


def mlflow_service(
    local: Settings, *options: str, own_env: Callable[[], Mapping[str, str]], admin: Login, password: str
) -> Service:
    """MLflow's server, with a user for Penstock's programs.

    Args:
        local: This installation.
        options: Of `mlflow server`.
        own_env: What it alone is given.
        admin: Its first user.
        password: Of the user of Penstock's programs.
    """

    def settle() -> None:
        from tasks.core.mlflow_users import ensure_service_user

        ensure_service_user(local.mlflow_url, admin=admin, password=password)

    return Service(
        "mlflow",
        mlflow_server(local, *options),
        local.mlflow_url,
        answers(f"{local.mlflow_url}/health"),
        own_env=own_env,
        settle=settle,
    )


def mlflow_credentials(password: str) -> dict[str, str]:
    """The variables by which a program logs in to MLflow."""
    return {USER: SERVICE_USER, PASSWORD: password}


def mlflow_asks_for_logins(
    local: Settings, *, database_url: str, admin: Login, secret_key: str
) -> dict[str, str]:
    """The variables by which MLflow's server asks for a login; its file of settings is made, for its owner alone."""
    path = state_folder(local) / "mlflow" / "logins.ini"
    path.parent.mkdir(parents=True, exist_ok=True)
    escaped = database_url.replace("%", "%%")  # it is read with interpolation
    write_for_owner(path, MLFLOW_LOGINS.format(user=admin[0], database_url=escaped))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(path),
        ADMIN_PASSWORD: admin[1],  # of the first start: it is in the database from then on
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret_key,
    }


# -- Airflow and Ray, as both profiles run them


def airflow_services(local: Settings) -> list[Service]:
    health = f"{local.airflow_url}/api/v2/monitor/health"

    def beat(part: str) -> Callable[[], datetime | None]:
        def look() -> datetime | None:
            try:
                told = _asking().get(health).json()
                return datetime.fromisoformat(told[part][f"latest_{part}_heartbeat"])
            except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError):
                return None

        return look

    def command(part: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "plugins.preloaded" if part in _FORKING else "airflow", part)

    server, *others = AIRFLOW_PARTS
    return [
        Service(f"airflow-{server}", command(server), local.airflow_url, answers(health)),
        *(
            Service(
                f"airflow-{part}",
                command(part),
                None,
                answers(health, part=part.replace("-", "_")),
                beat(part.replace("-", "_")),
            )
            for part in others
        ),
    ]


def airflow_addresses(local: Settings) -> dict[str, str]:
    """Where Airflow's parts listen on this machine."""
    ports = load_ports(local)
    return {
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(ports["airflow"]),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports["airflow_worker_log"]),
        # Airflow's triggerer listens on the first of these and its API server reads the second.
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["airflow_trigger_log"]),
        "AIRFLOW__LOGGING__TRIGGERER_LOG_SERVER_PORT": str(ports["airflow_trigger_log"]),
    }


def airflow_reading(local: Settings) -> dict[str, str]:
    """How often Airflow reads the DAGs of all pipelines again: as the environment says, else so that it takes a thirtieth of a core."""
    interval = "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"
    return {interval: os.environ.get(interval) or str(max(30, 3 * len(pipeline_names(local))))}


def make_login(settings: Settings) -> None:
    """Give Airflow's admin a password in a file of the owner's, or Airflow makes one and prints it into its log."""
    path = login_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with open(path, "w", opener=_for_the_owner) as created:
            created.write(json.dumps({"admin": secrets.token_urlsafe(12)}))


def login_file(settings: Settings) -> Path:
    return airflow_home(settings) / "simple_auth_manager_passwords.json.generated"


def ray_start(*options: str) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0"),  # any free port: a fixed range may hold a chosen one
        f"--object-store-memory={256 * 1024 * 1024}",
        *options,
    )


def ray_head(local: Settings, *, cpus: int) -> tuple[str, ...]:
    ports = load_ports(local)
    return ray_start(
        "--head",
        f"--node-ip-address={LOOPBACK}",
        f"--port={ports['ray_gcs']}",
        f"--dashboard-host={LOOPBACK}",
        "--include-dashboard=true",
        f"--dashboard-port={ports['ray_dashboard']}",
        f"--dashboard-agent-listen-port={ports['ray_agent']}",
        f"--dashboard-agent-grpc-port={ports['ray_agent_grpc']}",
        f"--ray-client-server-port={ports['ray_client']}",
        f"--metrics-export-port={ports['ray_metrics']}",
        f"--runtime-env-agent-port={ports['ray_runtime_env']}",
        f"--node-manager-port={ports['ray_node_manager']}",
        f"--object-manager-port={ports['ray_object_manager']}",
        f"--temp-dir={ray_folder(local)}",
        f"--num-cpus={cpus}",
    )


def ray_has_node(
    local: Settings, is_it: Callable[[dict[str, Any]], bool], *, headers: Mapping[str, str]
) -> Callable[[], bool]:
    """Whether the head counts a node among the living for which `is_it` holds, of Ray's record of the node."""

    def look() -> bool:
        try:
            url = f"{local.ray_jobs_url}/nodes?view=summary"
            nodes = _asking().get(url, headers=headers).json()["data"]["summary"]
            return any(node["raylet"]["state"] == "ALIVE" and is_it(node) for node in nodes)
        except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError):
            return False

    return look


def ray_head_service(local: Settings, *, cpus: int, token: str) -> Service:
    """Ray's head with its Jobs API.

    It answers before its own node has registered, for which Ray waits 30 s and then ends: too short on a busy machine.
    """
    alive = ray_has_node(local, lambda node: bool(node["raylet"]["isHeadNode"]), headers=bearer(token))
    return Service("ray", ray_head(local, cpus=cpus), local.ray_jobs_url, alive, starts=RAY_STARTS)


def ray_credentials(token: str) -> dict[str, str]:
    """The variables by which Ray asks for its token, and a program sends it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def bearer(token: str) -> dict[str, str]:
    """The header by which HTTP carries it."""
    return {"Authorization": f"Bearer {token}"}


def own_programs() -> dict[str, str]:
    """What a program needs to find this installation's Python first."""
    venv_bin = str(Path(sys.executable).parent)
    return {"PATH": f"{venv_bin}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}


def inherited(*left_out: str) -> dict[str, str]:
    """This process's environment without variables that begin so; who gets Airflow's own lineage is the user's to say."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(left_out) or key.startswith("AIRFLOW__OPENLINEAGE__")
    }


def tail(text: str, lines: int = 25) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def marks(settings: Settings, name: str) -> dict[str, str]:
    """What every process of a service carries, so that it is found again (docs/adr/0007)."""
    return {"PENSTOCK_HOME": str(settings.home), "PENSTOCK_SERVICE": name}
